"""One process at a time writes into a folder.

FOLDER/.lock is a record of its owner: host, process, and when that started. The owner renews it every few seconds, its
heartbeat, and removes it at the end. A record is taken over at once where its process is known to have ended or its
last heartbeat is more than a minute old, otherwise after a minute without a heartbeat.

On a local disk the operating system locks that file too: no two processes can hold it, and it is free when the process
ends, however that ends. Network file systems without such locks and object stores have the record alone. Ages are
differences within the clock of the store or of the file system.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

from mathqwen.errors import Unreachable, UserError, report
from mathqwen.files import gcs_requests
from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath

BEAT_SECONDS = 10  # between two heartbeats
STALE_SECONDS = 60  # without one, after which a lock is taken over
_POLL_SECONDS = 2
_SETTLE_SECONDS = 1  # in which two processes that take the same lock, without the operating system's, see each other
_RELEASE_SECONDS = 3  # that the end of a process waits for an object store
_NAME = '.lock'

_held: set['_OwnedLock'] = set()  # by this process


class Lock:
  """A folder that this process has locked. As it is, without a folder: on the hosts that leave the lock to host 0."""

  def check(self) -> None:
    """UserError: when another process has taken the lock over."""

  def note(self, doing: str) -> None:
    """Changes what others are told that this process is doing in the folder; at first 'writing here'."""


@contextlib.contextmanager
def locked(path: AnyPath, who: str = 'evaluation', instead: str = 'another --out') -> Iterator[Lock]:
  """Makes and locks a folder. UserError: when another process has locked it.

  who, instead: what writes there, and what to give instead, for the message.
  """
  lock = _OwnedLock(path, who, instead)
  try:
    yield lock
  finally:
    lock.release()


def release_all() -> None:
  """Releases what this process has locked, within a few seconds. For an end without `finally`, from any thread."""
  threads = [threading.Thread(target=lock.release, daemon=True) for lock in list(_held)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(_RELEASE_SECONDS)


@dataclasses.dataclass(frozen=True)
class _Found:
  """The record of a lock."""

  owner: dict  # empty while it is being written
  version: int  # changes with each heartbeat
  age: float  # seconds since the last one


class _FileRecord:
  """The record of a folder of a file system, and the operating system's lock on that file."""

  def __init__(self, folder: pathlib.Path):
    os.makedirs(folder, exist_ok=True)
    self._path = folder / _NAME
    self._handle: int | None = None  # None: another process holds the operating system's lock
    self._is_locked = False  # False: this file system has no locks

  def create(self, owner: dict) -> int:
    """Writes the first record. Returns its version. FileExistsError: when there is one."""
    if self._handle is None:
      self._handle = self._open()
    if self._handle is None or self._read():
      raise FileExistsError(errno.EEXIST, 'locked', str(self._path))
    return self.replace(owner, 0)

  def _open(self) -> int | None:
    while True:
      handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._is_locked = True
      except BlockingIOError:
        os.close(handle)
        return None
      except OSError:
        self._is_locked = False
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(self._path)):
          return handle
      os.close(handle)  # its owner has just removed it: what we have locked is not there any more

  def _read(self) -> dict:
    try:
      return _parse(self._path.read_bytes())
    except FileNotFoundError:
      return {}

  def find(self) -> _Found | None:
    try:
      written = self._path.stat()
    except FileNotFoundError:
      return None
    return _Found(self._read(), written.st_mtime_ns, max(0.0, _clock_of(self._path.parent) - written.st_mtime))

  @property
  def is_held(self) -> bool:
    """Whether the operating system says that another process has it."""
    return self._handle is None

  def is_alive(self, owner: dict) -> bool | None:
    """As the function `_is_alive`; the operating system's lock, which we have then, knows better."""
    if not owner or (self._is_locked and owner.get('boot') == _this_process()['boot']):
      return False
    return _is_alive(owner)

  def replace(self, owner: dict, version: int) -> int:
    """Takes the record over. Returns the new version. FileExistsError: when another process did so at the same time."""
    del version  # the operating system's lock, or the wait below, is in its place
    self._write(owner)
    if not self._is_locked:
      time.sleep(_SETTLE_SECONDS)
    return self.renew(owner, 0)

  def renew(self, owner: dict, version: int) -> int:
    """Writes a heartbeat. Returns the new version. FileExistsError: when the record is another's by now."""
    del version
    if not self._path.exists():  # somebody has removed it
      self.close()
      return self.create(owner)
    if not self._is_of(owner):
      raise FileExistsError(errno.EEXIST, 'locked', str(self._path))
    if self._read() != owner:
      self._write(owner)
    os.utime(self._path)  # by the clock of the file system
    return self._path.stat().st_mtime_ns

  def _is_of(self, owner: dict) -> bool:
    found = self._read()
    return found.get('token') == owner['token'] or (not found and self._is_locked)

  def _write(self, owner: dict) -> None:
    data = json.dumps(owner).encode()
    try:
      os.ftruncate(self._handle, 0)
      if os.pwrite(self._handle, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
    except OSError:
      if not self._is_locked:  # otherwise a full disk costs nothing but the owner's name in messages
        raise

  def remove(self, owner: dict, version: int) -> None:
    del version
    if self._is_of(owner):
      self._path.unlink(missing_ok=True)

  def close(self) -> None:
    if self._handle is not None:
      os.close(self._handle)
      self._handle = None


class _ObjectRecord:
  """The record of a folder on an object store. Methods as those of `_FileRecord`; the store compares the versions."""

  is_held = False

  def __init__(self, folder: GcsPath):
    self._object = folder / _NAME

  def create(self, owner: dict) -> int:
    return self.replace(owner, gcs_requests.NEW)

  def find(self) -> _Found | None:
    found = gcs_requests.find(self._object.bucket, self._object.key)
    return found and _Found(self._read(), found.generation, found.age)

  def _read(self) -> dict:
    try:
      return _parse(self._object.read_bytes())
    except FileNotFoundError:
      return {}

  def is_alive(self, owner: dict) -> bool | None:
    return _is_alive(owner)

  def replace(self, owner: dict, version: int) -> int:
    data = json.dumps(owner).encode()
    try:
      return gcs_requests.write(self._object.bucket, self._object.key, data, version)
    except FileExistsError:
      # A request whose answer was lost is sent again, and then finds the object that it made itself.
      found = self.find()
      if found is not None and found.owner.get('token') == owner['token']:
        return found.version
      raise

  renew = replace

  def remove(self, owner: dict, version: int) -> None:
    del owner
    gcs_requests.delete(self._object.bucket, self._object.key, version)

  def close(self) -> None:
    pass


class _OwnedLock(Lock):
  """A record that this process owns, and the thread that renews it."""

  def __init__(self, folder: AnyPath, who: str, instead: str):
    self._folder = folder
    self._who = who
    self._instead = instead
    self._record = _ObjectRecord(folder) if isinstance(folder, GcsPath) else _FileRecord(folder)
    self._owner = {
      'host': socket.gethostname(),
      **_this_process(),
      'token': secrets.token_hex(8),
      'doing': 'writing here',
    }
    try:
      self._version = self._take()
    except BaseException:
      self._record.close()
      raise
    self._renewed = time.monotonic()
    self._lost = False
    self._writing = threading.Lock()
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='lock', daemon=True)
    self._thread.start()
    _held.add(self)

  def check(self) -> None:
    # The thread may not have run yet in a process that was suspended.
    if time.monotonic() - self._renewed > 2 * BEAT_SECONDS:
      self._renew()
    if self._lost:
      raise UserError(
        f'{self._folder}: this process gave no sign of life for more than {STALE_SECONDS} seconds, and another '
        f'{self._who} has taken over; what was written is kept'
      )

  def note(self, doing: str) -> None:
    self._owner['doing'] = doing
    self._renew()

  def release(self) -> None:
    """Removes the record, and ends the thread. A second call does nothing."""
    self._end.set()
    self._thread.join()
    with self._writing:
      if self not in _held:
        return
      _held.discard(self)
      if not self._lost:
        with contextlib.suppress(Unreachable, OSError):  # the lock then grows old by itself
          self._record.remove(self._owner, self._version)
      self._record.close()

  def _take(self) -> int:
    """The version of the record, once it is ours. UserError: when its owner gives a sign of life."""
    first = None  # the version that was found first
    waited = 0.0
    while True:
      with contextlib.suppress(FileExistsError):
        return self._record.create(self._owner)
      found = self._record.find()
      if found is None:
        continue
      alive = self._record.is_alive(found.owner)
      age = max(found.age, waited)
      # An owner that is running but does not renew this record has another folder, of which this one is a copy.
      is_kept = alive and age <= STALE_SECONDS
      if self._record.is_held or is_kept or found.version != (first or found.version):
        raise self._in_use(found)
      if alive is False or age > STALE_SECONDS:
        with contextlib.suppress(FileExistsError):
          version = self._record.replace(self._owner, found.version)
          why = 'has ended' if alive is False else f'gave no sign of life for {age:.0f} seconds'
          if found.owner:
            report(f'{self._folder}: taken over from {_name(found.owner)}, which {why}')
          return version
        continue
      if first is None:
        first = found.version
        report(
          f'{self._folder}: locked by {_name(found.owner)}; waiting up to {STALE_SECONDS - age:.0f} seconds for a sign '
          'of life'
        )
      time.sleep(_POLL_SECONDS)
      waited += _POLL_SECONDS

  def _in_use(self, found: _Found) -> UserError:
    doing = found.owner.get('doing', 'writing here')
    owner = f' ({_name(found.owner)}, last heartbeat {found.age:.0f} seconds ago)' if found.owner else ''
    return UserError(f'{self._folder}: another {self._who} is {doing}{owner}; wait for it, or give {self._instead}')

  def _keep(self):
    while not self._end.wait(BEAT_SECONDS) and not self._lost:
      self._renew()

  def _renew(self):
    with self._writing:
      if self._lost or self._end.is_set():
        return
      try:
        self._version = self._record.renew(self._owner, self._version)
        self._renewed = time.monotonic()
      except FileExistsError:
        self._lost = True
      except (Unreachable, OSError):  # no connection: tried again, until somebody takes the lock over
        return


