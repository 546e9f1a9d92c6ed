"""The files in configs/, by name or path. What they define is checked in `config.load`."""

import ast
import os
import pathlib

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.settings import did_you_mean

# Directories that hold configs: next to the package in a checkout, inside it when installed.
CONFIG_DIRS = (
  pathlib.Path(__file__).parent.parent / 'configs',
  pathlib.Path(__file__).parent / 'configs',
)


def names() -> list[str]:
  """Configs that can be given by name."""
  found = [file for folder in CONFIG_DIRS for file in folder.glob('*.py')]
  return sorted({file.stem for file in found if file.stem != '__init__'})


def find(config: str | os.PathLike) -> files.AnyPath:
  """The Python file of `config`, a path or a name in configs/. UserError when there is none."""
  path = files.path(config)
  if path.suffix == '.py' or files.is_remote(path):
    if not path.is_file():
      raise UserError(f'no config file {config}: give the path of a Python file that defines `config`')
    return path
  for folder in CONFIG_DIRS:
    if (folder / f'{config}.py').exists():
      return folder / f'{config}.py'
  raise UserError(
    f'no config {config!r}: known are {", ".join(names())}{did_you_mean(config, names())} '
    '(a config of your own is given as a path that ends in .py)'
  )


def summary(config: str) -> str:
  """The first line of the docstring of `config`; runs nothing of it."""
  try:
    docstring = ast.get_docstring(ast.parse(find(config).read_bytes()))
  except SyntaxError:  # `load` reports it
    docstring = None
  return (docstring or '').partition('\n')[0]


def run(path: files.AnyPath) -> dict[str, object]:
  """The names that a Python file defines. Raises whatever it raises."""
  names: dict[str, object] = {'__name__': path.stem, '__file__': str(path)}
  # Not runpy, which cannot read gs://. From bytes, so that Python itself looks for the file's encoding.
  exec(compile(path.read_bytes(), str(path), 'exec'), names)
  return names
