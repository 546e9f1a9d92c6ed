"""The layouts of `inference.cpu` against plain products. `python tests/inference/test_cpu.py` times both."""

import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.inference import cpu
from mathqwen.inference.cpu import LEFT_TOKENS, PANEL_ROWS, CpuWeight, Panels
from mathqwen.model import layers, qwen
from mathqwen.model.compute import Compute


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('rows', [1, 2, 8, PANEL_ROWS, PANEL_ROWS + 1])
@pytest.mark.parametrize('batch, outputs, inputs', [((), 192, 40), ((2, 3), 192, 32), ((), 128, 7)])
def test_product(rows, batch, outputs, inputs):
  x, matrix = normal((*batch, rows, inputs)), normal((*batch, outputs, inputs), 1)
  panels = Panels.from_matrix(matrix)
  assert panels.values.shape == (*batch, outputs // 64, inputs, 64)
  want = x.astype(np.float64) @ np.swapaxes(matrix, -1, -2)
  np.testing.assert_allclose(jax.jit(Panels.matmul)(panels, x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_weights_multiply_like_arrays(dtype):
  x, w = (jnp.asarray(normal(shape, i), dtype) for i, shape in enumerate(((2, 3, 40), (8, 16, 40))))
  matrix = w.reshape(128, 40)
  want = layers.linear('BTD,NHD->BTNH', x, w)
  for layout in (matrix, Panels.from_matrix(matrix)):
    weight = CpuWeight(layout, (8, 16))
    got = layers.linear('BTD,NHD->BTNH', x, weight)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(*(np.float32(y) for y in (got, want)), rtol=1e-2, atol=1e-5)
    logits = layers.unembed(x, CpuWeight(layout, (128,)))
    assert (logits.shape, logits.dtype) == ((2, 3, 128), jnp.float32)
    np.testing.assert_allclose(logits, layers.unembed(x, matrix), rtol=0, atol=1e-5)


@pytest.mark.parametrize('batch', [(1,), (3, 1), (2, LEFT_TOKENS // 2), (2, 1 + LEFT_TOKENS // 2)])
def test_a_plain_weight(batch):
  x, w = normal((*batch, 5)), normal((7, 5), 1)
  got = CpuWeight(jnp.asarray(w, jnp.bfloat16), (7,)).product(jnp.asarray(x, jnp.bfloat16), jnp.float32)
  assert got.shape == (*batch, 7) and got.dtype == jnp.float32
  want = x.astype(np.float64) @ w.T
  np.testing.assert_allclose(CpuWeight(jnp.asarray(w), (7,)).product(x), want, atol=1e-5)
  np.testing.assert_allclose(got, want, atol=0.1)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='how XLA for CPU multiplies')
def test_plain_weights_are_on_the_left_of_few_tokens():
  product = jax.jit(lambda x, w: CpuWeight(w, (256,)).product(x))
  lower = lambda tokens: product.lower(normal((tokens, 512)), normal((256, 512)))
  products = lambda tokens: re.findall(r'f32\[[\d,]+\]\S* dot\(', lower(tokens).compile().as_text())
  assert [p.split('{')[0] for p in products(8)] == ['f32[256,8]']
  assert [p.split('{')[0] for p in products(LEFT_TOKENS + 1)] == [f'f32[{LEFT_TOKENS + 1},256]']


@pytest.mark.parametrize('tied', [True, False])
def test_packed_weights(tied, tiny_config, random_params):
  changes = {'hidden_size': 64, 'intermediate_size': 128, 'vocab_size': 128, 'tie_word_embeddings': tied}
  cfg = tiny_config('qwen2', **changes)
  params, compute = random_params(cfg), Compute()
  tokens, lengths = np.random.default_rng(0).integers(0, 128, (2, 5)).astype(np.int32), np.array([5, 4])
  want = qwen.prefill(params, cfg, tokens, lengths)
  x = qwen.forward(params, cfg, tokens)
  for rows, in_panels in ((64, {'head', 'o', 'gate', 'up'}), (65, set())):
    packed = cpu.pack(params, cfg, rows)
    assert cpu.pack(packed, cfg, rows) is packed and packed['embed'] is params['embed']
    weights = {'head': packed.get('head')} | packed['layers'][0]
    found = {name for name, w in weights.items() if isinstance(w, CpuWeight) and isinstance(w.matrix, Panels)}
    assert found == in_panels
    for a, b in zip(cpu.prefill(packed, cfg, tokens, lengths, compute), want, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
    np.testing.assert_allclose(qwen.unembed(packed, x), qwen.unembed(params, x), rtol=0, atol=2e-5)


@pytest.mark.parametrize('cached', [True, False])
def test_rotary_angles_are_made_once(cached, tiny_config, random_params):
  cfg = tiny_config('qwen2', hidden_size=64, intermediate_size=128)
  packed, compute = cpu.pack(random_params(cfg), cfg, 2), Compute()
  cache = cpu.CpuCache.empty(cfg, 2, 64, 'float32')
  if cached:
    run = lambda tokens: cpu.decode_step(packed, cfg, tokens, cache, compute)[0]
  else:
    run = lambda tokens: cpu.prefill(packed, cfg, tokens, jnp.array([5, 4]), compute)
  compiled = jax.jit(run).lower(np.ones((2, 5), np.int32)).compile()
  assert compiled.as_text().count(' cosine(') == 1


@pytest.mark.parametrize('values', [3, 64, 128, 1000, 1024])
def test_argmax_is_the_first_of_the_largest(values):
  x = np.random.default_rng(0).integers(0, 9, (50, values)).astype(np.float32)
  x[0], x[1, 1:], x[2, :-1] = -1, -np.inf, -np.inf
  assert cpu.argmax(jnp.asarray(x)).tolist() == x.argmax(axis=-1).tolist()


def test_values_of_attention_are_one_panel_of_any_width():
  values, probs = normal((2, 3, 192, 96)), normal((2, 3, 5, 192), 1)
  got = jax.jit(Panels.matmul)(Panels(values[:, :, None]), probs)
  np.testing.assert_allclose(got, probs.astype(np.float64) @ values, rtol=0, atol=1e-4)


def test_parts_of_a_sum():
  assert cpu._partial_sums(512, 1408) == 4  # of 8 rows 45,056 sums of 128
  assert cpu._partial_sums(512, 512) == 16  # 65,536 of 32: fewer would go to one thread
  assert cpu._partial_sums(512, 32_000) == 2  # enough in any case: as long as they may be
  assert cpu._partial_sums(40, 64) == 2 and cpu._partial_sums(7, 64) == 1 and cpu._partial_sums(4864, 4864) == 32


@pytest.mark.parametrize('outputs, inputs', [(512, 512), (1408, 512), (4864, 896)])
def test_a_row_is_the_same_beside_any_others(outputs, inputs):
  panels, x = Panels.from_matrix(normal((outputs, inputs), 1)), normal((64, inputs))
  alone = jax.jit(Panels.matmul)(panels, x[:1])
  for rows in (2, 8, 32):
    np.testing.assert_array_equal(jax.jit(Panels.matmul)(panels, x[:rows])[:1], alone)


def seconds(product, matrices, x, repeats=31):
  """Median time of the products with all of `matrices`, one after the other."""

  def all_of(x, matrices):
    for matrix in matrices:
      y = jax.lax.optimization_barrier(product(x, matrix))
      x = x + y[0, 0] * 1e-9
    return x

  compiled, times = jax.jit(all_of).lower(x, matrices).compile(), []
  for _ in range(repeats):
    start = time.perf_counter()
    compiled(x, matrices).block_until_ready()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def plain_product(x, matrix_OI):
  return CpuWeight(matrix_OI, (len(matrix_OI),)).product(x)


if __name__ == '__main__':
  for outputs, inputs in ((32_000, 512), (1408, 512), (4864, 896)):
    # More in all than a cache holds.
    plain = [jnp.asarray(normal((outputs, inputs))) for _ in range(-(-40_000_000 // (outputs * inputs)))]
    panels = list(map(Panels.from_matrix, plain))
    for rows in (1, 8, 32, 128, PANEL_ROWS, PANEL_ROWS + 1):
      x = jnp.asarray(normal((rows, inputs)))
      ratio = seconds(plain_product, plain, x) / seconds(lambda x, w: w.matmul(x), panels, x)
      print(f'[{rows}, {inputs}] by [{outputs}, {inputs}]: panels {ratio:.2f} times as fast')
