"""Hugging Face directories in a bucket: read, written, read back by the check, and nothing left where it fails."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mathqwen import files, hf
from mathqwen.cli import main
from mathqwen.storage.source import open_source
from mathqwen.text.testing import tiny_bpe_tokenizer

pytestmark = pytest.mark.usefixtures('compiled_once')


@pytest.fixture(scope='module')
def exported(tiny_config, random_params, tmp_path_factory):
  """A Hugging Face directory on this disk."""
  cfg = tiny_config('qwen2', vocab_size=411, num_hidden_layers=1)
  folder = tmp_path_factory.mktemp('exported') / 'hf'
  hf.save(str(folder), random_params(cfg), cfg, tiny_bpe_tokenizer(), 'float32')
  return folder


def weights_of(path):
  weights = open_source(str(path)).weights
  return {weight: weights.read(weight) for weight in weights.paths()}


def test_in_and_out_with_the_final_check(exported, bucket, nowhere, upload, tiny, capsys):
  upload(exported, f'{bucket}/in')
  assert main(['convert', 'to-hf', f'{bucket}/in', f'{bucket}/out', '--json']) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['check']['max_logit_difference'] == 0
  assert sorted(path.name for path in files.path(bucket).iterdir()) == ['in', 'out']
  want = weights_of(exported)
  got = weights_of(f'{bucket}/out')
  assert set(got) == set(want) and all(np.array_equal(got[path], want[path]) for path in want)
  assert open_source(f'{bucket}/out').stop_ids == tiny_bpe_tokenizer().stop_ids
  options = ['--dry-run', '--set', 'data.seq_len=96', '--set', 'data.batch_size=8']
  assert main(['train', tiny.config, '--init', f'{bucket}/out', *options]) == 0


def test_a_check_that_differs_leaves_nothing(exported, bucket, nowhere, upload, fails, monkeypatch):
  """The object is damaged in the store, between writing and reading back."""
  from mathqwen.conversion import to_hf

  upload(exported, f'{bucket}/in')
  write = to_hf.hf.write_export

  def write_and_damage(plan, weights, folder, *rest):
    write(plan, weights, folder, *rest)
    file = folder / 'model.safetensors'
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))

  monkeypatch.setattr(to_hf.hf, 'write_export', write_and_damage)
  assert 'nothing is kept' in fails('convert', 'to-hf', f'{bucket}/in', f'{bucket}/out')
  assert [path.name for path in files.path(bucket).iterdir()] == ['in']


def test_bin_files_and_adapters_in_a_bucket(exported, bucket, tmp_path, upload):
  torch = pytest.importorskip('torch', reason='torch, which writes pytorch_model.bin, is not installed')
  for file in ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json'):
    upload(exported / file, f'{bucket}/bin')
  tensors = safetensors.numpy.load_file(exported / 'model.safetensors')
  torch.save({name: torch.tensor(array) for name, array in tensors.items()}, tmp_path / 'pytorch_model.bin')
  upload(tmp_path / 'pytorch_model.bin', f'{bucket}/bin')
  want = weights_of(exported)
  assert all(np.array_equal(array, want[path]) for path, array in weights_of(f'{bucket}/bin').items())

  module = 'model.layers.0.self_attn.o_proj'
  a, b = np.ones((2, 48), np.float32), np.full((48, 2), 0.5, np.float32)
  lora = {f'base_model.model.{module}.lora_A.weight': a, f'base_model.model.{module}.lora_B.weight': b}
  safetensors.numpy.save_file(lora, tmp_path / 'adapter_model.safetensors')
  config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 2, 'base_model_name_or_path': f'{bucket}/bin'}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
  for file in ('adapter_config.json', 'adapter_model.safetensors'):
    upload(tmp_path / file, f'{bucket}/adapter')
  merged = open_source(f'{bucket}/adapter')
  assert np.allclose(merged.weights.read(('layers', 'o')), want['layers', 'o'] + 1, atol=1e-6)
  assert merged.tokenizer.vocab_size == tiny_bpe_tokenizer().vocab_size
