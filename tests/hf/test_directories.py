import json
import os
import pathlib
import threading

import jax
import numpy as np
import pytest
from two_hosts import on_two_hosts

from mathqwen import hf
from mathqwen.chat import chatml
from mathqwen.errors import UserError
from mathqwen.hf import export_plan, tensor_files, writing
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.testing import tiny_bpe_tokenizer

VOCAB = 411  # more rows than the tokenizer has ids


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('family, tied', [('qwen2', False), ('qwen3', True), ('llama', False)])
def test_there_and_back_is_bit_equal(family, tied, dtype, torch_model, tmp_path):
  import safetensors.torch
  import torch

  torch_model(family, vocab_size=VOCAB, tie_word_embeddings=tied).to(getattr(torch, dtype)).save_pretrained(
    tmp_path / 'theirs'
  )
  cfg = hf.read_config(str(tmp_path / 'theirs'))
  for compute in {dtype, 'float32'}:  # float32 holds each of the others
    params = hf.load_params(str(tmp_path / 'theirs'), dtype=compute)
    hf.save(str(tmp_path / compute), params, cfg, tiny_bpe_tokenizer(), dtype)
    theirs, ours = (safetensors.torch.load_file(tmp_path / name / 'model.safetensors') for name in ('theirs', compute))
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
      assert ours[name].dtype == tensor.dtype == getattr(torch, dtype)
      assert torch.equal(ours[name], tensor), name
  assert hf.read_config(str(tmp_path / dtype)) == cfg


@pytest.mark.parametrize('family, tied', [('qwen2', True), ('qwen3', False), ('llama', True)])
def test_export_loads_in_transformers(family, tied, tiny_config, random_params, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from mathqwen.inference.model import Model

  cfg, tokenizer = tiny_config(family, vocab_size=VOCAB, tie_word_embeddings=tied), tiny_bpe_tokenizer()
  model = Model('ours', cfg, tokenizer, random_params(cfg), 'float32')
  model.save_hf(str(tmp_path / 'export'), card='# A model\n')
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'export', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
  assert theirs.dtype == torch.float32
  text = 'Natalia sold 48 / 2 = 24 clips! <|im_end|>'
  reader = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
  ids = reader(text.removesuffix('<|im_end|>'))['input_ids']
  assert ids == tokenizer.encode(text.removesuffix('<|im_end|>'))
  assert reader.eos_token_id == tokenizer.im_end
  with torch.no_grad():
    want = theirs(torch.tensor([ids])).logits.numpy()
  assert np.abs(model.logits(np.array([ids], np.int32)) - want).max() < 1e-4
  assert set(theirs.generation_config.eos_token_id) == set(tokenizer.stop_ids)
  assert theirs.generation_config.do_sample is False
  assert (tmp_path / 'export' / 'README.md').read_text() == '# A model\n'


@pytest.mark.parametrize('family', ['qwen3', 'llama'])
def test_the_packaged_tokenizer_beside_its_model(family, tiny_config, random_params, tmp_path):
  transformers = pytest.importorskip('transformers')
  cfg, tokenizer = tiny_config(family, vocab_size=1024), load_tokenizer(None)
  hf.save(str(tmp_path / 'export'), random_params(cfg), cfg, tokenizer, 'float32')
  reader = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
  for text in ('What is 12 + 30?\nab\r\n', '  two  spaces', '5! = 120 \U0001f600 你好'):
    ids = reader(text, add_special_tokens=False)['input_ids']
    assert ids == tokenizer.encode(text) and reader.decode(ids) == text
  messages = [{'role': 'user', 'content': '12+30='}]
  asked = reader.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
  assert asked['input_ids'] == chatml.prompt(messages, tokenizer)


def test_a_tokenizer_that_transformers_would_misread_is_said(tiny_config, random_params, tmp_path, capsys):
  cfg = tiny_config('qwen2', vocab_size=1024)
  hf.save(str(tmp_path / 'export'), random_params(cfg), cfg, load_tokenizer(None), 'float32')
  assert 'would lose spaces and newlines' in capsys.readouterr().err


def test_shards(tiny_config, random_params, tmp_path, monkeypatch):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  cfg = tiny_config('qwen3', vocab_size=VOCAB)
  params = random_params(cfg)
  monkeypatch.setattr(export_plan, 'SHARD_BYTES', 60_000)
  hf.save(str(tmp_path / 'export'), params, cfg, tiny_bpe_tokenizer(), 'float32')
  assert len(list((tmp_path / 'export').glob('model-*.safetensors'))) > 3
  again = hf.load_params(str(tmp_path / 'export'))
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'export')
  assert (theirs.model.embed_tokens.weight.detach().numpy() == params['embed']).all()


