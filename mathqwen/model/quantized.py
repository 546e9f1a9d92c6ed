"""Frozen weights in 8 or 4 bits: int8 with one scale for each output, int4 and nf4 with one for each block of inputs.

qwix's codes and scales, but not qwix itself: it asks for a newer Flax than Colab has, and its `QArray` looks nf4 up
number by number, which TPUs do slowly, and keeps an axis of 1 in its scales, which TPUs pad to 128.

Nothing here is differentiated with respect to the weight. O outputs and I inputs of a weight.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mathqwen.errors import UserError

KINDS = ('int8', 'int4', 'nf4')
BLOCK = 64  # inputs that share a scale in 4 bits, as in QLoRA

# The 16 levels of NormalFloat: appendix E of QLoRA (arXiv 2305.14314).
NF4 = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

# What the largest number of a block is divided by: half a step more than the largest code, so that numbers beyond that
# code are off by half a step at most, like all others. Codes go from -7 to 7. qwix has -8 too, but the largest number
# would then be in the middle of two codes, and rounding errors would choose.
_LARGEST = {'int8': 127.5, 'int4': 7.5, 'nf4': 1.0}
_OFFSET = 8  # of int4 in a byte


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """Codes times scales: a weight that multiplies by itself (`layers.Product`), and a `placement.Compound`.

      int8   codes [*outputs, *inputs], as the weight is stored     scales [*outputs]
      4 bits codes [blocks, inputs of a block / 2, *outputs]        scales [blocks, *outputs]

  In 4 bits the inputs come first, so that no reshape of a weight comes between its codes and the product. A byte has
  the code of an input of the first half of its block, and above it that of one of the second half. JAX's own arrays of
  4 bits cannot be given to a compiled program on a CPU (0.10). Stacked over layers, both have a leading L.
  """

  codes: jax.Array  # int8, in 4 bits uint8: of int4 the code + 8, of nf4 the number of the level
  scales: jax.Array  # float32
  kind: str = dataclasses.field(metadata={'static': True})  # one of KINDS
  inputs: tuple[int, ...] = dataclasses.field(metadata={'static': True})  # sizes of the input axes

  def __getitem__(self, index):
    """Itself: see `inference.cpu.CpuWeight`."""
    if index is not Ellipsis:
      raise TypeError('a Quantized has no elements: index it with [...]')
    return self

  def astype(self, dtype: DTypeLike) -> 'Quantized':
    """Itself: `product` computes in the dtype of the activations, and the scales stay float32."""
    return self

  def axes(self, names: tuple[str, ...]) -> 'Quantized':
    """The names of the axes of both arrays; names: those of the weight.

    Of inputs that are heads or the MLP's, whole blocks are split over devices, so that activations need not move; of
    'embed', which is gathered for use, every block is split.
    """
    stacked = names[: names[0] == 'layers']
    outputs, inputs = names[len(stacked) : -len(self.inputs)], names[-len(self.inputs) :]
    if self.kind == 'int8':
      return Quantized(names, (*stacked, *outputs), self.kind, self.inputs)
    blocks, within = ('whole', 'embed') if inputs[0] == 'embed' else (inputs[0], 'whole')
    codes, scales = (*stacked, blocks, within, *outputs), (*stacked, blocks, *outputs)
    return Quantized(codes, scales, self.kind, self.inputs)

  def cast(self, cast: Callable[[jax.Array], jax.Array]) -> 'Quantized':
    """Itself, as `astype`."""
    return self

  def dequantized(self, dtype: DTypeLike) -> jax.Array:
    """The weight [*outputs, *inputs], rounded once to `dtype`. For stacked weights in `jax.vmap`."""
    w = self._values(dtype)
    if self.kind == 'int8':
      return w
    return jnp.moveaxis(w.reshape(-1, *w.shape[2:]), 0, -1).reshape(*w.shape[2:], *self.inputs)

  def _values(self, dtype: DTypeLike) -> jax.Array:
    """The weight in the shape of its codes; in 4 bits [blocks, inputs of a block, *outputs]."""
    if self.kind == 'int8':
      inputs = [-1 - i for i in range(len(self.inputs))]
      return (self.codes.astype(jnp.float32) * jnp.expand_dims(self.scales, inputs)).astype(dtype)
    codes = self.codes.astype(jnp.int32)
    levels = _nf4_levels if self.kind == 'nf4' else lambda half: (half - _OFFSET).astype(jnp.float32)
    halves = [(levels(half) * self.scales[:, None]).astype(dtype) for half in (codes & 15, codes >> 4)]
    return jnp.concatenate(halves, axis=1)

  def rows(self, indices: jax.Array, dtype: DTypeLike) -> jax.Array:
    """These rows of an int8 table [V, D], in `dtype`: [..., D]."""
    return Quantized(self.codes[indices], self.scales[indices], self.kind, self.inputs).dequantized(dtype)

  def product(self, x: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`x @ weight.T` in `dtype`, by default x's: [..., I] -> [..., *outputs]. Not for stacked weights."""
    # A backward pass dequantises again, so that it keeps no float weights of all layers.
    return jax.checkpoint(functools.partial(_product, dtype=dtype or x.dtype))(self, x)


