"""From what a user writes to a path: a local one, or one on gs://.

scores, /data/scores     pathlib.Path
gs://BUCKET/scores       GcsPath
s3://..., gs:/scores     refused: as local names they would make a folder called `s3:` or `gs:`
"""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator

from mathqwen.errors import Unreachable, UserError
from mathqwen.files import gcs_requests
from mathqwen.files.gcs import GcsPath

AnyPath = pathlib.Path | GcsPath

GCS = 'gs://'
HUB = 'hf://'  # a name on the Hugging Face hub, of a model or a data set
HUB_SHORT = 'hf:'  # the same for a data set, and how both begin
# Schemes that people write, with or without both slashes. A local folder may be called `run:1`, but not like these,
# nor may its name end with a colon: that is a URL of another scheme, or one that pathlib has taken a slash from.
_SCHEMES = ('abfs', 'abfss', 'az', 'dbfs', 'file', 'ftp', 'gcs', 'gs', 'hdfs', 'hf', 'http', 'https', 's3', 's3a')
_SCHEME_PART = re.compile(rf'\s*(({"|".join(_SCHEMES)}):.*|[a-z][\w+.-]*:)', re.IGNORECASE | re.DOTALL)
_BUCKET = re.compile(r'[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]')  # cloud.google.com/storage/docs/buckets#naming
_CONTROL = re.compile(r'[\r\n\0]')  # which names of objects cannot hold


def path(name: str | os.PathLike | GcsPath) -> AnyPath:
  """The path that `name` means. Looks at nothing: neither at the disk nor at the network.

  UserError: when it has a scheme other than gs://, names no bucket, or gcsfs is missing, which gs:// needs.
  """
  if isinstance(name, GcsPath):
    return name
  text = os.fspath(name)
  found = _parse(text)
  if isinstance(found, GcsPath):
    if importlib.util.find_spec('gcsfs') is None:
      raise UserError(f"{text}: reading and writing gs:// needs gcsfs: pip install 'mathqwen[gcs]'")
    _prepare_libraries()
  return found


def check(name: str | os.PathLike | GcsPath | None) -> None:
  """UserError where `path` would refuse `name`. None is fine: nothing is named."""
  if name is not None:
    path(name)


def check_scheme(name: str, may_be_on_hub: bool = False) -> None:
  """UserError: when the scheme is not gs://. Nothing more, for what may not be read here: a run that is only planned.

  may_be_on_hub: a model or data set, which may also be hf://ORGANISATION/NAME, or hf:ORGANISATION/NAME for short.
  """
  if not name.startswith(GCS) and not (may_be_on_hub and name.startswith(HUB_SHORT)):
    _refuse_schemes(name)


def is_remote(name: str | os.PathLike | GcsPath) -> bool:
  """Whether this is on an object store. UserError: as `path`."""
  return isinstance(path(name), GcsPath)


def join(folder: str | os.PathLike | GcsPath, *names: str) -> str:
  """The text of a path below `folder`."""
  found = path(folder)
  for name in names:
    found = found / name
  return str(found)


@contextlib.contextmanager
def explained(name: str | os.PathLike | GcsPath) -> Iterator[None]:
  """Raises `Unreachable` for what other libraries raise when a bucket refuses or does not answer."""
  try:
    yield
  except Exception as error:
    line = gcs_requests.explain(error, str(path(name))) if is_remote(name) else None
    if line is None:
      raise
    raise Unreachable(line) from error


def absolute_text(name: str | os.PathLike | GcsPath) -> str:
  """The path as Orbax takes it: absolute, or a URL."""
  return str(path(name).absolute())


def _parse(text: str) -> AnyPath:
  """`path`, for text, without gcsfs."""
  if not text.startswith(GCS):
    _refuse_schemes(text)
    return pathlib.Path(text)
  bucket, _, key = text.removeprefix(GCS).partition('/')
  if not _BUCKET.fullmatch(bucket):
    raise UserError(f'{text}: {bucket!r} is not the name of a bucket: write gs://BUCKET/FOLDER')
  parts = [part for part in key.split('/') if part not in ('', '.')]
  if '..' in parts or _CONTROL.search(key):
    raise UserError(f'{text!r}: names on gs:// have no ".." and no line breaks: write the path that you mean')
  return GcsPath(bucket, '/'.join(parts))


def _refuse_schemes(text: str) -> None:
  """UserError: when a part of this local path looks like a scheme."""
  for part in text.split('/'):
    if not _SCHEME_PART.fullmatch(part):
      continue
    scheme = part.strip().partition(':')[0].lower()
    if scheme == 'file':
      remedy = 'write the path itself, without file:'
    elif scheme == 'hf':
      remedy = f'write {HUB}ORGANISATION/NAME, with two slashes, where a model or training data may be on the hub'
    elif scheme in ('gs', 'gcs'):
      remedy = 'write gs://BUCKET/FOLDER, at the beginning and with two slashes'
    else:
      remedy = 'name a local directory, or one on gs://'
    raise UserError(f'{text}: {scheme}: is not a scheme that is read or written here: {remedy}')


def _prepare_libraries() -> None:
  """Settings of the libraries that Orbax reads gs:// with, unless the user has set them. They must precede imports."""
  # Not through TensorFlow's file system, even where TensorFlow is installed, as on Colab: it takes seconds to import.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  emulator = os.environ.get('STORAGE_EMULATOR_HOST')
  if not emulator:
    return
  url = emulator if '://' in emulator else f'http://{emulator}'
  os.environ.setdefault('TENSORSTORE_GCS_HTTP_URL', url)
  os.environ.setdefault('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'emulator')  # TensorStore asks for some token
  import fsspec

  fsspec.config.conf.setdefault('gs', {}).setdefault('token', 'anon')  # gcsfs would look for credentials for seconds
  # The class that gcsfs gives by default asks over gRPC, which emulators do not speak, what kind of bucket it is, and
  # tries again for a minute.
  if 'gcsfs' in sys.modules:
    plain = importlib.import_module('gcsfs.core').GCSFileSystem
  else:
    plain = 'gcsfs.core.GCSFileSystem'
  for name in ('gs', 'gcs'):
    if fsspec.registry.get(name) is not plain:
      fsspec.register_implementation(name, plain, clobber=True)
