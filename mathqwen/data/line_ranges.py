"""Ranges of a JSON Lines file, so that several processes can read one file.

split(path, 2**25)      [LineRange(0, 33554632, 1), LineRange(33554632, 67109008, 81324), ...]
records(path, range)    (81324, {'question': ...}), (81325, {...}), ...     as `formats.records` has them
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from mathqwen import files
from mathqwen.data import formats
from mathqwen.data.json_rows import conversation

_READ = 2**24  # bytes at once


@dataclasses.dataclass(frozen=True)
class LineRange:
  """Whole lines: bytes [start, stop) of a file, of which the first is line `first`, counted from 1."""

  start: int
  stop: int
  first: int


def split(path: files.AnyPath, size: int) -> list[LineRange]:
  """Ranges of about `size` bytes; empty where the file cannot be split: small, compressed, of another format.

  UserError: when it cannot be read.
  """
  if not _is_json_lines(path):
    return []
  with contextlib.closing(files.open_ranges(path)) as file:
    if file.size <= size:
      return []
    found = []
    start = at = 0
    first = line = 1
    while at < file.size:
      content = file.read(at, _READ)
      end = content.rfind(b'\n') + 1 if at + _READ < file.size else len(content)
      if end and at + end - start >= size:
        line += content.count(b'\n', 0, end)
        found.append(LineRange(start, at + end, first))
        start = at = at + end
        first = line
      else:
        line += content.count(b'\n')
        at += len(content)
    if start < file.size:
      found.append(LineRange(start, file.size, first))
  return found


def _is_json_lines(path: files.AnyPath) -> bool:
  """Whether a file is uncompressed JSON Lines. UserError: when it cannot be read."""
  with formats.opened(path) as file:
    head = file.peek(1).lstrip(b'\xef\xbb\xbf \n\r\t')
    uncompressed = isinstance(file.raw, formats.Ranges)
    return uncompressed and head.startswith(b'{') and formats.reader_of(path, file) is formats.lines


def records(path: files.AnyPath, part: LineRange) -> Iterator[formats.Record]:
  """The records of a range. UserError: as `formats.records`."""
  with formats.opened(path) as file:
    file.seek(part.start)

    def inside() -> Iterator[bytes]:
      at = part.start
      while at < part.stop and (content := file.readline()):
        at += len(content)
        yield content

    yield from ((line, conversation(value)) for line, value in formats.lines(path, inside(), part.first))
