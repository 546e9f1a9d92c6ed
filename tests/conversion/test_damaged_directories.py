"""Hugging Face directories that cannot be converted, and numbers that a dtype does not hold."""

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from change_tensor import UP, change

from mathqwen import hf
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.hf import tensor_files

pytestmark = pytest.mark.usefixtures('compiled_once')


def cut(directory):
  path = directory / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-1000])


def lose(directory):
  index = {'weight_map': {'model.norm.weight': 'model-00002-of-00002.safetensors'}}
  (directory / 'model.safetensors.index.json').write_text(json.dumps(index))


def one_nan(array):
  array = array.copy()
  array.reshape(-1)[-1] = np.nan
  return array


def another_config(directory):
  values = json.loads((directory / 'config.json').read_text())
  (directory / 'config.json').write_text(json.dumps(values | {'intermediate_size': 96, 'num_hidden_layers': 3}))


def huge_header(directory):
  (directory / 'model.safetensors').write_bytes(struct.pack('<Q', 2**60) + b'{}')


def overlapping(directory):
  content = (directory / 'model.safetensors').read_bytes()
  (length,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8 : 8 + length])
  header['model.norm.weight']['data_offsets'][1] += 4
  text = json.dumps(header, separators=(',', ':')).encode().ljust(length)
  assert len(text) == length
  (directory / 'model.safetensors').write_bytes(content[:8] + text + content[8 + length :])


def header_of(directory, edit):
  content = (directory / 'model.safetensors').read_bytes()
  (length,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8 : 8 + length])
  text = json.dumps(edit(header)).encode()
  (directory / 'model.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + content[8 + length :])


def same_bytes_twice(directory):
  def edit(header):
    header['model.layers.0.input_layernorm.weight']['data_offsets'] = header['model.norm.weight']['data_offsets']
    return header

  header_of(directory, edit)


def no_object(directory):
  header_of(directory, lambda header: [1])


def both_kinds(directory):
  lose(directory)
  shutil.copy(directory / 'model.safetensors', directory / 'model-00002-of-00002.safetensors')


def in_two_files(directory):
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  (directory / 'model.safetensors').unlink()
  safetensors.numpy.save_file(tensors, directory / 'a.safetensors')
  safetensors.numpy.save_file({'model.norm.weight': tensors['model.norm.weight']}, directory / 'b.safetensors')
  index = dict.fromkeys(tensors, 'a.safetensors') | {'model.norm.weight': 'b.safetensors'}
  (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))


def tied(directory):
  values = json.loads((directory / 'config.json').read_text())
  (directory / 'config.json').write_text(json.dumps(values | {'tie_word_embeddings': True}))


def long_name(directory):
  index = {'weight_map': {'model.norm.weight': 'x' * 300}}
  (directory / 'model.safetensors.index.json').write_text(json.dumps(index))


DAMAGES = {
  'truncated': (cut, 'model.safetensors cannot be read as safetensors'),
  'shard not there': (lose, 'model-00002-of-00002.safetensors is missing: the download is not complete'),
  'NaN': (change(UP, one_nan), f'{UP} holds NaN or infinity'),
  'infinity': (change('model.norm.weight', lambda x: x - np.inf), 'model.norm.weight holds NaN or infinity'),
  'dtype': (change(UP, lambda x: x.astype(np.float64)), f'{UP} is F64: F32, BF16, F16 are read'),
  'whole numbers': (change(UP, lambda x: x.astype(np.int8)), f'{UP} is I8'),
  'config': (another_config, 'model.layers.0-1.mlp.up_proj.weight has shape (80, 48), the config says (96, 48)'),
  'header': (huge_header, 'do not begin with a safetensors header'),
  'entry': (overlapping, 'no valid entry for model.norm.weight'),
  'places': (same_bytes_twice, 'where the tensor before it ends'),
  'no object': (no_object, 'its header is not a JSON object'),
  'both kinds': (both_kinds, 'model.safetensors is there beside model.safetensors.index.json'),
  'two files': (in_two_files, 'model.norm.weight is in two files'),
  'not tied': (tied, 'lm_head.weight is not the embedding, and config.json has tie_word_embeddings'),
  'long name': (long_name, 'is not the name of a file in the directory of the index'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_directories(name, directory, tmp_path, fails):
  damage, message = DAMAGES[name]
  damage(directory)
  for way in ('from-hf', 'to-hf'):
    assert message in fails('convert', way, directory, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['hf']  # no output, and nothing beside it


class Command:
  def __reduce__(self):
    return os.system, ('touch ran',)


def test_pickles_are_not_run(directory, tmp_path, fails, monkeypatch):
  torch = pytest.importorskip('torch')
  monkeypatch.chdir(tmp_path)
  (directory / 'model.safetensors').unlink()
  torch.save({'model.norm.weight': torch.ones(48), 'x': Command()}, directory / 'pytorch_model.bin')
  message = fails('convert', 'from-hf', directory, tmp_path / 'out')
  assert 'pytorch_model.bin holds more than tensors (its pickle asks for posix.system' in message
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


@pytest.mark.parametrize('dtype', hf.DTYPES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, -np.nan])
def test_is_finite(bad, dtype):
  largest = ml_dtypes.finfo(hf.DTYPES[dtype]).max
  array = np.array([0.0, -0.0, largest, -largest, 1.0], hf.DTYPES[dtype])
  assert tensor_files.is_finite(array)
  for place in range(5):
    broken = array.copy()
    broken[place] = bad
    assert not tensor_files.is_finite(broken)


@pytest.mark.parametrize('check', [(), ('--no-check',)])
def test_numbers_that_float16_does_not_hold(check, directory, tmp_path, fails):
  change('model.norm.weight', lambda x: x * 1e6)(directory)
  message = fails('convert', 'to-hf', directory, tmp_path / 'out', '--dtype', 'float16', *check)
  assert message.startswith('model.norm.weight holds NaN or infinity as float16, whose largest number is ')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_layers_of_two_dtypes_are_held_by_one(directory, tmp_path):
  change(UP, lambda x: x.astype(ml_dtypes.bfloat16))(directory)
  change(UP.replace('1', '0'), lambda x: x.astype(np.float16))(directory)
  convert_from_hf(str(directory), str(tmp_path / 'ours'))
  convert_to_hf(str(tmp_path / 'ours'), str(tmp_path / 'out'))
  before, after = (safetensors.numpy.load_file(d / 'model.safetensors') for d in (directory, tmp_path / 'out'))
  assert after[UP].dtype == np.float32 and (after[UP] == before[UP].astype(np.float32)).all()
