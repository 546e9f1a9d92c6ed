"""Files that may be larger than memory: read by ranges of bytes, and written piece by piece."""

import concurrent.futures
import contextlib
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from mathqwen.files import gcs_requests
from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath
from mathqwen.files.regular import open_regular
from mathqwen.files.writing import named, replacing

_LOCAL_READ = 2**30  # bytes: Linux reads at most 2 GiB in one call
# A large range is read by several requests at the same time. The product is the memory that they take in addition to
# the caller's buffer.
_REMOTE_READ = 2**24  # bytes
_REMOTE_READERS = 8
_WRITE = 2**26  # bytes: a buffer of gcsfs grows by as much


class RangedFile:
  """An open file, of which any range of bytes can be read. Errors: as `open_regular`."""

  def __init__(self, path: AnyPath):
    self._path = path
    self._file: io.FileIO | None = None
    if isinstance(path, GcsPath):
      self.size = path.stat().st_size
    else:
      self._file = open_regular(path)
      self.size = os.fstat(self._file.fileno()).st_size

  def read(self, offset: int, count: int) -> bytes:
    """`count` bytes from `offset` on; fewer at the end of the file."""
    buffer = bytearray(max(0, min(count, self.size - offset)))
    return bytes(buffer[: self.read_into(offset, memoryview(buffer))])

  def read_into(self, offset: int, buffer: memoryview) -> int:
    """Fills `buffer` with the bytes from `offset` on. Returns how many there were."""
    if self._file is None:
      return self._download(offset, buffer)
    done = 0
    while done < len(buffer):
      count = os.preadv(self._file.fileno(), [buffer[done : done + _LOCAL_READ]], offset + done)
      if count == 0:
        break
      done += count
    return done

  def _download(self, offset: int, buffer: memoryview) -> int:
    wanted = max(0, min(len(buffer), self.size - offset))
    starts = range(0, wanted, _REMOTE_READ)

    def fetch(start: int) -> int:
      stop = min(start + _REMOTE_READ, wanted)
      data = gcs_requests.read(self._path.bucket, self._path.key, offset + start, offset + stop)
      buffer[start : start + len(data)] = data
      return len(data)

    if len(starts) <= 1:
      return sum(map(fetch, starts))
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_READERS) as threads:
      return sum(threads.map(fetch, starts))

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def open_ranges(path: AnyPath) -> RangedFile:
  """The file, for reading ranges of it.

  FileNotFoundError: when there is none. UserError: when it is a directory, device, pipe or socket.
  """
  return RangedFile(path)


@contextlib.contextmanager
def open_new(path: AnyPath) -> Iterator['PieceWriter']:
  """A new file to write piece by piece. On an object store it appears when the block ends without an error."""
  opened = gcs_requests.writer(path.bucket, path.key) if isinstance(path, GcsPath) else path.open('wb')
  with opened as file:
    yield PieceWriter(file, path)


@contextlib.contextmanager
def open_replacing(path: AnyPath) -> Iterator['PieceWriter']:
  """As `open_new`; a file that is there keeps its content until the block ends without an error.

  OSError, naming `path`, when the disk is full.
  """
  if isinstance(path, GcsPath):
    with open_new(path) as writer:
      yield writer
    return
  with replacing(path) as file:
    yield PieceWriter(file, path)


class PieceWriter:
  """A file that is being written."""

  def __init__(self, file: BinaryIO, path: AnyPath):
    self._file = file
    self._path = path

  def write(self, data: bytes | memoryview) -> None:
    """Appends `data`, of any size. OSError: names the file, when the disk is full."""
    with named(self._path):
      for start in range(0, len(data), _WRITE):
        self._file.write(data[start : start + _WRITE])
