"""Adapters on a frozen base: their gradients, what they cost, and that they and the merged weights compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_batches import examples_of, train_config

from mathqwen.adapter_config import AdapterConfig
from mathqwen.data import packing
from mathqwen.model import lora, qwen
from mathqwen.training import step as step_lib

# Qwen-1 has as many key heads as query heads, and acts on lengths beyond seq_length only outside of training.
FAMILIES = {
  'qwen1': ('qwen2', {'num_key_value_heads': 6, 'seq_length': 8, 'use_dynamic_ntk': True, 'use_logn_attn': True}),
  'qwen2': ('qwen2', {}),
  'qwen3': ('qwen3', {}),
  'llama': ('llama', {'tie_word_embeddings': True}),
}


def random_adapters(cfg, adapter, seed=1):
  """None of them zeros, as B would be before training."""
  rng = np.random.default_rng(seed)
  draw = lambda struct: jnp.asarray(0.1 * rng.standard_normal(struct.shape), jnp.float32)
  trained = jax.tree.map(draw, lora.trained(cfg, adapter))
  for parts in trained['layers'].values():
    if adapter.dora:
      parts['magnitude'] = 1 + jnp.abs(parts['magnitude'])
  return trained


def merged(base, trained, adapter):
  joined = lora.join(base, trained, adapter)['layers']
  of_layers = {name: lora.merged(joined[name], 'float32') for name in trained['layers']}
  return base | {'layers': base['layers'] | of_layers}


def gradients(params, batch, cfg, train, base=None):
  run = jax.jit(lambda p, b, base: step_lib.gradients(p, b, jax.random.key(0), cfg=cfg, train=train, base=base))
  return run(params, batch, base)


@pytest.mark.parametrize(
  'family, adapter, train',
  [
    ('qwen1', {'rank': 4}, {'remat': 'full', 'micro_batches': 2}),
    ('qwen2', {'rank': 4, 'targets': ('q', 'v')}, {}),
    ('qwen3', {'rank': 3, 'rank_stabilized': True}, {'remat': 'nested'}),
    ('llama', {'rank': 2, 'targets': ('o', 'gate', 'down'), 'alpha': 5.0}, {'remat': 'dots'}),
  ],
)
def test_gradients_are_those_of_the_merged_weights(family, adapter, train, tiny_config, random_params):
  """dA = scale B^T dW and dB = scale dW A^T, where dW is the gradient of the merged weight."""
  name, changes = FAMILIES[family]
  cfg, adapter = tiny_config(name, num_hidden_layers=2, **changes), AdapterConfig(**adapter)
  base, trained = random_params(cfg), random_adapters(cfg, adapter)
  batch = packing.pack(examples_of(9), 24)
  batch = {key: rows[: len(rows) // 2 * 2] for key, rows in batch.items()}
  plain = merged(base, trained, adapter)
  whole, want_sum, _ = gradients(plain, batch, cfg, train_config())
  got, loss_sum, _ = gradients(trained, batch, cfg, train_config(adapter=adapter, **train), base)
  assert float(loss_sum) == pytest.approx(float(want_sum), rel=2e-6)
  assert set(got) == {'layers'} and set(got['layers']) == set(adapter.targets)
  for weight, parts in trained['layers'].items():
    L, rank = cfg.num_hidden_layers, adapter.rank
    a, b = parts['a'].reshape(L, rank, -1), parts['b'].reshape(L, -1, rank)
    dw = np.float64(whole['layers'][weight].reshape(L, b.shape[1], a.shape[2]))
    for part, want in (('a', b.swapaxes(1, 2) @ dw), ('b', dw @ a.swapaxes(1, 2))):
      want = adapter.scale * want.reshape(parts[part].shape)
      np.testing.assert_allclose(
        got['layers'][weight][part], want, rtol=0, atol=2e-5 * np.abs(want).max(), err_msg=f'{weight} {part}'
      )
  forward = jax.jit(lambda p: qwen.unembed(p, qwen.forward(p, cfg, batch['tokens'], batch['segment_ids'])))
  apart = forward(lora.join(base, trained, adapter))
  assert np.abs(apart - forward(plain)).max() < 1e-5 * np.abs(apart).max()
  assert np.abs(apart - forward(base)).max() > 0.1
