"""How long a compiled step takes at least, from what it computes and moves and what a slice can do."""

from typing import Any

from mathqwen import config
from mathqwen.hardware import chips
from mathqwen.hardware.flops import Shape


def bounds(
  compiled: dict[str, Any], where: chips.Slice, experiment: config.Experiment, settings: dict[str, Any]
) -> dict[str, float]:
  """Seconds of a step by each resource alone: {'compute': ..., 'hbm': ..., 'ici': ..., 'dcn': ...}.

  compiled: as `compiler.compile_here` returns it. settings: those it was compiled with.
  """
  chip = where.chip
  across = _bytes_across_slices(where, experiment, settings)
  # What a device receives or reads; the bandwidths are a chip's.
  within = compiled['collective_bytes_per_step'] - across
  return {
    'compute': compiled['executed_flops_per_step'] / (where.chips * chip.flops),
    'hbm': hbm_traffic(compiled, experiment, settings) / chip.hbm_bandwidth * chip.devices,
    'ici': within / max(where.ici_bytes_per_second, 1) * chip.devices,
    'dcn': across / max(chip.dcn_bandwidth, 1) * chip.devices,
  }


def hbm_traffic(compiled: dict[str, Any], experiment: config.Experiment, settings: dict[str, Any]) -> int:
  """Bytes that a device reads and writes: state, temporaries written and read, and weights.

  Weights are read three times a micro-batch: forward, backward for activations, backward for weights, which frozen ones
  have not; and once more for what the loss of pairs compares with. Trained ones are read in bfloat16, frozen ones as
  they are held.
  """
  adapted = experiment.train.adapter.rank > 0
  reads = (2 if adapted else 3) + (experiment.train.objective == 'dpo')
  if adapted:
    weights = compiled['frozen_bytes'] * settings['mesh.fsdp'] * settings['mesh.context']
  else:
    weights = 2 * Shape(experiment.model).weights // settings['mesh.tensor']
  return (
    compiled['arguments_bytes']
    + compiled['outputs_bytes']
    + 2 * compiled['temporaries_bytes']
    + reads * settings['train.micro_batches'] * weights
  )


def _bytes_across_slices(where: chips.Slice, experiment: config.Experiment, settings: dict[str, Any]) -> int:
  """What a device receives from other slices: its part of the float32 gradients, in an all-reduce over the slices.

  An all-reduce of b bytes over n slices brings 2 b (n - 1) / n: see `cost.collective_bytes`.
  """
  shards = settings['mesh.fsdp'] * settings['mesh.context'] * settings['mesh.tensor']
  trained = Shape(experiment.model).trained(experiment.train.adapter)
  return 8 * (where.count - 1) * trained // shards // where.count
