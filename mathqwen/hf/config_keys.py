"""Every key of a config.json is known: computed, without effect here, or one that changes the mathematics.

A model that is computed without something that it was trained with is a worse model, and nobody would see why. So a
key of the third kind is refused by name, unless its value is one that changes nothing. Keys that nobody here knows are
refused where their names sound like mathematics, and listed once otherwise.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mathqwen.errors import report

# Keys without effect on logits: what trainers, tokenizers, generation and older versions of transformers leave behind.
# Dropout is off outside of training, and in training it is ours (`train.dropout`). Those of the last lines act only
# with experts or with `attn_temperature_tuning`, which `_CHANGES` has.
_HARMLESS = """
  _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _flash_attn_2_enabled
  _from_model_config _name_or_path _unsloth_fix architectures assistant_confidence_threshold assistant_lookbehind
  attention_dropout attention_probs_dropout_prob attn_dropout attn_dropout_prob attn_implementation attn_pdrop
  auto_map bad_words_ids base_model base_model_tp_plan begin_suppress_tokens bf16 bias_dropout_fusion bos_token
  bos_token_id cache_implementation chunk_size_feed_forward class_token_id classifier_dropout classifier_dropout_prob
  cls_token_id cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype
  early_stopping emb_dropout_prob embd_pdrop embedding_dropout encoder_no_repeat_ngram_size encoder_repetition_penalty
  eos_token eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty ffn_dropout finetuning_task
  flash_attention forced_bos_token_id forced_eos_token_id fp16 fp32 full_determinism gradient_checkpointing
  hidden_dropout hidden_dropout_prob id2label initializer_factor is_decoder is_llama_config is_training
  keys_to_ignore_at_inference label2id length_penalty mask_token_id max_length max_new_tokens max_sequence_length
  min_length model_max_length model_name model_type name_or_path neftune_alpha no_repeat_ngram_size
  num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_labels num_return_sequences
  onnx_safe output_attentions output_hidden_states output_past output_router_logits output_scores pad_token
  pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty rescale_prefix_std_base
  resid_dropout resid_pdrop residual_dropout return_dict return_dict_in_generate router_aux_loss_coef save_type
  sep_token_id softmax_in_fp32 special_tokens_map suppress_tokens target_lookbehind task_specific_params temperature
  tf_legacy_loss tie_encoder_decoder tokenizer_class tokenizer_model_max_length top_k top_p torch_dtype torchscript
  transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16
  use_cache use_cache_kernel use_cache_quantization use_flash_attention use_flash_attention_2 use_flash_attn
  use_fused_qkv use_fused_rms_norm use_sdpa wandb_project

  attn_scale aux_loss_alpha decoder_sparse_step expert_interval first_k_dense_replace floor_scale mlp_only_layers
  moe_intermediate_size moe_layer_freq n_group norm_topk_prob num_experts_per_tok num_experts_per_token
  num_nextn_predict_layers routed_scaling_factor scoring_func seq_aux shared_expert_intermediate_size topk_group
  topk_method
"""
HARMLESS = frozenset(_HARMLESS.split())


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What some values must be equal to so that they change nothing."""

  hidden_size: int
  head_dim: int
  layers: int
  rope_theta: float
  qk_norm: bool
  qkv_bias: bool
  o_bias: bool


OFF = (None, False, 0, '', (), [], {})
ONE = (None, 1)
RMS = (None, 'rms', 'rmsnorm', 'rms_norm', 'RMSNorm', 'RMSnorm', 'LlamaRMSNorm', 'Qwen2RMSNorm')
ROTARY = (None, 'rope', 'rotary', 'ROPE', 'RoPE')
GATED = (None, True, 'swiglu', 'SwiGLU', 'silu', 'gated', 'llama', 'glu')

