"""The mesh, and the one table from logical axis names to mesh axes."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mathqwen.config import MeshConfig
from mathqwen.errors import UserError
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig

# A rule for every logical name, and no catch-all: a new name without a rule is a KeyError in the first test.
RULES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  'layers': None,
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'norm': None,
}


def mesh_shape(cfg: MeshConfig, devices: int) -> dict[str, int]:
  """{'data': ..., 'fsdp': ..., 'tensor': ...}, with -1 filled in."""
  sizes = {'data': cfg.data, 'fsdp': cfg.fsdp, 'tensor': cfg.tensor}
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


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(cfg, len(devices))
  return jax.make_mesh(
    tuple(shape.values()), tuple(shape), devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(shape)
  )


def spec(axes: tuple[str, ...]) -> PartitionSpec:
  """('embed', 'heads', 'head_dim') -> PartitionSpec('fsdp', 'tensor', None). Two axes on one mesh axis are refused."""
  mapped = [RULES[name] for name in axes]
  used = [m for entry in mapped if entry for m in ((entry,) if isinstance(entry, str) else entry)]
  if len(used) != len(set(used)):
    raise ValueError(f'logical axes {axes} collide on a mesh axis: {mapped}')
  return PartitionSpec(*mapped)


def params_shardings(mesh: Mesh, cfg: ModelConfig):
  """The tree of `qwen.init` as NamedShardings."""
  is_axes = lambda x: isinstance(x, tuple)
  return jax.tree.map(lambda axes: NamedSharding(mesh, spec(axes)), qwen.logical_axes(cfg), is_leaf=is_axes)


def place(mesh: Mesh, array, *axes: str):
  """`array`, inside jit, laid out by its logical axes; axes that are not named are not split."""
  return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec(axes)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, spec(('batch', 'length')))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_shards(shape: dict[str, int]) -> int:
  return shape['data'] * shape['fsdp']


def check(shape: dict[str, int], cfg: ModelConfig, batch_size: int | None = None, micro_batches: int = 1):
  """Refuses sizes that the mesh does not divide, all at once, before anything is allocated."""
  problems = []
  sizes = {
    'tensor': {
      'num_attention_heads': cfg.num_attention_heads,
      'num_key_value_heads': cfg.num_key_value_heads,
      'intermediate_size': cfg.intermediate_size,
      'vocab_size': cfg.vocab_size,
    },
    'fsdp': {'hidden_size': cfg.hidden_size},
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
