"""Checksums of all that a checkpoint holds: written with it, compared whenever it is read.

STEP/checksums has one for each array, for the JSON items, and for the files of the tokenizer. An array's is the sum,
modulo 2**32, of a hash of each element together with its index. Integers add up to the same in any order, so the sum
does not depend on mesh, hosts or the layout of the files. The hash is a bijection for each index: a change of a single
element always changes the sum, and any other change goes unnoticed once in 2**32 times.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mathqwen import files

ITEM = 'checksums'  # the folder of a step in which they are
JSON_FILE = 'metadata'  # Orbax's name for the content of a JSON item
# Multipliers and shifts of the hash: those of MurmurHash3's fmix32, and an odd number that spreads the index.
_INDEX = 0x9E3779B1
_FIRST, _SECOND = 0x85EBCA6B, 0xC2B2AE35
_BLOCK = 2**16  # elements added up at once in XLA:CPU
_PIECE = 2**17  # elements hashed at once in NumPy: two buffers of them stay in the CPU's cache


# --- arrays ---


def examine(tree: Any) -> tuple[bool, dict[str, dict]]:
  """(whether every number is finite, {'params/embed': {'dtype', 'shape', 'sum'}, ...}) of a tree of jax.Arrays.

  The devices compute both where the arrays are; all hosts must call it. Call it with the same shapes and shardings
  again and nothing compiles.
  """
  leaves = _named_leaves(tree)
  where = _everywhere(next(iter(leaves.values())).sharding)
  on_host = {name: leaf for name, leaf in leaves.items() if leaf.sharding.memory_kind == 'pinned_host'}
  on_devices = {name: leaf for name, leaf in leaves.items() if name not in on_host}
  # Those on the host one by one: the devices may not have the memory for all of them.
  groups = [on_devices, *({name: leaf} for name, leaf in on_host.items())]
  finite, sums = True, {}
  for group in groups:
    good, values = jax.device_get(_compiled(where, group is not on_devices)(list(group.values())))
    finite = finite and bool(good)
    sums |= dict(zip(group, values, strict=True))
  return finite, {name: _describe(leaf, sums[name]) for name, leaf in leaves.items()}


def of_array(array: np.ndarray) -> dict:
  """As `examine` describes an array, for one in this host's memory."""
  words = np.ascontiguousarray(array).reshape(-1)
  words = words.astype(np.uint8) if words.dtype == bool else words.view(_word(words.dtype))
  starts = range(0, words.size, _PIECE)
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # NumPy releases the GIL
    total = sum(threads.map(lambda start: _sum_of_piece(words[start : start + _PIECE], start), starts))
  return _describe(array, total % 2**32)


def _named_leaves(tree: Any) -> dict[str, jax.Array]:
  """{'params/layers/q': leaf, ...}"""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _describe(array: Any, checksum: int) -> dict:
  return {'dtype': np.dtype(array.dtype).name, 'shape': list(array.shape), 'sum': int(checksum)}


def _everywhere(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
  """On all devices of `sharding`: every host reads the result."""
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
  return sharding


@functools.cache
def _compiled(where: jax.sharding.Sharding, on_host: bool):
  """`_examine_arrays` under jax.jit. on_host: the arrays are in the memory of the host."""
  (platform,) = {device.platform for device in where.device_set}
  in_blocks = platform == 'cpu' and where.num_devices == 1

  def examine(arrays):
    return _examine_arrays(jax.device_put(arrays, jax.memory.Space.Device) if on_host else arrays, in_blocks)

  return jax.jit(examine, out_shardings=where)


def _examine_arrays(arrays: list[jax.Array], in_blocks: bool) -> tuple[jax.Array, jax.Array]:
  """(whether all are finite, bool []; the sum of each, uint32 [number of arrays])

  in_blocks: add up vectors of elements. XLA:CPU does not vectorize sums of integers, and would take five times as long.
  """
  results = [_examine_in_blocks(array) if in_blocks else _examine_elements(array, _indices(array)) for array in arrays]
  finite, sums = zip(*results, strict=True)
  return jnp.all(jnp.stack(finite)), jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in sums])


