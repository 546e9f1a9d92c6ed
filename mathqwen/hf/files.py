"""safetensors files, read and written a tensor at a time.

The safetensors library maps a file into memory, where its pages count as resident, and writes only what is whole in
memory; a model larger than memory needs neither. The format: 8 bytes of header length, a JSON header, the tensors.
"""

import json
import math
import os
import pathlib
import struct

import ml_dtypes
import numpy as np

from mathqwen.errors import UserError

DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float16': np.dtype(np.float16)}
CODES = {'F32': DTYPES['float32'], 'BF16': DTYPES['bfloat16'], 'F16': DTYPES['float16']}
# Least bit pattern that is infinite or NaN: as a signed number for those above 0, as an unsigned one for those below.
_NOT_FINITE = {
  'float32': (np.int32, np.uint32, 0x7F800000),
  'bfloat16': (np.int16, np.uint16, 0x7F80),
  'float16': (np.int16, np.uint16, 0x7C00),
}
_HEADER_LIMIT = 100_000_000  # bytes, as in the library
_PIECE = 1 << 20  # elements looked at together: they stay in the cache


def read_json(file: pathlib.Path) -> dict:
  try:
    values = json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise UserError(f'{file} is not JSON ({error}): is it a half-written file?') from None
  if not isinstance(values, dict):
    raise UserError(f'{file} holds {type(values).__name__}, wants one JSON object: is this a Hugging Face directory?')
  return values


def is_finite(array: np.ndarray) -> bool:
  """Whether a contiguous array holds neither infinities nor NaNs."""
  signed, unsigned, bits = _NOT_FINITE[array.dtype.name]
  flat = array.reshape(-1)
  sign = 1 << (8 * array.itemsize - 1)
  for start in range(0, flat.size, _PIECE):
    piece = flat[start : start + _PIECE]
    if piece.view(signed).max() >= bits or piece.view(unsigned).max() >= sign + bits:
      return False
  return True


def _is_sound(entry) -> bool:
  """Whether a header's entry has a dtype, a shape, and the place of as many bytes."""
  natural = lambda values: isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)
  if not isinstance(entry, dict) or not natural(entry.get('shape')) or not natural(entry.get('data_offsets')):
    return False
  if not isinstance(entry.get('dtype'), str) or len(entry['data_offsets']) != 2:
    return False
  begin, stop = entry['data_offsets']
  known = CODES.get(entry['dtype'])  # of other dtypes the size is not known, and they are refused by name
  return begin <= stop if known is None else stop - begin == math.prod(entry['shape']) * known.itemsize


class Reader:
  """One file. `tensors`: name -> (dtype code, shape). ValueError if the file is not whole."""

  def __init__(self, path: pathlib.Path):
    self._file = path.open('rb', buffering=0)
    try:
      self.tensors, self._places = self._header(os.fstat(self._file.fileno()).st_size)
    except BaseException:
      self._file.close()
      raise

  def _header(self, size):
    head = self._file.read(8)
    length = struct.unpack('<Q', head)[0] if len(head) == 8 else _HEADER_LIMIT
    if length >= _HEADER_LIMIT or 8 + length > size:
      raise ValueError(f'{size:,} bytes are no safetensors header')
    try:
      entries = json.loads(self._file.read(length))
    except RecursionError:
      raise ValueError('its header is nested too deeply') from None
    if not isinstance(entries, dict):
      raise ValueError('its header is no JSON object')
    entries.pop('__metadata__', None)
    for name, entry in entries.items():
      if not _is_sound(entry):
        raise ValueError(f'its header has no sound entry for {name}')
    tensors, places, end = {}, {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]['data_offsets']):
      begin, stop = entry['data_offsets']
      if begin != end:
        raise ValueError(f'its header has {name} at byte {begin:,}, where the tensor before it ends at {end:,}')
      tensors[name], places[name] = (entry['dtype'], tuple(entry['shape'])), 8 + length + begin
      end = stop
    if 8 + length + end != size:
      raise ValueError(f'it has {size:,} bytes and its header says {8 + length + end:,}')
    return tensors, places

  def read(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows `start` to `stop` of a tensor, into the contiguous `out` if one of its dtype is given."""
    code, shape = self.tensors[name]
    row = math.prod(shape[1:])
    if out is None:
      out = np.empty((stop - start, *shape[1:]), CODES[code])
    into, offset = memoryview(out.reshape(-1).view(np.uint8)), self._places[name] + start * row * CODES[code].itemsize
    while into:
      done = os.preadv(self._file.fileno(), [into[: 1 << 30]], offset)
      if done == 0:
        raise ValueError(f'it ended within {name}')
      into, offset = into[done:], offset + done
    return out

  def close(self):
    self._file.close()


class Writer:
  """One file of the tensors in `specs`, [(name, shape, dtype)], which are then written in that order."""

  def __init__(self, path, specs: list[tuple[str, tuple[int, ...], np.dtype]]):
    codes = {dtype: code for code, dtype in CODES.items()}
    header: dict = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name, shape, dtype in specs:
      size = math.prod(shape) * dtype.itemsize
      header[name] = {'dtype': codes[dtype], 'shape': list(shape), 'data_offsets': [end, end + size]}
      end += size
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # tensors begin at a multiple of 8
    self._file = path.open('wb')
    self._file.write(struct.pack('<Q', len(text)) + text)

  def write(self, array: np.ndarray):
    self._file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))

  def close(self):
    self._file.close()
