"""One process at a time writes into a folder.

On a local disk the lock is the operating system's, on the folder itself: it ends with the process, however that ends.
On an object store it is an object FOLDER/.lock, which only one process can make, and which its owner writes again every
few seconds. A lock that is not written any more is taken over: at once where its owner was a process of this machine
that has ended, otherwise after a minute. Ages are differences within the store's own clock.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from mathqwen.errors import Unreachable, UserError, report
from mathqwen.files import gcs_requests
from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath

BEAT_SECONDS = 10  # between two writes of a lock
STALE_SECONDS = 60  # without one, after which a lock is taken over
_POLL_SECONDS = 2
_NAME = '.lock'


class Lock:
  """A folder that is locked by this process. `check` says whether it still is."""

  def check(self) -> None:
    """UserError: when another process has taken the lock over. A local lock cannot be taken."""


@contextlib.contextmanager
def locked(path: AnyPath, who: str = 'evaluation', instead: str = 'another --out') -> Iterator[Lock]:
  """Makes and locks a folder. UserError: when another process has locked it.

  who, instead: what writes there, and what to give instead, for the message.
  """
  if isinstance(path, GcsPath):
    lock = _StoreLock(path, who, instead)
    try:
      yield lock
    finally:
      lock.release()
    return
  path.mkdir(parents=True, exist_ok=True)
  handle = os.open(path, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise _in_use(path, who, instead) from None
    except OSError as error:
      report(f'{path}: its file system has no locks ({error.strerror}): see to it that no other {who} writes here')
    yield Lock()
  finally:
    os.close(handle)


def _in_use(path: AnyPath, who: str, instead: str, owner: str = '') -> UserError:
  return UserError(f'{path}: another {who} is writing here{owner}; wait for it, or give {instead}')


class _StoreLock(Lock):
  """The lock of a folder on an object store, and the thread that keeps it."""

  def __init__(self, folder: GcsPath, who: str, instead: str):
    self._folder = folder
    self._who = who
    self._instead = instead
    self._object = folder / _NAME
    self._owner = {'host': socket.gethostname(), **_this_process(), 'token': secrets.token_hex(8)}
    self._generation = self._take()
    self._lost = False
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()

  def check(self) -> None:
    if self._lost:
      raise UserError(
        f'{self._folder}: this process was without a connection for more than {STALE_SECONDS} seconds, and another '
        f'{self._who} has taken over; what was written is kept'
      )

  def release(self) -> None:
    self._end.set()
    self._thread.join()
    if not self._lost:
      with contextlib.suppress(Unreachable):  # the lock then grows old by itself
        gcs_requests.delete(self._object.bucket, self._object.key, self._generation)

  def _write(self, generation: int) -> int:
    """Writes the lock over this generation of it. Returns the new one. FileExistsError: when there is another."""
    data = json.dumps(self._owner).encode()
    try:
      return gcs_requests.write(self._object.bucket, self._object.key, data, generation)
    except FileExistsError:
      # A request whose answer was lost is sent again, and then finds the object that it made itself.
      found = gcs_requests.find(self._object.bucket, self._object.key)
      if found is not None and self._read_owner().get('token') == self._owner['token']:
        return found.generation
      raise

  def _read_owner(self) -> dict:
    try:
      return json.loads(self._object.read_bytes())
    except (FileNotFoundError, ValueError):
      return {}

  def _take(self) -> int:
    """The generation of the lock, once it is ours. UserError: when its owner gives a sign of life."""
    first = None  # the generation that was found first
    waited = 0.0
    while True:
      with contextlib.suppress(FileExistsError):
        return self._write(gcs_requests.NEW)
      found = gcs_requests.find(self._object.bucket, self._object.key)
      if found is None:
        continue
      owner = self._read_owner()
      alive = _is_alive(owner)
      if alive or found.generation != (first or found.generation):
        raise _in_use(self._folder, self._who, self._instead, f' (process {owner.get("pid")} on {owner.get("host")})')
      age = max(found.age, waited)
      if alive is False or age > STALE_SECONDS:
        with contextlib.suppress(FileExistsError):
          return self._write(found.generation)
        continue
      if first is None:
        first = found.generation
        report(
          f'{self._folder}: locked by process {owner.get("pid")} on {owner.get("host")}; waiting up to '
          f'{STALE_SECONDS - age:.0f} seconds for a sign of life'
        )
      time.sleep(_POLL_SECONDS)
      waited += _POLL_SECONDS

  def _keep(self):
    while not self._end.wait(BEAT_SECONDS):
      try:
        self._generation = self._write(self._generation)
      except FileExistsError:
        self._lost = True
        return
      except Exception:  # no connection: tried again, until somebody takes the lock over
        continue


def _this_process() -> dict:
  """What tells this process from all others: machine and namespace of process ids, id, and time of its start."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    machine = f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux
    machine = None
  return {'machine': machine, 'pid': os.getpid(), 'started': _start_of(os.getpid())}


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
