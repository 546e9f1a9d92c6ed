r"""Symbolic comparison with a limit of CPU time: math-verify runs in a process of its own, which ends at the limit.

It has to be a process. A signal handler does not stop a parser that is inside one long integer operation (`9^{9^9}`),
and a thread cannot be killed. The process serves many comparisons; when it has ended the next one starts another, which
takes about a second. CPU time does not depend on what else the machine does, as the time of the clock would; and a
comparison that reaches a limit is undecided, which is not "different".
"""

import atexit
import contextlib
import contextvars
import json
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from typing import TextIO

from mathqwen.errors import UserError

TIME_LIMIT = 5.0  # CPU seconds for one comparison
AGAIN = 3  # times as long for an undecided one that is asked again
HANGING = 600.0  # seconds of the clock after which a process that uses no CPU time is given up, as undecided
START_LIMIT = 120.0  # seconds for the process to import SymPy on a busy machine
_PROF = getattr(signal, 'SIGPROF', signal.SIGTERM)  # what ends a process at its limit of CPU time
_WORKER = pathlib.Path(__file__).with_name('symbolic_worker.py')


_patience = contextvars.ContextVar('patience', default=1)  # what limits are multiplied by
_alone = threading.Lock()


@contextlib.contextmanager
def asking_again():
  """Comparisons inside have AGAIN times the limit, and one thread at a time asks them."""
  with _alone:
    token = _patience.set(AGAIN)
    try:
      yield
    finally:
      _patience.reset(token)


class Comparer:
  """Asks one worker process; restarts it after it ended. Safe to use from several threads."""

  def __init__(self, time_limit: float = TIME_LIMIT):
    """time_limit: CPU seconds for one comparison, not counting the start of the process."""
    self.time_limit = time_limit
    self.starts = 0  # how many processes were started so far
    self._process: subprocess.Popen | None = None
    self._answers: queue.Queue | None = None  # replies of the process; None when it has ended
    self._lock = threading.Lock()

  def equal(self, gold: str, answer: str, test: str = 'math-verify') -> tuple[bool | None, str]:
    """Whether `answer` equals `gold`, and how that was found; None when a limit was reached: undecided.

    test: 'math-verify'; 'mathematics' (equal values at several points, else math-verify); or 'difference' (SymPy finds
    that the difference is zero). UserError when math-verify is not installed.
    """
    limit = self.time_limit * _patience.get()
    question = json.dumps({'gold': gold, 'answer': answer, 'test': test, 'seconds': limit}) + '\n'
    with self._lock:
      # If the process was killed from outside, that says nothing about this answer, so ask a second process.
      for _ in range(2):
        if self._process is None or self._process.poll() is not None:
          self._start()
        process = self._process
        try:
          reply = self._ask(question, limit + HANGING)
        except queue.Empty:
          return None, f'undecided: no reply in {limit + HANGING:g} s'
        if reply is not None:
          if reply['equal'] is None:
            return None, f'undecided: {reply["why"]}'
          return reply['equal'], f'{"equal" if reply["equal"] else "different"} by {test}'
        if process.returncode == -_PROF:
          return None, f'undecided in {limit:g} CPU seconds'
      return None, f'undecided: the process of {test} ended twice'

  def close(self) -> None:
    """Ends the process. The next comparison starts another."""
    with self._lock:
      self._stop()

  def _ask(self, question: str, seconds: float) -> dict | None:
    """The reply, or None when the process has ended. queue.Empty when the reply is late."""
    reply = None
    try:
      self._process.stdin.write(question)
      self._process.stdin.flush()
      reply = self._answers.get(timeout=seconds)
      if reply is None:  # its output is closed: it ends by itself, and its status says why
        with contextlib.suppress(subprocess.TimeoutExpired):
          self._process.wait(timeout=HANGING)
    except BrokenPipeError:
      pass
    finally:
      if reply is None:  # also after Ctrl-C: a late reply must not be taken for the reply to the next question
        self._stop()
    return reply

  def _start(self):
    """Starts the process and waits until it is ready. UserError: when it cannot import math-verify."""
    self._stop()
    self.starts += 1
    self._process = subprocess.Popen(
      # -P: do not put the script's folder on the path, where `rule`, `values` and others would hide other modules.
      [sys.executable, '-P', str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      encoding='utf-8',
    )
    self._answers = queue.Queue()
    threading.Thread(target=_pass_on_replies, args=(self._process.stdout, self._answers), daemon=True).start()

    # The first line says that the imports are done, or which one failed.
    greeting = None
    try:
      with contextlib.suppress(queue.Empty):
        greeting = self._answers.get(timeout=START_LIMIT)
    finally:
      if greeting is None or 'ready' not in greeting:  # also after Ctrl-C: it must not be taken for a reply
        self._stop()
    if self._process is None:
      why = (greeting or {}).get('missing', f'its process did not start in {START_LIMIT:g} s')
      raise UserError(f'cannot compare answers symbolically: {why}; install it with: pip install math-verify')

  def _stop(self):
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      with contextlib.suppress(BrokenPipeError):  # closing flushes what the process did not read
        self._process.stdin.close()
      self._process = None


def _pass_on_replies(stream: TextIO, answers: queue.Queue):
  """Puts each reply of the process on the queue, then None when the process has ended."""
  with stream:
    for line in stream:
      answers.put(json.loads(line))
  answers.put(None)


class ComparerPool:
  """A `Comparer` for each thread that asks at the same time. Each comparison has its own time limit."""

  def __init__(self, time_limit: float = TIME_LIMIT):
    """time_limit: CPU seconds for one comparison."""
    self.time_limit = time_limit
    self._idle: list[Comparer] = []  # append and pop are atomic, so threads share the list without a lock

  def equal(self, gold: str, answer: str, test: str = 'math-verify') -> tuple[bool | None, str]:
    """As `Comparer.equal`."""
    try:
      comparer = self._idle.pop()
    except IndexError:
      comparer = Comparer(self.time_limit)
    try:
      return comparer.equal(gold, answer, test)
    finally:
      self._idle.append(comparer)

  def close(self) -> None:
    """Ends the processes that are idle."""
    while self._idle:
      self._idle.pop().close()


_shared = ComparerPool()
atexit.register(_shared.close)


def equal(gold: str, answer: str, test: str = 'math-verify') -> tuple[bool | None, str]:
  """As `Comparer.equal`, by the processes that this interpreter shares. They end with it."""
  return _shared.equal(gold, answer, test)
