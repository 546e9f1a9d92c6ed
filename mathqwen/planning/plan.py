"""`mathqwen plan`: the step that `train` runs, compiled by the TPU compiler for slices that are not here.

Each slice is compiled in a subprocess of its own, because libtpu takes one kind of chip per process: `plan` starts
`python -m mathqwen.planning.plan`, which reads a request from standard input and answers with one line of JSON.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time

from mathqwen import config
from mathqwen.errors import UserError
from mathqwen.hardware import chips
from mathqwen.hardware.flops import Shape, model_flops, recomputed_flops
from mathqwen.model.config import ModelConfig

ATTEMPTS = 4  # settings compiled for a slice before it is said not to fit
MARGIN = 0.94  # of HBM that an estimate may fill to be worth compiling
POLICIES = ('dots', 'gate', 'mlp', 'full', 'nested')  # train.remat, least computed again first
ASSUMPTIONS = """\
fits: the TPU compiler accepted the program. Memory is its own peak of what lives at one time; hbm_bytes_per_chip of
  --json (arguments + temporaries + outputs - aliased) counts buffers of loops twice and can exceed what the chip has.
model FLOPs: 6 for each weight of a multiplication and token, attention below the diagonal, every position with loss.
executed: matrix multiplications of the step's jaxpr, loops counted; blocks that the attention kernel skips are in it.
collectives: bytes that a chip receives in a step, from the compiled program, loops counted.
step: the longest of executed FLOPs at the bf16 peak, HBM traffic (state read and written, temporaries written and
  read, weights read three times a micro-batch), collectives at ICI bandwidth, and the sum of gradients over slices at
  that of the hosts' network, as if they overlapped perfectly: a real step takes longer. serial: their sum, as if
  nothing overlapped."""


def estimated_bytes(cfg: ModelConfig, mesh: dict[str, int], remat: str, tokens: int, micro_batches: int) -> int:
  """HBM of one chip, roughly: only to choose what is compiled first. `tokens`: of a micro-batch, on one chip."""
  from mathqwen.model import qwen

  shape, tensor, layers = Shape(cfg), mesh['tensor'], cfg.num_hidden_layers
  if remat == 'nested':
    layers = layers // qwen.group_size(layers) + qwen.group_size(layers)  # inputs of groups, and of one group's layers
  parts = mesh['fsdp'] * mesh['context'] * tensor
  qkv = 0 if remat in ('full', 'nested') else cfg.head_dim * (cfg.num_attention_heads + 2 * cfg.num_key_value_heads)
  hidden = cfg.hidden_size * (1 if remat in ('full', 'nested') else 2)
  kept = hidden + (qkv + {'gate': 1, 'dots': 2}.get(remat, 0) * cfg.intermediate_size) // tensor
  state = shape.weights * (12 + 4 * (2 if micro_batches > 1 else 1)) // parts
  working = 2 * tokens * (3 * cfg.intermediate_size // tensor + 6 * cfg.hidden_size) + 4 * shape.layer // tensor
  return state + 2 * tokens * kept * layers + working


def candidates(experiment: config.Experiment, where: chips.Slice, fixed: set[str]) -> list[dict]:
  """Settings to compile for a slice, the fastest by estimate first, ending with the smallest. UserError if none is."""
  from mathqwen.hardware import sharding

  cfg, batch, length = experiment.model, experiment.data.batch_size, experiment.data.seq_len
  devices = where.chips * where.chip.devices
  mesh = _mesh(experiment, where, fixed)
  rows, length_here = batch // sharding.batch_shards(mesh), length // mesh['context']
  remats = [experiment.train.remat] if 'train.remat' in fixed else POLICIES
  divisors = [m for m in range(1, rows + 1) if rows % m == 0 and (rows // m) * m == rows]
  counts = [experiment.train.micro_batches] if 'train.micro_batches' in fixed else divisors
  found = []
  for remat in remats:
    for count in counts:
      size = estimated_bytes(cfg, mesh, remat, rows * length_here // count, count)
      flops = model_flops(cfg, batch, length) + recomputed_flops(cfg, remat, batch, length)
      sent = 8 if remat == 'nested' else 6  # bytes a weight: to each pass, and its gradient
      traffic = count * sent * Shape(cfg).layer * cfg.num_hidden_layers // mesh['tensor'] if devices > 1 else 0
      seconds = max(flops / (where.chips * where.chip.flops), traffic / max(where.ici_bytes_per_second, 1))
      found.append((seconds, count, size, {'train.remat': remat, 'train.micro_batches': count}))
  found.sort(key=lambda c: c[:3])
  small = [c for c in found if c[2] < MARGIN * where.chip.hbm_bytes]
  smallest = min(found, key=lambda c: c[2])
  chosen = [*small[: ATTEMPTS - 1], smallest]
  settings = {f'mesh.{axis}': size for axis, size in mesh.items()}
  unique = {json.dumps(c[3]): settings | c[3] for c in chosen}
  return list(unique.values())


def _mesh(experiment: config.Experiment, where: chips.Slice, fixed: set[str]) -> dict[str, int]:
  """A copy of the model in each slice; within it fsdp, and where rows are too few for that, context, then tensor."""
  from mathqwen.hardware import sharding

  def choices(name, values):
    size = getattr(experiment.mesh, name)
    return [size] if f'mesh.{name}' in fixed or size != getattr(config.MeshConfig, name) else values

  problem = None
  # The least tensor parallelism: it sends every activation, where context sends keys and values only.
  for tensor in choices('tensor', [1, 2, 4, 8, 16]):
    for context in choices('context', [1, 2, 4, 8]):
      (data,) = choices('data', [where.count])
      wanted = dataclasses.replace(experiment.mesh, data=data, context=context, tensor=tensor)
      try:
        mesh = sharding.mesh_shape(wanted, where.chips * where.chip.devices)
        sharding.check(mesh, experiment.model, experiment.data.batch_size, 1, experiment.data.seq_len)
        return mesh
      except UserError as error:
        problem = problem or error
  raise UserError(f'--topology {where.name}: {problem}')


def plan(experiment: config.Experiment, topologies: list[str], fixed: set[str]) -> dict:
  """A row for each topology, printed as a table. `fixed`: settings that are not searched; nor are mesh sizes other
  than the defaults."""
  slices = [chips.slice_of(name) for name in topologies]
  experiment.check_model(experiment.model)
  tries = [candidates(experiment, where, fixed) for where in slices]  # all errors before the first minute of compiling
  if importlib.util.find_spec('libtpu') is None:
    raise UserError("plan needs the TPU compiler, which needs no TPU: pip install 'libtpu==0.0.42.*' (the extra tpu)")
  rows = [_row(experiment, where, settings) for where, settings in zip(slices, tries, strict=True)]
  print(_table(rows))
  print(ASSUMPTIONS)
  return {'topologies': rows, 'assumptions': ASSUMPTIONS}


def _row(experiment, where: chips.Slice, tries: list[dict]) -> dict:
  row = {
    'topology': where.name,
    'chips': where.chips,
    'fits': False,
    'hbm_bytes_per_chip': None,
    'hbm_capacity_bytes': where.chip.hbm_bytes,
    'model_flops_per_step': model_flops(experiment.model, experiment.data.batch_size, experiment.data.seq_len),
    'executed_flops_per_step': None,
    'collective_bytes_per_step': None,
    'step_seconds': None,
    'mfu': None,
    'days': None,
  }
  for settings in tries:
    short = ', '.join(f'{name.split(".")[1]} {value}' for name, value in settings.items())
    print(f'{where.name}: compiling with {short}', file=sys.stderr, flush=True)
    found = _compile_elsewhere(_with(experiment, settings), where)
    row |= {'settings': settings, 'compile_seconds': found.pop('compile_seconds')}
    if 'error' not in found:
      row.pop('error', None)
      return row | found | _roofline(row, found, where, experiment, settings)
    print(f'{where.name}: {found["error"]}', file=sys.stderr, flush=True)
    row['error'] = found['error']
  return row


def _with(experiment, settings):
  return config.override(experiment, [f'{name}={value}' for name, value in settings.items()])


def _roofline(row, found, where, experiment, settings) -> dict:
  weights = 2 * Shape(experiment.model).weights // settings['mesh.tensor']
  hbm = row['hbm_traffic'] = (
    found['arguments_bytes'] + found['outputs_bytes'] + 2 * found['temporaries_bytes']
    + 3 * settings['train.micro_batches'] * weights
  )  # fmt: skip
  # Of what is received, the gradients of other slices come over their network; the rest stays within.
  shards = settings['mesh.fsdp'] * settings['mesh.context'] * settings['mesh.tensor']
  across = 8 * (where.count - 1) * Shape(experiment.model).weights // shards // where.count
  bounds = {
    'compute': found['executed_flops_per_step'] / (where.chips * where.chip.flops),
    'hbm': hbm / where.chip.hbm_bandwidth * where.chip.devices,
    'ici': (found['collective_bytes_per_step'] - across) / max(where.ici_bytes_per_second, 1) * where.chip.devices,
    'dcn': across / max(where.chip.dcn_bandwidth, 1) * where.chip.devices,
  }
  seconds = max(bounds.values())
  return {
    'fits': True,
    'bounds_seconds': bounds,
    'step_seconds': seconds,
    'step_seconds_serial': sum(bounds.values()),
    'mfu': row['model_flops_per_step'] / (seconds * where.chips * where.chip.flops),
    'days': experiment.train.steps * seconds / 86_400,
  }


def _compile_elsewhere(experiment, where: chips.Slice) -> dict:
  shape = 'x'.join(map(str, where.shape))
  options = {}
  if where.chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if where.count > 1:
    options['num_slices'] = where.count
  if where.chip.name == 'v4':
    options['chip_config_name'] = 'megacore'  # one device a chip, as on a real v4
  request = {
    'experiment': config.to_json(experiment), 'topology': f'{where.chip.name}:{shape}', 'options': options
  }  # fmt: skip
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': f'{where.chip.accelerator}-{where.chips // where.count * where.chip.cores}',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
  done = subprocess.run(
    [sys.executable, '-m', 'mathqwen.planning.plan'], input=json.dumps(request), env=env, capture_output=True, text=True
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or [f'exit status {done.returncode}'])[-1]
    return {'error': f'the TPU compiler ended with: {last}', 'compile_seconds': None}  # the other slices go on
  return json.loads(done.stdout.splitlines()[-1])


def compile_here(experiment: config.Experiment, topology: str, options: dict) -> dict:
  """Memory, FLOPs and traffic of the step on `topology`, or {'error'} where XLA says that it does not fit."""
  import jax
  from jax.experimental import topologies

  from mathqwen.hardware import cost, sharding
  from mathqwen.training import loss, optim, step

  devices = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices
  mesh = sharding.make_mesh(experiment.mesh, devices)
  tx = optim.optimizer(experiment.optim, experiment.train.steps)
  state = step.abstract_state(mesh, experiment.model, tx)
  begun = time.monotonic()
  traced = step.compile_step(mesh, experiment.model, experiment, tx).trace(state, step.abstract_batch(mesh, experiment))
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return {'error': str(error).splitlines()[0], 'compile_seconds': time.monotonic() - begun}
  seconds = time.monotonic() - begun
  rows = experiment.data.batch_size // experiment.train.micro_batches // sharding.batch_shards(dict(mesh.shape))
  turns = loss.turns(rows * experiment.data.seq_len // mesh.shape['context'], experiment.train.loss_chunk)
  memory = compiled.memory_analysis()
  traffic = cost.collective_bytes(compiled.as_text(), turns)
  return {
    'hbm_bytes_per_chip': (
      memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    ),
    'peak_bytes_per_chip': memory.peak_memory_in_bytes,
    'weights_bytes': step.bytes_per_device(state.params),
    'moments_bytes': step.bytes_per_device(state.opt_state),
    'arguments_bytes': memory.argument_size_in_bytes,
    'temporaries_bytes': memory.temp_size_in_bytes,
    'outputs_bytes': memory.output_size_in_bytes,
    'executed_flops_per_step': cost.matmul_flops(traced.jaxpr, turns),
    'collective_bytes_per_step': sum(traffic.values()),
    'collectives': traffic,
    'compile_seconds': seconds,
  }  # fmt: skip


def _table(rows) -> str:
  """Markdown."""
  head = ['slice', 'chips', 'fits', 'weights', 'moments', 'rest', 'GiB at the peak', 'of', 'model PFLOP', 'executed']
  head += ['collectives GiB', 'step s (serial)', 'MFU', 'days', 'settings']
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [head, ['---'] * len(head), *map(_cells, rows)])


def _cells(row) -> list[str]:
  gib = lambda size: f'{size / 2**30:.1f}'
  settings = ', '.join(f'{name.split(".")[1]}={value}' for name, value in row['settings'].items() if value != 1)
  start, flops = [row['topology'], str(row['chips'])], f'{row["model_flops_per_step"] / 1e15:.2f}'
  if not row['fits']:
    return [*start, 'no', '-', '-', '-', '-', gib(row['hbm_capacity_bytes']), flops, *'-----', row['error']]
  rest = row['peak_bytes_per_chip'] - row['weights_bytes'] - row['moments_bytes']
  sizes = [row['weights_bytes'], row['moments_bytes'], rest, row['peak_bytes_per_chip'], row['hbm_capacity_bytes']]
  return [
    *[*start, 'yes', *map(gib, sizes), flops],
    f'{row["executed_flops_per_step"] / row["model_flops_per_step"]:.3f}',
    gib(row['collective_bytes_per_step']),
    f'{row["step_seconds"]:.2f} ({row["step_seconds_serial"]:.2f})',
    f'{row["mfu"]:.0%}',
    f'{row["days"]:.2g}',
    settings,
  ]


if __name__ == '__main__':
  asked = json.load(sys.stdin)
  print(json.dumps(compile_here(config.from_json(asked['experiment'], 'request'), asked['topology'], asked['options'])))
