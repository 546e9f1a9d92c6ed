"""Matrices in a layout that XLA's matrix kernels for CPU read from end to end."""

import dataclasses

import jax
import jax.numpy as jnp

WIDTH = 64  # rows in a panel
SHORTEST, LONGEST = 16, 256  # numbers in a part of a sum
SHARED = 2**15 // 8  # columns of products, of which 8 rows fill a task of YNNPACK's: more go to several threads
FEW = 256  # rows of the other side, up to which panels are read as they lie; more are multiplied by a plain copy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Panels:
  """Matrices [..., O, I] with their rows side by side in panels of 64: [..., O / 64, I, 64].

  A product with few rows reads each panel from its first number to its last; of a plain matrix XLA's kernel repacks one
  side in each call. What that gains or loses differs by machine and rows: `python tests/model/test_panels.py`. The last
  axis may be another than 64: in `attention` it is the width of a head's values.
  """

  values: jax.Array

  @classmethod
  def of(cls, x) -> 'Panels':
    """O must be a multiple of 64."""
    *batch, rows, width = x.shape
    return cls(x.reshape(*batch, rows // WIDTH, WIDTH, width).swapaxes(-1, -2))

  def __getitem__(self, index):
    """`[...]`, by which `nnx.Param` gives what it holds."""
    if index is not Ellipsis:
      raise TypeError('Panels have no elements: give [...]')
    return self

  def product(self, x):
    """`x @ matrix.T` in float32: [..., R, I] -> [..., R, O]."""
    *batch, count, width, lanes = self.values.shape
    rows = x.shape[-2]
    if rows > FEW:
      return jnp.matmul(x, self.values.swapaxes(-3, -2).reshape(*batch, width, -1), preferred_element_type=jnp.float32)
    if rows == 1:  # the kernel is slower at one row than at two
      x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, 1), (0, 0)])
    # XLA copies x for each panel in memory unless a reduction follows the product and x is this product's alone.
    parts = _parts(width, count * lanes)
    x = x.reshape(*batch, 1, -1, parts, width // parts).swapaxes(-2, -3)
    x = jnp.broadcast_to(x, (*batch, count, *x.shape[-3:]))
    values = self.values.reshape(*batch, count, parts, width // parts, lanes)
    y = jnp.sum(jnp.matmul(x, values, preferred_element_type=jnp.float32), axis=-3)
    return y.swapaxes(-2, -3).reshape(*batch, -1, count * lanes)[..., :rows, :]


def _parts(width: int, columns: int) -> int:
  """That a sum over `width` is made in: as few as give a product of 8 rows to all threads. The same for any rows, so
  that a row's sums are made alike beside few others and many."""
  parts = [n for n in (2**i for i in range(1, width.bit_length())) if width % n == 0 and width // n >= SHORTEST] or [1]
  short = [n for n in parts if width // n <= LONGEST] or parts[-1:]
  return next((n for n in short if n * columns > SHARED), short[-1])
