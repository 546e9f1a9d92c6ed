"""What a run reports while it runs: progress on the terminal, metrics.jsonl and TensorBoard files."""

import json
import os
import pathlib
import re
import resource
import socket
import sys
import time
from typing import Self

import rich.console
import rich.progress

from mathqwen import files, strict_json
from mathqwen.errors import report
from mathqwen.observe import tensorboard

SYNC_SECONDS = 60  # between two uploads of a growing file to an object store


def peak_rss_bytes() -> int:
  """The most resident memory that this process has held, in bytes."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():  # getrusage would also count the parent process, as it was at the fork
    return int(re.search(r'VmHWM:\s*(\d+) kB', status.read_text()).group(1)) * 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024  # macOS counts bytes, other systems KiB


class Progress:
  """Progress of a run on standard error: a bar on a terminal, plain lines elsewhere (log files, notebooks).

  train 120/500 loss 0.4312  18,204 tokens/s 3:10 left
  """

  def __init__(self, label: str, total: int, start: int = 0, every: float = 10.0):
    """total: steps of the run, of which `start` were done earlier. every: seconds between plain lines."""
    self._label = label
    self._total = total
    self._start = start
    self._every = every
    self._first: tuple[float, int] | None = None  # time and step of the first update after `start`
    self._last_line = -float('inf')
    self._console = rich.console.Console(stderr=True)
    self._bar = None
    if self._console.is_terminal:
      self._bar = self._make_bar()
      self._task = self._bar.add_task(label, total=total, completed=start, text='')

  def _make_bar(self) -> rich.progress.Progress:
    return rich.progress.Progress(
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn('{task.fields[text]}'),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TextColumn('left'),
      rich.progress.TimeRemainingColumn(),  # from the second update on, like `_time_left`
      console=self._console,
    )

  def update(self, done: int, text: str):
    """Shows that `done` steps were launched, and `text` next to the count."""
    if self._bar is not None:
      self._bar.update(self._task, completed=done, text=text)
      return
    now = time.monotonic()
    left = self._time_left(done, now)
    if now - self._last_line >= self._every or done == self._total:
      self._last_line = now
      words = [f'{self._label} {done}/{self._total}', text, left]
      report(' '.join(word for word in words if word))

  def _time_left(self, done: int, now: float) -> str:
    """'3:10 left', or '' while no speed is known.

    The speed is measured from the first launched step on: the time before it went into compiling, which does not
    happen again.
    """
    if self._first is None:
      if done > self._start:
        self._first = (now, done)
      return ''
    since, steps_then = self._first
    if done == steps_then:
      return ''
    seconds_per_step = (now - since) / (done - steps_then)
    return f'{_clock((self._total - done) * seconds_per_step)} left'

  def note(self, text: str):
    """Prints a separate line above the bar."""
    if self._bar is not None:
      self._bar.console.print(text, highlight=False, markup=False)
    else:
      report(text)

  def __enter__(self) -> Self:
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.stop()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class MetricsWriter:
  """Writes metrics.jsonl and TensorBoard's event files of a workdir.

  {"step": 10, "loss": 0.4312, "learning_rate": 2e-05, ...}     one object per line

  A resumed run first drops the lines of steps after its checkpoint, because it takes these steps again.
  """

  def __init__(self, workdir: str, resume_step: int, primary: bool = True):
    """resume_step: the checkpoint's step, 0 for a new run. primary: whether this host writes; only one may."""
    self.last: dict = {}  # newest value of each name up to resume_step
    self._lines: AppendedFile | None = None
    self._events: AppendedFile | None = None
    if not primary:
      return

    path = files.path(workdir) / 'metrics.jsonl'
    kept = []
    for values, line in read_lines(path):
      if values['step'] <= resume_step:
        kept.append(line + '\n')
        self.last |= values

    folder = files.path(workdir) / 'tensorboard'
    folder.mkdir(parents=True, exist_ok=True)
    remote = files.is_remote(workdir)
    self._lines = AppendedFile(path, ''.join(kept).encode(), remote)
    events = folder / f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    self._events = AppendedFile(events, tensorboard.header() + tensorboard.restart(resume_step + 1), remote)

  def write(self, step: int, values: dict[str, float | None]):
    """Appends one line; it may hold any names. Numbers that are not finite become null."""
    if self._lines is not None:
      self._lines.append((strict_json.dumps({'step': step, **values}) + '\n').encode())
      self._events.append(tensorboard.scalars(step, values))

  def sync(self):
    """Makes all lines readable for other processes. On a local disk `write` already does."""
    if self._lines is not None:
      self._lines.sync()
      self._events.sync()

  def close(self):
    """Syncs and closes both files."""
    self.sync()
    if self._lines is not None:
      self._lines.close()
      self._events.close()


def read_lines(path: files.AnyPath) -> list[tuple[dict, str]]:
  """(object, line) for each line of a file such as metrics.jsonl; [] if there is no such file."""
  if not path.exists():
    return []
  found = []
  for line in path.read_text().splitlines():
    try:
      values = json.loads(line)
      step = values['step']
    except (ValueError, KeyError, TypeError):
      break  # a killed run left half a line; lines after it are from later steps
    if not isinstance(step, int):
      break
    found.append((values, line))
  return found


class AppendedFile:
  """A file that grows. Object stores cannot append, so there the whole file is uploaded, at most once a minute."""

  def __init__(self, path: files.AnyPath, start: bytes, remote: bool):
    """Replaces the file at `path` by one that holds `start`. remote: `path` is a URL such as gs://."""
    self._path = path
    self._parts = [start]  # the whole content of a remote file
    self._file = None
    if remote:
      self.sync()
    else:
      files.write_atomically(path, start)
      self._file = open(path, 'ab')  # noqa: SIM115 - closed by close()

  def append(self, data: bytes):
    """Adds `data`: readable at once on a local disk, within about a minute of further appends on an object store."""
    if self._file is not None:
      self._file.write(data)
      self._file.flush()
      return
    self._parts.append(data)
    if time.monotonic() - self._synced > SYNC_SECONDS:
      self.sync()

  def sync(self):
    """Uploads a remote file."""
    if self._file is None:
      self._path.write_bytes(b''.join(self._parts))
      self._synced = time.monotonic()

  def close(self):
    """Closes a local file; a remote one needs `sync`."""
    if self._file is not None:
      self._file.close()
