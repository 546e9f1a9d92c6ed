"""The mesh, and the one table from logical axis names to mesh axes."""

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mathqwen.config import MeshConfig
from mathqwen.errors import UserError
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig

# A rule for every logical name, and no catch-all: a new name without a rule is a KeyError in the first test.
RULES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': 'context',
  'width': None,  # D of activations; 'embed' is D of weights
  'part': ('data', 'fsdp', 'context'),  # a chip's share of a batch's positions
  'copy': 'data',  # parts that every chip of one model copy holds
  'whole': None,  # positions that are not split
  'layers': None,
  'vocab': ('tensor', 'context', 'fsdp'),  # of both tables and of logits in training: each chip has whole rows
  'vocab_width': None,  # D of both tables where they are kept
  'vocab_parts': 'data',  # parts of the positions that visit a chip's rows of the head
  'tensor_vocab': 'tensor',  # of the table that tokens are looked up in
  'embed': ('context', 'fsdp'),
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'norm': None,
}


def rules(shape: dict[str, int], vocab_size: int | None) -> dict:
  """RULES. Mesh axes that do not divide the rows of the tables split their columns instead, and the positions that
  visit the head, which is then whole there: 32,001 rows, as WizardMath has, divide by 3 only."""
  split, left = [], []
  for axis in RULES['vocab'] if vocab_size else ():
    fits = vocab_size % math.prod(shape[name] for name in (*split, axis)) == 0
    (split if fits else left).append(axis)
  if not left:
    return RULES
  of = lambda name: tuple(axis for axis in RULES[name] if axis in left)
  return RULES | {'vocab': tuple(split), 'vocab_width': of('embed'), 'vocab_parts': ('data', *of('part'))}


def undivided(shape: dict[str, int], cfg: ModelConfig) -> str | None:
  """What `rules` does otherwise for this vocabulary, in a line for people."""
  axes = rules(shape, cfg.vocab_size)['vocab_width']
  sizes = ' x '.join(f'mesh.{axis} {shape[axis]}' for axis in axes or ())
  return axes and (
    f'vocab_size {cfg.vocab_size} is not divisible by {sizes}: there the embedding and the head are split by columns, '
    'and each device computes with the whole head'
  )


def mesh_shape(cfg: MeshConfig, devices: int) -> dict[str, int]:
  """{'data': ..., 'fsdp': ..., 'context': ..., 'tensor': ...}, with -1 filled in."""
  sizes = {'data': cfg.data, 'fsdp': cfg.fsdp, 'context': cfg.context, 'tensor': cfg.tensor}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(f'mesh {sizes}: sizes are at least 1, and at most one of them may be -1')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if devices % fixed or (not free and devices != fixed):
    raise UserError(
      f'mesh {sizes} does not divide the {devices} devices here: set mesh.fsdp=-1 and the others to divisors'
    )
  if free:
    sizes[free[0]] = devices // fixed
  return sizes


