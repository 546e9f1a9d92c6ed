"""Orbax checkpoints under WORKDIR/checkpoints/STEP: weights, optimizer state, position in the data, config, sessions.

WORKDIR/experiment.json is the resolved config and WORKDIR/tokenizer/ the tokenizer: with them the directory is a MODEL.
"""

import contextlib
import dataclasses
import errno
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mathqwen import config as config_lib
from mathqwen import files, hf
from mathqwen.errors import Unreachable, UserError
from mathqwen.files import size_text
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig
from mathqwen.storage import resume
from mathqwen.text.tokenizer import Tokenizer

EXPERIMENT = 'experiment.json'
# Size of a converted model's files: a reader holds a few chunks in memory in addition to the weight.
CHUNK_BYTES = 32 * 2**20
# Orbax's files in the folders of a step and of its weights
_STEP_METADATA = '_CHECKPOINT_METADATA'
_TREE_METADATA = '_METADATA'
_COMMITTED = 'commit_success.txt'


class Checkpoints:
  """The checkpoints of one workdir. Saving is asynchronous; a step gets its name only when all of it is written."""

  def __init__(self, workdir: str, keep: int | None = None):
    """keep: how many of the newest steps to keep while saving; None: for reading, and makes no directory."""
    self.directory = epath.Path(files.absolute_text(workdir)) / 'checkpoints'
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
    with files.explained(workdir):
      self._manager = ocp.CheckpointManager(self.directory, options=options)

  @property
  def latest(self) -> int | None:
    """The newest finished step."""
    return self._manager.latest_step()

  def path(self, step: int) -> str:
    """The directory of a step."""
    return str(self.directory / str(step))

  def save(
    self,
    step: int,
    params: dict,
    opt_state: Any,
    data_state: dict,
    experiment: config_lib.Experiment,
    sessions: list[dict],
  ) -> None:
    """Starts writing. UserError: when the disk is full, possibly only in the next call or in `wait`.

    sessions: of the run up to this step, as `provenance.begin_session` returns them.
    """
    with _explain_full_disk(self.directory):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          opt_state=ocp.args.StandardSave(opt_state),
          data=ocp.args.JsonSave(data_state),
          config=ocp.args.JsonSave(dataclasses.asdict(experiment)),
          sessions=ocp.args.JsonSave({'sessions': sessions}),
        ),
      )

  def wait(self) -> None:
    """Returns when everything is written. UserError: when the disk is full."""
    with _explain_full_disk(self.directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for unfinished saves, and ends the manager's threads."""
    self._manager.close()

  def restore(self, step: int, params: dict, opt_state: Any) -> tuple[dict, Any, dict]:
    """(params, opt_state, data_state) of `step`, in the shapes, dtypes and shardings of the abstract trees given.

    UserError: when the checkpoint is damaged.
    """
    with _explain_damage(self, step):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(params),
          opt_state=ocp.args.StandardRestore(opt_state),
          data=ocp.args.JsonRestore(),
        ),
      )
    return restored['params'], restored['opt_state'], restored['data']

  def restore_params(self, step: int, params: dict) -> dict:
    """The weights alone, as `restore` gives them."""
    with _explain_damage(self, step):
      return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(params)))['params']

  def earlier(self, step: int) -> int | None:
    """The newest finished step before `step`."""
    return max((s for s in self._manager.all_steps() if s < step), default=None)


