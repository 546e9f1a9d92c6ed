"""The decoder: Qwen-1, Qwen1.5/2/2.5, Qwen3 and LLaMA, by configuration.

Flax NNX declares the weights of a layer here, and all of them in `parameters.py`; everything outside sees a nested dict
of arrays and these functions:

  forward(params, cfg, tokens, ...) -> final-norm output [B, T, D]      training and scoring
  prefill(params, cfg, prompts, lengths) -> (keys, values)              what a cache holds of prompts
  decode_step(params, cfg, tokens, cache) -> (final-norm output, cache) the next tokens of each row
  unembed(params, x_BTD) -> float32 logits [B, T, V]                    head(params) -> its weight [V, D]

Weights are laid out as torch and Hugging Face store them, outputs before inputs, so that a conversion only reshapes.
B batch, P prompts, T query/sequence, S key/cache, D embed, N query heads, K kv heads, H head dim, F MLP, V vocab,
L layers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from mathqwen import compat
from mathqwen.model import adapted, layers, stack
from mathqwen.model.cache import CACHE_AXES, KVCache
from mathqwen.model.compute import PLAIN, Compute
from mathqwen.model.config import ModelConfig
from mathqwen.model.layers import Rotation, linear, rms_norm, rope
from mathqwen.model.placement import axes_of, cast_weights, opaque_one
from mathqwen.model.quantized import Quantized

# (q_BTNH, k_BTKH, v_BTKH) -> (o_BTNH, what the caller of the layer gets back: a new cache, keys and values, or None)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple]


# Axes of queries, and of keys and values, in attention; and of its outputs where they meet the weight `o`.
_QUERIES = ('batch', 'whole', 'heads', 'head_dim')
_KEYS = ('batch', 'whole', 'kv_heads', 'head_dim')
_MIXED = ('copy', 'whole', 'heads', 'head_dim')


def param(init, rngs, shape, *axes) -> nnx.Param:
  """A float32 weight whose dimensions have these names."""
  return nnx.Param(init(rngs.params(), shape, jnp.float32), **compat.axis_names(axes))


ones = nnx.initializers.ones
zeros = nnx.initializers.zeros


class Block(nnx.Module):
  """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, cfg: ModelConfig, *, rngs):
    D = cfg.hidden_size
    F = cfg.intermediate_size
    N = cfg.num_attention_heads
    K = cfg.num_key_value_heads
    H = cfg.head_dim
    normal = nnx.initializers.normal(cfg.initializer_range)
    self.cfg = cfg
    self.input_norm = param(ones, rngs, (D,), 'norm')
    self.q = param(normal, rngs, (N, H, D), 'heads', 'head_dim', 'embed')
    self.k = param(normal, rngs, (K, H, D), 'kv_heads', 'head_dim', 'embed')
    self.v = param(normal, rngs, (K, H, D), 'kv_heads', 'head_dim', 'embed')
    if cfg.qkv_bias:
      self.q_bias = param(zeros, rngs, (N, H), 'heads', 'head_dim')
      self.k_bias = param(zeros, rngs, (K, H), 'kv_heads', 'head_dim')
      self.v_bias = param(zeros, rngs, (K, H), 'kv_heads', 'head_dim')
    if cfg.qk_norm:
      self.q_norm = param(ones, rngs, (H,), 'norm')
      self.k_norm = param(ones, rngs, (H,), 'norm')
    self.o = param(normal, rngs, (D, N, H), 'embed', 'heads', 'head_dim')
    if cfg.o_bias:
      self.o_bias = param(zeros, rngs, (D,), 'norm')
    self.post_norm = param(ones, rngs, (D,), 'norm')
    self.gate = param(normal, rngs, (F, D), 'mlp', 'embed')
    self.up = param(normal, rngs, (F, D), 'mlp', 'embed')
    self.down = param(normal, rngs, (D, F), 'embed', 'mlp')

  def __call__(
    self,
    x_BTD: jax.Array,
    rotation: Rotation,
    attend: Attend,
    drop: Callable = lambda x, branch: x,
    nested: bool = False,
  ) -> tuple:
    """(x_BTD after this layer, the second value that `attend` returned).

    attend: mixes over tokens. drop(x, branch): dropout on a residual branch, 0 for attention and 1 for the MLP.
    nested: checkpoint the two branches as `stack.checkpoint_nested` says.
    """
    mix = functools.partial(self.mix, rotation=rotation, attend=attend, drop=drop)
    mlp = self.mlp
    if nested:
      mix, mlp = stack.checkpoint_nested(mix, mlp)
    x_BTD, kept = mix(x_BTD)
    return x_BTD + drop(mlp(x_BTD), 1), kept

  def mix(self, x_BTD: jax.Array, rotation: Rotation, attend: Attend, drop: Callable) -> tuple:
    """(x_BTD with the attention branch added, the second value that `attend` returned).

    The names given to `checkpoint_name` are those that the policies in `stack.REMAT` keep.
    """
    eps = self.cfg.rms_norm_eps
    h_BTD = rms_norm(x_BTD, self.input_norm[...], eps)
    q_BTNH = linear('BTD,NHD->BTNH', h_BTD, self.q[...])
    k_BTKH = linear('BTD,KHD->BTKH', h_BTD, self.k[...])
    v_BTKH = linear('BTD,KHD->BTKH', h_BTD, self.v[...])
    if self.cfg.qkv_bias:
      q_BTNH += self.q_bias[...]
      k_BTKH += self.k_bias[...]
      v_BTKH += self.v_bias[...]
    if self.cfg.qk_norm:
      q_BTNH = rms_norm(q_BTNH, self.q_norm[...], eps)
      k_BTKH = rms_norm(k_BTKH, self.k_norm[...], eps)
    q_BTNH = checkpoint_name(rope(q_BTNH, rotation.cos, rotation.sin), 'qkv')
    k_BTKH = checkpoint_name(rope(k_BTKH, rotation.cos, rotation.sin), 'qkv')
    v_BTKH = checkpoint_name(v_BTKH, 'qkv')
    if rotation.query_scale is not None:
      q_BTNH = q_BTNH * rotation.query_scale.astype(q_BTNH.dtype)
    o_BTNH, kept = attend(q_BTNH, k_BTKH, v_BTKH)
    o_BTD = linear('BTNH,DNH->BTD', o_BTNH, self.o[...])
    if self.cfg.o_bias:
      o_BTD += self.o_bias[...]
    return checkpoint_name(x_BTD + drop(o_BTD, 0), 'mid'), kept

  def mlp(self, x_BTD: jax.Array, half: jax.Array | None = None) -> jax.Array:
    """The MLP branch [B, T, D], not yet added to x. half: as in `compute.Dropout`."""
    h_BTD = rms_norm(x_BTD, self.post_norm[...], self.cfg.rms_norm_eps)
    return layers.swiglu(h_BTD, *(adapted.at(w[...], half) for w in (self.gate, self.up, self.down)))


