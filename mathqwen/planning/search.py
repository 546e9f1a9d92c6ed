"""Which settings to compile for a slice: those that should fit, the fastest first, then the one with least memory."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mathqwen import config
from mathqwen.errors import UserError
from mathqwen.hardware import chips, sharding
from mathqwen.hardware.flops import Shape, model_flops, recomputed_flops
from mathqwen.planning import estimate

ATTEMPTS = 4  # settings that are compiled for a slice before it counts as too small
MARGIN = 0.94  # share of HBM that an estimate may fill: estimates err, and compiling takes minutes
POLICIES = ('dots', 'gate', 'mlp', 'full', 'nested')  # train.remat, from the least recomputation to the most


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of training, with estimates of what they cost."""

  seconds: float  # per step
  bytes: int  # of HBM on each device
  remat: str
  micro_batches: int


def candidates(experiment: config.Experiment, where: chips.Slice, fixed: set[str]) -> list[dict[str, Any]]:
  """Settings to compile for a slice, {name: value}: the fastest by estimate first, the one with least memory last.

  fixed: names of settings that keep the experiment's value. So do mesh sizes that differ from the defaults.
  UserError: when no mesh fits the slice.
  """
  mesh = mesh_for(experiment, where, fixed)
  rows = experiment.data.batch_size // sharding.batch_shards(mesh)
  remats = [experiment.train.remat] if 'train.remat' in fixed else POLICIES
  counts = [experiment.train.micro_batches] if 'train.micro_batches' in fixed else _divisors(rows)

  found = [_estimate(experiment, where, mesh, remat, count) for remat in remats for count in counts]
  found.sort(key=lambda candidate: (candidate.seconds, candidate.micro_batches, candidate.bytes))
  fitting = [candidate for candidate in found if candidate.bytes < MARGIN * where.chip.hbm_bytes / where.chip.devices]
  smallest = min(found, key=lambda candidate: candidate.bytes)
  chosen = dict.fromkeys([*fitting[: ATTEMPTS - 1], smallest])  # each once

  mesh_settings = {f'mesh.{axis}': size for axis, size in mesh.items()}
  return [
    mesh_settings | {'train.remat': candidate.remat, 'train.micro_batches': candidate.micro_batches}
    for candidate in chosen
  ]


def _estimate(experiment, where: chips.Slice, mesh: dict[str, int], remat: str, micro_batches: int) -> Candidate:
  cfg = experiment.model
  batch = experiment.data.batch_size
  length = experiment.data.seq_len
  train = dataclasses.replace(experiment.train, remat=remat, micro_batches=micro_batches)
  size = estimate.estimate(dataclasses.replace(experiment, train=train), mesh).total

  flops = model_flops(cfg, batch, length, train.adapter, train.objective == 'dpo')
  flops += recomputed_flops(cfg, remat, batch, length)
  # Every micro-batch gathers the layers' weights in bfloat16 for each pass over them and scatters their gradients.
  sent_bytes = 8 if remat == 'nested' else 6
  traffic = 0
  if where.devices > 1:
    traffic = micro_batches * sent_bytes * Shape(cfg).layer * cfg.num_hidden_layers // mesh['tensor']
  seconds = max(flops / (where.chips * where.chip.flops), traffic / max(where.ici_bytes_per_second, 1))
  return Candidate(seconds, size, remat, micro_batches)


def _divisors(n: int) -> list[int]:
  return [m for m in range(1, n + 1) if n % m == 0]


def mesh_for(experiment: config.Experiment, where: chips.Slice, fixed: set[str]) -> dict[str, int]:
  """A copy of the model in each slice; within it fsdp, and where there are too few rows, context, then tensor."""

  def choices(name: str, values: Sequence[int]) -> Sequence[int]:
    size = getattr(experiment.mesh, name)
    is_kept = f'mesh.{name}' in fixed or size != getattr(config.MeshConfig, name)
    return [size] if is_kept else values

  problem = None
  # The least tensor parallelism first: it sends every activation, where context sends only keys and values.
  for tensor in choices('tensor', [1, 2, 4, 8, 16]):
    for context in choices('context', [1, 2, 4, 8]):
      (data,) = choices('data', [where.count])
      wanted = dataclasses.replace(experiment.mesh, data=data, context=context, tensor=tensor)
      try:
        mesh = sharding.mesh_shape(wanted, where.devices)
        base = experiment.train.adapter.base
        sharding.check(mesh, experiment.model, experiment.data.batch_size, 1, experiment.data.seq_len, base)
        return mesh
      except UserError as error:
        problem = problem or error
  raise UserError(f'--topology {where.name}: {problem}')
