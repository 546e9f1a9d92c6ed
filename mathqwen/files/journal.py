"""A file that grows by lines, none of which is lost when the process is killed.

On a local disk: a file that is appended to. An object store cannot append, so there a journal is an object and parts:

  records.jsonl                              the lines up to the newest opening, written whole
  records.jsonl.parts/GENERATION-00000001    lines added since then, in order
  records.jsonl.parts/GENERATION-00000002

Writing the whole object again for each line would move n^2 / 2 lines, and the store takes one write a second to an
object (cloud.google.com/storage/quotas). A part holds what was added while the part before it was being sent, so that
the caller does not wait a round trip for each line. Parts count only for the generation of the object that their names
begin with: writing the object again, with their lines in it, replaces object and parts in one step.
"""

import contextlib
import queue
import re
import threading
from typing import Self

from mathqwen.files import gcs_requests
from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath
from mathqwen.files.trees import remove_tree
from mathqwen.files.writing import named, write_atomically

_READS = 5  # of an object and its parts, while another process replaces them


class Journal:
  """Appends lines to the file at `path`.

  On a local disk a line is there when `write` returns; on an object store when the upload that follows has ended.
  Leaving the `with` block waits for it.
  """

  def __init__(self, path: AnyPath, size: int = 0):
    """size: how many bytes of what `read_journal` gives to keep."""
    self._path = path
    self._remote: _Parts | None = None
    if isinstance(path, GcsPath):
      self._remote = _Parts(path, size)
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(path, 'a+b')  # noqa: SIM115 - closed by __exit__
    self._file.truncate(size)
    if size:
      self._file.seek(size - 1)
      if self._file.read(1) != b'\n':  # the last line is whole and lacks only its newline
        self._file.write(b'\n')

  def write(self, line: bytes) -> None:
    """Appends one line, its newline included. OSError: names the file, when the disk is full.

    Unreachable: when an earlier upload failed.
    """
    if self._remote is not None:
      self._remote.add(line)
      return
    with named(self._path):
      self._file.write(line)
      self._file.flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind, *_):
    if self._remote is not None:
      self._remote.close(failed=kind is not None)
      return
    with named(self._path):
      self._file.close()


class _Parts:
  """Uploads lines as parts, in a thread of its own."""

  def __init__(self, path: GcsPath, size: int):
    kept = read_journal(path)[:size] if size else b''
    if kept and not kept.endswith(b'\n'):
      kept += b'\n'
    self._generation = gcs_requests.write(path.bucket, path.key, kept)
    remove_tree(_folder_of(path))  # parts of earlier generations
    self._path = path
    self._number = 0
    self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    self._error: Exception | None = None
    self._thread = threading.Thread(target=self._upload_all, daemon=True)
    self._thread.start()

  def add(self, line: bytes) -> None:
    if self._error is not None:
      raise self._error
    self._lines.put(line)

  def _upload_all(self):
    ended = False
    while not ended:
      lines = [self._lines.get()]
      with contextlib.suppress(queue.Empty):
        while True:
          lines.append(self._lines.get_nowait())
      ended = None in lines
      data = b''.join(line for line in lines if line is not None)
      if not data or self._error is not None:
        continue
      self._number += 1
      name = f'{self._generation}-{self._number:08}'
      try:
        (_folder_of(self._path) / name).write_bytes(data)
      except Exception as error:  # raised where the next line is added, or at the end
        self._error = error

  def close(self, failed: bool) -> None:
    """failed: the block ends with an error already, which says more than one of ours."""
    self._lines.put(None)
    self._thread.join()
    if self._error is not None and not failed:
      raise self._error


def _folder_of(path: GcsPath) -> GcsPath:
  return path.with_name(f'{path.name}.parts')


def read_journal(path: AnyPath) -> bytes:
  """What a journal holds, also while it is being written. FileNotFoundError: when there is none.

  Any other file is read as `read_bytes` reads it.
  """
  if not isinstance(path, GcsPath):
    return path.read_bytes()
  for _ in range(_READS):
    found = gcs_requests.find(path.bucket, path.key)
    if found is None:
      break
    folder = _folder_of(path)
    objects, _ = gcs_requests.list_below(folder.bucket, folder.prefix)
    keys = sorted(part.key for part in objects if re.search(rf'/{found.generation}-\d+$', part.key))
    try:
      content = [path.read_bytes(), *_read_all(path.bucket, keys)]
    except FileNotFoundError:
      continue  # it was replaced meanwhile, and its parts removed
    now = gcs_requests.find(path.bucket, path.key)
    if now is not None and now.generation == found.generation:
      return b''.join(content)
  return path.read_bytes()


def _read_all(bucket: str, keys: list[str]) -> list[bytes]:
  import concurrent.futures

  with concurrent.futures.ThreadPoolExecutor(16) as threads:
    return list(threads.map(lambda key: gcs_requests.read(bucket, key), keys))


def has_lines(path: AnyPath) -> bool:
  """Whether there is anything in a journal, which must exist."""
  return bool(read_journal(path)) if isinstance(path, GcsPath) else path.stat().st_size > 0


def replace_journal(path: AnyPath, data: bytes) -> None:
  """Replaces all of a journal's lines, atomically."""
  write_atomically(path, data)
  if isinstance(path, GcsPath):
    remove_tree(_folder_of(path))