@functools.lru_cache
def _abstract_block(cfg: ModelConfig) -> tuple:
  """(structure, weights without values) of a `Block`."""
  return nnx.split(nnx.eval_shape(lambda: Block(cfg, rngs=nnx.Rngs(0))), nnx.Param)


def layer_axes(cfg: ModelConfig) -> dict:
  """The axis names of each weight of one layer: those of `parameters.logical_axes` without the leading 'layers'."""
  return compat.axes_of(_abstract_block(cfg)[1])


def block(cfg: ModelConfig, weights: dict) -> Block:
  """The layer with these weights, a dict as in `parameters.init` without the leading L."""
  return nnx.merge(_abstract_block(cfg)[0], weights)


def embed(params: dict, tokens_BT: jax.Array, compute: Compute) -> jax.Array:
  """The tokens' rows of the embedding, [B, T, D] in `compute.dtype`."""
  place = compute.placement
  if isinstance(params['embed'], Quantized):
    return place(_look_up(params, tokens_BT, compute), 'batch', 'length', 'width')
  # Each chip looks up the tokens of all chips of its model copy in its columns of the table, and then keeps its own
  # rows of the result. So the table is never whole on a chip.
  table_VD = place(params['embed'].astype(compute.dtype), 'tensor_vocab', 'embed')
  x_BTD = place(table_VD[place(tokens_BT, 'copy', 'whole')], 'copy', 'whole', 'embed')
  return place(x_BTD, 'batch', 'length', 'width')