def _examine_in_blocks(array: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(whether all are finite, bool []; hashes that are still to be added up, uint32) of an array on one device."""
  flat = array.reshape(-1)
  count = flat.size // _BLOCK * _BLOCK
  within = jnp.arange(_BLOCK, dtype=jnp.uint32)

  def add(carry, number_and_block):
    number, block = number_and_block
    finite, hashes = _examine_elements(block, number * np.uint32(_BLOCK) + within)
    return (carry[0] & finite, carry[1] + hashes), None

  rest = _examine_elements(flat[count:], jnp.arange(count, flat.size, dtype=jnp.uint32))
  if not count:
    return rest
  blocks = flat[:count].reshape(-1, _BLOCK)
  numbers = jnp.arange(len(blocks), dtype=jnp.uint32)
  start = (jnp.array(True), jnp.zeros(_BLOCK, jnp.uint32))
  (finite, hashes), _ = jax.lax.scan(add, start, (numbers, blocks))
  return finite & rest[0], jnp.concatenate([hashes, rest[1]])


def _examine_elements(array: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(whether all are finite, bool []; the hash of each element, uint32 in the shape of `array`).

  index: of each element in the whole array, uint32.
  """
  if array.dtype == bool:
    words = array.astype(jnp.uint32)
  else:
    words = jax.lax.bitcast_convert_type(array, _word(array.dtype)).astype(jnp.uint32)
  h = words + index * np.uint32(_INDEX)
  h = (h ^ (h >> 16)) * np.uint32(_FIRST)
  h = (h ^ (h >> 13)) * np.uint32(_SECOND)
  return jnp.all(jnp.isfinite(array)), h ^ (h >> 16)


def _indices(array: jax.Array) -> jax.Array:
  """The index of each element in row-major order, modulo 2**32, uint32 in the shape of `array`."""
  index = jnp.zeros(array.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(array.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride % 2**32)
    stride *= array.shape[axis]
  return index


def _sum_of_piece(words: np.ndarray, start: int) -> int:
  """The sum of the hashes of elements, of which `start` is the index of the first."""
  h = _spread_indices()[: words.size] + np.uint32(start * _INDEX % 2**32)
  h += words
  shifted = np.empty_like(h)
  for shift, factor in ((16, _FIRST), (13, _SECOND)):
    np.right_shift(h, shift, out=shifted)
    h ^= shifted
    h *= np.uint32(factor)
  np.right_shift(h, 16, out=shifted)
  h ^= shifted
  return int(h.sum(dtype=np.uint64))


@functools.cache
def _spread_indices() -> np.ndarray:
  return np.arange(_PIECE, dtype=np.uint32) * np.uint32(_INDEX)


def _word(dtype: np.dtype) -> np.dtype:
  """The unsigned integer as which an element is hashed. TypeError: above 4 bytes, which no weight or moment has."""
  if np.dtype(dtype).itemsize > 4:
    raise TypeError(f'no checksum for {dtype}')
  return np.dtype(f'uint{8 * np.dtype(dtype).itemsize}')


# --- JSON and files ---


def of_json(value: Any) -> str:
  """The SHA-256 of a JSON value, whatever the order of its names."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_files(folder: files.AnyPath) -> dict[str, str]:
  """{name: SHA-256} of the files directly in a folder; {} where there is none."""
  if not folder.is_dir():
    return {}
  found = [file for file in sorted(folder.iterdir()) if file.is_file()]
  return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


# --- what is written with a checkpoint ---


def record(arrays: dict[str, dict], items: dict[str, Any], tokenizer: dict[str, str]) -> dict:
  """The JSON item of a step.

  arrays: as `examine` gives them. items: its other JSON items by name. tokenizer: `of_files` of its folder.
  """
  content = {'arrays': arrays, 'items': {name: of_json(value) for name, value in items.items()}, 'tokenizer': tokenizer}
  return {'content': content, 'sha256': of_json(content)}


def read(step: files.AnyPath) -> dict | None:
  """The content of a step's record; None for a step that was written without one. ValueError: when it is damaged."""
  if not (step / ITEM).exists():
    return None
  found = read_json(step, ITEM)
  if not isinstance(found, dict) or found.get('sha256') != of_json(found.get('content')):
    raise ValueError('its checksums differ from what was written')
  return found['content']


def read_json(step: files.AnyPath, item: str, record: dict | None = None) -> Any:
  """A JSON item of a step. ValueError: when it is damaged, which some damage shows only with the step's `record`."""
  try:
    value = json.loads((step / item / JSON_FILE).read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f'{item} cannot be read: {error}') from error
  if record is not None and record['items'].get(item) != of_json(value):
    raise ValueError(f'{item} differs from what was written')
  return value


def check_arrays(record: dict | None, found: dict[str, dict]) -> None:
  """Compares arrays that were read, as `examine` gives them. ValueError: names the first that differs.

  record: of the step; None where it has none, which compares nothing.
  """
  for name, description in found.items() if record is not None else ():
    written = record['arrays'].get(name)
    if written != description:
      raise ValueError(f'{name} differs from what was written')
