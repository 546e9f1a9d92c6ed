"""The frozen base of a run with adapters: read weight by weight, known by its checksums, merged with what was trained.

A checkpoint of such a run has the adapters alone, and in its item `base` the name of the base and the checksum of each
of its weights, as they were trained on. Whatever is read as the base later is compared with these.
"""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mathqwen import files, hf
from mathqwen.adapter_config import AdapterConfig
from mathqwen.errors import UserError
from mathqwen.hardware import hosts, sharding
from mathqwen.model import frozen, lora, parameters
from mathqwen.model.adapted import OUTPUTS, Adapted
from mathqwen.model.config import ModelConfig
from mathqwen.model.quantized import KINDS, Quantized, is_quantized
from mathqwen.storage import checksums, reading
from mathqwen.storage.converted import StepWeights

ITEM = 'base'  # of a checkpoint; and a folder of the workdir in which the base may be, if not where it was


@dataclasses.dataclass(frozen=True)
class Base:
  """The frozen weights of a run, on its mesh."""

  params: dict  # as `parameters.init`, in `train.adapter.base`
  record: dict  # for JSON: its name, and its weights as `described` gives them


def read(
  weights: hf.Weights, name: str, cfg: ModelConfig, mesh: jax.sharding.Mesh, adapter: AdapterConfig, workdir: str
) -> Base:
  """Reads the base that is called `name`, one weight at a time; then closes its files. All hosts must call it.

  workdir: of the run; where it continues, each weight is compared with the one that it began with.
  UserError: when a file is damaged, or this is another base.
  """
  base = _named(name, {})
  record = hosts.gather(recorded(workdir))[0]

  def compare(path, array):
    found = described(weights, path, array)
    if record is not None:
      check(record, found, workdir, base['name'])
    base['arrays'].update(found)

  params = read_held(weights, cfg, mesh, adapter.base_dtype, adapter.base, seen=compare)
  weights.close()
  return Base(params, base)


def read_held(
  weights: hf.Weights,
  cfg: ModelConfig,
  mesh: jax.sharding.Mesh,
  dtype: str | None,
  kind: str | None,
  tables: bool = False,
  seen: Callable[[hf.Path, jax.Array | np.ndarray], None] = lambda path, array: None,
) -> dict:
  """All weights on `mesh` as `frozen.hold` holds them, each before the next is read.

  dtype: that they are read in; None: their own. seen(path, array): called with each weight before it is held.
  """
  shardings = sharding.params_shardings(mesh, cfg)
  params: dict = {}
  for path in weights.paths():
    array = _read_one(weights, path, shardings, dtype, kind)
    seen(path, array)
    hf.set_weight(params, path, hold(array, path, cfg, mesh, kind, tables))
    del array  # before the next is read
  return params


def _read_one(
  weights: hf.Weights, path: hf.Path, shardings: dict, dtype: str | None, kind: str | None
) -> jax.Array | np.ndarray:
  """One weight for `hold`; on the host, if it is to be quantised, so that its layers reach the devices one by one.

  With several hosts it is on the devices, of which each then has a small part.
  """
  if kind in KINDS and frozen.is_matrix(path) and jax.process_count() == 1:
    array = weights.read(path)
    return array if dtype is None else array.astype(hf.DTYPES[dtype], copy=False)
  return weights.place(path, hf.weight_at(shardings, path), dtype)


def copied(params: dict, weights: hf.Weights, name: str, adapter: AdapterConfig) -> Base:
  """What `read` gives, from `params` on the mesh, which were read: a copy, which stays when they are donated."""
  copy = jax.tree.map(lambda x: jnp.array(x, adapter.base_dtype, copy=True), params)
  found = [described(weights, path, hf.weight_at(copy, path)) for path in weights.paths()]
  return Base(copy, _named(name, functools.reduce(operator.or_, found)))


def described(weights: hf.Weights, path: hf.Path, array: jax.Array | np.ndarray) -> dict[str, dict]:
  """{its name: what a record has of it}, of a weight that was read: its checksum, or of a merged one `made_of`."""
  if isinstance(weights, MergedWeights):
    return {_name_in_record(path): weights.made_of(path)}
  if isinstance(array, np.ndarray):
    return {_name_in_record(path): checksums.of_array(array)}
  return checksums.examine({_name_in_record(path): array})[1]


