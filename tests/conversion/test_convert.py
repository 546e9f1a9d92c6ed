"""The commands, on directories that transformers wrote and on damaged ones."""

import json
import pathlib
import shutil
import struct
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import mathqwen
from mathqwen import hf
from mathqwen.cli import main
from mathqwen.conversion import check as conversion_check
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.hf import hub, tensor_files
from mathqwen.storage import checkpoint
from mathqwen.text.testing import tiny_bpe_tokenizer

VOCAB = 411
pytestmark = pytest.mark.usefixtures('compiled_once')


def fails(capsys, *command) -> str:
  """The one line of a command that ends with status 2."""
  capsys.readouterr()
  assert main([str(word) for word in command]) == 2
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('mathqwen: ')]
  assert len(lines) == 1
  return lines[0].removeprefix('mathqwen: ')


@pytest.fixture(scope='module')
def exported(tmp_path_factory, tiny_config, random_params):
  folder = tmp_path_factory.mktemp('exported') / 'hf'
  cfg = tiny_config('qwen2', vocab_size=VOCAB, num_hidden_layers=2)
  hf.save(str(folder), random_params(cfg), cfg, tiny_bpe_tokenizer(), 'float32', system_prompt='Be brief.')
  return folder


@pytest.fixture
def directory(exported, tmp_path):
  """A copy of `exported` to damage."""
  shutil.copytree(exported, tmp_path / 'hf')
  return tmp_path / 'hf'


