import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.training import loss


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


def head_inputs(B=4, T=12, D=4, V=9, seed=0):
  rng = np.random.default_rng(seed)
  x, head = rng.standard_normal((B, T, D)).astype(np.float32), rng.standard_normal((V, D)).astype(np.float32)
  weights = (rng.random((B, T)) < np.linspace(0.1, 0.9, B)[:, None]) * rng.uniform(0.5, 1, (B, T)).astype(np.float32)
  return x, head, rng.integers(0, V, (B, T)).astype(np.int32), weights.astype(np.float32)


def whole(x, head, targets, weights):
  return loss.cross_entropy(x @ head.T, targets, weights)


# Each chunk with two divisions and each division with two chunks: a pair takes seconds to compile.
@pytest.mark.parametrize(
  'chunk, shards',
  [
    (1, (1, 1)), (1, (2, 6)), (5, (2, 1)), (5, (1, 3)), (8, (4, 1)), (8, (2, 6)), (16, (1, 1)), (16, (1, 3)),
    (100, (2, 1)), (100, (4, 1)),
  ],
)  # fmt: skip
def test_chunks_are_the_whole(chunk, shards):
  x, head, targets, weights = head_inputs()
  grad = lambda f: jax.jit(jax.value_and_grad(lambda x, w: f(x, w, targets, weights), (0, 1), has_aux=True))(x, head)
  (got, weight), gradients = grad(functools.partial(loss.head_cross_entropy, chunk=chunk, shards=shards))
  (want, want_weight), want_gradients = grad(whole)
  assert float(weight) == float(want_weight)
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  without_gradient = jax.jit(functools.partial(loss.head_cross_entropy, chunk=chunk, shards=shards))
  alone, _ = without_gradient(x, head, targets, weights)
  assert float(alone) == pytest.approx(float(want), rel=1e-6)
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize('share', [0, 1])
def test_all_or_no_positions_with_loss(share):
  x, head, targets, weights = head_inputs()
  weights = np.full_like(weights, share)
  grad = lambda f: jax.value_and_grad(lambda x, w: 3 * f(x, w, targets, weights)[0], (0, 1))(x, head)
  (got, gradients), (want, want_gradients) = grad(functools.partial(loss.head_cross_entropy, chunk=7)), grad(whole)
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_last_chunk_that_reaches_beyond_the_group():
  """51 positions, all with loss, in chunks of 16, 8, 4 or 2: three of 16, and one of 4 for the last 3."""
  x, head, targets, _ = head_inputs(B=3, T=17)
  weights = np.random.default_rng(1).uniform(0.5, 1, (3, 17)).astype(np.float32)
  grad = lambda f: jax.value_and_grad(lambda x, w: f(x, w, targets, weights)[0], (0, 1))(x, head)
  (got, gradients), (want, want_gradients) = grad(functools.partial(loss.head_cross_entropy, chunk=16)), grad(whole)
  assert float(got) == pytest.approx(float(want), rel=1e-6)
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_x_without_loss_reaches_nothing(bad):
  x, head, targets, weights = head_inputs()
  assert np.sum(weights > 0) % 6  # the smallest part is of 6: others fill the last one
  broken = np.where(weights[..., None] > 0, x, bad)
  value = lambda x: jax.value_and_grad(
    lambda x, w: loss.head_cross_entropy(x, w, targets, weights, 48)[0], (0, 1)
  )(x, head)  # fmt: skip
  (want, want_gradients), (got, gradients) = value(x), value(broken)
  assert got == want
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (gradients[0][weights == 0] == 0).all()


@pytest.fixture
def taken(monkeypatch):
  """The numbers of positions that are multiplied by the head, part by part, as the loop runs."""
  sizes = []
  einsum = jnp.einsum

  def counted(equation, x, *rest, **options):
    if equation == 'GCD,VD->GCV':
      jax.debug.callback(lambda: sizes.append(x.shape[1]))
    return einsum(equation, x, *rest, **options)

  monkeypatch.setattr(jnp, 'einsum', counted)
  return sizes


