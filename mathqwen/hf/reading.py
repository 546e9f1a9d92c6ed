"""Weights out of a Hugging Face directory, one stacked weight at a time, straight into their sharding."""

import math
import pathlib
import re

import jax
import numpy as np

from mathqwen.errors import UserError
from mathqwen.hf import config, layouts
from mathqwen.hf.files import CODES, DTYPES, Reader, is_finite, read_json

INDEX, SINGLE, HEAD = 'model.safetensors.index.json', 'model.safetensors', 'lm_head.weight'


class Checkpoint:
  """A Hugging Face directory, opened and checked: every weight of its config is there, whole, in its shape.

  UserError lists at once all files and tensors that are missing, damaged, extra, misshapen or of an unknown dtype.
  """

  def __init__(self, directory: str):
    self.directory = pathlib.Path(directory)
    self.config, self.layout = config.read(directory)
    self._where: dict[str, Reader] = {}
    self._weights = {weight.path: weight for weight in layouts.weights(self.config, self.layout)}
    problems = self._open()
    problems += self._compare(complete=not problems)
    if problems:
      self.close()
      raise UserError(f'{directory} does not fit its config.json: {"; ".join(_by_layer(problems))}')

  def _open(self) -> list[tuple[str, str]]:
    problems = []
    named: dict[str, list[str] | None] = {SINGLE: None}  # tensors that the index has in a file
    if (self.directory / INDEX).exists():
      weight_map = read_json(self.directory / INDEX).get('weight_map')
      if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{self.directory / INDEX} has no weight_map: fetch it again')
      if SINGLE not in weight_map.values() and (self.directory / SINGLE).exists():
        problems.append((SINGLE, f'stands beside {INDEX}, which does not name it: remove the one that is not meant'))
      named = {str(file): [] for file in weight_map.values()}
      for tensor, file in weight_map.items():
        named[str(file)].append(tensor)
    for file, tensors in sorted(named.items()):
      if pathlib.PurePath(file).name != file or len(file) > 200:
        problems.append((file[:200], 'is not the name of a file beside the index'))
        continue
      path = self.directory / file
      if not path.exists():
        remedy = 'the download is not complete, fetch it'
        if file == SINGLE and any(self.directory.glob('*.bin')):
          remedy = 'only safetensors are read, not pickled .bin files; fetch that version'
        problems.append((file, f'is missing: {remedy}'))
        continue
      try:
        reader = Reader(path)
      except ValueError as error:
        problems.append((file, f'cannot be read as safetensors ({error}): is it half a file? Fetch it again'))
        continue
      problems += [(name, 'is in two files') for name in reader.tensors if name in self._where]
      if tensors is not None and set(tensors) != set(reader.tensors):
        lost, unnamed = set(tensors) - set(reader.tensors), set(reader.tensors) - set(tensors)
        problems += [(name, f'is not in {file}, where the index has it') for name in sorted(lost)]
        problems += [(name, f'is in {file}, and the index does not say so') for name in sorted(unnamed)]
      self._where |= dict.fromkeys(reader.tensors, reader)
    return problems

  def _compare(self, complete: bool) -> list[tuple[str, str]]:
    """Problems of what the files hold. Unless they are complete, no tensor is called missing."""
    wanted = {tensor.name: tensor.shape for tensor in layouts.stored(self.config, self.layout)}
    if self.config.tie_word_embeddings and HEAD in self._where:
      wanted[HEAD] = (self.config.vocab_size, self.config.hidden_size)  # `_read_parts` holds it against the embedding
    ignored = layouts.LAYOUTS[self.layout].ignored
    extra, other = [], []
    for name, reader in self._where.items():
      code, shape = reader.tensors[name]
      if name not in wanted:
        if not name.endswith(ignored or ('\0',)):
          extra.append((name, 'is not in a model of this config'))
      elif code not in CODES:
        other.append((name, f'is {code}: {", ".join(CODES)} are read'))
      elif shape != wanted[name]:
        other.append((name, f'has shape {shape}, the config says {wanted[name]}'))
    missing = [(name, 'is missing') for name in wanted if name not in self._where] if complete else []
    return missing + extra + other

  def paths(self) -> list[tuple[str, ...]]:
    """Of every weight in our tree, in the order of the layout's table."""
    return list(self._weights)

  def dtype(self, path) -> np.dtype:
    """That of the file; where layers differ, one that holds them all."""
    found = {CODES[self._where[slot.name].tensors[slot.name][0]] for slot in self._weights[path].slots}
    return widest(found)

  def read(self, path, sharding=None, dtype: str | None = None):
    """One weight of our tree, [L, ...] where it is stacked: a jax.Array in `sharding`, or without one a NumPy array.

    dtype: by default that of the file. Of this host's part each byte is read once, and held once beside the devices'.
    """
    weight = self._weights[path]
    dtype = self.dtype(path) if dtype is None else DTYPES[dtype]
    shape = (len(weight.slots), *weight.shape) if weight.stacked else weight.shape
    if sharding is None:
      everything = tuple(slice(0, n) for n in shape)
      return self._read_parts(weight, shape, dtype, [everything])[0]
    indices = sharding.addressable_devices_indices_map(shape)
    spans = {
      device: tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))
      for device, index in indices.items()
    }
    distinct = list(dict.fromkeys(tuple((s.start, s.stop) for s in span) for span in spans.values()))
    arrays = dict(
      zip(
        distinct,
        self._read_parts(weight, shape, dtype, [tuple(slice(*s) for s in span) for span in distinct]),
        strict=True,
      )
    )
    placed = [jax.device_put(arrays[tuple((s.start, s.stop) for s in span)], d) for d, span in spans.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)

  def read_all(self, shardings=None, dtype: str | None = None) -> dict:
    """Our tree of weights, each in its sharding as soon as it is read; without shardings on one device."""
    params: dict = {}
    for path in self._weights:
      put(params, path, jax.device_put(self.read(path, None if shardings is None else at(shardings, path), dtype)))
    return params

  def _read_parts(self, weight, shape, dtype, spans) -> list[np.ndarray]:
    """The given boxes of one weight of ours, reading the rows that any of them needs once."""
    out = [_empty(tuple(s.stop - s.start for s in span), dtype) for span in spans]
    lead = 1 if weight.stacked else 0
    first = weight.shape[0]
    for layer, slot in enumerate(weight.slots):
      boxes = [
        (array[layer - span[0].start] if lead else array, span[lead:])
        for array, span in zip(out, spans, strict=True)
        if not lead or span[0].start <= layer < span[0].stop
      ]
      if not boxes:
        continue
      low, high = min(box[0].start for _, box in boxes), max(box[0].stop for _, box in boxes)
      rows = (slot.stop - slot.start) // first  # of the file, for one entry of our first axis
      reader, code = self._where[slot.name], self._where[slot.name].tensors[slot.name][0]
      whole = len(boxes) == 1 and CODES[code] == dtype and boxes[0][0].shape == weight.shape
      into = boxes[0][0] if whole else None
      try:
        read = reader.read(slot.name, slot.start + low * rows, slot.start + high * rows, into)
      except ValueError as error:
        raise UserError(f'{self.directory}: {slot.name} cannot be read ({error}): fetch its file again') from None
      if weight.path == ('embed',) and self.config.tie_word_embeddings and HEAD in self._where:
        self._check_tied(read, low, high)
      if not is_finite(read):
        raise UserError(
          f'{self.directory}: {slot.name} holds NaN or infinity: fetch it again, or use another checkpoint'
        )
      if not whole:
        read = read.reshape(high - low, *weight.shape[1:])
        for target, box in boxes:
          target[...] = read[(slice(box[0].start - low, box[0].stop - low), *box[1:])]
    return out

  def _check_tied(self, embed_VD, low, high):
    """transformers would use a head of its own, whatever the config says."""
    for start in range(low, high, 4096):
      stop = min(start + 4096, high)
      if not np.array_equal(self._where[HEAD].read(HEAD, start, stop), embed_VD[start - low : stop - low]):
        raise UserError(
          f'{self.directory}: {HEAD} is not the embedding, and config.json has tie_word_embeddings: set that to false, '
          f'or take {HEAD} out'
        )

  def close(self):
    for reader in set(self._where.values()):
      reader.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def widest(dtypes) -> np.dtype:
  """The one dtype, or one that holds every value of several."""
  found = set(dtypes)
  return found.pop() if len(found) == 1 else DTYPES['float32']


