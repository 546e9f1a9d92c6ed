"""Orbax checkpoints under WORKDIR/checkpoints/STEP: weights, optimizer state, position in the data, config, sessions.

Each has checksums of all that (`checksums.py`), which are compared when it is restored. A checkpoint that is damaged is
set aside, in WORKDIR/damaged/STEP, and the one before it is used. One that cannot be read just now, such as without the
permission, is left where it is, and the run ends.
"""

import contextlib
import dataclasses
import inspect
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mathqwen import files
from mathqwen.config import TrainConfig
from mathqwen.errors import Unreachable, UserError, report
from mathqwen.files import size_text
from mathqwen.hardware import hosts
from mathqwen.storage import checksums, reading

# Of the saves by the clock, so many are counted as multiples of `Keep.every`: nobody knows where they fall.
_BY_CLOCK = 2
# What to do about the checkpoints that a setting keeps.
_FEWER = {
  'train.keep_checkpoints': 'set train.keep_checkpoints=1',
  'train.keep_every': 'raise train.keep_every',
  'train.keep_best': 'lower train.keep_best',
}
_UNFINISHED = '.orbax-checkpoint-tmp'  # in the name of a folder that is being written, on a local disk


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which checkpoints are kept while saving."""

  newest: int
  every: int = 0  # all of which the step is a multiple of this; 0: none
  best: int = 0  # so many of the lowest evaluation loss

  def at_most(self, train: TrainConfig) -> dict[str, int]:
    """How many checkpoints are kept at the same time at the end of a run, by the setting that keeps them."""
    every = 0
    if self.every:
      saved = [train.checkpoint_every] + ([train.eval_every] if self.best else [])
      every = sum(train.steps // math.lcm(step, self.every) for step in saved)
      if train.checkpoint_minutes:
        every += min(_BY_CLOCK, train.steps // math.lcm(train.log_every, self.every))
    return {'train.keep_checkpoints': self.newest, 'train.keep_every': every, 'train.keep_best': self.best}


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint that was read, and the newer ones that were damaged."""

  step: int
  params: dict
  opt_state: Any
  data_state: dict
  damaged: dict[int, str]  # {step: where it is now}, newest first


