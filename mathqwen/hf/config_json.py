"""config.json of a Hugging Face directory <-> ModelConfig."""

from collections.abc import Collection

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hf import config_keys, families, layouts, rope_json
from mathqwen.hf.families import Family
from mathqwen.hf.tensor_directory import TensorDirectory
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
# Keys of both kinds that are read here or in `rope_json`; all others are looked up in `config_keys`.
_WINDOW = ('sliding_window', 'use_sliding_window', 'max_window_layers', 'layer_types')
_COMPUTED = frozenset([SYSTEM_PROMPT, *SHARED, *_WINDOW, *rope_json.KEYS])
_COMPUTED_QWEN1 = frozenset(
  [SYSTEM_PROMPT, 'tie_word_embeddings', 'initializer_range', 'use_dynamic_ntk', 'use_logn_attn']
)
_COMPUTED_QWEN1 |= {name for names in QWEN1.values() for name in names}
# A null means here what a missing key means, as transformers 4 wrote unset keys. Elsewhere transformers refuses it.
_MAY_BE_NULL = ('tie_word_embeddings', 'initializer_range')


def read(directory: str) -> tuple[ModelConfig, str]:
  """(ModelConfig, name of the layout of the directory's files). UserError: see `parse`."""
  file = files.path(directory) / 'config.json'
  values = files.read_json_object(file)
  if values.get('architectures') or values.get('model_type'):
    return parse(values, str(file))
  opened = TensorDirectory(files.path(directory))
  opened.close()
  return parse(values, str(file), opened.tensors)


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


def parse(values: dict, where: str, tensors: Collection[str] = ()) -> tuple[ModelConfig, str]:
  """(ModelConfig, name of the layout) of the values of a config.json. Lists keys that nobody knows.

  tensors: names in the files, which decide where `architectures` and `model_type` are missing.
  UserError: lists everything in it that this decoder does not compute, starting with `where`.
  """
  problems: list[str] = []
  family = _family(values, tensors, problems)
  try:
    if family.layout == 'qwen1':
      fields, unknown = _qwen1_fields(values, family, problems), []
    else:
      fields, unknown = _llama_fields(values, family, problems)
    unknown += _check_keys(values, family, fields, problems)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # text instead of a number, for example
    raise UserError(f'{where} has a value of the wrong kind ({error}): fetch it again') from None
  missing = [name for name, value in fields.items() if value is None and name != 'seq_length']
  if missing:
    problems.append(f'no {", ".join(missing)}')
  if problems:
    raise UserError(f'{where} does not fit this decoder: {"; ".join(problems)}')
  try:
    cfg = ModelConfig(**fields)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  if window := _window(values, family, cfg):
    raise UserError(f'{where} does not fit this decoder: {window}')
  if unknown:
    config_keys.report_unknown(where, tuple(unknown))
  return cfg, family.layout


def _family(values: dict, tensors: Collection[str], problems: list[str]) -> Family:
  """The family by `architectures`, else by `model_type`, else by the tensors.

  After a problem Qwen2's, so that the other problems are found too.
  """
  architectures, model_type = values.get('architectures'), values.get('model_type')
  if architectures:
    found = {families.of_architecture(name) for name in architectures} if isinstance(architectures, list) else {None}
    family = found.pop() if len(found) == 1 else None
  elif isinstance(model_type, str):
    family = families.FAMILIES.get(model_type)
  else:
    family = families.of_tensors(set(tensors))

  if family is None:
    known = ', '.join(family.architecture for family in families.FAMILIES.values())
    named = f'architectures {architectures!r}' + ('' if architectures else f', model_type {model_type!r}')
    problems.append(f'{named} (known are {known})')
    return families.FAMILIES['qwen2']
  if model_type not in (None, family.model_type):
    problems.append(f'model_type {model_type!r} with architecture {family.architecture}')
  return family


def _value(values: dict, family: Family, name: str):
  """values[name], or what transformers takes where the key is missing; None where there is no default."""
  value = values.get(name, family.defaults.get(name))
  return family.defaults.get(name) if value is None and name in _MAY_BE_NULL else value


def _check_keys(values: dict, family: Family, fields: dict, problems: list[str]) -> list[str]:
  """Adds the keys that change what is not computed here to `problems`; returns those that nobody knows."""
  sizes = config_keys.Sizes(
    hidden_size=fields['hidden_size'],
    head_dim=fields['head_dim'],
    layers=fields['num_hidden_layers'],
    rope_theta=fields['rope_theta'],
    qk_norm=fields['qk_norm'],
    qkv_bias=fields['qkv_bias'],
    o_bias=fields['o_bias'],
  )
  computed = _COMPUTED_QWEN1 if family.layout == 'qwen1' else _COMPUTED
  if _reads_attention_bias(family):
    computed |= {'attention_bias'}
  found, unknown = config_keys.check(values, computed, sizes)
  problems += found
  return unknown


