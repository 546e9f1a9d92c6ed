"""The training step beside torch, and what packing, micro-batches and dropout do to its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_batches import examples_of, one_per_row, train_config

from mathqwen import hf
from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig
from mathqwen.data import packing, shared_prompts
from mathqwen.hardware import sharding
from mathqwen.hf import layouts
from mathqwen.model import attention, parameters, qwen
from mathqwen.model.compute import Dropout
from mathqwen.model.config import RopeScaling
from mathqwen.model.placement import NO_PLACEMENT
from mathqwen.training import loss, optim
from mathqwen.training import step as step_lib


def gradients(params, batch, cfg, **changes):
  run = jax.jit(lambda p, b: step_lib.gradients(p, b, jax.random.key(0), cfg=cfg, train=train_config(**changes)))
  grads, loss_sum, sums = run(params, batch)
  return grads, loss_sum, sums['loss_tokens']


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


@pytest.mark.parametrize(
  'family, model, train',
  [
    ('qwen2', {'rope_scaling': RopeScaling('yarn', 4.0, 8)}, {'remat': 'full', 'micro_batches': 2}),
    ('qwen3', {'rope_scaling': RopeScaling('dynamic', 2.0)}, {'remat': 'nested', 'attention': 'reference'}),
  ],
)
def test_answers_to_one_question_learn_what_they_learn_alone(
  family, model, train, tiny_config, random_params, questions_and_answers
):
  cfg = tiny_config(family, **model)
  assert cfg.num_attention_heads > cfg.num_key_value_heads and cfg.qk_norm == (family == 'qwen3')
  params, examples = random_params(cfg), questions_and_answers([5, 1, 3, 4])
  shared = shared_prompts.pack(examples, 32)
  shared = {name: np.pad(rows, ((0, len(rows) % 2), (0, 0))) for name, rows in shared.items()}
  alone = one_per_row(examples, 16)
  assert np.sum(shared['segment_ids'] > 0) < 0.8 * np.sum(alone['segment_ids'] > 0) and shared['answer_ids'].max() > 2
  got, loss_sum, weight = gradients(params, shared, cfg, **train)
  want, want_sum, want_weight = gradients(params, alone, cfg)
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
    mean = (nll * weights.flatten()).sum() / weights.sum()
    tx.zero_grad()
    mean.backward()
    norms.append(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)))
    for group in tx.param_groups:
      group['lr'] = 5e-3 * i / 40
    tx.step()
    metrics = step(batch)
    losses.append(metrics['loss_sum'] / metrics['loss_tokens'])
    assert abs(losses[-1] - float(mean.detach())) < 1e-4, i
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
  cfg = tiny_config('qwen2', num_hidden_layers=2)
  before = jax.jit(parameters.init, static_argnums=1)(jax.random.key(0), cfg)
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


def test_every_row_draws_its_own_dropout(tiny_config, random_params):
  """By its number in the batch: with any micro-batches, the gradient is the literal sum over single rows."""
  cfg, key = tiny_config(num_hidden_layers=1), jax.random.key(7)
  params, batch = random_params(cfg), one_per_row(examples_of(4), 12)
  config = train_config(dropout=0.3)
  one_row = jax.jit(
    jax.value_and_grad(lambda p, rows, n: step_lib.loss_fn(p, rows, key, cfg=cfg, train=config, numbers=n)[0])
  )

  def literal(numbers):
    """(gradient, sum of loss), when the rows have these numbers."""
    rows = [{name: x[i : i + 1] for name, x in batch.items()} for i in range(4)]
    losses, grads = zip(
      *(one_row(params, row, np.array([n])) for row, n in zip(rows, numbers, strict=True)), strict=True
    )
    weight = batch['loss_weights'].sum()
    return jax.tree.map(lambda *each: sum(each) / weight, *grads), float(sum(losses))

  want, want_sum = literal([0, 1, 2, 3])
  for micro_batches in (1, 2):
    train = train_config(dropout=0.3, micro_batches=micro_batches)
    got, loss_sum, _ = jax.jit(lambda p, train=train: step_lib.gradients(p, batch, key, cfg=cfg, train=train))(params)
    assert float(loss_sum) == pytest.approx(want_sum, rel=2e-6)
    assert_same_gradients(got, want)
  for numbers in ([0, 0, 0, 0], [0, 1, 0, 1], [0, 2, 1, 3]):
    other, other_sum = literal(numbers)
    assert abs(want_sum - other_sum) > 1e-2
    assert float(jnp.abs(want['head'] - other['head']).max()) > 1e-3


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_gradients_of_the_tables_pass_a_barrier(micro_batches, tiny_config, equations):
  """One barrier takes exactly the gradients of the weights that are not stacked by layer.

  Its effect shows only on TPUs and at full size, too large to compile here: the comment in `step.gradients` gives the
  memory that it saves for Qwen2.5-7B.
  """
  cfg = tiny_config(num_hidden_layers=1)
  batch = one_per_row(examples_of(2), 12)
  train = train_config(micro_batches=micro_batches)
  run = lambda params: step_lib.gradients(params, batch, jax.random.key(0), cfg=cfg, train=train)
  barriers = equations(jax.make_jaxpr(run)(parameters.abstract(cfg)), 'optimization_barrier')
  shapes = [sorted(variable.aval.shape for variable in barrier.invars) for barrier in barriers]
  tables = sorted([(97, 48), (48,), (97, 48)])  # embed, norm, head
  assert shapes.count(tables) == 1, shapes


def test_gradients_are_laid_out_like_their_weights(tiny_config, equations):
  cfg, batch = tiny_config(num_hidden_layers=1), one_per_row(examples_of(2), 12)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  run = lambda params: step_lib.gradients(
    params, batch, jax.random.key(0), cfg=cfg, train=train_config(micro_batches=1), mesh=mesh
  )
  weights = parameters.abstract(cfg)
  moves = equations(jax.make_jaxpr(run)(weights), 'sharding_constraint')
  found = {(move.outvars[0].aval.shape, str(move.params['sharding'].spec)) for move in moves}
  wanted = jax.tree.map(lambda x, where: (x.shape, str(where.spec)), weights, sharding.params_shardings(mesh, cfg))
  stacked = wanted['layers'].values()  # with the axis of layers, which the placement of one layer's weights lacks
  assert found >= {wanted['norm'], wanted['embed'], *stacked}


def test_the_loss_has_a_group_of_positions_for_each_part_of_the_batch(tiny_config, abstract_mesh, monkeypatch):
  cfg, batch, shards = tiny_config(), one_per_row(examples_of(2), 12), []
  monkeypatch.setattr(sharding, 'placement', lambda *_: NO_PLACEMENT)
  monkeypatch.setattr(attention, 'select', lambda *_: attention.reference)
  monkeypatch.setattr(qwen, 'forward', lambda *_: jnp.zeros((2, 12, 48)))
  monkeypatch.setattr(loss, 'head_cross_entropy', lambda *arguments: (shards.append(arguments[5]), 0))
  for mesh in (None, abstract_mesh(data=2, fsdp=3, context=5, tensor=7)):
    step_lib.loss_fn({'embed': jnp.zeros((97, 48))}, batch, None, cfg=cfg, train=train_config(), mesh=mesh)
  assert shards == [(1, 1), (2 * 3, 5)]  # (of the rows, of the length)


def test_the_model_computes_as_the_settings_say(tiny_config, monkeypatch):
  cfg, key = tiny_config(), jax.random.key(5)
  batch = one_per_row(examples_of(2), 12)
  calls = []

  def forward(params, cfg, tokens, segment_ids, positions, compute):
    calls.append((tokens, segment_ids, positions, compute))
    return jnp.zeros((*tokens.shape, cfg.hidden_size), compute.dtype)

  monkeypatch.setattr(qwen, 'forward', forward)
  params = {'embed': jnp.zeros((97, 48))}
  for implementation in ('reference', 'blocks'):
    train = train_config(compute_dtype='bfloat16', remat='mlp', dropout=0.3, attention=implementation)
    step_lib.loss_fn(params, batch, key, cfg=cfg, train=train)
    tokens, segment_ids, positions, compute = calls[-1]
    assert tokens is batch['tokens'] and segment_ids is batch['segment_ids'] and positions is batch['positions']
    assert (compute.dtype, compute.remat) == ('bfloat16', 'mlp')
    assert compute.attention is getattr(attention, implementation)
    assert compute.training  # Qwen-1 trains without dynamic NTK and logn attention
    assert compute.dropout == Dropout(0.3, key)
  step_lib.eval_step(params, batch, cfg=cfg, train=train)
  assert calls[-1][-1].dropout.key is None


@pytest.mark.parametrize('loss_tokens', [0, 1, 5])
def test_gradient_is_divided_by_the_loss_tokens_if_there_are_any(loss_tokens, tiny_config, monkeypatch):
  cfg = tiny_config()
  monkeypatch.setattr(
    step_lib,
    'loss_fn',
    lambda params, rows, key, **_: (6 * params['norm'], {'loss_tokens': rows['loss_weights'].sum()}),
  )
  batch = {'loss_weights': jnp.arange(8).reshape(2, 4) < loss_tokens}
  params = {'norm': jnp.float32(3)}
  grads, loss_sum, sums = step_lib.gradients(params, batch, jax.random.key(0), cfg=cfg, train=train_config())
  assert (float(loss_sum), int(sums['loss_tokens'])) == (18, loss_tokens)
  assert float(grads['norm']) == pytest.approx(6 / max(loss_tokens, 1))  # not NaN for a batch without loss


def test_a_step_by_hand(tiny_config, monkeypatch):
  """The metrics, the update and the key of dropout, with a gradient that is given."""
  keys = []

  def gradients(params, batch, key, **_):
    keys.append(jax.random.key_data(key).tolist())
    return {'w': jnp.array([3.0, 4.0])}, jnp.float32(12), {'loss_tokens': jnp.float32(5)}

  monkeypatch.setattr(step_lib, 'gradients', gradients)
  tx, rate = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5)), lambda step: 10 * step
  state = step_lib.TrainState(jnp.int32(7), {'w': jnp.array([1.0, 2.0])}, tx.init({'w': jnp.zeros(2)}))
  batch = {'segment_ids': jnp.array([[1, 1, 2, 0], [1, 2, 3, 0]])}
  for seed in (1, 2):
    with jax.default_prng_impl('rbg'):  # as with JAX_DEFAULT_PRNG_IMPL, which changes nothing
      new, metrics = step_lib.train_step(
        state, batch, cfg=tiny_config(), train=train_config(seed=seed), tx=tx, rate=rate
      )
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
      {'loss_sum': 12, 'loss_tokens': 5, 'tokens': 6, 'grad_norm': 5, 'learning_rate': 70, 'skipped': 0}
    )
    assert int(new.step) == 8
    np.testing.assert_allclose(new.params['w'], [1 - 0.5 * 0.6, 2 - 0.5 * 0.8], rtol=1e-6)
  assert keys == [jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 7)).tolist() for seed in (1, 2)]


def test_first_weights_follow_the_seed(tiny_config, monkeypatch):
  shapes = parameters.abstract(tiny_config())

  def init(key, cfg):
    number = jax.random.uniform(key)
    return jax.tree.map(lambda x: jnp.full(x.shape, number), shapes)

  monkeypatch.setattr(parameters, 'init', init)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  with jax.default_prng_impl('rbg'):  # as with JAX_DEFAULT_PRNG_IMPL, which changes nothing
    state = step_lib.init_state(mesh, tiny_config(), optax.sgd(0.1), 3)
  assert int(state.step) == 0
  assert float(state.params['norm'][0]) == pytest.approx(float(jax.random.uniform(jax.random.key(3))))


def test_a_step_reuses_the_memory_of_the_state(tiny_config):
  cfg = tiny_config(num_hidden_layers=1)
  experiment = Experiment(cfg, data=DataConfig(batch_size=2, seq_len=12), train=train_config(steps=5_000))
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  tx = optim.optimizer(experiment.optim, 5_000)
  arguments = step_lib.abstract_state(mesh, cfg, tx), step_lib.abstract_batch(mesh, experiment)
  state, batch = step_lib.compile_step(mesh, cfg, experiment, tx).lower(*arguments).args_info[0]
  assert all(argument.donated for argument in jax.tree.leaves(state))
  assert not any(argument.donated for argument in jax.tree.leaves(batch))
  assert {argument.shape for argument in jax.tree.leaves(batch)} == {(2, 12)}


@pytest.mark.parametrize('bad', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_moment(bad, tiny_config, random_params, monkeypatch):
  cfg = tiny_config('qwen2')
  experiment = Experiment(cfg, optim=OptimConfig(learning_rate=1e-2, warmup_steps=0), train=train_config(steps=4))
  tx = optim.optimizer(experiment.optim, 4)
  rate = optim.schedule(experiment.optim, 4)
  true_gradients = step_lib.gradients

  def gradients_of(params, batch, *args, **kwargs):
    """The batch says whether a number of them is not finite."""
    grads, loss_sum, weight = true_gradients(params, batch, *args, **kwargs)
    is_bad = jnp.isnan(batch['loss_weights'][0, -1])
    if bad == 'loss':
      return grads, jnp.where(is_bad, jnp.inf, loss_sum), weight
    return grads | {'norm': jnp.where(is_bad, jnp.inf, grads['norm'])}, jnp.where(is_bad, 1.0, loss_sum), weight

  monkeypatch.setattr(step_lib, 'gradients', gradients_of)
  run = jax.jit(lambda s, b: step_lib.train_step(s, b, cfg=cfg, train=experiment.train, tx=tx, rate=rate))
  batch = one_per_row(examples_of(4), 12)
  broken = batch | {'loss_weights': batch['loss_weights'].copy()}
  broken['loss_weights'][0, -1] = np.nan

  first, metrics = run(step_lib._first_state(random_params(cfg), tx), batch)
  assert not metrics['skipped']
  second, metrics = run(first, broken)
  assert metrics['skipped'] and int(second.step) == 2
  for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    is_counter = before.dtype == jnp.int32
    assert int(after) == int(before) + 1 if is_counter else (before == after).all()
  third, metrics = run(second, batch)
  assert not metrics['skipped'] and not (third.params['norm'] == second.params['norm']).all()
