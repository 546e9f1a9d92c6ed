"""The mesh, and the only table from logical axis names to mesh axes.

What the names of activations mean, drawn for 8 chips as mesh.data 2 x mesh.fsdp 4 (context and tensor 1), and arrays
whose first axis has length 8. Each line says what a chip holds; "D 1/4" is the first quarter of the width.

  axes of the array                      chip 0           chip 1           chip 4           chip 7
  batch, length, width       [B, T, D]   row 0            row 1            row 4            row 7
  copy, whole                [B, T]      rows 0-3         rows 0-3         rows 4-7         rows 4-7
  copy, whole, embed         [B, T, D]   rows 0-3, D 1/4  rows 0-3, D 2/4  rows 4-7, D 1/4  rows 4-7, D 4/4
  part, whole, width         [G, C, D]   group 0          group 1          group 4          group 7
  vocab_parts, whole, width  [G, C, D]   groups 0-3       groups 0-3       groups 4-7       groups 4-7
  vocab_parts, whole, vocab  [G, C, V]   0-3, V 1/4       0-3, V 2/4       4-7, V 1/4       4-7, V 4/4

`batch` splits rows over all chips. `copy` splits them only over the copies of the model: every chip of a copy holds all
rows of that copy, and looks up their tokens in its columns (`embed`) of the table. `part` and `vocab_parts` do the same
for the loss, which splits a batch into G groups of C positions, one group for each chip: `part` leaves a group
on its chip, `vocab_parts` sends it to all chips of the copy, each of which has some rows of the head (`vocab`). An axis
named `whole` is not split. mesh.context splits the length of rows, and so makes more groups; mesh.tensor splits heads,
MLP and vocabulary, and chips that differ only in it hold the same rows.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mathqwen.config import MeshConfig
from mathqwen.errors import UserError
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig
from mathqwen.model.placement import NO_PLACEMENT, Compound, Placement, cast_weights
from mathqwen.model.quantized import BLOCK

Rules = Mapping[str, str | tuple[str, ...] | None]  # logical axis name -> mesh axis, several of them, or none

# A rule for every logical name, and no catch-all: a new name without a rule is a KeyError in the first test.
RULES: Rules = {
  # Activations: see the table above.
  'batch': ('data', 'fsdp'),
  'length': 'context',
  'width': None,  # D of activations; 'embed' is D of weights
  'copy': 'data',
  'part': ('data', 'fsdp', 'context'),
  'vocab_parts': 'data',
  'whole': None,
  # Weights
  'layers': None,
  'vocab': ('tensor', 'context', 'fsdp'),  # of both tables, and of logits in training: each chip has whole rows
  'vocab_width': None,  # D of both tables where they are kept
  'tensor_vocab': 'tensor',  # of the table while tokens are looked up in it
  'embed': ('context', 'fsdp'),
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'norm': None,
  'rank': None,  # of adapters
}


def rules(shape: dict[str, int], vocab_size: int | None) -> Rules:
  """RULES, changed for a vocabulary that the mesh does not divide, like WizardMath's 32,001 rows.

  shape: size of each mesh axis. vocab_size None: RULES as they are.
  Mesh axes that do not divide the rows of the two tables split their columns instead. For the loss the head is then
  whole on the chips along those axes, and each of them keeps its own groups of positions.
  """
  dividing, others = [], []
  for axis in RULES['vocab'] if vocab_size else ():
    parts = math.prod(shape[name] for name in (*dividing, axis))
    if vocab_size % parts == 0:
      dividing.append(axis)
    else:
      others.append(axis)
  if not others:
    return RULES
  width = tuple(axis for axis in RULES['embed'] if axis in others)
  parts = tuple(axis for axis in RULES['part'] if axis in others)
  return RULES | {'vocab': tuple(dividing), 'vocab_width': width, 'vocab_parts': ('data', *parts)}


def undivided(shape: dict[str, int], cfg: ModelConfig) -> str | None:
  """A line for the user where `rules` differs from RULES for this vocabulary, else None."""
  axes = rules(shape, cfg.vocab_size)['vocab_width']
  if not axes:
    return None
  sizes = ' x '.join(f'mesh.{axis} {shape[axis]}' for axis in axes)
  return (
    f'vocab_size {cfg.vocab_size} is not divisible by {sizes}: there the embedding and the head are split by columns, '
    'and each device computes with the whole head'
  )


def mesh_shape(cfg: MeshConfig, devices: int) -> dict[str, int]:
  """{'data': ..., 'fsdp': ..., 'context': ..., 'tensor': ...}, with -1 filled in.

  UserError when the sizes do not multiply to `devices`.
  """
  sizes = {'data': cfg.data, 'fsdp': cfg.fsdp, 'context': cfg.context, 'tensor': cfg.tensor}
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(f'mesh {sizes}: sizes are at least 1, and at most one of them may be -1')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if devices % fixed or (not free and devices != fixed):
    remedy = 'set mesh.fsdp=-1 and the others to divisors'
    if free:
      remedy = f'the sizes other than -1 multiply to {fixed}: lower one that is above 1'
    raise UserError(f'mesh {sizes} does not divide the {devices} devices here: {remedy}')
  if free:
    sizes[free[0]] = devices // fixed
  return sizes


def fitting(cfg: ModelConfig, devices: int) -> MeshConfig:
  """The mesh for using a model when the user names none: as much tensor parallelism as its sizes divide, then fsdp.

  Each device then reads its own part of the weights for a token, and no other device has that part: with 4 key heads on
  8 devices, two copies of the model would read every weight twice. `qwen.decode_step` moves activations, not weights.
  """
  sizes = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.intermediate_size, cfg.vocab_size)
  tensor = math.gcd(devices, *sizes)
  fsdp = math.gcd(devices // tensor, cfg.hidden_size)
  return MeshConfig(data=devices // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over `devices`, by default all. Neighbours along an axis are neighbours in the slice.

  With several slices, 'data' goes over the slices first, so that only the sum of gradients crosses the slower network
  between them. UserError when the sizes do not fit the devices or the slices.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(cfg, len(devices))
  axis_types = (jax.sharding.AxisType.Auto,) * len(shape)
  # Only devices of a multislice system have a `slice_index`.
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:
    # allow_split: an axis of the mesh may take a part of an axis of the slice, as 128 x 2 on 4 x 8 x 8 needs.
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


def spec(axes: tuple[str, ...], table: Rules = RULES) -> PartitionSpec:
  """('embed', 'heads', 'head_dim') -> PartitionSpec(('context', 'fsdp'), 'tensor', None).

  ValueError when two axes fall on one mesh axis.
  """
  mapped = [table[name] for name in axes]
  used: list[str] = []
  for entry in mapped:
    used += [entry] if isinstance(entry, str) else entry or ()
  if len(used) != len(set(used)):
    raise ValueError(f'logical axes {axes} collide on a mesh axis: {mapped}')
  return PartitionSpec(*mapped)


@dataclasses.dataclass(frozen=True)
class MeshPlacement(Placement):
  """Where the arrays inside a step are placed on `mesh`, by the logical names of their axes.

  The names mean what `rules` says for a vocabulary of `vocab_size`.
  """

  mesh: Mesh
  vocab_size: int | None = None

  def __call__(self, x: jax.Array, *axes: str) -> jax.Array:
    """`x`, which XLA places by the logical names of its axes. Inside jit."""
    where = spec(axes, rules(dict(self.mesh.shape), self.vocab_size))
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, where))

  def local(self, function: Callable, inputs: tuple, outputs: tuple) -> Callable:
    """`function` in a `shard_map`. The devices that hold the same part must compute the same."""
    own_rules = rules(dict(self.mesh.shape), self.vocab_size)
    specs = lambda axes: jax.tree.map(lambda names: spec(names, own_rules), axes, is_leaf=_is_axes)
    return jax.shard_map(function, mesh=self.mesh, in_specs=specs(inputs), out_specs=specs(outputs), check_vma=False)

  def tree(self, values: dict, axes: dict) -> dict:
    """`__call__` on each leaf; `axes` has a tuple of names where `values` has an array."""
    return jax.tree.map(lambda x, names: self(x, *names), values, axes)

  def gather(self, weights: dict, axes: dict, dtype: DTypeLike, one: jax.Array) -> dict:
    """Weights in `dtype`, split only by 'tensor' while they are used. Their gradients go straight back to the shards.

    one: from `placement.opaque_one`; it keeps XLA from casting all layers before the loop over layers.
    """
    gathered_axes = jax.tree.map(_without_embed, axes, is_leaf=_is_axes)
    if any(isinstance(w, Compound) for w in weights.values()):
      # All but the adapters is frozen: JAX's own derivative computes no gradient of that.
      shards = self.tree(cast_weights(weights, dtype, one), axes)
      return self.tree(shards, gathered_axes)

    # The derivative is written by hand: it only casts the gradients and places them on the shards, and saves nothing.
    # JAX's own would also multiply them by `one`, and sum up a gradient of `one`.
    @jax.custom_vjp
    def gather_shards(weights, one):
      shards = jax.tree.map(lambda w: (w * one).astype(dtype), weights)
      return self.tree(self.tree(shards, axes), gathered_axes)  # cast first, so that half the bytes travel

    def forward(weights, one):
      return gather_shards(weights, one), None

    def backward(_, gradients):
      shards = self.tree(gradients, axes)
      return jax.tree.map(lambda w, gradient: gradient.astype(w.dtype), weights, shards), 0.0

    gather_shards.defvjp(forward, backward)
    return gather_shards(weights, one)


def placement(mesh: Mesh | None, vocab_size: int | None = None) -> Placement:
  """`MeshPlacement`, or without a mesh its null form, which leaves arrays on the default device."""
  return NO_PLACEMENT if mesh is None else MeshPlacement(mesh, vocab_size)


def _without_embed(axes: tuple[str, ...]) -> tuple[str, ...]:
  """The names of a weight's axes while it is used: its width is no longer split."""
  return tuple('width' if name == 'embed' else name for name in axes)


