"""Where this machine keeps what it downloaded or prepared."""

import os
from pathlib import Path

from mathqwen import files
from mathqwen.errors import UserError


def cache_dir() -> Path:
  """$MATHQWEN_CACHE, by default ~/.cache/mathqwen. UserError: when it is not on this machine."""
  folder = os.environ.get('MATHQWEN_CACHE') or Path.home() / '.cache' / 'mathqwen'
  if files.is_remote(folder):
    raise UserError(f'MATHQWEN_CACHE is {folder}: what is kept there is read at random, set it to a local directory')
  return Path(folder)
