"""Keys and values of past tokens, as data."""

import dataclasses

import jax
import jax.numpy as jnp

from mathqwen.model.config import ModelConfig
from mathqwen.model.panels import WIDTH, Panels

DTYPES = ('float32', 'bfloat16', 'int8')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """Numbers in a quarter of float32's memory: `values * scales`, one scale for each vector of H."""

  values: jax.Array  # int8 [..., H]
  scales: jax.Array  # float32 [..., 1]

  @classmethod
  def of(cls, x):
    scales = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32) / 127
    values = jnp.round(x.astype(jnp.float32) / jnp.where(scales == 0, 1, scales))
    return cls(values.astype(jnp.int8), scales)


def encode(x, dtype: str):
  return Int8.of(x) if dtype == 'int8' else x.astype(dtype)


def decode(x, dtype):
  return (x.values * x.scales).astype(dtype) if isinstance(x, Int8) else x.astype(dtype)


def _resize(x, axis: int, size: int):
  """Cut off, or filled with zeros."""
  if size <= x.shape[axis]:
    return jax.lax.slice_in_dim(x, 0, size, axis=axis)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths)


def _panels(x) -> Panels:
  """Of keys [..., S, H], the last panel filled with zeros."""
  whole = lambda a: _resize(a, -2, a.shape[-2] + -a.shape[-2] % WIDTH)
  return Panels(jax.tree.map(lambda a: Panels.of(whole(a)).values, x))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """`S` slots for each of `B` rows, filled from the left, each row to a length of its own.

  A token of a row sees the slots up to its own position; what lies behind is stale or padding, and seen by none.
  `k` and `v` are arrays [L, B, K, S, H] (a head's keys lie together, as attention multiplies them). For a CPU they are
  tuples of L: `v` of arrays [B, K, S, H], `k` of `Panels` of the same, [B, K, S / 64, H, 64]. In a cache of int8 each
  array is an `Int8`.
  """

  k: jax.Array | Int8 | tuple
  v: jax.Array | Int8 | tuple
  lengths: jax.Array  # int32 [B]: tokens written of each row
  prompt_lengths: jax.Array  # int32 [B]: the prompt's, to which Qwen-1's dynamic NTK is frozen

  @classmethod
  def empty(cls, cfg: ModelConfig, batch: int, slots: int, dtype: str, stacked: bool = True) -> 'KVCache':
    L, K, H = cfg.num_hidden_layers, cfg.num_key_value_heads, cfg.head_dim
    lengths = lambda: jnp.zeros((batch,), jnp.int32)
    if stacked:
      k, v = (encode(jnp.zeros((L, batch, K, slots, H)), dtype) for _ in range(2))
    else:
      make = lambda: encode(jnp.zeros((batch, K, slots + -slots % WIDTH, H)), dtype)
      k, v = tuple(_panels(make()) for _ in range(L)), tuple(make() for _ in range(L))
    return cls(k, v, lengths(), lengths())

  @property
  def dtype(self) -> str:
    return str(jax.tree.leaves(self.k)[0].dtype)

  @property
  def slots(self) -> int:
    return jax.tree.leaves(self.v)[0].shape[-2]

  def mask(self, positions_BT):
    """bool [B, T, S]: what a token at each position sees."""
    return jnp.arange(self.slots) <= positions_BT[..., None]

  def write(self, layer, k_BTKH, v_BTKH):
    """(cache with T more slots of `layer` written, (k_BSKH, v_BSKH) of that layer, k perhaps as `Panels` of
    [B, K, S, H]). `advance` moves the lengths."""
    B, T = k_BTKH.shape[:2]
    rows, slots = jnp.arange(B)[:, None], self.lengths[:, None] + jnp.arange(T)

    def put(old, x_BTKH):
      new = encode(x_BTKH, self.dtype)
      if not isinstance(old, tuple):
        return jax.tree.map(lambda o, n: o.at[layer, rows, :, slots].set(n), old, new)
      one = old[layer]
      if isinstance(one, Panels):
        at = (rows, slice(None), slots // WIDTH, slice(None), slots % WIDTH)
        one = Panels(jax.tree.map(lambda o, n: o.at[at].set(n), one.values, new))
      else:
        one = jax.tree.map(lambda o, n: o.at[rows, :, slots].set(n), one, new)
      return (*old[:layer], one, *old[layer + 1 :])

    def read(x):
      cut = lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False)
      one = x[layer] if isinstance(x, tuple) else jax.tree.map(cut, x)
      if isinstance(one, Panels):
        return Panels(decode(one.values, k_BTKH.dtype))
      return decode(one, k_BTKH.dtype).swapaxes(1, 2)

    new = dataclasses.replace(self, k=put(self.k, k_BTKH), v=put(self.v, v_BTKH))
    return new, (read(new.k), read(new.v))

  def advance(self, tokens: int) -> 'KVCache':
    return dataclasses.replace(self, lengths=self.lengths + tokens)

  def admit(self, rows_P, prompts: tuple, lengths_P, prompt_lengths_P) -> 'KVCache':
    """The cache with `lengths_P` tokens, at most `slots`, of prompts in these rows. `prompts`: of
    `qwen.hidden(..., keep=True)`, cut to `slots`."""

    def put(old, new_LPTKH):
      new = encode(new_LPTKH.swapaxes(2, 3), self.dtype)
      if not isinstance(old, tuple):
        return jax.tree.map(lambda o, n: o.at[:, rows_P, :, : n.shape[3]].set(n), old, new)

      def put_layer(i, old):
        one = jax.tree.map(lambda n: n[i], new)
        one = _panels(one) if isinstance(old, Panels) else one
        return jax.tree.map(lambda o, n: o.at[rows_P, :, : n.shape[2]].set(n), old, one)

      return tuple(put_layer(i, layer) for i, layer in enumerate(old))

    k, v = (x[:, :, : self.slots] for x in prompts)
    return KVCache(
      put(self.k, k),
      put(self.v, v),
      self.lengths.at[rows_P].set(lengths_P),
      self.prompt_lengths.at[rows_P].set(prompt_lengths_P),
    )

  def resize(self, slots: int) -> 'KVCache':
    """With more slots, or with fewer where all rows fit; where keys lie in panels, whole ones."""
    panels = -(-slots // WIDTH)
    if not isinstance(self.k, tuple):
      k, v = (jax.tree.map(lambda a: _resize(a, -2, slots), x) for x in (self.k, self.v))
    else:
      k = jax.tree.map(lambda a: _resize(a, -3, panels), self.k)
      v = jax.tree.map(lambda a: _resize(a, -2, panels * WIDTH), self.v)
    return dataclasses.replace(self, k=k, v=v)