def _name(owner: dict) -> str:
  return f'process {owner.get("pid")} on {owner.get("host")}'


def _parse(data: bytes) -> dict:
  """The owner that a record names; {} when it is half-written or damaged."""
  try:
    owner = json.loads(data)
  except ValueError:
    return {}
  return owner if isinstance(owner, dict) else {}


def _clock_of(folder: pathlib.Path) -> float:
  """The time now with which a file system stamps files: the clock of its server may differ from this machine's."""
  try:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f'{_NAME}.') as file:
      return os.fstat(file.fileno()).st_mtime
  except OSError:  # a full disk
    return time.time()


def _this_process() -> dict:
  """What tells this process from all others: machine and namespace of process ids, id, and time of its start."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    machine = f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux
    boot = machine = None
  return {'boot': boot, 'machine': machine, 'pid': os.getpid(), 'started': _start_of(os.getpid())}


def _start_of(pid: int) -> str | None:
  """When a process of this machine started, in the kernel's ticks; None where there is no such process."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError as error:
    return None if error.errno in (errno.ENOENT, errno.ESRCH) else ''
  fields = text.rpartition(')')[2].split()
  return None if fields[0] in 'ZX' else fields[19]


def _is_alive(owner: dict) -> bool | None:
  """Whether the owner of a lock is running; None where this machine cannot know."""
  machine = _this_process()['machine']
  if machine is None or owner.get('machine') != machine:
    return None
  return _start_of(owner.get('pid')) == owner.get('started')
