import contextlib
import dataclasses
import json
import logging
import pathlib
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from mathqwen.data import packing, pipeline
from mathqwen.hardware import chips, sharding
from mathqwen.hardware.flops import model_flops
from mathqwen.hf import layouts
from mathqwen.hf.reading import at
from mathqwen.storage import checkpoint
from mathqwen.training import optim, train


def examples_of(count, vocab_size=97, longest=12, seed=0):
  """(ids, mask) with unequal lengths and unequal numbers of loss tokens."""
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    ids = rng.integers(0, vocab_size, rng.integers(4, longest + 1)).astype(np.int32)
    mask = np.zeros(len(ids), np.uint8)
    mask[rng.integers(1, len(ids)) :] = 1
    found.append((ids, mask))
  return found


def one_per_row(examples, seq_len):
  rows = [packing.pack([example], seq_len) for example in examples]
  return {name: np.concatenate([row[name] for row in rows]) for name in packing.FEATURES}


def train_config(**changes):
  return TrainConfig(**{'dropout': 0.0, 'compute_dtype': 'float32', 'remat': 'none', 'loss_chunk': 6} | changes)


def gradients(params, batch, cfg, **changes):
  run = jax.jit(lambda p, b: train.gradients(p, b, jax.random.key(0), cfg=cfg, train=train_config(**changes)))
  return run(params, batch)


def assert_same_gradients(got, want):
  # Sums of some hundred terms in another order: 80 times the rounding of one, of the largest entry.
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=str(path))


def test_packed_rows_learn_what_padded_rows_learn(tiny_config, random_params):
  cfg = tiny_config('qwen2')
  examples, params = examples_of(9), random_params(cfg)
  packed, padded = packing.pack(examples, 24), one_per_row(examples, 12)
  assert len(packed['tokens']) < 6 and packed['segment_ids'].max() >= 2
  got, loss_sum, weight = gradients(params, packed, cfg)
  want, want_sum, want_weight = gradients(params, padded, cfg)
  assert float(weight) == float(want_weight) == sum(mask[1:].sum() for _, mask in examples)
  assert float(loss_sum) == pytest.approx(float(want_sum), rel=2e-6)
  assert_same_gradients(got, want)


def test_micro_batches_leave_the_gradient(tiny_config, random_params):
  cfg = tiny_config('qwen3')
  params, batch = random_params(cfg), one_per_row(examples_of(8), 12)
  counts = batch['loss_weights'].sum(axis=1)
  assert len(set(counts.tolist())) > 3
  want, want_sum, want_weight = gradients(params, batch, cfg)
  for parts in (2, 8):
    got, loss_sum, weight = gradients(params, batch, cfg, micro_batches=parts)
    assert float(weight) == float(want_weight) == counts.sum()
    assert float(loss_sum) == pytest.approx(float(want_sum), rel=2e-6)
    assert_same_gradients(got, want)


