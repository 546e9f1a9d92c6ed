"""Losses and answers on each mesh, as JSON; run with 8 simulated devices by `test_meshes.py`."""

import dataclasses
import itertools
import json
import math
import re

import jax
import numpy as np

from mathqwen import hf
from mathqwen.adapter_config import NO_ADAPTER, AdapterConfig
from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from mathqwen.data import packing, pairs, shared_prompts
from mathqwen.hardware import sharding
from mathqwen.inference import generate
from mathqwen.inference.budget import Budget
from mathqwen.inference.sampling import AnswerRequest
from mathqwen.model import attention, parameters, splash
from mathqwen.model.config import ModelConfig
from mathqwen.storage import base as storage_base
from mathqwen.training import step as step_lib
from mathqwen.training.optim import optimizer

CFG = ModelConfig(64, 32, 48, 2, 16, 8, 4, 64)  # 8 kv heads: tensor=8 is a mesh too
ODD = dataclasses.replace(CFG, vocab_size=66, tie_word_embeddings=True)  # rows that 2 divides, and 4 does not
STEPS = 20
EXPERIMENT = Experiment(
  CFG,
  data=DataConfig(batch_size=8, seq_len=16),
  optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
  train=TrainConfig(steps=STEPS, micro_batches=1, dropout=0.1, compute_dtype='float32', loss_chunk=2, remat='none'),
)
ONE = {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1}
SIZES = itertools.product((1, 2, 4, 8), repeat=len(ONE))
SHAPES = [dict(zip(ONE, sizes, strict=True)) for sizes in SIZES if math.prod(sizes) == 8]
# Every one without 'context', and of those with it the ones in which it stands alone or beside each other axis.
BESIDE = ({'context': 8}, {'fsdp': 2, 'context': 4}, {'data': 2, 'context': 4}, {'fsdp': 2, 'context': 2, 'tensor': 2})
MESHES = [ONE, *(shape for shape in SHAPES if shape['context'] == 1), *(ONE | shape for shape in BESIDE)]
# With dropout of its own, and lengths, which the frozen base gives
ADAPTER = AdapterConfig(4, dropout=0.1, targets=('q', 'k', 'o', 'up', 'down'), dora=True, base='float32')
BESIDE_EACH_OTHER = {'data': 2, 'fsdp': 2, 'tensor': 2}
SPLIT_ALL_WAYS = {'fsdp': 2, 'context': 2, 'tensor': 2}
ADAPTED_MESHES = [ONE | shape for shape in ({}, SPLIT_ALL_WAYS)]
# A base of 4 bits, with two blocks of inputs for mesh.tensor
ON_NF4 = AdapterConfig(4, base='nf4')
BLOCKS = dataclasses.replace(CFG, intermediate_size=128)
BLOCKS_MESHES = ADAPTED_MESHES
ODD_MESHES = [ONE | shape for shape in ({}, {'fsdp': 8}, {'fsdp': 4, 'tensor': 2}, {'fsdp': 2, 'context': 4})]


def batch(step):
  """Rows of two examples each, with unequal numbers of loss tokens."""
  rng = np.random.default_rng(step)
  sizes = [n for row in range(8) for n in (3 + row, 14 - row)]
  examples = [(rng.integers(0, 64, n).astype(np.int32), (rng.random(n) < 0.6).astype(np.uint8)) for n in sizes]
  rows = packing.pack(examples, 16)
  return {name: values[:8] for name, values in rows.items()}


def name_of(shape):
  return ' '.join(f'{axis}={size}' for axis, size in shape.items() if size > 1) or 'one'


def mesh_of(shape):
  return sharding.make_mesh(MeshConfig(**shape), jax.devices()[: math.prod(shape.values())])


def weights(mesh, scale, cfg=CFG):
  rng = np.random.default_rng(0)

  def draw(path, struct):
    return rng.normal(path[-1].key.endswith('norm'), scale, struct.shape).astype(np.float32)

  drawn = jax.tree_util.tree_map_with_path(draw, parameters.abstract(cfg))
  return jax.device_put(drawn, sharding.params_shardings(mesh, cfg))


