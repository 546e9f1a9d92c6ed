"""What the README of a data set's folder says, as the hub has it and as `git clone` copies it.

---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
---
"""

import re
from collections.abc import Callable, Collection, Iterable

from mathqwen import files
from mathqwen.errors import UserError

Configurations = dict[str, dict[str, list[str]]]  # {its name: {split: patterns of files}}


def front_matter(folder: files.AnyPath) -> dict:
  """The values at the head of the README in a folder; {} without one. UserError: when they cannot be read."""
  readme = folder / 'README.md'
  match = re.match(r'---\n(.*?)\n---', _text(readme), re.DOTALL) if readme.is_file() else None
  if match is None:
    return {}
  try:
    import yaml  # comes with huggingface_hub

    front = yaml.safe_load(match.group(1))
  except ImportError as error:
    raise UserError(f"{readme}: reading its front matter needs PyYAML: pip install 'mathqwen[hf]'") from error
  except yaml.YAMLError as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'{readme}: its front matter cannot be read ({type(error).__name__}: {reason})') from None
  return front if isinstance(front, dict) else {}


def _text(readme: files.AnyPath) -> str:
  try:
    return readme.read_text('utf-8')
  except UnicodeDecodeError:
    return ''  # no card of the hub, which are UTF-8


def names_configurations(folder: files.AnyPath) -> bool:
  """Whether the head of a README in a folder may name configurations; found without PyYAML."""
  readme = folder / 'README.md'
  return readme.is_file() and re.match(r'---\n(?:(?!---).*\n)*?configs:', _text(readme)) is not None


def default_of(front: dict, names: Collection[str]) -> str | None:
  """The configuration that is meant where none is named: the only one, the one that says so, or 'default'."""
  marked = [str(entry['config_name']) for entry in front.get('configs') or [] if entry.get('default')]
  return next((name for name in (*marked, 'default') if name in names), next(iter(names)) if len(names) == 1 else None)


def configurations(front: dict, folder: files.AnyPath) -> Configurations:
  """The configurations of the front matter of the README in a folder; empty without any.

  The form is that of https://huggingface.co/docs/hub/datasets-manual-configuration. UserError: when it is another.
  """
  try:
    entries = front.get('configs') or []
    return {str(entry['config_name']): _by_split(entry['data_files']) for entry in entries if entry.get('data_files')}
  except (AttributeError, KeyError, TypeError) as error:
    raise UserError(
      f'{folder / "README.md"}: its front matter cannot be read ({type(error).__name__}: {error})'
    ) from None


def _by_split(data_files: object) -> dict[str, list[str]]:
  """{split: patterns} of a `data_files` entry: a pattern, several, or one object for each split."""
  as_list = lambda value: [value] if isinstance(value, str) else list(value)
  if isinstance(data_files, str) or all(isinstance(entry, str) for entry in data_files):
    return {'train': as_list(data_files)}
  return {str(entry['split']): as_list(entry['path']) for entry in data_files}


def files_of(
  folder: files.AnyPath, patterns: Iterable[str], is_data: Callable[[files.AnyPath], bool]
) -> list[files.AnyPath]:
  """The files of patterns below a folder, in their order, each once. A folder that matches stands for its files."""
  found = [
    file
    for pattern in patterns
    for match in sorted(folder.glob(_relative(pattern)))
    for file in ([match] if match.is_file() else sorted(match.rglob('*')))
    if file.is_file() and is_data(file)
  ]
  return list(dict.fromkeys(found))


def _relative(pattern: str) -> str:
  """The pattern as `glob` reads it, for which '**' at the end stands for folders alone."""
  return pattern.removeprefix('./').strip('/').removesuffix('**').rstrip('/') or '*'
