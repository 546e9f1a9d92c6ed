"""A watchdog: when nothing moves, the Python stacks of all threads go to a file, and the run ends.

WORKDIR/hang/step-120-host-0.txt, step-120-host-1.txt, ...
"""

import contextlib
import datetime
import faulthandler
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Self

from mathqwen import files
from mathqwen.errors import Unreachable, report
from mathqwen.hardware import hosts

_POLLS = 20  # within the time after which the watchdog acts
_MOST_SECONDS = 5  # between two polls
_WRITE_SECONDS = 20  # that it waits for its file, which may be on the disk that hangs


class Watchdog:
  """Ends the run, on all hosts, when `beat` is not called for too long on one of them.

  with Watchdog(workdir, 15, 120) as watchdog:
    watchdog.beat('reading the data', slow=True)
    watchdog.beat('step 1')

  In a notebook it only reports: it must not end the kernel.
  """

  def __init__(self, workdir: str, minutes: float, slow_minutes: float, end: Callable[[int, str], None] = hosts.end):
    """minutes: without a beat, after which the run ends; slow_minutes: the same in slow phases. 0: never."""
    self.step = 0  # of the run, for the name of the file
    self._workdir = workdir
    self._minutes = {False: minutes, True: slow_minutes}
    limits = [60 * limit for limit in (minutes, slow_minutes) if limit]
    self._pause = min([_MOST_SECONDS, *(limit / _POLLS for limit in limits)])  # between two polls
    self._end = end
    self._has_acted = threading.Lock()
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
    self.beat('starting', slow=True)

  def beat(self, doing: str, slow: bool = False):
    """Says that the run is alive, and what it does next. slow: reading or compiling, which may take longer."""
    self._state = (doing, self._minutes[slow])
    self._quiet = 0  # polls since then

  @contextlib.contextmanager
  def slowly(self, doing: str) -> Iterator[None]:
    """A `beat` before and after what may take longer."""
    self.beat(doing, slow=True)
    yield
    self.beat(f'after {doing}')

  @contextlib.contextmanager
  def growing(self, doing: str, size: Callable[[], int]) -> Iterator[None]:
    """A `beat`, and another one whenever `size()`, of what is being written meanwhile, has changed."""
    self.beat(doing)
    ended = threading.Event()

    def look():
      before = 0
      while not ended.wait(self._pause):
        with contextlib.suppress(OSError, Unreachable):
          if (now := size()) != before and not ended.is_set():
            self.beat(doing)
            before = now

    threading.Thread(target=look, name='growing', daemon=True).start()  # it may hang with the disk
    try:
      yield
    finally:
      ended.set()

  def __enter__(self) -> Self:
    hosts.listen('hang', lambda line: threading.Thread(target=self._act, args=(line,), daemon=True).start())
    self._thread.start()
    return self

  def __exit__(self, *_):
    hosts.listen('hang', None)
    self._stopped.set()
    self._thread.join()

  def _watch(self):
    if not any(self._minutes.values()):
      return
    while not self._stopped.wait(self._pause):
      # Polls are counted, not seconds: a process that was suspended has not hung.
      self._quiet += 1
      doing, minutes = self._state
      if minutes and self._quiet * self._pause >= 60 * minutes:
        host = f'host {hosts.share()[0]}: ' if hosts.share()[1] > 1 else ''
        line = f'{host}{doing}: nothing has moved for {minutes:g} minutes'
        hosts.tell('hang', line)
        self._act(line)
        return

  def _act(self, line: str):
    """Writes the stacks and ends this process. Only the first call does anything: another host may hang too."""
    if not self._has_acted.acquire(blocking=False):
      return
    path = files.path(self._workdir) / 'hang' / f'step-{self.step}-host-{hosts.share()[0]}.txt'
    content = f'{line}\nstep {self.step}, {self._state[0]}\n{_stacks()}'
    writing = threading.Thread(target=_write, args=(path, content), daemon=True)
    writing.start()
    writing.join(_WRITE_SECONDS)
    if writing.is_alive():
      report(content)
    line = f'{line}; where each host stood is in {path.parent}: run the same command to continue'
    if hosts.may_end():
      self._end(os.EX_TEMPFAIL, line)
    else:
      report(f'mathqwen: {line}, after you have interrupted this one')


def _write(path: files.AnyPath, content: str):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
  except Exception as error:  # whatever it is, the stacks must be seen somewhere
    report(f'{path}: {error}\n{content}')


def _stacks() -> str:
  """Where each Python thread of this process stands, the newest call first."""
  names = [f'thread 0x{thread.ident:016x} is {thread.name}' for thread in threading.enumerate()]
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  with tempfile.TemporaryFile('w+') as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    stacks = file.read()
  return '\n'.join(
    [f'{socket.gethostname()}, process {os.getpid()}, Python {sys.version_info[:3]}, {now}', *names, stacks]
  )