def recorded(workdir: str) -> dict | None:
  """The record of the base in the newest checkpoint that has a whole one; None without any."""
  folder = files.path(workdir) / 'checkpoints'
  for step in reversed(reading.finished_steps(folder)):
    with contextlib.suppress(reading.Damage), reading.explained(folder / str(step)):
      return checksums.read_json(folder / str(step), ITEM, checksums.read(folder / str(step)))
  return None


def _named(name: str, arrays: dict[str, dict]) -> dict:
  """A record of the base that is called `name`; a directory is found from anywhere."""
  return {'name': name if name.startswith(files.HUB) else files.absolute_text(name), 'arrays': arrays}


def hold(
  array: jax.Array | np.ndarray,
  path: hf.Path,
  cfg: ModelConfig,
  mesh: jax.sharding.Mesh,
  kind: str | None,
  tables: bool = False,
) -> jax.Array | Quantized:
  """A weight on `mesh` as `frozen.hold` holds it there. A stacked one on the host gets there layer by layer."""
  make = functools.partial(frozen.hold, path=path, kind=kind, tables=tables)
  held = jax.eval_shape(make, array)
  if not is_quantized(held):
    return array
  axes = hf.weight_at(frozen.logical_axes(cfg, kind, tables), path)
  where = sharding.params_shardings(mesh, cfg, {'weight': axes})['weight']
  if not isinstance(array, np.ndarray):
    return jax.jit(make, out_shardings=where)(array)
  plain = hf.weight_at(sharding.params_shardings(mesh, cfg), path)

  @functools.partial(jax.jit, out_shardings=where, donate_argnums=0)
  def put(stacked, one, layer):
    into = lambda all_layers, one: jax.lax.dynamic_update_slice_in_dim(all_layers, one, layer, 0)
    return jax.tree.map(into, stacked, make(one))

  stacked = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), held), out_shardings=where)()
  for layer in range(len(array)):
    # Waits, so that the layers after this one are not sent before there is room.
    stacked = jax.block_until_ready(put(stacked, jax.device_put(array[layer : layer + 1], plain), layer))
  return stacked


def check(record: dict, found: dict[str, dict], workdir: str, name: str) -> None:
  """UserError: names the first weight of what is called `name` that is not that of the base of a run.

  record: of a checkpoint. found: as `described` gives it.
  """
  for weight, description in found.items():
    if record['arrays'].get(weight) != description:
      raise UserError(
        f'{name} is not the base of {workdir}, whose {weight} was another: put back the model that the run began with, '
        f'or train again in another --workdir'
      )


