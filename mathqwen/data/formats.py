r"""From files to records: JSON Lines, JSON, CSV, Parquet and Arrow, compressed or not.

train.jsonl.gz            (1, {'question': ...}), (2, {...}), ...     the number of the line
train-00000.parquet       (1, {'question': ...}), ...                 the number of the row

The first bytes of a file say what it is; the name only tells CSV, and JSON that is spread over lines, from JSON Lines.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from mathqwen import files
from mathqwen.data import arrow_tables, not_records, tfds_sets
from mathqwen.data.json_rows import DECODER, check_names, conversation, is_conversation, rows_of
from mathqwen.data.malformed import Malformed
from mathqwen.errors import UserError

_CHUNK = 2**20  # bytes read at once
COMPRESSION = r'(\.(gz|bz2|xz|zst|lzma))?$'  # what may follow the end of a file's name
_JSON_OBJECT = re.compile(rb'\[?\s*\{\s*"')  # how JSON of objects begins, whatever the file is called
# What comes before an element of a JSON array, or before its end.
_BEFORE = re.compile(r'\s*(?P<comma>,\s*)?')

Record = tuple[int | str, object]  # (line or row, counted from 1; the value, as JSON has it, or a `Malformed`)


def read_text(path: files.AnyPath) -> str:
  """The text of a UTF-8 file, compressed or not: its first bytes decide, not its name.

  UserError: when it cannot be read, is damaged, or is not UTF-8.
  """
  with opened(path) as file:
    return _decode(path, file.read())


def records(path: files.AnyPath, columns: Sequence[str] = ()) -> Iterator[Record]:
  """(line, value) of each record; the value is a `Malformed` where one cannot be read.

  columns: names of those of a CSV or TSV file whose first line is a row; () takes the names in that line.
  The file is read as a stream. Only a record, a group of Parquet's rows, or a `.json` file that is not an array has to
  fit into memory.
  UserError: when the file is empty, ends in the middle of a record, or has another format.
  """
  if tfds_sets.FILE.search(path.name):
    yield from tfds_sets.records(path)
    return
  with opened(path) as file:
    head = file.peek(_CHUNK)
    for magic, read in _BINARY.items():
      if head.startswith(magic):
        yield from read(path, file)
        return
    not_records.check_bytes(path, head)
    if head.startswith(codecs.BOM_UTF8):
      file.read(len(codecs.BOM_UTF8))
    read = reader_of(path, file)
    if read is _table:
      yield from _table(path, file, columns)
    else:
      yield from ((line, conversation(value)) for line, value in read(path, file))


def reader_of(path: files.AnyPath, file: io.BufferedReader) -> Callable[..., Iterator[Record]]:
  """The reader of a text file. UserError: when there is nothing but white space, or text that holds no records."""
  name = re.sub(COMPRESSION, '', path.name.lower())
  head = file.peek(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
  if not head:
    raise UserError(f'{path} is empty; fetch or write it again')
  if name.endswith(('.csv', '.tsv')) and not _JSON_OBJECT.match(head):
    return _table
  if head.startswith(b'['):
    read = lines if _is_list_on_a_line(head) else _array
  else:
    read = _objects if name.endswith('.json') or _is_spread(head) else lines
  not_records.check_text(path, head, read is lines)
  return read


def _is_spread(head: bytes) -> bool:
  """Whether the first object stands on several lines."""
  text = head.decode('utf-8', 'ignore')
  try:
    return '\n' in text[: DECODER.raw_decode(text)[1]]
  except (ValueError, RecursionError):
    return False


def _is_list_on_a_line(head: bytes) -> bool:
  """Whether the first line is a whole list, and a conversation or followed by another line: JSON Lines of lists."""
  first, _, rest = head.partition(b'\n')
  try:
    value = DECODER.decode(first.decode().strip())
  except (ValueError, RecursionError):
    return False
  return isinstance(value, list) and (bool(rest.strip()) or is_conversation(value))


class Ranges(io.RawIOBase):
  """A file, local or remote, as what decompressors and pyarrow read from."""

  def __init__(self, path: files.AnyPath):
    self._file = files.open_ranges(path)
    self._at = 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    self._at = offset + (0, self._at, self._file.size)[whence]
    return self._at

  def readinto(self, buffer) -> int:
    count = self._file.read_into(self._at, memoryview(buffer)[: max(0, self._file.size - self._at)])
    self._at += count
    return count

  def close(self) -> None:
    if not self.closed:
      self._file.close()
    super().close()


@contextlib.contextmanager
def opened(path: files.AnyPath) -> Iterator[io.BufferedReader]:
  """The bytes of a file, decompressed. Errors while they are read become a UserError."""
  with contextlib.ExitStack() as stack:
    try:
      raw = stack.enter_context(io.BufferedReader(Ranges(path), _CHUNK))
      head = raw.peek(_CHUNK)
    except OSError as error:
      raise UserError(f'cannot read {path}: {error.strerror}; check the path') from error
    decompress = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
    try:
      file = io.BufferedReader(stack.enter_context(decompress(raw)), _CHUNK) if decompress else raw
      yield file
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
      raise UserError(f'{path} is half-written or damaged ({error}); fetch it again') from error


def _decode(path: files.AnyPath, content: bytes, first_line: int = 1) -> str:
  try:
    return content.removeprefix(codecs.BOM_UTF8).decode('utf-8')
  except UnicodeDecodeError as error:
    line = first_line + content.count(b'\n', 0, error.start)
    raise UserError(f'{path}:{line}: not UTF-8; save it as UTF-8') from error


def lines(path: files.AnyPath, file: Iterable[bytes], first: int = 1) -> Iterator[Record]:
  """JSON Lines: an object on each line. Not U+2028, which JSON allows inside a string, but the byte ends a line.

  first: the number of the first line.
  """
  for number, content in enumerate(file, first):
    if content.isspace():
      continue
    line = _decode(path, content, number)
    try:
      # As in an array, a comma may follow.
      yield number, DECODER.decode(line.strip().removesuffix(','))
    except (ValueError, RecursionError) as error:
      if not content.endswith(b'\n'):
        raise UserError(
          f'{path}:{number}: the last line is half-written (no line end, not JSON); write the file again'
        ) from error
      yield number, Malformed(f'not JSON: {error}')


def _objects(path: files.AnyPath, file: io.BufferedReader) -> Iterator[Record]:
  """JSON objects one after another, each on one line (Math401) or spread over several (Math23K's test file).

  A single object may be a table: see `json_rows.rows_of`.
  """
  text = _decode(path, file.read())
  blanks = re.compile(r'\s*')
  at = blanks.match(text).end()
  line = 1 + text.count('\n', 0, at)
  first = True
  while at < len(text):
    try:
      value, end = DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f'{path}:{line}: half-written or not JSON objects one after another; write the file again'
      ) from error
    after = blanks.match(text, end).end()
    inner = rows_of(value, str(path)) if first and after == len(text) else None
    if inner is not None:
      yield from enumerate(inner, 1)
      return
    yield line, value
    line += text.count('\n', at, after)
    at = after
    first = False


def _array(path: files.AnyPath, file: io.BufferedReader) -> Iterator[Record]:
  """One JSON array of objects. Only an element has to fit into memory. A comma may follow the last one."""
  decode = codecs.getincrementaldecoder('utf-8')().decode
  text = ''
  at = row = 0
  opening = '['
  more = True
  while more:
    # As much as is left over: a large or damaged element is tried again a few times only.
    content = file.read(max(_CHUNK, len(text) - at))
    more = bool(content)
    try:
      text = text[at:] + decode(content, final=not more)
      at = text.index(opening) + len(opening)
      opening = ''  # once
      while True:
        before = _BEFORE.match(text, at)
        start = before.end()
        if start == len(text):
          break
        if text[start] == ']' and (row or not before['comma']):
          if text[start + 1 :].strip() or file.read().strip():
            raise UserError(f'{path}: more follows the array of {row:,} rows; write the file again')
          return
        if bool(before['comma']) != bool(row):
          raise UserError(f'{path}: half-written or not a JSON array (after row {row:,}); write the file again')
        value, end = DECODER.raw_decode(text, start)
        if end == len(text):  # 12 may go on as 123
          break
        row += 1
        yield row, value
        at = end
    except UnicodeDecodeError as error:
      raise UserError(f'{path}: not UTF-8 after row {row:,}; save it as UTF-8') from error
    except (ValueError, RecursionError) as error:
      if not more:
        raise UserError(
          f'{path}: half-written or not a JSON array (after row {row:,}: {error}); write the file again'
        ) from error
  raise UserError(f'{path}: half-written or not a JSON array (after row {row:,}, it ends); write the file again')


def _table(path: files.AnyPath, file: io.BufferedReader, columns: Sequence[str] = ()) -> Iterator[Record]:
  """CSV, with the names of its columns in the first line unless given, whatever separates them. Every cell is text."""
  csv.field_size_limit(sys.maxsize)
  text = io.TextIOWrapper(file, 'utf-8', newline='')
  line = 0  # the last one that was read
  try:
    first = ''
    while not first.strip() and (first := text.readline()):
      line += 1
    before = line - 1
    is_tsv = '.tsv' in path.name.lower() and '\t' in first
    separator = '\t' if is_tsv else max('\t,;|', key=re.sub(r'"[^"]*"', '', first).count)
    if said := re.fullmatch(r'sep=(.)\s*', first):  # a line for Excel
      separator, first, before = said[1], '', line
    lines_left = itertools.chain([first] if first else [], text)
    rows = csv.DictReader(lines_left, columns or None, delimiter=separator, strict=True, skipinitialspace=True)
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    check_names(path, filter(None, rows.fieldnames))  # spreadsheets leave columns without a name
    for row in rows:
      line = before + rows.line_num - sum(str(cell).count('\n') for cell in row.values())  # its first
      if None in row:
        yield line, Malformed('more cells than the first line names columns')
      elif None in row.values():
        yield line, Malformed('fewer cells than the first line names columns')
      elif is_tsv and any('\t' in cell and '\n' in cell for cell in row.values()):
        raise UserError(
          f'{path}:{line}: a cell that begins with a quotation mark goes on over several lines and columns; write the '
          'file as JSON Lines or CSV'
        )
      else:
        yield line, row
  except UnicodeDecodeError as error:
    raise UserError(f'{path}:{line + 1}: not UTF-8, there or below; save it as UTF-8') from error
  except csv.Error as error:
    raise UserError(f'{path}:{line + 1}: half-written or not CSV ({error}); write the file again') from error
  finally:
    text.detach()


def _seekable(file: io.BufferedReader) -> io.BufferedIOBase:
  """The file; decompressed, in memory: these formats have their table of contents at the end."""
  return file if isinstance(file.raw, Ranges) else io.BytesIO(file.read())


def _zstd(raw: io.BufferedReader):
  import pyarrow

  return pyarrow.CompressedInputStream(raw, 'zstd')


# First bytes of a compressed file -> what opens it.
_COMPRESSED = {
  b'\x1f\x8b': lambda raw: gzip.GzipFile(fileobj=raw),
  b'BZh': bz2.BZ2File,
  b'\xfd7zXZ\x00': lzma.LZMAFile,
  b']\x00\x00': lzma.LZMAFile,  # .lzma, what came before .xz
  b'\x28\xb5\x2f\xfd': _zstd,
}
_BINARY = {
  b'PAR1': lambda path, file: arrow_tables.parquet_rows(path, _seekable(file)),
  b'ARROW1': lambda path, file: arrow_tables.arrow_file_rows(path, _seekable(file)),
  b'\xff\xff\xff\xff': arrow_tables.arrow_stream_rows,
}
