"""config.json of a Hugging Face directory <-> ModelConfig."""

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hf import layouts
from mathqwen.model.config import ModelConfig
from mathqwen.text.tokenizer import Tokenizer

SYSTEM_PROMPT = 'system_prompt'  # our own key in config.json: the system turn that the model was trained with
# Fields of ModelConfig that Qwen2, Qwen3 and LLaMA store under the same name.
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
# Field of ModelConfig -> names in Qwen-1's config.json: the current one, then that of August 2023.
QWEN1 = {
  'vocab_size': ('padded_vocab_size', 'vocab_size'),
  'hidden_size': ('hidden_size', 'n_embd'),
  'intermediate_size': ('intermediate_size', 'ffn_hidden_size'),  # twice our value: of w1 and w2 together
  'num_hidden_layers': ('num_hidden_layers', 'n_layer'),
  'num_attention_heads': ('num_attention_heads', 'n_head'),
  'max_position_embeddings': ('max_position_embeddings', 'n_positions'),
  'rms_norm_eps': ('layer_norm_epsilon',),
  'rope_theta': ('rotary_emb_base',),
  'head_dim': ('kv_channels',),
  'seq_length': ('seq_length',),
}
# The only values of these keys of Qwen-1 that our decoder computes.
_QWEN1_FIXED = {'no_bias': True, 'rotary_pct': 1.0, 'scale_attn_weights': True}
# transformers' defaults for keys that a config.json leaves out (Qwen2Config, Qwen3Config, LlamaConfig, QWenConfig).
_TIED = False
_INITIALIZER_RANGE = 0.02


def read(directory: str) -> tuple[ModelConfig, str]:
  """(ModelConfig, name of the layout of the directory's files). UserError: see `parse`."""
  file = files.path(directory) / 'config.json'
  return parse(files.read_json_object(file), str(file))


def read_config(directory: str) -> ModelConfig:
  """The ModelConfig of a Hugging Face directory. UserError: see `parse`."""
  return read(directory)[0]


def read_system_prompt(directory: str) -> str:
  """The system turn that an exported model was trained with; '' when there is none."""
  file = files.path(directory) / 'config.json'
  prompt = files.read_json_object(file).get(SYSTEM_PROMPT, '')
  if not isinstance(prompt, str):
    raise UserError(f'{file}: {SYSTEM_PROMPT} is {type(prompt).__name__}: write text, or leave it out')
  return prompt


def parse(values: dict, where: str) -> tuple[ModelConfig, str]:
  """(ModelConfig, name of the layout) of the values of a config.json.

  UserError: lists everything in it that this decoder does not compute, starting with `where`.
  """
  problems: list[str] = []
  layout = _layout(values, problems)
  if values.get('quantization_config'):
    problems.append('quantization_config (give the unquantised checkpoint)')
  try:
    fields = _qwen1_fields(values, problems) if layout == 'qwen1' else _llama_fields(values, problems, layout)
  except (TypeError, ValueError, AttributeError) as error:  # text instead of a number, for example
    raise UserError(f'{where} has a value of the wrong kind ({error}): fetch it again') from None
  missing = [name for name, value in fields.items() if value is None and name != 'seq_length']
  if missing:
    problems.append(f'no {", ".join(missing)}')
  if problems:
    raise UserError(f'{where} does not fit this decoder: {"; ".join(problems)}')
  try:
    return ModelConfig(**fields), layout
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def _layout(values: dict, problems: list[str]) -> str:
  """The layout's name, from `architectures`; after a problem Qwen2's, so that the other problems are found too."""
  names = {layout.architecture: name for name, layout in layouts.LAYOUTS.items()}
  architectures = values.get('architectures')
  layout = names.get(architectures[0]) if isinstance(architectures, list) and len(architectures) == 1 else None
  if layout is None:
    problems.append(f'architectures {architectures!r} (known are {", ".join(names)})')
    return 'qwen2'
  if values.get('model_type') not in (None, layouts.LAYOUTS[layout].model_type):
    problems.append(f'model_type {values["model_type"]!r} with architecture {architectures[0]}')
  return layout


def _value(values: dict, name: str, default):
  """values[name]; the default where the key is missing or null, as transformers 4 wrote unset keys."""
  return default if values.get(name) is None else values[name]


def _qwen1_fields(values: dict, problems: list[str]) -> dict:
  fields = {}
  for field, names in QWEN1.items():
    fields[field] = next((values[name] for name in names if values.get(name) is not None), None)

  for name, only in _QWEN1_FIXED.items():
    if values.get(name, only) != only:
      problems.append(f'{name} {values[name]!r}')
  if values.get('activation', 'swiglu') != 'swiglu':
    problems.append(f'activation {values["activation"]!r}')

  width = fields['intermediate_size']
  if isinstance(width, int):
    if width % 2:
      problems.append(f'intermediate_size {width}, which is not twice a width')
    fields['intermediate_size'] = width // 2
  # Defaults of use_dynamic_ntk and use_logn_attn: off in the first config class (August 2023, with n_embd and so on),
  # on in all later ones. Neither does anything without the length that the model was trained at.
  scaled = fields['seq_length'] is not None and 'n_embd' not in values
  heads, hidden = fields['num_attention_heads'], fields['hidden_size']
  if fields['head_dim'] is None and heads and hidden:
    fields['head_dim'] = hidden // heads
  return fields | {
    'num_key_value_heads': heads,
    'tie_word_embeddings': _value(values, 'tie_word_embeddings', _TIED),
    'initializer_range': _value(values, 'initializer_range', _INITIALIZER_RANGE),
    **layouts.LAYOUTS['qwen1'].features,
    'use_dynamic_ntk': _value(values, 'use_dynamic_ntk', scaled),
    'use_logn_attn': _value(values, 'use_logn_attn', scaled),
  }


