"""`train --profile`: a trace of a few steps for xprof."""

import pathlib
import tempfile

import jax
from etils import epath

from mathqwen.errors import UserError

SKIPPED = 2  # first steps of a process, in which caches fill


def check(count: int, steps: int):
  """Refuses to profile `count` of the `steps` that a run still has."""
  if count < 1:
    raise UserError(f'--profile {count}: give the number of steps to trace, 1 or more')
  if count + SKIPPED > steps:
    raise UserError(
      f'--profile {count} needs {count + SKIPPED} steps, as the first {SKIPPED} are not traced, and this run has '
      f'{steps} to go: trace fewer steps or raise train.steps'
    )


class Profile:
  """Traces `count` steps (0: none) of a run that goes on from step `start`; each host its own, into one session."""

  def __init__(self, workdir: str, count: int, start: int):
    self.path = str(epath.Path(workdir) / 'profile')
    self.first = self.last = None  # steps as in metrics.jsonl
    if count:
      self.first, self.last = start + SKIPPED + 1, start + SKIPPED + count
    self._session = f'steps_{self.first}_to_{self.last}'
    self._folder = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._folder is not None:  # the run stopped within
      jax.profiler.stop_trace()
      self._folder.cleanup()

  def begin(self):
    """The trace begins with the next step."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call: hundreds of megabytes, and slower steps
    options.session_id = self._session
    self._folder = tempfile.TemporaryDirectory()  # the profiler's own writer knows no gs://
    jax.profiler.start_trace(self._folder.name, profiler_options=options)

  def end(self) -> str:
    """Writes the trace. Returns a line that says how to look at it."""
    jax.profiler.stop_trace()
    session = pathlib.Path('plugins') / 'profile' / self._session
    target = epath.Path(self.path) / session
    target.mkdir(parents=True, exist_ok=True)
    host = f'{jax.process_index()}-' if jax.process_count() > 1 else ''  # two processes may share a machine's name
    for file in (pathlib.Path(self._folder.name) / session).iterdir():
      (target / f'{host}{file.name}').write_bytes(file.read_bytes())
    self._folder.cleanup()
    self._folder = None
    return f'trace of steps {self.first} to {self.last}: pip install xprof && xprof --logdir={self.path}'
