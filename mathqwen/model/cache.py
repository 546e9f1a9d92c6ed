"""Keys and values of past tokens, as data."""

import dataclasses

import jax
import jax.numpy as jnp

from mathqwen.model.config import ModelConfig

LOGICAL_AXES = ('layers', 'batch', 'kv_heads', 'length', 'head_dim')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """`S` slots for each of `B` sequences, filled from the left by all sequences together.

  Prompts are padded on the left, so one `length` serves every row; a slot of segment 0 (padding, or not yet
  written) is seen by no token.

  slots         0 1 2 3 4 5 6 7
  prompt "abc"  . . a b c          segments 0 0 1 1 1 0 0 0, length 5
  prompt "defgh" d e f g h         segments 1 1 1 1 1 0 0 0
  """

  k: jax.Array  # [L, B, K, S, H]: a head's keys lie together, as attention multiplies them
  v: jax.Array  # [L, B, K, S, H]
  segment_ids: jax.Array  # int32 [B, S]
  length: jax.Array  # int32 []: slots written
  prompt_lengths: jax.Array  # int32 [B]: tokens of each row that were written first, as the prompt

  @classmethod
  def empty(cls, cfg: ModelConfig, batch: int, slots: int, dtype) -> 'KVCache':
    shape = (cfg.num_hidden_layers, batch, cfg.num_key_value_heads, slots, cfg.head_dim)
    return cls(
      k=jnp.zeros(shape, dtype),
      v=jnp.zeros(shape, dtype),
      segment_ids=jnp.zeros((batch, slots), jnp.int32),
      length=jnp.zeros((), jnp.int32),
      prompt_lengths=jnp.zeros((batch,), jnp.int32),
    )

  def write(self, layer, k_BTKH, v_BTKH):
    """The cache with `layer`'s next T slots written, and that layer's (k_BSKH, v_BSKH). `length` moves in `advance`."""
    start = (layer, 0, 0, self.length, 0)
    k = jax.lax.dynamic_update_slice(self.k, k_BTKH.swapaxes(1, 2)[None], start)
    v = jax.lax.dynamic_update_slice(self.v, v_BTKH.swapaxes(1, 2)[None], start)
    layer_of = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False).swapaxes(1, 2)
    return dataclasses.replace(self, k=k, v=v), (layer_of(k), layer_of(v))

  def mark(self, segment_ids_BT):
    """The cache with the segments of the next T slots written; of an empty cache they are the prompts."""
    segment_ids = jax.lax.dynamic_update_slice(self.segment_ids, segment_ids_BT, (0, self.length))
    written = jnp.sum(segment_ids_BT > 0, axis=1, dtype=jnp.int32)
    prompt_lengths = jnp.where(self.length == 0, written, self.prompt_lengths)
    return dataclasses.replace(self, segment_ids=segment_ids, prompt_lengths=prompt_lengths)

  def advance(self, tokens: int):
    return dataclasses.replace(self, length=self.length + tokens)
