"""Files of `torch.save`, pytorch_model.bin: the tensors of a checkpoint, read one range of rows at a time.

  since 2020  a zip file without compression: NAME/data.pkl says which tensors there are, NAME/data/KEY are the bytes
  before      pickles one after the other (a number, a version, the machine, the tensors, the keys), then for each key
              its number of elements and its bytes

torch is not needed, and nothing in a file is run: see `tensor_pickle`.
"""

import io
import math

import numpy as np

from mathqwen import files
from mathqwen.files.stored_zip import StoredZip
from mathqwen.hf import tensor_pickle
from mathqwen.hf.tensor_files import CODES
from mathqwen.hf.tensor_pickle import TensorView

_LARGEST_PICKLE = 2**24  # bytes; a 70B model's has less than 2**18
_BEFORE_ZIP = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first pickle: a number
_WIDEST_SPREAD = 16  # elements in a storage for each of a tensor: queries cut out of fused matrices have 3
_ITEM_SIZES = dict(tensor_pickle.STORAGES.values())


class TorchReader:
  """One file, opened and checked. `tensors`: name -> (dtype code as in safetensors, shape).

  tensor_pickle.Unsafe: when the file asks for something to be run. ValueError: when it is cut off or damaged.
  """

  def __init__(self, path: files.AnyPath):
    self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    self._file = files.open_ranges(path)
    self._zip: StoredZip | None = None
    self._first_byte: dict[str, int] = {}  # of each storage, in a file without zip
    self._prefix = ''
    try:
      is_zip = self._file.read(0, len(_BEFORE_ZIP)) != _BEFORE_ZIP
      self._views = self._open_zip() if is_zip else self._open_older()
      for name, view in self._views.items():
        _check_spread(name, view)
    except BaseException:
      self._file.close()
      raise
    for name, view in self._views.items():
      self.tensors[name] = (view.storage.dtype, view.shape)

  def _open_zip(self) -> dict[str, TensorView]:
    self._zip = StoredZip(self._file)
    tables = [name for name in self._zip.members if name.count('/') == 1 and name.endswith('/data.pkl')]
    if len(tables) != 1:
      raise ValueError(f'it has {len(tables)} members NAME/data.pkl, and a file of torch.save has one')
    self._prefix = tables[0].removesuffix('data.pkl')
    order = f'{self._prefix}byteorder'
    if order in self._zip.members and self._zip.read(order, 16) != b'little':
      raise ValueError('its numbers have their bytes in the other order: save it on another machine')

    found = tensor_pickle.load(io.BytesIO(self._zip.read(tables[0], _LARGEST_PICKLE)))
    views = tensor_pickle.table_of_tensors(found)
    for name, view in views.items():
      member = self._zip.members.get(self._member(view))
      size = view.storage.elements * _ITEM_SIZES[view.storage.dtype]
      if member is None or member.size < size:
        has = 'are not there' if member is None else f'are {member.size:,}'
        raise ValueError(f'the {size:,} bytes of {name} {has}')
    return views

  def _open_older(self) -> dict[str, TensorView]:
    stream = io.BytesIO(self._file.read(0, _LARGEST_PICKLE))
    _, version, machine, found, keys = (tensor_pickle.load(stream) for _ in range(5))
    if version != 1001 or not isinstance(machine, dict) or machine.get('little_endian') is not True:
      raise ValueError('it is of an unknown version of the format before zip files, or of another kind of machine')
    views = tensor_pickle.table_of_tensors(found)
    storages = {view.storage.key: view.storage for view in views.values()}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
      raise ValueError('its list of storages is not that of its tensors')

    at = stream.tell()
    for key in keys:
      elements = int.from_bytes(self._file.read(at, 8), 'little')
      if elements != storages[key].elements:
        raise ValueError(f'a storage has {elements:,} elements, and a tensor expects {storages[key].elements:,}')
      self._first_byte[key] = at + 8
      at += 8 + elements * _ITEM_SIZES[storages[key].dtype]
    if at != self._file.size:
      raise ValueError(f'it has {self._file.size:,} bytes and its tensors end at {at:,}')
    return views

  def _member(self, view: TensorView) -> str:
    return f'{self._prefix}data/{view.storage.key}'

  def read(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows `start` to `stop` of a tensor, into the contiguous `out` when one of its dtype is given.

    ValueError: when the file has become shorter since it was opened.
    """
    view = self._views[name]
    dtype = CODES[view.storage.dtype]
    shape = (stop - start, *view.shape[1:])
    if out is None:
      out = np.empty(shape, dtype)
    if not out.size:
      return out
    first = view.offset + start * view.strides[0]
    if _is_contiguous(view):
      self._read_elements(name, first, out.reshape(-1))
      return out
    # A transposed tensor, for example, as `tensor.T` is saved: what lies between its first and its last element.
    elements = np.empty(_span(shape, view.strides), dtype)
    self._read_elements(name, first, elements)
    strides = [stride * dtype.itemsize for stride in view.strides]
    out.reshape(shape)[...] = np.lib.stride_tricks.as_strided(elements, shape, strides)
    return out

  def _read_elements(self, name: str, first: int, out: np.ndarray):
    """Fills `out`, one-dimensional, with consecutive elements of the storage of a tensor."""
    view = self._views[name]
    start = self._zip.first_byte(self._member(view)) if self._zip else self._first_byte[view.storage.key]
    buffer = memoryview(out.view(np.uint8))
    if self._file.read_into(start + first * out.itemsize, buffer) < len(buffer):
      raise ValueError(f'it ended within {name}')

  def close(self) -> None:
    """Closes the file. Arrays that were read stay valid."""
    self._file.close()


def _check_spread(name: str, view: TensorView):
  """ValueError: when the elements of a tensor lie so far apart that reading them would take memory without end."""
  elements = math.prod(view.shape)
  span = _span(view.shape, view.strides)
  if elements and span > _WIDEST_SPREAD * elements:
    raise ValueError(f'the {elements:,} elements of {name} are spread over {span:,}')


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
  """Elements from the first of a tensor to its last."""
  return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _is_contiguous(view: TensorView) -> bool:
  """Whether the elements lie row after row. The stride of an axis of length 1 means nothing."""
  axes = zip(view.shape, view.strides, range(len(view.shape)), strict=True)
  return all(n == 1 or stride == math.prod(view.shape[axis + 1 :]) for n, stride, axis in axes)
