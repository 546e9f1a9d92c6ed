"""Keys that a config.json leaves out mean here what they mean in transformers; what is written is read back."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from mathqwen import hf
from mathqwen.errors import UserError
from mathqwen.hf import config_json, layouts
from mathqwen.text.testing import tiny_bpe_tokenizer

QWEN1 = pathlib.Path(__file__).parents[1] / 'testdata' / 'qwen1'
MODEL_TYPES = {'qwen2': 'Qwen2', 'qwen3': 'Qwen3', 'llama': 'Llama'}


def values_of(family, tiny_config):
  """The config.json of a tiny model."""
  cfg = tiny_config(family, vocab_size=100)
  return config_json.make(cfg, None, 'float32', family)


@pytest.mark.parametrize('family', MODEL_TYPES)
@pytest.mark.parametrize('tied', ['left out', True, False])
def test_tie_word_embeddings_is_that_of_transformers(family, tied, tiny_config, tmp_path):
  """By what transformers itself reads from the same file, and by whether its model shares the two weights."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = values_of(family, tiny_config)
  del values['tie_word_embeddings']
  if tied != 'left out':
    values['tie_word_embeddings'] = tied
  (tmp_path / 'config.json').write_text(json.dumps(values))
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert type(theirs).__name__ == f'{MODEL_TYPES[family]}Config'
  assert hf.read_config(str(tmp_path)).tie_word_embeddings == theirs.tie_word_embeddings

  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(theirs)
  shared = model.lm_head.weight is model.model.embed_tokens.weight
  assert hf.read_config(str(tmp_path)).tie_word_embeddings == shared


@pytest.mark.parametrize(
  'changes, scaled', [({}, True), ({'hidden_size': None, 'n_embd': 48}, False), ({'seq_length': None}, False)]
)
def test_scaling_of_a_qwen1_that_does_not_name_it(changes, scaled):
  """`QWenConfig` defaults both to True; its first version, with the names of August 2023, to False."""
  values = json.loads((QWEN1 / 'config.json').read_text()) | changes
  del values['use_dynamic_ntk'], values['use_logn_attn']
  cfg, _ = config_json.parse(values, 'config.json')
  assert (cfg.use_dynamic_ntk, cfg.use_logn_attn) == (scaled, scaled)


@pytest.mark.parametrize('family', MODEL_TYPES)
def test_other_keys_that_are_left_out(family, tiny_config, tmp_path):
  """`head_dim` is hidden_size / heads, `initializer_range` that of transformers."""
  transformers = pytest.importorskip('transformers')
  values = values_of(family, tiny_config) | {'num_attention_heads': 32, 'hidden_size': 256}
  del values['initializer_range'], values['num_key_value_heads']
  if family != 'qwen3':  # its default of head_dim is 128 in transformers, and its files always have the key
    del values['head_dim']
  (tmp_path / 'config.json').write_text(json.dumps(values))
  theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path), hf.read_config(str(tmp_path))
  assert ours.initializer_range == theirs.initializer_range
  if family != 'qwen3':
    assert ours.head_dim == values['hidden_size'] // values['num_attention_heads']
  assert ours.num_key_value_heads == theirs.num_key_value_heads == 32  # in LLaMA as many as heads, else a fixed number


@pytest.mark.parametrize('tied', ['left out', None])
def test_qwen1_is_untied_by_default(tied, tmp_path):
  """QWenConfig, the configuration code beside Qwen-1's weights, has `tie_word_embeddings=False`."""
  values = json.loads((QWEN1 / 'config.json').read_text())
  del values['tie_word_embeddings']
  if tied is None:
    values['tie_word_embeddings'] = None
  (tmp_path / 'config.json').write_text(json.dumps(values))
  assert hf.read_config(str(tmp_path)).tie_word_embeddings is False


@pytest.mark.parametrize('name', ['tie_word_embeddings', 'initializer_range', 'head_dim'])
def test_null_means_that_a_key_is_left_out(name, tiny_config):
  values = values_of('qwen2', tiny_config)
  del values[name]
  left_out, _ = config_json.parse(values, 'config.json')
  assert config_json.parse(values | {name: None}, 'config.json')[0] == left_out


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor 0.5'),
    (
      {'layer_types': ['full_attention', 'sliding_attention', 'full_attention']},
      'layer_types with sliding_attention, and sliding_window None',
    ),
    ({'mlp_bias': True}, 'mlp_bias True'),
    ({'rope_theta': 7.0}, 'rope_theta 7.0 but rope_parameters.rope_theta 3000.0'),
    ({'rope_theta': None, 'rope_parameters': None}, 'neither rope_theta nor rope_parameters.rope_theta'),
    ({'rope_scaling': {'rope_type': 'mrope', 'factor': 2.0}}, "rope scaling 'mrope'"),
    ({'quantization_config': {'bits': 4}}, 'quantization_config (give the unquantised checkpoint)'),
  ],
)
def test_what_the_decoder_does_not_compute_is_refused(changes, message, tiny_config):
  values = values_of('qwen2', tiny_config)
  config_json.parse(values, 'x/config.json')
  with pytest.raises(UserError) as error:
    config_json.parse(values | changes, 'x/config.json')
  assert str(error.value) == f'x/config.json does not fit this decoder: {message}'


