"""`Weights`: a model that is read weight by weight, wherever it is stored; `ArrayWeights`: one in memory."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from mathqwen.hf.tensor_files import DTYPES

Path = tuple[str, ...]  # of a weight in our tree of parameters: ('embed',) or ('layers', 'q')


class Weights(Protocol):
  """The weights of one model. A conversion or an export holds one of them at a time.

  `DirectoryWeights` (a Hugging Face directory), `ArrayWeights` (memory), `storage.converted.StepWeights` (a step of a
  run) and `storage.base.MergedWeights` (the step of a run with adapters, with its base) implement it.
  """

  collective: bool = False  # whether all hosts must call `read` together

  def paths(self) -> list[Path]:
    """The paths of all weights."""
    ...

  def dtype(self, path: Path) -> np.dtype:
    """The dtype in which a weight is stored."""
    ...

  def read(self, path: Path) -> np.ndarray:
    """One weight in its own dtype, with a leading axis of layers when its path begins with 'layers'."""
    ...

  def place(self, path: Path, sharding: jax.sharding.Sharding, dtype: str | None = None) -> jax.Array:
    """One weight in this sharding, in `dtype` or in its own; all hosts must call it."""
    ...

  def read_all(self, shardings: dict | None = None, dtype: str | None = None) -> dict:
    """All weights as a tree of jax.Arrays in the given tree of shardings, in `dtype` or in their own dtypes.

    Each is placed as soon as it is read. Without shardings a `DirectoryWeights` places them on one device.
    """
    params: dict = {}
    for path in self.paths():
      sharding = None if shardings is None else weight_at(shardings, path)
      set_weight(params, path, self.place(path, sharding, dtype))
    return params

  def close(self) -> None:
    """Closes the files. Weights that were read stay valid."""
    ...


class ArrayWeights(Weights):
  """A tree of arrays, on this host or sharded over several."""

  def __init__(self, params: dict):
    self._params = params

  @property
  def collective(self) -> bool:
    """Whether all hosts must call `read` together: they do where each holds only a part of some weight."""
    return not all(map(_is_local, jax.tree.leaves(self._params)))

  def paths(self) -> list[Path]:
    """The paths of all weights, in the order of the tree's leaves."""
    paths = []
    for keys, _ in jax.tree_util.tree_leaves_with_path(self._params):
      paths.append(tuple(key.key for key in keys))  # each is a jax.tree_util.DictKey
    return paths

  def dtype(self, path: Path) -> np.dtype:
    """The dtype of a weight's array."""
    return np.dtype(weight_at(self._params, path).dtype)

  def read(self, path: Path) -> np.ndarray:
    """One weight, gathered on every host when it is sharded over several."""
    array = weight_at(self._params, path)
    if _is_local(array):
      return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)

  def place(self, path: Path, sharding: jax.sharding.Sharding, dtype: str | None = None) -> jax.Array:
    """One weight in this sharding, in `dtype` or in its own."""
    array = weight_at(self._params, path)
    return jax.device_put(array if dtype is None else array.astype(DTYPES[dtype]), sharding)

  def close(self) -> None:
    """Does nothing: there are no files."""


def _is_local(array: np.ndarray | jax.Array) -> bool:
  """Whether this host holds all of an array."""
  return not isinstance(array, jax.Array) or array.is_fully_addressable


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
  """The common dtype, or float32, which holds every value of the others, when there are several."""
  distinct = set(dtypes)
  return distinct.pop() if len(distinct) == 1 else DTYPES['float32']


def weight_at(tree: dict, path: Path) -> Any:
  """tree['layers']['q'] for the path ('layers', 'q')."""
  for key in path:
    tree = tree[key]
  return tree


def set_weight(tree: dict, path: Path, value: Any) -> None:
  """tree['layers']['q'] = value for the path ('layers', 'q'); makes the inner dicts."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value