# Key -> the values with which it changes nothing here, or a function of the model's `Sizes` that gives them.
_CHANGES: dict[str, tuple | Callable[[Sizes], tuple]] = {
  # attention to fewer tokens, or of another form
  **dict.fromkeys(
    (
      'dual_chunk_attention_config', 'attention_chunk_size', 'chunk_size_attention', 'sparse_attention_config',
      'use_mla', 'kv_lora_rank', 'q_lora_rank', 'qk_nope_head_dim', 'qk_rope_head_dim', 'use_cla', 'cla_share_factor',
      'num_kv_shared_layers', 'attention_sinks', 'use_attention_sinks', 'add_attention_sink', 'num_sink_tokens',
      'use_bidirectional_attention', 'bidirectional', 'is_encoder_decoder', 'add_cross_attention', 'pruned_heads',
      'attn_temperature_tuning', 'clip_qkv', 'attn_logit_softcapping', 'final_logit_softcapping', 'logit_softcap',
      'final_logits_soft_cap', 'attn_logits_soft_cap', 'attention_logit_cap', 'scale_attn_by_inverse_layer_idx',
      'use_gated_attention', 'attn_output_gate', 'gated_attention', 'use_head_wise_attn_gate', 'window_size',
      'hybrid_override_pattern', 'linear_attn_config', 'sliding_window_pattern',
    ),
    OFF,
  ),
  'v_head_dim': lambda sizes: (*OFF, sizes.head_dim),
  'is_causal': (None, True),
  'scale_attn_weights': (None, True),
  'query_pre_attn_scalar': lambda sizes: (None, sizes.head_dim),
  **dict.fromkeys(
    ('attention_multiplier', 'attention_scale', 'softmax_scale'),
    lambda sizes: (None, sizes.head_dim**-0.5),
  ),
  # positions
  **dict.fromkeys(
    (
      'alibi', 'use_alibi', 'no_rope', 'use_nope', 'no_rope_layer_interval', 'nope_layer_interval', 'rope_interleaved',
      'interleaved_rope', 'rotary_interleaved', 'use_interleaved_rope', 'rope_traditional', 'mrope_section',
      'use_mrope',
    ),
    OFF,
  ),
  'no_rope_layers': lambda sizes: (None, [], [1] * sizes.layers),  # 1 stands for a layer with positions
  **dict.fromkeys(('partial_rotary_factor', 'rotary_pct', 'rope_pct', 'rotary_percent', 'rope_ratio'), ONE),
  **dict.fromkeys(('ntk_alpha', 'rope_alpha'), ONE),
  **dict.fromkeys(('rotary_dim', 'rope_dim'), lambda sizes: (None, sizes.head_dim)),
  **dict.fromkeys(('use_rope', 'rope', 'use_rotary'), (None, True)),
  **dict.fromkeys(('position_embedding_type', 'pos_emb', 'position_embedding', 'pe_type'), ROTARY),
  **dict.fromkeys(
    ('rotary_base', 'rotary_emb_base', 'rope_base', 'rope_local_base_freq', 'local_rope_theta', 'global_rope_theta'),
    lambda sizes: (None, sizes.rope_theta),
  ),
  **dict.fromkeys(('use_logn_attn', 'use_dynamic_ntk', 'logn_attn'), OFF),
  # factors on what flows through the model (Granite, MiniCPM, Cohere, Falcon-H1, muP)
  **dict.fromkeys(
    (
      'logits_scaling', 'logit_scale', 'logits_scale', 'embedding_multiplier', 'residual_multiplier', 'scale_emb',
      'lm_head_multiplier', 'embedding_scale', 'output_multiplier', 'output_multiplier_scale', 'key_multiplier',
      'attention_in_multiplier', 'attention_out_multiplier', 'mup_width_scale', 'mup_embeddings_multiplier',
      'mup_scale_factor', 'residual_scale', 'depth_scale',
    ),
    ONE,
  ),
  'scale_depth': lambda sizes: (None, math.sqrt(sizes.layers)),
  'dim_model_base': lambda sizes: (None, sizes.hidden_size),
  'mup_base_width': lambda sizes: (None, sizes.hidden_size),
  **dict.fromkeys(('use_mup', 'mup', 'mup_enabled', 'mup_use_scaling', 'mup_attn_multiplier', 'scale_embeddings'), OFF),
  **dict.fromkeys(('embedding_scaling', 'scale_embedding', 'normalize_embedding', 'norm_head'), OFF),
  # layers
  **dict.fromkeys(
    (
      'num_experts', 'num_local_experts', 'n_routed_experts', 'moe_num_experts', 'num_routed_experts',
      'n_shared_experts', 'embedding_layer_norm',
      'moe', 'use_moe', 'is_moe', 'enable_moe_block', 'parallel_attn',
      'use_parallel_residual', 'parallel_residual',
      'parallel_block', 'parallel_attn_mlp_res', 'new_decoder_architecture', 'norm_bias', 'use_layer_norm',
      'apply_residual_connection_post_layernorm', 'post_norm', 'use_post_norm', 'sandwich_norm', 'norm_after',
      'use_sandwich_norm', 'rms_norm_unit_offset', 'rms_norm_add_unit_offset', 'zero_centered_gamma', 'block_configs',
      'per_layer_config', 'layer_group_size', 'mlp_layer_types', 'use_value_residual', 'value_residual', 'use_ngpt',
    ),
    OFF,
  ),
  **dict.fromkeys(('norm_type', 'layernorm_type', 'layer_norm_type', 'normalization', 'normalization_type'), RMS),
  **dict.fromkeys(
    ('qk_norm', 'use_qk_norm', 'qk_layernorm', 'use_qk_layernorm', 'q_norm', 'k_norm', 'attention_qk_norm'),
    lambda sizes: (None, True) if sizes.qk_norm else OFF,
  ),
  **dict.fromkeys(('mlp_type', 'ffn_type', 'ffn_act', 'use_swiglu', 'gated_mlp', 'use_gated_mlp', 'use_glu'), GATED),
  **dict.fromkeys(
    ('hidden_activation', 'activation_function', 'activation', 'act_fn', 'mlp_hidden_act'),
    (None, 'silu', 'swish', 'swiglu'),
  ),
  'hidden_act': ('silu', 'swish'),
  # biases
  **dict.fromkeys(
    (
      'mlp_bias', 'use_bias', 'add_bias_linear', 'lm_head_bias', 'head_bias', 'use_mlp_bias', 'ffn_bias',
    ),
    OFF,
  ),
  **dict.fromkeys(
    (
      'bias', 'attention_bias', 'use_attention_bias', 'attn_bias', 'attention_out_bias', 'attn_out_bias', 'o_proj_bias',
      'o_bias',
    ),
    lambda sizes: (*OFF, True) if sizes.o_bias else OFF,
  ),
  **dict.fromkeys(
    ('qkv_bias', 'add_qkv_bias', 'use_qkv_bias'), lambda sizes: (None, True) if sizes.qkv_bias else OFF
  ),
  'no_bias': (None, True),
  # another model around it, or other numbers in the files
  **dict.fromkeys(
    (
      'vision_config', 'visual', 'mm_vision_tower',
      'audio_config', 'text_config', 'language_config', 'llm_config', 'quantization_config',
      'compression_config', 'quantization',
    ),
    OFF,
  ),
}  # fmt: skip
_REMEDIES = {'quantization_config': ' (give the unquantised checkpoint)'}
# Names of keys that are not in the table and whose effect would be missed. With a value of `_PLAIN` they have none.
_SUSPICIOUS = re.compile(
  r'multiplier|soft_?cap|_cap$|logits?_?scal|scal\w*_(logits?|emb|depth|residual)|(emb\w*|residual|depth)_scal|mup(_|$)'
  r'|alibi|expert|moe|(local|att\w*|sliding)_window|(chunk|sparse)\w*_att|att\w*_(chunk|sparse)|no_?rope|nope(_|$)|rope|rotary|ntk|yarn|qk_?(clip|norm)|linear_attn|mamba|ssm'
  r'|state_size|parallel_(attn|residual|block)|norm_(type|kind)|_bias$'
)
_PLAIN = (*OFF, 1, True)


