import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.data import shared_prompts
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


def test_splash_with_answers_is_the_reference():
  q, k, v, _, g = inputs()
  parts = [(1, 0, 20), (1, 1, 30), (1, 2, 11), (1, 3, 40), (2, 0, 33), (3, 1, 9), (3, 2, 50), (4, 0, 10), (4, 1, 20)]
  parts = [[*parts, (0, 0, 33)], [(1, 0, 100), (2, 0, 17), (2, 1, 60), (2, 2, 70), (2, 3, 9)]]
  rows = [np.concatenate([np.tile([[segment], [answer]], size) for segment, answer, size in row], 1) for row in parts]
  segments, answers = np.stack(rows, 1).astype(np.int32)
  want, want_vjp = jax.vjp(lambda *qkv: attention.reference(*qkv, segments, answers), q, k, v)
  got, got_vjp = jax.vjp(lambda *qkv: splash.make(None, interpret=True)(*qkv, segments, answers), q, k, v)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
  for a, b in zip(got_vjp(g), want_vjp(g), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_numbers_reach_to_the_longest_rows():
  """The largest slot, and answers that take together as much as `data.shared_prompts` lets them."""
  assert splash.MOST_ANSWERED == shared_prompts.MOST_ANSWERED
  sizes = [(1, 0, 3000), (1, 1, 1), (1, 2, splash.MOST_ANSWERED - 2), (1, 3, 1), (2, 0, 71), (2, 1, 1)]
  segments, answers = np.concatenate([np.tile([[s], [a]], size) for s, a, size in sizes], 1).astype(np.int32)
  assert len(segments) == splash.MOST_SLOTS
  numbers = np.asarray(splash._numbers(segments[None], answers[None]))[0]
  slots = np.arange(len(segments), dtype=np.int32)
  sees = splash._sees(numbers[:, None], slots[None]) & (segments[:, None] == segments)
  want = attention._mask(segments[None], answers[None], 0, len(segments))[0]
  assert (sees == want).all()


def test_rows_that_the_kernel_cannot_take():
  q, k, v, segments, _ = inputs(T=100)
  with pytest.raises(UserError, match='data.seq_len is 100: set data.seq_len=128'):
    splash.make(None, interpret=True)(q, k, v, segments)
