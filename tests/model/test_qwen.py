import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.hf import config_json, layouts
from mathqwen.model import attention as attention_lib
from mathqwen.model import layers, parameters, qwen
from mathqwen.model.compute import Compute, Dropout
from mathqwen.model.config import PRESETS
from mathqwen.model.layers import attention, causal_mask, rms_norm

PUBLISHED = pathlib.Path(__file__).parents[1] / 'testdata' / 'model_configs.json'


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def logits_of(params, cfg, tokens, segment_ids=None, positions=None, dtype='float32'):
  return qwen.unembed(params, qwen.forward(params, cfg, tokens, segment_ids, positions, Compute(dtype=dtype)))


@jax.jit
def _difference(a, b):
  return jnp.max(jnp.abs(a - b))


def difference(a, b):
  assert a.shape == b.shape
  return float(_difference(a, b))


def tokens_of(shape, vocab_size=97, seed=0):
  tokens = np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)
  tokens[..., 2] = 0  # a token like any other
  return tokens


@pytest.mark.parametrize(
  'family, changes',
  [
    ('qwen2', {}),
    ('qwen2', {'tie_word_embeddings': True, 'num_key_value_heads': 6}),
    ('qwen3', {}),
    ('qwen3', {'tie_word_embeddings': True, 'num_key_value_heads': 1}),
    ('llama', {}),
    ('llama', {'tie_word_embeddings': True, 'num_key_value_heads': 6, 'vocab_size': 101}),
    ('llama', {'attention_bias': True}),
    ('qwen3', {'attention_bias': True}),
  ],
)
def test_logits_of_transformers(family, changes, torch_model, from_torch, tiny_config):
  import torch

  reference = torch_model(family, **changes)
  cfg, params = from_torch(reference)
  if changes.pop('attention_bias', False):
    changes |= {'qkv_bias': True, 'o_bias': True}
  assert cfg == tiny_config(family, **changes)
  # An export is of the same architecture, and says the same.
  assert layouts.choose(cfg) == family
  assert config_json.parse(config_json.make(cfg, None, 'float32', family), 'config.json') == (cfg, family)
  tokens = tokens_of((2, 21))
  with torch.no_grad():
    want = reference(torch.tensor(tokens)).logits.numpy()
  got = logits_of(params, cfg, tokens)
  assert got.dtype == jnp.float32 and np.abs(want).max() > 2
  assert difference(got, want) < 1e-4


def test_positions_are_those_of_transformers(torch_model, from_torch):
  import torch

  reference = torch_model('qwen3')
  cfg, params = from_torch(reference)
  tokens = tokens_of((1, 9))
  positions = np.array([[0, 1, 2, 5, 6, 40, 41, 90, 127]], np.int32)
  with torch.no_grad():
    want = reference(torch.tensor(tokens), position_ids=torch.tensor(positions)).logits.numpy()
  assert difference(logits_of(params, cfg, tokens, None, positions), want) < 1e-4
  assert difference(logits_of(params, cfg, tokens), want) > 0.1


# Pinned; those of Qwen-1 are compared with published counts below.
PARAMETERS = {
  'Qwen-1_8B': 1_836_828_672,
  'Qwen-7B': 7_721_324_544,
  'Qwen-14B': 14_167_290_880,
  'Qwen-72B': 72_287_920_128,
  'Qwen2.5-0.5B': 494_032_768,
  'Qwen2.5-1.5B': 1_543_714_304,
  'Qwen2.5-3B': 3_085_938_688,
  'Qwen2.5-7B': 7_615_616_512,
  'Qwen2.5-14B': 14_770_033_664,
  'Qwen2.5-32B': 32_763_876_352,
  'Qwen2.5-72B': 72_706_203_648,
  'Qwen3-0.6B': 596_049_920,
  'Qwen3-1.7B': 1_720_574_976,
  'Qwen3-4B': 4_022_468_096,
  'Qwen3-8B': 8_190_735_360,
  'Qwen3-14B': 14_768_307_200,
  'Qwen3-32B': 32_762_123_264,
  'Llama-2-7b': 6_738_415_616,
  'Llama-2-13b': 13_015_864_320,
  'Llama-2-70b': 68_976_648_192,
}


@pytest.mark.parametrize('name', PRESETS)
def test_parameter_count_of_preset(name):
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(parameters.abstract(PRESETS[name]))) == PARAMETERS[name]


