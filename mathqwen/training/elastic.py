"""A run that goes on with other devices: the same global batches, and no more positions on a device at a time.

A batch of 8 rows that began on 4 hosts with a device each, of a model whose width 3 does not divide:

hosts   mesh             micro-batches   rows
4       fsdp 4           1               8          2 on a device
3       data 3, fsdp 1   2               12         2 on a device at a time; 4 are empty, and count for nothing
2       fsdp 2           2               8          2 on a device at a time
"""

import dataclasses
import math

from mathqwen.config import Experiment, MeshConfig
from mathqwen.hardware import sharding
from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Batch:
  """How a global batch is computed."""

  rows: int  # data.batch_size, and empty rows where the devices do not divide it
  micro_batches: int


def mesh_of(cfg: MeshConfig, model: ModelConfig, devices: int, base: str = 'bfloat16') -> MeshConfig:
  """The mesh on which a run of this config continues: where its fsdp of -1 does not divide the width, less of it.

  The devices that fsdp leaves hold copies. base: as in `sharding.check`, which may ask for still less.
  UserError: as in `sharding.mesh_shape`.
  """
  shape = sharding.mesh_shape(cfg, devices)
  sizes = sharding.split_sizes(shape['context'], model, base=base)['fsdp']
  fsdp = math.gcd(shape['fsdp'], *sizes.values())
  if cfg.fsdp != -1 or fsdp == shape['fsdp']:
    return cfg
  return dataclasses.replace(cfg, data=shape['data'] * (shape['fsdp'] // fsdp), fsdp=fsdp)


def batch_of(experiment: Experiment, shape: dict[str, int], hosts: int, before: dict | None) -> Batch:
  """How the batches of `experiment` are computed on a mesh of this shape, over so many hosts.

  before: the last session of the run that is continued (`provenance.collect`); None for a new run, whose batch must fit
  as it is. More micro-batches than the setting says are made where devices are fewer and the setting is the same.
  """
  batch_size, micro_batches = experiment.data.batch_size, experiment.train.micro_batches
  if before is None:
    return Batch(batch_size, micro_batches)
  shards = sharding.batch_shards(shape)
  if before['settings'].get('train.micro_batches') == micro_batches:
    most = _rows_on_device(before['mesh'], Batch(**before['batch'])) * shape['context'] // before['mesh']['context']
    micro_batches = max(micro_batches, math.ceil(batch_size / (shards * max(1, most))))
  step = math.lcm(shards * micro_batches, hosts)
  return Batch(math.ceil(batch_size / step) * step, micro_batches)


def _rows_on_device(shape: dict[str, int], batch: Batch) -> int:
  return batch.rows // (sharding.batch_shards(shape) * batch.micro_batches)


def describe(experiment: Experiment, shape: dict[str, int], batch: Batch, before: dict | None) -> str | None:
  """A line for the user where a run continues on another mesh than before, else None."""
  if before is None or before['mesh'] == shape:
    return None
  mesh = ' x '.join(f'{name} {size}' for name, size in shape.items() if size > 1) or 'one device'
  line = f'continuing on {math.prod(shape.values())} devices, before {before["devices"]}: mesh {mesh}'
  line += f'; micro-batches: {batch.micro_batches}, with {_rows_on_device(shape, batch)} rows on a device'
  if empty := batch.rows - experiment.data.batch_size:
    line += f'; {empty} empty rows fill each batch of {experiment.data.batch_size}'
  return line