def _look_up(params: dict, tokens_BT: jax.Array, compute: Compute) -> jax.Array:
  """`embed` for few tokens: every chip looks up all of them in its part of the table, and no part moves."""
  place = compute.placement
  table_VD, tokens_BT = params['embed'], place(tokens_BT, 'copy', 'whole')
  if isinstance(table_VD, Quantized):
    x_BTD = table_VD.rows(tokens_BT, compute.dtype)
  else:
    x_BTD = table_VD[tokens_BT].astype(compute.dtype)
  return place(x_BTD, 'copy', 'whole', 'embed')


def final_norm(params: dict, cfg: ModelConfig, x_BTD: jax.Array) -> jax.Array:
  """The norm after the last layer, [B, T, D]."""
  return rms_norm(x_BTD, params['norm'].astype(x_BTD.dtype), cfg.rms_norm_eps)


def forward(
  params: dict,
  cfg: ModelConfig,
  tokens_BT: jax.Array,
  segment_ids_BT: jax.Array | None = None,
  positions_BT: jax.Array | None = None,
  compute: Compute = PLAIN,
) -> jax.Array:
  """Final-norm output [B, T, D] in `compute.dtype`, for training and scoring.

  Attention stays within a segment; without segment ids every token is in segment 1. Positions count from 0 unless
  given. Weights are cast to `compute.dtype` layer by layer.
  """
  B, T = tokens_BT.shape
  place = compute.placement
  drop = compute.dropout
  if segment_ids_BT is None:
    segment_ids_BT = jnp.ones((B, T), jnp.int32)
  if positions_BT is None:
    positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
  lengths_BT = layers.segment_ends(segment_ids_BT, positions_BT) if cfg.rope_scaling.follows_length else None
  prompt_lengths_BT = None if compute.training else layers.segment_lengths(segment_ids_BT)
  rotation = layers.rotation(cfg, positions_BT, lengths_BT, prompt_lengths_BT)
  one = opaque_one(segment_ids_BT)

  def layer(x_BTD, index, weights):
    weights = place.gather(weights, axes_of(weights, layer_axes(cfg)), compute.dtype, one)
    this_layer = block(cfg, adapted.with_dropout(weights, compute.adapter_dropout, index))
    attend = lambda q, k, v: (compute.attention(q, k, v, segment_ids_BT), None)
    drop_branch = lambda x, branch: drop(x, 1 + 2 * index + branch)  # site 0 is the embedding
    x_BTD = place(x_BTD, 'batch', 'length', 'width')
    x_BTD, _ = this_layer(x_BTD, rotation, attend, drop_branch, nested=compute.remat == 'nested')
    return place(x_BTD, 'batch', 'length', 'width')

  cast_group = lambda weights: cast_weights(weights, compute.dtype, one)
  x_BTD = drop(embed(params, tokens_BT, compute), 0)
  x_BTD = stack.scan_layers(layer, x_BTD, params['layers'], compute.remat, cast_group)
  return final_norm(params, cfg, x_BTD)


