"""Checksums are the same however they are computed, and every change of an element shows."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mathqwen.storage import checksums

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint8, bool)


@pytest.mark.parametrize('dtype', DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_devices_and_host_agree(dtype):
  """On the devices whole and in blocks, and in NumPy in pieces."""
  rng = np.random.default_rng(0)
  shapes = [(3, 5, 7), (2, checksums._BLOCK + 3), (checksums._PIECE + 5,), (1,), (0,)]
  arrays = [np.asarray(3 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
  expected = [checksums.of_array(array)['sum'] for array in arrays]
  for in_blocks in (True, False):
    finite, sums = checksums._examine_arrays([jnp.asarray(array) for array in arrays], in_blocks)
    assert finite and list(map(int, sums)) == expected
  _, described = checksums.examine({'a': {'b': jnp.asarray(arrays[0])}})
  assert described == {'a/b': {'dtype': np.dtype(dtype).name, 'shape': [3, 5, 7], 'sum': expected[0]}}


def test_every_bit_counts():
  array = np.random.default_rng(1).standard_normal((4, 6), dtype=np.float32)
  whole = checksums.of_array(array)
  for element in range(array.size):
    for bit in range(32):
      changed = array.copy()
      changed.view(np.uint32).reshape(-1)[element] ^= np.uint32(1 << bit)
      assert checksums.of_array(changed) != whole
  # Neither does what leaves a plain sum as it was
  assert checksums.of_array(array[::-1]) != whole
  assert checksums.of_array(-array) != whole
  assert checksums.of_array(array.reshape(6, 4)) != whole


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found(value):
  for position in (0, checksums._BLOCK, checksums._BLOCK + 4):
    array = np.zeros(checksums._BLOCK + 5, np.float32)
    array[position] = value
    for in_blocks in (True, False):
      assert not checksums._examine_arrays([jnp.asarray(array)], in_blocks)[0]
  assert not checksums.examine({'x': jnp.asarray(array), 'n': jnp.arange(3)})[0]


def test_other_sizes_of_elements_have_none():
  with pytest.raises(TypeError, match='no checksum for float64'):
    checksums.of_array(np.zeros(3))


def test_a_changed_record_is_damaged(tmp_path):
  record = checksums.record({'params/x': {'sum': 1}}, {'data': {'position': 3}}, {'tokenizer.json': 'ab'})
  (tmp_path / 'checksums').mkdir()
  file = tmp_path / 'checksums' / 'metadata'
  text = checksums.json.dumps(record)
  file.write_text(text)
  assert checksums.read(tmp_path) == record['content']
  for old, new in (('"sum": 1', '"sum": 2'), ('tokenizer"', 'tokenizes"'), ('"ab"', '"ac"'), ('content', 'contend')):
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match='its checksums differ from what was written'):
      checksums.read(tmp_path)