@pytest.mark.parametrize(
  'changes',
  [
    {'partial_rotary_factor': 1.0},
    {'partial_rotary_factor': None},
    {'layer_types': ['full_attention'] * 3, 'use_sliding_window': False},
    {'rope_scaling': {'rope_type': 'default'}},
    {'rope_scaling': None},
    {'rope_theta': None},  # transformers 5 writes rope_parameters alone
    {'rope_parameters': None},  # transformers 4 writes rope_theta alone
    {'model_type': None},
  ],
)
def test_what_changes_nothing_is_accepted(changes, tiny_config):
  values = values_of('qwen2', tiny_config)
  assert config_json.parse(values | changes, 'config.json') == config_json.parse(values, 'config.json')


@pytest.mark.parametrize('dtype, flag', [('bfloat16', 'bf16'), ('float16', 'fp16'), ('float32', 'fp32')])
def test_what_qwen1_writes_is_what_it_reads(dtype, flag, tiny_config):
  cfg = tiny_config('qwen2', num_key_value_heads=6, seq_length=64, use_dynamic_ntk=True, initializer_range=0.01)
  values = config_json.make(cfg, None, dtype, 'qwen1')
  assert config_json.parse(values, 'config.json') == (cfg, 'qwen1')
  assert [name for name in ('bf16', 'fp16', 'fp32') if values[name]] == [flag]
  del values['kv_channels']  # hidden_size / heads, then
  assert config_json.parse(values, 'config.json') == (cfg, 'qwen1')
  for name, other in (('scale_attn_weights', False), ('rotary_pct', 0.25), ('no_bias', False)):
    with pytest.raises(UserError, match=f'{name} {other}'):
      config_json.parse(values | {name: other}, 'config.json')


def test_ids_of_special_tokens(tiny_config):
  """Qwen begins texts with <|endoftext|> and LLaMA with <s>; an answer stops at <|im_end|>, which comes first."""
  tokenizer = tiny_bpe_tokenizer()
  values = config_json.make(tiny_config('qwen2'), tokenizer, 'float32', 'qwen2')
  generation = config_json.make_generation_config(tokenizer)
  assert values['bos_token_id'] == generation['bos_token_id'] == tokenizer.special['<|endoftext|>']
  assert values['eos_token_id'] == generation['eos_token_id'][0] == tokenizer.im_end
  assert generation['eos_token_id'] == list(tokenizer.stop_ids) and len(tokenizer.stop_ids) > 1
  assert values['pad_token_id'] == generation['pad_token_id'] == tokenizer.pad
  for special, bos in (({'<s>': 1}, 1), ({'<s>': 1, '<|endoftext|>': 2}, 2), ({}, None)):
    assert config_json.bos(types.SimpleNamespace(special=special, named_bos=None)) == bos
    assert config_json.bos(types.SimpleNamespace(special=special, named_bos=7)) == 7


@pytest.mark.parametrize('layout', ['qwen1', 'qwen2', 'llama'])
def test_constants_of_old_files_are_ignored(layout, tiny_config, random_params, tmp_path):
  family, heads = ('qwen2', 6) if layout == 'qwen1' else (layout, 2)
  cfg = tiny_config(family, num_key_value_heads=heads)
  params = random_params(cfg)
  hf.save(str(tmp_path / 'out'), params, cfg, None, layout=layout)
  file = tmp_path / 'out' / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file(tensors | {'x.0.rotary_emb.inv_freq': np.zeros(4, np.float32)}, file)
  read = hf.load_params(str(tmp_path / 'out'))
  assert all((a == b).all() for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True))
  safetensors.numpy.save_file(tensors | {'x.0.rotary_emb.other': np.zeros(4, np.float32)}, file)
  with pytest.raises(UserError, match='x.0.rotary_emb.other is not in a model of this config'):
    hf.load_params(str(tmp_path / 'out'))


def test_layouts_that_cannot_hold_a_model(tiny_config):
  both = tiny_config('qwen2', qk_norm=True)
  with pytest.raises(UserError, match='architecture has qkv_bias=True with o_bias=False with qk_norm=True'):
    layouts.choose(both)
  for family, name, reasons in (
    ('qwen2', 'qwen3', 'qkv_bias=True, qk_norm=False'),
    ('qwen2', 'llama', 'qkv_bias=True'),
    ('qwen3', 'llama', 'qk_norm=True'),
    ('llama', 'qwen2', 'qkv_bias=False'),
  ):
    with pytest.raises(UserError) as error:
      layouts.choose(tiny_config(family), name)
    assert str(error.value) == f'layout {name} cannot hold this model ({reasons}): leave --layout out for {family}'
    assert layouts.choose(tiny_config(family), family) == layouts.choose(tiny_config(family)) == family


def test_a_weight_without_a_place_in_the_files(tiny_config, monkeypatch):
  """Not left out of an export in silence."""
  without = dataclasses.replace(
    layouts.LAYOUTS['qwen3'], layer=tuple(rule for rule in layouts.LAYOUTS['qwen3'].layer if rule.ours != ('q_norm',))
  )
  monkeypatch.setitem(layouts.LAYOUTS, 'qwen3', without)
  with pytest.raises(ValueError, match='the table of layout qwen3 has no tensor for layers/q_norm'):
    layouts.file_tensors(tiny_config('qwen3'), 'qwen3')


def test_every_layout_says_the_same_features():
  assert len({tuple(layout.features) for layout in layouts.LAYOUTS.values()}) == 1