class Stepper:
  """The compiled step of an experiment on one device."""

  def __init__(self, cfg, params, optim_config, steps=100, **changes):
    self.experiment = Experiment(cfg, optim=optim_config, train=train_config(steps=steps, **changes))
    self.mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optim.optimizer(optim_config, steps)
    self.state = train.init_state(self.mesh, cfg, tx, 0, jax.tree.map(jnp.copy, params))
    self.compiled = train.compile_step(self.mesh, cfg, self.experiment, tx)

  def __call__(self, batch):
    self.state, metrics = self.compiled(self.state, sharding.global_batch(batch, self.mesh))
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize('family', ['qwen2', 'qwen3'])
def test_twenty_steps_of_torch(family, torch_model, from_torch):
  import torch

  reference = torch_model(family, num_hidden_layers=2)
  cfg, params = from_torch(reference)
  step = Stepper(cfg, params, OptimConfig(learning_rate=5e-3, warmup_steps=40))
  plain = lambda name: 'norm' in name or name.endswith('bias')
  tx = torch.optim.AdamW(
    [
      {'params': [w for n, w in reference.named_parameters() if not plain(n)], 'weight_decay': 0.1},
      {'params': [w for n, w in reference.named_parameters() if plain(n)], 'weight_decay': 0.0},
    ],
    betas=(0.9, 0.95),
    eps=1e-8,
  )
  norms, losses = [], []
  for i in range(20):
    batch = one_per_row(examples_of(4, seed=i % 5), 12)
    tokens, targets, weights = (torch.tensor(batch[n]) for n in ('tokens', 'targets', 'loss_weights'))
    # Rows are padded on the right, which no earlier token sees.
    nll = torch.nn.functional.cross_entropy(
      reference(tokens).logits.flatten(0, 1), targets.long().flatten(), reduction='none'
    )
    loss = (nll * weights.flatten()).sum() / weights.sum()
    tx.zero_grad()
    loss.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)))
    for group in tx.param_groups:
      group['lr'] = 5e-3 * i / 40
    tx.step()
    metrics = step(batch)
    losses.append(metrics['loss_sum'] / metrics['loss_tokens'])
    assert abs(losses[-1] - float(loss.detach())) < 1e-4, i
    assert metrics['grad_norm'] == pytest.approx(norms[-1], rel=1e-3)
  assert min(norms[:3]) > 1  # clipped
  assert losses[15] < losses[0] - 0.1
  # Not the losses alone: decay of norms and biases would hardly show in those.
  after = {name: weight.detach().numpy() for name, weight in reference.named_parameters()}
  for tensor in layouts.stored(cfg, family):
    ((path, layer),) = tensor.parts
    array = np.asarray(at(step.state.params, path))
    ours = (array if layer is None else array[layer]).reshape(tensor.shape)
    assert np.abs(ours - after[tensor.name]).max() < 2e-4, tensor.name


def test_masters_and_moments_are_float32_and_move(tiny_config):
  from mathqwen.model import qwen

  cfg = tiny_config('qwen2', num_hidden_layers=2)
  before = jax.jit(qwen.init, static_argnums=1)(jax.random.key(0), cfg)
  constant = OptimConfig(learning_rate=2e-5, warmup_steps=0, schedule='constant')
  step = Stepper(cfg, before, constant, compute_dtype='bfloat16')
  for i in range(2):
    assert np.isfinite(step(one_per_row(examples_of(4, seed=i), 12))['loss_sum'])
  floats = [x.dtype for x in jax.tree.leaves(step.state) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert set(floats) == {jnp.dtype('float32')} and len(floats) == 3 * len(jax.tree.leaves(before))
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(step.state.params), jax.tree.leaves(before), strict=True):
    # Adam's first steps are as long as the learning rate; bfloat16 would round them away.
    assert float(jnp.mean(a != b)) > 0.9, path
    assert float(jnp.abs(a - b).max()) < 4.1e-5, path


def test_dropout_differs_between_steps_and_parts(tiny_config, random_params):
  cfg = tiny_config(num_hidden_layers=1)
  params = random_params(cfg)
  still = OptimConfig(learning_rate=1e-20, warmup_steps=0, schedule='constant')
  step = Stepper(cfg, params, still, dropout=0.3)
  batch = one_per_row(examples_of(2) * 2, 12)
  losses = [step(batch)['loss_sum'] for _ in range(3)]
  assert len(set(losses)) == 3  # the weights stand still
  step.state = dataclasses.replace(step.state, step=step.state.step - 2)
  assert step(batch)['loss_sum'] == losses[1]  # a step draws the same in a run that was continued
  # Two parts that hold the same rows draw different masks: with one draw the sum would be twice a part's.
  rows = one_per_row(examples_of(1) * 2, 12)
  key, config = jax.random.key(0), train_config(dropout=0.3, micro_batches=2)
  total = jax.jit(lambda p: train.gradients(p, rows, key, cfg=cfg, train=config)[1])(params)
  half = jax.tree.map(lambda x: x[:1], rows)
  part = jax.jit(lambda p: train.loss_fn(p, half, jax.random.fold_in(key, 0), cfg=cfg, train=config)[0])(params)
  assert abs(float(total) - 2 * float(part)) > 1e-3


