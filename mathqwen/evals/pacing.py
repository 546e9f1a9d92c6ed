"""When requests to a server leave, and when no more of them should. Threads share one of each."""

import threading
import time

from mathqwen.evals.replies import Answer, Failure

_GIVE_UP = 8  # consecutive problems without an answer, after which no more are asked


class StopCriterion:
  """Decides whether more problems are worth asking. Threads share one.

  Before the first answer: stops after a failure that affects all problems, or when the first `_GIVE_UP` problems have
  all failed. Later: stops after a failure that affects all and that no retry helps, or after `_GIVE_UP` retryable
  failures with no answer in between.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._answered = 0
    self._last_answer = 0.0  # time
    self._first_failed = 0  # of the first _GIVE_UP problems
    self._failed_since = 0  # retryable failures of problems that were started after the last answer

  def keep_asking(self, position: int, started: float, result: Answer | Failure) -> bool:
    """After the problem at that position, which was first asked at the time `started`, ended with `result`."""
    with self._lock:
      if isinstance(result, Answer):
        self._answered += 1
        self._last_answer = time.monotonic()
        self._failed_since = 0
        return True

      if position < _GIVE_UP:
        self._first_failed += 1
      # The tries of a problem that was started before the last answer may have failed before it, so they say nothing
      # about the server since then.
      if result.retryable and started > self._last_answer:
        self._failed_since += 1
      if not self._answered:
        return not result.affects_all and self._first_failed < _GIVE_UP
      hopeless = result.affects_all and not result.retryable
      return not hopeless and self._failed_since < _GIVE_UP


class Gate:
  """When the next request may leave. All threads share one rate, and all wait when the server asks for a pause."""

  def __init__(self, per_minute: float | None):
    self._interval = 60 / per_minute if per_minute else 0.0
    self._lock = threading.Lock()
    self._next = 0.0

  def pause(self, seconds: float) -> None:
    """Nothing leaves for so many seconds."""
    with self._lock:
      self._next = max(self._next, time.monotonic() + seconds)

  def take_turn(self) -> float:
    """Reserves the next turn; the seconds until then."""
    with self._lock:
      now = time.monotonic()
      turn = max(now, self._next)
      if self._interval:
        self._next = turn + self._interval
    return turn - now
