"""The key-value cache: keys and values of past tokens, in float32, bfloat16 or int8."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mathqwen.model.config import ModelConfig

DTYPES = ('float32', 'bfloat16', 'int8')
AXES = ('layers', 'batch', 'kv_heads', 'whole', 'head_dim')  # of k and v


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """An array in about a quarter of float32's memory: `values * scales`, with one scale for each vector of H."""

  values: jax.Array  # int8 [..., H]
  scales: jax.Array  # float32 [..., 1]

  @classmethod
  def quantize(cls, x: jax.Array) -> 'Int8':
    """`x` [..., H], rounded: the largest number of each vector becomes 127 or -127."""
    scales = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32) / 127
    values = jnp.round(x.astype(jnp.float32) / jnp.where(scales == 0, 1, scales))  # a vector of zeros stays zeros
    return cls(values.astype(jnp.int8), scales)


def encode(x: jax.Array, dtype: str) -> jax.Array | Int8:
  """`x` as a cache of `dtype` stores it."""
  return Int8.quantize(x) if dtype == 'int8' else x.astype(dtype)


def decode(x: jax.Array | Int8, dtype: DTypeLike) -> jax.Array:
  """What `encode` stored, as an array of `dtype`."""
  return (x.values * x.scales).astype(dtype) if isinstance(x, Int8) else x.astype(dtype)


def resize_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
  """`x` with `size` entries along `axis`: truncated, or padded with zeros."""
  if size <= x.shape[axis]:
    return jax.lax.slice_in_dim(x, 0, size, axis=axis)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """`S` slots for each of `B` rows. Each row is filled from the left and has its own length:

    lengths 3   k0 k1 k2  .  .     its next token, at position 3, writes slot 3 and sees slots 0 to 3
    lengths 5   k0 k1 k2 k3 k4

  A token sees the slots up to its own position, never the stale numbers or zeros behind it.
  The arrays are [L, B, K, S, H], not [L, B, S, K, H]: attention multiplies by the keys of one head at a time, which are
  contiguous this way.
  """

  k: jax.Array | Int8  # [L, B, K, S, H]
  v: jax.Array | Int8  # [L, B, K, S, H]
  lengths: jax.Array  # int32 [B]: tokens written in each row
  prompt_lengths: jax.Array  # int32 [B]: tokens of the prompt; they fix the rotary base of Qwen-1's dynamic NTK

  @classmethod
  def empty(cls, cfg: ModelConfig, batch: int, slots: int, dtype: str) -> 'KVCache':
    """A cache of zeros; `dtype` is one of `DTYPES`."""
    zeros = jnp.zeros((cfg.num_hidden_layers, batch, cfg.num_key_value_heads, slots, cfg.head_dim))
    lengths = jnp.zeros((batch,), jnp.int32)
    # `+ 0` makes a second array: a function that the cache is donated to must not get the same buffer twice.
    return cls(encode(zeros, dtype), encode(zeros + 0, dtype), lengths, lengths + 0)

  @property
  def dtype(self) -> str:
    """One of `DTYPES`."""
    return str(jax.tree.leaves(self.k)[0].dtype)

  @property
  def slots(self) -> int:
    """S: how many tokens a row has room for."""
    return jax.tree.leaves(self.v)[0].shape[-2]

  def mask(self, positions_BT: jax.Array) -> jax.Array:
    """bool [B, T, S]: which slots the token at each position sees."""
    return jnp.arange(self.slots) <= positions_BT[..., None]

  def write(self, layer: int | jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> 'KVCache':
    """The cache with the next T slots of each row written in `layer`. The lengths stay: see `advance`.

    On a mesh, only inside `Placement.local`: it counts rows and heads through.
    """
    B, T, K = k_BTKH.shape[:3]
    # Each head of each row is written for itself. XLA for TPU would write the K heads of a slot as one piece, and for
    # that keep the heads beside each other in memory: two copies of the cache whenever a program of other shape runs.
    rows_R1 = jnp.arange(B * K)[:, None]
    slots_RT = jnp.repeat(self.lengths, K)[:, None] + jnp.arange(T)

    def set_slots(old, x_BTKH):
      new = jax.tree.map(lambda n: n.swapaxes(1, 2).reshape(B * K, T, -1), encode(x_BTKH, self.dtype))
      join = lambda o: o.reshape(o.shape[0], B * K, *o.shape[3:])
      return jax.tree.map(lambda o, n: join(o).at[layer, rows_R1, slots_RT].set(n).reshape(o.shape), old, new)

    return dataclasses.replace(self, k=set_slots(self.k, k_BTKH), v=set_slots(self.v, v_BTKH))

  def read(self, layer: int | jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """(k_BSKH, v_BSKH) of `layer`, in `dtype`."""

    def take(x):
      x_BKSH = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), x)
      return decode(x_BKSH, dtype).swapaxes(1, 2)

    return take(self.k), take(self.v)

  def advance(self, tokens: int) -> 'KVCache':
    """The cache with `tokens` more counted in each row, once every layer has written them."""
    return dataclasses.replace(self, lengths=self.lengths + tokens)

  def admit(
    self,
    rows_P: jax.Array,
    keys_LPTKH: jax.Array,
    values_LPTKH: jax.Array,
    lengths_P: jax.Array,
    prompt_lengths_P: jax.Array,
  ) -> 'KVCache':
    """The cache with P prompts, as `qwen.prefill` returns them, in these rows; positions past the slots are cut off.

    lengths_P: how many tokens of each prompt count as written, at most `slots`.
    prompt_lengths_P: how many tokens each prompt has.
    """

    def set_rows(old, x_LPTKH):
      new = encode(x_LPTKH[:, :, : self.slots].swapaxes(2, 3), self.dtype)
      return self._set_rows(old, rows_P, new)

    return dataclasses.replace(
      self,
      k=set_rows(self.k, keys_LPTKH),
      v=set_rows(self.v, values_LPTKH),
      lengths=self.lengths.at[rows_P].set(lengths_P),
      prompt_lengths=self.prompt_lengths.at[rows_P].set(prompt_lengths_P),
    )

  def resize(self, slots: int) -> 'KVCache':
    """The cache with more slots, or with fewer if all rows fit in them."""
    k = jax.tree.map(lambda a: resize_axis(a, -2, slots), self.k)
    v = jax.tree.map(lambda a: resize_axis(a, -2, slots), self.v)
    return dataclasses.replace(self, k=k, v=v)

  def _set_rows(self, old, rows_P, new_LPKTH):
    """`old`, which is k or v, with the first T slots of these rows set to `new`."""
    return jax.tree.map(lambda o, n: o.at[:, rows_P, :, : n.shape[3]].set(n), old, new_LPKTH)


CACHE_AXES = KVCache(AXES, AXES, ('batch',), ('batch',))  # for `Placement.local`: names where a cache has arrays
