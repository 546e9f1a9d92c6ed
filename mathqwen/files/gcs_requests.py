"""Requests to Google Cloud Storage, one function each, with errors that a user can act on.

gcsfs sends them, with its credentials and its retries: six tries within about half a minute. Its own methods for files
are not used: they keep listings that other processes outdate, take a refusal for "there is no such file", and make
buckets.
"""

import contextlib
import dataclasses
import email.utils
import errno
import functools
import json
import logging
import os
import secrets
from collections.abc import Iterator

from mathqwen.errors import Unreachable

_CONNECT_SECONDS = 10
_STALL_SECONDS = 60  # without a byte
_PAGE = 1000  # objects in an answer, at most
_UPLOAD_BLOCK = 2**26  # bytes of a large file in memory, while it is written
ANY = None  # no condition on the generation
NEW = 0  # the generation of an object that must not exist


@dataclasses.dataclass(frozen=True)
class ObjectInfo:
  """One object. `generation` changes with each write; `age`: seconds since then by the clock of the store."""

  key: str
  size: int
  generation: int
  age: float = 0.0


def find(bucket: str, key: str) -> ObjectInfo | None:
  """The object, or None when there is none. Unreachable: also when there is no such bucket."""
  with _explained(bucket, key, 'read'):
    try:
      headers, content = _filesystem().call('GET', 'b/{}/o/{}', bucket, key)
    except FileNotFoundError:
      _check_bucket(bucket, key)
      return None
  found = json.loads(content)
  return ObjectInfo(key, int(found.get('size', 0)), int(found['generation']), _age(headers, found))


def read(bucket: str, key: str, start: int | None = None, stop: int | None = None) -> bytes:
  """The content of an object, or its bytes from `start` up to `stop`. FileNotFoundError: when there is none."""
  if start is not None and start >= stop:
    return b''
  headers = {} if start is None else {'Range': f'bytes={start}-{stop - 1}'}
  with _explained(bucket, key, 'read'):
    try:
      _, content = _filesystem().call('GET', 'b/{}/o/{}', bucket, key, headers=headers, alt='media')
    except FileNotFoundError:
      _check_bucket(bucket, key)
      raise FileNotFoundError(errno.ENOENT, 'no such object', _url(bucket, key)) from None
  return content


def write(bucket: str, key: str, data: bytes, generation: int | None = ANY) -> int:
  """Writes an object whole; readers find the old content or the new one. Returns its new generation.

  generation: the object is replaced only if it has this one, or NEW: if it does not exist. FileExistsError: otherwise.
  """
  boundary = secrets.token_hex(16).encode()  # 128 random bits, which `data` does not hold
  parts = [
    b'--%b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%b\r\n'
    % (boundary, json.dumps({'name': key}).encode()),
    b'--%b\r\nContent-Type: application/octet-stream\r\n\r\n' % boundary,
    data,
    b'\r\n--%b--' % boundary,
  ]
  with _explained(bucket, key, 'write'):
    filesystem = _filesystem()
    try:
      _, answer = filesystem.call(
        'POST',
        filesystem.base.replace('/storage/v1/', '/upload/storage/v1/') + 'b/{}/o',
        bucket,
        headers={'Content-Type': f'multipart/related; boundary={boundary.decode()}'},
        data=b''.join(parts),
        uploadType='multipart',
        ifGenerationMatch=_condition(generation),
      )
    except FileNotFoundError:
      _check_bucket(bucket, key)
      raise
  return int(json.loads(answer)['generation'])


def delete(bucket: str, key: str, generation: int | None = ANY) -> bool:
  """Removes an object; False when there was none, or one of another generation."""
  with _explained(bucket, key, 'remove'):
    try:
      _filesystem().call('DELETE', 'b/{}/o/{}', bucket, key, ifGenerationMatch=_condition(generation))
    except FileExistsError:
      return False
    except FileNotFoundError:
      _check_bucket(bucket, key)
      return False
  return True


def copy(bucket: str, key: str, to_bucket: str, to_key: str) -> None:
  """Copies an object within the store; its bytes do not travel here."""
  token = None
  while True:  # the store copies large objects between places in several steps
    with _explained(to_bucket, to_key, 'write'):
      _, answer = _filesystem().call(
        'POST',
        'b/{}/o/{}/rewriteTo/b/{}/o/{}',
        bucket,
        key,
        to_bucket,
        to_key,
        headers={'Content-Type': 'application/json'},
        rewriteToken=token,
      )
    state = json.loads(answer)
    if state.get('done', True):
      return
    token = state['rewriteToken']


