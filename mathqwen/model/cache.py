"""Keys and values of past tokens, as data."""

import dataclasses

import jax
import jax.numpy as jnp

from mathqwen.model.config import ModelConfig

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """`S` slots for each of `B` rows, filled from the left, each row to a length of its own.

  A token of a row sees the slots up to its own position; what lies behind is stale or padding, and seen by none.
  `k` and `v` are arrays [L, B, K, S, H] (a head's keys lie together, as attention multiplies them), or tuples of L
  arrays [B, K, S, H]. In a cache of int8 each array is an `Int8`.
  """

  k: jax.Array | Int8 | tuple
  v: jax.Array | Int8 | tuple
  lengths: jax.Array  # int32 [B]: tokens written of each row
  prompt_lengths: jax.Array  # int32 [B]: the prompt's, to which Qwen-1's dynamic NTK is frozen

  @classmethod
  def empty(cls, cfg: ModelConfig, batch: int, slots: int, dtype: str, stacked: bool = True) -> 'KVCache':
    L, shape = cfg.num_hidden_layers, (batch, cfg.num_key_value_heads, slots, cfg.head_dim)
    make = lambda: encode(jnp.zeros((L, *shape)), dtype) if stacked else tuple(
      encode(jnp.zeros(shape), dtype) for _ in range(L)
    )  # fmt: skip
    return cls(make(), make(), jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), jnp.int32))

  @property
  def dtype(self) -> str:
    return str(jax.tree.leaves(self.k)[0].dtype)

  @property
  def slots(self) -> int:
    return jax.tree.leaves(self.k)[0].shape[-2]

  def mask(self, positions_BT):
    """bool [B, T, S]: what a token at each position sees."""
    return jnp.arange(self.slots) <= positions_BT[..., None]

  def write(self, layer, k_BTKH, v_BTKH):
    """(cache with T more slots of `layer` written, (k_BSKH, v_BSKH) of that layer). `advance` moves the lengths."""
    B, T = k_BTKH.shape[:2]
    at = (jnp.arange(B)[:, None], slice(None), self.lengths[:, None] + jnp.arange(T))

    def put(old, x_BTKH):
      new = encode(x_BTKH, self.dtype)
      if isinstance(old, tuple):
        one = jax.tree.map(lambda o, n: o.at[at].set(n), old[layer], new)
        return (*old[:layer], one, *old[layer + 1 :])
      return jax.tree.map(lambda o, n: o.at[(layer, *at)].set(n), old, new)

    def read(x):
      cut = lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False)
      return decode(x[layer] if isinstance(x, tuple) else jax.tree.map(cut, x), k_BTKH.dtype).swapaxes(1, 2)

    new = dataclasses.replace(self, k=put(self.k, k_BTKH), v=put(self.v, v_BTKH))
    return new, (read(new.k), read(new.v))

  def advance(self, tokens: int) -> 'KVCache':
    return dataclasses.replace(self, lengths=self.lengths + tokens)

  def admit(self, rows_P, prompts: tuple, lengths_P) -> 'KVCache':
    """The cache with prompts in these rows; a row of B is left out. `prompts`: of `qwen.hidden(..., keep=True)`."""

    def put(old, new_LPTKH):
      T = new_LPTKH.shape[2]
      new = encode(new_LPTKH.swapaxes(2, 3), self.dtype)
      if isinstance(old, tuple):
        layer = lambda i: jax.tree.map(lambda n: n[i], new)
        return tuple(
          jax.tree.map(lambda o, n: o.at[rows_P, :, :T].set(n, mode='drop'), one, layer(i)) for i, one in enumerate(old)
        )
      return jax.tree.map(lambda o, n: o.at[:, rows_P, :, :T].set(n, mode='drop'), old, new)

    k, v = prompts
    return KVCache(
      put(self.k, k),
      put(self.v, v),
      self.lengths.at[rows_P].set(lengths_P, mode='drop'),
      self.prompt_lengths.at[rows_P].set(lengths_P, mode='drop'),
    )

  def resize(self, slots: int) -> 'KVCache':
    """With more slots, or with fewer where all rows fit."""
    change = lambda a: a[..., :slots, :] if slots < a.shape[-2] else jnp.pad(
      a, [(0, 0)] * (a.ndim - 2) + [(0, slots - a.shape[-2]), (0, 0)]
    )  # fmt: skip
    return dataclasses.replace(self, k=jax.tree.map(change, self.k), v=jax.tree.map(change, self.v))