def _llama_fields(values: dict, problems: list[str], layout: str) -> dict:
  theta = _rope_theta(values, problems, layout)
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
    'num_key_value_heads': _value(values, 'num_key_value_heads', heads),
    'head_dim': _value(values, 'head_dim', hidden // heads if heads and hidden else None),
    'rope_theta': theta,
    'tie_word_embeddings': _value(values, 'tie_word_embeddings', _TIED),
    'initializer_range': _value(values, 'initializer_range', _INITIALIZER_RANGE),
    **layouts.LAYOUTS[layout].features,
  }


def _rope_theta(values: dict, problems: list[str], layout: str) -> float:
  """The rotary base, from the keys of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).

  Adds a problem where they disagree or ask for scaled positions.
  """
  parameters = values.get('rope_parameters') or {}
  scaling = values.get('rope_scaling') or {}
  default = layouts.LAYOUTS[layout].rope_theta
  theta = _value(values, 'rope_theta', _value(parameters, 'rope_theta', default))
  if theta is None:
    problems.append('neither rope_theta nor rope_parameters.rope_theta')
    theta = 0.0  # never used: `parse` refuses a config with problems
  elif _value(parameters, 'rope_theta', theta) != theta:
    problems.append(f'rope_theta {theta} but rope_parameters.rope_theta {parameters["rope_theta"]}')

  unnamed = 'unknown' if scaling else 'default'  # a rope_scaling without a type still scales
  kinds = {
    _value(parameters, 'rope_type', 'default'),
    _value(scaling, 'rope_type', _value(scaling, 'type', unnamed)),
  }
  problems += [f'rope scaling {kind!r}' for kind in sorted(map(str, kinds - {'default'}))]
  return theta


def make(
  cfg: ModelConfig,
  tokenizer: Tokenizer | None,
  dtype: str,
  layout: str,
  system_prompt: str = '',
  stop_ids: tuple[int, ...] | None = None,
) -> dict:
  """The config.json that transformers and vLLM read, for files of `dtype` in this layout.

  stop_ids: at which answers end, first the one that ends turns; None takes the tokenizer's.
  """
  values = {'architectures': [layouts.LAYOUTS[layout].architecture], 'model_type': layouts.LAYOUTS[layout].model_type}
  values |= _qwen1_values(cfg, dtype) if layout == 'qwen1' else _llama_values(cfg)
  values |= {'use_cache': True, 'torch_dtype': dtype}
  if tokenizer is not None:
    values |= {
      'bos_token_id': bos(tokenizer),
      'eos_token_id': (stop_ids or tokenizer.stop_ids)[0],
      'pad_token_id': tokenizer.pad,
    }
  if system_prompt:
    values[SYSTEM_PROMPT] = system_prompt
  return values


def _qwen1_values(cfg: ModelConfig, dtype: str) -> dict:
  values = {names[0]: getattr(cfg, field) for field, names in QWEN1.items() if field != 'vocab_size'}
  return values | {
    'vocab_size': cfg.vocab_size,
    'intermediate_size': 2 * cfg.intermediate_size,
    'seq_length': cfg.seq_length or cfg.max_position_embeddings,
    'use_dynamic_ntk': cfg.use_dynamic_ntk,
    'use_logn_attn': cfg.use_logn_attn,
    'tie_word_embeddings': False,
    'initializer_range': cfg.initializer_range,
    **_QWEN1_FIXED,
    'attn_dropout_prob': 0.0,
    'emb_dropout_prob': 0.0,
    'tokenizer_class': 'QWenTokenizer',
    'bf16': dtype == 'bfloat16',
    'fp16': dtype == 'float16',
    'fp32': dtype == 'float32',
  }


def _llama_values(cfg: ModelConfig) -> dict:
  values = {name: getattr(cfg, name) for name in SHARED}
  if cfg.use_dynamic_ntk or cfg.use_logn_attn:
    # Past seq_length these two change Qwen-1's attention, and a Qwen2 has neither: its positions end there.
    values['max_position_embeddings'] = min(cfg.seq_length, cfg.max_position_embeddings)
  return values | {
    # rope_theta as well (in SHARED): version 4 of transformers reads that, version 5 reads this.
    'rope_parameters': {'rope_type': 'default', 'rope_theta': cfg.rope_theta},
    'hidden_act': 'silu',
    'attention_bias': False,
    'attention_dropout': 0.0,
  }


def make_generation_config(tokenizer: Tokenizer, stop_ids: tuple[int, ...] | None = None) -> dict:
  """The generation_config.json with which transformers and vLLM stop where we do, and decode greedily.

  stop_ids: as in `make`.
  """
  return {
    'bos_token_id': bos(tokenizer),
    'eos_token_id': list(stop_ids or tokenizer.stop_ids),
    'pad_token_id': tokenizer.pad,
    'do_sample': False,
  }


def bos(tokenizer: Tokenizer) -> int | None:
  """The id of <|endoftext|>, which Qwen's own files give as bos_token_id, or of LLaMA's <s>."""
  return tokenizer.special.get('<|endoftext|>', tokenizer.special.get('<s>'))
