r"""What people take for a file of records, by its first bytes, and what to do with it.

b'PK\x03\x04...'              a zip archive (or a spreadsheet): unpack it, or save it as CSV
b'question,answer\n1+1=,2'    looks like CSV: name it rows.csv
b"[{'question': '1+1='}]"     a Python literal: write it with json.dumps
"""

import codecs
import re

from mathqwen import files
from mathqwen.data.json_rows import DECODER
from mathqwen.errors import UserError

_INSTEAD = 'give JSON Lines, JSON, CSV or Parquet'
_PICKLE = 'a pickle, which may run code: save it as Parquet or JSON Lines'
_UTF_16 = 'UTF-16 text: save it as UTF-8'
_UTF_32 = 'UTF-32 text: save it as UTF-8'
# First bytes -> what they begin. A longer one stands before a shorter one that begins it.
_BINARY = {
  b'\xd0\xcf\x11\xe0': 'an old Excel or Word document: save it as CSV',
  b'Rar!': 'a RAR archive: unpack it, and give the folder',
  b'PK\x05\x06': 'an empty zip archive: pack it again, or give the files themselves',
  b'PK\x03\x04': 'a zip archive (or a spreadsheet): unpack it, or save it as CSV',
  b'7z\xbc\xaf': 'a 7z archive: unpack it, and give the folder',
  b'\x04"M\x18': 'compressed with lz4: decompress it, or compress it with gzip or zstd',
  b'x\x01': 'compressed with zlib: decompress it, or compress it with gzip or zstd',
  b'x\x9c': 'compressed with zlib: decompress it, or compress it with gzip or zstd',
  b'x\xda': 'compressed with zlib: decompress it, or compress it with gzip or zstd',
  b'\xff\xfe\0\0': _UTF_32,
  b'\0\0\xfe\xff': _UTF_32,
  b'\xff\xfe': _UTF_16,
  b'\xfe\xff': _UTF_16,
  b'%PDF': f'a PDF: {_INSTEAD}',
  b'SQLite format 3': 'an SQLite database: export it as CSV',
  b'\x89HDF': 'an HDF5 file: export it as Parquet or JSON Lines',
  b'ORC': 'an ORC file: export it as Parquet or JSON Lines',
  b'Obj\x01': 'an Avro file: export it as Parquet or JSON Lines',
  b'FEA1': 'a Feather file of version 1: save it as Parquet, or as Feather of version 2',
  b'\x93NUMPY': 'a NumPy array: save it as Parquet or JSON Lines',
  **dict.fromkeys((b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05'), _PICKLE),
}
_TAR = 257, b'ustar'  # where that stands in a tar archive
_START = 64  # bytes, in which text has no 0 and binary files mostly do
_WIDE = {'utf-32-le': _UTF_32, 'utf-32-be': _UTF_32, 'utf-16-le': _UTF_16, 'utf-16-be': _UTF_16}
_BINARY_SUFFIXES = {'.parquet': 'Parquet', '.pq': 'Parquet', '.arrow': 'Arrow', '.feather': 'Arrow'}

# How text begins -> what it is. None of these can begin JSON.
_TEXTS = {
  r'<[a-zA-Z!?]': f'XML: {_INSTEAD}',
  r'(%.*\n\s*)*\\[a-zA-Z]+': f'LaTeX: {_INSTEAD}',
  r"""[\s\[{(]*[\[{(]\s*u?'""": 'a Python literal: write it with json.dumps',
  r'[\s\[{]*(//|/\*)|[\s\[{]*[\[{]\s*#': 'JSON with comments: remove them',
  r'(var|let|const|export|import|function|def|from|class)\s|module\.exports': f'a program: {_INSTEAD}',
  r'(#.*\n\s*)*\[+[\w."-]+\]+\s+([\w."-]+\s*=|\[|#)|[\w.]+ *= *[\["\'{\d]': f'TOML, or a program: {_INSTEAD}',
  r'(#.*\n\s*)*(%YAML|---\s|- +["\']?[\w-]+["\']?:\s)': f'YAML: {_INSTEAD}',
  r'["\']?[\w-]+["\']?:\s': f'YAML, or plain text: {_INSTEAD}',
}
_BEGINNING = 10_000  # characters of a text that are compared with these
_NAME_OF_COLUMN = r'( *"[^"\n]{1,60}" *|[\w .-]{1,60})'
_SEPARATORS = '\t,;|'
_SHOWN = 40  # characters of a text that is none of these


def check_bytes(path: files.AnyPath, head: bytes) -> None:
  """UserError: when a file with these first bytes holds no text, or another one than it should."""
  if instead := files.not_the_file(head):
    raise UserError(f'{path} {instead}')
  for magic, what in _BINARY.items():
    if head.startswith(magic):
      raise UserError(f'{path} is {what}')
  if head[_TAR[0] :].startswith(_TAR[1]):
    raise UserError(f'{path} is a tar archive: unpack it, and give the folder')
  if b'\0' in head[:_START]:
    what = next((what for encoding, what in _WIDE.items() if _is_text(head[:_START], encoding)), None)
    raise UserError(f'{path} is {what or "binary, as the weights of a model, and no text: " + _INSTEAD}')
  if path.suffix in _BINARY_SUFFIXES and not head.lstrip().startswith((b'{', b'[')):
    raise UserError(f'{path} does not begin as {_BINARY_SUFFIXES[path.suffix]} does, nor as JSON: fetch it again')


def _is_text(head: bytes, encoding: str) -> bool:
  """Whether bytes are text in an encoding that begins with a sign of ASCII, as JSON and names of columns do.

  They may hold a part of the last character.
  """
  try:
    text = codecs.getincrementaldecoder(encoding)().decode(head)
  except UnicodeDecodeError:
    return False
  return text[:1].isascii() and all(char.isprintable() or char.isspace() for char in text)


def check_text(path: files.AnyPath, head: bytes, is_json_lines: bool) -> None:
  """UserError: when a text file that should hold JSON holds something else.

  head: the first bytes, without a byte order mark. is_json_lines: each line is read for itself.
  """
  try:
    text = codecs.getincrementaldecoder('utf-8')().decode(head).lstrip()
  except UnicodeDecodeError:  # which its reader names
    return
  if is_json_lines and _has_old_line_ends(text):
    raise UserError(f'{path}: its lines end in CR alone, as on an old Macintosh: save it with line ends LF')
  what = next((what for begins, what in _TEXTS.items() if re.match(begins, text[:_BEGINNING])), None)
  if what is None and (text[:1] in '{[' or _is_json(text.partition('\n')[0])):
    return
  if is_json_lines and any(_is_json(line) for line in text.splitlines() if line.lstrip()[:1] in ('{', '[', '"')):
    return  # the lines that are not are malformed rows
  if separator := _separator(text):
    kind = 'TSV' if separator == '\t' else 'CSV'
    stem = path.name.partition('.')[0]
    raise UserError(f'{path} looks like {kind}: name it {stem}.{kind.lower()}')
  raise UserError(f'{path} is {what or f"text and no JSON ({text[:_SHOWN]!r}): {_INSTEAD}"}')


def _has_old_line_ends(text: str) -> bool:
  """Whether this is JSON Lines with carriage returns between the lines."""
  first, _, rest = text.partition('\r')
  return '\n' not in text and bool(rest.strip()) and _is_json(first)


def _is_json(text: str) -> bool:
  try:
    DECODER.decode(text.strip().removesuffix(','))
  except (ValueError, RecursionError):
    return False
  return True


def _separator(text: str) -> str | None:
  """What stands between the columns of a table whose first line names them; None where this is no table."""
  lines = [line for line in text.splitlines()[:3] if line.strip()]
  for separator in _SEPARATORS:
    between = re.escape(separator)
    is_named = len(lines) > 1 and re.fullmatch(f'{_NAME_OF_COLUMN}({between}{_NAME_OF_COLUMN})+', lines[0])
    if is_named and lines[1].count(separator) >= lines[0].count(separator):
      return separator
  return None