def load_params(directory: str, shardings=None, dtype: str | None = None) -> dict:
  """The weights of a Hugging Face directory as our tree of arrays."""
  with Checkpoint(directory) as checkpoint:
    return checkpoint.read_all(shardings, dtype)


def _empty(shape, dtype) -> np.ndarray:
  """`np.empty` at an address that JAX on a CPU takes as it is, without a copy."""
  buffer = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def put(tree, path, value):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def _by_layer(problems: list[tuple[str, str]]) -> list[str]:
  """'model.layers.0-31.mlp.up_proj.weight is missing': the same problem in several layers is said once."""
  groups: dict[tuple[str, str], list[int]] = {}
  for name, what in problems:
    match = re.search(r'\.(\d+)\.', name)
    pattern = name[: match.start()] + '.{}.' + name[match.end() :] if match else name
    groups.setdefault((pattern, what), []).append(int(match.group(1)) if match else 0)
  said = []
  for (pattern, what), layers in groups.items():
    runs: list[list[int]] = []
    for layer in sorted(layers):
      if runs and layer == runs[-1][-1] + 1:
        runs[-1][-1:] = [runs[-1][0], layer] if len(runs[-1]) == 1 else [layer]
      else:
        runs.append([layer])
    said.append(f'{pattern.format(",".join("-".join(map(str, run)) for run in runs))} {what}')
  return said
