"""Numbers of a run: on the terminal, in metrics.jsonl and in TensorBoard files. Losses are nats per loss token."""

import json
import os
import pathlib
import re
import resource
import socket
import sys
import time

import rich.console
import rich.progress
from etils import epath

from mathqwen.files import write_atomically
from mathqwen.observe import tensorboard


def peak_rss_bytes() -> int:
  """The most memory that this process has held."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():  # getrusage would count that of the process which started this one, too
    return int(re.search(r'VmHWM:\s*(\d+) kB', status.read_text()).group(1)) * 1024
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
      words = [f'{self._label} {done}/{self._total}', text, left]
      print(' '.join(word for word in words if word), file=sys.stderr, flush=True)

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

  def __init__(self, workdir: str, resume_step: int, primary: bool = True):
    """primary: whether this host is the one that writes."""
    self.last: dict = {}  # newest value of each name up to resume_step
    self._lines = self._board = None
    if not primary:
      return
    path = epath.Path(workdir) / 'metrics.jsonl'
    kept = []
    if path.exists():
      for line in path.read_text().splitlines():
        try:
          values = json.loads(line)
          if values['step'] <= resume_step:
            kept.append(line + '\n')
            self.last |= values
        except (ValueError, KeyError, TypeError):
          break  # the half line of a killed run; what follows it would be later still
    folder = epath.Path(workdir) / 'tensorboard'
    folder.mkdir(parents=True, exist_ok=True)
    remote = '://' in str(workdir)
    self._lines = Appended(path, ''.join(kept).encode(), remote)
    events = folder / f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    self._board = Appended(events, tensorboard.header() + tensorboard.restart(resume_step + 1), remote)

  def write(self, step: int, values: dict[str, float]):
    if self._lines is not None:
      self._lines.append((json.dumps({'step': step, **values}) + '\n').encode())
      self._board.append(tensorboard.scalars(step, values))

  def sync(self):
    """All that was written is to be read by others; on a local disk it is as soon as `write` returns."""
    if self._lines is not None:
      self._lines.sync()
      self._board.sync()

  def close(self):
    self.sync()
    if self._lines is not None:
      self._lines.close()
      self._board.close()


class Appended:
  """A file that grows. Object stores cannot append: there the whole is written again, at most once a minute."""

  def __init__(self, path, start: bytes, remote: bool):
    """Replaces what is at `path` by `start`."""
    self._path, self._parts, self._file = path, [start], None
    if remote:
      self.sync()
    else:
      write_atomically(pathlib.Path(path), start)
      self._file = open(path, 'ab')  # noqa: SIM115 - closed by close()

  def append(self, data: bytes):
    if self._file is not None:
      self._file.write(data)
      self._file.flush()
      return
    self._parts.append(data)
    if time.monotonic() - self._synced > 60:
      self.sync()

  def sync(self):
    if self._file is None:
      self._path.write_bytes(b''.join(self._parts))
      self._synced = time.monotonic()

  def close(self):
    if self._file is not None:
      self._file.close()
