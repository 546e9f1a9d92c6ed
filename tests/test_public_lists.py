"""Each folder of the package lists the modules that others may use, and importing the folder costs nothing."""

import ast
import functools
import importlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(importlib.import_module('mathqwen').__file__).parent
# files and hf list functions instead of modules; commands are found by their file names, and assets hold no code.
ROOMS = sorted({path.parent.name for path in PACKAGE.glob('*/__init__.py')} - {'files', 'hf', 'commands', 'assets'})


@functools.cache
def imports():
  """(file, statement) of each `from ... import` in the package."""
  nodes = ((path, node) for path in PACKAGE.rglob('*.py') for node in ast.walk(ast.parse(path.read_text())))
  return [(path, node) for path, node in nodes if isinstance(node, ast.ImportFrom) and node.module is not None]


def modules_used_elsewhere(room):
  """Modules of mathqwen.ROOM that files outside of it import."""
  used = set()
  for path, node in imports():
    if path.is_relative_to(PACKAGE / room):
      continue
    if node.module == f'mathqwen.{room}':
      used |= {alias.name for alias in node.names}
    elif node.module.startswith(f'mathqwen.{room}.'):
      used.add(node.module.split('.')[2])
  return used


@pytest.mark.parametrize('room', ROOMS)
def test_other_folders_use_what_is_listed(room):
  listed = importlib.import_module(f'mathqwen.{room}').__all__
  used = modules_used_elsewhere(room)
  assert used and used == set(listed) - {'testing'}  # which the tests of other folders use
  assert set(listed) <= {path.stem for path in (PACKAGE / room).iterdir()}  # modules, and folders such as evals/report


@pytest.mark.parametrize('room', [*ROOMS, 'files'])
def test_importing_the_folder_is_light(room):
  heavy = ('jax', 'numpy', 'grain', 'etils', 'gcsfs')
  code = f'import sys, mathqwen.{room}; print([name for name in {heavy} if name in sys.modules])'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'
