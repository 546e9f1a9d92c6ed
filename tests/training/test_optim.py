import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mathqwen.config import OptimConfig
from mathqwen.model import parameters
from mathqwen.training import optim


@pytest.mark.parametrize(
  'kind, rows',
  [
    # Half-way down a cosine from 1 to 0.1 is 0.55; a third of the way, where cos(60 degrees) is 1/2, is 0.775.
    ('cosine', {0: 0, 1: 2e-5 / 1430, 715: 1e-5, 1430: 2e-5, 17620: 1.55e-5, 25715: 1.1e-5, 50_000: 2e-6}),
    ('linear', {0: 0, 1: 2e-5 / 1430, 715: 1e-5, 1430: 2e-5, 17620: 1.4e-5, 25715: 1.1e-5, 50_000: 2e-6}),
    ('constant', {0: 0, 1: 2e-5 / 1430, 715: 1e-5, 1430: 2e-5, 17620: 2e-5, 25715: 2e-5, 50_000: 2e-5}),
  ],
)
def test_learning_rates_of_the_recipe(kind, rows):
  rate = optim.schedule(OptimConfig(schedule=kind), 50_000)
  assert {step: float(rate(step)) for step in rows} == pytest.approx(rows, rel=1e-5, abs=1e-12)
  assert float(rate(60_000)) == pytest.approx(rows[50_000])  # stays where it ended


@pytest.mark.parametrize('kind, last', [('cosine', 0.25), ('linear', 0.25), ('constant', 1.0)])
def test_schedule_without_warmup_starts_at_the_peak(kind, last):
  rate = optim.schedule(OptimConfig(learning_rate=1.0, warmup_steps=0, schedule=kind, final_ratio=0.25), 10)
  assert (float(rate(0)), float(rate(10))) == pytest.approx((1.0, last))


def test_weights_that_decay(tiny_config):
  decays = {}
  for family in ('qwen2', 'qwen3'):
    mask = optim.decay_mask(parameters.abstract(tiny_config(family)))
    decays |= {'/'.join(key.key for key in path): value for path, value in jax.tree_util.tree_leaves_with_path(mask)}
  assert decays == {
    'embed': True,
    'head': True,
    'norm': False,
    'layers/input_norm': False,
    'layers/post_norm': False,
    'layers/q': True,
    'layers/k': True,
    'layers/v': True,
    'layers/o': True,
    'layers/q_bias': False,
    'layers/k_bias': False,
    'layers/v_bias': False,
    'layers/q_norm': False,
    'layers/k_norm': False,
    'layers/gate': True,
    'layers/up': True,
    'layers/down': True,
  }


@pytest.mark.parametrize('kind', ['cosine', 'linear', 'constant'])
def test_a_warmup_of_one_step(kind):
  rate = optim.schedule(OptimConfig(learning_rate=1.0, warmup_steps=1, schedule=kind), 10)
  assert (float(rate(0)), float(rate(1))) == pytest.approx((0, 1))


def test_optimizer_is_adamw_by_hand():
  """Three steps on a matrix and a norm, with no setting at its default or at optax's."""
  cfg = OptimConfig(
    learning_rate=0.1, warmup_steps=0, schedule='linear', final_ratio=0.5,
    clip_norm=0.7, beta1=0.8, beta2=0.6, eps=0.02, weight_decay=0.3,
  )  # fmt: skip
  weights = {'q': np.array([[0.5, -2.0], [1.0, 3.0]]), 'norm': np.array([1.5, -0.5])}
  grads = [
    {'q': np.array([[3.0, -1.0], [0.5, 2.0]]), 'norm': np.array([1.0, -4.0])},  # clipped
    {'q': np.array([[0.1, 0.2], [-0.3, 0.1]]), 'norm': np.array([0.05, 0.1])},  # not clipped
    {'q': np.array([[-1.0, 1.0], [0.2, -0.4]]), 'norm': np.array([-0.5, 0.3])},
  ]
  tx = optim.optimizer(cfg, 5)
  params = jax.tree.map(jnp.float32, weights)
  state = tx.init(params)

  means = jax.tree.map(np.zeros_like, weights)
  squares = jax.tree.map(np.zeros_like, weights)
  for step, grad in enumerate(grads):
    updates, state = tx.update(jax.tree.map(jnp.float32, grad), state, params)
    params = optax.apply_updates(params, updates)

    norm = np.sqrt(sum(np.sum(g * g) for g in grad.values()))
    rate = 0.1 - 0.05 * step / 5
    for name, decay in (('q', 0.3), ('norm', 0.0)):
      clipped = grad[name] * min(1, 0.7 / norm)
      means[name] = 0.8 * means[name] + 0.2 * clipped
      squares[name] = 0.6 * squares[name] + 0.4 * clipped**2
      mean, square = means[name] / (1 - 0.8 ** (step + 1)), squares[name] / (1 - 0.6 ** (step + 1))
      weights[name] = weights[name] - rate * (mean / (np.sqrt(square) + 0.02) + decay * weights[name])
      np.testing.assert_allclose(params[name], weights[name], rtol=1e-5, err_msg=f'{name} {step}')