@pytest.fixture
def exported(tiny_config, random_params, tmp_path):
  cfg = tiny_config('qwen2', vocab_size=VOCAB, num_hidden_layers=1)
  hf.save(str(tmp_path / 'model'), random_params(cfg), cfg, tiny_bpe_tokenizer(), 'float32')
  return str(tmp_path / 'model'), cfg


def change_config(directory, **changes):
  file = pathlib.Path(directory) / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_all_tensors_that_do_not_fit_are_one_error(exported):
  import safetensors.numpy

  directory, cfg = exported
  file = pathlib.Path(directory) / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  del tensors['model.norm.weight'], tensors['model.layers.0.self_attn.q_proj.bias']
  tensors['model.layers.1.mlp.up_proj.weight'] = np.zeros((2, 2), np.float32)
  tensors['model.layers.0.mlp.up_proj.weight'] = tensors['model.layers.0.mlp.up_proj.weight'].T.copy()
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.zeros(4, np.float32)  # old files have it
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(UserError) as error:
    hf.load_params(directory)
  assert str(error.value).split('config.json: ')[1].split('; ') == [
    'model.norm.weight is missing',
    'model.layers.0.self_attn.q_proj.bias is missing',
    'model.layers.1.mlp.up_proj.weight is not in a model of this config',
    'model.layers.0.mlp.up_proj.weight has shape (48, 80), the config says (80, 48)',
  ]


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'architectures': ['GPT2LMHeadModel']},
      "architectures .'GPT2LMHeadModel'. .known are QWenLMHeadModel, Qwen2",
    ),
    ({'architectures': None, 'model_type': 'gpt2'}, "architectures None, model_type 'gpt2'"),
    ({'architectures': ['Qwen2ForCausalLM', 'Qwen3ForCausalLM']}, 'architectures .*Qwen3'),
    ({'architectures': 5}, 'architectures 5'),
    ({'model_type': 'llama'}, "model_type 'llama' with architecture Qwen2ForCausalLM"),
    ({'rope_scaling': {'factor': 4.0}}, "rope scaling 'unknown'"),
    ({'rope_theta': '1000000', 'rope_parameters': None}, "model.rope_theta is '1000000': it must be a number"),
    ({'rms_norm_eps': '1e-6'}, "model.rms_norm_eps is '1e-6'"),
    ({'rms_norm_eps': float('nan')}, 'model.rms_norm_eps is nan'),
    ({'tie_word_embeddings': 'false'}, "model.tie_word_embeddings is 'false': it must be true or false"),
    ({'head_dim': 0}, 'model.head_dim is 0'),
    ({'hidden_size': '48'}, 'config.json has a value of the wrong kind|hidden_size'),
    ({'rope_scaling': {'type': 'su', 'factor': 2.0}}, "rope scaling 'su'"),
    ({'rope_parameters': {'rope_type': 'proportional', 'rope_theta': 1e6}}, "rope scaling 'proportional'"),
    ({'rope_scaling': {'rope_type': 'linear'}}, "rope scaling 'linear' without factor"),
    ({'use_sliding_window': True, 'sliding_window': 64, 'max_window_layers': 0}, 'sliding_window 64'),
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu'"),
    ({'attention_bias': True}, 'attention_bias'),
    ({'rms_norm_eps': None, 'vocab_size': None}, 'no vocab_size, rms_norm_eps'),
    ({'num_key_value_heads': 4}, 'not a multiple'),
  ],
)
def test_configs_that_are_refused(changes, message, exported):
  directory, _ = exported
  change_config(directory, **changes)
  with pytest.raises(UserError, match=message):
    hf.read_config(directory)