def prefill(
  params: dict, cfg: ModelConfig, tokens_PT: jax.Array, lengths_P: jax.Array, compute: Compute = PLAIN
) -> tuple[jax.Array, jax.Array]:
  """(keys, values), each [L, P, T, K, H], of prompts padded on the right, for `KVCache.admit`.

  On a mesh, weights stay where they are, as in `decode_step`.
  """
  P, T = tokens_PT.shape
  positions_PT = jnp.broadcast_to(jnp.arange(T), (P, T))
  segment_ids_PT = (positions_PT < lengths_P[:, None]).astype(jnp.int32)
  rotation = layers.rotation(cfg, positions_PT, lengths_P[:, None], lengths_P[:, None])
  place = compute.placement

  def attend(q, k, v):
    k, v = place(k, *_KEYS), place(v, *_KEYS)
    return place(compute.attention(q, k, v, segment_ids_PT), *_MIXED), (k, v)

  def layer(x_PTD, weights):
    x_PTD, keys_and_values = block(cfg, cast(weights, compute.dtype))(x_PTD, rotation, attend)
    return place(x_PTD, 'copy', 'whole', 'embed'), keys_and_values

  _, keys_and_values = jax.lax.scan(layer, _look_up(params, tokens_PT, compute), params['layers'])
  return keys_and_values


def decode_step(
  params: dict, cfg: ModelConfig, tokens_BT: jax.Array, cache: KVCache, compute: Compute = PLAIN
) -> tuple[jax.Array, KVCache]:
  """(final-norm output [B, T, D], cache with T more slots of each row written), for the next T tokens of each row.

  On a mesh, weights and cache stay where they are, and activations move: an activation is split like the weight that it
  meets, in attention like the cache. A step has few tokens, so that moves far less than gathering weights would.
  """
  place = compute.placement
  T = tokens_BT.shape[1]
  positions_BT = cache.lengths[:, None] + jnp.arange(T)
  # Keys of earlier tokens keep the rotation that they were written with, as in transformers.
  rotation = layers.rotation(cfg, positions_BT, positions_BT[:, -1:] + 1, cache.prompt_lengths[:, None])

  # The cache travels through the scan whole, as carry: XLA then writes into it in place. As scanned input and output,
  # each step would write a second cache.
  def layer(carry, numbered_weights):
    x_BTD, cache = carry
    index, weights = numbered_weights

    def attend(q, k, v):
      o_BTNH, new = attend_locally(index, q, k, v, cache, positions_BT)
      return place(o_BTNH, *_MIXED), new

    x_BTD, cache = block(cfg, cast(weights, compute.dtype))(x_BTD, rotation, attend)
    return (place(x_BTD, 'copy', 'whole', 'embed'), cache), None

  def attend_to_cache(index, q, k, v, cache, positions_BT):
    new = cache.write(index, k, v)
    return layers.attention(q, *new.read(index, q.dtype), new.mask(positions_BT)), new

  inputs = ((), _QUERIES, _KEYS, _KEYS, CACHE_AXES, ('batch', 'whole'))
  attend_locally = place.local(attend_to_cache, inputs, (_QUERIES, CACHE_AXES))
  x_BTD = _look_up(params, tokens_BT, compute)
  numbered_weights = (jnp.arange(cfg.num_hidden_layers), params['layers'])
  (x_BTD, cache), _ = jax.lax.scan(layer, (x_BTD, cache), numbered_weights)
  return final_norm(params, cfg, place(x_BTD, 'copy', 'whole', 'width')), cache.advance(T)


def cast(weights: dict, dtype: DTypeLike) -> dict:
  """Every weight for activations in `dtype`."""
  return jax.tree.map(lambda w: w.astype(dtype), weights, is_leaf=lambda w: isinstance(w, layers.Product))


def head(params: dict) -> jax.Array:
  """The weight [V, D] that logits are made with: the embedding where the two are tied."""
  return params.get('head', params['embed'])


def unembed(params: dict, x_BTD: jax.Array) -> jax.Array:
  """float32 logits [..., V] of final-norm outputs [..., D]."""
  return layers.unembed(x_BTD, head(params))