class StepWeights(hf.Weights):
  """The weights of one step. `read` reads on each host alone, without waiting for the others.

  UserError, here and on reading: when the checkpoint is damaged.
  """

  def __init__(self, workdir: str, step: int, cfg: ModelConfig):
    self._checkpoints, self._step = Checkpoints(workdir), step
    self._path = self._checkpoints.directory / str(step) / 'params'
    self._shapes = parameters.abstract(cfg)
    this_host = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      this_host, active_processes={this_host}, barrier_sync_key_prefix=f'host{this_host}'
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    self._reader = ocp.Checkpointer(handler, multiprocessing_options=alone)
    with _explain_damage(self._checkpoints, step):
      # Not `Checkpointer.metadata`: it expects metadata of a whole step in this folder, and logs that there is none.
      self._metadata = handler.metadata(self._path).tree

  def paths(self) -> list[hf.Path]:
    """The paths of all weights, in the order of `parameters.init`'s tree."""
    return hf.ArrayWeights(self._shapes).paths()

  def dtype(self, path: hf.Path) -> np.dtype:
    """The dtype in which the checkpoint has a weight."""
    return np.dtype(hf.weight_at(self._metadata, path).dtype)

  def read(self, path: hf.Path) -> np.ndarray:
    """One weight in its own dtype, on this host alone."""
    # Orbax takes trees that hold nothing but this weight; the leaf's value is not read.
    item: dict = {}
    restore_args: dict = {}
    hf.set_weight(item, path, 0)
    hf.set_weight(restore_args, path, ocp.RestoreArgs(restore_type=np.ndarray))
    with _explain_damage(self._checkpoints, self._step):
      tree = self._reader.restore(
        self._path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
      )
    return hf.weight_at(tree, path)

  def read_all(self, shardings: dict, dtype: str | None = None) -> dict:
    """All weights as a tree of jax.Arrays in these shardings; all hosts must call it."""
    target: dict = {}
    for path in self.paths():
      shape = hf.weight_at(self._shapes, path).shape
      sharding = hf.weight_at(shardings, path)
      weight_dtype = self.dtype(path) if dtype is None else hf.DTYPES[dtype]
      hf.set_weight(target, path, jax.ShapeDtypeStruct(shape, weight_dtype, sharding=sharding))
    return self._checkpoints.restore_params(self._step, target)

  def close(self) -> None:
    """Closes the reader. Weights that were read stay valid."""
    self._reader.close()
    self._checkpoints.close()


def write_model(
  folder: files.AnyPath, weights: hf.Weights, experiment: config_lib.Experiment, tokenizer: Tokenizer | None
) -> None:
  """Writes `weights` as step 0 of a workdir in `folder`, one at a time: a converted model, without a run behind it.

  UserError: when the disk is full.
  """
  (folder / EXPERIMENT).write_text(config_lib.to_json(experiment))
  if tokenizer is not None:
    tokenizer.save(folder / 'tokenizer')
  step = folder / 'checkpoints' / '0'
  params = step / 'params'
  params.mkdir(parents=True)
  # Each weight has files of its own: OCDBT, one database for all of them, is written in one go.
  # Weights hardly shrink, and writing would take twice the time with compression.
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False, use_compression=False)
  written: dict = {}  # what Orbax notes about each weight
  with _explain_full_disk(folder):
    for path in weights.paths():
      tree: dict = {}
      save_args: dict = {}
      hf.set_weight(tree, path, weights.read(path))
      hf.set_weight(save_args, path, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
      handler.save(epath.Path(str(params)), args=ocp.args.PyTreeSave(tree, save_args=save_args))
      del tree  # before the next is read
      # It has written a description of this weight alone.
      description = json.loads((params / _TREE_METADATA).read_text())
      written |= description['tree_metadata']
    (params / _TREE_METADATA).write_text(json.dumps(description | {'tree_metadata': written}))
  # Without this file Orbax assumes the same as with an empty object in it, but logs a warning.
  (step / _STEP_METADATA).write_text('{}')
  # On an object store, a step without it is unfinished to Orbax. Written everywhere: a directory may be copied there.
  (step / _COMMITTED).write_text('')


@contextlib.contextmanager
def _explain_damage(checkpoints: Checkpoints, step: int) -> Iterator[None]:
  """Turns what Orbax raises for a damaged checkpoint into one line."""
  try:
    with files.explained(str(checkpoints.directory)):
      yield
  except Unreachable:
    raise
  except Exception as error:
    # Orbax raises a plain Exception where TensorStore cannot read an array. Other types are bugs of ours.
    if not isinstance(error, ValueError | KeyError | OSError | TypeError) and type(error) is not Exception:
      raise
    path, earlier = checkpoints.path(step), checkpoints.earlier(step)
    remedy = 'there is no earlier one' if earlier is None else f'to continue from step {earlier}, delete {path}'
    reason = ' '.join(str(error).split())[:100]
    raise UserError(f'the checkpoint {path} is damaged ({reason} ...): copy it again; {remedy}') from error


@contextlib.contextmanager
def _explain_full_disk(directory: files.AnyPath) -> Iterator[None]:
  """Turns a full disk, which Orbax and TensorStore report as errors of several types, into one line."""
  try:
    with files.explained(str(directory)):
      yield
  except BaseException as error:
    text = str(error)
    if 'File too large' in text or 'EFBIG' in text:
      raise UserError(
        f'a file of a checkpoint in {directory} is larger than files may be here: raise the limit (ulimit -f) and run '
        'the same command again (earlier checkpoints are kept, and training continues from the newest)'
      ) from error
    if 'No space left' not in text and 'ENOSPC' not in text and 'quota' not in text.lower():
      raise
    raise UserError(
      f'no space left on the disk of {directory}: free some and run the same command again '
      '(earlier checkpoints are kept, and training continues from the newest)'
    ) from error


def check_space(workdir: str, params: dict, opt_state: Any, keep: int) -> None:
  """UserError: when a local disk cannot hold the checkpoints that will be kept and the one being written."""
  free = files.free_bytes(files.path(workdir))
  if free is None:
    return
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, opt_state)))
  existing = sum(file.stat().st_size for file in files.path(workdir).rglob('*') if file.is_file())
  need = size * (keep + 1) - existing
  if need > free:
    raise UserError(
      f'{workdir} has {size_text(free)} free and {keep + 1} checkpoints of {size_text(size)} (train.keep_checkpoints '
      f'and the one being written) need {size_text(need)} more: free some space, use another --workdir, or set '
      'train.keep_checkpoints=1'
    )