def _product(w: Quantized, x: jax.Array, dtype: DTypeLike) -> jax.Array:
  if w.kind == 'int8':
    # Scaled after the product, which costs less, and so that the codes, which bfloat16 holds, are not rounded.
    codes_OI = w.codes.astype(x.dtype).reshape(-1, x.shape[-1])
    y = jnp.einsum('...I,OI->...O', x, codes_OI, preferred_element_type=dtype)
    return (y.reshape(*x.shape[:-1], *w.scales.shape) * w.scales).astype(dtype)
  values = w._values(x.dtype)
  blocks = x.reshape(*x.shape[:-1], *values.shape[:2])
  return jnp.tensordot(blocks, values, 2, preferred_element_type=dtype)


def quantize(w: jax.Array, kind: str, outputs: int = 1) -> Quantized:
  """`w` [*outputs, *inputs], rounded to the nearest codes. For stacked weights in `jax.vmap` or `jax.lax.map`.

  kind: one of KINDS. outputs: how many axes they are. A block has 64 inputs, or the largest power of 2 that divides the
  last axis. UserError: when that is odd, in 4 bits.
  """
  sizes = w.shape[outputs:]
  x = w.astype(jnp.float32)
  if kind == 'int8':
    within = tuple(range(outputs, w.ndim))
  else:
    within = 1
    block = math.gcd(BLOCK, sizes[-1])
    if block % 2:
      raise UserError(f'{sizes[-1]} inputs of a weight cannot be held in {kind}, two in a byte: take int8')
    x = jnp.moveaxis(x.reshape(*w.shape[:outputs], -1), -1, 0)
    x = x.reshape(-1, block, *x.shape[1:])
  scales = jnp.max(jnp.abs(x), axis=within, keepdims=True) / _LARGEST[kind]
  x /= jnp.where(scales == 0, 1, scales)  # a block of zeros stays zeros
  if kind == 'nf4':
    codes = sum((x > (low + high) / 2).astype(jnp.uint8) for low, high in zip(NF4, NF4[1:], strict=False))
  else:
    most = int(_LARGEST[kind])
    codes = jnp.clip(jnp.round(x), -most, most)
  if kind == 'int8':
    codes = codes.astype(jnp.int8)
  else:
    first, second = jnp.split(codes if kind == 'nf4' else (codes + _OFFSET).astype(jnp.uint8), 2, axis=1)
    codes = first | second << 4
  return Quantized(codes, jnp.squeeze(scales, within), kind, sizes)


def is_quantized(x) -> bool:
  """For `jax.tree.map(..., is_leaf=is_quantized)`."""
  return isinstance(x, Quantized)


def _nf4_levels(codes: jax.Array) -> jax.Array:
  """float32. Chosen bit by bit, because a TPU looks numbers up in a table one by one."""

  def choose(levels, bit):
    if bit < 0:
      return jnp.float32(levels[0])
    half = len(levels) // 2
    return jnp.where((codes >> bit) & 1 == 1, choose(levels[half:], bit - 1), choose(levels[:half], bit - 1))

  return choose(NF4, 3)
