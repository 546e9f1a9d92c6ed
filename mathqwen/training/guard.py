"""What stands around a run: signals, the owner's lock of its workdir, and the watchdog."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from mathqwen import files
from mathqwen.config import Experiment
from mathqwen.hardware import hosts
from mathqwen.observe.watchdog import Watchdog
from mathqwen.storage import workdir as workdirs
from mathqwen.training import stops

_current: 'Guard | None' = None  # a process trains one run at a time


@dataclasses.dataclass(frozen=True)
class Guard:
  """What `guarded` yields."""

  stop: stops.Stops
  lock: files.Lock  # of the workdir; on host 0 alone it is a real one
  watchdog: Watchdog


@contextlib.contextmanager
def guarded(workdir: str, experiment: Experiment) -> Iterator[Guard]:
  """Makes this run the owner of `workdir`, before anything there is read. Inside another one, it is the same.

  UserError: when another run writes there, the directory cannot be written, or the hosts do not share it.
  """
  global _current
  if _current is not None:
    yield _current
    return
  train = experiment.train
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(stops.watching())
    lock = files.Lock()
    if jax.process_index() == 0:
      with workdirs.explained(workdir):
        lock = stack.enter_context(files.locked(files.path(workdir), 'training run', 'another --workdir'))
    hosts.gather(None)  # the others go on once host 0 owns it; when it is refused, they end with it
    workdirs.check_shared(workdir)
    watchdog = stack.enter_context(Watchdog(workdir, train.hang_minutes, train.compile_minutes))
    _current = Guard(stop, lock, watchdog)
    try:
      yield _current
    finally:
      _current = None
