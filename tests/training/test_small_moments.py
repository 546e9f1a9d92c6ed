"""AdamW with small moments beside optax's, and its rounding beside the arithmetic of means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.config import OptimConfig
from mathqwen.training import optim, small_moments


@pytest.mark.parametrize('dtype', [jnp.bfloat16, small_moments.FLOAT8])
def test_rounding_at_random(dtype):
  """A number becomes one of its two neighbours, or stays if it is one; the mean over all random bits is the number."""
  every_bits = jnp.arange(2**16, dtype=jnp.uint32)
  for value in (1.0, 1.01, -3.3, 0.1, 2.0**-9 * 0.3, 440.1, -448.0, 0.0):
    rounded = small_moments.round_stochastically(jnp.full(2**16, value, jnp.float32), every_bits, dtype)
    found = np.unique(np.asarray(rounded, np.float64))
    exact = float(jnp.asarray(value, dtype)) == np.float32(value)
    assert len(found) == (1 if exact else 2)
    assert found[0] <= np.float32(value) <= found[-1]
    # Neighbours: their middle is no number of the format.
    assert exact or float(jnp.asarray(found.mean(), dtype)) in found
    np.testing.assert_allclose(np.mean(np.asarray(rounded, np.float64)), np.float32(value), rtol=1e-4, atol=1e-7)


def run(name, steps=40, lr=0.02):
  """Weights after some steps on a quadratic bowl, with gradients of very different sizes."""
  rng = np.random.default_rng(0)
  layers = {'q': rng.normal(size=(2, 4, 16)), 'input_norm': rng.normal(size=(2, 16))}
  target = {'layers': layers, 'embed': rng.normal(size=(32, 16))}
  target = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), target)
  sizes = jnp.asarray(10.0 ** rng.uniform(-4, 0, size=16), jnp.float32)
  cfg = OptimConfig(name=name, learning_rate=lr, warmup_steps=0, schedule='constant', clip_norm=float('inf'))
  tx = optim.optimizer(cfg, steps)

  @jax.jit
  def step(params, state):
    grads = jax.tree.map(lambda p, t: (p - t) * sizes, params, target)
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  params = jax.tree.map(jnp.zeros_like, target)
  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params, state, target


def test_updates_are_near_those_of_float32_moments():
  wanted, _, target = run('adamw')
  for name, allowed in (('adamw_bf16', 0.01), ('adamw_8bit', 0.05)):
    found, state, _ = run(name)
    moved = jax.tree.map(lambda w: float(jnp.linalg.norm(w)), wanted)
    apart = jax.tree.map(lambda f, w: float(jnp.linalg.norm(f - w)), found, wanted)
    ratios = jax.tree.map(lambda a, m: a / m, apart, moved)
    assert max(jax.tree.leaves(ratios)) < allowed, (name, ratios)
    assert ratios['layers']['input_norm'] < 1e-6  # vectors keep float32 moments
    dtypes = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim == 3}
    assert dtypes == {{'adamw_bf16': 'bfloat16', 'adamw_8bit': 'float8_e4m3fn'}[name]}


def test_small_changes_are_not_lost():
  """With beta2 0.999 a gradient that becomes smaller changes the second moment by less than half a step of bfloat16."""
  tx = small_moments.scale_by_adam(0.9, 0.999, 1e-8, jnp.bfloat16, matrices=optim.decay_mask)
  params = {'q': jnp.zeros((64, 64))}
  state = tx.init(params)._replace(nu={'q': jnp.ones((64, 64), jnp.bfloat16)})

  @jax.jit
  def steps(state):
    return jax.lax.fori_loop(0, 500, lambda _, s: tx.update({'q': jnp.full((64, 64), 1e-3)}, s)[1], state)

  nu = np.asarray(steps(state).nu['q'], np.float64)
  assert nu.mean() == pytest.approx(0.999**500, rel=0.01)
