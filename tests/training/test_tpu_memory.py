"""Memory of a training step on a TPU, as its compiler says: what `placement.opaque_one` saves.

A small step is compiled for a v5e chip, which is not here, in a process of its own: libtpu takes one kind of chip in a
process. `python tests/training/test_tpu_memory.py` compiles it with and without and prints both, and what all arrays of
the step take with and without `optim.offload`.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TPU = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'PYTHONPATH': str(ROOT),
}


def compile_step(opaque: bool, offload: bool = False) -> tuple[float, float]:
  """Bytes of (temporaries, arguments and temporaries) for each byte of the weights."""
  import jax
  from jax.experimental import topologies

  from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
  from mathqwen.hardware import sharding
  from mathqwen.model import qwen
  from mathqwen.model.config import ModelConfig
  from mathqwen.training import optim, step

  if not opaque:
    qwen.opaque_one = lambda segment_ids_BT: jax.numpy.float32(1)
  # Large enough that a copy of the layers does not fit into the chip's VMEM, where XLA keeps small temporaries. Nothing
  # is allocated here.
  cfg = ModelConfig(512, 2048, 4096, 8, 16, 8, 128, 1024)
  experiment = Experiment(
    cfg,
    data=DataConfig(batch_size=1, seq_len=128),
    optim=OptimConfig(warmup_steps=1, offload=offload),
    train=TrainConfig(steps=10, dropout=0.0),
  )
  options = {'chips_per_host_bounds': (1, 1, 1)}
  devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:1x1', **options).devices
  mesh = sharding.make_mesh(MeshConfig(), devices)
  tx = optim.optimizer(experiment.optim, experiment.train.steps)
  state = step.abstract_state(mesh, cfg, tx)
  compiled = step.compile_step(mesh, cfg, experiment, tx).lower(state, step.abstract_batch(mesh, experiment)).compile()
  memory, weights = compiled.memory_analysis(), step.bytes_per_device(state.params)
  return memory.temp_size_in_bytes / weights, (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / weights


def compiled_elsewhere(*arguments: str) -> list[float]:
  env = {name: value for name, value in os.environ.items() if name != 'JAX_DISABLE_MOST_OPTIMIZATIONS'} | TPU
  command = [sys.executable, __file__, 'compile', *arguments]
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=590)
  assert done.returncode == 0, done.stderr[-2000:]
  return [float(number) for number in done.stdout.splitlines()[-1].split()]


@pytest.mark.timeout(600)  # a minute of compiling, on a machine that does nothing else
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="no TPU compiler: pip install 'jax[tpu]'")
def test_no_copy_of_all_layers_in_bfloat16():
  """Gradients are 1 byte for each byte of the float32 weights, activations 0.1; a bfloat16 copy would add 0.5."""
  assert compiled_elsewhere()[0] < 1.35


if __name__ == '__main__':
  if 'compile' in sys.argv:
    print(*compile_step('plain' not in sys.argv, 'offload' in sys.argv))
  else:
    (temporaries, both), (plain, _), (_, offloaded) = map(compiled_elsewhere, ('opaque', 'plain', 'offload'))
    print(f'temporaries by weights: {temporaries:.2f}, without opaque_one {plain:.2f}')
    print(f'arguments and temporaries by weights: {both:.2f}, with optim.offload {offloaded:.2f}')
