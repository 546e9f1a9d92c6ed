"""Each function against a literal one. `python tests/model/test_layers.py` times the backward pass with `linear`."""

import pathlib
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.model import layers, parameters, qwen, rotary
from mathqwen.model.config import ModelConfig

EQUATIONS = ['BTD,NHD->BTNH', 'BTD,KHD->BTKH', 'BTNH,DNH->BTD', 'BTD,FD->BTF', 'BTF,DF->BTD']
LENGTHS = {'B': 2, 'T': 3, 'D': 5, 'N': 4, 'K': 2, 'H': 6, 'F': 7}


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_equations_are_all_that_are_used():
  sources = [pathlib.Path(module.__file__).read_text() for module in (layers, qwen)]
  assert {e for source in sources for e in re.findall(r"linear\('([^']+)'", source)} == set(EQUATIONS)


@pytest.mark.parametrize('equation', EQUATIONS)
def test_derivative_of_linear_is_that_of_einsum(equation):
  x, w, y = (normal([LENGTHS[a] for a in axes], i) for i, axes in enumerate(re.split(',|->', equation)))
  got, pull = jax.vjp(lambda x, w: layers.linear(equation, x, w), x, w)
  want, pull_einsum = jax.vjp(lambda x, w: jnp.einsum(equation, x, w), x, w)
  # The terms of a sum in another order.
  for a, b in zip((got, *pull(y)), (want, *pull_einsum(y)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize('outputs, inputs', [(64, 320), (320, 64)])
def test_the_gradient_of_a_weight_transposes_the_smaller_side(outputs, inputs, equations):
  x, w, gradient = jnp.ones((2, 128, inputs)), jnp.ones((outputs, inputs)), jnp.ones((2, 128, outputs))
  w_gradient = jax.jit(lambda x, w, gradient: jax.vjp(layers._linear, x, w)[1](gradient)[1])
  # With all of XLA's optimizations, which the tests turn off, the product is kept so by a barrier.
  (barrier,) = equations(jax.make_jaxpr(w_gradient)(x, w, gradient), 'optimization_barrier')
  assert barrier.invars[0].aval.shape == (64, 320)
  copies = re.findall(r'= f32\[([\d,]+)\]\S* copy\(', w_gradient.lower(x, w, gradient).compile().as_text())
  assert '64,2,128' in copies and '320,2,128' not in copies


def test_logits_are_made_with_the_head_in_the_dtype_of_x():
  head = jnp.array([[1 + 2**-9], [3.0]])  # bfloat16 rounds the first to 1
  assert layers.unembed(jnp.ones((2, 1), jnp.bfloat16), head).tolist() == [[1, 3], [1, 3]]
  assert layers.unembed(jnp.ones((2, 1), jnp.float32), head).tolist() == [[1 + 2**-9, 3], [1 + 2**-9, 3]]


def test_rms_norm_is_that_of_transformers():
  torch = pytest.importorskip('torch')
  modeling = pytest.importorskip('transformers.models.qwen3.modeling_qwen3')
  x, scale = 30 * normal((2, 3, 16)), 1 + normal(16, 1)
  norm = modeling.Qwen3RMSNorm(16, eps=0.5)
  norm.weight.data = torch.tensor(scale)
  want = norm(torch.tensor(x)).detach().numpy()
  np.testing.assert_allclose(layers.rms_norm(x, scale, 0.5), want, rtol=2e-6)
  # In bfloat16 the order of rounding and scaling shows.
  got = layers.rms_norm(jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale, jnp.bfloat16), 0.5)
  want = norm.bfloat16()(torch.tensor(x).bfloat16()).detach().float().numpy()
  assert got.dtype == jnp.bfloat16
  assert np.mean(np.asarray(got, np.float32) == want) > 0.99


def test_rope_turns_complex_numbers():
  x, positions = normal((2, 3, 4, 6)), np.array([[0, 1, 2], [7, 300, 32_000]], np.int32)
  got = layers.rope(x, *layers.rope_angles(positions, rotary.inverse(6, 10_000.0)))
  for b, t, n, i in np.ndindex(2, 3, 4, 3):
    turned = complex(x[b, t, n, i], x[b, t, n, i + 3]) * np.exp(1j * positions[b, t] * 10_000.0 ** (-2 * i / 6))
    # float32 knows the angle 32,000 to 0.002.
    np.testing.assert_allclose([got[b, t, n, i], got[b, t, n, i + 3]], [turned.real, turned.imag], atol=6e-3)
    if positions[b, t] < 10:
      np.testing.assert_allclose([got[b, t, n, i], got[b, t, n, i + 3]], [turned.real, turned.imag], atol=3e-6)


def test_rope_tells_positions_apart_in_bfloat16():
  cos, sin = layers.rope_angles(np.array([[256, 257]], np.int32), rotary.inverse(8, 1e6))
  assert cos.dtype == sin.dtype == jnp.float32
  x = jnp.broadcast_to(jnp.asarray(normal(8), jnp.bfloat16), (1, 2, 1, 8))
  got = layers.rope(x, cos, sin)
  assert got.dtype == jnp.bfloat16 and (got[0, 0] != got[0, 1]).any()


def test_causal_mask():
  segments = np.array([[1, 1, 2, 2, 0]], np.int32)
  assert layers.causal_mask(segments, segments)[0].astype(int).tolist() == [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 0, 0, 1],
  ]
  # Two queries in the slots 3 and 4 of a cache, the second sequence padded on the left; slot 5 is not yet written.
  slots = np.array([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]], np.int32)
  assert layers.causal_mask(np.ones((2, 2), np.int32), slots, 3).astype(int).tolist() == [
    [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]],
    [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]],
  ]


