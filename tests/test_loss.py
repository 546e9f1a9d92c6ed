import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen import loss


def batch(B=2, T=6, V=7, seed=0):
  rng = np.random.default_rng(seed)
  weights = np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0.5, 1]], np.float32)
  return 4 * rng.standard_normal((B, T, V)).astype(np.float32), rng.integers(0, V, (B, T)).astype(np.int32), weights


def literal(logits, targets, weights):
  total = 0.0
  for b, t in np.ndindex(*targets.shape):
    exponentials = [math.exp(float(x)) for x in logits[b, t]]
    total += weights[b, t] * -math.log(exponentials[targets[b, t]] / sum(exponentials))
  return total


def test_cross_entropy_is_a_loop():
  logits, targets, weights = batch()
  got, weight = loss.cross_entropy(logits, targets, weights)
  assert float(got) == pytest.approx(literal(logits, targets, weights), rel=1e-6)
  assert float(weight) == 5.5
  assert got.dtype == weight.dtype == jnp.float32


def test_gradient_of_cross_entropy():
  logits, targets, weights = batch()
  got = jax.grad(lambda x: loss.cross_entropy(x, targets, weights)[0])(logits)
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(got, weights[..., None] * (probabilities - np.eye(7)[targets]), atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
  logits, targets, weights = batch()
  rounded = jnp.asarray(logits, jnp.bfloat16)
  got, _ = loss.cross_entropy(rounded, targets, weights)
  assert float(got) == pytest.approx(literal(np.asarray(rounded, np.float32), targets, weights), rel=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_positions_without_weight_do_not_count(bad):
  logits, targets, weights = batch()
  broken = logits.copy()
  broken[0, 0], broken[0, 3, 2], broken[1, 1] = bad, bad, bad
  value = jax.value_and_grad(lambda x: loss.cross_entropy(x, targets, weights)[0])
  (want, want_gradient), (got, gradient) = value(logits), value(broken)
  assert got == want
  assert (gradient == want_gradient).all() and (gradient[weights == 0] == 0).all()


@pytest.mark.parametrize('chunk', [1, 2, 4, 5, 6, 12, 100])
def test_chunks_are_the_whole(chunk):
  rng = np.random.default_rng(0)
  x, w = rng.standard_normal((2, 12, 4)).astype(np.float32), rng.standard_normal((4, 9)).astype(np.float32)
  targets = rng.integers(0, 9, (2, 12)).astype(np.int32)
  weights = (rng.random((2, 12)) < 0.5).astype(np.float32)
  unembed = lambda w, x: x @ w

  def chunked(x, w):
    return loss.chunked_cross_entropy(functools.partial(unembed, w), x, targets, weights, chunk)

  whole = lambda x, w: loss.cross_entropy(unembed(w, x), targets, weights)
  (got, weight), gradients = jax.value_and_grad(chunked, (0, 1), has_aux=True)(x, w)
  (want, want_weight), want_gradients = jax.value_and_grad(whole, (0, 1), has_aux=True)(x, w)
  assert float(weight) == float(want_weight)
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=3e-6)


def test_no_array_holds_the_logits_of_a_row():
  def value(x, w):
    return loss.chunked_cross_entropy(lambda x: x @ w, x, jnp.zeros((2, 12), int), jnp.ones((2, 12)), 4)[0]

  shapes = (jax.ShapeDtypeStruct((2, 12, 4), jnp.float32), jax.ShapeDtypeStruct((4, 9), jnp.float32))
  text = str(jax.make_jaxpr(jax.grad(value, (0, 1)))(*shapes))
  assert 'f32[2,4,9]' in text and '12,9]' not in text and 'f32[3,2,4,9]' not in text
