"""safetensors files, read and written one tensor at a time.

The safetensors library maps a file into memory, where its pages count as resident, and writes only tensors that are all
in memory at once. Reading and writing piece by piece lets a model be larger than memory.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, a JSON header that gives
each tensor's dtype, shape and byte range, then the bytes of the tensors without gaps.
"""

import json
import math
import struct

import ml_dtypes
import numpy as np

from mathqwen import files

DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float16': np.dtype(np.float16)}
CODES = {'F32': DTYPES['float32'], 'BF16': DTYPES['bfloat16'], 'F16': DTYPES['float16']}  # dtypes in the header
# A float is infinite or NaN when all its exponent bits are set, so its bit pattern is among the largest: as a signed
# integer if it is positive, as an unsigned one if it is negative. {dtype: (signed, unsigned, bits of +infinity)}.
_NOT_FINITE = {
  'float32': (np.int32, np.uint32, 0x7F800000),
  'bfloat16': (np.int16, np.uint16, 0x7F80),
  'float16': (np.int16, np.uint16, 0x7C00),
}
_HEADER_LIMIT = 100_000_000  # bytes, as in the library
_CHECKED_AT_ONCE = 1 << 20  # elements: a piece stays in the CPU's cache between the two passes over it


def is_finite(array: np.ndarray) -> bool:
  """Whether a contiguous array of one of DTYPES holds neither infinities nor NaNs.

  On the bit patterns, because `np.isfinite` is several times slower and does not know bfloat16 without a cast.
  """
  signed, unsigned, infinity = _NOT_FINITE[array.dtype.name]
  negative_infinity = infinity + (1 << (8 * array.itemsize - 1))
  flat = array.reshape(-1)
  for start in range(0, flat.size, _CHECKED_AT_ONCE):
    piece = flat[start : start + _CHECKED_AT_ONCE]
    if piece.view(signed).max() >= infinity or piece.view(unsigned).max() >= negative_infinity:
      return False
  return True


class SafetensorsReader:
  """One file, opened and checked. `tensors`: name -> (dtype code, shape).

  ValueError: when the file is cut off or its header does not describe its bytes.
  """

  def __init__(self, path: files.AnyPath):
    self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    self._first_byte: dict[str, int] = {}
    self._file = files.open_ranges(path)
    try:
      self._read_header(self._file.size)
    except BaseException:
      self._file.close()
      raise

  def _read_header(self, file_size: int):
    head = self._file.read(0, 8)
    length = struct.unpack('<Q', head)[0] if len(head) == 8 else _HEADER_LIMIT
    if length >= _HEADER_LIMIT or 8 + length > file_size:
      raise ValueError(f'its {file_size:,} bytes do not begin with a safetensors header')
    entries = files.parse_json(self._file.read(8, length))
    if not isinstance(entries, dict):
      raise ValueError('its header is not a JSON object')

    entries.pop('__metadata__', None)
    for name, entry in entries.items():
      if not _is_valid(entry):
        raise ValueError(f'its header has no valid entry for {name}')

    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]['data_offsets']):
      begin, stop = entry['data_offsets']
      if begin != end:
        raise ValueError(f'its header has {name} at byte {begin:,}, where the tensor before it ends at {end:,}')
      self.tensors[name] = (entry['dtype'], tuple(entry['shape']))
      self._first_byte[name] = 8 + length + begin
      end = stop
    if 8 + length + end != file_size:
      raise ValueError(f'it has {file_size:,} bytes and its header says {8 + length + end:,}')

  def read(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows `start` to `stop` of a tensor, into the contiguous `out` when one of its dtype is given.

    ValueError: when the file has become shorter since it was opened.
    """
    code, shape = self.tensors[name]
    if out is None:
      out = np.empty((stop - start, *shape[1:]), CODES[code])
    row_bytes = math.prod(shape[1:]) * CODES[code].itemsize
    offset = self._first_byte[name] + start * row_bytes
    buffer = memoryview(out.reshape(-1).view(np.uint8))
    if self._file.read_into(offset, buffer) < len(buffer):
      raise ValueError(f'it ended within {name}')
    return out

  def close(self) -> None:
    """Closes the file. Arrays that were read stay valid."""
    self._file.close()


def _is_valid(entry) -> bool:
  """Whether an entry of a header has a dtype, a shape, and a byte range of the size that they need."""
  if not isinstance(entry, dict) or not isinstance(entry.get('dtype'), str):
    return False
  if not _are_naturals(entry.get('shape')) or not _are_naturals(entry.get('data_offsets')):
    return False
  if len(entry['data_offsets']) != 2:
    return False
  begin, stop = entry['data_offsets']
  dtype = CODES.get(entry['dtype'])
  if dtype is None:  # its item size is not known here; `DirectoryWeights` refuses such dtypes by name
    return begin <= stop
  return stop - begin == math.prod(entry['shape']) * dtype.itemsize


def _are_naturals(values) -> bool:
  return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


class SafetensorsWriter:
  """One new file of the tensors in `specs`, [(name, shape, dtype)], which are then written in that order.

  The header comes first in the file, so all sizes must be known before the first tensor is written.
  """

  def __init__(self, path: files.AnyPath, specs: list[tuple[str, tuple[int, ...], np.dtype]]):
    codes = {dtype: code for code, dtype in CODES.items()}
    header: dict = {'__metadata__': {'format': 'pt'}}  # transformers refuses files without it
    end = 0
    for name, shape, dtype in specs:
      size = math.prod(shape) * dtype.itemsize
      header[name] = {'dtype': codes[dtype], 'shape': list(shape), 'data_offsets': [end, end + size]}
      end += size
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # the tensors begin at a multiple of 8, as the library writes them
    self._open = files.open_new(path)
    self._file = self._open.__enter__()
    self._file.write(struct.pack('<Q', len(text)) + text)

  def write(self, array: np.ndarray) -> None:
    """Writes the next tensor; its shape and dtype must be those in `specs`."""
    self._file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._open.__exit__(*error)
