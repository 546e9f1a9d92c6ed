"""`mathqwen train --profile`: a trace of a few steps, to be read with xprof."""

import pathlib
import tempfile
from typing import Self

import jax

from mathqwen import files
from mathqwen.errors import UserError

SKIPPED = 2  # a process's first steps, which still fill caches


def check(count: int, steps: int):
  """Refuses to trace `count` steps of a run that has `steps` left.

  UserError: when `count` is below 1, or the run is too short for `count` steps after the skipped ones.
  """
  if count < 1:
    raise UserError(f'--profile {count}: give the number of steps to trace, 1 or more')
  if count + SKIPPED > steps:
    raise UserError(
      f'--profile {count} needs {count + SKIPPED} steps, as the first {SKIPPED} are not traced, and this run has '
      f'{steps} to go: trace fewer steps or raise train.steps'
    )


class Profile:
  """Traces some steps of a run into WORKDIR/profile. Each host writes its own file, all into one session.

  with Profile(workdir, count=3, start=0) as profile:     profile.first, profile.last == 3, 5
    steps 1 and 2 | begin() | steps 3, 4 and 5 | end()
  """

  def __init__(self, workdir: str, count: int, start: int):
    """count: steps to trace, 0 for none. start: the step from which this process continues, 0 for a new run."""
    self.path = files.join(workdir, 'profile')
    self.first: int | None = None  # first and last traced step, counted as in metrics.jsonl
    self.last: int | None = None
    if count:
      self.first = start + SKIPPED + 1
      self.last = start + SKIPPED + count
    self._session = f'steps_{self.first}_to_{self.last}'
    self._folder: tempfile.TemporaryDirectory | None = None  # while tracing

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_):
    if self._folder is not None:  # the run stopped while a trace was on
      jax.profiler.stop_trace()
      self._folder.cleanup()

  def begin(self):
    """Starts the trace; call it before the step `first`."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing every Python call writes hundreds of megabytes and slows the steps
    self._folder = tempfile.TemporaryDirectory()  # the profiler itself cannot write to gs://
    jax.profiler.start_trace(self._folder.name, profiler_options=options)

  def end(self) -> str:
    """Stops and writes the trace; call it after the step `last`. Returns a line that says how to read the trace."""
    jax.profiler.stop_trace()
    sessions = pathlib.Path('plugins') / 'profile'
    target = files.path(self.path) / sessions / self._session
    target.mkdir(parents=True, exist_ok=True)
    host = f'{jax.process_index()}-' if jax.process_count() > 1 else ''  # processes on one machine share its name
    # The profiler names its only session after the time, which differs between hosts.
    (written,) = (pathlib.Path(self._folder.name) / sessions).iterdir()
    for file in written.iterdir():
      (target / f'{host}{file.name}').write_bytes(file.read_bytes())
    self._folder.cleanup()
    self._folder = None
    return f'trace of steps {self.first} to {self.last}: pip install xprof && xprof --logdir={self.path}'
