"""What a run reports while it runs: progress on the terminal, metrics.jsonl and TensorBoard files."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import socket
import sys
import time
from collections.abc import Iterable
from typing import Self

import rich.console
import rich.progress

from mathqwen import files, strict_json
from mathqwen.errors import report
from mathqwen.observe import tensorboard

_EVENTS = 'events.out.tfevents'  # how TensorBoard's files begin
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
    lines = read_lines(path)
    lines.report_damage(path)
    kept = lines.up_to(resume_step, path)
    for values in kept:
      self.last |= {name: value for name, value in values.items() if _is_number(value)}

    folder = files.path(workdir) / 'tensorboard'
    folder.mkdir(parents=True, exist_ok=True)
    remote = files.is_remote(workdir)
    self._lines = AppendedFile(path, as_lines(kept), remote)
    events = folder / f'{_EVENTS}.{_next_time(folder)}.{socket.gethostname()}.{os.getpid()}'
    self._events = AppendedFile(events, tensorboard.header() + tensorboard.restart(resume_step + 1), remote)

  def write(self, step: int, values: dict[str, float | None]):
    """Appends one line; it may hold any names. Numbers that are not finite become null."""
    if self._lines is not None:
      self._lines.append(as_lines([{'step': step, **values}]))
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


def _is_number(value: object) -> bool:
  return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _next_time(folder: files.AnyPath) -> int:
  """The time that a new file of events is named after: now, or later than every file that is there.

  TensorBoard reads the files in the order of their names, and none of them again. So a run that goes on after a kill
  needs a later name, also within the same second and with a clock that was set back.
  """
  earlier = [re.match(rf'{re.escape(_EVENTS)}\.(\d+)\.', file.name) for file in folder.iterdir()]
  return max([int(time.time()), *(int(match.group(1)) + 1 for match in earlier if match)])


@dataclasses.dataclass(frozen=True)
class Lines:
  """What a file such as metrics.jsonl holds."""

  values: list[dict]  # of each whole line; its `step` is an int
  damaged: list[int]  # the numbers of all other lines, counted from 1

  def report_damage(self, path: files.AnyPath) -> None:
    """Says which lines are dropped, if any is."""
    if self.damaged:
      numbers = ', '.join(map(str, self.damaged[:5])) + (', ...' if len(self.damaged) > 5 else '')
      count = 'a damaged line' if len(self.damaged) == 1 else f'{len(self.damaged):,} damaged lines'
      report(f'{path}: left out {count} ({numbers}); the others are kept')

  def up_to(self, step: int, path: files.AnyPath) -> list[dict]:
    """The values up to a step, that of a checkpoint. Says so where the last of them are missing."""
    kept = [values for values in self.values if values['step'] <= step]
    last = max((values['step'] for values in kept), default=0)
    if last < step:
      report(f'{path}: the lines of steps {last + 1} to {step} are missing, and the checkpoint is of step {step}')
    return kept


def as_lines(values: Iterable[dict]) -> bytes:
  """The bytes of a file with one line for each of `values`."""
  return ''.join(strict_json.dumps(each) + '\n' for each in values).encode()


def read_lines(path: files.AnyPath, fields: tuple[tuple[str, type], ...] = (('step', int),)) -> Lines:
  """The lines of a file such as metrics.jsonl; none if there is no such file.

  fields: (name, type) of what each line must have. A killed run leaves half a line, a bad disk any bytes. Numbers that
  are not finite, which earlier versions wrote as bare words, are read as None.
  """
  found = Lines([], [])
  if not path.exists():
    return found
  for number, line in enumerate(path.read_bytes().split(b'\n'), start=1):
    if not line.strip():
      continue
    try:
      values = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):  # not UTF-8 is a ValueError too
      values = None
    if isinstance(values, dict) and all(type(values.get(name)) is kind for name, kind in fields):
      found.values.append(values)
    else:
      found.damaged.append(number)
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
