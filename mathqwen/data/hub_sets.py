"""Data sets by their name on the Hugging Face hub: hf://openai/gsm8k/main@REVISION. It needs the `hf` extra."""

import re

from mathqwen import files
from mathqwen.data import formats
from mathqwen.errors import UserError
from mathqwen.files import hub

# ORGANISATION/NAME, then the name of one of its configurations and a revision, both of which may be left out.
_NAME = re.compile(r'([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w][\w./-]*))?')


def data_files(source: str, split: str) -> list[files.AnyPath]:
  """The files of a split of a data set on the hub, downloaded first if necessary.

  source: hf://ORGANISATION/NAME[/CONFIGURATION][@REVISION].
  UserError: when the hub does not give them, or the data set has several configurations and none is named.
  """
  match = _NAME.fullmatch(source.removeprefix(files.HUB))
  if not match:
    raise UserError(f'{source}: write {files.HUB}ORGANISATION/NAME, which /CONFIGURATION and @REVISION may follow')
  name, wanted, revision = match.groups()
  folder = files.path(hub.fetch_data(name, revision))
  configurations = _configurations(folder)
  if not configurations:
    return formats.data_files(folder / wanted if wanted else folder, split)
  patterns = _choose(source, configurations, wanted).get(split)
  if patterns is None:
    raise UserError(f'{source} has no split {split!r}')
  found = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
  if not found:
    raise UserError(f'{source}: its README names {", ".join(patterns)} for {split}, and there are no such files')
  return found


def _configurations(folder: files.AnyPath) -> dict[str, dict[str, list[str]]]:
  """{configuration: {split: patterns of files}} of the front matter of the data set's README; empty without one.

  The form is that of https://huggingface.co/docs/hub/datasets-manual-configuration.
  """
  readme = folder / 'README.md'
  match = re.match(r'---\n(.*?)\n---', readme.read_text('utf-8'), re.DOTALL) if readme.is_file() else None
  if match is None:
    return {}
  import yaml  # comes with huggingface_hub

  try:
    front = yaml.safe_load(match.group(1))
    entries = front.get('configs') or []
    return {str(entry['config_name']): _by_split(entry['data_files']) for entry in entries if entry.get('data_files')}
  except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
    raise UserError(f'{readme}: its front matter cannot be read ({type(error).__name__}: {error})') from None


def _by_split(data_files: object) -> dict[str, list[str]]:
  """{split: patterns} of a `data_files` entry: a pattern, several, or one object for each split."""
  as_list = lambda value: [value] if isinstance(value, str) else list(value)
  if isinstance(data_files, str) or all(isinstance(entry, str) for entry in data_files):
    return {'train': as_list(data_files)}
  return {str(entry['split']): as_list(entry['path']) for entry in data_files}


def _choose(source: str, configurations: dict[str, dict], wanted: str | None) -> dict[str, list[str]]:
  names = list(configurations)
  chosen = wanted or (names[0] if len(names) == 1 else 'default')
  if chosen not in configurations:
    name = re.sub(r'@.*', '', source)
    raise UserError(f'{source} has the configurations {", ".join(names)}: name one, as {name.rstrip("/")}/{names[0]}')
  return configurations[chosen]