@contextlib.contextmanager
def compilations():
  """Counter-like list of the names of jitted functions, as XLA compiles them."""
  names, logger = [], logging.getLogger('jax._src.interpreters.pxla')

  class Handler(logging.Handler):
    def emit(self, record):
      message = record.getMessage()
      if message.startswith('Compiling '):
        names.append(message.split()[1])

  handler, level, propagate = Handler(), logger.level, logger.propagate
  logger.addHandler(handler)
  logger.setLevel(logging.DEBUG)
  logger.propagate = False
  try:
    yield names
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def small_run(tiny_config, tmp_path):
  """small_run(steps=5) -> (experiment, workdir, data, mesh) to fit."""

  def make(**changes):
    experiment = Experiment(
      tiny_config(num_hidden_layers=1),
      data=DataConfig(batch_size=2, seq_len=12, eval_examples=3),
      optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
      train=train_config(**changes),
    )
    (encoded,), held_out = pipeline.hold_out([pipeline.Encoded.of(examples_of(20))], 3, 0)
    data = types.SimpleNamespace(
      held_out=held_out,
      train=lambda: pipeline.train_batches([encoded], (), 2, 12, 0),
      eval=lambda: pipeline.eval_batches(held_out, 2, 12),
    )
    (tmp_path / 'run').mkdir()
    return experiment, str(tmp_path / 'run'), data, sharding.make_mesh(MeshConfig(), jax.devices()[:1])

  return make


def test_one_program_for_all_steps(small_run):
  experiment, workdir, data, mesh = small_run(steps=5, log_every=2, eval_every=2, checkpoint_every=3)
  with compilations() as names:
    summary = train.fit(experiment, workdir, data, mesh)
  assert summary['step'] == 5 and summary['eval_loss'] > 0
  counts = {name: sum(name in compiled for compiled in names) for name in ('train_step', 'eval_step')}
  assert counts == {'train_step': 1, 'eval_step': 1}, names
  # Continued, it is one program as well, which refuses what is not laid out as what the step returns.
  longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=7))
  with compilations() as names:
    assert train.fit(longer, workdir, data, mesh)['step'] == 7
  assert sum('train_step' in compiled for compiled in names) == 1, names


class Slow:
  """0.4 seconds for a batch."""

  def __init__(self, batches):
    self._batches, self.get_state = batches, batches.get_state

  def __next__(self):
    time.sleep(0.4)
    return next(self._batches)


def test_where_the_time_of_a_run_goes(small_run, monkeypatch):
  experiment, workdir, data, mesh = small_run(
    steps=4, log_every=1, eval_every=4, checkpoint_every=2, compute_dtype='bfloat16'
  )
  monkeypatch.setitem(chips.DEVICE_FLOPS, 'cpu', 1e9)
  make, save, evaluate = data.train, checkpoint.Checkpoints.save, data.eval
  data.train = lambda: Slow(make())
  data.eval = lambda: time.sleep(0.3) or evaluate()
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *args: time.sleep(2.5) or save(*args))
  summary = train.fit(experiment, workdir, data, mesh)
  lines = [json.loads(line) for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()]
  windows = {line['step']: line for line in lines if 'loss' in line}
  assert list(windows) == [1, 2, 3, 4] and windows[1]['input_seconds'] >= 0.4
  flops = model_flops(experiment.model, 2, 12)
  for window in windows.values():
    assert 0 < window['input_seconds'] < window['step_seconds']  # the step before hides some of the wait
    assert window['step_seconds'] < 2.5  # neither compiling nor saving is in it
    assert window['mfu'] == pytest.approx(flops / window['step_seconds'] / 1e9)
  (saves, evals) = ([line for line in lines if name in line] for name in ('checkpoint_seconds', 'eval_loss'))
  assert [line['step'] for line in saves] == [2, 4] and all(line['checkpoint_seconds'] >= 2.5 for line in saves)
  assert [line['step'] for line in evals] == [4] and evals[0]['eval_seconds'] >= 0.3
  assert summary['mfu'] == windows[4]['mfu']
  assert summary['input_seconds'] == pytest.approx(sum(w['input_seconds'] for w in windows.values()))
  assert summary['checkpoint_seconds'] >= 5 and summary['compile_seconds'] > 0
  stepping = sum(window['step_seconds'] for window in windows.values())
  assert stepping > 4 * 0.4
  names = ('compile_seconds', 'checkpoint_seconds', 'eval_seconds')
  assert stepping + sum(summary[name] for name in names) < summary['total_seconds']
  assert summary['goodput'] == pytest.approx((stepping - summary['input_seconds']) / summary['total_seconds'])
