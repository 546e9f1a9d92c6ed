"""`Adapted`: a frozen matrix of a layer, with its low-rank adapter. `lora.py` says what is computed, and why."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mathqwen.model import layers
from mathqwen.model.placement import Compound
from mathqwen.model.quantized import Quantized

if TYPE_CHECKING:
  from mathqwen.model.compute import Dropout

# Of each matrix of a layer: how many of its axes are outputs; the others are inputs.
OUTPUTS = {'q': 2, 'k': 2, 'v': 2, 'o': 1, 'gate': 1, 'up': 1, 'down': 1}


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('base', 'a', 'b', 'magnitude'),
  meta_fields=('outputs', 'scale', 'drop'),
)
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A frozen matrix with its adapter: a `layers.Product` and a `placement.Compound`. Stacked ones lead with L."""

  base: jax.Array | layers.Product  # [*outputs, *inputs]
  a: jax.Array | None  # [R, *inputs]; None: there is no adapter, the matrix is only frozen
  b: jax.Array | None  # [*outputs, R]
  magnitude: jax.Array | None  # float32 [*outputs], of DoRA
  outputs: int  # how many axes of `base` are outputs
  scale: float
  drop: Callable | None = None  # dropout on what enters the adapter: (x, half=None) -> x

  def __getitem__(self, index):
    """Itself: the layers read every weight as `self.q[...]`."""
    if index is not Ellipsis:
      raise TypeError('an Adapted has no elements: index it with [...]')
    return self

  def product(self, x_BTI: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """[B, T, *outputs] of x [B, T, I], in `dtype`, by default that of x."""
    # Lengths of DoRA change by less in a step than bfloat16 can tell apart: float32 until they have multiplied.
    y = self._frozen(x_BTI, x_BTI.dtype if self.magnitude is None else jnp.float32)
    if self.a is not None:
      y = self._adapted(x_BTI, y)
    return y.astype(dtype or x_BTI.dtype)

  def _frozen(self, x_BTI, dtype):
    """The product of the base alone, in `dtype`."""
    if isinstance(self.base, layers.Product):
      return self.base.product(x_BTI, dtype)
    outputs = self.base.shape[: self.outputs]
    # Not `layers.linear`, whose derivative computes the gradient of the weight in any case.
    w_OI = self.base.reshape(math.prod(outputs), -1)
    y_BTO = jnp.einsum('BTI,OI->BTO', x_BTI, w_OI, preferred_element_type=dtype)
    return y_BTO.reshape(*x_BTI.shape[:2], *outputs)

  def _adapted(self, x_BTI, y):
    """`y`, the product of the base, with that of the adapter."""
    dropped_BTI = x_BTI if self.drop is None else self.drop(x_BTI)
    rank = self.a.shape[0]
    small_BTR = layers.linear('BTI,RI->BTR', dropped_BTI, self.a.reshape(rank, -1))
    added = self.scale * layers.linear('BTR,OR->BTO', small_BTR, self.b.reshape(-1, rank)).reshape(y.shape)
    if self.magnitude is None:
      return y + added
    factor = self.magnitude / jax.lax.stop_gradient(lengths(self))
    if self.drop is None:
      return factor * (y + added)
    # As PEFT: the base's share is dropped, too
    return y + (factor - 1) * self._frozen(dropped_BTI, jnp.float32) + factor * added

  def axes(self, names: tuple[str, ...]) -> 'Adapted':
    """The names of the axes of its arrays; names: of those of the base."""
    leading = ('layers',) if names[0] == 'layers' else ()
    outputs, inputs = names[len(leading) :][: self.outputs], names[len(leading) :][self.outputs :]
    base = self.base.axes(names) if isinstance(self.base, Compound) else names
    found = {'base': base, 'a': (*leading, 'rank', *inputs), 'b': (*leading, *outputs, 'rank')}
    found['magnitude'] = (*leading, *outputs)
    return dataclasses.replace(self, **{part: found[part] for part in found if getattr(self, part) is not None})

  def cast(self, cast: Callable[[jax.Array], jax.Array]) -> 'Adapted':
    """Its arrays in the dtype of the computation, but for `magnitude`, which multiplies in float32."""
    base = self.base.cast(cast) if isinstance(self.base, Compound) else cast(self.base)
    a, b = (None if x is None else cast(x) for x in (self.a, self.b))
    return self.replaced(base=base, a=a, b=b)

  def replaced(self, **changes: Any) -> 'Adapted':
    """With other fields."""
    return dataclasses.replace(self, **changes)


def with_dropout(weights: dict, dropout: 'Dropout', index: jax.Array) -> dict:
  """The weights of layer number `index`, with this dropout on what enters their adapters."""
  if dropout.key is None or dropout.rate == 0:
    return weights

  def dropping(number, name):
    site = index * len(OUTPUTS) + number
    return weights[name].replaced(drop=lambda x_BTI, half=None: dropout(x_BTI, site, half))

  adapted = [(number, name) for number, name in enumerate(OUTPUTS) if isinstance(weights[name], Adapted)]
  return weights | {name: dropping(number, name) for number, name in adapted}


def at(weight: Any, half: jax.Array | None) -> Any:
  """`weight`, with the dropout of these tokens where it has any. half: as in `compute.Dropout`."""
  if not isinstance(weight, Adapted) or weight.drop is None:
    return weight
  return weight.replaced(drop=functools.partial(weight.drop, half=half))


def lengths(weight: Adapted) -> jax.Array:
  """float32 [*outputs]: the length of each row of one layer's matrix, with its adapter."""
  merged = merge(weight)
  return jnp.sqrt(jnp.sum(merged * merged, axis=tuple(range(weight.outputs, merged.ndim))))


def merge(weight: Adapted) -> jax.Array:
  """float32 [*outputs, *inputs]: W + scale * B A of one layer; without DoRA's lengths."""
  quantized = isinstance(weight.base, Quantized)
  merged = weight.base.dequantized(jnp.float32) if quantized else jnp.asarray(weight.base, jnp.float32)
  if weight.a is None:
    return merged
  b_OR, a_RI = (x.astype(jnp.float32) for x in (weight.b, weight.a))
  rank = a_RI.shape[0]
  product = jnp.matmul(b_OR.reshape(-1, rank), a_RI.reshape(rank, -1), precision=jax.lax.Precision.HIGHEST)
  return merged + weight.scale * product.reshape(merged.shape)
