"""`GcsPath`: a path on gs:// with those methods of pathlib.Path that this package uses."""

import dataclasses
import errno
import fnmatch
import functools
import pathlib
from collections.abc import Iterator, Sequence

from mathqwen.files import gcs_requests


@dataclasses.dataclass(frozen=True)
class StatResult:
  """Of an object, what this package reads of `os.stat_result`."""

  st_size: int


@functools.total_ordering
class GcsPath:
  """An object on Google Cloud Storage, or what its objects' names begin with, which stands for a folder.

  It is no os.PathLike: `open` and `pathlib.Path` raise a TypeError for it, so it never becomes a local folder `gs:`.
  Methods that ask the store raise `Unreachable` where it refuses or does not answer.
  """

  def __init__(self, bucket: str, key: str = ''):
    """key: without a slash at either end; '' is the bucket itself."""
    self.bucket = bucket
    self.key = key

  # --- names: no request ---

  def __str__(self) -> str:
    return f'gs://{self.bucket}/{self.key}'.rstrip('/')

  def __repr__(self) -> str:
    return f'GcsPath({str(self)!r})'

  def __eq__(self, other) -> bool:
    return isinstance(other, GcsPath) and str(self) == str(other)

  def __lt__(self, other: 'GcsPath') -> bool:
    return str(self) < str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __truediv__(self, name: str | pathlib.PurePath) -> 'GcsPath':
    name = str(name)
    if name.startswith('/') or '..' in name.split('/'):
      raise ValueError(f'{name} is not below {self}')
    parts = [part for part in (*self.key.split('/'), *name.split('/')) if part not in ('', '.')]
    return GcsPath(self.bucket, '/'.join(parts))

  @property
  def name(self) -> str:
    """The last part; '' of a bucket."""
    return self.key.rpartition('/')[2]

  @property
  def stem(self) -> str:
    """The name without its suffix."""
    return pathlib.PurePosixPath(self.key).stem

  @property
  def suffix(self) -> str:
    """'.gz' of 'a.jsonl.gz'."""
    return pathlib.PurePosixPath(self.key).suffix

  @property
  def parent(self) -> 'GcsPath':
    """The folder above; a bucket is its own."""
    return GcsPath(self.bucket, self.key.rpartition('/')[0])

  def with_name(self, name: str) -> 'GcsPath':
    """The path beside this one."""
    return self.parent / name

  def absolute(self) -> 'GcsPath':
    """The path itself."""
    return self

  resolve = absolute

  def is_symlink(self) -> bool:
    """False: there are no links."""
    return False

  def is_relative_to(self, other: 'GcsPath') -> bool:
    """Whether this is `other` or below it."""
    return isinstance(other, GcsPath) and (self == other or str(self).startswith(f'{other}/'))

  def relative_to(self, other: 'GcsPath') -> pathlib.PurePosixPath:
    """The rest of the name. ValueError: when this is not below `other`."""
    if not self.is_relative_to(other):
      raise ValueError(f'{self} is not below {other}')
    return pathlib.PurePosixPath(str(self)[len(str(other)) :].lstrip('/'))

  # --- requests ---

  @property
  def prefix(self) -> str:
    """What the keys of all objects below this one begin with."""
    return f'{self.key}/' if self.key else ''

  def is_file(self) -> bool:
    """Whether there is an object of this name."""
    return bool(self.key) and gcs_requests.find(self.bucket, self.key) is not None

  def is_dir(self) -> bool:
    """Whether there is an object below. Folders without any do not exist."""
    return any(gcs_requests.list_below(self.bucket, self.prefix, recursive=True, limit=1))

  def exists(self) -> bool:
    """Whether there is an object of this name, or below it."""
    return self.is_file() or self.is_dir()

  def stat(self) -> StatResult:
    """The size of an object. FileNotFoundError: when there is none."""
    found = gcs_requests.find(self.bucket, self.key)
    if found is None:
      raise FileNotFoundError(errno.ENOENT, 'no such object', str(self))
    return StatResult(found.size)

  def iterdir(self) -> Iterator['GcsPath']:
    """The objects and folders directly below."""
    objects, folders = gcs_requests.list_below(self.bucket, self.prefix)
    for key in sorted({*(found.key for found in objects), *folders}):
      yield GcsPath(self.bucket, key)

  def glob(self, pattern: str) -> Iterator['GcsPath']:
    """The objects and folders below whose names match, part by part: '*.json', '*/records.jsonl', '**/*.json'."""
    if '**' in pattern.split('/'):
      yield from self._glob_at_any_depth(pattern.split('/'))
      return
    first, _, rest = pattern.partition('/')
    objects, folders = gcs_requests.list_below(self.bucket, self.prefix)
    for key in sorted({*folders, *(() if rest else (found.key for found in objects))}):
      found = GcsPath(self.bucket, key)
      if fnmatch.fnmatchcase(found.name, first):
        if rest:
          yield from found.glob(rest)
        else:
          yield found

  def _glob_at_any_depth(self, parts: list[str]) -> Iterator['GcsPath']:
    names = set()
    for found in self.rglob('*'):
      name = found.relative_to(self)
      names.update((name, *name.parents[:-1]))
    for name in sorted(names):
      if _matches(name.parts, parts):
        yield self / name

  def rglob(self, pattern: str) -> Iterator['GcsPath']:
    """The objects at any depth below whose last part matches."""
    objects, _ = gcs_requests.list_below(self.bucket, self.prefix, recursive=True)
    for found in objects:
      if fnmatch.fnmatchcase(found.key.rpartition('/')[2], pattern):
        yield GcsPath(self.bucket, found.key)

  def read_bytes(self) -> bytes:
    """The content. FileNotFoundError: when there is no such object."""
    return gcs_requests.read(self.bucket, self.key)

  def read_text(self, encoding: str = 'utf-8') -> str:
    """The content as text."""
    return self.read_bytes().decode(encoding)

  def write_bytes(self, data: bytes) -> None:
    """Replaces the content, whole."""
    gcs_requests.write(self.bucket, self.key, data)

  def write_text(self, text: str, encoding: str = 'utf-8') -> None:
    """Replaces the content, whole."""
    self.write_bytes(text.encode(encoding))

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: a folder exists as long as there are objects in it."""

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes an object. FileNotFoundError: when there is none."""
    if not gcs_requests.delete(self.bucket, self.key) and not missing_ok:
      raise FileNotFoundError(errno.ENOENT, 'no such object', str(self))


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
  """Whether the parts of a pattern match those of a name. '**' stands for any number of names."""
  if not parts:
    return not names
  if parts[0] == '**':
    return any(_matches(names[start:], parts[1:]) for start in range(len(names) + 1))
  return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])
