"""Which code made a result."""

import os
import pathlib
import subprocess

import mathqwen


def provenance() -> dict[str, str | None]:
  """The version of the package, and the commit of the source tree when it runs from one ('-dirty' with changes)."""
  root = pathlib.Path(__file__).parents[2]
  commit = None
  if (root / '.git').exists():
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    # Keep git from refreshing its index, which would need permission to write there.
    environ = {**os.environ, 'GIT_OPTIONAL_LOCKS': '0'}
    try:
      commit = subprocess.run(command, capture_output=True, text=True, env=environ).stdout.strip() or None
    except FileNotFoundError:  # git is not installed
      commit = None
  return {'version': mathqwen.__version__, 'commit': commit}
