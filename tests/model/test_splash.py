import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.errors import UserError
from mathqwen.model import attention, splash


def inputs(T=256, N=4, K=2, H=128):
  rng = np.random.default_rng(0)
  q, k, v, g = (jnp.asarray(rng.normal(0, 1, (2, T, heads, H)), jnp.float32) for heads in (N, K, K, N))
  segments = np.zeros((2, T), np.int32)  # ends in padding, segment 0
  for row, ends in enumerate([(3, 130, 250), (128, 200, 256)]):
    for i, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
      segments[row, start:end] = i + 1
  return q, k, v, jnp.asarray(segments), g


@pytest.mark.parametrize('H', [64, 128])
def test_splash_is_the_reference(H):
  q, k, v, segments, g = inputs(H=H)
  want, want_vjp = jax.vjp(lambda *qkv: attention.reference(*qkv, segments), q, k, v)
  got, got_vjp = jax.vjp(lambda *qkv: splash.make(None, interpret=True)(*qkv, segments), q, k, v)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
  for a, b in zip(got_vjp(g), want_vjp(g), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_rows_that_the_kernel_cannot_take():
  q, k, v, segments, _ = inputs(T=100)
  with pytest.raises(UserError, match='data.seq_len is 100: set data.seq_len=128'):
    splash.make(None, interpret=True)(q, k, v, segments)
