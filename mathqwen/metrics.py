"""Numbers of a run: on the terminal, in metrics.jsonl and in TensorBoard files. Losses are nats per loss token."""

import json
import os
import pathlib
import resource
import sys
import time

import rich.console
import rich.progress
from tensorboardX import SummaryWriter


def peak_rss_bytes() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


class Progress:
  """A bar with loss, tokens/s and time left on a terminal's standard error; plain lines elsewhere (logs, notebooks)."""

  def __init__(self, label: str, total: int, start: int = 0, every: float = 10.0):
    self._console = rich.console.Console(stderr=True)
    self._label, self._total, self._every = label, total, every
    self._begun, self._start, self._last_line = time.monotonic(), start, -1e9
    self._bar = None
    if self._console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.fields[text]}'),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn('left'),
        rich.progress.TimeRemainingColumn(),
        console=self._console,
      )
      self._task = self._bar.add_task(label, total=total, completed=start, text='')
      self._bar.start()

  def update(self, done: int, text: str):
    if self._bar is not None:
      self._bar.update(self._task, completed=done, text=text)
      return
    now = time.monotonic()
    if now - self._last_line >= self._every or done == self._total:
      self._last_line = now
      rate = (done - self._start) / max(now - self._begun, 1e-9)
      left = f'{_clock((self._total - done) / rate)} left' if rate > 0 else ''
      print(f'{self._label} {done}/{self._total} {text} {left}'.rstrip(), file=sys.stderr, flush=True)

  def note(self, text: str):
    """A line of its own, above the bar."""
    if self._bar is not None:
      self._bar.console.print(text, highlight=False, markup=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.stop()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class Writer:
  """metrics.jsonl (an object a line, `step` first) and TensorBoard; a resumed run drops what is past its checkpoint."""

  def __init__(self, workdir: str, resume_step: int):
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    kept = []
    if self._path.exists():
      for line in self._path.read_text().splitlines():
        try:
          if json.loads(line)['step'] <= resume_step:
            kept.append(line + '\n')
        except (ValueError, KeyError):
          break  # the half line of a killed run; what follows it would be later still
    temporary = self._path.with_suffix('.tmp')
    temporary.write_text(''.join(kept))
    os.replace(temporary, self._path)
    self._file = self._path.open('a')
    self._board = SummaryWriter(str(pathlib.Path(workdir) / 'tensorboard'), purge_step=resume_step + 1)

  def write(self, step: int, values: dict[str, float]):
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self):
    self._file.close()
    self._board.close()
