"""Panels against plain products. `python tests/model/test_panels.py` times both."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.model import layers
from mathqwen.model.panels import FEW, Panels, _parts


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('rows', [1, 2, 8, FEW, FEW + 1])
@pytest.mark.parametrize('batch, outputs, inputs', [((), 192, 40), ((2, 3), 192, 32), ((), 128, 7)])
def test_product(rows, batch, outputs, inputs):
  x, matrix = normal((*batch, rows, inputs)), normal((*batch, outputs, inputs), 1)
  panels = Panels.of(matrix)
  assert panels.values.shape == (*batch, outputs // 64, inputs, 64)
  want = x.astype(np.float64) @ np.swapaxes(matrix, -1, -2)
  np.testing.assert_allclose(jax.jit(Panels.product)(panels, x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_matmul_takes_them(dtype):
  x, matrix = (jnp.asarray(normal(shape), dtype) for shape in ((2, 3, 40), (64, 40)))
  got = layers.matmul(x, Panels.of(matrix))
  assert got.dtype == dtype and layers.matmul(x, Panels.of(matrix), jnp.float32).dtype == 'float32'
  np.testing.assert_array_equal(got, layers.matmul(x, Panels.of(matrix), jnp.float32).astype(dtype))
  np.testing.assert_allclose(*(np.float32(y) for y in (got, layers.matmul(x, matrix))), rtol=1e-2, atol=1e-5)


def test_values_of_attention_are_one_panel_of_any_width():
  values, probs = normal((2, 3, 192, 96)), normal((2, 3, 5, 192), 1)
  got = jax.jit(Panels.product)(Panels(values[:, :, None]), probs)
  np.testing.assert_allclose(got, probs.astype(np.float64) @ values, rtol=0, atol=1e-4)


def test_parts_of_a_sum():
  assert _parts(512, 1408) == 4  # of 8 rows 45,056 sums of 128
  assert _parts(512, 512) == 16  # 65,536 of 32: fewer would go to one thread
  assert _parts(512, 32_000) == 2  # enough in any case: as long as they may be
  assert _parts(40, 64) == 2 and _parts(7, 64) == 1 and _parts(4864, 4864) == 32


@pytest.mark.parametrize('outputs, inputs', [(512, 512), (1408, 512), (4864, 896)])
def test_a_row_is_the_same_beside_any_others(outputs, inputs):
  panels, x = Panels.of(normal((outputs, inputs), 1)), normal((64, inputs))
  alone = jax.jit(Panels.product)(panels, x[:1])
  for rows in (2, 8, 32):
    np.testing.assert_array_equal(jax.jit(Panels.product)(panels, x[:rows])[:1], alone)


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


if __name__ == '__main__':
  for outputs, inputs in ((32_000, 512), (1408, 512), (4864, 896)):
    # More in all than a cache holds.
    plain = [jnp.asarray(normal((outputs, inputs))) for _ in range(-(-40_000_000 // (outputs * inputs)))]
    panels = list(map(Panels.of, plain))
    for rows in (1, 8, 32, 128, FEW, FEW + 1):
      x = jnp.asarray(normal((rows, inputs)))
      ratio = seconds(layers.matmul, plain, x) / seconds(layers.matmul, panels, x)
      print(f'[{rows}, {inputs}] by [{outputs}, {inputs}]: panels {ratio:.2f} times as fast')
