"""Orbax checkpoints under WORKDIR/checkpoints/STEP: params, optimizer state, the data iterator's state, the config.

WORKDIR/experiment.json is the resolved config and WORKDIR/tokenizer/ the tokenizer: with them the directory is a MODEL.
"""

import dataclasses
import errno
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mathqwen import config as config_lib
from mathqwen.errors import UserError

EXPERIMENT = 'experiment.json'
CHUNK_BYTES = 32 * 2**20  # of a converted model's weights on disk: a reader holds some of them beside the weight


class Checkpoints:
  """The checkpoints of one workdir. Saving is asynchronous and a step appears under its name only when it is whole."""

  def __init__(self, workdir: str, keep: int | None = None):
    self.directory = epath.Path(workdir) / 'checkpoints'
    # Orbax wants an absolute path; a URL such as gs:// is one already.
    if '://' not in str(workdir):
      self.directory = epath.Path(pathlib.Path(workdir).absolute()) / 'checkpoints'
    self._manager = ocp.CheckpointManager(
      self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
    )

  @property
  def latest(self) -> int | None:
    return self._manager.latest_step()

  def path(self, step: int) -> str:
    return str(self.directory / str(step))

  def save(self, step: int, params, opt_state, data_state: dict, experiment: config_lib.Experiment):
    """Starts to write; errors of writing surface in the next call or in `wait`."""
    with _Disk(self.directory):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          opt_state=ocp.args.StandardSave(opt_state),
          data=ocp.args.JsonSave(data_state),
          config=ocp.args.JsonSave(dataclasses.asdict(experiment)),
        ),
      )

  def wait(self):
    with _Disk(self.directory):
      self._manager.wait_until_finished()

  def close(self):
    self._manager.close()

  def restore(self, step: int, params, opt_state):
    """(params, opt_state, data_state) of `step`, in the shapes, dtypes and shardings of the abstract trees given."""
    with _Whole(self, step):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(params),
          opt_state=ocp.args.StandardRestore(opt_state),
          data=ocp.args.JsonRestore(),
        ),
      )
    return restored['params'], restored['opt_state'], restored['data']

  def restore_params(self, step: int, params):
    """The weights alone."""
    with _Whole(self, step):
      return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(params)))['params']

  def earlier(self, step: int) -> int | None:
    return max((s for s in self._manager.all_steps() if s < step), default=None)


class Stored:
  """The weights of one step, each read when asked for."""

  def __init__(self, workdir: str, step: int):
    self._checkpoints, self._step = Checkpoints(workdir), step
    self._path = self._checkpoints.directory / str(step) / 'params'
    me = jax.process_index()  # each host reads for itself, without waiting for the others
    alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f'host{me}')
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    self._reader = ocp.Checkpointer(handler, multiprocessing_options=alone)
    with _Whole(self._checkpoints, step):
      metadata = self._reader.metadata(self._path).item_metadata
      if metadata is None:
        raise ValueError(f'{self._path} holds no arrays')
      self._metadata = metadata.tree

  def dtype(self, path) -> np.dtype:
    return np.dtype(_at(self._metadata, path).dtype)

  def read(self, path) -> np.ndarray:
    item, args = 0, ocp.RestoreArgs(restore_type=np.ndarray)
    for name in reversed(path):
      item, args = {name: item}, {name: args}
    with _Whole(self._checkpoints, self._step):
      read = self._reader.restore(
        self._path, args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
      )
    return _at(read, path)

  def read_all(self, abstract, shardings, dtype: str | None = None) -> dict:
    """All weights, in the shapes of the abstract tree given; in `dtype`, or in their own."""

    def target(path, x, sharding):
      own = _at(self._metadata, [key.key for key in path]).dtype
      return jax.ShapeDtypeStruct(x.shape, jax.numpy.dtype(dtype or own), sharding=sharding)

    return self._checkpoints.restore_params(self._step, jax.tree_util.tree_map_with_path(target, abstract, shardings))

  def close(self):
    self._reader.close()
    self._checkpoints.close()


def _at(tree, path):
  for name in path:
    tree = tree[name]
  return tree


def write_model(folder, weights, paths, experiment: config_lib.Experiment, tokenizer):
  """Writes `weights` as step 0 of a workdir in `folder`, one after the other: a model without a run behind it."""
  from orbax.checkpoint.experimental import v1

  folder = pathlib.Path(folder)
  (folder / EXPERIMENT).write_text(config_lib.to_json(experiment))
  if tokenizer is not None:
    tokenizer.save(folder / 'tokenizer')
  step = folder / 'checkpoints' / '0'
  step.mkdir(parents=True)
  options = v1.Context()
  options.array.saving.use_compression = False  # weights hardly shrink, and writing would take twice the time
  options.array.saving.use_zarr3 = False
  options.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
  options.array.saving.enable_post_merge_validation = False
  options.memory.deepcopy_host_arrays = False
  with _Disk(folder), options:
    for path in paths:
      tree = weights.read(path)
      for name in reversed(path):
        tree = {name: tree}
      v1.partial.save(step / 'partial', tree)
      del tree  # before the next is read
    v1.partial.finalize(step / 'partial')
  (step / 'partial' / 'state').rename(step / 'params')
  shutil.rmtree(step / 'partial')