class Checkpoints:
  """The checkpoints of one workdir. Saving is asynchronous; a step gets its name only when all of it is written."""

  def __init__(self, workdir: str, keep: Keep | None = None):
    """keep: which steps to keep while saving; None: for reading, and makes no directory."""
    self._workdir = files.path(files.absolute_text(workdir))
    self._folder = self._workdir / 'checkpoints'
    self._keep = keep
    self._losses: dict[int, float] = {}  # evaluation losses by step
    self._manager = None
    if keep is not None:
      if keep.best:
        self._losses = _evaluation_losses(self._folder)
      self._open()

  def _open(self):
    _ignore_abandoned_operations()
    options = ocp.CheckpointManagerOptions(create=True, preservation_policy=_Preservation(self._keep, self._losses))
    with files.explained(self._workdir):
      self._manager = ocp.CheckpointManager(epath.Path(str(self._folder)), options=options)

  @property
  def latest(self) -> int | None:
    """The newest step that is finished or being written."""
    return max(self._steps(), default=None)

  def _steps(self) -> list[int]:
    return reading.finished_steps(self._folder) if self._manager is None else list(self._manager.all_steps())

  def folder(self, step: int) -> files.AnyPath:
    """The directory of a step."""
    return self._folder / str(step)

  def path(self, step: int) -> str:
    """The directory of a step, as text."""
    return str(self.folder(step))

  # --- saving ---

  def save(
    self,
    step: int,
    params: dict,
    opt_state: Any,
    items: dict[str, Any],
    arrays: dict[str, dict] | None = None,
    tokenizer: dict[str, str] | None = None,
  ) -> None:
    """Starts writing. UserError: when that fails, possibly only in the next call or in `wait`.

    items: JSON by name. `restore` returns 'data'; 'evaluation', {'loss': ...} of this step, is for `Keep.best`.
    arrays: of `checksums.examine({'params': params, 'opt_state': opt_state})`; None computes them.
    tokenizer: `checksums.of_files` of its folder.
    """
    if arrays is None:
      _, arrays = checksums.examine({'params': params, 'opt_state': opt_state})
    if (loss := items.get('evaluation', {}).get('loss')) is not None:
      self._losses[step] = loss
    json_items = items | {checksums.ITEM: checksums.record(arrays, items, tokenizer or {})}
    with explain_failed_save(self._folder):
      self._manager.wait_until_finished()
      self._remove_unfinished()
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          opt_state=ocp.args.StandardSave(opt_state),
          **{name: ocp.args.JsonSave(value) for name, value in json_items.items()},
        ),
        force=True,  # whether to save has been decided
      )

  def is_writing(self) -> bool:
    """Whether this host is still busy with the newest save."""
    return self._manager.is_saving_in_progress()

  def bytes_there(self) -> int:
    """The bytes of all checkpoints, the one being written included."""
    return files.tree_bytes(self._folder)

  def wait(self) -> None:
    """Returns when everything is written. UserError: when the newest save failed."""
    with explain_failed_save(self._folder):
      self._manager.wait_until_finished()

  def reopen(self) -> None:
    """Forgets a save that failed. All hosts must call it."""
    with contextlib.suppress(Exception):  # the error that is known already
      self._manager.close()
    self._open()

  def close(self) -> None:
    """Waits for unfinished saves, and ends the manager's threads."""
    if self._manager is not None:
      self._manager.close()

  def _remove_unfinished(self) -> None:
    """Removes what saves that were cut off have left: a full disk needs the space."""
    if jax.process_index() != 0:
      return
    for path in self._folder.iterdir():
      is_step = path.name.isdecimal() and files.is_remote(path)
      if _UNFINISHED in path.name or (is_step and int(path.name) not in self._steps()):
        files.remove_tree(path)

  # --- reading ---

  def restore(self, step: int, params: dict, opt_state: Any) -> tuple[dict, Any, dict]:
    """(params, opt_state, data_state) of `step`, in the shapes, dtypes and shardings of the abstract trees given.

    UserError: when the checkpoint is damaged.
    """
    restored, damage = self._read(step, params, opt_state)
    if restored is None:
      raise UserError(reading.damage_text(self.folder(step), damage))
    return restored

  def restore_newest(self, params: dict, opt_state: Any, strict: bool = False) -> Restored | None:
    """The newest whole checkpoint, as `restore` gives it; None where there is none. All hosts must call it.

    Newer ones, which are damaged, are moved to WORKDIR/damaged.
    UserError: when all are damaged, or with `strict` when the newest is, or when one cannot be read just now.
    """
    # The list that decides whether a run is new, not Orbax's.
    found = [set(steps) for steps in hosts.gather(reading.finished_steps(self._folder))]
    on_all_hosts = set.intersection(*found)
    if not on_all_hosts and any(found):
      raise UserError(f'the hosts see different checkpoints in {self._folder}: give all of them the same --workdir')
    damages: dict[int, str] = {}
    for step in sorted(on_all_hosts, reverse=True):
      restored, damage = self._read(step, params, opt_state)
      if restored is not None:
        return Restored(step, *restored, self._set_aside(damages, step))
      damages[step] = damage
      if strict:
        break
    if damages:
      newest = max(damages)
      raise UserError(reading.damage_text(self.folder(newest), damages[newest], damaged=damages))
    return None

  def _read(self, step: int, params: dict, opt_state: Any) -> tuple[tuple[dict, Any, dict] | None, str]:
    """((params, opt_state, data_state), ''), or (None, what is damaged), the same on all hosts."""
    found, damage = None, ''
    try:
      reader = reading.StepReader(self.folder(step))
      found = reader.tree('params', params), reader.tree('opt_state', opt_state), reader.json('data')
      reader.close()
    except reading.Damage as error:
      damage = str(error)
    # No host examines arrays, which all do together, unless all have them.
    if damage := _first(hosts.gather(damage)):
      return None, damage
    if reader.record is None and jax.process_index() == 0:
      report(f'{self.path(step)} was written without checksums: whether it is damaged cannot be seen')
    finite, arrays = checksums.examine({'params': found[0], 'opt_state': found[1]})
    try:
      reader.check(arrays)
    except reading.Damage as error:
      damage = str(error)
    if not finite:
      damage = damage or 'its weights are not finite'
    if damage := _first(hosts.gather(damage)):
      return None, damage
    return found, ''

  def _set_aside(self, damages: dict[int, str], step: int) -> dict[int, str]:
    """Moves damaged checkpoints out of the way of the run, which continues at `step`. Returns where they are."""
    moved = {}
    for damaged, why in damages.items():
      names = [str(damaged), *(f'{damaged}-{number}' for number in range(2, 1000))]
      target = next(path for path in (self._workdir / 'damaged' / name for name in names) if not path.exists())
      moved[damaged] = str(target)
      hosts.gather(None)  # all have chosen the same name before it exists
      if jax.process_index() == 0:
        files.make_folder(target.parent)
        files.replace_tree(self.folder(damaged), target, last=(reading.COMMITTED,))
        report(
          f'the checkpoint {self.path(damaged)} is damaged ({why}): it was moved to {target}, and the run continues '
          f'from step {step}'
        )
      hosts.gather(None)
    if moved:
      self._manager.reload()
    return moved

  def json(self, step: int, item: str) -> Any:
    """A JSON item of a step. UserError: when it is damaged."""
    with reading.explain_damage(self.folder(step)):
      return checksums.read_json(self.folder(step), item, checksums.read(self.folder(step)))