def check(values: Mapping[str, Any], computed: frozenset[str], sizes: Sizes) -> tuple[list[str], list[str]]:
  """(what changes the mathematics and is not computed, keys that nobody knows) of the values of a config.json.

  computed: keys that the caller reads itself.
  """
  problems, unknown = [], []
  for key, value in values.items():
    if key in computed or key in HARMLESS:
      continue
    if key in _CHANGES:
      plain = _CHANGES[key]
      if not _is_one_of(value, plain(sizes) if callable(plain) else plain):
        problems.append(shown(key, value))
    elif _SUSPICIOUS.search(key.lower()) and not _is_one_of(value, _PLAIN):
      problems.append(f'{shown(key, value)}, a key that is not known here')
    else:
      unknown.append(key)
  return problems, unknown


def shown(key: str, value: Any) -> str:
  """A key with its value, for a message: 'logit_scale 0.5'."""
  if key in _REMEDIES:
    return key + _REMEDIES[key]
  text = repr(value)
  return f'{key} {text if len(text) <= 60 else text[:57] + "..."}'


def _is_one_of(value: Any, plain: tuple) -> bool:
  if isinstance(value, float) and math.isfinite(value):
    return any(isinstance(x, int | float) and math.isclose(value, x, rel_tol=1e-6) for x in plain)
  return value in plain


@functools.cache  # a command opens the same directory more than once
def report_unknown(where: str, keys: tuple[str, ...]) -> None:
  """Lists keys that nobody knows, once for each file."""
  printable = [key if key.isprintable() else ascii(key) for key in keys[:20]]
  names = ', '.join(key if len(key) <= 60 else key[:57] + '...' for key in printable)
  more = f' and {len(keys) - 20} more' if len(keys) > 20 else ''
  report(f'{where}: keys that are not known here, and not used: {names}{more}')