def _qwen1_fields(values: dict, family: Family, problems: list[str]) -> dict:
  fields = {}
  for field, names in QWEN1.items():
    given = [values[name] for name in names if name in values]
    default = next((family.defaults[name] for name in names if name in family.defaults), None)
    fields[field] = next((value for value in given if value is not None), None if given else default)

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
    'tie_word_embeddings': _value(values, family, 'tie_word_embeddings'),
    'initializer_range': _value(values, family, 'initializer_range'),
    **layouts.features('qwen1', attention_bias=False),
    'use_dynamic_ntk': scaled if values.get('use_dynamic_ntk') is None else values['use_dynamic_ntk'],
    'use_logn_attn': scaled if values.get('use_logn_attn') is None else values['use_logn_attn'],
  }


def _llama_fields(values: dict, family: Family, problems: list[str]) -> tuple[dict, list[str]]:
  """(fields of ModelConfig, keys of the rotary embeddings that nobody knows)."""
  fields = {name: _value(values, family, name) for name in SHARED}
  heads, hidden = fields['num_attention_heads'], fields['hidden_size']
  if fields['num_key_value_heads'] is None:
    fields['num_key_value_heads'] = heads
  if fields['head_dim'] is None:
    fields['head_dim'] = family.defaults.get('head_dim')
  if fields['head_dim'] is None and heads and hidden:
    fields['head_dim'] = hidden // heads

  positions = fields['max_position_embeddings']
  theta, scaling, found, unknown = rope_json.read(values, family.defaults['rope_theta'], positions)
  problems += found
  has_biases = _reads_attention_bias(family) and values.get('attention_bias')
  if not isinstance(has_biases, bool | None):
    problems.append(f'{config_keys.shown("attention_bias", has_biases)}, which is neither true nor false')
  features = layouts.features(family.layout, bool(has_biases))
  return fields | {'rope_theta': theta, 'rope_scaling': scaling, **features}, unknown


def _reads_attention_bias(family: Family) -> bool:
  """Whether the key gives this family biases. A Mistral, read as a LLaMA, has none in transformers whatever it says."""
  layout = layouts.LAYOUTS[family.layout]
  return layout.attention_bias and layout.model_type == family.model_type


def _window(values: dict, family: Family, cfg: ModelConfig) -> str:
  """What is wrong when some layer sees only the last tokens of a sequence that the model takes; '' when none does."""
  kinds = values.get('layer_types')
  if kinds is not None and (not isinstance(kinds, list) or len(kinds) != cfg.num_hidden_layers):
    return f'layer_types that are not one of each of {cfg.num_hidden_layers} layers'
  for kind in kinds or ():
    if kind not in ('full_attention', 'attention', 'sliding_attention'):
      return f'layer_types {kind!r}'
  # Families without the two keys, like Mistral, have a window in all layers.
  is_used = values.get('use_sliding_window', family.defaults.get('use_sliding_window', True))
  first = values.get('max_window_layers', family.defaults.get('max_window_layers', 0))
  window = _value(values, family, 'sliding_window') if is_used else None
  if kinds is None:
    has_window = window is not None and not (isinstance(first, int) and first >= cfg.num_hidden_layers)
  else:
    has_window = 'sliding_attention' in kinds
  if not has_window or (isinstance(window, int) and window >= cfg.longest):
    return ''
  if not isinstance(window, int):
    return f'layer_types with sliding_attention, and sliding_window {window!r}'
  return (
    f'sliding_window {window} (use_sliding_window, layer_types), which acts in a sequence of {cfg.longest} tokens; '
    f'where {window} are enough, set max_position_embeddings to {window} in config.json'
  )


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


def _llama_values(cfg: ModelConfig) -> dict:
  values = {name: getattr(cfg, name) for name in SHARED} | rope_json.make(cfg)
  if cfg.use_dynamic_ntk or cfg.use_logn_attn:
    # Past seq_length these two change Qwen-1's attention, and a Qwen2 has neither: its positions end there.
    values['max_position_embeddings'] = min(cfg.seq_length, cfg.max_position_embeddings)
  return values | {
    'hidden_act': 'silu',
    'attention_bias': cfg.o_bias,
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
  """The id of the bos_token; without one that of <|endoftext|>, as in Qwen's own files, or of LLaMA's <s>."""
  if tokenizer.named_bos is not None:
    return tokenizer.named_bos
  return tokenizer.special.get('<|endoftext|>', tokenizer.special.get('<s>'))
