"""pytorch_model.bin: every tensor as torch reads it, nothing run, and what is damaged refused."""

import collections
import os
import zipfile

import numpy as np
import pytest

from mathqwen import hf
from mathqwen.errors import UserError
from mathqwen.hf import torch_files
from mathqwen.hf.tensor_pickle import Unsafe
from mathqwen.hf.torch_files import TorchReader

torch = pytest.importorskip('torch', reason='torch, which writes these files, is not installed')

ROWS = 7


def tensors():
  base = torch.randn(ROWS, 6)
  return collections.OrderedDict(
    float32=torch.randn(ROWS, 5, 2),
    float16=torch.randn(ROWS, 5).half(),
    bfloat16=torch.randn(ROWS).bfloat16(),
    shared=base,
    view=base[2:5],
    columns=base[:, 1:3],
    transposed=torch.randn(4, ROWS).T,
    expanded=torch.randn(1, 3).expand(ROWS, 3),
    parameter=torch.nn.Parameter(torch.randn(ROWS, 2)),
    empty=torch.zeros(0, 3),
    one_row=torch.randn(ROWS, 3)[3:4],
  )


@pytest.mark.parametrize('is_zip', [True, False], ids=['zip', 'before zip'])
def test_every_range_of_rows_is_that_of_torch(is_zip, tmp_path):
  written = tensors()
  torch.save(written, tmp_path / 'x.bin', _use_new_zipfile_serialization=is_zip)
  reader = TorchReader(tmp_path / 'x.bin')
  assert list(reader.tensors) == list(written)
  for name, tensor in written.items():
    code, shape = reader.tensors[name]
    assert shape == tuple(tensor.shape), name
    for start, stop in ((0, len(tensor)), (len(tensor) // 3, len(tensor) // 2)):
      want = tensor[start:stop].detach().float().numpy()
      got = reader.read(name, start, stop)
      assert np.array_equal(got.astype(np.float32), want), name
      out = np.zeros((stop - start, int(np.prod(shape[1:]))), got.dtype)
      assert reader.read(name, start, stop, out) is out and np.array_equal(out.reshape(want.shape), got), name
  reader.close()


def test_dtypes_that_are_not_read_have_their_names(tmp_path):
  kinds = {'F64': torch.double, 'I64': torch.long, 'BOOL': torch.bool, 'U8': torch.uint8}
  torch.save({code: torch.ones(2).to(kind) for code, kind in kinds.items()}, tmp_path / 'x.bin')
  assert {name: code for name, (code, _) in TorchReader(tmp_path / 'x.bin').tensors.items()} == {k: k for k in kinds}


class Command:
  def __reduce__(self):
    return os.system, ('touch ran',)


@pytest.mark.parametrize('is_zip', [True, False], ids=['zip', 'before zip'])
@pytest.mark.parametrize(
  'saved, message',
  [
    ({'a': torch.ones(2), 'x': Command()}, r'asks for posix\.system, and nothing but plain tensors is made'),
    (torch.nn.Linear(2, 2), r'asks for torch\.nn\.modules\.linear\.Linear'),
    ({'a': torch.ones(2).to(torch.float8_e4m3fn)}, r'asks for torch\._utils\._rebuild_tensor_v3'),
    ({'a': torch.eye(2).to_sparse()}, r'asks for torch\._utils\._rebuild_sparse_tensor'),
    ({'a': {1, 2}}, r'asks for builtins\.set|asks for __builtin__\.set'),
    ({'a': torch.ones(2), 'step': 3}, "holds int under 'step', not a table of tensors alone: save the state_dict"),
    ({'state_dict': {'a': torch.ones(2)}}, "holds a table under 'state_dict'"),
    ({'a': torch.ones(2, dtype=torch.complex64).conj().imag}, 'a tensor with metadata|asks for'),
    ([torch.ones(2)], 'holds list, not a table of tensors: save the state_dict'),
    ({1: torch.ones(2)}, 'a table whose keys are no names'),
  ],
)
def test_only_tensors_are_read_and_nothing_is_run(saved, message, is_zip, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  torch.save(saved, 'x.bin', _use_new_zipfile_serialization=is_zip)
  with pytest.raises(Unsafe if message.startswith('asks') else ValueError, match=message):
    TorchReader(tmp_path / 'x.bin')
  assert not (tmp_path / 'ran').exists()


def zipped(path, pickle=None, compression=zipfile.ZIP_STORED, **members):
  """A file as torch writes it, of other members."""
  torch.save({'a': torch.ones(4, 2), 'b': torch.ones(3)}, path)
  with zipfile.ZipFile(path) as source:
    content = {name.partition('/')[2]: source.read(name) for name in source.namelist()}
  content |= {'data.pkl': content['data.pkl'] if pickle is None else pickle}
  content |= {name.replace('_', '/'): value for name, value in members.items()}
  with zipfile.ZipFile(path, 'w', compression) as target:
    for name, data in content.items():
      if data is not None:
        target.writestr(f'x/{name}', data)


def overlap(path):
  """Two entries of the list of members name the same bytes."""
  zipped(path)
  data = bytearray(path.read_bytes())
  entries = [i for i in range(len(data)) if data[i : i + 4] == b'PK\1\2']
  data[entries[-1] + 42 : entries[-1] + 46] = data[entries[0] + 42 : entries[0] + 46]
  path.write_bytes(data)


def change_bytes(at, new):
  def damage(path):
    zipped(path)
    data = bytearray(path.read_bytes())
    start = at(data)
    data[start : start + len(new)] = new
    path.write_bytes(data)

  return damage


def end(data):
  return data.index(b'PK\5\6')


def local_header_of_a_tensor(data):
  return data.index(b'x/data/0') - 30


def global_name(module, name):
  return b'\x80\x02c' + f'{module}\n{name}\n'.encode()


DEEP = b'\x80\x02)' + b'\x85' * 200_000 + b'.'
HOSTILE = {
  'half a file': (lambda path: (zipped(path), path.write_bytes(path.read_bytes()[:500])), 'do not end as a zip'),
  'nothing': (lambda path: path.write_bytes(b''), 'do not end as a zip'),
  'a bomb': (lambda path: zipped(path, data_0=bytes(10**7), compression=zipfile.ZIP_DEFLATED), 'is compressed'),
  'overlapping members': (overlap, 'overlaps with what follows'),
  'a member that is moved': (
    change_bytes(local_header_of_a_tensor, b'XX'),
    'do not have x/data/0 where its list of members',
  ),
  'a name that runs on': (change_bytes(lambda data: local_header_of_a_tensor(data) + 28, b'\xff\xff'), 'overlaps'),
  'a huge list': (change_bytes(lambda data: end(data) + 12, b'\xff\xff\xff\x7f'), 'its list of members has 2,147,4'),
  'another count': (change_bytes(lambda data: end(data) + 8, b'\1\0\1\0'), 'entries, not 1'),
  'large without sizes': (change_bytes(lambda data: end(data) + 16, b'\xff' * 4), 'have the end of a large zip'),
  'a storage that is too small': (lambda path: zipped(path, data_0=bytes(31)), 'the 32 bytes of a are 31'),
  'a storage that is not there': (lambda path: zipped(path, data_1=None), 'the 12 bytes of b are not there'),
  'no table': (lambda path: zipped(path, **{'data.pkl': None}), 'it has 0 members NAME/data.pkl'),
  'the other order of bytes': (lambda path: zipped(path, byteorder=b'big'), 'their bytes in the other order'),
  'half a pickle': (lambda path: zipped(path, b'\x80\x02}q\0'), 'pickle exhausted'),
  'an empty pickle': (lambda path: zipped(path, b''), 'pickle exhausted'),
  'an empty stack': (lambda path: zipped(path, b'\x80\x02R.'), 'its pickle is damaged'),
  'no marks': (lambda path: zipped(path, b'\x80\x02u.'), 'its pickle is damaged'),
  'text': (lambda path: zipped(path, b'hello'), 'its pickle is damaged'),
  'a deep tuple': (lambda path: zipped(path, DEEP), 'holds tuple, not a table'),
  'without end': (lambda path: zipped(path, b'\x80\x02' + b')0' * 10**6), 'instruction POP'),
  'many instructions': (lambda path: zipped(path, b'\x80\x02' + b')' * 500_100), 'too many instructions'),
  'a large memo': (lambda path: zipped(path, b'\x80\x02}r\xff\xff\xff\x7f.'), None),
  'eval': (lambda path: zipped(path, global_name('builtins', 'eval') + b'.'), r'asks for builtins\.eval'),
  'nested names': (lambda path: zipped(path, global_name('torch', 'os.system') + b'.'), r'asks for torch\.os\.system'),
  'a class as a function': (lambda path: zipped(path, global_name('torch', 'FloatStorage') + b')R.'), 'no function'),
  'an instance': (lambda path: zipped(path, b'\x80\x02(ios\nsystem\n.'), 'instruction INST'),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_damaged_and_hostile_files(case, tmp_path):
  make, message = HOSTILE[case]
  make(tmp_path / 'x.bin')
  if message is None:
    assert TorchReader(tmp_path / 'x.bin').tensors == {}
    return
  with pytest.raises(ValueError, match=message):
    reader = TorchReader(tmp_path / 'x.bin')
    reader.read('a', 0, 4)


def test_a_tensor_outside_of_its_storage(tmp_path):
  for field, value in ((b'K\4K\2\x86', b'K\4K\3\x86'), (b'K\2K\1\x86', b'K\3K\1\x86')):
    zipped(tmp_path / 'x.bin')
    with zipfile.ZipFile(tmp_path / 'x.bin') as file:
      pickle = file.read('x/data.pkl')
    assert pickle.count(field) == 1
    zipped(tmp_path / 'x.bin', pickle.replace(field, value))
    with pytest.raises(ValueError, match=r'needs \d+ elements and its storage has 8'):
      TorchReader(tmp_path / 'x.bin')


def test_elements_that_are_spread_far(tmp_path):
  torch.save({'a': torch.zeros(4, 2000)[:, :2]}, tmp_path / 'x.bin')
  with pytest.raises(ValueError, match='the 8 elements of a are spread over 6,002'):
    TorchReader(tmp_path / 'x.bin')


def test_a_large_zip(tmp_path):
  """The fields of more than 4 GiB, on a sparse file."""
  torch.save({'a': torch.ones(4, 2)}, tmp_path / 'x.bin')
  with zipfile.ZipFile(tmp_path / 'x.bin') as source:
    content = {name: source.read(name) for name in source.namelist()}
  with open(tmp_path / 'large.bin', 'wb') as file, zipfile.ZipFile(file, 'w') as target:
    file.seek(5 * 2**30)
    for name, data in content.items():
      target.writestr(name, data)
  reader = TorchReader(tmp_path / 'large.bin')
  assert np.array_equal(reader.read('a', 1, 3), np.ones((2, 2), np.float32))


def test_a_file_of_before_zip_that_is_cut_off(tmp_path):
  torch.save(tensors(), tmp_path / 'x.bin', _use_new_zipfile_serialization=False)
  whole = (tmp_path / 'x.bin').read_bytes()
  for size in (len(whole) - 1, len(whole) // 2, 40):
    (tmp_path / 'x.bin').write_bytes(whole[:size])
    with pytest.raises(ValueError):
      TorchReader(tmp_path / 'x.bin')


LAUGHS = b''.join([b'K\1\x85', *[b'q\0h\0\x86'] * 60])  # ((x, x), (x, x)), ... 2**60 of them if written out
FOUR = b'\x80\x02M\xe9\x03.' + b'\x80\x02}(X\r\0\0\0little_endian\x88u.' + b'\x80\x02}.'


@pytest.mark.parametrize('content', [LAUGHS + b'.', FOUR + b'\x80\x02](' + LAUGHS + b'e.', FOUR + b'\x80\x02]a.'])
def test_values_that_must_not_be_printed(content, tmp_path):
  (tmp_path / 'x.bin').write_bytes(torch_files._BEFORE_ZIP + content + b'N.' * 4)
  with pytest.raises(ValueError, match='unknown version|list of storages|damaged'):
    TorchReader(tmp_path / 'x.bin')


def test_names_of_any_length_and_number_are_one_line(directory):
  _, folder = directory(lambda state, folder: in_one(state | {'x' * 1000: torch.ones(1)}, folder))
  with pytest.raises(UserError, match='it has a name of 1,000 characters'):
    hf.DirectoryWeights(str(folder))
  in_one({f'{i:x}z' * 9: torch.ones(1) for i in range(500)}, folder)
  with pytest.raises(UserError, match='; and 4.. more') as error:
    hf.DirectoryWeights(str(folder))
  assert len(str(error.value)) < 4000


# --- directories ---


@pytest.fixture
def directory(torch_model, tmp_path):
  """directory(save) -> (the model, a directory with the files that save(state_dict, directory) writes)."""

  def make(save, family='llama', **changes):
    model = torch_model(family, **changes)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path / 'bin')
    save(model.state_dict(), tmp_path / 'bin')
    return model, tmp_path / 'bin'

  return make


def in_one(state, folder):
  torch.save(state, folder / 'pytorch_model.bin')


def wrapped(state, folder):
  state = {f'_forward_module.module.{name}': tensor for name, tensor in state.items()}
  state['_forward_module.module.model.layers.0.self_attn.rotary_emb.inv_freq'] = torch.ones(4)
  torch.save(state, folder / 'pytorch_model.bin')


@pytest.mark.parametrize('how', ['in one', 'in shards', 'wrapped'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_of_a_directory(how, dtype, directory, save_in_shards, tmp_path):
  save = {'in one': in_one, 'in shards': save_in_shards, 'wrapped': wrapped}[how]
  model, folder = directory(lambda state, folder: save({n: t.to(dtype) for n, t in state.items()}, folder))
  model.to(dtype).save_pretrained(tmp_path / 'safe')
  ours, theirs = hf.DirectoryWeights(str(folder)), hf.DirectoryWeights(str(tmp_path / 'safe'))
  for path in theirs.paths():
    assert ours.dtype(path) == theirs.dtype(path)
    assert np.array_equal(ours.read(path), theirs.read(path)), path


def test_safetensors_win(directory):
  model, folder = directory(in_one)
  model.save_pretrained(folder)
  (folder / 'pytorch_model.bin').write_bytes(b'')
  (folder / 'pytorch_model.bin.index.json').write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
  hf.DirectoryWeights(str(folder)).close()


@pytest.mark.parametrize('tied', [True, False])
def test_a_stored_head(tied, directory):
  """A state_dict has the head of a tied model too, in the same storage."""
  model, folder = directory(in_one, family='qwen2', tie_word_embeddings=True)
  state = torch.load(folder / 'pytorch_model.bin', weights_only=True)
  assert 'lm_head.weight' in state
  if not tied:
    state['lm_head.weight'] = state['lm_head.weight'] + 1
    torch.save(state, folder / 'pytorch_model.bin')
    with pytest.raises(UserError, match='lm_head.weight is not the embedding'):
      hf.load_params(str(folder))
  else:
    hf.load_params(str(folder))


def test_a_directory_of_another_format(directory):
  _, folder = directory(lambda state, folder: (folder / 'model.gguf').write_bytes(b'GGUF'))
  with pytest.raises(UserError, match=r'model.safetensors or pytorch_model.bin can be read, and model.gguf is of ano'):
    hf.DirectoryWeights(str(folder))


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n'
# What is there instead of a model that could be read -> what the message says of it.
INSTEAD = {
  'model.safetensors': (LFS, 'model.safetensors is a pointer of Git LFS, not the file itself: run git lfs pull'),
  'pytorch_model.bin': (b'<!DOCTYPE html><html>...', 'pytorch_model.bin is a web page, not the file itself'),
  'config.json': (b'Entry not found', "config.json holds the answer of the hub 'entry not found', not the file itself"),
  'global_step100': (b'', 'global_step100 is what DeepSpeed has saved in parts: .* zero_to_fp32.py'),
  'pytorch_model_fsdp_0': (b'', 'pytorch_model_fsdp_0 is what FSDP has saved in parts: .* accelerate merge-weights'),
}


@pytest.mark.parametrize('file', INSTEAD)
def test_what_is_there_instead_of_a_model_is_named(file, directory):
  content, message = INSTEAD[file]
  _, folder = directory(lambda state, folder: (folder / file).write_bytes(content))
  with pytest.raises(UserError, match=message) as error:
    hf.DirectoryWeights(str(folder))
  assert 'half' not in str(error.value)


def test_a_checkpoint_with_more_than_its_weights(directory):
  """Its remedy is not to fetch it again."""
  _, folder = directory(lambda state, folder: torch.save({'model': state, 'step': 3}, folder / 'pytorch_model.bin'))
  with pytest.raises(UserError, match=r"pytorch_model.bin holds a table under 'model', .*: save the sta") as error:
    hf.DirectoryWeights(str(folder))
  assert 'etch it' not in str(error.value)


def test_a_dtype_that_is_not_read(directory):
  _, folder = directory(lambda state, folder: in_one({n: t.double() for n, t in state.items()}, folder))
  with pytest.raises(UserError, match='model.norm.weight is F64: F32, BF16, F16 are read'):
    hf.DirectoryWeights(str(folder))
