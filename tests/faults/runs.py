"""Training runs that start in a tenth of a second: forks of this process, which has imported JAX and started no device.

A fork of a process whose devices run would hang. So nothing in this process may compute; what does is a fork, too.
"""

import contextlib
import dataclasses
import fcntl
import functools
import gc
import itertools
import os
import pathlib
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from unittest import mock

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name('tiny.py')
SECONDS = 120  # after which a run counts as hanging


def set_up(scratch: pathlib.Path):
  """The environment of all runs, and everything imported that a run imports. Call it before anything imports JAX."""
  os.environ |= {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # they take longer to compile than they save here
    'JAX_COMPILATION_CACHE_DIR': str(scratch / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'MATHQWEN_LOST_SECONDS': '5',
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'JAX_TRACEBACK_IN_LOCATIONS_LIMIT': '0',  # lowering takes less time without them
  }
  import mathqwen.cli  # noqa: F401
  import mathqwen.commands.train  # noqa: F401
  import mathqwen.training.prepare  # noqa: F401

  gc.collect()
  gc.freeze()  # forks then collect only what they make themselves, in half the time


@dataclasses.dataclass(frozen=True)
class Layout:
  """On how many hosts and devices a run computes, and with which settings."""

  hosts: int = 1
  devices: int = 1  # of each host
  settings: tuple[str, ...] = ()


LAYOUTS = {
  'one': Layout(),
  'fsdp': Layout(1, 2, ('mesh.fsdp=2',)),
  'data and tensor': Layout(1, 4, ('mesh.data=2', 'mesh.fsdp=1', 'mesh.tensor=2')),
  'context': Layout(1, 2, ('mesh.fsdp=1', 'mesh.context=2')),
  'two hosts': Layout(2),
  'three hosts': Layout(3),
  'four hosts': Layout(4),
  'two micro-batches': Layout(1, 1, ('train.micro_batches=2',)),
}


class Child(BaseException):
  """Raised in a fork, up to `go_on`: nothing of the parent is left on the stack, and the fork ends like any program."""

  def __init__(self, program: Callable[[], object]):
    self.program = program


def go_on(program: Callable[[], object]):
  """Runs `program`, and in each fork that it makes, the program of that fork."""
  while True:
    try:
      return program()
    except Child as child:
      program = child.program


def fork(program: Callable[[], object]) -> int:
  """Starts `program` in a fork. Returns its process id."""
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid == 0:
    raise Child(program)
  return pid


@dataclasses.dataclass(frozen=True)
class Trap:
  """What happens to a run at a moment: at the nth call of a function, `delay` seconds after it began."""

  place: str  # a key of `places()`
  nth: int
  delay: float
  action: Callable[[], None]

  def set(self):
    """Lays the trap, in the process of the run."""
    owner, name = places()[self.place]
    original = getattr(owner, name)
    calls = itertools.count(1)

    @functools.wraps(original)
    def trapped(*args, **kwargs):
      if next(calls) == self.nth:
        if self.delay:
          timer = threading.Timer(self.delay, self.action)
          timer.daemon = True
          timer.start()
        else:
          self.action()
      return original(*args, **kwargs)

    setattr(owner, name, trapped)


def places() -> dict[str, tuple[object, str]]:
  """The functions at which a trap can be laid: (class, method). AttributeError in a trap: one has another name now."""
  from mathqwen.data.training_data import TrainingData
  from mathqwen.storage.checkpoint import Checkpoints
  from mathqwen.training.loop import TrainingLoop
  from mathqwen.training.saving import Saver

  return {
    'reading the data': (TrainingData, '__init__'),
    'compiling': (TrainingLoop, 'compile'),
    'restoring': (Checkpoints, 'restore_newest'),
    'a step': (TrainingLoop, 'take_step'),
    'evaluating': (TrainingLoop, 'evaluate'),
    'saving': (TrainingLoop, 'save'),
    'the end of a save': (Saver, 'wait'),
    'closing': (TrainingLoop, 'close'),
  }


def send(*signals: int, gap: float = 0.0) -> Callable[[], None]:
  """An action: these signals to the run itself, `gap` seconds apart."""

  def action():
    os.kill(os.getpid(), signals[0])
    for other in signals[1:]:
      time.sleep(gap)
      os.kill(os.getpid(), other)

  return action


def limit_files(size: int, seconds: float | None) -> Callable[[], None]:
  """An action: no file may grow beyond `size` bytes, for some seconds or, with None, until the process ends."""

  def action():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    if seconds is not None:
      timer = threading.Timer(seconds, resource.setrlimit, (resource.RLIMIT_FSIZE, before))
      timer.daemon = True
      timer.start()

  return action


def fill_disk(folder: pathlib.Path, left: int, seconds: float | None) -> Callable[[], None]:
  """An action: a file in `folder`, a small disk, that leaves `left` bytes; for some seconds or, with None, for good."""

  def action():
    filler = folder / 'filler'
    free = os.statvfs(folder)
    with contextlib.suppress(OSError), open(filler, 'wb') as file:
      os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))
    if seconds is not None:
      timer = threading.Timer(seconds, filler.unlink)
      timer.daemon = True
      timer.start()

  return action