def fitting(cfg: ModelConfig, devices: int) -> MeshConfig:
  """The mesh to use a model on when none is asked for: split by heads as far as they go, copied over the rest.

  Each token that is decoded reads all weights: they must not come from other devices.
  """
  sizes = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.intermediate_size, cfg.vocab_size)
  tensor = math.gcd(devices, *sizes)
  return MeshConfig(data=devices // tensor, fsdp=1, tensor=tensor)


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
  """Neighbours along an axis are neighbours in the slice. Of several slices each has its own part of 'data', so that
  only the sum of gradients crosses the slower network between them."""
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(cfg, len(devices))
  axis_types = (jax.sharding.AxisType.Auto,) * len(shape)
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:
    # An axis may be a part of one of the slice's: 128 x 2 on 4 x 8 x 8.
    arranged = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    return Mesh(arranged, tuple(shape), axis_types=axis_types)
  if shape['data'] % slices:
    raise UserError(
      f'mesh.data {shape["data"]} is not divisible by the {slices} slices here, which hold copies of the model: '
      f'set mesh.data={slices}'
    )
  within = shape | {'data': shape['data'] // slices}
  across = dict.fromkeys(shape, 1) | {'data': slices}
  arranged = mesh_utils.create_hybrid_device_mesh(
    tuple(within.values()), tuple(across.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, tuple(shape), axis_types=axis_types)


def spec(axes: tuple[str, ...], rules=RULES) -> PartitionSpec:
  """('embed', 'heads', 'head_dim') -> PartitionSpec('fsdp', 'tensor', None). Two axes on one mesh axis are refused."""
  mapped = [rules[name] for name in axes]
  used = [m for entry in mapped if entry for m in ((entry,) if isinstance(entry, str) else entry)]
  if len(used) != len(set(used)):
    raise ValueError(f'logical axes {axes} collide on a mesh axis: {mapped}')
  return PartitionSpec(*mapped)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the arrays inside a step lie on `mesh`; without a mesh, wherever they are. Axes are logical names, and mean
  what `rules` says for a vocabulary of `vocab_size`."""

  mesh: Mesh | None = None
  vocab_size: int | None = None

  def __call__(self, x, *axes: str):
    if self.mesh is None:
      return x
    where = spec(axes, rules(dict(self.mesh.shape), self.vocab_size))
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, where))

  def tree(self, values, axes):
    """`__call__` on each leaf; `axes` has a tuple of names where `values` has an array."""
    return values if self.mesh is None else jax.tree.map(lambda x, names: self(x, *names), values, axes)

  def gather(self, weights, axes, dtype, one=1.0):
    """Weights in `dtype`, whole but for 'tensor' while they are used; their gradients go straight back to their shards.

    A `one` that XLA does not know to be 1 keeps it from casting all layers before the loop over layers: without it the
    cast copies take 2 bytes a weight, through the whole backward pass (optimization_barrier does not hold it).
    """
    cast = lambda tree, dtype: jax.tree.map(lambda w: w.astype(dtype), tree)
    if self.mesh is None:
      return cast(weights, dtype)
    whole = jax.tree.map(lambda names: tuple('width' if n == 'embed' else n for n in names), axes, is_leaf=_is_axes)

    @jax.custom_vjp
    def gather(weights, one):
      own = self.tree(cast(jax.tree.map(lambda w: w * one, weights), dtype), axes)
      return self.tree(own, whole)  # after the cast: half the bytes travel

    back = lambda w, gradient: gradient.astype(w.dtype)
    backward = lambda _, gradients: (jax.tree.map(back, weights, self.tree(gradients, axes)), 0.0)
    gather.defvjp(lambda weights, one: (gather(weights, one), None), backward)
    return gather(weights, one)


def _is_axes(x):
  return isinstance(x, tuple)


def params_shardings(mesh: Mesh, cfg: ModelConfig):
  """The tree of `qwen.init` as NamedShardings."""
  own = rules(dict(mesh.shape), cfg.vocab_size)
  return jax.tree.map(lambda axes: NamedSharding(mesh, spec(axes, own)), qwen.logical_axes(cfg), is_leaf=_is_axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of packed rows [B, T]."""
  return NamedSharding(mesh, spec(('batch', 'length')))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_shards(shape: dict[str, int]) -> int:
  return shape['data'] * shape['fsdp']


def check(
  shape: dict[str, int], cfg: ModelConfig, batch_size: int | None = None, micro_batches: int = 1, seq_len: int = 0
):
  """Refuses sizes that the mesh does not divide, all at once, before anything is allocated."""
  problems = []
  context = shape['context']
  sizes = {
    'tensor': {
      'num_attention_heads': cfg.num_attention_heads,
      'num_key_value_heads': cfg.num_key_value_heads,
      'intermediate_size': cfg.intermediate_size,
      'vocab_size': cfg.vocab_size,
    },
    'context': {'data.seq_len': seq_len, 'hidden_size': cfg.hidden_size},
    'fsdp': {'hidden_size / mesh.context' if context > 1 else 'hidden_size': cfg.hidden_size // context},
  }
  for axis, dims in sizes.items():
    if bad := {name: size for name, size in dims.items() if size % shape[axis]}:
      common = math.gcd(*dims.values())
      fits = [d for d in range(1, shape[axis] + 1) if common % d == 0]
      listed = ', '.join(f'{name} {size}' for name, size in bad.items())
      problems.append(f'mesh.{axis} {shape[axis]} does not divide {listed}: set mesh.{axis}={fits[-1]}')
  if batch_size is not None and batch_size // micro_batches % batch_shards(shape):
    step = batch_shards(shape) * micro_batches
    nearest = max(step, round(batch_size / step) * step)
    problems.append(
      f'data.batch_size {batch_size} in {micro_batches} micro-batches is not divisible by the {batch_shards(shape)} '
      f'devices of mesh.data x mesh.fsdp: set data.batch_size={nearest}'
    )
  if problems:
    raise UserError('; '.join(problems))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This host's rows [B / hosts, T] -> global arrays [B, T]."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
