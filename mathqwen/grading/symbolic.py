"""Symbolic comparison under a time limit: math-verify runs in a persistent process that is killed when it is late.

A signal cannot stop a parser that is inside one long integer operation (`9^{9^9}`), and a thread cannot be killed;
a process can. The next question starts a fresh one (about a second).
"""

import atexit
import contextlib
import json
import pathlib
import queue
import subprocess
import sys
import threading
import time

from mathqwen.errors import UserError

TIME_LIMIT = 5.0  # seconds for one comparison
START_LIMIT = 120.0  # seconds for the process to import SymPy on a busy machine
_WORKER = pathlib.Path(__file__).with_name('symbolic_worker.py')


class Comparer:
  """Asks one worker process; restarts it after a time-out or a crash. Safe to use from several threads."""

  def __init__(self, time_limit: float = TIME_LIMIT):
    self.time_limit = time_limit
    self.starts = 0
    self._process = None
    self._answers = None
    self._lock = threading.Lock()

  def equal(self, gold: str, answer: str, test: str = 'math-verify') -> tuple[bool, str]:
    """Whether `answer` equals `gold`, and how that was found; never takes longer than the time limit once started."""
    question = json.dumps({'gold': gold, 'answer': answer, 'test': test}) + '\n'
    left = self.time_limit
    with self._lock:
      for _ in range(2):  # a process that something else killed is no verdict on this answer; a second one is
        if self._process is None or self._process.poll() is not None:
          self._start()
        start = time.monotonic()
        try:
          reply = self._ask(question, left)
        except queue.Empty:
          return False, f'not decided in {self.time_limit:g} s'
        if reply is not None:
          return (True, f'equal by {test}') if reply['equal'] else (False, f'different by {test}')
        left = max(left - (time.monotonic() - start), 0)
      return False, f'{test} could not read the answer'

  def _ask(self, question: str, seconds: float) -> dict | None:
    """The reply; None: the process has ended. queue.Empty when it is late."""
    reply = None
    try:
      self._process.stdin.write(question)
      self._process.stdin.flush()
      reply = self._answers.get(timeout=seconds)
    except BrokenPipeError:
      pass
    finally:
      if reply is None:  # also after Ctrl-C: a late answer must not be taken for the next question's
        self._stop()
    return reply

  def close(self):
    with self._lock:
      self._stop()

  def _start(self):
    self._stop()
    self.starts += 1
    # -P: mathqwen/evals must not become a place to import from.
    self._process = subprocess.Popen(
      [sys.executable, '-P', str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      encoding='utf-8',
    )
    self._answers = queue.Queue()
    threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
    hello = None
    try:
      with contextlib.suppress(queue.Empty):
        hello = self._answers.get(timeout=START_LIMIT)
    finally:
      if hello is None or 'ready' not in hello:  # also after Ctrl-C: it must not be taken for an answer
        self._stop()
    if self._process is None:
      why = (hello or {}).get('missing', f'no sign of life in {START_LIMIT:g} s')
      raise UserError(f'cannot compare answers symbolically: {why}; install it with: pip install math-verify')

  def _stop(self):
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      with contextlib.suppress(BrokenPipeError):  # what it had not read
        self._process.stdin.close()
      self._process = None


def _read(stream, answers: queue.Queue):
  with stream:
    for line in stream:
      answers.put(json.loads(line))
  answers.put(None)  # the process has ended


class Comparers:
  """As many processes as threads ask at a time; each question has its own time limit."""

  def __init__(self, time_limit: float = TIME_LIMIT):
    self.time_limit = time_limit
    self._idle: list[Comparer] = []

  def equal(self, gold: str, answer: str, test: str = 'math-verify') -> tuple[bool, str]:
    try:
      comparer = self._idle.pop()
    except IndexError:
      comparer = Comparer(self.time_limit)
    try:
      return comparer.equal(gold, answer, test)
    finally:
      self._idle.append(comparer)

  def close(self):
    while self._idle:
      self._idle.pop().close()


_shared = Comparers()
atexit.register(_shared.close)


def equal(gold: str, answer: str, test: str = 'math-verify') -> tuple[bool, str]:
  return _shared.equal(gold, answer, test)
