"""Several hosts as one run: they meet, check that they run the same thing, exchange values, and end together.

JAX's coordination service on host 0 does the meeting (`jax.distributed`). What JAX's public API lacks for the rest is
in `jax_internals`; the ways to exchange values with and without it are in `exchange`.

A run's life on each host: `join`, `agree` on software, devices and settings, `gather` as often as needed, `tell` what
others `listen` for. A host that fails calls `leave` or `end`, which tell the others. Where one dies without a word,
JAX's C++ client ends the others, and `_end_after_fatal_error` turns its stack trace into one line and an exit status.
"""

import importlib.metadata
import itertools
import json
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mathqwen.errors import UserError
from mathqwen.files import locks
from mathqwen.hardware import devices, jax_internals
from mathqwen.hardware.exchange import DeviceExchange, KeyValueExchange, LateHosts
from mathqwen.hardware.machine import Accelerators

# Environment variables, in seconds.
START = 'MATHQWEN_START_SECONDS'
LOST = 'MATHQWEN_LOST_SECONDS'
DEFAULTS = {
  START: 300,  # that the hosts wait for each other before the first step
  LOST: 60,  # without a heartbeat, after which a host is lost; a C++ thread sends them, also while XLA compiles
}
# Seconds that a client tries longer than the service waits, so that it is the service that reports who is missing.
CONNECT_MARGIN = 5
GRACE = 10  # seconds in which a host may end by itself after another one has ended
PACKAGES = ('mathqwen', 'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
RUN_AGAIN = 'run the same command again on every host'
ADDRESS_FORM = 'write HOST:PORT,N,I where the machine does not know its hosts'

Exchange = KeyValueExchange | DeviceExchange

# One process is one host of one run, so this is the state of the process.
_is_program = False  # see `own_process`
_service_started = False  # from here on JAX's C++ threads are in this process, whether the hosts have met or not
_given_place = jax_internals.Place(None, None, None)  # as given to `join`
_exchange: Exchange | None = None  # once the hosts have met
_remedy = RUN_AGAIN  # after the loss of a host, with what the command does then
_gather_numbers = itertools.count()
_listeners: dict[str, Callable[[str], None]] = {}  # by topic, see `listen`
_leaving = threading.Event()
_last_words = threading.Lock()  # only the first reason to end is printed


def join(where: str, after_loss: str):
  """Joins this process to the others. Call it on every host, before anything else uses a device.

  where: 'auto' asks the machine (a TPU pod slice, GKE and Slurm know their hosts); 'HOST:PORT,N,I' names the
    coordinator, the number of processes and this one's number.
  after_loss: what running the same command again does after a host was lost, for the message.
  UserError: when `where` cannot be read, the port is taken, the hosts differ in software or devices, or the devices of
    this one cannot be used.
  Where other hosts do not come, the process ends with status 2 and a line that names them.
  """
  global _exchange, _given_place, _remedy, _service_started
  if where == 'auto' and Accelerators().is_only_host():
    return
  _given_place = jax_internals.Place(None, None, None) if where == 'auto' else _parse_place(where)
  start_seconds, lost_seconds = _seconds_from_environment(START), _seconds_from_environment(LOST)
  import jax

  _service_started = True
  _remedy = f'{RUN_AGAIN}; {after_loss}'
  jax_internals.on_fatal_error(_end_after_fatal_error)
  jax_internals.open_tpu_port()
  on_sigterm = signal.getsignal(signal.SIGTERM)
  try:
    with (
      jax_internals.abort_on_fatal_error(_end_after_fatal_error),
      jax_internals.registration_limit(start_seconds, _check_port) as port_is_checked,
    ):
      if not port_is_checked and _given_place.index == 0:
        _check_port(_given_place.address)
      jax.distributed.initialize(
        _given_place.address,
        _given_place.count,
        _given_place.index,
        initialization_timeout=start_seconds + CONNECT_MARGIN,
        heartbeat_timeout_seconds=lost_seconds,
      )
  except ValueError as error:
    raise UserError(f'--distributed {where}: {error}; {ADDRESS_FORM}') from None

  _exchange = _make_exchange()
  if callable(on_sigterm) and _exchange.has_store:
    # JAX's preemption service has taken the signal, and forgets one that comes before the first step.
    signal.signal(signal.SIGTERM, on_sigterm)
  sys.excepthook = _report_crash
  threading.Thread(target=_end_with_others, name='hosts', daemon=True).start()
  # Software before devices: hosts with different versions may hang as soon as they look for their devices.
  agree('software', {'number of hosts': _exchange.count, 'Python': platform.python_version()} | versions())
  devices.start()
  agree('devices', {'kind of device': jax.local_devices()[0].device_kind, 'devices': jax.local_device_count()})


def agree(what: str, values: dict[str, Any]):
  """Checks that `values`, {name: JSON value}, are the same on every host. All hosts must call it, once for each `what`.

  UserError: on every host, when one host's values differ from host 0's, or do not arrive within `START` seconds.
  """
  if _exchange is not None:
    _compare_hosts(_exchange, what, values, _seconds_from_environment(START))


def share() -> tuple[int, int]:
  """(this host's number, how many there are); (0, 1) for a process that has not joined others."""
  return (0, 1) if _exchange is None else (_exchange.index, _exchange.count)


def gather(value: Any, once: str = '') -> list:
  """Every host's JSON `value`, in the order of the hosts. Each host waits for all others, however long they take.

  All hosts must call it in the same order, in one thread. once: a name that no other call has; such a call may be made
  in any thread.
  """
  if _exchange is None:
    return [value]
  if once:
    return [json.loads(text) for text in _exchange.gather(once, json.dumps(value))]
  return _gather(_exchange, next(_gather_numbers), value)


def has_store() -> bool:
  """Whether there are other hosts, and a store for `tell`, and for `gather` without a device."""
  return _exchange is not None and _exchange.has_store


def tell(topic: str, text: str):
  """Has every host that listens for `topic`, this one too, called back with `text` within about a second."""
  if _exchange is not None:
    _exchange.tell(topic, text)


def listen(topic: str, callback: Callable[[str], None] | None):
  """Calls `callback` with the first text that a host tells about `topic`, once, from a thread that must not wait.

  None: does not listen any more.
  """
  _listeners.pop(topic, None)
  if callback is not None:
    _listeners[topic] = callback


def own_process():
  """Says that this process runs one command and nothing else, so that `end` may end it."""
  global _is_program
  _is_program = True


def may_end() -> bool:
  """Whether `end` may end this process: not where it is a notebook's, or another program's."""
  return _is_program or _service_started


def end(status: int, line: str, wait: bool = True):
  """Prints one line and ends this process and the other hosts, from any thread, whatever its other threads are doing.

  wait: have host 0, which holds the store, wait until the others know why.
  """
  with _last_words:
    _print(line)
    _announce_end(status, line, wait)
    _exit(status)


def leave(status: int, line: str):
  """Ends this process with exit status `status` and has the other hosts end with the same status and this `line`.

  Returns where there are no other hosts.
  """
  if not _service_started:
    return
  _announce_end(status, line)
  sys.stdout.flush()
  sys.stderr.flush()
  _exit(status)


def versions() -> dict[str, str]:
  """The versions of the packages that decide a run's results."""
  installed = {}
  for name in PACKAGES:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      installed[name] = 'not installed'
  return installed


def _parse_place(where: str) -> jax_internals.Place:
  try:
    address, count, index = where.split(',')
    count, index = int(count), int(index)
    if not re.fullmatch(r'.+:\d+', address):
      raise ValueError(f'{address} has no port')
  except ValueError as error:
    raise UserError(f'--distributed {where}: {error}; {ADDRESS_FORM}') from None
  if not 0 <= index < count:
    raise UserError(f'--distributed {where}: process {index} is not one of 0 to {count - 1}')
  return jax_internals.Place(index, count, address)


def _check_port(address: str):
  """UserError: when host 0 cannot listen at the port of `address`. The service may end silently on a taken one."""
  port = int(address.rpartition(':')[2])
  try:
    socket.create_server(('', port)).close()
  except OSError as error:
    raise UserError(
      f'host 0 cannot listen at port {port} ({os.strerror(error.errno)}): an earlier run may still use it. End that, '
      'or choose another port on every host'
    ) from None


def _seconds_from_environment(name: str) -> int:
  """The value of an environment variable, or its default. UserError: when it is not a positive whole number."""
  value = os.environ.get(name, str(DEFAULTS[name]))
  if not value.isdecimal() or not int(value):
    raise UserError(f'{name}={value}: write a whole number of seconds')
  return int(value)


def _make_exchange() -> Exchange:
  client = jax_internals.coordination_client()
  place = jax_internals.place()
  if client is None or place is None:
    return DeviceExchange()
  return KeyValueExchange(client, place.index, place.count)


def _compare_hosts(exchange: Exchange, what: str, values: dict[str, Any], seconds: float):
  """`agree` over this exchange, within `seconds`."""
  try:
    texts = exchange.gather(what, json.dumps(values), seconds)
  except LateHosts as late:
    present = exchange.count - len(late.missing)
    what_they_did = f'came within {seconds} seconds to compare their {what}'
    raise UserError(jax_internals.missing_hosts(present, exchange.count, late.missing, what_they_did)) from None

  first, *others = [json.loads(text) for text in texts]
  differing = {}  # {host: names}
  for host, theirs in enumerate(others, start=1):
    names = [name for name in first | theirs if first.get(name) != theirs.get(name)]
    if names:
      differing[host] = names
  if differing:
    raise UserError(_difference(what, first, others, differing))


def _difference(what: str, first: dict, others: list[dict], differing: dict[int, list[str]]) -> str:
  """One line: the first difference in full, how many more there are, and on which hosts."""
  host, *more_hosts = differing
  name, *more_names = differing[host]
  line = (
    f'the hosts differ in their {what}: {name} is {first.get(name)!r} on host 0 and '
    f'{others[host - 1].get(name)!r} on host {host}'
  )
  if more_names:
    line += f' ({len(more_names)} more differ)'
  if more_hosts:
    line += f'; host {", ".join(map(str, more_hosts))} differs from host 0 too'
  remedies = {
    'software': 'install the same on every host',
    'devices': 'give every host the same number and kind',
  }
  return f'{line}: {remedies.get(what, "give every host the same command, config and files")}'


def _gather(exchange: Exchange, number: int, value: Any) -> list:
  """`gather` over this exchange. number: how many calls there were before; every host must count the same."""
  texts = exchange.gather(f'gather-{number}', json.dumps(value))
  if number:
    exchange.forget(f'gather-{number - 1}')  # every host has read that one, or it would not have come to this one
  return [json.loads(text) for text in texts]


def _announce_end(status: int, line: str, wait: bool = True):
  if _exchange is not None:
    _leaving.set()
    _exchange.announce_end(status, line)
    if wait:
      _exchange.wait_for_ends(3 * GRACE)


def _exit(status: int):
  """Not sys.exit: JAX's own exit handler waits minutes for the other hosts, or fails on a service that is half gone."""
  locks.release_all()
  os._exit(status)


def _end_with_others():
  """Ends this process soon after another host has announced its end, because this one may wait for it forever.

  Also passes on what hosts tell each other.
  """
  while not _leaving.wait(1):
    for topic in list(_listeners):
      if told := _exchange.told(topic):
        _listeners.pop(topic)(told[min(told)])
    ends = _exchange.ends()
    # The hosts may all have met the same error. Then each says so itself, within the grace period.
    if ends and not _leaving.wait(GRACE):
      host, (status, line) = min(ends.items())
      _exchange.announce_end(status, line)
      _end(status, f'host {host} ended, and this one with it: {line}')


def _end(status: int, line: str):
  """Prints one line and ends the process, from any thread, whatever the others are doing."""
  with _last_words:
    _print(line)
    _exit(status)


def _print(line: str):
  # On a terminal the cursor may be at the end of a progress bar, which has hidden it.
  start = '\x1b[?25h\n' if sys.stderr.isatty() else ''
  os.write(sys.stderr.fileno(), f'{start}mathqwen: {" ".join(line.split())}\n'.encode())


def _report_crash(kind, error, trace):
  """sys.excepthook: prints the traceback of an error that nobody caught, and ends the other hosts too."""
  if _is_from_collective(kind, error):
    # A collective fails at once when another host dies. Wait until the service says which host that was: then
    # `_end_after_fatal_error` ends this process. If it does not, the error is one of ours.
    time.sleep(_seconds_from_environment(LOST) + 2 * GRACE)
  sys.__excepthook__(kind, error, trace)
  leave(1, f'{kind.__name__}, see its traceback there')


def _is_from_collective(kind: type, error: BaseException) -> bool:
  """Whether an error may be that of a collective whose other host is gone.

  JAX raises it as a ValueError where it calls a compiled function the short way: its text begins with a status of XLA.
  """
  from jax.errors import JaxRuntimeError

  if issubclass(kind, JaxRuntimeError):
    return 'RESOURCE_EXHAUSTED' not in str(error)
  return issubclass(kind, ValueError) and re.match(r'(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED): ', str(error)) is not None


def _end_after_fatal_error(text: str):
  """text: of JAX's C++ client, which is about to abort this process."""
  situation = jax_internals.Situation(
    joined=_exchange is not None,
    place=jax_internals.place() or _given_place,
    start_seconds=_seconds_from_environment(START),
    connect_seconds=_seconds_from_environment(START) + CONNECT_MARGIN,
    lost_seconds=_seconds_from_environment(LOST),
    remedy=_remedy,
  )
  _end(*jax_internals.explain(text, situation))
