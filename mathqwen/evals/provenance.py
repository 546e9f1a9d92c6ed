"""Which code made a number."""

import os
import pathlib
import subprocess

import mathqwen


def provenance() -> dict:
  """Version of the package, and commit of the source tree where it runs from one."""
  root = pathlib.Path(__file__).parents[2]
  commit = None
  if (root / '.git').exists():
    ask = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    try:
      answer = subprocess.run(ask, capture_output=True, text=True, env={**os.environ, 'GIT_OPTIONAL_LOCKS': '0'})
      commit = answer.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
      commit = None
  return {'version': mathqwen.__version__, 'commit': commit}