def poison(what: str, first: int, last: int) -> Callable[[], None]:
  """Before a run: NaN in the loss or the gradients of steps `first` to `last`, whichever process takes them."""

  def prepare():
    import jax
    import jax.numpy as jnp

    from mathqwen.training import step

    train_step, gradients = step.train_step, step.gradients

    def poisoned_step(state, batch, **kwargs):
      def poisoned(*args, **kwargs):
        grads, loss_sum, weight = gradients(*args, **kwargs)
        number = state.step + 1
        factor = jnp.where((number >= first) & (number <= last), jnp.nan, 1.0)
        if what == 'loss':
          return grads, loss_sum * factor, weight
        return jax.tree.map(lambda grad: grad * factor, grads), loss_sum, weight

      with mock.patch.object(step, 'gradients', poisoned):
        return train_step(state, batch, **kwargs)

    step.train_step = poisoned_step

  return prepare


class Run:
  """A process of a training run. `wait` gives its status, as a shell shows it, and `said` its standard error."""

  def __init__(self, pid: int, pipe: int):
    self.pid = pid
    self.status: int | None = None
    self._pipe = pipe
    self._said = b''

  @property
  def said(self) -> str:
    """Its standard error up to now."""
    return self._said.decode(errors='replace')

  def poll(self, seconds: float = 0.0) -> int | None:
    """Reads what it says for up to `seconds`. Its status if it has ended: -9 when it was killed."""
    deadline = time.monotonic() + seconds
    while self.status is None:
      ready, _, _ = select.select([self._pipe], [], [], max(0.0, min(0.05, deadline - time.monotonic())))
      if ready:
        self._said += os.read(self._pipe, 2**16)
      pid, code = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        code = os.waitstatus_to_exitcode(code)
        self.status = 128 - code if code in (-signal.SIGTERM, -signal.SIGINT) else code
        self._finish()
      if time.monotonic() >= deadline:
        break
    return self.status

  def wait_until_suspended(self) -> None:
    """Reads what it says until it is suspended or has ended."""
    stat = pathlib.Path(f'/proc/{self.pid}/stat')
    while self.poll(0.2) is None and stat.read_text().rpartition(')')[2].split()[0] != 'T':
      pass

  def _finish(self):
    os.set_blocking(self._pipe, False)
    with contextlib.suppress(BlockingIOError):
      while part := os.read(self._pipe, 2**16):
        self._said += part
    os.close(self._pipe)

  def send(self, number: int):
    """Sends a signal, if it still runs."""
    if self.poll() is None:
      os.kill(self.pid, number)