@pytest.mark.parametrize(
  'family, tied, dtype', [('qwen2', True, 'bfloat16'), ('qwen3', False, 'float16'), ('llama', False, 'float32')]
)
def test_there_and_back_is_bit_equal(family, tied, dtype, torch_model, tmp_path, capsys):
  """From what transformers wrote, in several shards; norms of odd sizes, heads that do not fill the width."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  import safetensors.torch

  source = tmp_path / 'theirs'
  model = torch_model(family, vocab_size=97, tie_word_embeddings=tied).to(getattr(torch, dtype))
  model.save_pretrained(source, max_shard_size='40KB')
  assert main(['convert', 'from-hf', str(source), str(tmp_path / 'ours')]) == 0
  assert main(['convert', 'to-hf', str(tmp_path / 'ours'), str(tmp_path / 'out')]) == 0
  assert capsys.readouterr().out.count('the same logits as its source to the bit') == 2
  before = {}
  assert len(list(source.glob('*.safetensors'))) > 2
  for file in source.glob('*.safetensors'):
    before |= safetensors.torch.load_file(file)
  after = safetensors.torch.load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(before) == set(after)
  for name, tensor in before.items():
    assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
  loaded = mathqwen.load(tmp_path / 'ours', dtype='float32')
  tokens = np.arange(1, 24, dtype=np.int32)[None]
  again = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
  with torch.no_grad():
    want = again(torch.tensor(tokens).long()).logits.numpy()
  assert np.abs(np.asarray(loaded.logits(tokens)) - want).max() < 1e-4
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['torch_dtype'] == dtype


def test_weights_keep_their_own_dtypes(directory, tmp_path):
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  for name, tensor in tensors.items():
    tensors[name] = tensor if 'norm' in name else tensor.astype(ml_dtypes.bfloat16)
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
  convert_from_hf(str(directory), str(tmp_path / 'ours'))
  convert_to_hf(str(tmp_path / 'ours'), str(tmp_path / 'out'))
  after = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert {name: x.dtype for name, x in tensors.items()} == {name: x.dtype for name, x in after.items()}
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'


def test_a_converted_model_is_a_model(exported, tmp_path, capsys, tiny, monkeypatch):
  ours = tmp_path / 'ours'
  monkeypatch.chdir(tmp_path)
  assert main(['convert', 'from-hf', str(exported), 'ours', '--json']) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert said['check']['max_logit_difference'] == 0 and said['check']['greedy_agreement'] == 1
  assert sorted(path.name for path in ours.iterdir()) == ['checkpoints', 'experiment.json', 'tokenizer']
  model, source = mathqwen.load(ours, dtype='float32'), mathqwen.load(exported, dtype='float32')
  assert model.system_prompt == 'Be brief.' and model.config == source.config
  assert model.generate(['2+2='], max_new_tokens=8) == source.generate(['2+2='], max_new_tokens=8)
  # It starts a run, and is not one.
  settings = ['--set', 'train.steps=2', '--set', 'optim.warmup_steps=1', '--set', 'data.eval_examples=4']
  assert main(['train', tiny.config, '--init', str(ours), '--workdir', str(tmp_path / 'run'), *settings]) == 0
  said = fails(capsys, 'train', tiny.config, '--workdir', ours)
  assert said == f'{ours} holds a converted model: train from it with --init {ours} and another --workdir'
  assert fails(capsys, 'convert', 'from-hf', ours, tmp_path / 'x').endswith('give a Hugging Face directory')


def test_a_run_is_exported_in_bfloat16_with_its_card(trained, tiny, tmp_path, capsys):
  assert main(['evaluate', str(trained), '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir,
               '--out', str(tmp_path / 'scores'), '--max-new-tokens', '8']) == 0  # fmt: skip
  assert main(['convert', 'to-hf', str(trained), str(tmp_path / 'out'), '--scores', str(tmp_path / 'scores')]) == 0
  assert 'bfloat16; the same logits as its source to the bit' in capsys.readouterr().out
  card = (tmp_path / 'out' / 'README.md').read_text()
  scores = json.loads((tmp_path / 'scores' / 'arithmetic' / 'scores.json').read_text())
  assert str(tmp_path.parent) not in card.split('## Scores')[0] and '| `data.sources` | train.jsonl |' in card
  assert '20 steps from random weights' in card and '| `optim.learning_rate` | 0.003 |' in card
  assert f'{100 * scores["accuracy"]:.1f}' in card.split('## Scores')[1] and '(n = 8)' in card
  tensors = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert {x.dtype for x in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_check_measures_the_difference(exported, directory, tmp_path, capsys):
  """Against softmax by hand, on logits that the two models give to the same batch."""
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  tensors['model.norm.weight'] = tensors['model.norm.weight'] * 1.1
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
  assert main(['convert', 'check', str(exported), str(directory), '--json']) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  a, b = mathqwen.load(exported, dtype='float32'), mathqwen.load(directory, dtype='float32')
  p_logits, q_logits = [], []
  for ids in a.tokenizer.encode_batch(conversion_check.SAMPLE):
    for model, found in ((a, p_logits), (b, q_logits)):
      found.append(np.asarray(model.logits([ids[: conversion_check.POSITIONS]]), np.float64)[0])
  p_logits, q_logits = np.concatenate(p_logits), np.concatenate(q_logits)
  p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (p_logits, q_logits))
  assert said['positions'] == len(p)
  assert said['max_logit_difference'] == pytest.approx(np.abs(p_logits - q_logits).max(), rel=1e-3)
  assert said['kl_divergence'] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-3)
  assert said['greedy_agreement'] == np.mean(p.argmax(-1) == q.argmax(-1))
  assert main(['convert', 'check', str(exported), str(directory), '--tolerance', '100']) == 0
  assert 'more than --tolerance 0.01' in fails(capsys, 'convert', 'check', exported, directory, '--tolerance', '0.01')


def test_an_export_that_differs_is_not_kept(exported, tmp_path, monkeypatch, capsys):
  write = tensor_files.SafetensorsWriter.write

  def flip(self, array):
    array = array.copy()
    array.reshape(-1)[0] += 1
    write(self, array)

  monkeypatch.setattr(tensor_files.SafetensorsWriter, 'write', flip)
  said = fails(capsys, 'convert', 'to-hf', exported, tmp_path / 'out')
  assert 'differs from' in said and 'nothing is kept' in said
  assert list(tmp_path.iterdir()) == []
  assert main(['convert', 'to-hf', str(exported), str(tmp_path / 'out'), '--no-check']) == 0
  assert 'not compared with its source' in capsys.readouterr().out


def cut(directory):
  path = directory / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-1000])


def lose(directory):
  index = {'weight_map': {'model.norm.weight': 'model-00002-of-00002.safetensors'}}
  (directory / 'model.safetensors.index.json').write_text(json.dumps(index))


def change(name, make):
  def damage(directory):
    tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
    tensors[name] = make(tensors[name])
    safetensors.numpy.save_file(tensors, directory / 'model.safetensors')

  return damage


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


UP = 'model.layers.1.mlp.up_proj.weight'
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
  'both kinds': (both_kinds, 'model.safetensors stands beside model.safetensors.index.json'),
  'two files': (in_two_files, 'model.norm.weight is in two files'),
  'not tied': (tied, 'lm_head.weight is not the embedding, and config.json has tie_word_embeddings'),
  'long name': (long_name, 'is not the name of a file beside the index'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_directories(name, directory, tmp_path, capsys):
  damage, message = DAMAGES[name]
  damage(directory)
  for way in ('from-hf', 'to-hf'):
    assert message in fails(capsys, 'convert', way, directory, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['hf']  # no output, and nothing beside it


def test_pickles_are_not_read(directory, tmp_path, capsys):
  (directory / 'model.safetensors').rename(directory / 'pytorch_model.bin')
  assert 'only safetensors are read, not pickled .bin files' in fails(
    capsys, 'convert', 'from-hf', directory, tmp_path / 'out'
  )


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


def test_no_space_is_said_before_writing(exported, tmp_path, capsys, monkeypatch):
  import collections

  monkeypatch.setattr(shutil, 'disk_usage', lambda _: collections.namedtuple('U', 'total used free')(9, 9, 1000))
  for way in ('from-hf', 'to-hf'):
    assert 'MiB are to be written and the disk has 0.0 MiB' in fails(capsys, 'convert', way, exported, tmp_path / 'out')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('way', ['from-hf', 'to-hf'])
def test_targets_that_are_refused(way, exported, tmp_path, capsys):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('x')
  assert fails(capsys, 'convert', way, exported, tmp_path / 'file').endswith('is a file: name a new directory')
  assert fails(capsys, 'convert', way, exported, tmp_path / 'full').endswith('is not empty: name a new directory')
  assert fails(capsys, 'convert', way, tmp_path / 'none', tmp_path / 'out').startswith('no model at ')
  assert 'the name' not in fails(capsys, 'convert', way, tmp_path / 'full', tmp_path / 'out')


def test_names_that_no_directory_can_have(exported, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
  for target, said in {
    '.': "'.' is not the name of a new directory",
    '': 'target is empty; give a value',
    'link': 'link is a link: name the directory itself',
    's3://bucket/x': 'name a local directory, or one on gs://',
  }.items():
    for way in ('from-hf', 'to-hf'):
      assert said in fails(capsys, 'convert', way, exported, target)


def test_what_a_killed_process_left_is_swept(exported, tmp_path):
  done = subprocess.Popen(['true'])
  done.wait()
  (tmp_path / f'.out.{done.pid}').mkdir()
  (tmp_path / f'.out.{done.pid}' / 'model.safetensors').write_text('half')
  convert_to_hf(str(exported), str(tmp_path / 'out'), compare=False)
  assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('check', [(), ('--no-check',)])
def test_numbers_that_float16_does_not_hold(check, directory, tmp_path, capsys):
  change('model.norm.weight', lambda x: x * 1e6)(directory)
  said = fails(capsys, 'convert', 'to-hf', directory, tmp_path / 'out', '--dtype', 'float16', *check)
  assert said.startswith('model.norm.weight holds NaN or infinity as float16, whose largest number is ')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_layers_of_two_dtypes_are_held_by_one(directory, tmp_path):
  change(UP, lambda x: x.astype(ml_dtypes.bfloat16))(directory)
  change(UP.replace('1', '0'), lambda x: x.astype(np.float16))(directory)
  convert_from_hf(str(directory), str(tmp_path / 'ours'))
  convert_to_hf(str(tmp_path / 'ours'), str(tmp_path / 'out'))
  before, after = (safetensors.numpy.load_file(d / 'model.safetensors') for d in (directory, tmp_path / 'out'))
  assert after[UP].dtype == np.float32 and (after[UP] == before[UP].astype(np.float32)).all()


def test_layouts_that_are_refused(exported, tmp_path, capsys):
  said = fails(capsys, 'convert', 'to-hf', exported, tmp_path / 'out', '--layout', 'qwen3')
  assert said == 'layout qwen3 cannot hold this model (qkv_bias=True, qk_norm=False): leave --layout out for qwen2'
  assert 'is not one of qwen1, qwen2' in fails(capsys, 'convert', 'to-hf', exported, tmp_path / 'out', '--layout', 'x')


def test_names_of_the_hub(exported, tmp_path, monkeypatch, capsys):
  import huggingface_hub

  asked = []

  def give(name, allow_patterns):
    asked.append((name, allow_patterns))
    return str(exported)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', give)
  (tmp_path / 'runs').mkdir()
  assert hub.name_of('runs/gsm8k') is None  # misspelt, most likely
  assert hub.name_of('Qwen/Qwen2.5-0.5B') == hub.name_of('hf://Qwen/Qwen2.5-0.5B') == 'Qwen/Qwen2.5-0.5B'
  assert hub.name_of('/Qwen/x') is hub.name_of('../x') is hub.name_of('a/b/c') is hub.name_of('model') is None
  for name in ('Qwen/Qwen2.5-0.5B', 'hf://Qwen/Qwen2.5-0.5B'):
    assert mathqwen.load(name).config == hf.read_config(str(exported))
  assert [name for name, _ in asked] == ['Qwen/Qwen2.5-0.5B'] * 2
  assert not any('.py' in pattern or '.bin' in pattern for pattern in asked[0][1])
  assert fails(capsys, 'generate', 'hf://Qwen', '1+1=').endswith('write hf://ORGANISATION/NAME')


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  said = fails(capsys, 'generate', 'Qwen/Qwen2.5-0.5B', '1+1=')
  assert said.startswith('no directory Qwen/Qwen2.5-0.5B, and the Hugging Face hub did not give it')


def test_without_the_hub_library(monkeypatch, tmp_path):
  import sys

  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match=r"pip install 'mathqwen\[hf\]' first"):
    mathqwen.load('Qwen/Qwen2.5-0.5B')


def test_a_killed_conversion_leaves_no_directory_that_looks_whole(exported, tmp_path, monkeypatch):
  """What a kill without cleaning up would leave, looked at after the last write."""
  seen = []
  rename = pathlib.Path.rename

  def look(self, target):
    if self.name.startswith('.out.'):
      seen.append(sorted(path.name for path in tmp_path.iterdir()))
      with pytest.raises(UserError, match='no model at|holds neither'):
        mathqwen.load(tmp_path / 'out')
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, 'rename', look)
  convert_from_hf(str(exported), str(tmp_path / 'out'), compare=False)
  assert len(seen) == 1 and len(seen[0]) == 1 and seen[0][0].startswith('.out.')
  assert checkpoint.is_converted(tmp_path / 'out')