def test_config_of_the_first_llama_2_has_no_rope_theta(exported):
  directory, cfg = exported
  file = pathlib.Path(directory) / 'config.json'
  values = json.loads(file.read_text()) | {'architectures': ['LlamaForCausalLM'], 'model_type': 'llama'}
  del values['rope_theta'], values['rope_parameters'], values['head_dim']
  file.write_text(json.dumps(values))
  read = hf.read_config(directory)
  assert (read.rope_theta, read.head_dim) == (10_000.0, 8)


@pytest.mark.parametrize('file', ['model.safetensors', 'config.json', 'model.safetensors.index.json'])
def test_half_a_file(file, exported):
  directory, cfg = exported
  path = pathlib.Path(directory) / file
  content = path.read_bytes() if path.exists() else b'{"weight_map": {"model.norm.weight": "model.safetensors"}}'
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match=file.replace('.', r'\.')):
    hf.load_params(directory)


def test_a_shard_that_was_not_downloaded(exported):
  directory, cfg = exported
  index = {'weight_map': {'model.norm.weight': 'model-00001-of-00002.safetensors'}}
  (pathlib.Path(directory) / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(UserError, match='model-00001-of-00002.safetensors is missing'):
    hf.load_params(directory)


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()], ids=['disk', 'killed'])
@pytest.mark.parametrize('when', ['weights', 'tokenizer'])
def test_a_broken_export_leaves_nothing(when, error, tiny_config, random_params, tmp_path, monkeypatch):
  cfg, tokenizer = tiny_config('llama', vocab_size=VOCAB, num_hidden_layers=1), tiny_bpe_tokenizer()

  def fail(*_, **__):
    raise error

  target, name = {'weights': (tensor_files.SafetensorsWriter, 'write'), 'tokenizer': (writing, 'save_tokenizer')}[when]
  monkeypatch.setattr(target, name, fail)
  with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
    hf.save(str(tmp_path / 'export'), random_params(cfg), cfg, tokenizer)
  assert list(tmp_path.iterdir()) == []


def test_export_is_not_there_until_it_is_whole(tiny_config, random_params, tmp_path, monkeypatch):
  """What a kill without cleaning up would leave: looked at right before the rename."""
  cfg = tiny_config('llama', vocab_size=VOCAB, num_hidden_layers=1)
  seen = []
  rename = pathlib.Path.rename

  def look(self, target):
    seen.append([path.name for path in tmp_path.iterdir()])
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, 'rename', look)
  hf.save(str(tmp_path / 'export'), random_params(cfg), cfg, tiny_bpe_tokenizer())
  assert len(seen) == 1 and [name[:8] for name in seen[0]] == ['.export.']
  assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_a_directory_with_something_in_it_is_left_alone(exported, tmp_path, tiny_config):
  directory, cfg = exported
  before = sorted(pathlib.Path(directory).iterdir())
  with pytest.raises(UserError, match='is not empty'):
    hf.save(directory, {}, cfg, tiny_bpe_tokenizer())
  assert sorted(pathlib.Path(directory).iterdir()) == before


# --- several hosts ---


def test_why_one_host_could_not_write_is_said_on_all(monkeypatch):
  def work():
    raise OSError(28, 'No space left on device', 'x')

  def message(host):
    with pytest.raises(OSError if host == 1 else UserError) as error:
      hf.together(work if host == 1 else None)
    return str(error.value)

  why = "[Errno 28] No space left on device: 'x'"
  assert on_two_hosts(monkeypatch, message) == [f'host 1 could not continue: {why}', why]


def test_the_hosts_write_into_one_directory(tmp_path, monkeypatch):
  def write(host):
    with hf.new_directory(str(tmp_path / 'export'), 10) as folder:
      (folder / f'of host {host}').write_text('')
    return folder

  monkeypatch.setattr(os, 'getpid', threading.get_ident)  # as in two processes
  folders = on_two_hosts(monkeypatch, write)
  assert folders[0] == folders[1]
  assert sorted(path.name for path in (tmp_path / 'export').iterdir()) == ['of host 0', 'of host 1']
