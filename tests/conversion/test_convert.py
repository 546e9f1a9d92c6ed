"""The commands, on directories that transformers wrote and on damaged ones."""

import json
import pathlib
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import mathqwen
from mathqwen.cli import main
from mathqwen.conversion import check as conversion_check
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.hf import tensor_files
from mathqwen.storage import workdir

pytestmark = pytest.mark.usefixtures('compiled_once')


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


def test_a_converted_model_is_a_model(exported, tmp_path, capsys, fails, tiny, monkeypatch):
  ours = tmp_path / 'ours'
  monkeypatch.chdir(tmp_path)
  assert main(['convert', 'from-hf', str(exported), 'ours', '--json']) == 0
  report = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert report['check']['max_logit_difference'] == 0 and report['check']['greedy_agreement'] == 1
  assert sorted(path.name for path in ours.iterdir()) == ['checkpoints', 'experiment.json', 'tokenizer']
  model, source = mathqwen.load(ours, dtype='float32'), mathqwen.load(exported, dtype='float32')
  assert model.system_prompt == 'Be brief.' and model.config == source.config
  assert model.generate(['2+2='], max_new_tokens=8) == source.generate(['2+2='], max_new_tokens=8)
  # It starts a run, and is not one.
  settings = ['--set', 'train.steps=2', '--set', 'optim.warmup_steps=1', '--set', 'data.eval_examples=4']
  assert main(['train', tiny.config, '--init', str(ours), '--workdir', str(tmp_path / 'run'), *settings]) == 0
  message = fails('train', tiny.config, '--workdir', ours)
  assert message == f'{ours} holds a converted model: train from it with --init {ours} and another --workdir'
  assert fails('convert', 'from-hf', ours, tmp_path / 'x').endswith('give a Hugging Face directory')


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


def test_check_measures_the_difference(exported, directory, tmp_path, capsys, fails):
  """Against softmax by hand, on logits that the two models give to the same batch."""
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  tensors['model.norm.weight'] = tensors['model.norm.weight'] * 1.1
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
  assert main(['convert', 'check', str(exported), str(directory), '--json']) == 0
  report = json.loads(capsys.readouterr().out.splitlines()[-1])
  a, b = mathqwen.load(exported, dtype='float32'), mathqwen.load(directory, dtype='float32')
  p_logits, q_logits = [], []
  for ids in a.tokenizer.encode_batch(conversion_check.SAMPLE):
    for model, found in ((a, p_logits), (b, q_logits)):
      found.append(np.asarray(model.logits([ids[: conversion_check.POSITIONS]]), np.float64)[0])
  p_logits, q_logits = np.concatenate(p_logits), np.concatenate(q_logits)
  p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (p_logits, q_logits))
  assert report['positions'] == len(p)
  assert report['max_logit_difference'] == pytest.approx(np.abs(p_logits - q_logits).max(), rel=1e-3)
  assert report['kl_divergence'] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-3)
  assert report['greedy_agreement'] == np.mean(p.argmax(-1) == q.argmax(-1))
  assert main(['convert', 'check', str(exported), str(directory), '--tolerance', '100']) == 0
  assert 'more than --tolerance 0.01' in fails('convert', 'check', exported, directory, '--tolerance', '0.01')


def test_an_export_that_differs_is_not_kept(exported, tmp_path, monkeypatch, capsys, fails):
  write = tensor_files.SafetensorsWriter.write

  def flip(self, array):
    array = array.copy()
    array.reshape(-1)[0] += 1
    write(self, array)

  monkeypatch.setattr(tensor_files.SafetensorsWriter, 'write', flip)
  message = fails('convert', 'to-hf', exported, tmp_path / 'out')
  assert 'differs from' in message and 'nothing is kept' in message
  assert list(tmp_path.iterdir()) == []
  assert main(['convert', 'to-hf', str(exported), str(tmp_path / 'out'), '--no-check']) == 0
  assert 'not compared with its source' in capsys.readouterr().out


def test_too_little_space_is_reported_before_writing(exported, tmp_path, fails, monkeypatch):
  import collections

  monkeypatch.setattr(shutil, 'disk_usage', lambda _: collections.namedtuple('U', 'total used free')(9, 9, 1000))
  for way in ('from-hf', 'to-hf'):
    assert 'MiB are to be written and the disk has 0.0 MiB' in fails('convert', way, exported, tmp_path / 'out')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('way', ['from-hf', 'to-hf'])
def test_targets_that_are_refused(way, exported, tmp_path, fails):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('x')
  assert fails('convert', way, exported, tmp_path / 'file').endswith('is a file: name a new directory')
  assert fails('convert', way, exported, tmp_path / 'full').endswith('is not empty: name a new directory')
  assert fails('convert', way, tmp_path / 'none', tmp_path / 'out').startswith('no model at ')
  assert 'the name' not in fails('convert', way, tmp_path / 'full', tmp_path / 'out')


def test_names_that_no_directory_can_have(exported, tmp_path, fails, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
  for target, message in {
    '.': "'.' is not the name of a new directory",
    '': 'target is empty; give a value',
    'link': 'link is a link: name the directory itself',
    's3://bucket/x': 'name a local directory, or one on gs://',
  }.items():
    for way in ('from-hf', 'to-hf'):
      assert message in fails('convert', way, exported, target)


def test_what_a_killed_process_left_is_swept(exported, tmp_path):
  done = subprocess.Popen(['true'])
  done.wait()
  (tmp_path / f'.out.{done.pid}').mkdir()
  (tmp_path / f'.out.{done.pid}' / 'model.safetensors').write_text('half')
  convert_to_hf(str(exported), str(tmp_path / 'out'), compare=False)
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_layouts_that_are_refused(exported, tmp_path, fails):
  message = fails('convert', 'to-hf', exported, tmp_path / 'out', '--layout', 'qwen3')
  assert message == 'layout qwen3 cannot hold this model (qkv_bias=True, qk_norm=False): leave --layout out for qwen2'
  assert 'is not one of qwen1, qwen2' in fails('convert', 'to-hf', exported, tmp_path / 'out', '--layout', 'x')


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
  assert workdir.is_converted(tmp_path / 'out')
