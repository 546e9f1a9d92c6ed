"""Writing files so that a reader finds either the old content or the new one, never a part of it."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath


@contextlib.contextmanager
def named(path: AnyPath) -> Iterator[None]:
  """Puts `path` into an OSError raised inside: the operating system names the file only when opening it fails."""
  try:
    yield
  except OSError as error:
    error.filename = str(path)
    raise


def write_atomically(path: AnyPath, data: bytes) -> None:
  """Writes `data` beside `path` and renames it to `path` once it is on the disk. Makes the directory if needed.

  An object store replaces an object whole by itself.
  OSError, naming `path`, when the disk is full or cannot be written; `path` is then unchanged.
  """
  if isinstance(path, GcsPath):
    path.write_bytes(data)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as file, named(path):
    file.write(data)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file beside `path` to write into, which is renamed to `path` once it is on the disk.

  It is removed when the block ends in an error; `path` is then unchanged. OSError, naming `path`: when it cannot be
  made or renamed.
  """
  # A name of its own, because several hosts may write the same file at the same time.
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  try:
    with named(path):
      file = open(part, 'wb')  # noqa: SIM115 - closed below: errors of the block keep their names
    try:
      yield file
      with named(path):
        file.flush()
        os.fsync(file.fileno())
    finally:
      with named(path):
        file.close()  # on a full disk it fails again
    with named(path):
      os.replace(part, path)
  except BaseException:
    part.unlink(missing_ok=True)  # a full disk needs the space
    raise


def size_text(size: int) -> str:
  """A number of bytes for people: '1.5 GiB', or in MiB below one GiB."""
  return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.1f} MiB'
