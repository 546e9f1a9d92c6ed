"""Opening what a user names: a regular file of a size that is looked at before anything is read.

A checkpoint's folder comes from somebody else. A name in it may be a link to /dev/zero, a pipe that nobody writes to,
or a file larger than memory; opened as they are, the first never ends and the second never answers. Links to regular
files are followed: the hub's cache is made of them.
"""

import errno
import io
import json
import os
import stat
from typing import Any

from mathqwen.errors import UserError
from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath
from mathqwen.files.writing import size_text

SMALL = 16 * 2**20  # bytes: configs, indices, adapters' descriptions; the largest index that is published has 9 MB
# Values in a JSON text. One that has 3 bytes in the file may take 250 in memory. The largest tokenizer.json that is
# published has 1.8 million.
_VALUES = 2_000_000
_KINDS = (
  (stat.S_ISDIR, 'a directory'),
  (stat.S_ISCHR, 'a device'),
  (stat.S_ISBLK, 'a device'),
  (stat.S_ISFIFO, 'a pipe'),
  (stat.S_ISSOCK, 'a socket'),
)


def open_regular(path: os.PathLike) -> io.FileIO:
  """A file on this machine, opened for reading without a buffer; never waits for another process.

  UserError: when it is a directory, device, pipe or socket. OSError: when there is none, or it may not be read.
  """
  try:
    _check_regular(os.stat(path).st_mode, path)
  except FileNotFoundError:
    if os.path.islink(path):
      raise UserError(f'{path} is a link to a file that is not there: fetch the directory again') from None
    raise
  # O_NONBLOCK: somebody may have put a pipe there meanwhile. It changes nothing for regular files.
  handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  try:
    _check_regular(os.fstat(handle).st_mode, path)
    return io.FileIO(handle)
  except BaseException:
    os.close(handle)
    raise


def _check_regular(mode: int, path: os.PathLike):
  if not stat.S_ISREG(mode):
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), 'something else')
    raise UserError(f'{path} is {kind}, and a file is needed: remove it, or fetch the directory again')


def is_there(path: AnyPath) -> bool:
  """Whether there is anything of this name, readable or not: what is there and is no file must not be passed over."""
  if isinstance(path, GcsPath):
    return path.exists()
  try:
    os.lstat(path)
  except OSError as error:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
      return False
    raise
  except ValueError:  # a NUL in the name, which no file can have
    return False
  return True


def read_bytes(path: AnyPath, most: int = SMALL) -> bytes:
  """The content of a file of at most `most` bytes.

  UserError: when it is larger, or not a regular file. OSError: when there is none, or it may not be read.
  """
  if isinstance(path, GcsPath):
    _check_size(path.stat().st_size, most, path)
    return path.read_bytes()
  with io.BufferedReader(open_regular(path)) as file:
    _check_size(os.fstat(file.fileno()).st_size, most, path)
    # One byte more: a file of /proc says that it has none, and another may be growing.
    content = file.read(most + 1)
  _check_size(len(content), most, path)
  return content


def _check_size(size: int, most: int, path: AnyPath):
  if size > most:
    raise UserError(f'{path} has more than {size_text(most)}, as no such file has: fetch it again')


def not_the_file(content: bytes) -> str | None:
  """What a file holds that a download has put in place of another, for a message; None when it is none of these."""
  start = content[:200].lstrip().lower()
  if start.startswith(b'version https://git-lfs.github.com'):
    return 'is a pointer of Git LFS, not the file itself: run git lfs pull in its directory'
  if start.startswith((b'<!doctype html', b'<html')):
    return 'is a web page, not the file itself: fetch it with the hf tool or git, on a hub by its "resolve" address'
  if start in (b'entry not found', b'repository not found') or start.startswith(b'invalid username or password'):
    return f'holds the answer of the hub {start.decode()!r}, not the file itself: fetch it again'
  return None


def parse_json(content: bytes) -> Any:
  """The value of a JSON text in UTF-8, or in UTF-16 or UTF-32, with a byte order mark or without.

  ValueError: when it is no JSON, nested too deeply, made of more values than memory has room for, or names a key twice
  with different values.
  """
  values = sum(content.count(sign) for sign in (b',', b'{', b'['))
  if values > _VALUES:
    raise ValueError(f'{values:,} values')
  try:
    return json.loads(content, object_pairs_hook=_object)
  except RecursionError:
    raise ValueError('nested too deeply') from None


def _object(pairs: list[tuple[str, Any]]) -> dict:
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = [key for key, value in pairs if found[key] != value]
    if twice:
      raise ValueError(f'{twice[0]!r} twice, with different values')
  return found


def read_json_object(path: AnyPath, most: int = SMALL) -> dict:
  """The JSON object in a file. UserError: when it holds anything else; otherwise as `read_bytes`."""
  content = read_bytes(path, most)
  try:
    values = parse_json(content)
  except ValueError as error:
    if instead := not_the_file(content):
      raise UserError(f'{path} {instead}') from None
    raise UserError(f'{path} is not JSON ({error}): is it a half-written file?') from None
  if not isinstance(values, dict):
    raise UserError(f'{path} holds {type(values).__name__}, not one JSON object: is this a Hugging Face directory?')
  return values
