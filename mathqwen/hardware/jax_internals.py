"""What JAX does not promise and we need: `jax._src`, the log text of its C++, and a signal handler of libc.

Everything of that kind is in this file. Each part is optional: where a JAX version or a machine lacks it, the hosts
still meet, agree, exchange values and end; only the reasons they give get worse. All were needed with JAX 0.10.2.

`coordination_client`, `place` (`global_state` of `jax._src.distributed`)
  Why: `jax.distributed` shows neither the key-value store nor, before the devices are initialised, this host's number.
  Without: `exchange.DeviceExchange`. Values travel over the devices, where the runtime itself limits how long a host
  may be late, and a host that ends does not tell the others why.
`registration_limit` (`get_distributed_runtime_service` in the same module)
  Why: `jax.distributed.initialize` limits how long a client tries to connect, not how long the service waits for all.
  Without: the hosts notice that one stays away, but do not name it.
`open_tpu_port` (`coordinator_port` of `jax._src.clusters.cloud_tpu_cluster`)
  Why: TPU hosts meet at port 8482 since JAX 0.8.1 (before at 8476), and the firewall rule that Google makes for slices
  opens 8470 to 8476. `JAX_COORDINATOR_PORT` would move it too, but it is not there before 0.8.1, and for Slurm it takes
  the place of a port for each job.
  Without: the hosts meet at JAX's own port, which the network must let through.
`on_fatal_error` (the C++ client's text on file descriptor 2; libc's `sleep` and `pause` as handlers of SIGABRT)
  Why: when a host stays away or dies, the client aborts this process from its own thread and calls nothing of ours.
  Without: the process ends with SIGABRT and a C++ stack trace instead of one line and an exit status.
`abort_on_fatal_error` (`get_distributed_runtime_client` in the module above), for JAX below 0.9
  Why: there the client does not abort but exits, before anyone has read that text.
  Without: the process ends with status 1 and a line of C++.
`explain` (the words of that text)
  Why: it has no error codes.
  Without: words that are not known here are printed as they are, and the exit status is 1.
`devices_started`, `start_errors` (`_backends` and `_backend_errors` of `jax._src.xla_bridge`)
  Why: the platform can be chosen until the devices have started, and JAX keeps to itself why one did not.
  Without: a process that has used the CPU already is told so later, and without the reason.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import os
import re
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from mathqwen import compat

# What the C++ client writes before it aborts, and what follows the text of the status.
_FATAL = b'JAX distributed service detected fatal errors'
_STACK_TRACE = b'*** Check failure'
# What it writes before that, and the last that JAX below 0.9 writes with `abort_on_fatal_error`.
_POLLED = b'Polled an error from coordination service'
# Log lines of the coordination service, which people need not see: 'E1124 12:52:41.123 18160 client.h:80] ...'.
_LOG_LINE = re.compile(rb'[IWEF]\d{4} ')
_SERVICE_LOG = re.compile(rb'[IWEF]\d{4} \S+ +\d+ (coordination_service|preemption_sync_manager|add_port|client\.h)')


def _distributed():
  """The module `jax._src.distributed`, or None where this JAX has none of that name."""
  try:
    from jax._src import distributed
  except ImportError:
    return None
  return distributed


def devices_started() -> bool:
  """Whether JAX has started its devices, so that it is too late to choose others."""
  return bool(_xla_bridge_state('_backends'))


def start_errors() -> dict[str, str]:
  """{platform: why JAX could not start it}, of the platforms that it went on without."""
  return dict(_xla_bridge_state('_backend_errors'))


def _xla_bridge_state(name: str) -> dict:
  try:
    from jax._src import xla_bridge
  except ImportError:
    return {}
  return getattr(xla_bridge, name, {})


class CoordinationClient:
  """The key-value store of the coordination service, which host 0 holds. Keys are paths, values are text.

  JaxRuntimeError: when host 0 is gone.
  """

  def __init__(self, client):
    self._client = client

  def set(self, key: str, text: str):
    """Stores `text` at `key`, in place of what was there."""
    self._client.key_value_set(key, text, allow_overwrite=True)

  def get(self, key: str, seconds: float) -> str | None:
    """The value of `key`, as soon as there is one; None when there is none within `seconds`."""
    from jax.errors import JaxRuntimeError

    try:
      return self._client.blocking_key_value_get(key, int(1000 * seconds))
    except JaxRuntimeError as error:
      if not str(error).startswith('DEADLINE_EXCEEDED'):
        raise
      return None

  def list(self, folder: str) -> dict[str, str]:
    """{last part of the key: value} of the keys below `folder`, as they are now."""
    return {key.rpartition('/')[2]: text for key, text in self._client.key_value_dir_get(f'{folder}/')}

  def delete(self, folder: str):
    """Removes a key, or all keys below it."""
    self._client.key_value_delete(folder)


def coordination_client() -> CoordinationClient | None:
  """The client of this process after `jax.distributed.initialize`; None where this JAX does not show it."""
  client = getattr(getattr(_distributed(), 'global_state', None), 'client', None)
  wanted = ('key_value_set', 'blocking_key_value_get', 'key_value_dir_get', 'key_value_delete')
  return CoordinationClient(client) if all(hasattr(client, name) for name in wanted) else None


@dataclasses.dataclass(frozen=True)
class Place:
  """Which of the hosts this process is. None: not known."""

  index: int | None
  count: int | None
  address: str | None  # of the coordination service, HOST:PORT


def place() -> Place | None:
  """As JAX found it, without asking the devices; None where this JAX does not show it."""
  state = getattr(_distributed(), 'global_state', None)
  try:
    return Place(state.process_id, state.num_processes, state.coordinator_address)
  except AttributeError:
    return None


TPU_PORT = '8476'  # the last that Google's rule opens; 8470 to 8475 are libtpu's own


def open_tpu_port() -> bool:
  """Has the hosts of a TPU slice meet at a port that is open between them; returns whether that can be set.

  `JAX_COORDINATOR_PORT` still comes first. Other clusters keep their ports.
  """
  try:
    from jax._src.clusters import cloud_tpu_cluster
  except ImportError:
    return False
  if not hasattr(cloud_tpu_cluster, 'coordinator_port'):
    return False
  cloud_tpu_cluster.coordinator_port = TPU_PORT
  return True


@contextlib.contextmanager
def registration_limit(seconds: int, before_listening: Callable[[str], None]) -> Iterator[bool]:
  """Within it, a coordination service that starts waits `seconds` for all hosts; yields whether that can be set.

  before_listening: called on host 0 with the address at which the service will listen.
  """
  functions = getattr(_distributed(), '_jax', None)
  make_service = getattr(functions, 'get_distributed_runtime_service', None)
  if make_service is None:
    yield False
    return

  def make_with_limit(address, *args, **kwargs):
    before_listening(address)
    return make_service(address, *args, **kwargs, cluster_register_timeout=seconds)

  functions.get_distributed_runtime_service = make_with_limit
  try:
    yield True
  finally:
    functions.get_distributed_runtime_service = make_service


@contextlib.contextmanager
def abort_on_fatal_error(end_process: Callable[[str], None]) -> Iterator[None]:
  """Within it, a client that is made will abort at a fatal error, also where JAX would let it exit, with status 1.

  end_process: called with the reason when the client cannot connect.

  JAX below 0.9 exits at once, before `on_fatal_error` has read why. A callback in Python keeps it from that: its
  argument is a C++ type that Python does not know, so that the call throws, and C++ aborts. Before it does, it calls
  `PyEval_SaveThread`: the failed call still holds the interpreter's lock, which the thread that reads needs.
  """
  functions = getattr(_distributed(), '_jax', None)
  make_client = getattr(functions, 'get_distributed_runtime_client', None)
  set_terminate = _set_terminate() if compat.client_exits() else None
  if make_client is None or set_terminate is None:
    yield
    return
  set_terminate(ctypes.cast(ctypes.pythonapi.PyEval_SaveThread, ctypes.c_void_p))
  functions.get_distributed_runtime_client = functools.partial(make_client, missed_heartbeat_callback=lambda _: None)
  try:
    yield
  except RuntimeError as error:
    # A client that cannot connect makes that call in this thread, where it is no abort but this exception.
    if str(error) != 'std::bad_cast':
      raise
    end_process(_why_not_connected())
  finally:
    functions.get_distributed_runtime_client = make_client


def _why_not_connected() -> str:
  """What keeps the client of this process from connecting: it says so when it is shut down."""
  from jax.errors import JaxRuntimeError

  try:
    _distributed().global_state.client.shutdown()
  except JaxRuntimeError as error:
    return str(error)
  return ''


def _set_terminate():
  """`std::set_terminate` of C++, or None where its library has another name."""
  try:
    function = ctypes.CDLL('libstdc++.so.6')._ZSt13set_terminatePFvvE
  except (OSError, AttributeError):
    return None
  function.argtypes = [ctypes.c_void_p]
  function.restype = ctypes.c_void_p
  return function


def on_fatal_error(end_process: Callable[[str], None]) -> bool:
  """Calls `end_process(text)`, from a thread, when the C++ client is about to abort; returns whether that is possible.

  Puts a pipe in the place of file descriptor 2 and passes on what comes through it, except for the coordination
  service's log. Python's own standard error goes where it went before.
  """
  libc = ctypes.CDLL(None)
  if not all(hasattr(libc, name) for name in ('signal', 'sleep', 'pause')):
    return False

  last_words = (_FATAL, _POLLED) if compat.client_exits() else (_FATAL,)
  terminal = os.dup(2)
  sys.stderr = os.fdopen(terminal, 'w', buffering=1)
  source, sink = os.pipe()
  os.dup2(sink, 2)

  # abort() raises SIGABRT, whose number, 6, is the argument of its handler: sleep(6). That leaves the thread below six
  # seconds to read the text. A handler in Python would not do: it only runs once the main thread executes bytecode.
  _handle_abort_with(libc.sleep)
  threading.Thread(target=_relay, args=(source, terminal, last_words, end_process), name='stderr', daemon=True).start()
  return True


def _handle_abort_with(function):
  """Makes a function of libc the handler of SIGABRT."""
  ctypes.CDLL(None).signal(signal.SIGABRT, ctypes.cast(function, ctypes.c_void_p))


def _relay(source: int, terminal: int, last_words: tuple[bytes, ...], end_process: Callable[[str], None]):
  """Copies lines from `source` to `terminal`, without those of the coordination service.

  last_words: in the line after which the process is about to end.
  """
  from_service = False
  service_log = collections.deque(maxlen=20)  # where JAX below 0.9 says on host 0 which host was lost
  rest = b''
  while chunk := os.read(source, 1 << 16):
    *lines, rest = (rest + chunk).split(b'\n')
    for number, line in enumerate(lines):
      if any(word in line for word in last_words):
        # From here on `end_process` ends the process, however long it takes. An abort of which nothing is known must
        # not wait like this.
        _handle_abort_with(ctypes.CDLL(None).pause)
        said_before = [] if _FATAL in line else service_log
        text = b'\n'.join([*said_before, *lines[number:], rest])
        while select.select([source], [], [], 0.5)[0]:  # the rest of the text comes in pieces
          text += os.read(source, 1 << 16)
        end_process(text.partition(_STACK_TRACE)[0].decode(errors='replace'))
      # Lines without a prefix continue the message before them.
      if _LOG_LINE.match(line):
        from_service = bool(_SERVICE_LOG.match(line))
      if from_service:
        service_log.append(line)
      else:
        os.write(terminal, line + b'\n')


@dataclasses.dataclass(frozen=True)
class Situation:
  """What this process knows when the C++ client ends it."""

  joined: bool  # whether all hosts had come together
  place: Place
  start_seconds: int  # that hosts wait for each other
  connect_seconds: int  # that this one tried to reach host 0
  lost_seconds: int  # without a heartbeat, after which a host is lost
  remedy: str  # what to do after the loss of a host


def explain(text: str, situation: Situation) -> tuple[int, str]:
  """(exit status, one line) for what the C++ client writes as it ends the process.

  2 where somebody has to change something, 75 where the same command continues, 1 for words that are not known here.
  """
  # One host a line, '3' or '/job:jax_worker/replica:0/task:3'; the text may come twice.
  named = sorted({int(name) for name in re.findall(r'^(?:/job:\S+/task:)?(\d+)$', text, re.MULTILINE)})
  if not situation.joined:
    line = _explain_before_joining(text, named, situation)
    if line:
      return 2, line
  if again := re.search(r'(\d+) unexpectedly tried to connect', text):
    line = f'host {again[1]} was started a second time while this run was going on'
  elif 'stopped sending heartbeats' in text:
    hosts = ', '.join(map(str, named))
    line = f'host {hosts} was lost (no heartbeat for {situation.lost_seconds} seconds)'
  elif 'UNAVAILABLE' in text or 'DEADLINE_EXCEEDED' in text:
    line = 'host 0 was lost, which coordinates the others'
  elif _POLLED.decode() in text:  # without the reason
    line = 'host 0 was lost, which coordinates the others'
    if _answers(situation.place.address):
      line = f'another host was lost (no heartbeat for {situation.lost_seconds} seconds)'
  else:
    return 1, f'the coordination service of JAX ended this process: {text.partition("absl::Status:")[2] or text}'
  return os.EX_TEMPFAIL, f'{line}: {situation.remedy}'


def _answers(address: str | None) -> bool:
  """Whether something listens at HOST:PORT."""
  host, _, port = (address or '').rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
  except (OSError, ValueError):
    return False
  return True


def _explain_before_joining(text: str, named: list[int], situation: Situation) -> str | None:
  here = situation.place
  if joined := re.search(r'reached the barrier: (\d+)/(\d+)', text):
    return missing_hosts(int(joined[1]), int(joined[2]), named, f'joined within {situation.start_seconds} seconds')
  if 'Unexpected task registered' in text:
    return (
      f'this is host {here.index} of {here.count}, but host 0 was started for fewer hosts: '
      'give every host the same number of hosts'
    )
  if 'DEADLINE_EXCEEDED' not in text:
    return None
  if here.index == 0:  # its own service is there: it waits for the others
    return (
      f'not all of {here.count} hosts joined within {situation.connect_seconds} seconds; '
      'start the same command on every host, each with its own number'
    )
  return (
    f'host 0 was not reached at {here.address} within {situation.connect_seconds} seconds: '
    'start it there, check the address, and open the port in the firewall'
  )


def missing_hosts(present: int, count: int, missing: list[int], what_they_did: str) -> str:
  """One line: how many of `count` hosts did something, and the others. The service names only some of many."""
  some = 'among them ' if len(missing) < count - present else ''
  hosts = ', '.join(map(str, missing))
  return (
    f'{present} of {count} hosts {what_they_did}, missing: {some}host {hosts}; '
    'start the same command on every host, each with its own number'
  )