@pytest.mark.parametrize('queries', [1, 3])
@pytest.mark.parametrize('kv_heads', [1, 2, 6])
def test_attention_is_a_loop(kv_heads, queries):
  q, k, v = normal((2, queries, 6, 4)), normal((2, 5, kv_heads, 4), 1), normal((2, 5, kv_heads, 4), 2)
  mask = np.random.default_rng(3).random((2, queries, 5)) < 0.6
  mask[:, :, 0] = True
  got = layers.attention(q, k, v, mask)
  for b, t, n in np.ndindex(2, queries, 6):
    kv = n // (6 // kv_heads)
    scores = {s: np.exp(float(q[b, t, n] @ k[b, s, kv]) / 2) for s in range(5) if mask[b, t, s]}
    want = sum(p * v[b, s, kv] for s, p in scores.items()) / sum(scores.values())
    np.testing.assert_allclose(got[b, t, n], want, atol=1e-6)


def test_attention_of_padding_is_finite():
  got = layers.attention(normal((1, 2, 2, 4)), normal((1, 3, 2, 4)), normal((1, 3, 2, 4)), np.zeros((1, 2, 3), bool))
  assert np.isfinite(got).all()


def test_swiglu():
  x, gate, up, down = normal((1, 2, 3)), normal((3, 4), 1), normal((3, 4), 2), normal((4, 3), 3)
  g = (x @ gate).astype(np.float64)
  want = (g / (1 + np.exp(-g)) * (x @ up)) @ down
  np.testing.assert_allclose(layers.swiglu(x, gate.T, up.T, down.T), want, atol=1e-5)


@pytest.mark.parametrize('rate', [0.1, 0.75])
def test_dropout_keeps_the_mean(rate):
  got = np.asarray(layers.dropout(jnp.full((300, 300), 2.0), rate, jax.random.key(0)))
  assert set(np.unique(got).tolist()) == {0.0, np.float32(2 / (1 - rate)).item()}
  assert abs((got == 0).mean() - rate) < 4 * (rate * (1 - rate) / got.size) ** 0.5


def test_dropout_is_off_without_key_or_rate():
  x = jnp.ones((4, 4), jnp.bfloat16)
  assert layers.dropout(x, 0.5, None) is x and layers.dropout(x, 0, jax.random.key(0)) is x
  assert layers.dropout(x, 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def backward_cpu_seconds(multiply, repeats=9):
  """Median CPU time, over all threads, of the loss and gradient of 4 layers on 16 x 128 tokens."""
  cfg = ModelConfig(1024, 128, 384, 4, 4, 2, 32, 128)
  params = parameters.init(jax.random.key(0), cfg)
  tokens = np.random.default_rng(0).integers(0, 1024, (16, 128)).astype(np.int32)
  kept = layers.linear
  layers.linear = qwen.linear = multiply
  try:
    loss = lambda p: jnp.mean(qwen.unembed(p, qwen.forward(p, cfg, tokens)) ** 2)
    step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
  finally:
    layers.linear = qwen.linear = kept
  times = []
  for _ in range(repeats):
    start = time.process_time()
    jax.block_until_ready(step(params))
    times.append(time.process_time() - start)
  return statistics.median(times)


if __name__ == '__main__':
  einsum, linear = backward_cpu_seconds(jnp.einsum), backward_cpu_seconds(layers.linear)
  print(f'loss and gradient, CPU time: jnp.einsum {einsum * 1e3:.0f} ms, linear {linear * 1e3:.0f} ms, '
        f'ratio {einsum / linear:.2f}')  # fmt: skip
