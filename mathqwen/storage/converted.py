"""A converted model, written one weight at a time; and the weights of any step, read one at a time."""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mathqwen import config as config_lib
from mathqwen import files, hf
from mathqwen.adapter_config import NO_ADAPTER, AdapterConfig
from mathqwen.chat.chat_format import save_tokenizer
from mathqwen.model import lora
from mathqwen.model.config import ModelConfig
from mathqwen.storage import checksums, reading
from mathqwen.storage.checkpoint import Checkpoints, explain_failed_save
from mathqwen.storage.workdir import EXPERIMENT
from mathqwen.text.tokenizer import Tokenizer

# Size of a converted model's files: a reader holds a few chunks in memory in addition to the weight.
CHUNK_BYTES = 32 * 2**20
# Orbax's files in the folders of a step and of its weights
_STEP_METADATA = '_CHECKPOINT_METADATA'
_TREE_METADATA = '_METADATA'


class StepWeights(hf.Weights):
  """The weights of one step. `read` reads on each host alone, without waiting for the others.

  UserError, here and on reading: when the checkpoint is damaged.
  """

  def __init__(self, workdir: str, step: int, cfg: ModelConfig, adapter: AdapterConfig = NO_ADAPTER):
    """adapter: of a run that has one; its checkpoints hold what it trains, and no other weights."""
    self._checkpoints, self._step = Checkpoints(workdir), step
    self._shapes = lora.trained(cfg, adapter)
    with reading.explain_damage(self._checkpoints.folder(step)):
      self._reader = reading.StepReader(self._checkpoints.folder(step))
      self._metadata = self._reader.metadata('params')

  def paths(self) -> list[hf.Path]:
    """The paths of all weights, in the order of `parameters.init`'s tree."""
    return hf.ArrayWeights(self._shapes).paths()

  def dtype(self, path: hf.Path) -> np.dtype:
    """The dtype in which the checkpoint has a weight."""
    return np.dtype(hf.weight_at(self._metadata, path).dtype)

  def read(self, path: hf.Path) -> np.ndarray:
    """One weight in its own dtype, on this host alone."""
    with reading.explain_damage(self._checkpoints.folder(self._step)):
      array = self._reader.weight('params', path, reading.as_numpy())
      self._reader.check({_name_in_step(path): checksums.of_array(array)})
    return array

  def place(self, path: hf.Path, sharding: jax.sharding.Sharding, dtype: str | None = None) -> jax.Array:
    """One weight in this sharding; all hosts must call it."""
    shape = hf.weight_at(self._shapes, path).shape
    with reading.explain_damage(self._checkpoints.folder(self._step)):
      args = reading.on_devices(shape, self.dtype(path), sharding)
      array = self._reader.weight('params', path, args)
      # In its own dtype, in which it was written
      _, found = checksums.examine({_name_in_step(path): array})
      self._reader.check(found)
    return array if dtype is None else array.astype(hf.DTYPES[dtype])

  def checksum(self, path: hf.Path) -> dict:
    """What was written down of a weight, which `read` and `place` compare; also after `close`."""
    with reading.explain_damage(self._checkpoints.folder(self._step)):
      if self._reader.record is None:
        raise reading.Damage('its checksums are missing')
      return self._reader.record['arrays'][_name_in_step(path)]

  def json(self, item: str) -> Any:
    """A JSON item of the step."""
    return self._checkpoints.json(self._step, item)

  def close(self) -> None:
    """Closes the reader. Weights that were read stay valid."""
    self._reader.close()
    self._checkpoints.close()


def _name_in_step(path: hf.Path) -> str:
  """A weight's name in the checksums of a step."""
  return '/'.join(('params', *path))


def write_model(
  folder: files.AnyPath, weights: hf.Weights, experiment: config_lib.Experiment, tokenizer: Tokenizer | None
) -> None:
  """Writes `weights` as step 0 of a workdir in `folder`, one at a time: a converted model, without a run behind it.

  UserError: when the disk is full.
  """
  (folder / EXPERIMENT).write_text(config_lib.to_json(experiment))
  if tokenizer is not None:
    save_tokenizer(tokenizer, folder / 'tokenizer')
  step = folder / 'checkpoints' / '0'
  with explain_failed_save(folder):
    arrays = _write_weights(step / 'params', weights)
  config = json.loads(config_lib.to_json(experiment))
  record = checksums.record(arrays, {'config': config}, checksums.of_files(folder / 'tokenizer'))
  for item, value in (('config', config), (checksums.ITEM, record)):
    (step / item).mkdir(exist_ok=True)
    (step / item / checksums.JSON_FILE).write_text(json.dumps(value))
  # Without this file Orbax assumes the same as with an empty object in it, but logs a warning.
  (step / _STEP_METADATA).write_text('{}')
  # On an object store, what is without it is unfinished to Orbax. Written everywhere: a directory may be copied there.
  for written in (step / 'params', step):
    (written / reading.COMMITTED).write_text('')


def _write_weights(params: files.AnyPath, weights: hf.Weights) -> dict[str, dict]:
  """Writes the weights into the folder `params`. Returns their checksums by name."""
  params.mkdir(parents=True)
  # Each weight has files of its own: OCDBT, one database for all of them, is written in one go.
  # Weights hardly shrink, and writing would take twice the time with compression.
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False, use_compression=False)
  arrays: dict[str, dict] = {}
  written: dict = {}  # what Orbax notes about each weight
  for path in weights.paths():
    tree: dict = {}
    save_args: dict = {}
    hf.set_weight(tree, path, weights.read(path))
    hf.set_weight(save_args, path, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
    handler.save(epath.Path(str(params)), args=ocp.args.PyTreeSave(tree, save_args=save_args))
    arrays[_name_in_step(path)] = checksums.of_array(hf.weight_at(tree, path))
    del tree  # before the next is read
    # It has written a description of this weight alone.
    description = json.loads((params / _TREE_METADATA).read_text())
    written |= description['tree_metadata']
  (params / _TREE_METADATA).write_text(json.dumps(description | {'tree_metadata': written}))
  return arrays
