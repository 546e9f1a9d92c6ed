"""How a forward pass is computed; `ModelConfig` says what is computed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mathqwen.model import layers
from mathqwen.model.attention import reference
from mathqwen.model.placement import NO_PLACEMENT, Placement


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout at `rate`, drawn from `key` for each row. Without a key nothing is dropped.

  The Qwen report sets 0.1 without saying where. Here it applies to the embedding and to both residual branches of each
  layer, not to attention probabilities, because the fused attention kernels here have no dropout.
  """

  rate: float = 0.0
  key: jax.Array | None = None
  rows: jax.Array | None = None  # [B], the numbers of the rows in the global batch; None: 0, 1, ...

  def __call__(self, x_BTD: jax.Array, site: int | jax.Array, half: jax.Array | None = None) -> jax.Array:
    """`x_BTD` with dropout. site: the number of this place in the model; each draws its own random masks.

    The mask of a row depends on its number alone, so it is the same with any number of micro-batches and empty rows.
    half: 0 where x has the tokens 0, 2, 4, ... of the rows, 1 where it has the others; None: it has all.
    """
    if self.key is None or self.rate == 0:
      return x_BTD
    site_key = jax.random.fold_in(self.key, site)
    rows = jnp.arange(len(x_BTD)) if self.rows is None else self.rows

    def drop(x_TD, row):
      row_key = jax.random.fold_in(site_key, row)
      if half is None:
        return layers.dropout(x_TD, self.rate, row_key)
      T, D = x_TD.shape
      doubled = layers.dropout(jnp.repeat(x_TD, 2, axis=0), self.rate, row_key)  # drawn as for whole rows
      return doubled.reshape(T, 2, D)[:, half]

    return jax.vmap(drop)(x_BTD, rows)


@dataclasses.dataclass(frozen=True)
class Compute:
  """How to compute, with defaults for scoring in float32 on one device."""

  dtype: Any = 'float32'  # of activations, and of weights while they are used
  remat: str = 'none'  # what the backward pass computes again: a name in `stack.REMAT`
  dropout: Dropout = Dropout()
  adapter_dropout: Dropout = Dropout()  # on what enters an adapter
  attention: Callable = reference  # of tokens without a cache: from `attention.select`
  placement: Placement = NO_PLACEMENT
  training: bool = False  # Qwen-1 trains without the dynamic NTK and logn attention that it uses otherwise


PLAIN = Compute()
