"""The cache against arrays of numpy that are indexed literally."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.model import cache as cache_lib
from mathqwen.model.cache import Int8, KVCache


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_int8_by_hand():
  x = np.array([[1.27, -0.5, 0.004], [0, 0, 0], [-2.54, 1.0, 0.0301]], np.float32)
  with jax.debug_nans(True):  # a CPU makes 0 of NaN; other platforms need not
    stored = cache_lib.encode(x, 'int8')
  np.testing.assert_allclose(stored.scales, [[0.01], [0], [0.02]], rtol=1e-6)
  assert stored.values.dtype == jnp.int8 and stored.values.tolist() == [[127, -50, 0], [0, 0, 0], [-127, 50, 2]]
  np.testing.assert_allclose(
    cache_lib.decode(stored, 'float32'), [[1.27, -0.5, 0], [0, 0, 0], [-2.54, 1, 0.04]], rtol=1e-6
  )


def test_int8_is_multiplied_in_float32():
  stored = Int8.quantize(jnp.asarray(normal((50, 8)), jnp.bfloat16))
  assert stored.scales.dtype == jnp.float32
  want = (np.float32(stored.values) * np.float32(stored.scales)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(cache_lib.decode(stored, 'bfloat16'), want)


@pytest.mark.parametrize(
  'size, want', [(1, [[0], [3]]), (3, [[0, 1, 2], [3, 4, 5]]), (4, [[0, 1, 2, 0], [3, 4, 5, 0]])]
)
def test_resize_axis(size, want):
  assert cache_lib.resize_axis(jnp.arange(6).reshape(2, 3), -1, size).tolist() == want
  assert cache_lib.resize_axis(jnp.arange(6).reshape(2, 3).T, 0, size).T.tolist() == want


@pytest.mark.parametrize('dtype', cache_lib.DTYPES)
def test_an_empty_cache(dtype, tiny_config):
  """Its arrays share no memory: a jitted function could not be given the same buffer twice to reuse."""
  cache = KVCache.empty(tiny_config(num_hidden_layers=2), 3, 6, dtype)
  assert (cache.dtype, cache.slots) == (dtype, 6)
  arrays = jax.tree.leaves(cache)
  assert not any(np.any(x) for x in arrays)
  assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)


def test_rows_of_unequal_lengths(tiny_config):
  """Three prompts are admitted in rows 2, 0 and again 2 of a cache with 6 slots; then each row gets two tokens."""
  cfg = tiny_config(num_hidden_layers=2)
  K, H = cfg.num_key_value_heads, cfg.head_dim
  want = {name: np.zeros((2, 3, 6, K, H), np.float32) for name in 'kv'}

  def assert_holds(cache, slots=6):
    for layer in range(2):
      for got, name in zip(cache.read(layer, 'float32'), 'kv', strict=True):
        np.testing.assert_array_equal(got, cache_lib.resize_axis(want[name][layer], 1, slots))

  cache = KVCache.empty(cfg, 3, 6, 'float32')
  prompts = (([2, 0], 8, [6, 2], [9, 2]), ([2], 4, [3], [7]))  # rows, tokens, lengths, lengths of prompts
  for rows, tokens, lengths, prompt_lengths in prompts:
    keys, values = normal((2, len(rows), tokens, K, H), tokens), normal((2, len(rows), tokens, K, H), 1 + tokens)
    cache = cache.admit(np.array(rows), keys, values, np.array(lengths), np.array(prompt_lengths))
    for i, row in enumerate(rows):
      want['k'][:, row, :tokens] = keys[:, i, :6]  # what exceeds the slots is cut off
      want['v'][:, row, :tokens] = values[:, i, :6]
  assert_holds(cache)
  assert cache.lengths.tolist() == [2, 0, 3] and cache.prompt_lengths.tolist() == [2, 0, 7]

  keys, values = normal((3, 2, K, H), 5), normal((3, 2, K, H), 6)
  cache = cache.write(1, keys, values)
  for row, length in enumerate([2, 0, 3]):
    want['k'][1, row, length : length + 2] = keys[row]
    want['v'][1, row, length : length + 2] = values[row]
  assert_holds(cache)
  assert cache.lengths.tolist() == [2, 0, 3]  # until all layers are written

  cache = cache.advance(2)
  assert cache.lengths.tolist() == [4, 2, 5] and cache.prompt_lengths.tolist() == [2, 0, 7]
  for slots in (9, 5):
    assert cache.resize(slots).slots == slots
    assert_holds(cache.resize(slots), slots)


def test_a_token_sees_the_slots_up_to_its_own(tiny_config):
  cache = KVCache.empty(tiny_config(num_hidden_layers=1), 2, 4, 'float32')
  got = cache.mask(jnp.array([[0, 1], [2, 3]])).astype(int).tolist()
  assert got == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