def claim(workdir: str, experiment: config_lib.Experiment) -> None:
  """Makes `workdir` this experiment's: creates it and writes the resolved config into it.

  UserError: when it holds checkpoints that this experiment cannot continue, or cannot be written.
  """
  directory = files.path(workdir)
  try:
    files.make_folder(directory)
    file = directory / EXPERIMENT
    if is_converted(directory):
      raise UserError(f'{workdir} holds a converted model: train from it with --init {workdir} and another --workdir')
    if file.exists():
      before = config_lib.from_json(file.read_text(), str(file))
      steps = directory / 'checkpoints'
      numbers = [int(step.name) for step in steps.iterdir() if step.name.isdigit()] if steps.exists() else []
      if numbers and (refusal := resume.refusal(before, experiment, max(numbers))):
        raise UserError(f'{workdir} {refusal}')
    if jax.process_index() == 0:
      files.write_atomically(file, config_lib.to_json(experiment).encode())
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(f'--workdir {workdir}: {error.strerror or error}; use a directory that can be written') from None


def is_converted(workdir: str | files.AnyPath) -> bool:
  """Whether `workdir` holds what `write_model` wrote, not a run."""
  first = files.path(workdir) / 'checkpoints' / '0'
  return first.exists() and not (first / 'opt_state').exists()


def step_path(path: str, step: int) -> files.AnyPath:
  """Directory of `step`, for a path that `find_checkpoint` accepts."""
  directory = files.path(path)
  if directory.name == str(step):
    return directory
  return directory / str(step) if directory.name == 'checkpoints' else directory / 'checkpoints' / str(step)


def find_checkpoint(path: str) -> tuple[str, config_lib.Experiment, int] | None:
  """(workdir, experiment, step) of a workdir, of its checkpoints/, or of one of its steps; None for other paths.

  UserError: when there is no finished checkpoint, or not this step, or experiment.json is damaged.
  """
  directory = files.path(path).absolute()
  workdir, step = directory, None
  if directory.name == 'checkpoints':
    workdir = directory.parent
  elif directory.parent.name == 'checkpoints':
    workdir, step = directory.parent.parent, directory.name
  file = workdir / EXPERIMENT
  if not file.exists():
    return None
  experiment = config_lib.from_json(file.read_text(), str(file))
  checkpoints = Checkpoints(str(workdir))
  latest = checkpoints.latest
  checkpoints.close()
  if step is None:
    if latest is None:
      raise UserError(f'{path} holds no finished checkpoint yet: let `mathqwen train` save one first')
    return str(workdir), experiment, latest
  if not step.isdigit() or not directory.exists():
    raise UserError(f'{path} is not a checkpoint step: give {workdir} for its newest ({latest})')
  return str(workdir), experiment, int(step)
