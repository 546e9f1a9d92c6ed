"""When a run is saved, and what happens when that fails.

Clocks decide when a checkpoint is written, never what it holds: one by the clock falls on a step at which a window of
the metrics ends anyway.
"""

import time
from collections.abc import Callable

from mathqwen.config import TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import hosts
from mathqwen.storage.checkpoint import Checkpoints, SaveFailed


class Saver:
  """Saves at set steps and times, over several hosts at the same ones.

  A save that fails stops nothing while there is an older checkpoint: it is reported, and tried again at the end of the
  next window of the metrics, and then at each step at which a checkpoint is due.
  """

  def __init__(self, checkpoints: Checkpoints, train: TrainConfig, report: Callable[[str], None]):
    """report: called with one line on every host when a save has failed."""
    self._checkpoints = checkpoints
    self._train = train
    self._report = report
    self._saved_at = time.monotonic()
    self._writing: int | None = None  # the step of the newest save, until it is known to be whole
    self._failures = 0  # in a row

  def due(self, step: int, evaluating: bool) -> bool:
    """Whether to save after this step, in which the run also evaluates or not. All hosts must call it."""
    train = self._train
    due = step % train.checkpoint_every == 0 or (evaluating and train.keep_best > 0)
    if step % train.log_every:
      return due
    seconds = time.monotonic() - self._saved_at
    by_clock = train.checkpoint_minutes > 0 and seconds >= 60 * train.checkpoint_minutes
    if self._writing is not None or train.checkpoint_minutes > 0:  # else there is nothing to agree on
      still_writing = self._writing is not None and self._checkpoints.is_writing()
      answers = hosts.gather([by_clock, still_writing])
      by_clock = answers[0][0]  # host 0's clock
      if self._writing is not None and not any(writing for _, writing in answers):
        self.wait()
    retry = self._writing is None and self._failures == 1
    return due or by_clock or retry

  def save(self, step: int, start: Callable[[], None], last: bool) -> None:
    """Starts to save `step`. Whether that went well may show only later.

    start: calls `Checkpoints.save`. last: the run ends here.
    UserError: when it fails, and there is no older checkpoint or the run ends.
    """
    self.wait()  # before: what is reported then is about the save before
    self._saved_at = time.monotonic()
    self._writing = step
    self._agree(start, last)

  def wait(self, last: bool = False) -> None:
    """Waits for the newest save. UserError: as `save`."""
    if self._writing is None:
      return
    if self._agree(self._checkpoints.wait, last):
      self._writing = None
      self._failures = 0

  def _agree(self, work: Callable[[], None], last: bool) -> bool:
    """Whether `work` has succeeded on all hosts; else reports why not, or raises it."""
    error = None
    try:
      work()
    except SaveFailed as failure:
      error = [str(failure), failure.what]
    failed = [each for each in hosts.gather(error) if each]
    if not failed:
      return True
    error, what = failed[0]
    step, self._writing = self._writing, None
    self._failures += 1
    self._checkpoints.reopen()
    older = self._checkpoints.latest
    if last or older is None:
      raise UserError(error)
    self._report(
      f'the checkpoint of step {step} was not written ({what}): the run goes on and will try again; '
      f'{self._checkpoints.path(older)} is whole'
    )
    return False