def held(params, mesh, cfg, kind, tables=False):
  """`params` of `weights`, as they are held when they are read."""
  return storage_base.read_held(hf.ArrayWeights(params), cfg, mesh, None, kind, tables)


def run(shape, cfg=CFG, adapter=NO_ADAPTER):
  mesh = mesh_of(shape)
  sharding.check(dict(mesh.shape), cfg, 8, base=adapter.base)
  tx = optimizer(EXPERIMENT.optim, STEPS)
  experiment = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, adapter=adapter))
  params = weights(mesh, 0.1, cfg)
  base = (held(params, mesh, cfg, adapter.base),) if adapter.rank else ()
  state = step_lib.init_state(mesh, cfg, tx, 0, params, adapter, *base)
  step = step_lib.compile_step(mesh, cfg, experiment, tx)
  losses = []
  for i in range(STEPS):
    state, metrics = step(state, *base, sharding.global_batch(batch(i % 2), mesh))
    losses.append(float(metrics['loss_sum'] / metrics['loss_tokens']))
  smallest = min(x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(state.opt_state))
  return {'losses': losses, 'smallest': smallest, 'compiled': step._cache_size()}


def answers_to_questions(step, shared):
  """24 rows: three answers to each of eight questions, which they share or not."""
  rng = np.random.default_rng(step)
  examples = []
  for _ in range(8):
    question = rng.integers(0, 64, 5)
    for size in rng.integers(2, 6, 3):
      ids = np.concatenate([question, rng.integers(0, 64, size)]).astype(np.int32)
      examples.append((ids, np.repeat(np.array([0, 1], np.uint8), [5, size])))
  rows = (shared_prompts if shared else packing).pack(examples, 16)
  return {name: np.pad(values, ((0, 24 - len(values)), (0, 0))) for name, values in rows.items()}


def learn_answers(shape, shared):
  """(losses of three steps, positions that hold a token)."""
  experiment = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, dropout=0.0))
  mesh, tx = mesh_of(shape), optimizer(experiment.optim, STEPS)
  state = step_lib.init_state(mesh, CFG, tx, 0, weights(mesh, 0.1))
  step = step_lib.compile_step(mesh, CFG, experiment, tx)
  losses, tokens = [], 0
  for i in range(3):
    state, metrics = step(state, sharding.global_batch(answers_to_questions(i, shared), mesh))
    losses.append(float(metrics['loss_sum'] / metrics['loss_tokens']))
    tokens += int(metrics['tokens'])
  return losses, tokens


def batch_of_pairs(step):
  """16 rows, of which each part of a batch has another number of pairs."""
  rng = np.random.default_rng(step)
  examples = []
  for _ in range(11):
    question = rng.integers(0, 64, 2)
    for size in rng.integers(1, 5, 2):
      ids = np.concatenate([question, rng.integers(0, 64, size)]).astype(np.int32)
      examples.append((ids, np.repeat(np.array([0, 1], np.uint8), [2, size])))
  rows = pairs.pack(examples, 16)
  return {name: np.pad(values, ((0, 16 - len(values)), (0, 0))) for name, values in rows.items()}


def learn_pairs(shape):
  """Means of three steps on pairs: the losses, the margins, and the norms of the gradients."""
  mesh, tx = mesh_of(shape), optimizer(EXPERIMENT.optim, STEPS)
  train = dataclasses.replace(EXPERIMENT.train, dropout=0.0, objective='dpo', dpo_form='mean', micro_batches=2)
  experiment = dataclasses.replace(EXPERIMENT, train=train)
  state = step_lib.init_state(mesh, CFG, tx, 0, weights(mesh, 0.1))
  base = weights(mesh, 0.1)
  step = step_lib.compile_step(mesh, CFG, experiment, tx)
  found = []
  for i in range(3):
    state, metrics = step(state, base, sharding.global_batch(batch_of_pairs(i), mesh))
    found += [
      float(metrics['loss_sum'] / metrics['pairs']),
      float(metrics['reward_margin']),
      float(metrics['grad_norm']),
    ]
  return found