class MergedWeights(hf.Weights):
  """The plain weights of a run with adapters: those of the base as it was trained on, plus the adapters, in float32.

  UserError, on reading: when a checkpoint or a file is damaged, or the base is another.
  """

  def __init__(
    self, base: hf.Weights, name: str, trained: StepWeights, workdir: str, cfg: ModelConfig, adapter: AdapterConfig
  ):
    """name: of the base, for messages."""
    self._base, self.base_name, self.trained = base, name, trained
    self._workdir, self._cfg, self._adapter = workdir, cfg, adapter
    self._record = trained.json(ITEM)

  @property
  def layout(self) -> str | None:
    """That of the base's files; None where no files hold it: it is a run of ours, or an adapter itself."""
    is_in_files = isinstance(self._base, hf.DirectoryWeights) and not self._base.is_merged
    return self._base.layout if is_in_files else None

  @property
  def is_quantized(self) -> bool:
    """Whether the base was trained on in fewer bits than its files have."""
    return self._adapter.base in KINDS

  @property
  def base_dtype(self) -> str:
    """In which the base is read."""
    return self._adapter.base_dtype

  def unquantized(self) -> 'MergedWeights':
    """The same adapters on the base as it was read, before it was quantised."""
    adapter = dataclasses.replace(self._adapter, base=self.base_dtype)
    return MergedWeights(self._base, self.base_name, self.trained, self._workdir, self._cfg, adapter)

  @property
  def shapes(self) -> dict:
    """The tree of the adapters, as `jax.ShapeDtypeStruct`s."""
    return lora.trained(self._cfg, self._adapter)

  def paths(self) -> list[hf.Path]:
    """The paths of all weights, in the order of `parameters.init`'s tree."""
    return hf.ArrayWeights(parameters.abstract(self._cfg)).paths()

  def dtype(self, path: hf.Path) -> np.dtype:
    """float32 of a merged or dequantised weight; of the others that in which they were trained on."""
    return hf.DTYPES['float32' if self._is_computed(path) else self._adapter.base_dtype]

  def read(self, path: hf.Path) -> np.ndarray:
    """One weight, on this host alone."""
    array = self._base.read(path).astype(hf.DTYPES[self._adapter.base_dtype], copy=False)
    self._check(path, array)
    if not self._is_computed(path):
      return array
    device = jax.local_devices()[0]
    parts = {part[-1]: self.trained.read(part) for part in self._parts(path)}
    merged = jax.jit(self._merging(path, 'float32'))
    found = np.empty(array.shape, np.float32)
    for layer in range(len(array)):  # one on the device at a time
      one = slice(layer, layer + 1)
      found[one] = merged(*jax.device_put((array[one], {name: x[one] for name, x in parts.items()}), device))
    return found

  def lengths(self, path: hf.Path) -> np.ndarray:
    """float32 [L, *outputs]: the length of each row of one of the base's matrices, as it is read."""
    array = self._base.read(path).astype(hf.DTYPES[self._adapter.base_dtype], copy=False)
    outputs = OUTPUTS[path[1]]
    rows = lambda layer: np.sqrt(np.sum(np.square(np.float32(layer)), axis=tuple(range(outputs, layer.ndim))))
    return np.stack([rows(layer) for layer in array])

  def place(self, path: hf.Path, where: jax.sharding.Sharding, dtype: str | None = None) -> jax.Array:
    """One weight in this sharding; all hosts must call it."""
    array = self._base.place(path, where, self._adapter.base_dtype)
    self._check(path, array)
    dtype = self.dtype(path) if dtype is None else hf.DTYPES[dtype]
    if not self._is_computed(path):
      return array.astype(dtype)
    shardings = self._shardings(where)
    parts = {part[-1]: self.trained.place(part, hf.weight_at(shardings, part)) for part in self._parts(path)}
    return jax.jit(self._merging(path, dtype), out_shardings=where)(array, parts)

  def made_of(self, path: hf.Path) -> dict:
    """What one weight is computed from. Its own last bits depend on the mesh, where rows have lengths (DoRA)."""
    base = self._record['arrays'][_name_in_record(path)]
    if not self._is_computed(path):
      return base
    parts = {part[-1]: self.trained.checksum(part) for part in self._parts(path)}
    return {'base': base, 'held': self._adapter.base, 'scale': self._adapter.scale, 'adapter': parts}

  def _shardings(self, where):
    """Of the adapters, where a weight is in the sharding `where`."""
    axes = lora.trained_axes(self._cfg, self._adapter)
    if isinstance(where, jax.sharding.NamedSharding):
      return sharding.params_shardings(where.mesh, self._cfg, axes)
    return jax.tree.map(lambda names: where, axes, is_leaf=lambda x: isinstance(x, tuple))

  def _is_computed(self, path: hf.Path) -> bool:
    """Whether a weight is not that of the base: it has an adapter, or was trained on in fewer bits."""
    matrices = OUTPUTS if self.is_quantized else self._adapter.targets
    return path[0] == 'layers' and path[1] in matrices

  def _parts(self, path: hf.Path) -> list[hf.Path]:
    return [part for part in self.trained.paths() if part[: len(path)] == path]

  def _merging(self, path, dtype) -> Callable:
    """(weight of the base [L, ...], {'a': [L, ...], ...}) -> the merged weight in `dtype`"""

    def merged(array, parts):
      parts = dict.fromkeys(('a', 'b', 'magnitude')) | parts
      base = frozen.hold(array, path, self._adapter.base)
      adapted = Adapted(base, **parts, outputs=OUTPUTS[path[1]], scale=self._adapter.scale)
      return lora.merged(adapted, dtype)

    return merged

  def _check(self, path, array) -> None:
    check(self._record, described(self._base, path, array), self._workdir, self.base_name)

  def close(self) -> None:
    """Closes the files of both. Weights that were read stay valid."""
    self._base.close()
    self.trained.close()


def place_of(record_name: str, workdir: str) -> str:
  """Where the base of a run is looked for: in WORKDIR/base if that is there, else where it was."""
  beside = files.path(workdir) / ITEM
  return str(beside) if beside.exists() else record_name


def _name_in_record(path: hf.Path) -> str:
  """A weight's name in the record of a base."""
  return '/'.join(path)
