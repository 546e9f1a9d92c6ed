"""Losses and answers on each mesh, as JSON; run with 8 simulated devices by `test_meshes.py`."""

import json
import math
import re

import jax
import numpy as np

from mathqwen import generate, sharding, train
from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from mathqwen.data import packing
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.optim import optimizer

CFG = ModelConfig(64, 32, 48, 2, 4, 2, 8, 64)
EXPERIMENT = Experiment(
  CFG,
  data=DataConfig(batch_size=8, seq_len=16),
  optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
  train=TrainConfig(steps=20, micro_batches=1, dropout=0.1, compute_dtype='float32', loss_chunk=8, remat='none'),
)
MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2))


def batch(step):
  """Rows of two examples each, with unequal numbers of loss tokens."""
  rng = np.random.default_rng(step)
  sizes = [n for row in range(8) for n in (3 + row, 14 - row)]
  examples = [(rng.integers(0, 64, n).astype(np.int32), (rng.random(n) < 0.6).astype(np.uint8)) for n in sizes]
  rows = packing.pack(examples, 16)
  return {name: values[:8] for name, values in rows.items()}


def mesh_of(shape):
  return sharding.make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def weights(mesh, scale):
  rng = np.random.default_rng(0)

  def draw(path, struct):
    return rng.normal(path[-1].key.endswith('norm'), scale, struct.shape).astype(np.float32)

  drawn = jax.tree_util.tree_map_with_path(draw, qwen.abstract(CFG))
  return jax.device_put(drawn, sharding.params_shardings(mesh, CFG))


def run(shape):
  mesh = mesh_of(shape)
  sharding.check(dict(mesh.shape), CFG, 8)
  tx = optimizer(EXPERIMENT.optim, 20)
  state = train.init_state(mesh, CFG, tx, 0, weights(mesh, 0.1))
  step = train.compile_step(mesh, CFG, EXPERIMENT, tx)
  losses = []
  for i in range(5):
    state, metrics = step(state, sharding.global_batch(batch(i % 2), mesh))
    losses.append(float(metrics['loss_sum'] / metrics['loss_tokens']))
  smallest = min(x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(state.opt_state))
  return {'losses': losses, 'smallest': smallest, 'compiled': step._cache_size()}


def logits(shape):
  """How many groups of positions the logits on a device belong to, in each array of them in the compiled step."""
  mesh = mesh_of(shape)
  tx = optimizer(EXPERIMENT.optim, 20)
  state = train.abstract_state(mesh, CFG, tx)
  compiled = train.compile_step(mesh, CFG, EXPERIMENT, tx).lower(state, sharding.global_batch(batch(0), mesh)).compile()
  return sorted(set(re.findall(rf'f32\[(\d+),[1248],{CFG.vocab_size // shape[2]}\]', compiled.as_text())))


def answers(shape):
  mesh = mesh_of(shape)
  prompts = [[5, 0, 9], [1] * 11, [0], [3, 2, 1, 0, 4], [60, 61]]
  return generate.generate(
    weights(mesh, 0.3), CFG, prompts, max_new_tokens=6, vocab_size=60, stop_ids=(63,), batch_size=8, mesh=mesh
  )


if __name__ == '__main__':
  results = {
    'trained': {'x'.join(map(str, shape)): run(shape) for shape in MESHES},
    'logits': logits((1, 4, 2)),
    'answers': [answers((1, 1, 1)), answers((2, 2, 2))],
  }
  print(json.dumps(results))
