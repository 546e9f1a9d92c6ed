"""The loop over layers, with a layer of one product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.model import stack

LAYERS, WIDTH = 6, 4


@pytest.mark.parametrize('count, size', [(1, 1), (4, 2), (7, 1), (28, 4), (32, 4), (36, 6), (80, 8)])
def test_size_of_a_group(count, size):
  assert stack.group_size(count) == size


def layer(x_BTD, index, weights):
  return jnp.sin(x_BTD * weights['scale'] + index)


def arguments():
  rng = np.random.default_rng(0)
  return rng.standard_normal((1, 3, WIDTH)), {'scale': rng.standard_normal((LAYERS, WIDTH))}


@pytest.mark.parametrize('remat', stack.REMAT)
def test_layers_run_in_order_with_their_index_and_weights(remat):
  casts = []

  def cast(weights):
    casts.append(weights['scale'].shape)
    return weights

  def literal(x, weights):
    for index in range(LAYERS):
      x = layer(x, index, {'scale': weights['scale'][index]})
    return jnp.sum(x**2)

  run = lambda x, weights: jnp.sum(stack.scan_layers(layer, x, weights, remat, cast) ** 2)
  x, weights = arguments()
  got, gradients = jax.value_and_grad(run, (0, 1))(x, weights)
  want, want_gradients = jax.value_and_grad(literal, (0, 1))(x, weights)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(gradients[0], want_gradients[0], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(gradients[1]['scale'], want_gradients[1]['scale'], rtol=1e-5, atol=1e-7)
  # Only 'nested' casts: the weights of a group of two layers at a time.
  assert set(casts) == ({(2, WIDTH)} if remat == 'nested' else set())


@pytest.mark.parametrize('remat, inputs', [('none', None), ('full', LAYERS), ('nested', LAYERS // 2)])
def test_inputs_that_the_backward_pass_keeps(remat, inputs):
  """Of each layer, or with 'nested' of each group of two layers; without remat also what is between them."""
  x, weights = arguments()
  keep = lambda x, weights: jax.vjp(lambda x: stack.scan_layers(layer, x, weights, remat, lambda w: w), x)[1]
  kept = [a.shape for a in jax.tree.leaves(jax.eval_shape(keep, x, weights)) if a.shape[-2:] == x.shape[-2:]]
  assert kept == [(inputs, *x.shape)] if inputs else (LAYERS, *x.shape) in kept


@pytest.mark.parametrize('length, places', [(6, [0, 0, 1, 1, 2, 2]), (5, [0, 1, 2, 3, 4])])
def test_nested_runs_the_mlp_on_every_second_token(length, places):
  """Each half has tokens of the whole length, so that chips that hold parts of it share both halves."""
  # shows the place of a token in its half, and 100 in the second half
  mlp = lambda x_BTD, half=0: 10 * x_BTD + jnp.arange(x_BTD.shape[1])[:, None] + 100 * half
  mix, mlp_by_halves = stack.checkpoint_nested(lambda x_BTD: -x_BTD, mlp)
  x_BTD = jnp.broadcast_to(jnp.arange(length)[:, None], (2, length, 3))
  halves = 100 * (np.arange(length) % 2) * (length % 2 == 0)
  np.testing.assert_array_equal(mlp_by_halves(x_BTD), 10 * x_BTD + np.array(places)[:, None] + halves[:, None])
  np.testing.assert_array_equal(mix(x_BTD), -x_BTD)
