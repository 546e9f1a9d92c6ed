"""A row for each slice: does the training step fit, how long does it take, and with which settings."""

import dataclasses
from typing import Any

from mathqwen import config
from mathqwen.errors import report
from mathqwen.hardware import chips
from mathqwen.hardware.flops import model_flops
from mathqwen.model.config import NO_ROPE_SCALING
from mathqwen.planning import compiler, host_memory, roofline, search

ASSUMPTIONS = (
  """\
fits: the TPU compiler accepted the program. Memory is the compiler's own peak of what is alive at one time;
  hbm_bytes_per_chip of --json (arguments + temporaries + outputs - aliased) counts buffers of loops twice and can
  exceed what the chip has.
model FLOPs: 6 for each weight of a matrix multiplication and token (4 of a frozen one), attention below the diagonal,
  every position.
executed: matrix multiplications of the step's jaxpr with their loops, including blocks that the attention kernel skips.
collectives: bytes that a chip receives in a step, from the compiled program with its loops.
step: the longest of: executed FLOPs at the bf16 peak; HBM traffic (state read and written, temporaries written and
  read, weights read three times a micro-batch); collectives at ICI bandwidth; the sum of gradients over slices at the
  bandwidth of the hosts' network. That is perfect overlap: a real step takes longer. serial: their sum, no overlap.
"""
  + host_memory.ASSUMPTIONS
)
PER_CHIP = ('hbm_bytes_per_chip', 'peak_bytes_per_chip', 'weights_bytes', 'moments_bytes')
HEADER = [
  'slice', 'chips', 'fits', 'weights', 'moments', 'rest', 'GiB at the peak', 'of', 'model PFLOP', 'executed',
  'collectives GiB', 'step s (serial)', 'MFU', 'days', 'settings',
]  # fmt: skip


def plan(experiment: config.Experiment, topologies: list[str], fixed: set[str]) -> dict[str, Any]:
  """Compiles the experiment's step for each slice and prints a table. Returns the JSON of `mathqwen plan`.

  topologies: 'v5p-32', '2xv5p-32', ...
  fixed: names of settings that are not searched. Mesh sizes other than the defaults are kept as well.
  UserError: when a name is unknown, a model setting is wrong, no mesh fits, or the TPU compiler is not installed or
  fails. The table then has the slices before.
  """
  slices = [chips.slice_of(name) for name in topologies]
  experiment.check_model(experiment.model)
  # For all slices first: a mistake in the last one is found before the first takes minutes to compile.
  tries = [search.candidates(experiment, where, fixed) for where in slices]
  compiler.check_installed()

  scaling = experiment.model.rope_scaling
  if scaling != NO_ROPE_SCALING:
    report(f'rotary scaling: {scaling}; sequences of up to {experiment.model.longest} tokens')
  rows = []
  try:
    for where, settings in zip(slices, tries, strict=True):
      rows.append(_plan_row(experiment, where, settings))
  finally:
    if rows:  # also when the compiler fails: the slices before took minutes
      print(_table(rows))
      for row in rows:
        if row['fits']:
          print(host_memory.line(row))
      print(ASSUMPTIONS)
  return {'topologies': rows, 'rope_scaling': dataclasses.asdict(scaling), 'assumptions': ASSUMPTIONS}


def _plan_row(experiment: config.Experiment, where: chips.Slice, tries: list[dict[str, Any]]) -> dict[str, Any]:
  """The row of one slice: compiles with each of `tries` in turn until one fits."""
  row = {
    'topology': where.name,
    'chips': where.chips,
    'fits': False,
    'hbm_bytes_per_chip': None,
    'hbm_capacity_bytes': where.chip.hbm_bytes,
    'model_flops_per_step': model_flops(
      experiment.model,
      experiment.data.batch_size,
      experiment.data.seq_len,
      experiment.train.adapter,
      experiment.train.objective == 'dpo',
    ),
    'executed_flops_per_step': None,
    'collective_bytes_per_step': None,
    'step_seconds': None,
    'mfu': None,
    'days': None,
    'host_bytes_while_saving': None,
    'host_memory_bytes': where.machine.memory_bytes,
  }
  for settings in tries:
    short = ', '.join(f'{_short(name)} {value}' for name, value in settings.items())
    report(f'{where.name}: compiling with {short}')
    compiled = compiler.compile_for(_with_settings(experiment, settings), where)
    row |= {'settings': settings, 'compile_seconds': compiled.pop('compile_seconds')}
    if 'error' not in compiled:
      row.pop('error', None)
      per_chip = {name: compiled[name] * where.chip.devices for name in PER_CHIP}  # the compiler counts devices
      hosts = host_memory.host_memory(compiled, where, settings)
      return row | compiled | per_chip | hosts | _speed(row, compiled, where, experiment, settings)
    report(f'{where.name}: {compiled["error"]}')
    row['error'] = compiled['error']
  return row


def _speed(
  row: dict[str, Any],
  compiled: dict[str, Any],
  where: chips.Slice,
  experiment: config.Experiment,
  settings: dict[str, Any],
) -> dict[str, Any]:
  """What only the row of a slice on which the step fits has."""
  seconds_by_resource = roofline.bounds(compiled, where, experiment, settings)
  seconds = max(seconds_by_resource.values())
  return {
    'fits': True,
    'hbm_traffic': roofline.hbm_traffic(compiled, experiment, settings),
    'bounds_seconds': seconds_by_resource,
    'step_seconds': seconds,
    'step_seconds_serial': sum(seconds_by_resource.values()),
    'mfu': row['model_flops_per_step'] / (seconds * where.chips * where.chip.flops),
    'days': experiment.train.steps * seconds / 86_400,
  }


def _with_settings(experiment: config.Experiment, settings: dict[str, Any]) -> config.Experiment:
  return config.override(experiment, [f'{name}={value}' for name, value in settings.items()])


def _table(rows: list[dict[str, Any]]) -> str:
  """Markdown."""
  lines = [HEADER, ['---'] * len(HEADER), *map(_cells, rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
  flops = f'{row["model_flops_per_step"] / 1e15:.2f}'
  capacity = _gib(row['hbm_capacity_bytes'])
  if not row['fits']:
    unknown = ['-'] * 5
    return [row['topology'], str(row['chips']), 'no', '-', '-', '-', '-', capacity, flops, *unknown, row['error']]

  weights = row['weights_bytes']
  moments = row['moments_bytes']
  peak = row['peak_bytes_per_chip']
  settings = [f'{_short(name)}={value}' for name, value in row['settings'].items() if value != 1]
  return [
    row['topology'],
    str(row['chips']),
    'yes',
    _gib(weights),
    _gib(moments),
    _gib(peak - weights - moments),
    _gib(peak),
    capacity,
    flops,
    f'{row["executed_flops_per_step"] / row["model_flops_per_step"]:.3f}',
    _gib(row['collective_bytes_per_step']),
    f'{row["step_seconds"]:.2f} ({row["step_seconds_serial"]:.2f})',
    f'{row["mfu"]:.0%}',
    f'{row["days"]:.2g}',
    ', '.join(settings),
  ]


def _gib(size: int) -> str:
  return f'{size / 2**30:.1f}'


def _short(name: str) -> str:
  """'train.remat' -> 'remat'"""
  return name.split('.')[1]
