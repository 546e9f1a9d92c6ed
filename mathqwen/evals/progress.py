"""The line that shows how an evaluation goes."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
  """`gsm8k ━━━━ 310/1319 62.3% right 4.1 problems/s 0:04:06` on standard error."""

  def __init__(self, name: str, total: int, done, show: bool):
    self._right, self._seen = sum(record['correct'] for record in done), len(done)
    self._start, self._new = time.monotonic(), 0
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[state]}')
    self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show)
    self._task = self._progress.add_task(name, total=total, completed=self._seen, state='')

  def advance(self, correct: bool):
    self._right, self._seen, self._new = self._right + correct, self._seen + 1, self._new + 1
    speed = self._new / max(time.monotonic() - self._start, 1e-9)
    state = f'{self._right / self._seen:.1%} right  {speed:.1f} problems/s'
    self._progress.update(self._task, advance=1, state=state)

  def __enter__(self):
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()
