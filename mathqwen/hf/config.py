"""config.json of a Hugging Face directory <-> ModelConfig."""

import pathlib

from mathqwen.errors import UserError
from mathqwen.hf import layouts
from mathqwen.hf.files import read_json
from mathqwen.model.config import ModelConfig

SYSTEM_PROMPT = 'system_prompt'  # our key in config.json: the system turn of training, where there was one
SHARED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'head_dim',
  'max_position_embeddings',
  'rope_theta',
  'rms_norm_eps',
  'tie_word_embeddings',
  'initializer_range',
)
# Our name -> Qwen-1's, the newer one first: configs of August 2023 have the older.
QWEN1 = {
  'vocab_size': ('padded_vocab_size', 'vocab_size'),
  'hidden_size': ('hidden_size', 'n_embd'),
  'intermediate_size': ('intermediate_size', 'ffn_hidden_size'),  # twice the width of ours
  'num_hidden_layers': ('num_hidden_layers', 'n_layer'),
  'num_attention_heads': ('num_attention_heads', 'n_head'),
  'max_position_embeddings': ('max_position_embeddings', 'n_positions'),
  'rms_norm_eps': ('layer_norm_epsilon',),
  'rope_theta': ('rotary_emb_base',),
  'head_dim': ('kv_channels',),
  'seq_length': ('seq_length',),
}


def read(directory: str) -> tuple[ModelConfig, str]:
  """(ModelConfig, name of the layout of its files)."""
  file = pathlib.Path(directory) / 'config.json'
  return from_hf(read_json(file), str(file))


def read_config(directory: str) -> ModelConfig:
  return read(directory)[0]


def read_system_prompt(directory: str) -> str:
  file = pathlib.Path(directory) / 'config.json'
  prompt = read_json(file).get(SYSTEM_PROMPT, '')
  if not isinstance(prompt, str):
    raise UserError(f'{file}: {SYSTEM_PROMPT} is {type(prompt).__name__}: write text, or leave it out')
  return prompt


def bos(tokenizer) -> int | None:
  """<|endoftext|>, which Qwen's own files name as such, or LLaMA's <s>."""
  return tokenizer.special.get('<|endoftext|>', tokenizer.special.get('<s>'))


def from_hf(values: dict, where: str) -> tuple[ModelConfig, str]:
  """(ModelConfig, layout) of a config.json. UserError names everything in it that this decoder does not do."""
  problems = []
  names = {layout.architecture: name for name, layout in layouts.LAYOUTS.items()}
  architectures = values.get('architectures')
  layout = names.get(architectures[0]) if isinstance(architectures, list) and len(architectures) == 1 else None
  if layout is None:
    problems.append(f'architectures {architectures!r} (known are {", ".join(names)})')
    layout = 'qwen2'
  elif values.get('model_type') not in (None, layouts.LAYOUTS[layout].model_type):
    problems.append(f'model_type {values["model_type"]!r} beside architecture {architectures[0]}')
  if values.get('quantization_config'):
    problems.append('quantization_config (give the unquantised checkpoint)')
  try:
    fields = _qwen1(values, problems) if layout == 'qwen1' else _llama(values, problems, layout)
  except (TypeError, ValueError, AttributeError) as error:  # text where a number is wanted, and the like
    raise UserError(f'{where} has a value of the wrong kind ({error}): fetch it again') from None
  missing = [name for name, value in fields.items() if value is None and name != 'seq_length']
  if missing:
    problems.append(f'no {", ".join(missing)}')
  if problems:
    raise UserError(f'{where}: this decoder cannot take {"; ".join(problems)}')
  try:
    return ModelConfig(**fields), layout
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def _qwen1(values, problems) -> dict:
  fields = {name: next((values[k] for k in keys if values.get(k) is not None), None) for name, keys in QWEN1.items()}
  for name, wanted in (('no_bias', True), ('rotary_pct', 1.0), ('scale_attn_weights', True)):
    if values.get(name, wanted) != wanted:
      problems.append(f'{name} {values[name]!r}')
  if values.get('activation', 'swiglu') != 'swiglu':
    problems.append(f'activation {values["activation"]!r}')
  heads, head_dim, hidden = (fields[n] for n in ('num_attention_heads', 'head_dim', 'hidden_size'))
  width = fields['intermediate_size']
  if isinstance(width, int):
    if width % 2:
      problems.append(f'intermediate_size {width}, which is not twice a width')
    fields['intermediate_size'] = width // 2
  if head_dim is None and heads and hidden:
    fields['head_dim'] = hidden // heads
  return fields | {
    'num_key_value_heads': heads,
    'tie_word_embeddings': _given(values, 'tie_word_embeddings', False),
    'initializer_range': _given(values, 'initializer_range', 0.02),
    'qkv_bias': True,
    'qk_norm': False,
    'use_dynamic_ntk': _given(values, 'use_dynamic_ntk', False),
    'use_logn_attn': _given(values, 'use_logn_attn', False),
  }


