"""The training step beside torch, and what packing, micro-batches and dropout do to its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_batches import examples_of, one_per_row, train_config

from mathqwen import hf
from mathqwen.config import Experiment, MeshConfig, OptimConfig
from mathqwen.data import packing
from mathqwen.hardware import sharding
from mathqwen.hf import layouts
from mathqwen.training import optim
from mathqwen.training import step as step_lib


def gradients(params, batch, cfg, **changes):
  run = jax.jit(lambda p, b: step_lib.gradients(p, b, jax.random.key(0), cfg=cfg, train=train_config(**changes)))
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
    self.state = step_lib.init_state(self.mesh, cfg, tx, 0, jax.tree.map(jnp.copy, params))
    self.compiled = step_lib.compile_step(self.mesh, cfg, self.experiment, tx)

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
  for tensor in layouts.file_tensors(cfg, family):
    ((path, layer),) = tensor.parts
    array = np.asarray(hf.weight_at(step.state.params, path))
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


def test_dropout_differs_between_steps(tiny_config, random_params):
  cfg = tiny_config(num_hidden_layers=1)
  no_learning = OptimConfig(learning_rate=1e-20, warmup_steps=0, schedule='constant')
  step = Stepper(cfg, random_params(cfg), no_learning, dropout=0.3)
  batch = one_per_row(examples_of(2) * 2, 12)
  losses = [step(batch)['loss_sum'] for _ in range(3)]
  assert len(set(losses)) == 3  # although the weights stay the same
  step.state = dataclasses.replace(step.state, step=step.state.step - 2)
  assert step(batch)['loss_sum'] == losses[1]  # a resumed run draws the same masks at the same step


def test_micro_batches_draw_their_own_dropout(tiny_config, random_params):
  """The gradient is the literal sum over micro-batches, each with the key folded with its index; not with one key."""
  cfg, key = tiny_config(num_hidden_layers=1), jax.random.key(7)
  params, batch = random_params(cfg), one_per_row(examples_of(4), 12)
  config = train_config(dropout=0.3, micro_batches=2)
  micro_batch = jax.jit(jax.value_and_grad(lambda p, rows, k: step_lib.loss_fn(p, rows, k, cfg=cfg, train=config)[0]))

  def literal(keys):
    """(gradient, sum of loss) with keys[0] for rows 0 and 2, keys[1] for rows 1 and 3."""
    losses, grads = zip(
      *(micro_batch(params, {name: x[i::2] for name, x in batch.items()}, k) for i, k in enumerate(keys)), strict=True
    )
    weight = batch['loss_weights'].sum()
    return jax.tree.map(lambda a, b: (a + b) / weight, *grads), float(sum(losses))

  got, loss_sum, _ = jax.jit(lambda p: step_lib.gradients(p, batch, key, cfg=cfg, train=config))(params)
  first, second = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
  want, want_sum = literal([first, second])
  assert float(loss_sum) == pytest.approx(want_sum, rel=2e-6)
  assert_same_gradients(got, want)
  for one_key in (key, first, second):
    other, other_sum = literal([one_key, one_key])
    assert abs(float(loss_sum) - other_sum) > 1e-2
    assert float(jnp.abs(got['head'] - other['head']).max()) > 1e-3