@pytest.mark.parametrize(
  'positions, chunk, want',
  [
    (48, 16, (3, 0, 0, 0)),
    (50, 16, (3, 0, 0, 1)),
    (5, 100, (1, 0, 0)),
    (100, 64, (1, 1, 0, 1)),
    (128, 64, (2, 0, 0, 0)),
    (5, 64, (1, 0, 0)),
    (70, 64, (1, 0, 0, 1)),
  ],
)
def test_turns_are_those_of_the_loop(taken, positions, chunk, want):
  x = np.ones((1, positions, 4), np.float32)
  ones = np.ones((1, positions), np.float32)
  jax.block_until_ready(loss.head_cross_entropy(x, np.ones((9, 4), np.float32), ones.astype(int), ones, chunk))
  jax.effects_barrier()
  counts = tuple(taken.count(size) for size in loss._chunk_sizes(positions, chunk))
  assert loss.turns(positions, chunk) == counts == want


def test_only_positions_with_loss_go_through_the_head(taken):
  weights = np.zeros((2, 50), np.float32)
  weights[0, 3:31], weights[1, ::5] = 1, 1  # 28 and 10 of 50
  x, head, targets = np.ones((2, 50, 4), np.float32), np.ones((9, 4), np.float32), np.zeros((2, 50), np.int32)
  cases = ((16, 1, [16, 16, 4, 2]), (16, 2, [16, 8, 4]), (64, 1, [32, 8]), (100, 1, [25, 12, 12]))
  for chunk, rows, want in cases:
    shards = (rows, 1)
    taken.clear()
    jax.block_until_ready(jax.grad(lambda x: loss.head_cross_entropy(x, head, targets, weights, chunk, shards)[0])(x))  # noqa: B023
    jax.effects_barrier()
    assert sorted(taken, reverse=True) == want, (chunk, shards, taken)


def test_no_array_holds_the_logits_of_a_row():
  def value(x, head):
    return loss.head_cross_entropy(x, head, jnp.zeros((2, 12), int), jnp.ones((2, 12)), 8)[0]

  shapes = (jax.ShapeDtypeStruct((2, 12, 4), jnp.float32), jax.ShapeDtypeStruct((9, 4), jnp.float32))
  text = str(jax.make_jaxpr(jax.grad(value, (0, 1)))(*shapes))
  assert 'f32[1,8,9]' in text and '12,9]' not in text and '24,9]' not in text and '25,9]' not in text


def test_gradient_of_a_bfloat16_x_is_bfloat16_and_of_its_head_float32():
  x, head, targets, weights = head_inputs()
  grad = jax.grad(lambda x, w: loss.head_cross_entropy(x, w, targets, weights, 5)[0], (0, 1))
  dx, dhead = grad(jnp.asarray(x, jnp.bfloat16), head)
  want_dx, want_dhead = jax.grad(lambda x, w: whole(x, w, targets, weights)[0], (0, 1))(x, head)
  assert dx.dtype == jnp.bfloat16 and dhead.dtype == jnp.float32
  np.testing.assert_allclose(dx.astype(jnp.float32), want_dx, atol=0.03)
  np.testing.assert_allclose(dhead, want_dhead, atol=0.1)


def test_products_of_bfloat16_are_summed_in_float32(equations):
  """The logits and the gradient of the head, which are sums over many terms; bfloat16 is what the products take."""
  arguments = (jax.ShapeDtypeStruct((2, 3, 4), jnp.bfloat16), jax.ShapeDtypeStruct((9, 4), jnp.float32))
  value = lambda x, head: loss.head_cross_entropy(x, head, jnp.zeros((2, 3), int), jnp.ones((2, 3)), 1)[0]
  products = equations(jax.make_jaxpr(jax.grad(value, (0, 1)))(*arguments), 'dot_general')
  assert {str(x.aval.dtype) for product in products for x in product.invars} == {'bfloat16'}
  assert [str(product.outvars[0].aval.dtype) for product in products] == ['float32', 'bfloat16', 'float32']
