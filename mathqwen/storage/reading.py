"""`StepReader`: reads one step of a checkpoint on this host alone, and compares what it reads with its checksums."""

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mathqwen import files, hf
from mathqwen.errors import Unreachable, UserError
from mathqwen.storage import checksums

COMMITTED = 'commit_success.txt'  # on an object store, a step without this file is unfinished to Orbax
# What the operating system says of a step that lacks files, or whose files name others that cannot be. All else that it
# says is of this host and its disk: permissions, too many open files, a server that does not answer.
_OF_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG}
# How TensorStore names an error of the operating system, in its newer versions and in its older ones.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")


class StepReader:
  """One step. No host waits for another: a file that only one of them cannot read must not leave the others waiting.

  `Damage`, on reading: names what cannot be read, or differs from what was written.
  """

  def __init__(self, step: files.AnyPath):
    """step: its directory."""
    this_host = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      this_host, active_processes={this_host}, barrier_sync_key_prefix=f'host{this_host}'
    )
    self._step = step
    self._weight_handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    self._weight_reader = ocp.Checkpointer(self._weight_handler, multiprocessing_options=alone)
    tree_handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    self._tree_reader = ocp.Checkpointer(tree_handler, multiprocessing_options=alone)
    with explained(step):
      self.record = checksums.read(step)  # None: the step was written without checksums

  def json(self, item: str) -> Any:
    """A JSON item."""
    with explained(self._step):
      return checksums.read_json(self._step, item, self.record)

  def tree(self, item: str, target: Any) -> Any:
    """A tree of jax.Arrays like `target`, a tree of ShapeDtypeStructs. `check` compares it."""
    with explained(self._step):
      return self._tree_reader.restore(self._folder(item), args=ocp.args.StandardRestore(target))

  def metadata(self, item: str) -> Any:
    """The shapes and dtypes of a tree of arrays."""
    with explained(self._step):
      # Not `Checkpointer.metadata`: it expects metadata of a whole step in this folder, and logs that there is none.
      return self._weight_handler.metadata(self._folder(item)).tree

  def weight(self, item: str, path: hf.Path, restore_args: ocp.RestoreArgs) -> Any:
    """One array of a tree. `check` compares it."""
    # Orbax takes trees that hold nothing but this weight; the leaf's value is not read.
    wanted: dict = {}
    all_restore_args: dict = {}
    hf.set_weight(wanted, path, 0)
    hf.set_weight(all_restore_args, path, restore_args)
    with explained(self._step):
      args = ocp.args.PyTreeRestore(item=wanted, restore_args=all_restore_args, partial_restore=True)
      return hf.weight_at(self._weight_reader.restore(self._folder(item), args=args), path)

  def check(self, found: dict[str, dict]) -> None:
    """Compares arrays that were read, as `checksums` describes them. Damage: names the first that differs."""
    with explained(self._step):
      checksums.check_arrays(self.record, found)

  def close(self) -> None:
    """Closes the reader. What was read stays valid."""
    self._weight_reader.close()
    self._tree_reader.close()

  def _folder(self, item: str) -> epath.Path:
    return epath.Path(files.absolute_text(self._step / item))


class Damage(Exception):
  """A step cannot be read, or holds something else than what was written. The text says what, in a few words."""


@contextlib.contextmanager
def explained(step: files.AnyPath) -> Iterator[None]:
  """Raises `Damage` for what Orbax and TensorStore raise for a step that is damaged.

  Unreachable: when the step cannot be read just now, so that nobody knows whether it is damaged.
  """
  try:
    with files.explained(step):
      yield
  except (Unreachable, Damage):
    raise
  except UserError as error:
    raise Damage(str(error)) from error
  except Exception as error:
    if is_defect(error):
      raise
    if why := _refusal(error) or _refusal_to_open(step):
      raise Unreachable(
        f'the checkpoint {step} cannot be read just now ({why}): it stays where it is; give this user the right to '
        'read it, or check the disk, and run the same command again'
      ) from error
    raise Damage(' '.join(str(error).split())[:100]) from error


def _refusal(error: BaseException | None) -> str | None:
  """Why the operating system did not read what is there; None where `error` comes from the content of a step."""
  while error is not None:
    text = ' '.join(str(error).split())
    found = _OS_ERROR.search(text)
    number = error.errno if isinstance(error, OSError) else found and int(found[1] or found[2])
    if number is not None and number not in _OF_DAMAGE:
      return os.strerror(number)
    if number is None and text.startswith(('PERMISSION_DENIED', 'RESOURCE_EXHAUSTED')):
      return text[:100]
    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
  return None


def _refusal_to_open(step: files.AnyPath) -> str | None:
  """Why a file of a step cannot be opened; None where all can. To Orbax, a folder that it may not enter is missing."""
  if files.is_remote(step):
    return None
  errors: list[OSError] = []
  for folder, _, names in os.walk(step, onerror=errors.append):
    for name in names:
      try:
        os.close(os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK))
      except OSError as error:
        errors.append(error)
  return next(filter(None, map(_refusal, errors)), None)


def is_defect(error: Exception) -> bool:
  """Whether this is no sign of damage: a lack of memory, or a defect of ours.

  Orbax and TensorStore raise almost any error for a damaged file, even a plain Exception.
  """
  damage = NotImplementedError | RecursionError
  return isinstance(error, MemoryError | RuntimeError) and not isinstance(error, damage)


def as_numpy() -> ocp.RestoreArgs:
  """For `StepReader.weight`: the whole array in this host's memory, in its own dtype."""
  return ocp.RestoreArgs(restore_type=np.ndarray)


def on_devices(shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding) -> ocp.RestoreArgs:
  """For `StepReader.weight`: a jax.Array, of which each host reads its part."""
  return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, dtype=dtype)


def finished_steps(directory: files.AnyPath) -> list[int]:
  """The steps in WORKDIR/checkpoints, in order, whether they can be read or not."""
  if not directory.is_dir():
    return []
  found = [path for path in directory.iterdir() if path.name.isdecimal() and path.name == str(int(path.name))]
  is_remote = files.is_remote(directory)
  # A copy through an object store may leave a plain file where a folder was.
  return sorted(int(path.name) for path in found if ((path / COMMITTED).is_file() if is_remote else path.is_dir()))


def damage_text(step: files.AnyPath, damage: str, damaged: Collection[int] = ()) -> str:
  """The line for a user. step: the directory of the damaged step. damaged: other steps that cannot be used either."""
  usable = [number for number in finished_steps(step.parent) if number < int(step.name) and number not in damaged]
  remedy = f'to continue from step {usable[-1]}, delete {step}' if usable else 'there is no earlier one'
  return f'the checkpoint {step} is damaged ({damage} ...): copy it again; {remedy}'


@contextlib.contextmanager
def explain_damage(step: files.AnyPath) -> Iterator[None]:
  """Turns what Orbax raises for a damaged checkpoint, and `Damage`, into one line. step: its directory."""
  try:
    with explained(step):
      yield
  except Damage as damage:
    raise UserError(damage_text(step, str(damage))) from damage
