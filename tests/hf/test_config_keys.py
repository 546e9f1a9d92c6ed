"""A config.json means what transformers takes it for; what is not computed here is refused by name."""

import json

import pytest

from mathqwen import hf
from mathqwen.errors import UserError
from mathqwen.hf import config_json, config_keys, families, layouts
from mathqwen.text.testing import tiny_bpe_tokenizer

SIZES = {
  'vocab_size': 100,
  'hidden_size': 256,
  'intermediate_size': 64,
  'num_hidden_layers': 2,
  'num_attention_heads': 32,
}
FAMILIES = {model_type: family for model_type, family in families.FAMILIES.items() if model_type != 'qwen'}


def read(values, where='config.json'):
  return config_json.parse(values, where)[0]


def config_of(model_type='llama', **changes):
  """A config.json with the sizes alone."""
  # Without null, a Mistral has a window of 4,096 tokens.
  window = {'sliding_window': None} if model_type == 'mistral' else {}
  architectures = [FAMILIES[model_type].architecture]
  return {'architectures': architectures, 'model_type': model_type, **SIZES, **window, **changes}


@pytest.mark.parametrize('model_type', FAMILIES)
@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'num_key_value_heads': 4, 'rms_norm_eps': 1e-5, 'tie_word_embeddings': True, 'rope_theta': 5e5},
    {'rope_parameters': {'rope_theta': 7e4, 'rope_type': 'default'}, 'max_position_embeddings': 999, 'head_dim': 16},
    {'rope_scaling': {'type': 'yarn', 'factor': 4.0}, 'rope_theta': 1e6},
    {'rope_scaling': {'type': 'linear', 'factor': 4.0}},
  ],
)
def test_fields_are_those_of_transformers(model_type, changes):
  transformers = pytest.importorskip('transformers')
  values = config_of(model_type, **changes)
  theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(values)))
  ours = read(values)
  assert type(theirs).model_type == model_type
  for name in ('num_key_value_heads', 'max_position_embeddings', 'rms_norm_eps', 'tie_word_embeddings'):
    assert getattr(ours, name) == getattr(theirs, name), name
  assert ours.initializer_range == theirs.initializer_range
  assert ours.head_dim == getattr(theirs, 'head_dim', 256 // 32)
  assert ours.rope_theta == theirs.rope_parameters['rope_theta']
  assert ours.rope_scaling.rope_type == theirs.rope_parameters['rope_type']
  assert ours.rope_scaling.factor == theirs.rope_parameters.get('factor', 1)
  original = theirs.rope_parameters.get('original_max_position_embeddings')
  assert ours.rope_scaling.original_max_position_embeddings == original


@pytest.mark.parametrize('model_type', FAMILIES)
def test_as_many_keys_as_heads(model_type):
  """A null, which Mistral's class in transformers refuses."""
  assert read(config_of(model_type, num_key_value_heads=None)).num_key_value_heads == 32
  assert read(config_of(model_type, num_attention_heads=64, num_key_value_heads=None)).num_key_value_heads == 64


@pytest.mark.parametrize('model_type', FAMILIES)
def test_nothing_that_transformers_writes_is_unknown(model_type, capsys):
  """Neither today's keys, nor those that version 4 copied from the generation config."""
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoConfig.for_model(**config_of(model_type)).to_dict()
  theirs |= {name: 1 for name in transformers.GenerationConfig._get_default_generation_params()}
  values = theirs | config_of(model_type, torch_dtype='bfloat16', _name_or_path='x')
  assert read(values) == read(config_of(model_type))
  assert capsys.readouterr().err == ''


# What a key says when it is in effect; {} stands for any family.
IN_EFFECT = {
  'qwen2': (
    {'dual_chunk_attention_config': {'chunk_size': 262144, 'local_size': 8192}},
    {'num_experts': 60},
    {'use_qk_norm': True},
    {'qkv_bias': False},
    {'use_sliding_window': True, 'sliding_window': 4096, 'max_window_layers': 1},
    {'layer_types': ['full_attention', 'chunked_attention']},
    {'vision_config': {'depth': 32}},
  ),
  'qwen3': ({'qk_norm': False}, {'mlp_bias': True}, {'layer_types': ['full_attention']}),
  'mistral': (
    {'attention_bias': True},
    {'sliding_window': 4096},
    {'sliding_window': 131_071},
    {'llama_scaling_multiplier': 0.5},
  ),
  'llama': (
    {'final_logit_softcapping': 30.0},
    {'attn_logit_softcapping': 50.0},
    {'logits_scaling': 8.0},
    {'logit_scale': 0.0625},
    {'embedding_multiplier': 12.0},
    {'residual_multiplier': 0.22},
    {'attention_multiplier': 0.0078125},
    {'query_pre_attn_scalar': 256},
    {'no_rope_layers': [1, 0]},
    {'alibi': True},
    {'partial_rotary_factor': 0.5},
    {'rope_scaling': {'type': 'linear', 'factor': 2.0, 'partial_rotary_factor': 0.5}},
    {'rope_interleaved': True},
    {'scale_emb': 12},
    {'scale_depth': 1.4},
    {'dim_model_base': 64},
    {'num_local_experts': 8},
    {'n_routed_experts': 64},
    {'use_mla': True},
    {'kv_lora_rank': 512},
    {'mup_enabled': True},
    {'parallel_attn': True},
    {'use_parallel_residual': True},
    {'norm_type': 'layernorm'},
    {'norm_head': True},
    {'qk_layernorm': True},
    {'mlp_bias': True},
    {'attention_bias': 'no'},
    {'clip_qkv': 8.0},
    {'hidden_act': 'gelu'},
    {'hidden_activation': 'gelu_pytorch_tanh'},
    {'sliding_window': 1024},
    {'is_causal': False},
    {'use_logn_attn': True},
    {'rope_local_base_freq': 10_001},
    {'quantization_config': {'bits': 4}},
    {'my_new_logits_scale': 3.0},
    {'local_window_tokens': 128},
  ),
}


@pytest.mark.parametrize(
  'model_type, changes',
  [(model_type, changes) for model_type, rows in IN_EFFECT.items() for changes in rows],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_what_changes_the_mathematics_is_refused_by_name(model_type, changes):
  read(config_of(model_type))
  with pytest.raises(UserError) as error:
    read(config_of(model_type, **changes), 'x/config.json')
  message = str(error.value)
  key = next(iter(changes))
  inner = next((name for name in ('partial_rotary_factor',) if name in str(changes)), key)
  assert message.startswith('x/config.json does not fit this decoder: ') and '\n' not in message
  assert inner in message, message


OUT_OF_EFFECT = {
  'qwen2': (
    {'use_sliding_window': False, 'sliding_window': 4096, 'max_window_layers': 0},
    {'use_sliding_window': True, 'sliding_window': 32_768, 'max_window_layers': 0},
    {'use_sliding_window': True, 'sliding_window': 4096, 'max_window_layers': 2},
    {'use_sliding_window': True, 'sliding_window': None},
    {'layer_types': ['full_attention'] * 2, 'use_sliding_window': None},
    {'dual_chunk_attention_config': None, 'quantization_config': {}, 'use_mrope': False},
    {'architectures': ['FSDPQwen2ForCausalLM']},
    {'architectures': ['Qwen2ForCausalLM', 'FSDPQwen2ForCausalLM']},
    {'architectures': None},
    {'architectures': []},
    {'qkv_bias': True, 'scale_emb': 1.0, 'num_experts': 0, 'num_experts_per_tok': 2, 'output_router_logits': False},
  ),
  'qwen3': ({'qk_norm': True}, {'use_qk_norm': True}),
  'mistral': ({'sliding_window': 131_072}, {'sliding_window': 4096, 'max_position_embeddings': 4096}),
  'llama': (
    {'hidden_act': 'swish'},
    {'rope_scaling': {'type': 'linear', 'factor': 1.0}},
    {'rope_scaling': {'rope_type': 'default', 'factor': 3.0}},
    {'rope_scaling': {}, 'rope_parameters': {}},
    {'rope_scaling': {'rope_type': 'yarn', 'factor': 1.0, 'beta_fast': 8}},
    {'architectures': ['LLaMAForCausalLM'], 'max_sequence_length': 2048},
    {'torch_dtype': 'float16', 'dtype': 'float16', 'pretraining_tp': 2, 'pad_token_id': -1, 'eos_token_id': [1, 2]},
    {'attention_multiplier': 8**-0.5, 'query_pre_attn_scalar': 8, 'logit_scale': 1, 'no_rope_layers': [1, 1]},
    {'scale_depth': 2**0.5, 'dim_model_base': 256, 'final_logit_softcapping': None, 'norm_type': 'rmsnorm'},
    {'sliding_window': 2048},
    {'rope_theta': 10_000, 'rope_parameters': {'rope_theta': 10_000.0}},
  ),
}


@pytest.mark.parametrize(
  'model_type, changes',
  [(model_type, changes) for model_type, rows in OUT_OF_EFFECT.items() for changes in rows],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_what_changes_nothing_is_accepted(model_type, changes):
  values = config_of(model_type, **changes)
  plain = config_of(model_type, max_position_embeddings=read(values).max_position_embeddings)
  assert read(values) == read(plain)


@pytest.mark.parametrize('layout', ['qwen1', 'qwen2', 'qwen3', 'llama'])
def test_nothing_that_an_export_writes_is_unknown(layout, tiny_config, capsys):
  features = {
    name: value for name, value in layouts.LAYOUTS[layout].features.items() if name in ('qkv_bias', 'qk_norm')
  }
  cfg = tiny_config('llama', **features, **({'num_key_value_heads': 6} if layout == 'qwen1' else {}))
  written = config_json.make(cfg, tiny_bpe_tokenizer(), 'bfloat16', layout)
  config_json.parse(written, 'config.json')
  assert capsys.readouterr().err == ''


def test_unknown_keys_are_listed_once(capsys):
  values = config_of(my_note='x', **{'line\nbreak': 1, 'a' * 200: 2})
  for _ in range(2):
    read(values, 'some/config.json')
  printed = capsys.readouterr().err
  assert printed == (
    "some/config.json: keys that are not known here, and not used: my_note, 'line\\nbreak', " + 'a' * 57 + '...\n'
  )
  read(config_of(rope_scaling={'type': 'yarn', 'factor': 2.0, 'finetuned': True}), 'other/config.json')
  assert 'not used: rope_scaling.finetuned\n' in capsys.readouterr().err


def test_tables_are_disjoint():
  assert not config_keys.HARMLESS & set(config_keys._CHANGES)
  assert not config_keys.HARMLESS & config_json._COMPUTED


@pytest.mark.parametrize('family', ['qwen2', 'qwen3', 'llama'])
def test_a_config_that_names_no_class(family, tiny_config, random_params, tmp_path):
  """The names of the tensors tell which one it is."""
  cfg = tiny_config(family, num_hidden_layers=1)
  hf.save(str(tmp_path / 'x'), random_params(cfg), cfg, None)
  file = tmp_path / 'x' / 'config.json'
  values = json.loads(file.read_text())
  del values['architectures'], values['model_type']
  file.write_text('\ufeff' + json.dumps(values))  # with the mark that Windows editors write
  assert config_json.read(str(tmp_path / 'x')) == (cfg, family)
