"""How a run is stopped: by SIGTERM or Ctrl-C, on any host, at any time.

Before the first step of a process, the first signal ends it at once: what could be saved is what the newest checkpoint
or `init` holds already. Later, all hosts take the same number of steps, save, and raise `Preempted`. A second signal
ends the process at once.

Python runs a signal's handler in the main thread, which may be in C++ for minutes, such as while XLA compiles. So the
handler does little; a thread does the rest, which learns of the signal from `signal.set_wakeup_fd`.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from mathqwen.errors import Preempted, report
from mathqwen.hardware import hosts

NAMES = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}
_HANDLED = 0x80  # in a byte that the handler writes; the operating system's own are the number of the signal
_END = 0  # a byte that ends the thread

_current: 'Stops | None' = None  # signals belong to the process


@contextlib.contextmanager
def watching() -> Iterator['Stops']:
  """Takes SIGTERM and Ctrl-C until the block ends. Inside another one, it is the same.

  In a thread other than the main one, which Python gives no signals, it only learns of other hosts' stops.
  Preempted, inside a notebook or another program: when the first signal comes before the first step.
  """
  global _current
  if _current is not None:
    yield _current
    return
  _current = Stops()
  try:
    _current.take()
    yield _current
  finally:
    _current.give_back()
    _current = None


class Stops:
  """Which signals have come, and at which step the run stops; see `watching`."""

  def __init__(self):
    self.reason = ''  # 'SIGTERM' or 'Ctrl-C', once the run is to stop; the same on all hosts
    self._step: int | None = None  # that `asked` was called with last; None before the first step
    self._last_step: int | None = None  # after which the run stops
    self._lock = threading.Lock()  # of the two above; `_agree` holds it until the hosts have agreed
    self._is_stopping = False
    self._stopping_lock = threading.Lock()
    self._calls = 0  # of the handler
    self._before: dict[int, object] = {}  # {signal: handler before}
    self._thread: threading.Thread | None = None

  def take(self):
    """Takes the signals; `hosts.join` sees to it that they stay here."""
    hosts.listen('stop', self._stop)
    if threading.current_thread() is not threading.main_thread():
      return
    self._source, self._sink = os.pipe()
    os.set_blocking(self._sink, False)
    self._thread = threading.Thread(target=self._watch, name='stops', daemon=True)
    self._thread.start()
    self._fd_before = signal.set_wakeup_fd(self._sink, warn_on_full_buffer=False)
    self._before = {number: signal.signal(number, self._handle) for number in NAMES}

  def give_back(self):
    """Gives the signals back to whoever had them."""
    hosts.listen('stop', None)
    if self._thread is None:
      return
    self._restore()
    os.write(self._sink, bytes([_END]))
    self._thread.join()
    os.close(self._source)
    os.close(self._sink)

  def _restore(self):
    signal.set_wakeup_fd(self._fd_before)
    for number, handler in self._before.items():
      # None: it was not set from Python, and cannot be set again from here.
      signal.signal(number, handler or signal.SIG_DFL)

  def asked(self, step: int) -> bool:
    """Whether the run is to stop before its next step. Every host must call it with the same steps."""
    if self._is_left_to_jax():
      from jax.experimental import multihost_utils

      self.reason = 'SIGTERM'
      return multihost_utils.reached_preemption_sync_point(step)
    with self._lock:
      self._step = step
      return self._last_step is not None and step >= self._last_step

  def _is_left_to_jax(self) -> bool:
    """Whether only JAX's own service reaches the other hosts. It forgets what comes before the first step."""
    return hosts.share()[1] > 1 and not hosts.has_store()

  def _handle(self, number: int, _):
    """The handler, in the main thread."""
    self._calls += 1
    if hosts.share()[1] == 1:
      self.reason = self.reason or NAMES[number]
      self._last_step = 0  # the run stops before its next step, whichever that is
    # For the thread too: an event loop that runs in the main thread takes the place of our `set_wakeup_fd`.
    with contextlib.suppress(BlockingIOError):
      os.write(self._sink, bytes([number | _HANDLED]))
    if hosts.may_end():
      return
    if self._calls > 1:
      self._restore()
      signal.raise_signal(number)
    elif self._step is None:
      raise Preempted(_before_the_first_step(NAMES[number]))

  def _watch(self):
    """The thread: counts signals, each of which comes as one byte or two."""
    direct = handled = seen = 0
    while True:
      for byte in os.read(self._source, 64):
        number = byte & ~_HANDLED
        if byte == _END:
          return
        if number not in NAMES:
          continue
        if byte & _HANDLED:
          handled += 1
        else:
          direct += 1
        if max(direct, handled) == seen:
          continue
        seen = max(direct, handled)
        if seen == 1:
          self._first(NAMES[number])
        elif hosts.may_end():
          line = f'ended at once by a second signal ({NAMES[number]}): the same command continues from what was saved'
          hosts.end(128 + number, line, wait=False)

  def _first(self, reason: str):
    if self._is_left_to_jax():
      if reason != 'SIGTERM':
        os.kill(os.getpid(), signal.SIGTERM)
      return
    if sys.stderr.isatty() and self._step is not None:
      report(f'\n{reason}: this step ends and is saved; once more ends the run at once')
    hosts.tell('stop', reason)
    self._stop(reason)

  def _stop(self, reason: str):
    """Stops the run, because of the first signal here or on another host. Called in threads."""
    with self._stopping_lock:
      if self._is_stopping:
        return
      self._is_stopping = True
    self.reason = self.reason or reason
    if self._step is None and hosts.may_end():
      hosts.end(os.EX_TEMPFAIL, _before_the_first_step(reason))
    elif hosts.share()[1] > 1:
      threading.Thread(target=self._agree, name='agree', daemon=True).start()

  def _agree(self):
    """Has all hosts stop after the same step: the next one of the host that is furthest."""
    from jax.errors import JaxRuntimeError

    # After its last step a host agrees to nothing, and the store ends with the run. The store of a host that is lost
    # ends too, which `hosts` notices.
    with self._lock, contextlib.suppress(JaxRuntimeError):  # the lock: no host goes on meanwhile
      said = hosts.gather({'step': self._step, 'reason': self.reason}, once='stop')
      self._last_step = max(host['step'] for host in said) + 1
      self.reason = said[0]['reason']


def _before_the_first_step(reason: str) -> str:
  return f'stopped by {reason} before its first step, so there was nothing to save: run the same command to continue'
