"""How a forward pass is computed; `ModelConfig` says what is computed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mathqwen.model import layers
from mathqwen.model.attention import reference
from mathqwen.model.placement import NO_PLACEMENT, Placement


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout at `rate`, drawn from `key`. Without a key nothing is dropped.

  The Qwen report sets 0.1 without saying where. Here it applies to the embedding and to both residual branches of each
  layer, not to attention probabilities, because the fused attention kernels here have no dropout.
  """

  rate: float = 0.0
  key: jax.Array | None = None

  def __call__(self, x: jax.Array, site: int | jax.Array) -> jax.Array:
    """`x` with dropout. site: the number of this place in the model; each draws its own random mask."""
    return layers.dropout(x, self.rate, None if self.key is None else jax.random.fold_in(self.key, site))


@dataclasses.dataclass(frozen=True)
class Compute:
  """How to compute, with defaults for scoring in float32 on one device."""

  dtype: Any = 'float32'  # of activations, and of weights while they are used
  remat: str = 'none'  # what the backward pass computes again: a name in `stack.REMAT`
  dropout: Dropout = Dropout()
  attention: Callable = reference  # of tokens without a cache: from `attention.select`
  placement: Placement = NO_PLACEMENT
  training: bool = False  # Qwen-1 trains without the dynamic NTK and logn attention that it uses otherwise


PLAIN = Compute()
