"""Where the arrays inside a step are placed.

The model only names the axes of an array; `hardware.sharding` knows the mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@runtime_checkable
class Compound(Protocol):
  """A frozen weight, or one with an adapter (`adapted.Adapted`): a dataclass of arrays instead of an array."""

  def axes(self, names: tuple[str, ...]) -> Any:
    """The same dataclass with the names of the axes of its arrays. names: those of a plain weight."""

  def cast(self, cast: Callable[[jax.Array], jax.Array]) -> Any:
    """The same dataclass with `cast` of those of its arrays that are used in the dtype of the computation."""


def axes_of(weights: dict, names: dict) -> dict:
  """The tree of `weights` with the names of axes. names: a tuple of them where `weights` has an array or `Compound`."""
  return {name: w.axes(names[name]) if isinstance(w, Compound) else names[name] for name, w in weights.items()}


def cast_weights(weights: dict, dtype: DTypeLike, one: jax.Array | None = None) -> dict:
  """A layer's weights in `dtype`. one: from `opaque_one`; without it XLA may cast all layers at once."""

  def cast(w):
    if w.dtype == dtype:
      return w
    return (w if one is None else w * one).astype(dtype)

  return {name: w.cast(cast) if isinstance(w, Compound) else cast(w) for name, w in weights.items()}


@dataclasses.dataclass(frozen=True)
class Placement:
  """The null form: one device, nothing moves.

  The other form is `hardware.sharding.MeshPlacement`, whose module draws what each axis name means.
  """

  def __call__(self, x: jax.Array, *axes: str) -> jax.Array:
    """`x`, laid out by the logical names of its axes."""
    return x

  def local(self, function: Callable, inputs: tuple, outputs: tuple) -> Callable:
    """`function`, run on each device with its own parts of the arrays, so that nothing moves.

    inputs, outputs: the axis names of each argument and result; for a tree, a tree of them.
    """
    return function

  def tree(self, values: dict, axes: dict) -> dict:
    """`__call__` on each leaf; `axes` has a tuple of names where `values` has an array."""
    return values

  def gather(self, weights: dict, axes: dict, dtype: DTypeLike, one: jax.Array) -> dict:
    """A layer's weights in `dtype`, gathered from their shards for use. axes: as in `tree`. one: from `opaque_one`."""
    return cast_weights(weights, dtype)


NO_PLACEMENT = Placement()


def opaque_one(segment_ids_BT: jax.Array) -> jax.Array:
  """float32 1 that XLA cannot prove to be 1.

  XLA moves the cast of the weights to bfloat16 out of the loop over layers, and so casts all layers before it: 2 bytes
  for each weight, held through the whole backward pass. It cannot move a cast of `weight * opaque_one(...)`, because
  the factor is computed from data. An optimization_barrier does not help: XLA moves that out of the loop too.
  To measure: `python tests/training/test_tpu_memory.py` compiles a step for a TPU with and without it. For 8 layers
  on one chip, temporaries are 1.09 and 1.62 bytes for each byte of the float32 weights.
  """
  return jnp.all(segment_ids_BT >= 0).astype(jnp.float32)  # segment ids are never negative
