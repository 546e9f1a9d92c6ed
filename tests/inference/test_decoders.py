"""Decoding with a cache against the forward pass; both kinds of cache, that of `model.qwen` and that of a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.inference import generate
from mathqwen.model import qwen
from mathqwen.model.compute import Compute

DECODERS = {'accelerator': generate.ACCELERATOR, 'cpu': generate.CPU}
PLAIN = Compute()


@pytest.fixture(params=DECODERS)
def decoder(request):
  return DECODERS[request.param]


def difference(a, b):
  assert a.shape == b.shape
  return float(jnp.max(jnp.abs(a - b)))


@pytest.mark.parametrize('at_once', [1, 4])
@pytest.mark.parametrize('family', ['qwen2', 'qwen3'])
def test_cached_decoding_is_the_forward_pass(family, decoder, at_once, tiny_config, random_params):
  """Prompts of 63, 3 and 61 tokens put into rows 2, 0 and 3 of a cache of 4, then 4 tokens more of each."""
  cfg = tiny_config(family, hidden_size=64, intermediate_size=128)
  params = random_params(cfg)
  lengths, rows, T, new = np.array([63, 3, 61]), np.array([2, 0, 3]), 63, 4
  tokens = np.random.default_rng(0).integers(0, 97, (3, T + new)).astype(np.int32)
  tokens[..., 2] = tokens[0, 0] = 0  # a token like any other
  packed = decoder.pack(params, cfg, 4)
  forward = jax.jit(lambda tokens, segments: qwen.unembed(params, qwen.forward(params, cfg, tokens, segments)))

  @jax.jit
  def step(tokens, cache):
    x, cache = decoder.decode_step(packed, cfg, tokens, cache, PLAIN)
    return qwen.unembed(packed, x), cache

  prompts = np.where(np.arange(T) < lengths[:, None], tokens[:, :T], 0)
  padded = forward(prompts, (np.arange(T) < lengths[:, None]).astype(np.int32))
  keys, values = jax.jit(lambda *prompts: decoder.prefill(packed, cfg, *prompts, PLAIN))(prompts, lengths)
  cache = decoder.empty_cache(cfg, 4, T, 'float32').admit(rows, keys, values, lengths, lengths).resize(T + new)
  got = []
  for i in range(0, new, at_once):
    fed = np.zeros((4, at_once), np.int32)
    fed[rows] = tokens[np.arange(3)[:, None], lengths[:, None] + np.arange(i, i + at_once)]
    logits, cache = step(fed, cache)
    got.append(logits[rows])
  got = jnp.concatenate(got, axis=1)
  assert cache.lengths.tolist() == [3 + new, new, 63 + new, 61 + new]
  for row, length in enumerate(lengths):
    want = forward(tokens[row : row + 1, : length + new], None)
    assert difference(padded[row : row + 1, :length], want[:, :length]) < 2e-5
    assert difference(got[row : row + 1], want[:, length:]) < 2e-5


@pytest.mark.parametrize('cache_dtype, atol', [('float32', 2e-5), ('bfloat16', 0.05), ('int8', 0.1)])
def test_a_smaller_cache_is_nearly_the_same(cache_dtype, atol, decoder, tiny_config, random_params):
  cfg = tiny_config('qwen3', num_hidden_layers=2, hidden_size=64, intermediate_size=128, vocab_size=128)
  params = random_params(cfg)
  tokens = np.random.default_rng(0).integers(0, 97, (2, 20)).astype(np.int32)
  want = qwen.unembed(params, qwen.forward(params, cfg, tokens))
  packed = decoder.pack(params, cfg, 2)
  cache = decoder.empty_cache(cfg, 2, 20, cache_dtype)
  assert cache.dtype == cache_dtype

  @jax.jit
  def step(tokens, cache):
    x, cache = decoder.decode_step(packed, cfg, tokens, cache, PLAIN)
    return qwen.unembed(packed, x), cache

  got = []
  for i in range(20):
    logits, cache = step(tokens[:, i : i + 1], cache)
    got.append(logits)
  distance = np.abs(np.concatenate(got, axis=1) - want).max() / np.std(want)
  assert distance < atol and (distance > 1e-4 or cache_dtype == 'float32')
  assert cache.slots == (64 if decoder is generate.CPU else 20)  # whole panels
  vectors = 2 * cache.slots * cfg.num_hidden_layers * cfg.num_key_value_heads
  bytes_of_vector = sum(x.nbytes for x in jax.tree.leaves(cache.k)) / vectors
  scale = 4 if cache_dtype == 'int8' else 0
  assert bytes_of_vector == {'float32': 4, 'bfloat16': 2, 'int8': 1}[cache_dtype] * cfg.head_dim + scale
