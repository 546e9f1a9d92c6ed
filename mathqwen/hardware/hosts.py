"""Several hosts as one run: they meet, compare what they run, and end together.

JAX's coordination service does the meeting. Where a host stays away or dies, its C++ client ends this process from a
thread of its own, with a stack trace and an abort, and calls nothing of ours before (jax 0.10). So what C++ says on
file descriptor 2 is read here first: that text becomes one line and an exit status, everything else is passed on.
"""

import contextlib
import ctypes
import importlib.metadata
import itertools
import json
import os
import platform
import re
import select
import signal
import socket
import sys
import threading
import time

from mathqwen.errors import UserError

START, LOST = 'MATHQWEN_START_SECONDS', 'MATHQWEN_LOST_SECONDS'
DEFAULTS = {
  START: 300,  # that the hosts wait for each other before the first step
  LOST: 60,  # without a sign of life, after which a host is lost; the signs come from a C++ thread, compiling or not
}
LATE = 5  # seconds that host 0 may start after another, and still be the one to say who is missing
GRACE = 10  # seconds that a host has to end by itself when another has ended
PACKAGES = ('mathqwen', 'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
FATAL = b'JAX distributed service detected fatal errors'
MACHINERY = re.compile(rb'[IWEF]\d{4} \S+ +\d+ (coordination_service|preemption_sync_manager|add_port|client\.h)')
ENDED = 'mathqwen/ended'  # {host: [exit status, line]}
GATHERED = 'mathqwen/gathered'  # {call: {host: number of parts}, {host: {part: text}}}
PART = 2**20  # characters of a value in the key-value store: gRPC takes 4 MiB
AGAIN = 'run the same command again on every host'

_met = False  # JAX's service has threads in this process from here on, whether the hosts came together or not
_joined = None  # (client, index, count) between `join` and the end
_again = AGAIN  # the remedy where a host was lost, with what the command does then
_calls = itertools.count()  # of `gather`
_leaving = threading.Event()
_speaking = threading.Lock()  # one line, of whoever comes first


def join(where: str, then: str):
  """Joins this process to the others; to be called on every host, before anything else touches a device.

  where: 'auto' asks the machine (a TPU pod slice, GKE, Slurm know their hosts); 'HOST:PORT,N,I' names the coordinator,
  the number of processes and this one's number. then: what the same command does after a host was lost, for people.
  UserError where the hosts differ in software or devices.
  """
  global _again, _joined, _met
  address, count, index = (None, None, None) if where == 'auto' else _parse(where)
  import jax
  from jax._src import distributed  # the public module has neither the client nor how long the service waits

  start, make_service = _seconds(START), distributed._jax.get_distributed_runtime_service
  _met, _again = True, f'{AGAIN}; {then}'
  _read_stderr()

  def service(address, *args, **kwargs):
    _check_port(address)
    return make_service(address, *args, **kwargs, cluster_register_timeout=start)

  distributed._jax.get_distributed_runtime_service = service
  try:
    jax.distributed.initialize(
      address, count, index, initialization_timeout=start + LATE, heartbeat_timeout_seconds=_seconds(LOST)
    )
  except ValueError as error:
    raise UserError(
      f'--distributed {where}: {error}; write HOST:PORT,N,I where the machine does not know its hosts'
    ) from None
  finally:
    distributed._jax.get_distributed_runtime_service = make_service
  state = distributed.global_state
  _joined = state.client, state.process_id, state.num_processes
  sys.excepthook = _crashed
  threading.Thread(target=_watch, name='hosts', daemon=True).start()
  # Devices come second: hosts of unequal software may hang where they look for their devices.
  agree('software', {'number of hosts': state.num_processes, 'Python': platform.python_version()} | _versions())
  agree('devices', {'kind of device': jax.local_devices()[0].device_kind, 'devices': jax.local_device_count()})


def agree(what: str, values: dict):
  """UserError on every host where one host's `values`, {name: JSON value}, differ from host 0's; once for a `what`."""
  if _joined is not None:
    _agree(*_joined, what, values, _seconds(START))


def share() -> tuple[int, int]:
  """(this host's number, how many there are)"""
  return (0, 1) if _joined is None else _joined[1:]


def gather(value) -> list:
  """Every host's `value`, of JSON, in the order of their numbers; each waits for all, however long they take."""
  return [value] if _joined is None else _gather(*_joined, next(_calls), value)


def leave(status: int, line: str):
  """Ends this process, where it is one of several, and tells the others why: they end with the same status."""
  if not _met:
    return
  if _joined is not None:
    _leaving.set()
    client, index, count = _joined
    _tell(status, line)
    if index == 0:  # its service goes with it, and the others would not learn why
      deadline = time.monotonic() + 3 * GRACE
      while len(_by_host(client, ENDED)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)  # the usual way out waits minutes for the others, or meets a service that is half gone


def _parse(where):
  try:
    address, count, index = where.split(',')
    count, index = int(count), int(index)
    if not re.fullmatch(r'.+:\d+', address):
      raise ValueError(f'{address} has no port')
  except ValueError as error:
    raise UserError(
      f'--distributed {where}: {error}; write HOST:PORT,N,I where the machine does not know its hosts'
    ) from None
  if not 0 <= index < count:
    raise UserError(f'--distributed {where}: process {index} is not one of 0 to {count - 1}')
  return address, count, index


def _check_port(address: str):
  """UserError where host 0 cannot listen at its port: of a taken one the service may die without a word."""
  port = int(address.rpartition(':')[2])
  try:
    socket.create_server(('', port)).close()
  except OSError as error:
    raise UserError(
      f'host 0 cannot listen at port {port} ({os.strerror(error.errno)}): is it taken by an earlier run? End that, or '
      'name another port on every host'
    ) from None


def _seconds(name) -> int:
  value = os.environ.get(name, str(DEFAULTS[name]))
  if not value.isdecimal() or not int(value):
    raise UserError(f'{name}={value}: write a whole number of seconds')
  return int(value)


def _versions() -> dict:
  installed = {}
  for name in PACKAGES:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      installed[name] = 'not installed'
  return installed


def _agree(client, index: int, count: int, what: str, values: dict, seconds: float):
  from jax.errors import JaxRuntimeError

  folder, values = f'mathqwen/{what}', json.loads(json.dumps(values))
  if index == 0:
    client.key_value_set(f'{folder}/values', json.dumps(values))
  try:
    first = json.loads(client.blocking_key_value_get(f'{folder}/values', int(1000 * seconds)))
    names = [name for name in first | values if first.get(name) != values.get(name)]
    more = f' ({len(names) - 1} more differ)' if len(names) > 1 else ''
    said = f'{names[0]} is {first.get(names[0])!r} on host 0 and {values.get(names[0])!r} on host' if names else ''
    client.key_value_set(f'{folder}/differs/{index}', json.dumps([said, more]))
    client.wait_at_barrier(f'{folder}/said', int(1000 * seconds))
  except JaxRuntimeError as error:
    if not str(error).startswith('DEADLINE_EXCEEDED'):
      raise
    came = {index, *_by_host(client, f'{folder}/differs')}
    raise UserError(_missing(len(came), count, set(range(count)) - came, seconds, f'to compare their {what}')) from None
  differing = {host: text for host, text in sorted(_by_host(client, f'{folder}/differs').items()) if text[0]}
  if differing:
    (host, (said, more)), *others = differing.items()
    also = f'; host {_listed(host for host, _ in others)} differs from host 0 too' if others else ''
    remedy = {
      'software': 'install the same on every host',
      'devices': 'give every host the same number and kind',
    }.get(what, 'give every host the same command, config and files')
    raise UserError(f'the hosts differ in their {what}: {said} {host}{more}{also}: {remedy}')


def _gather(client, index: int, count: int, call: int, value) -> list:
  """Through host 0's key-value store: nothing of it is on a device, where collectives have a limit of time."""
  text, folder = json.dumps(value), f'{GATHERED}/{call}'
  parts = [text[start : start + PART] for start in range(0, len(text), PART)]
  for number, part in enumerate(parts):
    client.key_value_set(f'{folder}/{index}/{number}', part)
  client.key_value_set(f'{folder}/parts/{index}', str(len(parts)))
  values = []
  for host in range(count):
    numbers = range(int(_wait_for(client, f'{folder}/parts/{host}')))
    values.append(json.loads(''.join(_wait_for(client, f'{folder}/{host}/{number}') for number in numbers)))
  if index == 0 and call:
    client.key_value_delete(f'{GATHERED}/{call - 1}')  # each host has read that before it came to this call
  return values


def _wait_for(client, key: str) -> str:
  from jax.errors import JaxRuntimeError

  while True:
    try:
      return client.blocking_key_value_get(key, 10_000)  # a signal is heard between two of these
    except JaxRuntimeError as error:
      if not str(error).startswith('DEADLINE_EXCEEDED'):
        raise


def _listed(hosts) -> str:
  return ', '.join(map(str, hosts))


def _missing(came, count, missing, seconds, why='') -> str:
  # The service names only some of many.
  some = 'among them ' if len(missing) < count - came else ''
  return (
    f'{came} of {count} hosts came within {seconds} seconds{" " * bool(why)}{why}, missing: '
    f'{some}host {_listed(sorted(missing))}; start the same command on every host, each with its own number'
  )


def _watch():
  """Ends this process soon after another host has told that it ended: this one may be waiting for it for ever."""
  from jax.errors import JaxRuntimeError

  client, index, _ = _joined
  while not _leaving.wait(1):
    try:
      others = {host: text for host, text in _by_host(client, ENDED).items() if host != index}
    except JaxRuntimeError:  # host 0 is gone: the C++ client has more to say about that
      continue
    if others and not _leaving.wait(GRACE):
      host, (status, line) = min(others.items())
      _tell(status, line)
      _end(status, f'host {host} ended, and this one with it: {line}')


def _by_host(client, folder) -> dict:
  return {int(key.rpartition('/')[2]): json.loads(text) for key, text in client.key_value_dir_get(f'{folder}/')}


def _tell(status, line):
  from jax.errors import JaxRuntimeError

  client, index, _ = _joined
  with contextlib.suppress(JaxRuntimeError):  # where host 0 is gone there is nobody to tell
    client.key_value_set(f'{ENDED}/{index}', json.dumps([status, line]), allow_overwrite=True)


def _end(status: int, line: str):
  """Says one line and ends the process, from any thread and whatever the others do."""
  with _speaking:
    start = '\n' if sys.stderr.isatty() else ''  # a line of progress may stand there
    os.write(sys.stderr.fileno(), f'{start}mathqwen: {" ".join(line.split())}\n'.encode())
    os._exit(status)


def _crashed(kind, error, trace):
  """What nobody caught: the traceback, once it is clear that it is not the loss of another host that shows here."""
  from jax.errors import JaxRuntimeError

  if issubclass(kind, JaxRuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error):
    time.sleep(_seconds(LOST) + 2 * GRACE)  # a collective fails at once; the service knows later which host was lost
  sys.__excepthook__(kind, error, trace)
  leave(1, f'{kind.__name__}, see its traceback there')


def _read_stderr():
  """Puts a pipe in the place of file descriptor 2; Python's own standard error stays what it was."""
  terminal = os.dup(2)
  sys.stderr = os.fdopen(terminal, 'w', buffering=1)
  source, sink = os.pipe()
  os.dup2(sink, 2)
  # abort() waits in here for as many seconds as its signal has for a number, 6: time to read what came before it.
  libc = ctypes.CDLL(None)
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
  threading.Thread(target=_relay, args=(source, terminal), name='stderr', daemon=True).start()


def _relay(source: int, terminal: int):
  """Passes lines on, but for those of the coordination service."""
  ours, rest = False, b''
  while chunk := os.read(source, 1 << 16):
    *lines, rest = (rest + chunk).split(b'\n')
    for number, line in enumerate(lines):
      if FATAL in line:
        text = b'\n'.join([*lines[number:], rest])
        while select.select([source], [], [], 0.5)[0]:
          text += os.read(source, 1 << 16)
        _fatal(text.partition(b'*** Check failure')[0].decode(errors='replace'))
      if re.match(rb'[IWEF]\d{4} ', line):
        ours = bool(MACHINERY.match(line))
      if not ours:
        os.write(terminal, line + b'\n')


def _fatal(text: str):
  from jax._src import distributed

  _end(*explain(text, _joined is not None, distributed.global_state, _again))


def explain(text: str, joined: bool, state, remedy: str) -> tuple[int, str]:
  """(exit status, line) for what the coordination service's client says as it ends the process."""
  named = [int(name) for name in re.findall(r'^(\d+)$', text, re.MULTILINE)]
  if not joined:
    came = re.search(r'reached the barrier: (\d+)/(\d+)', text)
    if came:
      return 2, _missing(int(came[1]), int(came[2]), set(named), _seconds(START))
    if 'Unexpected task registered' in text:
      return 2, (
        f'this is host {state.process_id} of {state.num_processes}, and host 0 was told that there are fewer: '
        'give every host the same number of hosts'
      )
    if 'DEADLINE_EXCEEDED' in text:
      return 2, (
        f'host 0 was not reached at {state.coordinator_address} within {_seconds(START) + LATE} seconds: '
        'start it there, look at the address, and let its port through'
      )
  again = re.search(r'(\d+) unexpectedly tried to connect', text)
  if again:
    return os.EX_TEMPFAIL, f'host {again[1]} was started a second time while this run was going on: {remedy}'
  if 'stopped sending heartbeats' in text:
    return os.EX_TEMPFAIL, f'host {_listed(named)} was lost (no sign of life for {_seconds(LOST)} seconds): {remedy}'
  if 'UNAVAILABLE' in text or 'DEADLINE_EXCEEDED' in text:
    return os.EX_TEMPFAIL, f'host 0 was lost, which holds the others together: {remedy}'
  return 1, f'the coordination service of JAX ended this process: {text.partition("absl::Status:")[2] or text}'
