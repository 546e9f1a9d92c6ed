"""Functions timed in turn, each in a process of its own.

In turn, because a shared machine is fast at one moment and slow at the next: this way both sides get the same moments.
In processes, because that is how each side's users run it. In one process, one side would reuse the memory that the
other has freed; the kernel zeroes fresh memory, which is a visible part of torch's training step on a CPU.
"""

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

from mathqwen.errors import UserError, report
from mathqwen.observe.metrics import peak_rss_bytes

Timing = tuple[float, float, int]  # seconds, CPU seconds of the process, its peak memory in bytes


def timed(run: Callable[[], Any]) -> Timing:
  """Calls `run` once and times it, in this process."""
  started, cpu_started = time.perf_counter(), time.process_time()
  run()
  return time.perf_counter() - started, time.process_time() - cpu_started, peak_rss_bytes()


class Elsewhere:
  """When called, times the function that `make()` returns, in a process of its own that lives as long as this object.

  UserError: what `make` raises, or when the process has ended.
  """

  def __init__(self, make: Callable[[], Callable[[], Any]]):
    context = multiprocessing.get_context('spawn')
    self.pipe, other_end = context.Pipe()
    self.process = context.Process(target=_serve, args=(other_end, make), daemon=True)
    self.process.start()
    other_end.close()
    self._receive()

  def __call__(self) -> Timing:
    try:
      self.pipe.send('again')
    except OSError:  # the process has closed its end
      self._raise_ended()
    return self._receive()

  def _receive(self):
    try:
      answer = self.pipe.recv()
    except (EOFError, OSError):
      self._raise_ended()
    if isinstance(answer, UserError):
      raise answer
    return answer

  def _raise_ended(self):
    self.process.join()
    raise UserError(
      f'the other measured process ended with exit code {self.process.exitcode} (-9: killed, perhaps for '
      'memory): its own messages are above'
    ) from None


def _serve(pipe, make: Callable[[], Callable[[], Any]]):
  """The other process: times calls until the pipe is closed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that asks, and that closes the pipe
  try:
    run = make()
  except UserError as error:
    pipe.send(error)
    return
  pipe.send('ready')
  try:
    while pipe.recv():
      pipe.send(timed(run))
  except EOFError:
    pass  # the process that asks has ended


def take_turns(sides: dict[str, Callable[[], Timing]], turns: int, tokens: int) -> dict[str, dict[str, float]]:
  """Medians over `turns` calls of each side, which alternate. The first call of each, which compiles, is left out.

  sides: {name: a function that times itself}. tokens: of one call.
  """
  timings = {name: [] for name in sides}
  for turn in range(turns + 1):
    for name, run in sides.items():
      timing = run()
      if turn > 0:
        timings[name].append(timing)
        seconds = timing[0]
        report(f'{name} {turn}/{turns}: {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s')
  return {name: _figures(rows, tokens) for name, rows in timings.items()}


def _figures(timings: list[Timing], tokens: int) -> dict[str, float]:
  seconds = statistics.median(seconds for seconds, _, _ in timings)
  return {
    'tokens_per_second': tokens / seconds,
    'step_seconds': seconds,
    'cpu_seconds_per_step': statistics.median(cpu for _, cpu, _ in timings),
    'peak_rss_bytes': timings[-1][2],
  }