def splash_on(shape):
  """Largest differences of splash's output and gradients, on a mesh, from those of the reference."""
  T, mesh = 256, mesh_of(shape)
  rng = np.random.default_rng(0)
  qkvg = [rng.standard_normal((2, T, 2, 8)).astype(np.float32) for _ in range(4)]
  parts = [(1, 0, 20), (1, 1, 30), (1, 2, 11), (1, 3, 69), (2, 0, 33), (3, 1, 9), (3, 2, 84)]
  segments, answers = np.concatenate([np.tile([[s], [a]], size) for s, a, size in parts], 1).astype(np.int32)
  segments, answers = (np.stack([ids, np.flip(ids.max() - ids)]) for ids in (segments, answers))
  found = []
  for attend in (attention.reference, splash.make(mesh, interpret=True)):

    @jax.jit
    def both(q, k, v, g, attend=attend):
      out, back = jax.vjp(lambda *qkv: attend(*qkv, segments, answers), q, k, v)
      return (out, *back(g))

    found.append(both(*qkvg))
  return [float(abs(a - b).max()) for a, b in zip(*found, strict=True)]


def logits(shape, cfg=CFG):
  """(groups of positions, vocabulary) of the logits on a device, of each array of them in the compiled step."""
  mesh, V = mesh_of(shape), cfg.vocab_size
  tx = optimizer(EXPERIMENT.optim, STEPS)
  state = step_lib.abstract_state(mesh, cfg, tx)
  compiled = (
    step_lib.compile_step(mesh, cfg, EXPERIMENT, tx).lower(state, step_lib.abstract_batch(mesh, EXPERIMENT)).compile()
  )
  return sorted(set(re.findall(rf'f32\[(\d+),[1248],({V}|{V // math.prod(shape.values())})\]', compiled.as_text())))


def answers(shape, budget=False, kind='float32'):
  """Of 13 prompts in 4 slots, and the programs that were made for them.

  budget: closes every other one's thinking. kind: how the weights are held.
  """
  mesh = mesh_of(shape)
  prompts = [[5, 0, 9], [1] * 11, [0], [3, 2, 1, 0, 4], [60, 61], *([i, 7] for i in range(8))]
  limits = [6, 2, 9, 1, 4, 5, 3, 8, 2, 7, 6, 3, 5]
  programs = lambda: [f._cache_size() for f in (generate.prefill, generate.insert, generate.decode)]
  before = programs()
  request, execution = AnswerRequest(limits, 60, (63,)), generate.Execution(batch_size=4, mesh=mesh)
  limited = Budget(2, lambda index, ids: [7, 8] if index % 2 else None) if budget else None
  params = held(weights(mesh, 0.3), mesh, CFG, kind, tables=True)
  found = generate.generate(params, CFG, prompts, request, execution, budget=limited)
  return found, [now - then for now, then in zip(programs(), before, strict=True)]


if __name__ == '__main__':
  trained, odd, adapted, on_nf4 = (
    [{'mesh': shape, 'name': name_of(shape)} | run(shape, cfg, adapter) for shape in shapes]
    for cfg, shapes, adapter in (
      (CFG, MESHES, NO_ADAPTER),
      (ODD, ODD_MESHES, NO_ADAPTER),
      (CFG, ADAPTED_MESHES, ADAPTER),
      (BLOCKS, BLOCKS_MESHES, ON_NF4),
    )
  )
  both = [answers(shape, budget) for budget in (False, True) for shape in (ONE, ONE | BESIDE_EACH_OTHER)]
  in_int8 = [answers(shape, kind='int8') for shape in (ONE, ONE | BESIDE_EACH_OTHER)]
  split, whole = logits(ONE | {'fsdp': 4, 'tensor': 2}), logits(ONE | {'fsdp': 8}, ODD)
  together = ONE | {'fsdp': 2, 'context': 2, 'tensor': 2}
  shared = [learn_answers(ONE, False), learn_answers(together, True)]
  found = {
    'trained': trained,
    'odd': odd,
    'logits': split,
    'odd_logits': whole,
    'answers': both,
    'shared': shared,
    'adapted': adapted,
    'pairs': [learn_pairs(shape) for shape in (ONE, together)],
    'on_nf4': on_nf4,
    'in_int8': in_int8,
  }
  print(json.dumps(found | {'splash': splash_on(together)}))
