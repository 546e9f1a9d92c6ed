"""Files that are either the old or the new one, whole, whatever happens in between."""

import contextlib
import os
import pathlib
import secrets


@contextlib.contextmanager
def named(path: os.PathLike):
  """An error of writing says which file: the operating system names it only where opening fails."""
  try:
    yield
  except OSError as error:
    error.filename = str(path)
    raise


def write_atomically(path: pathlib.Path, data: bytes):
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')  # several hosts may write one file
  try:
    with named(path):
      with open(part, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(part, path)
  except BaseException:
    part.unlink(missing_ok=True)  # it would fill a full disk
    raise
