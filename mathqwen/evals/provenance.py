"""Which code made a number."""

import importlib.metadata
import os
import pathlib
import subprocess


def provenance() -> dict:
  """Version of the installed package, and commit of the source tree where it runs from one."""
  try:
    version = importlib.metadata.version('mathqwen')
  except importlib.metadata.PackageNotFoundError:
    version = None
  root = pathlib.Path(__file__).parents[2]
  commit = None
  if (root / '.git').exists():
    ask = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    try:
      answer = subprocess.run(ask, capture_output=True, text=True, env={**os.environ, 'GIT_OPTIONAL_LOCKS': '0'})
      commit = answer.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
      commit = None
  return {'version': version, 'commit': commit}
