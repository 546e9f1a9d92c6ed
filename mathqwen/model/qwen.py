"""The decoder: Qwen-1, Qwen1.5/2/2.5, Qwen3 and LLaMA, by configuration.

Flax NNX declares the weights; everything outside sees a nested dict of arrays and these functions:

  init(key, cfg) -> params               abstract(cfg) -> the same tree of shapes, no arrays
  logical_axes(cfg) -> the same tree of axis names, one for each dimension of each weight
  hidden(params, cfg, tokens, ...) -> final-norm output [B, T, D], and the cache when one is given
  unembed(params, cfg, x_BTD) -> float32 logits [B, T, V]      head(params, cfg) -> its weight [V, D]

Weights lie as torch and Hugging Face store them, outputs before inputs, so that a conversion only reshapes.
B batch, T query/sequence, S key/cache, D embed, N query heads, K kv heads, H head dim, F MLP, V vocab, L layers.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mathqwen.model.attention import SAVED, reference
from mathqwen.model.cache import KVCache
from mathqwen.model.config import ModelConfig
from mathqwen.model.layers import (
  attention,
  dropout,
  linear,
  logn_scale,
  matmul,
  ntk_theta,
  rms_norm,
  rope,
  rope_angles,
  swiglu,
)
from mathqwen.model.panels import WIDTH, Panels

# What a layer keeps for the backward pass besides its input; the rest is computed again. Most memory first.
_keep = jax.checkpoint_policies.save_only_these_names
REMAT = {
  'none': None,  # everything
  'dots': _keep('qkv', SAVED, 'mid', 'gate', 'up'),  # no multiplication by weights is computed again
  'gate': _keep('qkv', SAVED, 'mid', 'gate'),  # up is
  'mlp': _keep('qkv', SAVED, 'mid'),  # gate and up are
  'full': jax.checkpoint_policies.nothing_saveable,  # all are, but down
  'nested': jax.checkpoint_policies.nothing_saveable,  # so are most layers' inputs; attention twice
}


def _param(init, rngs, shape, *axes):
  # eager_sharding=False: the axes are names only; `sharding.py` decides what they mean on a mesh.
  return nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=axes, eager_sharding=False)


_ones, _zeros = nnx.initializers.ones, nnx.initializers.zeros


class Block(nnx.Module):
  """One pre-norm layer."""

  def __init__(self, cfg: ModelConfig, *, rngs):
    D, F = cfg.hidden_size, cfg.intermediate_size
    N, K, H = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    normal = nnx.initializers.normal(cfg.initializer_range)
    self.cfg = cfg
    self.input_norm = _param(_ones, rngs, (D,), 'norm')
    self.q = _param(normal, rngs, (N, H, D), 'heads', 'head_dim', 'embed')
    self.k = _param(normal, rngs, (K, H, D), 'kv_heads', 'head_dim', 'embed')
    self.v = _param(normal, rngs, (K, H, D), 'kv_heads', 'head_dim', 'embed')
    if cfg.qkv_bias:
      self.q_bias = _param(_zeros, rngs, (N, H), 'heads', 'head_dim')
      self.k_bias = _param(_zeros, rngs, (K, H), 'kv_heads', 'head_dim')
      self.v_bias = _param(_zeros, rngs, (K, H), 'kv_heads', 'head_dim')
    if cfg.qk_norm:
      self.q_norm = _param(_ones, rngs, (H,), 'norm')
      self.k_norm = _param(_ones, rngs, (H,), 'norm')
    self.o = _param(normal, rngs, (D, N, H), 'embed', 'heads', 'head_dim')
    self.post_norm = _param(_ones, rngs, (D,), 'norm')
    self.gate = _param(normal, rngs, (F, D), 'mlp', 'embed')
    self.up = _param(normal, rngs, (F, D), 'mlp', 'embed')
    self.down = _param(normal, rngs, (D, F), 'embed', 'mlp')

  def __call__(self, x_BTD, angles, attend, drop, nested=False):
    """`attend(q, k, v)` mixes over tokens; `drop` is the dropout on each residual branch. With `nested` the backward
    pass holds only what attention needs, or what the MLP needs for one half of the tokens."""
    mix, mlp = functools.partial(self.mix, angles=angles, attend=attend, drop=drop), self.mlp
    if nested:
      mix, mlp = jax.checkpoint(mix), functools.partial(_by_halves, jax.checkpoint(mlp))
    x_BTD, cache = mix(x_BTD)
    return x_BTD + drop(mlp(x_BTD), 1), cache

  def mlp(self, x_BTD):
    """The other branch."""
    h_BTD = rms_norm(x_BTD, self.post_norm[...], self.cfg.rms_norm_eps)
    return swiglu(h_BTD, self.gate[...], self.up[...], self.down[...])

  def mix(self, x_BTD, angles, attend, drop):
    """The branch of attention."""
    eps = self.cfg.rms_norm_eps
    h_BTD = rms_norm(x_BTD, self.input_norm[...], eps)
    q_BTNH = linear('BTD,NHD->BTNH', h_BTD, self.q[...])
    k_BTKH = linear('BTD,KHD->BTKH', h_BTD, self.k[...])
    v_BTKH = linear('BTD,KHD->BTKH', h_BTD, self.v[...])
    if self.cfg.qkv_bias:
      q_BTNH, k_BTKH, v_BTKH = q_BTNH + self.q_bias[...], k_BTKH + self.k_bias[...], v_BTKH + self.v_bias[...]
    if self.cfg.qk_norm:
      q_BTNH, k_BTKH = rms_norm(q_BTNH, self.q_norm[...], eps), rms_norm(k_BTKH, self.k_norm[...], eps)
    q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(x, 'qkv') for x in (rope(q_BTNH, *angles), rope(k_BTKH, *angles), v_BTKH))
    o_BTNH, cache = attend(q_BTNH, k_BTKH, v_BTKH)
    return checkpoint_name(x_BTD + drop(linear('BTNH,DNH->BTD', o_BTNH, self.o[...]), 0), 'mid'), cache


def _by_halves(f, x_BTD):
  """`f` of every second token, then of the others: halves of a length that is split over chips then lie on all."""
  B, T, D = x_BTD.shape
  if T % 2:
    return f(x_BTD)
  halves = jnp.unstack(x_BTD.reshape(B, T // 2, 2, D), axis=2)
  return jnp.stack([f(half) for half in halves], axis=2).reshape(B, T, D)


class Qwen(nnx.Module):
  def __init__(self, cfg: ModelConfig, *, rngs):
    V, D = cfg.vocab_size, cfg.hidden_size
    normal = nnx.initializers.normal(cfg.initializer_range)
    stack = nnx.vmap(lambda r: Block(cfg, rngs=r), transform_metadata={nnx.PARTITION_NAME: 'layers'})
    self.embed = _param(normal, rngs, (V, D), 'vocab', 'vocab_width')
    self.layers = nnx.split_rngs(splits=cfg.num_hidden_layers)(stack)(rngs)  # every weight gains a leading L
    self.norm = _param(_ones, rngs, (D,), 'norm')
    if not cfg.tie_word_embeddings:
      self.head = _param(normal, rngs, (V, D), 'vocab', 'vocab_width')


def _model(cfg):
  return Qwen(cfg, rngs=nnx.Rngs(0))


@functools.lru_cache
def _split_abstract(cfg: ModelConfig):
  return nnx.split(nnx.eval_shape(lambda: _model(cfg)), nnx.Param)


@functools.lru_cache
def _block(cfg: ModelConfig):
  return nnx.split(nnx.eval_shape(lambda: Block(cfg, rngs=nnx.Rngs(0))), nnx.Param)[0]


def init(key, cfg: ModelConfig):
  """Random float32 weights."""
  return nnx.to_pure_dict(nnx.split(Qwen(cfg, rngs=nnx.Rngs(params=key)), nnx.Param)[1])


def abstract(cfg: ModelConfig):
  """The tree of `init` as `jax.ShapeDtypeStruct`s."""
  as_struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  return jax.tree.map(as_struct, nnx.to_pure_dict(_split_abstract(cfg)[1]))


def logical_axes(cfg: ModelConfig):
  """The tree of `init` as tuples of axis names."""
  specs = nnx.to_pure_dict(nnx.get_partition_spec(_split_abstract(cfg)[1]))
  return jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))


def hidden(
  params,
  cfg: ModelConfig,
  tokens_BT,
  segment_ids_BT=None,
  positions_BT=None,
  *,
  cache: KVCache | None = None,
  keep: bool = False,
  dtype=jnp.float32,
  remat: str = 'none',
  dropout_rate: float = 0.0,
  dropout_key=None,
  training: bool = False,
  attend_rows=reference,
  place=lambda x, *axes: x,
  gather=lambda weights, axes, dtype: jax.tree.map(lambda w: w.astype(dtype), weights),
):
  """Final-norm output [B, T, D] in `dtype`; with a cache, `(output, cache)` with T more slots of each row written; with
  `keep`, `(output, (keys, values))`, each [L, B, T, K, H], for `KVCache.admit`.

  Without segment ids every token is of segment 1; without positions they count from 0, or on from the cache. A cache
  has one segment a row. `params['layers']` may be a tuple of layers (`for_cpu`) instead of arrays with L first. Weights
  are cast to `dtype` layer by layer. Dropout, which the report sets to 0.1 without saying where, falls on the embedding
  and on both residual branches: fused attention kernels have none inside. Qwen-1's dynamic NTK and logn act past
  `seq_length`, but not with `training`, as in the original; with a cache the rotary base stays what the prompt's length
  made it. `attend_rows`, from `attention.select`, is the attention of a call without a cache. `place` and `gather`, of
  `sharding.Placement`, say by axis names where activations lie on a mesh, and bring a layer's weights together there
  in `dtype`.
  """
  B, T = tokens_BT.shape
  if segment_ids_BT is None:
    segment_ids_BT = jnp.ones((B, T), jnp.int32)
  if positions_BT is None:
    positions_BT = (0 if cache is None else cache.lengths[:, None]) + jnp.broadcast_to(jnp.arange(T), (B, T))
  theta = cfg.rope_theta
  if cfg.use_dynamic_ntk and not training:
    of_segment_BT = jnp.sum(segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :], axis=-1, dtype=jnp.int32)
    lengths_BT = of_segment_BT if cache is None else cache.prompt_lengths[:, None]
    theta = ntk_theta(theta, lengths_BT, cfg.seq_length, cfg.head_dim)
  angles = rope_angles(positions_BT, cfg.head_dim, theta)
  if isinstance(params['layers'], tuple):
    # XLA for CPU would make them anew for each head of each layer. A branch, which it does not know, takes them whole.
    angles = jax.lax.cond(jnp.any(tokens_BT >= 0), _same, _zeros_like, angles)
  layer_axes = jax.tree.map(lambda axes: axes[1:], logical_axes(cfg)['layers'], is_leaf=lambda x: isinstance(x, tuple))

  def layer(carry, xs):
    x_BTD, cache = carry
    index, w = xs
    block = nnx.merge(_block(cfg), gather(w, layer_axes, dtype))

    def attend(q, k, v):
      if cfg.use_logn_attn and not training:
        q = q * logn_scale(positions_BT, cfg.seq_length)[..., None, None].astype(q.dtype)
      if cache is None:
        return attend_rows(q, k, v, segment_ids_BT), (k, v) if keep else None
      new, (k_BSKH, v_BSKH) = cache.write(index, k, v)
      return attention(q, k_BSKH, v_BSKH, cache.mask(positions_BT)), new

    def drop(x, branch):
      key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1 + 2 * index + branch)
      return dropout(x, dropout_rate, key)

    x_BTD, new = block(place(x_BTD, 'batch', 'length', 'width'), angles, attend, drop, remat == 'nested')
    x_BTD = place(x_BTD, 'batch', 'length', 'width')
    return ((x_BTD, None), new) if cache is None else ((x_BTD, new), None)

  # Each chip looks the tokens of all up in its columns of the table, then keeps its rows: no table is ever whole.
  table_VD = place(params['embed'].astype(dtype), 'tensor_vocab', 'embed')
  x_BTD = place(table_VD[place(tokens_BT, 'copy', 'whole')], 'copy', 'whole', 'embed')
  x_BTD = place(x_BTD, 'batch', 'length', 'width')
  x_BTD = dropout(x_BTD, dropout_rate, None if dropout_key is None else jax.random.fold_in(dropout_key, 0))
  one = jnp.all(segment_ids_BT >= 0).astype(jnp.float32)  # unknown to XLA, as in `sharding.Placement.gather`
  cast = lambda weights: jax.tree.map(lambda w: (w * one).astype(dtype), weights)
  (x_BTD, cache), kept = _through_layers(layer, (x_BTD, cache), params['layers'], cfg.num_hidden_layers, remat, cast)
  x_BTD = rms_norm(x_BTD, params['norm'].astype(dtype), cfg.rms_norm_eps)
  if keep:
    return x_BTD, kept
  return x_BTD if cache is None else (x_BTD, cache.advance(T))


def _same(x):
  return x


def _zeros_like(x):
  return jax.tree.map(jnp.zeros_like, x)


def group_size(count: int) -> int:
  """Layers in a group of remat 'nested'."""
  return max(n for n in range(1, count + 1) if count % n == 0 and n * n <= count)


def _through_layers(layer, carry, layers, count: int, remat: str, cast):
  """`jax.lax.scan` of `layer` over (number, weights) of the layers."""
  if isinstance(layers, tuple):
    kept = []
    for numbered in enumerate(layers):
      carry, new = layer(carry, numbered)
      kept.append(new)
    return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *kept)
  layers = jnp.arange(count), layers
  if remat != 'none':
    layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT[remat])
  through = functools.partial(jax.lax.scan, layer)
  if remat != 'nested':
    return through(carry, layers)
  # Only the inputs of groups of some sqrt(L) layers are kept, and of one group at a time those of its layers.
  size = group_size(count)
  groups = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), layers)

  def group(carry, xs):
    # The copies of the group's weights and gradients that XLA makes for the loop over its layers take half as much.
    return through(carry, (xs[0], cast(xs[1])))

  return jax.lax.scan(jax.checkpoint(group, prevent_cse=False, policy=REMAT[remat]), carry, groups)


def for_cpu(params, cfg: ModelConfig, rows: int):
  """`params` to decode `rows` answers at a time with on a CPU.

  The layers are copied as a tuple of L, as XLA would copy one out of the stack each time that it is used; o, gate, up
  and the head, a tied one too, in `Panels`, unless the rows are more than 64: plain products are as fast then.
  """
  packed = _packed({'layers': params['layers'], 'head': head(params, cfg)}, cfg.num_hidden_layers, rows <= 64)
  return params | packed


@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed(weights, count: int, panels: bool):
  pack = lambda w: Panels.of(w.reshape(w.shape[0], -1)) if panels and w.shape[0] % WIDTH == 0 else w

  def layer(i):
    w = jax.tree.map(lambda w: w[i], weights['layers'])
    return w | {name: pack(w[name]) for name in ('o', 'gate', 'up')}

  head_VD = pack(weights['head'])
  return {'layers': tuple(map(layer, range(count)))} | ({'head': head_VD} if isinstance(head_VD, Panels) else {})


def head(params, cfg: ModelConfig):
  """The weight [V, D] that logits are made with."""
  return params.get('head', params['embed'])


def unembed(params, cfg: ModelConfig, x_BTD):
  """float32 logits [B, T, V] (or [..., V] for any leading axes)."""
  head_VD = jax.tree.map(lambda w: w.astype(x_BTD.dtype), head(params, cfg))
  return matmul(x_BTD, head_VD, jnp.float32)
