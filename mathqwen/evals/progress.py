"""The line that shows how far an evaluation is."""

import time
from collections.abc import Collection

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
  """`gsm8k ━━━━ 310/1319 62.3% right 4.1 problems/s 0:04:06` on standard error."""

  def __init__(self, name: str, total: int, done: Collection[dict], show: bool):
    """done: the records that an earlier run left; they count for the accuracy, but not for the speed."""
    self._correct = sum(record['correct'] for record in done)
    self._done = len(done)
    self._new = 0
    self._start = time.monotonic()
    self._progress = Progress(
      TextColumn('{task.description}'),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn('{task.fields[state]}'),
      TimeRemainingColumn(),
      console=Console(stderr=True),
      disable=not show,
    )
    self._task = self._progress.add_task(name, total=total, completed=self._done, state='')

  def advance(self, correct: bool) -> None:
    """One more problem is answered."""
    self._correct += correct
    self._done += 1
    self._new += 1
    speed = self._new / max(time.monotonic() - self._start, 1e-9)
    state = f'{self._correct / self._done:.1%} right  {speed:.1f} problems/s'
    self._progress.update(self._task, advance=1, state=state)

  def __enter__(self):
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()