def wait(runs: Sequence[Run], seconds: float = SECONDS) -> bool:
  """Waits for all of them to end. Those that do not are killed, and their Python stacks stand in what they said."""
  deadline = time.monotonic() + seconds
  while any(run.poll(0.02) is None for run in runs):
    if time.monotonic() > deadline:
      for number in (signal.SIGUSR1, signal.SIGKILL):
        for run in runs:
          run.send(number)
          run.poll(1)
      return False
  return True


def start(
  folder: pathlib.Path,
  workdir: pathlib.Path,
  layout: Layout,
  settings: Sequence[str] = (),
  traps: dict[int, Sequence[Trap]] | None = None,
  prepare: Callable[[], None] | None = None,
  fresh: bool = False,
  words: Sequence[str] = (),
) -> list[Run]:
  """Starts the processes of one run: `mathqwen train tiny.py --workdir WORKDIR`.

  folder: where its current directory, HOME and TMPDIR are, and `steps`, the steps that each process has taken.
  traps: by host. prepare: called in each process before the run. fresh: start Python again, so that its imports can be
  interrupted too; without traps. words: more arguments.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  found = []
  for host in range(layout.hosts):
    command = ['train', str(CONFIG), '--workdir', str(workdir), *words]
    command += [word for setting in (*layout.settings, *settings) for word in ('--set', setting)]
    if layout.hosts > 1:
      command += ['--distributed', f'127.0.0.1:{port},{layout.hosts},{host}']
    read_end, write_end = os.pipe()
    mine = (traps or {}).get(host, ())
    pid = fork(functools.partial(_run, command, folder, layout.devices, write_end, mine, prepare, fresh))
    os.close(write_end)
    found.append(Run(pid, read_end))
  return found


def _run(command, folder, devices, write_end, traps, prepare, fresh):
  """A process of a run, from the fork on."""
  os.setsid()
  os.dup2(os.open(os.devnull, os.O_RDWR), 0)
  os.dup2(0, 1)
  os.dup2(write_end, 2)
  for name in ('cwd', 'home', 'tmp'):
    (folder / name).mkdir(parents=True, exist_ok=True)
  os.chdir(folder / 'cwd')
  os.environ |= {
    'HOME': str(folder / 'home'),
    'TMPDIR': str(folder / 'tmp'),
    'XLA_FLAGS': f'{xla_flags()} --xla_force_host_platform_device_count={devices}',
  }
  tempfile.tempdir = None
  signal.signal(signal.SIGINT, signal.default_int_handler)
  if fresh:
    os.execv(sys.executable, [sys.executable, '-m', 'mathqwen', *command])

  import faulthandler

  from mathqwen import cli

  faulthandler.register(signal.SIGUSR1, all_threads=True)
  _note_steps(folder / 'steps')
  for trap in traps:
    trap.set()
  if prepare is not None:
    prepare()
  sys.argv = ['mathqwen', *command]
  cli.program()


def xla_flags() -> str:
  from mathqwen import compat

  return compat.fusion_emitters_flag()


def _note_steps(file: pathlib.Path):
  """Appends 'PID STEP' to a file before each step of this process."""
  from mathqwen.training.loop import TrainingLoop

  take_step = TrainingLoop.take_step

  def noted(self):
    with contextlib.suppress(OSError), open(file, 'a') as steps:
      steps.write(f'{os.getpid()} {self.step + 1}\n')
    take_step(self)

  TrainingLoop.take_step = noted


def mount(folder: pathlib.Path, size: str) -> bool:
  """Mounts a small disk at `folder`; False where this user may not."""
  folder.mkdir(parents=True)
  return os.system(f'mount -t tmpfs -o size={size} chaos {folder} 2>/dev/null') == 0


@contextlib.contextmanager
def one_at_a_time(file: pathlib.Path):
  """Of all processes, one runs what is inside."""
  with open(file, 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