def _is_axes(x) -> bool:
  """A tuple of names is one leaf of a tree of axes, not a branch; () are the axes of a single number."""
  return isinstance(x, tuple) and all(isinstance(name, str) for name in x)


def params_shardings(mesh: Mesh, cfg: ModelConfig, axes: dict | None = None) -> dict:
  """The tree of `parameters.init` as NamedShardings; or the tree `axes` of the axis names of other weights."""
  own_rules = rules(dict(mesh.shape), cfg.vocab_size)
  sharding_of = lambda names: NamedSharding(mesh, spec(names, own_rules))
  return jax.tree.map(sharding_of, parameters.logical_axes(cfg) if axes is None else axes, is_leaf=_is_axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of packed rows [B, T]."""
  return NamedSharding(mesh, spec(('batch', 'length')))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_shards(shape: dict[str, int]) -> int:
  """How many parts the rows of a batch are split into."""
  return shape['data'] * shape['fsdp']


def split_sizes(context: int, cfg: ModelConfig, seq_len: int = 0, base: str = 'bfloat16') -> dict[str, dict[str, int]]:
  """{axis of the mesh: {what: its size}}: all that the axis must divide. The arguments are those of `check`."""
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
  if base in ('int4', 'nf4'):  # see `quantized.Quantized.axes`
    block = math.gcd(BLOCK, cfg.intermediate_size)
    sizes['tensor'][f'intermediate_size / {block}, blocks in {base},'] = cfg.intermediate_size // block
    size = math.gcd(BLOCK, cfg.hidden_size) // 2
    sizes['context'][f'bytes of a block in {base},'] = size
    sizes['fsdp'][f'bytes of a block in {base}' + (' / mesh.context,' if context > 1 else ',')] = size // context
  return sizes


def check(
  shape: dict[str, int],
  cfg: ModelConfig,
  batch_size: int | None = None,
  micro_batches: int = 1,
  seq_len: int = 0,
  base: str = 'bfloat16',
):
  """UserError: names every size that the mesh does not divide. Called before anything is allocated.

  batch_size None: the rows are not checked. seq_len 0: every mesh.context divides it. base: how the frozen weights of
  adapters are held, as `train.adapter.base` says.
  """
  problems = []
  for axis, dims in split_sizes(shape['context'], cfg, seq_len, base).items():
    undivided_dims = {name: size for name, size in dims.items() if size % shape[axis]}
    if not undivided_dims:
      continue
    largest = math.gcd(shape[axis], *dims.values())
    listed = ', '.join(f'{name} {size}' for name, size in undivided_dims.items())
    remedy = f'set mesh.{axis}={largest}'
    if axis == 'fsdp':  # which takes the devices that others leave, but leaves none itself
      remedy += f' and mesh.data={shape["data"] * shape["fsdp"] // largest}'
    problems.append(f'mesh.{axis} {shape[axis]} does not divide {listed}: {remedy}')
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