def list_below(
  bucket: str, prefix: str, recursive: bool = False, limit: int | None = None
) -> tuple[list[ObjectInfo], list[str]]:
  """(objects, names of the folders among them) whose keys begin with `prefix`, which ends in '/' or is empty.

  recursive: all objects below, and no folders. limit: as many objects as are needed.
  """
  objects: list[ObjectInfo] = []
  folders: list[str] = []
  page = None
  while True:
    with _explained(bucket, prefix, 'list'):
      try:
        _, content = _filesystem().call(
          'GET',
          'b/{}/o',
          bucket,
          prefix=prefix,
          delimiter=None if recursive else '/',
          maxResults=limit or _PAGE,
          pageToken=page,
        )
      except FileNotFoundError:
        raise _no_bucket(bucket, prefix) from None
    answer = json.loads(content)
    for found in answer.get('items', []):
      if not found['name'].endswith('/'):  # an empty object with which some tools mark a folder
        objects.append(ObjectInfo(found['name'], int(found.get('size', 0)), int(found['generation'])))
    folders += [name.rstrip('/') for name in answer.get('prefixes', [])]
    page = answer.get('nextPageToken')
    if page is None or limit is not None:
      return objects, folders


@contextlib.contextmanager
def writer(bucket: str, key: str) -> Iterator:
  """A file for `write(piece)`; the object appears when the block ends without an error."""
  with _explained(bucket, key, 'write'):
    file = _filesystem().open(f'{bucket}/{key}', 'wb', block_size=_UPLOAD_BLOCK)
    try:
      yield file
    except BaseException:
      with contextlib.suppress(Exception):  # the error above says more than one of cleaning up after it
        file.discard()
      file.closed = True  # without this the garbage collector would finish the upload
      raise
    file.close()


# --- the connection ---


@functools.cache
def _filesystem():
  """gcsfs, with credentials and time limits."""
  import aiohttp
  from gcsfs.core import GCSFileSystem

  # It logs a traceback of every error that it also raises.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL + 1)
  timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_STALL_SECONDS)
  token = 'anon' if os.environ.get('STORAGE_EMULATOR_HOST') else None  # None: looks for credentials
  return GCSFileSystem(token=token, use_listings_cache=False, requests_timeout=timeout, skip_instance_cache=True)


@functools.cache
def _known_buckets() -> set[str]:
  """Buckets that this process has found to exist."""
  return set()


def _check_bucket(bucket: str, key: str) -> None:
  """Unreachable: when there is no such bucket. The store answers the same, 404, where only the object is missing."""
  if bucket not in _known_buckets():
    list_below(bucket, key and f'{key}/', limit=1)
    _known_buckets().add(bucket)


def _age(headers, found: dict) -> float:
  """Seconds since the last write, by the store's clock alone; 0 where it does not say."""
  try:
    now = email.utils.parsedate_to_datetime(headers['Date'])
    return max(0.0, (now - _filesystem()._parse_timestamp(found['updated'])).total_seconds())
  except (KeyError, TypeError, ValueError, AttributeError):
    return 0.0


def _condition(generation: int | None) -> str | None:
  return None if generation is None else str(generation)


def _url(bucket: str, key: str) -> str:
  return f'gs://{bucket}/{key}'.rstrip('/')


def _no_bucket(bucket: str, key: str) -> Unreachable:
  return Unreachable(
    f'{_url(bucket, key)}: there is no bucket {bucket}: check the name, or make it with '
    f'`gcloud storage buckets create gs://{bucket} --location=REGION`'
  )


# --- errors ---


@contextlib.contextmanager
def _explained(bucket: str, key: str, doing: str) -> Iterator[None]:
  """Turns what gcsfs and the libraries below it raise into `Unreachable`. doing: 'read', 'write', ..."""
  try:
    yield
  except (Unreachable, FileNotFoundError, FileExistsError):
    raise
  except Exception as error:
    line = explain(error, _url(bucket, key), doing)
    if line is None:
      raise
    raise Unreachable(line) from error


def explain(error: BaseException, url: str, doing: str = 'use') -> str | None:
  """One line for an error of Google Cloud Storage, or of the way to it; None for any other error.

  It goes by words, too: Orbax and TensorStore pass on the text alone.
  """
  text = ' '.join(str(error).split())
  code = str(getattr(error, 'code', ''))
  bucket = url.removeprefix('gs://').split('/')[0]
  library = type(error).__module__.split('.')[0]
  if code == '401' or 'UNAUTHENTICATED' in text or 'google.auth' in type(error).__module__ or _lacks_login(text):
    return (
      f'{url}: Google Cloud does not accept who asks ({_short(text)}): log in with '
      '`gcloud auth application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS'
    )
  if code == '403' or text.startswith('Forbidden') or 'PERMISSION_DENIED' in text:
    role = 'roles/storage.objectViewer' if doing in ('read', 'list') else 'roles/storage.objectUser'
    return f'{url}: no permission to {doing} ({_short(text)}): ask for {role} on the bucket {bucket}'
  if library in ('aiohttp', 'requests', 'asyncio') or isinstance(error, TimeoutError | ConnectionError):
    return (
      f'{url}: Google Cloud Storage does not answer ({type(error).__name__}: {_short(text)}): '
      'check the network and run the same command again'
    )
  if library == 'gcsfs':
    return f'{url}: Google Cloud Storage refuses to {doing} it ({_short(text)}): run the same command again'
  return None


def _lacks_login(text: str) -> bool:
  """Whether this is what the libraries say when they find no credentials."""
  return any(part in text for part in ('Anonymous caller', 'could not be determined', 'credentials were not found'))


def _short(text: str) -> str:
  return text if len(text) <= 200 else f'{text[:200]}...'