class _Preservation(ocp.checkpoint_managers.PreservationPolicy):
  """`Keep`, as Orbax asks for it."""

  def __init__(self, keep: Keep, losses: dict[int, float]):
    """losses: evaluation losses by step; it grows while the run saves."""
    self._keep = keep
    self._losses = losses

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    keep = self._keep
    steps = [checkpoint.step for checkpoint in checkpoints]
    evaluated = [step for step in steps if step in self._losses]
    kept = {*steps[-keep.newest :], *sorted(evaluated, key=self._losses.get)[: keep.best]}
    return [step in kept or (keep.every > 0 and step % keep.every == 0) for step in steps]


def _evaluation_losses(folder: files.AnyPath) -> dict[int, float]:
  """{step: evaluation loss} of the checkpoints that have one."""
  losses = {}
  for step in reading.finished_steps(folder):
    with contextlib.suppress(reading.Damage), reading.explained(folder / str(step)):  # old or damaged
      loss = checksums.read_json(folder / str(step), 'evaluation')['loss']
      if isinstance(loss, float):
        losses[step] = loss
  return losses


def _first(texts: list[str]) -> str:
  return next(filter(None, texts), '')


def _ignore_abandoned_operations() -> None:
  """Once a read or write has failed, Orbax ends its event loop under the others, and Python shows how each ends.

  Each would be a traceback on the terminal, before the line that says what failed.
  """
  before = sys.unraisablehook
  if getattr(before, 'ignores_abandoned_operations', False):
    return

  def hook(unraisable):
    text = str(unraisable.exc_value)
    is_write = unraisable.object is None and text == 'Event loop is closed'  # TensorStore reports to it
    is_read = inspect.iscoroutine(unraisable.object) and text.startswith('Encountered error while reading array index')
    if not (is_write or is_read):
      before(unraisable)

  hook.ignores_abandoned_operations = True
  sys.unraisablehook = hook


class SaveFailed(UserError):
  """A checkpoint could not be written."""

  def __init__(self, what: str, remedy: str):
    super().__init__(
      f'{what}: {remedy} and run the same command again (earlier checkpoints are kept, and training continues from the '
      'newest)'
    )
    self.what = what


@contextlib.contextmanager
def explain_failed_save(directory: files.AnyPath) -> Iterator[None]:
  """Raises SaveFailed for a disk that is full or refuses, which Orbax and TensorStore report in many ways."""
  try:
    with files.explained(str(directory)):
      yield
  except Unreachable as error:
    raise SaveFailed(str(error), 'check the bucket') from error
  except Exception as error:
    text = ' '.join(str(error).split())
    if 'File too large' in text or 'EFBIG' in text:
      what, remedy = 'a file of a checkpoint in {} is larger than files may be here', 'raise the limit (ulimit -f)'
    elif 'No space left' in text or 'ENOSPC' in text or 'quota' in text.lower():
      what, remedy = 'no space left on the disk of {}', 'free some'
    elif isinstance(error, OSError) or '[OS error' in text:
      what, remedy = f'a checkpoint in {{}} cannot be written ({text[:200]})', 'check the disk'
    else:
      raise
    raise SaveFailed(what.format(directory), remedy) from error


def check_space(workdir: str, params: dict, opt_state: Any, keep: dict[str, int]) -> None:
  """UserError: when a local disk cannot hold the checkpoints that will be kept and the one being written.

  keep: as `Keep.at_most` gives it.
  """
  free = files.free_bytes(files.path(workdir))
  if free is None:
    return
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, opt_state)))
  count = sum(keep.values()) + 1
  need = size * count - files.tree_bytes(files.path(workdir) / 'checkpoints')
  if need > free:
    most = max(keep, key=keep.get)
    fewer = f', or {_FEWER[most]}' if keep[most] > 1 else ''
    raise UserError(
      f'{workdir} has {size_text(free)} free and {count} checkpoints of {size_text(size)} ({keep[most]} by {most}, and '
      f'the one being written) need {size_text(need)} more: free some space, use another --workdir{fewer}'
    )