def _given(values, name, default):
  """null means the default, as a missing key does."""
  return default if values.get(name) is None else values[name]


def _llama(values, problems, layout) -> dict:
  rope = values.get('rope_parameters') or {}
  # Llama 2's own config.json has no rope_theta: it is older than the field.
  theta = _given(values, 'rope_theta', _given(rope, 'rope_theta', 10_000.0 if layout == 'llama' else None))
  if theta is None:
    problems.append('neither rope_theta nor rope_parameters.rope_theta')
  elif _given(rope, 'rope_theta', theta) != theta:
    problems.append(f'rope_theta {theta} beside rope_parameters.rope_theta {rope["rope_theta"]}')
  scaling = values.get('rope_scaling') or {}
  unnamed = 'unknown' if scaling else 'default'
  kinds = {_given(rope, 'rope_type', 'default'), _given(scaling, 'rope_type', _given(scaling, 'type', unnamed))}
  problems += [f'rope scaling {kind!r}' for kind in sorted(map(str, kinds - {'default'}))]
  if (values.get('partial_rotary_factor') or 1.0) != 1.0:
    problems.append(f'partial_rotary_factor {values["partial_rotary_factor"]}')
  if values.get('hidden_act', 'silu') != 'silu':
    problems.append(f'hidden_act {values["hidden_act"]!r}')
  if values.get('use_sliding_window') or set(values.get('layer_types') or ()) - {'full_attention'}:
    problems.append('use_sliding_window')
  if values.get('attention_bias') or values.get('mlp_bias'):
    problems.append('attention_bias or mlp_bias')
  heads, hidden = values.get('num_attention_heads'), values.get('hidden_size')
  fields = {name: values.get(name) for name in SHARED}
  return fields | {
    'num_key_value_heads': _given(values, 'num_key_value_heads', heads),
    'head_dim': _given(values, 'head_dim', hidden // heads if heads and hidden else None),
    'rope_theta': 0.0 if theta is None else theta,  # which is a problem already
    'tie_word_embeddings': _given(values, 'tie_word_embeddings', False),
    'initializer_range': _given(values, 'initializer_range', 0.02),
    'qkv_bias': layout == 'qwen2',
    'qk_norm': layout == 'qwen3',
  }


def to_hf(cfg: ModelConfig, tokenizer, dtype: str, layout: str) -> dict:
  """The config.json that transformers and vLLM read; both spellings of the rotary base, for versions 4 and 5.

  Past `seq_length` a Qwen-1 is not a Qwen2: in that layout its positions end there.
  """
  values = {'architectures': [layouts.LAYOUTS[layout].architecture], 'model_type': layouts.LAYOUTS[layout].model_type}
  if layout == 'qwen1':
    values |= {keys[0]: getattr(cfg, name) for name, keys in QWEN1.items() if name != 'vocab_size'}
    values |= {
      'vocab_size': cfg.vocab_size,
      'intermediate_size': 2 * cfg.intermediate_size,
      'seq_length': cfg.seq_length or cfg.max_position_embeddings,
      'use_dynamic_ntk': cfg.use_dynamic_ntk,
      'use_logn_attn': cfg.use_logn_attn,
      'tie_word_embeddings': False,
      'initializer_range': cfg.initializer_range,
      'no_bias': True,
      'rotary_pct': 1.0,
      'scale_attn_weights': True,
      'attn_dropout_prob': 0.0,
      'emb_dropout_prob': 0.0,
      'tokenizer_class': 'QWenTokenizer',
      'bf16': dtype == 'bfloat16',
      'fp16': dtype == 'float16',
      'fp32': dtype == 'float32',
    }
  else:
    values |= {name: getattr(cfg, name) for name in SHARED}
    if cfg.use_dynamic_ntk or cfg.use_logn_attn:
      values['max_position_embeddings'] = min(cfg.seq_length, cfg.max_position_embeddings)
    values |= {
      'rope_parameters': {'rope_type': 'default', 'rope_theta': cfg.rope_theta},
      'hidden_act': 'silu',
      'attention_bias': False,
      'attention_dropout': 0.0,
    }
  values |= {'use_cache': True, 'torch_dtype': dtype}
  if tokenizer is not None:
    values |= {
      'bos_token_id': bos(tokenizer),
      'eos_token_id': tokenizer.stop_ids[0],
      'pad_token_id': tokenizer.pad,
    }
  return values
