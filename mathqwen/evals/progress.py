"""The line that shows how far an evaluation is."""

import time
from collections.abc import Collection

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
  """`NAME ━━━━ 310/1319 STATE 0:04:06` on standard error."""

  def __init__(self, name: str, total: int, done: int, show: bool):
    self._progress = Progress(
      TextColumn('{task.description}'),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn('{task.fields[state]}'),
      TimeRemainingColumn(),
      console=Console(stderr=True),
      disable=not show,
    )
    self._task = self._progress.add_task(name, total=total, completed=done, state='')

  def advance(self, state: str | None = None) -> None:
    """One more is done. state: what to show beside the count; None leaves it."""
    self._progress.update(self._task, advance=1, **({} if state is None else {'state': state}))

  def update(self, state: str) -> None:
    """Shows another state."""
    self._progress.update(self._task, state=state)

  def __enter__(self):
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()


class Bar(ProgressLine):
  """`gsm8k ━━━━ 310/1319 62.3% right 4.1 problems/s 0:04:06` on standard error."""

  def __init__(self, name: str, total: int, done: Collection[dict], show: bool):
    """done: the records that an earlier run left; they count for the accuracy, but not for the speed."""
    super().__init__(name, total, len(done), show)
    self._correct = sum(record['correct'] for record in done)
    self._done = len(done)
    self._new = 0
    self._start = time.monotonic()

  def count(self, correct: bool) -> None:
    """One more problem is answered."""
    self._correct += correct
    self._done += 1
    self._new += 1
    speed = self._new / max(time.monotonic() - self._start, 1e-9)
    self.advance(f'{self._correct / self._done:.1%} right  {speed:.1f} problems/s')
