"""Decoding on one CPU: a second layout of weights and cache, and the functions of `model.qwen` that use it.

A mesh of CPUs decodes like accelerators: `generate.decoder_for` chooses.

XLA's matrix kernel for CPU repacks its right operand in every call. When a few tokens meet a weight of millions of
numbers, the repacking takes longer than the product. So here the weights are stored in the layout that the kernel reads
(`Panels`), or become its left operand (`CpuWeight`). Each layer has its own arrays, because XLA:CPU would copy a
layer's weights out of a stack at every use. Greedy decoding is 1.8 times as fast as with `model.qwen` alone on a Xeon
with AMX.
To measure: `mathqwen bench decode`, then again with `decoder_for` in `generate.py` returning `ACCELERATOR`; for the
products alone, `python tests/inference/test_cpu.py`.

Letters as in `model/qwen.py`; R rows of a product, I inputs and O outputs of a weight.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mathqwen import compat
from mathqwen.model import layers, qwen
from mathqwen.model.cache import Int8, KVCache, decode, encode, resize_axis
from mathqwen.model.compute import Compute
from mathqwen.model.config import ModelConfig

WIDTH = 64  # rows of a matrix in a panel
SHORTEST = 16  # terms of a partial sum, at least
LONGEST = 256  # and at most
# YNNPACK, XLA's kernel library, gives a thread tasks of 2**15 results. At 8 rows a product needs more columns than this
# for a second thread to get any.
COLUMNS_OF_A_TASK = 2**15 // 8
PANEL_ROWS = 256  # up to this many rows on the other side, panels are multiplied as they are; for more, a plain copy is
LEFT_TOKENS = 64  # up to this many tokens, a plain weight is faster as the left operand


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Panels:
  """Matrices [..., O, I], their rows side by side in panels of 64: [..., O / 64, I, 64].

      rows of the matrix     one panel
      r0: a0 a1 a2           a0 b0 c0 ... (64 numbers)
      r1: b0 b1 b2           a1 b1 c1 ...
      r2: c0 c1 c2           a2 b2 c2 ...

  A product with few rows reads each panel from its first number to its last. The last axis need not be 64: in
  `attention` it is the width of a head's values.
  """

  values: jax.Array | Int8

  @classmethod
  def from_matrix(cls, x: jax.Array) -> 'Panels':
    """The panels of [..., O, I]; O must be a multiple of 64."""
    *batch, rows, width = x.shape
    return cls(x.reshape(*batch, rows // WIDTH, WIDTH, width).swapaxes(-1, -2))

  def matmul(self, x: jax.Array) -> jax.Array:
    """`x @ matrix.T` in float32: [..., R, I] -> [..., R, O]."""
    *batch, count, width, lanes = self.values.shape
    rows = x.shape[-2]
    if rows > PANEL_ROWS:
      plain = self.values.swapaxes(-3, -2).reshape(*batch, width, -1)
      return jnp.matmul(x, plain, preferred_element_type=jnp.float32)
    if rows < compat.least_rows():
      x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, compat.least_rows() - rows), (0, 0)])

    # XLA would copy x in memory for each panel. It does not if a reduction follows the product and nothing else uses
    # this x, so the sums over I are computed in parts and then added up.
    parts = _partial_sums(width, count * lanes)
    x = x.reshape(*batch, 1, -1, parts, width // parts).swapaxes(-2, -3)
    x = jnp.broadcast_to(x, (*batch, count, *x.shape[-3:]))
    values = self.values.reshape(*batch, count, parts, width // parts, lanes)
    y = jnp.sum(jnp.matmul(x, values, preferred_element_type=jnp.float32), axis=-3)
    return y.swapaxes(-2, -3).reshape(*batch, -1, count * lanes)[..., :rows, :]


def _partial_sums(width: int, columns: int) -> int:
  """In how many parts to compute a sum over `width`: as few as give every thread some of a product of 8 rows.

  It does not depend on the number of rows, so that a row's result does not change with how many others there are.
  """
  halvings = [2**i for i in range(1, width.bit_length())]
  possible = [n for n in halvings if width % n == 0 and width // n >= SHORTEST] or [1]
  short_enough = [n for n in possible if width // n <= LONGEST] or possible[-1:]
  return next((n for n in short_enough if n * columns > COLUMNS_OF_A_TASK), short_enough[-1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CpuWeight:
  """A weight that multiplies by itself (`layers.Product`), for few tokens at a time."""

  matrix: jax.Array | Panels  # of [O, I]
  outputs: tuple[int, ...] = dataclasses.field(metadata={'static': True})  # the axes that O stands for

  def __getitem__(self, index):
    """Itself: the layers read every weight as `self.q[...]`, and `nnx.Param` passes `[...]` on to what it holds."""
    if index is not Ellipsis:
      raise TypeError('a CpuWeight has no elements: index it with [...]')
    return self

  def astype(self, dtype: DTypeLike) -> 'CpuWeight':
    """The same with its numbers in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype), self)

  def product(self, x: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`x @ matrix.T` in `dtype`, by default x's: [..., I] -> [..., *outputs]."""
    *batch, width = x.shape
    if isinstance(self.matrix, Panels):
      y = self.matrix.matmul(x.reshape(-1, width)).astype(dtype or x.dtype)
    elif math.prod(batch) > LEFT_TOKENS:
      y = jnp.einsum('...I,OI->...O', x, self.matrix, preferred_element_type=dtype)
    else:
      y_OR = jnp.einsum('OI,RI->OR', self.matrix, x.reshape(-1, width), preferred_element_type=dtype)
      y = jax.lax.optimization_barrier(y_OR).T  # the barrier keeps XLA from swapping the operands back
    return y.reshape(*batch, *self.outputs)


def pack(params: dict, cfg: ModelConfig, rows: int) -> dict:
  """The weights of `parameters.init` for decoding `rows` answers at a time; those that are packed stay as they are.

  'layers' becomes a tuple of L dicts, copies of the stacked weights. For up to 64 rows, the weights of each layer and
  the head (a tied one too) become `CpuWeight`s; for more rows, plain products are as fast.
  """
  if isinstance(params['layers'], tuple):
    return params
  as_weights = rows <= LEFT_TOKENS
  packed = params | {'layers': _pack_layers(params['layers'], cfg, as_weights)}
  if as_weights:
    packed['head'] = _pack_head(qwen.head(params))
  return packed


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pack_layers(stacked: dict, cfg: ModelConfig, as_weights: bool) -> tuple[dict, ...]:
  heads, kv_heads = (cfg.num_attention_heads, cfg.head_dim), (cfg.num_key_value_heads, cfg.head_dim)
  outputs = {
    'q': heads,
    'k': kv_heads,
    'v': kv_heads,
    'o': (cfg.hidden_size,),
    'gate': (cfg.intermediate_size,),
    'up': (cfg.intermediate_size,),
    'down': (cfg.hidden_size,),
  }

  def weight(name, w):
    matrix_OI = w.reshape(math.prod(outputs[name]), -1)
    in_panels = name in ('o', 'gate', 'up') and len(matrix_OI) % WIDTH == 0
    return CpuWeight(Panels.from_matrix(matrix_OI) if in_panels else matrix_OI, outputs[name])

  layers = []
  for index in range(cfg.num_hidden_layers):
    layer = {name: w[index] for name, w in stacked.items()}
    if as_weights:
      layer |= {name: weight(name, layer[name]) for name in outputs}
    layers.append(layer)
  return tuple(layers)


def _pack_head(head_VD) -> CpuWeight:
  V = len(head_VD)
  return CpuWeight(head_VD if V % WIDTH else jax.jit(Panels.from_matrix)(head_VD), (V,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CpuCache(KVCache):
  """A `KVCache` with separate arrays for each layer and the keys in panels. Its slots fill whole panels."""

  k: tuple[Panels, ...]  # L of [B, K, S, H], which is [B, K, S / 64, H, 64]
  v: tuple[jax.Array | Int8, ...]  # L of [B, K, S, H]

  @classmethod
  def empty(cls, cfg: ModelConfig, batch: int, slots: int, dtype: str) -> 'CpuCache':
    """As in `KVCache`; the number of slots is rounded up to whole panels."""
    shape = (batch, cfg.num_key_value_heads, _whole_panels(slots), cfg.head_dim)
    values = lambda: encode(jnp.zeros(shape), dtype)
    k = tuple(_panels_of_keys(values()) for _ in range(cfg.num_hidden_layers))
    v = tuple(values() for _ in range(cfg.num_hidden_layers))
    return cls(k, v, jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), jnp.int32))

  def write(self, layer: int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> 'CpuCache':
    """As in `KVCache`."""
    B, T = k_BTKH.shape[:2]
    rows_B1, slots_BT = jnp.arange(B)[:, None], self.lengths[:, None] + jnp.arange(T)

    def set_keys(old, new):
      return old.at[rows_B1, :, slots_BT // WIDTH, :, slots_BT % WIDTH].set(new)

    def set_values(old, new):
      return old.at[rows_B1, :, slots_BT].set(new)

    k = Panels(jax.tree.map(set_keys, self.k[layer].values, encode(k_BTKH, self.dtype)))
    v = jax.tree.map(set_values, self.v[layer], encode(v_BTKH, self.dtype))
    return dataclasses.replace(self, k=_replaced(self.k, layer, k), v=_replaced(self.v, layer, v))

  def read(self, layer: int, dtype: DTypeLike) -> tuple[Panels, jax.Array]:
    """(`Panels` of the keys, v_BKSH) of `layer`, in `dtype`."""
    return Panels(decode(self.k[layer].values, dtype)), decode(self.v[layer], dtype)

  def resize(self, slots: int) -> 'CpuCache':
    """As in `KVCache`; the number of slots is rounded up to whole panels."""
    slots = _whole_panels(slots)
    k = jax.tree.map(lambda a: resize_axis(a, -3, slots // WIDTH), self.k)
    v = jax.tree.map(lambda a: resize_axis(a, -2, slots), self.v)
    return dataclasses.replace(self, k=k, v=v)

  def _set_rows(self, old, rows_P, new_LPKTH):
    def set_layer(index, old):
      new_PKTH = jax.tree.map(lambda a: a[index], new_LPKTH)
      new = _panels_of_keys(new_PKTH) if isinstance(old, Panels) else new_PKTH
      # Axis 2 counts panels of slots for keys and slots for values. The prompt takes the first ones.
      return jax.tree.map(lambda o, n: o.at[rows_P, :, : n.shape[2]].set(n), old, new)

    return tuple(set_layer(index, layer) for index, layer in enumerate(old))


def _whole_panels(slots: int) -> int:
  """`slots`, rounded up."""
  return -(-slots // WIDTH) * WIDTH


def _panels_of_keys(keys: jax.Array | Int8) -> Panels:
  """The panels of keys [..., S, H]; the last one is padded with zeros."""
  padded = lambda a: resize_axis(a, -2, _whole_panels(a.shape[-2]))
  return Panels(jax.tree.map(lambda a: Panels.from_matrix(padded(a)).values, keys))


def _replaced(items: tuple, index: int, item) -> tuple:
  return (*items[:index], item, *items[index + 1 :])


def attention(q_BTNH: jax.Array, k: Panels, v_BKSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
  """`layers.attention` on what `CpuCache.read` returns, [B, T, N, H]."""
  B, T, N, H = q_BTNH.shape
  K, S = v_BKSH.shape[1:3]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
  q_BKRH = q_BTKGH.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
  scores_BKGTS = k.matmul(q_BKRH).reshape(B, K, N // K, T, -1)
  probs_BKGTS = layers.attention_probs(scores_BKGTS, mask_BTS).astype(v_BKSH.dtype)
  # In memory, the values of a head, [S, H], are one panel of the matrix [H, S].
  out_BKRH = Panels(v_BKSH[:, :, None]).matmul(probs_BKGTS.reshape(B, K, -1, S))
  out_BKGTH = out_BKRH.astype(v_BKSH.dtype).reshape(B, K, N // K, T, H)
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def argmax(x_BV: jax.Array) -> jax.Array:
  """int32 [B]: the index of the largest number, of equal ones the first.

  XLA:CPU computes a maximum with vector instructions but an argmax number by number. So take the maximum of each group
  of 64, then the argmax over the groups and within one group.
  """
  B, V = x_BV.shape
  if V % 64:
    return jnp.argmax(x_BV, axis=-1).astype(jnp.int32)
  x_BGW = x_BV.reshape(B, V // 64, 64)
  group_B = jnp.argmax(jnp.max(x_BGW, axis=-1), axis=-1)
  within_B = jnp.argmax(jnp.take_along_axis(x_BGW, group_B[:, None, None], axis=1)[:, 0], axis=-1)
  return (group_B * 64 + within_B).astype(jnp.int32)


def prefill(
  params: dict, cfg: ModelConfig, tokens_PT: jax.Array, lengths_P: jax.Array, compute: Compute
) -> tuple[jax.Array, jax.Array]:
  """`qwen.prefill` with weights of `pack`. XLA drops what follows the keys and values of the last layer."""
  P, T = tokens_PT.shape
  positions_PT = jnp.broadcast_to(jnp.arange(T), (P, T))
  segment_ids_PT = (positions_PT < lengths_P[:, None]).astype(jnp.int32)
  rotation = _computed_once(layers.rotation(cfg, positions_PT, lengths_P[:, None], lengths_P[:, None]), tokens_PT)
  attend = lambda q, k, v: (compute.attention(q, k, v, segment_ids_PT), (k, v))

  x_PTD = qwen.embed(params, tokens_PT, compute)
  kept = []
  for weights in params['layers']:
    x_PTD, keys_and_values = qwen.block(cfg, qwen.cast(weights, compute.dtype))(x_PTD, rotation, attend)
    kept.append(keys_and_values)
  return jax.tree.map(lambda *layers: jnp.stack(layers), *kept)


def decode_step(
  params: dict, cfg: ModelConfig, tokens_BT: jax.Array, cache: CpuCache, compute: Compute
) -> tuple[jax.Array, CpuCache]:
  """`qwen.decode_step` with weights of `pack`."""
  T = tokens_BT.shape[1]
  positions_BT = cache.lengths[:, None] + jnp.arange(T)
  rotation = layers.rotation(cfg, positions_BT, positions_BT[:, -1:] + 1, cache.prompt_lengths[:, None])
  rotation = _computed_once(rotation, tokens_BT)

  def attend(index, cache, q, k, v):
    cache = cache.write(index, k, v)
    return attention(q, *cache.read(index, q.dtype), cache.mask(positions_BT)), cache

  x_BTD = qwen.embed(params, tokens_BT, compute)
  for index, weights in enumerate(params['layers']):
    block = qwen.block(cfg, qwen.cast(weights, compute.dtype))
    x_BTD, cache = block(x_BTD, rotation, functools.partial(attend, index, cache))
  return qwen.final_norm(params, cfg, x_BTD), cache.advance(T)


def _computed_once(rotation: layers.Rotation, tokens_BT) -> layers.Rotation:
  """`rotation`, behind a `cond` that is always true, which XLA cannot know.

  XLA:CPU would recompute cos and sin in every layer and head; the `cond` keeps it from fusing them.
  """
  zeros = lambda x: jax.tree.map(jnp.zeros_like, x)
  return jax.lax.cond(jnp.any(tokens_BT >= 0), lambda x: x, zeros, rotation)
