"""Test files find the helpers that they import, whichever of them runs alone."""

import ast
import pathlib

TESTS = pathlib.Path(__file__).parent


def imported_modules(file):
  """First parts of the names of all modules that `file` imports."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names.add(node.module.split('.')[0])
  return names


def test_helpers_lie_beside_the_tests_that_import_them_or_above():
  # pytest puts a test file's own folder and tests/ on sys.path. Another folder is there only if its tests ran before.
  folders = {}
  for file in TESTS.rglob('*.py'):
    folders.setdefault(file.stem, set()).add(file.parent)
  lost = [
    f'{file.relative_to(TESTS)} imports {name}'
    for file in sorted(TESTS.rglob('*.py'))
    for name in sorted(imported_modules(file))
    if name in folders and not folders[name] & {file.parent, TESTS}
  ]
  assert lost == []
