"""Reads the weights of a Hugging Face directory, one stacked weight at a time, straight into their sharding.

A file has one tensor per layer; ours is one array [L, ...] for all layers. `layouts.weight_places` says which rows of
which tensors make up each of our weights.
"""

import math

import jax
import numpy as np

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hf import config_json, layouts
from mathqwen.hf.adapters import HEAD, Adapter
from mathqwen.hf.tensor_directory import Problem, TensorDirectory, merge_layers
from mathqwen.hf.tensor_files import CODES, DTYPES, is_finite
from mathqwen.hf.weights import Path, Weights, widest

_ROWS_COMPARED = 4096  # rows of a tied head in memory at a time, in addition to the embedding
_ALIGNMENT = 64  # bytes

Box = tuple[slice, ...]  # part of an array: a slice with a start and a stop for each axis


class DirectoryWeights(Weights):
  """A Hugging Face directory, opened and checked: it has every weight of its config, in the right shape.

  config: that of its config.json; an adapter may change it (see `Adapter.merge`).
  """

  def __init__(self, directory: str, adapter: Adapter | None = None):
    """adapter: merged into the weights as they are read; closed with them.

    UserError: lists all files and tensors that are missing, damaged, extra, misshapen or of an unknown dtype.
    """
    self.directory = files.path(directory)
    self._adapter = adapter
    self.config, self.layout = config_json.read(directory)
    self._opened = TensorDirectory(self.directory)
    self._tensors = self._opened.tensors
    try:
      problems = self._opened.problems
      if adapter is not None and not problems:
        self._tensors, self.config = adapter.merge(self._tensors, self.config, str(directory))
      if self.config.num_hidden_layers > len(self._tensors) and not problems:
        raise UserError(
          f'{directory} does not fit its config.json: it says {self.config.num_hidden_layers} layers, and there are '
          f'{len(self._tensors)} tensors'
        )
      self._places = {place.path: place for place in layouts.weight_places(self.config, self.layout)}
      problems += self._compare_with_config(complete=not problems)
      if problems:
        raise UserError(f'{directory} does not fit its config.json: {"; ".join(merge_layers(problems))}')
    except BaseException:
      self.close()
      raise

  def _compare_with_config(self, complete: bool) -> list[Problem]:
    """What does not match between the tensors of the files and the config.

    complete: whether all files could be read; if not, no tensor is reported as missing.
    """
    expected = {tensor.name: tensor.shape for tensor in layouts.file_tensors(self.config, self.layout)}
    if self.config.tie_word_embeddings and HEAD in self._tensors:
      # Some tied checkpoints store the head too. `_check_tied` compares it with the embedding.
      expected[HEAD] = (self.config.vocab_size, self.config.hidden_size)
    ignored = layouts.LAYOUTS[self.layout].ignored
    extra, misfit = [], []
    for name, tensor in self._tensors.items():
      if name not in expected:
        if not name.endswith(ignored):
          extra.append((name, 'is not in a model of this config'))
      elif tensor.code not in CODES:
        misfit.append((name, f'is {tensor.code}: {", ".join(CODES)} are read'))
      elif tensor.shape != expected[name]:
        misfit.append((name, f'has shape {tensor.shape}, the config says {expected[name]}'))
    missing = [(name, 'is missing') for name in expected if name not in self._tensors] if complete else []
    return missing + extra + misfit

  @property
  def is_merged(self) -> bool:
    """Whether an adapter is merged into the weights of the files."""
    return self._adapter is not None

  def paths(self) -> list[Path]:
    """The paths of all weights, in the order of the layout's table."""
    return list(self._places)

  def dtype(self, path: Path) -> np.dtype:
    """The dtype of the weight in the files; when its layers differ, float32, which holds them all."""
    return widest(CODES[self._tensors[rows.name].code] for rows in self._places[path].ranges)

  def read(
    self, path: Path, sharding: jax.sharding.Sharding | None = None, dtype: str | None = None
  ) -> np.ndarray | jax.Array:
    """One weight, [L, ...] where it is stacked: a jax.Array in `sharding`, or without one a NumPy array.

    dtype: by default that of the files. This host reads only what its devices need, each byte once, and holds it once,
    apart from the devices' own memory.
    """
    place = self._places[path]
    dtype = self.dtype(path) if dtype is None else DTYPES[dtype]
    shape = (len(place.ranges), *place.shape) if place.stacked else place.shape
    if sharding is None:
      (array,) = self._read_boxes(place, dtype, [tuple(slice(0, n) for n in shape)])
      return array

    # What each device of this host needs. Devices that hold the same part of a weight share one array on the host.
    box_of: dict[jax.Device, Box] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      box_of[device] = tuple(slice(*axis.indices(n)[:2]) for axis, n in zip(index, shape, strict=True))
    distinct = {_hashable(box): box for box in box_of.values()}
    arrays = dict(zip(distinct, self._read_boxes(place, dtype, list(distinct.values())), strict=True))
    placed = [jax.device_put(arrays[_hashable(box)], device) for device, box in box_of.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)

  def place(self, path: Path, sharding: jax.sharding.Sharding | None, dtype: str | None = None) -> jax.Array:
    """One weight in this sharding; without one on the default device."""
    array = self.read(path, sharding, dtype)
    return jax.device_put(array) if sharding is None else array  # which may be over several hosts

  def _read_boxes(self, place: layouts.WeightPlace, dtype: np.dtype, boxes: list[Box]) -> list[np.ndarray]:
    """One array for each box of a weight. Rows that several boxes need are read once."""
    arrays = [_aligned_empty(tuple(axis.stop - axis.start for axis in box), dtype) for box in boxes]
    for layer, rows in enumerate(place.ranges):
      # What the boxes need of this layer: (array to fill, box within the layer).
      if place.stacked:
        wanted = [
          (array[layer - box[0].start], box[1:])
          for array, box in zip(arrays, boxes, strict=True)
          if box[0].start <= layer < box[0].stop
        ]
      else:
        wanted = list(zip(arrays, boxes, strict=True))
      if wanted:
        self._read_layer(place, rows, wanted)
    return arrays

  def _read_layer(self, place: layouts.WeightPlace, rows: layouts.RowRange, wanted: list[tuple[np.ndarray, Box]]):
    """Fills each target array with its box of one layer of a weight."""
    low = min(box[0].start for _, box in wanted)
    high = max(box[0].stop for _, box in wanted)
    # A file may have several rows for one entry of our first axis: head_dim rows for each head of q.
    rows_per_entry = (rows.stop - rows.start) // place.shape[0]
    tensor = self._tensors[rows.name]

    # The usual case on one device needs no second buffer: the file is read into the array itself.
    target, _ = wanted[0]
    direct = len(wanted) == 1 and target.shape == place.shape and target.dtype == CODES[tensor.code]
    start, stop = rows.start + low * rows_per_entry, rows.start + high * rows_per_entry
    try:
      array = tensor.read(start, stop, target if direct else None)
    except ValueError as error:
      raise UserError(f'{self.directory}: {rows.name} cannot be read ({error}): fetch its file again') from None
    if place.path == ('embed',) and self.config.tie_word_embeddings and HEAD in self._tensors:
      self._check_tied(array, low, high)
    if not is_finite(array):
      raise UserError(f'{self.directory}: {rows.name} holds NaN or infinity: fetch it again, or use another checkpoint')

    if not direct:
      array = array.reshape(high - low, *place.shape[1:])
      for target, box in wanted:
        first_axis = slice(box[0].start - low, box[0].stop - low)
        target[...] = array[(first_axis, *box[1:])]

  def _check_tied(self, embed_VD: np.ndarray, low: int, high: int):
    """UserError: when a stored head is not the embedding. transformers would use it, whatever the config says."""
    for start in range(low, high, _ROWS_COMPARED):
      stop = min(start + _ROWS_COMPARED, high)
      head = self._tensors[HEAD].read(start, stop)
      if not np.array_equal(head, embed_VD[start - low : stop - low]):
        raise UserError(
          f'{self.directory}: {HEAD} is not the embedding, and config.json has tie_word_embeddings: set that to false, '
          f'or take {HEAD} out'
        )

  def close(self) -> None:
    """Closes the files. Weights that were read stay valid."""
    self._opened.close()
    if self._adapter is not None:
      self._adapter.close()

  @property
  def export_dtype(self) -> str | None:
    """The dtype of an export that need not be wider than these files; None: as stored.

    Merged weights are float32. Their base is most often bfloat16, and so is what people expect of the merged model.
    """
    if self._adapter is None:
      return None
    stored = [CODES[tensor.code].name for tensor in self._opened.tensors.values() if tensor.code in CODES]
    return max(set(stored), key=stored.count)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def load_params(directory: str, shardings: dict | None = None, dtype: str | None = None) -> dict:
  """The weights of a Hugging Face directory as our tree of arrays. UserError: when it is damaged or not complete."""
  with DirectoryWeights(directory) as weights:
    return weights.read_all(shardings, dtype)


def _hashable(box: Box) -> tuple[tuple[int, int], ...]:
  """The box as a key of a dict: slices are not hashable before Python 3.12."""
  return tuple((axis.start, axis.stop) for axis in box)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """`np.empty` at an aligned address: JAX on a CPU then uses the memory itself instead of a copy."""
  size = math.prod(shape) * dtype.itemsize
  buffer = np.empty(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + size].view(dtype).reshape(shape)