def test_sizes_of_presets():
  published = json.loads(PUBLISHED.read_text())
  # What the file says of a whole family in words.
  family = {
    'qwen1': {'tie': False, 'eps': 1e-6, 'bias': True, 'norm': False},
    'qwen2.5': {'theta': 1e6, 'bias': True, 'norm': False},
    'qwen3': {'theta': 1e6, 'eps': 1e-6, 'V': 151936, 'bias': False, 'norm': True},
    'llama2': {'theta': 1e4, 'eps': 1e-5, 'V': 32000, 'maxpos': 4096, 'tie': False, 'bias': False, 'norm': False},
  }
  fields = {
    'h': 'hidden_size',
    'i': 'intermediate_size',
    'L': 'num_hidden_layers',
    'H': 'num_attention_heads',
    'KV': 'num_key_value_heads',
    'D': 'head_dim',
    'V': 'vocab_size',
    'theta': 'rope_theta',
    'eps': 'rms_norm_eps',
    'maxpos': 'max_position_embeddings',
    'tie': 'tie_word_embeddings',
    'bias': 'qkv_bias',
    'norm': 'qk_norm',
  }
  for name, cfg in PRESETS.items():
    kind, _, size = name.rpartition('-')
    key = {'Qwen': 'qwen1', 'Qwen2.5': 'qwen2.5', 'Qwen3': 'qwen3', 'Llama-2': 'llama2'}[kind]
    row = family[key] | published[key][{'qwen1': name, 'llama2': size.upper()}.get(key, size)]
    if key == 'qwen1':  # one of two up-projections; no shared heads
      row |= {'i': row['ffn'], 'KV': row['H']}
      assert (cfg.seq_length, cfg.use_dynamic_ntk, cfg.use_logn_attn) == (
        row['seq_length'], row['dynamic_ntk'], row['logn'],
      )  # fmt: skip
      assert PARAMETERS[name] == row['params']
    if key == 'qwen3':  # of base and chat checkpoints
      assert cfg.max_position_embeddings in (32768, 40960)
    got = {letter: getattr(cfg, field) for letter, field in fields.items() if letter in row}
    assert got == {letter: row[letter] for letter in got}, name
    assert len(got) >= 12, name


def test_no_token_sees_a_later_one(tiny_config, random_params):
  cfg = tiny_config('qwen3')
  params, tokens = random_params(cfg), np.arange(5, 15, dtype=np.int32)[None]  # every token once
  for t in (0, 4, 9):
    seen = jax.grad(lambda p, t=t: logits_of(p, cfg, tokens)[0, t, 0])(params)['embed']
    by_position = jnp.abs(seen[5:15]).sum(axis=1)
    assert (by_position[: t + 1] > 0).all() and (by_position[t + 1 :] == 0).all()


def test_segments_do_not_see_each_other(tiny_config, random_params):
  cfg = tiny_config()
  params = random_params(cfg)
  segment_ids = np.array([[1] * 5 + [2] * 6 + [0] * 2], np.int32)
  positions = np.array([[*range(5), *range(6), 0, 0]], np.int32)
  tokens = tokens_of((1, 13))
  base = logits_of(params, cfg, tokens, segment_ids, positions)
  for changed in (slice(0, 5), slice(5, 11), slice(11, 13)):
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 31) % 97
    got = logits_of(params, cfg, other, segment_ids, positions)
    same = np.asarray(got == base).all(axis=-1)[0]
    assert same.tolist() == [not changed.start <= t < changed.stop for t in range(13)]
  # Each is what it is alone.
  for part in (slice(0, 5), slice(5, 11)):
    assert difference(base[:, part], logits_of(params, cfg, tokens[:, part])) < 2e-5


def test_token_zero_is_attended_to(tiny_config, random_params):
  cfg = tiny_config('qwen3')
  params = random_params(cfg)
  # Another embedding of token 0, as well as another token in its place, is seen by all that follows.
  embed = params | {'embed': params['embed'].at[0].multiply(-1)}
  for at in (0, 3):
    tokens = np.arange(10, 18, dtype=np.int32)[None]
    other = tokens.copy()
    tokens[0, at] = 0
    want = logits_of(params, cfg, tokens)
    for got in (logits_of(embed, cfg, tokens), logits_of(params, cfg, other)):
      changed = jnp.abs(got - want).max(axis=-1)[0]
      assert (changed[:at] == 0).all() and (changed[at:] > 1e-2).all()


def test_scan_is_a_loop_over_layers(tiny_config, random_params):
  cfg = tiny_config('qwen3')
  params, tokens = random_params(cfg), tokens_of((2, 11))
  segment_ids = np.ones((2, 11), np.int32)
  turn = layers.rotation(cfg, jnp.broadcast_to(jnp.arange(11), (2, 11)))
  mask = causal_mask(segment_ids, segment_ids)

  @jax.jit
  def one(x, weights):
    return qwen.block(cfg, weights)(x, turn, lambda q, k, v: (attention(q, k, v, mask), None))[0]

  x = params['embed'][tokens]
  for i in range(3):
    x = one(x, jax.tree.map(lambda w, i=i: w[i], params['layers']))
  x = rms_norm(x, params['norm'], cfg.rms_norm_eps)
  assert difference(qwen.unembed(params, x), logits_of(params, cfg, tokens)) < 2e-5


