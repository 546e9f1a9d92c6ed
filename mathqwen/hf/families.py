"""Families of models by what their config.json says: which layout their files have, and what a missing key means.

Defaults are those of transformers' config classes, and of Qwen-1's `configuration_qwen.py`. They differ by class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
  """One `model_type`."""

  model_type: str
  architecture: str  # the class of the whole model, in `architectures`
  layout: str  # a name in `layouts.LAYOUTS`
  defaults: Mapping[str, Any]  # what a missing key of config.json means
  older_names: tuple[str, ...] = ()  # other names of the architecture


_COMMON = {
  'rms_norm_eps': 1e-6,
  'rope_theta': 10_000.0,
  'initializer_range': 0.02,
  'tie_word_embeddings': False,
  'sliding_window': None,
}
# A `sliding_window` counts only with `use_sliding_window`, and only in layers from `max_window_layers` on.
_WINDOWED = {'use_sliding_window': False, 'sliding_window': 4096, 'max_window_layers': 28}
_FAMILIES = (
  Family(
    'qwen',
    'QWenLMHeadModel',
    'qwen1',
    {
      'layer_norm_epsilon': 1e-6,
      'rotary_emb_base': 10_000,
      'max_position_embeddings': 8192,
      'initializer_range': 0.02,
      'tie_word_embeddings': False,
    },
  ),
  Family(
    'qwen2',
    'Qwen2ForCausalLM',
    'qwen2',
    {**_COMMON, **_WINDOWED, 'num_key_value_heads': 32, 'max_position_embeddings': 32_768},
  ),
  Family(
    'qwen3',
    'Qwen3ForCausalLM',
    'qwen3',
    {**_COMMON, **_WINDOWED, 'num_key_value_heads': 32, 'head_dim': 128, 'max_position_embeddings': 32_768},
  ),
  Family('llama', 'LlamaForCausalLM', 'llama', {**_COMMON, 'max_position_embeddings': 2048}, ('LLaMAForCausalLM',)),
  # Without its window, a Mistral is a LLaMA; it is exported as one.
  Family(
    'mistral',
    'MistralForCausalLM',
    'llama',
    {**_COMMON, 'num_key_value_heads': 8, 'max_position_embeddings': 131_072, 'sliding_window': 4096},
  ),
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}


def of_architecture(name: Any) -> Family | None:
  """The family of a class in `architectures`; None when it is not known.

  Trainers put their own names in front of the class that they wrapped: FSDPQwen2ForCausalLM.
  """
  for family in _FAMILIES:
    if isinstance(name, str) and name.endswith((family.architecture, *family.older_names)):
      return family
  return None


def of_tensors(names: set[str]) -> Family | None:
  """The family whose files have tensors of these names; None when they are of no family here."""
  ends = {name.rpartition('layers.0.')[2] for name in names} | {name.rpartition('h.0.')[2] for name in names}
  for end, model_type in (
    ('attn.c_attn.weight', 'qwen'),
    ('self_attn.q_norm.weight', 'qwen3'),
    ('self_attn.q_proj.bias', 'qwen2'),
    ('self_attn.q_proj.weight', 'llama'),
  ):
    if end in ends:
      return FAMILIES[model_type]
  return None
