"""The TPU compiler: the training step compiled for a slice that is not here.

libtpu takes one kind of chip per process, so each slice is compiled in a process of its own: `compile_for` starts
`python -m mathqwen.planning.compiler`, which reads a request from standard input and answers with one line of JSON.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

from mathqwen import compat, config
from mathqwen.errors import UserError, report
from mathqwen.hardware import chips


def check_installed():
  """UserError: when the TPU compiler is not here. Says so when it is that of another JAX."""
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      f'plan needs the TPU compiler of this JAX, which needs no TPU: pip install {compat.tpu_requirement()}'
    )
  if warning := compat.other_libtpu():
    report(warning)


def compile_for(experiment: config.Experiment, where: chips.Slice) -> dict[str, Any]:
  """What `compile_here` finds for a slice, in a process of its own.

  {'error': one line, 'compile_seconds'} when the step needs more memory than the slice has.
  UserError: when the compiler fails in any other way, which says nothing about the slice.
  """
  return _in_own_process({'experiment': config.to_json(experiment)}, where)


def compile_answers(experiment: config.Experiment, slots: dict[str, Any], where: chips.Slice) -> dict[str, Any]:
  """The same for `answer_steps.compile_here`. slots: the fields of `answer_steps.Slots`."""
  return _in_own_process({'experiment': config.to_json(experiment), 'slots': slots}, where)


def _in_own_process(request: dict[str, Any], where: chips.Slice) -> dict[str, Any]:
  request |= {'topology': f'{where.chip.name}:{where.topology}', 'options': _topology_options(where)}
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',  # no metadata server is asked what machine this is
    'TPU_ACCELERATOR_TYPE': where.accelerator_type,
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several plans may run at a time
  }
  done = subprocess.run(
    [sys.executable, '-m', 'mathqwen.planning.compiler'],
    input=json.dumps(request),
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  if done.returncode > 0:  # what `main` does not catch is a defect of ours
    raise RuntimeError(f'the step for {where.name} did not compile:\n{done.stderr}')
  if done.returncode == -signal.SIGKILL:
    raise UserError(f'{where.name}: the TPU compiler was killed, most likely for lack of memory on this machine')
  if done.returncode < 0:  # libtpu is C++, and aborts where it meets what it does not expect
    fatal = re.search(r'^F\d{4} .*', done.stderr, re.MULTILINE)
    said = f'{signal.Signals(-done.returncode).name} {fatal.group() if fatal else ""}'.strip()
    raise UserError(_compiler_failed(where, said))
  answer = json.loads(done.stdout.splitlines()[-1])
  if 'refused' in answer:
    raise UserError(f'{where.name}: {answer["refused"]}')
  if 'failed' in answer:
    raise UserError(_compiler_failed(where, answer['failed']))
  return answer


def _compiler_failed(where: chips.Slice, said: str) -> str:
  cause = compat.other_libtpu() or 'the libtpu here is the one of this JAX, so please report this with your config'
  return f'{where.name}: the TPU compiler failed, which says nothing about the slice: {said[:300]}; {cause}'


def compile_here(experiment: config.Experiment, topology: str, options: dict[str, Any]) -> dict[str, Any]:
  """Memory in bytes, FLOPs and traffic of the step; {'error', 'compile_seconds'} when XLA says that it is too large.

  topology, options: of `jax.experimental.topologies.get_topology_desc`.
  """
  import jax

  from mathqwen.hardware import cost, sharding
  from mathqwen.training import loss, optim, step

  mesh = sharding.make_mesh(experiment.mesh, _devices(topology, options))
  tx = optim.optimizer(experiment.optim, experiment.train.steps)
  adapter = experiment.train.adapter
  state = step.abstract_state(mesh, experiment.model, tx, adapter)
  frozen = experiment.train.frozen
  base = step.abstract_base(mesh, experiment.model, frozen) if frozen else {}

  started = time.monotonic()
  traced = step.compile_step(mesh, experiment.model, experiment, tx).trace(
    state, *step.abstract_inputs(mesh, experiment)
  )
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return {'error': str(error).splitlines()[0], 'compile_seconds': time.monotonic() - started}
  seconds = time.monotonic() - started

  # The loss head's loop depends on data; these are its turns when every position has a loss.
  rows = experiment.data.batch_size // experiment.train.micro_batches // sharding.batch_shards(dict(mesh.shape))
  turns = loss.turns(rows * experiment.data.seq_len // mesh.shape['context'], experiment.train.loss_chunk)
  traffic = cost.collective_bytes(compiled.as_text(), turns)
  return _memory(compiled.memory_analysis()) | {
    'weights_bytes': step.bytes_per_device((base, state.params)),
    'frozen_bytes': step.bytes_per_device(base),  # of these
    'moments_bytes': step.bytes_per_device(state.opt_state),
    'host_moments_bytes': step.bytes_per_device(state.opt_state, of_host=True),
    'executed_flops_per_step': cost.matmul_flops(traced.jaxpr, turns),
    'collective_bytes_per_step': sum(traffic.values()),
    'collectives': traffic,
    'compile_seconds': seconds,
  }


def _devices(topology: str, options: dict[str, Any]) -> list:
  from jax.experimental import topologies

  return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices


def _topology_options(where: chips.Slice) -> dict[str, Any]:
  options = {}
  if where.chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if where.count > 1:
    options['num_slices'] = where.count
  if where.chip.name == 'v4':
    options['chip_config_name'] = 'megacore'  # one device a chip, as on a real v4
  return options


def _memory(analysis) -> dict[str, int]:
  arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
  outputs = analysis.output_size_in_bytes
  return {
    'hbm_bytes_per_chip': arguments + temporaries + outputs - analysis.alias_size_in_bytes,
    # The compiler's peak includes what is in the memory of the host.
    'peak_bytes_per_chip': analysis.peak_memory_in_bytes - analysis.host_argument_size_in_bytes,
    'arguments_bytes': arguments,
    'temporaries_bytes': temporaries,
    'outputs_bytes': outputs,
  }


def main():
  """Answers one request: reads it from standard input, writes one line of JSON.

  The answer is that of `compile_here` or `answer_steps.compile_here`, or {'refused': one line} for what is wrong with
  the settings, or {'failed': one line} for what went wrong in JAX or libtpu.
  """
  request = json.load(sys.stdin)
  experiment = config.from_json(request['experiment'], 'request')
  try:
    if 'slots' in request:
      from mathqwen.planning import answer_steps

      devices = _devices(request['topology'], request['options'])
      answer = answer_steps.compile_here(experiment.model, answer_steps.Slots(**request['slots']), devices)
    else:
      answer = compile_here(experiment, request['topology'], request['options'])
  except UserError as error:
    answer = {'refused': str(error)}
  except (RuntimeError, OSError, ImportError) as error:  # JAX's own errors are RuntimeErrors
    answer = {'failed': f'{type(error).__name__}: {error}'.splitlines()[0]}
  print(json.dumps(answer))


if __name__ == '__main__':
  main()
