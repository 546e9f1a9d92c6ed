"""Weights that no optimizer changes, as they are held: the matrices of the layers, perhaps the tables too, quantised.

'tables' are the embedding and the head. Norms and biases are small, and stay as they are.
"""

import functools

import jax
from jax.typing import DTypeLike

from mathqwen.model import parameters, quantized
from mathqwen.model.adapted import OUTPUTS
from mathqwen.model.config import ModelConfig
from mathqwen.model.quantized import Quantized


def hold(w: jax.Array, path: tuple[str, ...], kind: str | None, tables: bool = False) -> jax.Array | Quantized:
  """The weight at `path` of the tree of `parameters.init` as it is held.

  kind: one of `quantized.KINDS`; a dtype or None: then `w` itself.
  """
  if kind not in quantized.KINDS:
    return w
  if is_matrix(path):
    # Layer by layer, so that only one layer is held in float32.
    return jax.lax.map(functools.partial(quantized.quantize, kind=kind, outputs=OUTPUTS[path[1]]), w)
  if tables and path[0] in ('embed', 'head'):
    return quantized.quantize(w, kind)
  return w


def is_matrix(path: tuple[str, ...]) -> bool:
  """Whether the weight at `path` is a matrix of the layers."""
  return path[0] == 'layers' and path[1] in OUTPUTS


def abstract(cfg: ModelConfig, dtype: DTypeLike, kind: str | None, tables: bool = False) -> dict:
  """All weights as `hold` makes them of weights in `dtype`, as `jax.ShapeDtypeStruct`s."""

  def struct(keys, w):
    path = tuple(key.key for key in keys)
    return jax.eval_shape(lambda w: hold(w, path, kind, tables), jax.ShapeDtypeStruct(w.shape, dtype))

  return jax.tree_util.tree_map_with_path(struct, parameters.abstract(cfg))


def logical_axes(cfg: ModelConfig, kind: str | None, tables: bool = False) -> dict:
  """The same tree with the names of axes."""
  names = parameters.logical_axes(cfg)
  held = abstract(cfg, 'float32', kind, tables)
  return jax.tree.map(
    lambda w, names: w.axes(names) if isinstance(w, Quantized) else names, held, names, is_leaf=quantized.is_quantized
  )