class _Whole:
  """Turns what a damaged checkpoint raises into one line."""

  def __init__(self, checkpoints: Checkpoints, step: int):
    self._checkpoints, self._step = checkpoints, step

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    # Orbax raises Exception itself where TensorStore cannot read an array.
    if isinstance(error, ValueError | KeyError | OSError) or kind is Exception:
      path, earlier = self._checkpoints.path(self._step), self._checkpoints.earlier(self._step)
      remedy = 'there is no earlier one' if earlier is None else f'to go on from step {earlier}, delete {path}'
      reason = ' '.join(str(error).split())[:100]
      raise UserError(f'the checkpoint {path} is not whole ({reason} ...): copy it again; {remedy}') from error
    return False


class _Disk:
  """Turns a full disk, which surfaces in several guises, into one line."""

  def __init__(self, directory):
    self.directory = directory

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if error is not None and ('No space left' in str(error) or 'ENOSPC' in str(error) or 'quota' in str(error).lower()):
      raise UserError(
        f'no space left on the disk of {self.directory}: free some and run the same command again '
        '(earlier checkpoints are kept, and training continues from the newest)'
      ) from error
    return False


def check_space(workdir: str, params, opt_state, keep: int):
  """Refuses a local disk that cannot hold the checkpoints to be kept and the one being written."""
  if '://' in str(workdir):
    return
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, opt_state)))
  existing = sum(f.stat().st_size for f in pathlib.Path(workdir).rglob('*') if f.is_file())
  need, free = size * (keep + 1) - existing, shutil.disk_usage(workdir).free
  if need > free:
    raise UserError(
      f'{workdir} has {free / 2**30:.1f} GiB free and {keep + 1} checkpoints of {size / 2**30:.1f} GiB need '
      f'{need / 2**30:.1f}: free some space, use another --workdir, or set train.keep_checkpoints=1'
    )


def claim(workdir: str, experiment: config_lib.Experiment) -> None:
  """Makes `workdir` the one of this experiment: creates it and writes the resolved config into it.

  UserError when it holds checkpoints that this experiment cannot continue, or cannot be written.
  """
  directory = epath.Path(workdir)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / EXPERIMENT
    if is_converted(directory):
      raise UserError(f'{workdir} holds a converted model: train from it with --init {workdir} and another --workdir')
    if file.exists():
      before = config_lib.from_json(file.read_text(), str(file))
      steps = directory / 'checkpoints'
      numbers = [int(step.name) for step in steps.iterdir() if step.name.isdigit()] if steps.exists() else []
      if numbers and (refusal := config_lib.resume_refusal(before, experiment, max(numbers))):
        raise UserError(f'{workdir} {refusal}')
    if jax.process_index() == 0:
      temporary = directory / f'{EXPERIMENT}.tmp'
      temporary.write_text(config_lib.to_json(experiment))
      temporary.replace(file)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(f'--workdir {workdir}: {error.strerror or error}; use a directory that can be written') from None


def is_converted(workdir) -> bool:
  """Whether `workdir` holds what `write_model` wrote, not a run."""
  first = epath.Path(workdir) / 'checkpoints' / '0'
  return first.exists() and not (first / 'opt_state').exists()


def step_path(path: str, step: int) -> epath.Path:
  """Directory of `step` in a path that `find` takes."""
  directory = epath.Path(path)
  if directory.name == str(step):
    return directory
  return directory / str(step) if directory.name == 'checkpoints' else directory / 'checkpoints' / str(step)


def find(path: str) -> tuple[str, config_lib.Experiment, int] | None:
  """(workdir, experiment, step) of a workdir, its checkpoints/ or one of its steps; None for other paths."""
  directory, step = epath.Path(path), None
  if '://' not in path:
    directory = epath.Path(pathlib.Path(path).absolute())
  parent = directory
  if directory.name == 'checkpoints':
    parent = directory.parent
  elif directory.parent.name == 'checkpoints':
    parent, step = directory.parent.parent, directory.name
  file = parent / EXPERIMENT
  if not file.exists():
    return None
  experiment = config_lib.from_json(file.read_text(), str(file))
  checkpoints = Checkpoints(str(parent))
  latest = checkpoints.latest
  checkpoints.close()
  if step is None:
    if latest is None:
      raise UserError(f'{path} holds no finished checkpoint yet: let `mathqwen train` save one first')
    return str(parent), experiment, latest
  if not step.isdigit() or not directory.exists():
    raise UserError(f'{path} is not a checkpoint step: give {parent} for its newest ({latest})')
  return str(parent), experiment, int(step)