def test_remat_dots_computes_no_product_of_a_weight_and_no_attention_again(tiny_config):
  cfg = tiny_config('qwen2', num_hidden_layers=2)
  tokens = jnp.zeros((1, 6), jnp.int32)

  def products(remat):
    compute = Compute(remat=remat, attention=attention_lib.blocks)
    gradient = jax.grad(lambda p: jnp.sum(qwen.forward(p, cfg, tokens, compute=compute)))
    return str(jax.make_jaxpr(gradient)(parameters.abstract(cfg))).count('dot_general')

  # A layer has 7 weights and 2 products in attention; its last product, `down`, no gradient needs.
  assert products('dots') == products('none') == products('full') - 6 - 2
  assert products('gate') == products('dots') + 1  # `up`
  assert products('mlp') == products('dots') + 2  # `gate` and `up`
  # A forward pass more, and attention once more, of which `o` is not needed. Loops are counted once.
  assert products('nested') == products('full') + 7 + 2 + 3 + 2


@pytest.mark.parametrize(('rate', 'length'), [(0.0, 7), (0.3, 8)])
def test_remat_leaves_gradients(rate, length, tiny_config, random_params):
  cfg = tiny_config('llama', num_hidden_layers=4)
  params, tokens = random_params(cfg), tokens_of((2, length))
  key = jax.random.key(3) if rate else None

  def gradient(remat):
    def loss(p):
      return jnp.sum(qwen.forward(p, cfg, tokens, compute=Compute(remat=remat, dropout=Dropout(rate, key))) ** 3)

    return jax.jit(jax.grad(loss))(params)

  want = gradient('none')
  for remat in ('full', 'nested', 'dots'):
    for got, leaf in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(got, leaf, rtol=0, atol=1e-5 * np.abs(leaf).max())


def test_dropout_needs_a_key_and_follows_it(tiny_config, random_params):
  cfg = tiny_config(num_hidden_layers=2)
  params, tokens = random_params(cfg), tokens_of((1, 6))
  run = jax.jit(
    lambda rate, key: qwen.forward(params, cfg, tokens, compute=Compute(dropout=Dropout(rate, key))), static_argnums=0
  )
  plain, a = run(0.0, None), run(0.4, jax.random.key(1))
  assert (run(0.4, None) == plain).all() and (run(0.4, jax.random.key(1)) == a).all()
  assert difference(a, plain) > 0.1 and difference(a, run(0.4, jax.random.key(2))) > 0.1


def test_every_dropout_has_its_own_key(tiny_config, random_params, monkeypatch):
  cfg = tiny_config()
  seen = []

  def record(x, rate, key):
    jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
    return x

  monkeypatch.setattr(layers, 'dropout', record)
  for step in range(2):
    key = jax.random.fold_in(jax.random.key(0), step)
    compute = Compute(dropout=Dropout(0.1, key))
    qwen.forward(random_params(cfg), cfg, tokens_of((1, 4)), compute=compute).block_until_ready()
  jax.effects_barrier()
  assert len(seen) == len(set(seen)) == 2 * (1 + 2 * 3)  # the embedding, and two branches in each of three layers


@pytest.mark.parametrize('tied', [False, True])
def test_bfloat16_keeps_logits_float32(tied, tiny_config, random_params):
  cfg = tiny_config(tie_word_embeddings=tied)
  params, tokens = random_params(cfg), tokens_of((2, 9))
  x = jax.eval_shape(lambda: qwen.forward(params, cfg, tokens, compute=Compute(dtype='bfloat16')))
  got, want = logits_of(params, cfg, tokens, dtype='bfloat16'), logits_of(params, cfg, tokens)
  assert (x.dtype, got.dtype) == (jnp.bfloat16, jnp.float32)
  # Not float32 by a cast at the end: bfloat16 holds 8 bits of each.
  assert float(jnp.mean(got == got.astype(jnp.bfloat16))) < 0.1
  assert difference(got, want) < 0.05 * float(jnp.abs(want).max())


def test_init_is_random_where_it_should_be(tiny_config):
  cfg = tiny_config('qwen2', initializer_range=0.05)
  params = jax.jit(parameters.init, static_argnums=1)(jax.random.key(0), cfg)
  struct = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert struct(params) == struct(parameters.abstract(cfg))
  for path, weight in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    if name.endswith('norm') or name.endswith('bias'):
      assert (weight == (1 if name.endswith('norm') else 0)).all(), name
    else:
      assert abs(float(jnp.std(weight)) / 0.05 - 1) < 0.05, name
  for name in ('q', 'o', 'down'):  # layers differ
    assert difference(params['layers'][name][0], params['layers'][name][1]) > 0.05
