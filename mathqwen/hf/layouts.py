"""The names and shapes of weights in Hugging Face files: one table per layout, used for reading and for writing.

Both sides store the outputs of a Linear first. So one tensor of a file is one of our weights in another shape, or
several of ours one after the other where Qwen-1 keeps q, k and v in one tensor:

  file    transformer.h.0.attn.c_attn.weight  [3 * heads * head_dim, hidden]
  ours    layers/q[0], layers/k[0], layers/v[0]  [heads, head_dim, hidden] each
"""

import dataclasses
import math
from typing import NamedTuple

from mathqwen.errors import UserError
from mathqwen.hf.weights import Path
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class TensorRule:
  """One row of a layout's table.

  name: in a file; {} stands for the layer. ours: the names of our weights whose rows the tensor holds in this order.
  """

  name: str
  ours: tuple[str, ...]
  outputs: int | None = None  # leading axes of ours that are outputs of a Linear; None: the file has a vector


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which tensors the files of one architecture of transformers hold."""

  architecture: str
  model_type: str
  top: tuple[TensorRule, ...]
  layer: tuple[TensorRule, ...]
  ignored: tuple[str, ...] = ()  # endings of names of constants that old files hold


_LLAMA_TOP = (
  TensorRule('model.embed_tokens.weight', ('embed',), 1),
  TensorRule('model.norm.weight', ('norm',)),
  TensorRule('lm_head.weight', ('head',), 1),
)
_LLAMA_LAYER = (
  TensorRule('model.layers.{}.input_layernorm.weight', ('input_norm',)),
  TensorRule('model.layers.{}.self_attn.q_proj.weight', ('q',), 2),
  TensorRule('model.layers.{}.self_attn.k_proj.weight', ('k',), 2),
  TensorRule('model.layers.{}.self_attn.v_proj.weight', ('v',), 2),
  TensorRule('model.layers.{}.self_attn.q_proj.bias', ('q_bias',)),
  TensorRule('model.layers.{}.self_attn.k_proj.bias', ('k_bias',)),
  TensorRule('model.layers.{}.self_attn.v_proj.bias', ('v_bias',)),
  TensorRule('model.layers.{}.self_attn.q_norm.weight', ('q_norm',)),
  TensorRule('model.layers.{}.self_attn.k_norm.weight', ('k_norm',)),
  TensorRule('model.layers.{}.self_attn.o_proj.weight', ('o',), 1),
  TensorRule('model.layers.{}.post_attention_layernorm.weight', ('post_norm',)),
  TensorRule('model.layers.{}.mlp.gate_proj.weight', ('gate',), 1),
  TensorRule('model.layers.{}.mlp.up_proj.weight', ('up',), 1),
  TensorRule('model.layers.{}.mlp.down_proj.weight', ('down',), 1),
)
_QWEN1_TOP = (
  TensorRule('transformer.wte.weight', ('embed',), 1),
  TensorRule('transformer.ln_f.weight', ('norm',)),
  TensorRule('lm_head.weight', ('head',), 1),
)
_QWEN1_LAYER = (
  TensorRule('transformer.h.{}.ln_1.weight', ('input_norm',)),
  TensorRule('transformer.h.{}.attn.c_attn.weight', ('q', 'k', 'v'), 2),
  TensorRule('transformer.h.{}.attn.c_attn.bias', ('q_bias', 'k_bias', 'v_bias')),
  TensorRule('transformer.h.{}.attn.c_proj.weight', ('o',), 1),
  TensorRule('transformer.h.{}.ln_2.weight', ('post_norm',)),
  # Not in alphabetical order: Qwen-1 computes c_proj(w1(x) * silu(w2(x))), so w2 is the gate.
  TensorRule('transformer.h.{}.mlp.w2.weight', ('gate',), 1),
  TensorRule('transformer.h.{}.mlp.w1.weight', ('up',), 1),
  TensorRule('transformer.h.{}.mlp.c_proj.weight', ('down',), 1),
)

LAYOUTS = {
  'qwen1': Layout('QWenLMHeadModel', 'qwen', _QWEN1_TOP, _QWEN1_LAYER, ('rotary_emb.inv_freq',)),
  'qwen2': Layout('Qwen2ForCausalLM', 'qwen2', _LLAMA_TOP, _LLAMA_LAYER, ('rotary_emb.inv_freq',)),
  'qwen3': Layout('Qwen3ForCausalLM', 'qwen3', _LLAMA_TOP, _LLAMA_LAYER),
  'llama': Layout('LlamaForCausalLM', 'llama', _LLAMA_TOP, _LLAMA_LAYER, ('rotary_emb.inv_freq',)),
}
# (qkv_bias, qk_norm) of the layouts that transformers loads without remote code. They determine the default layout.
_FEATURES = {'qwen2': (True, False), 'qwen3': (False, True), 'llama': (False, False)}


def choose(cfg: ModelConfig, name: str | None = None) -> str:
  """The name of a layout: `name`, or by default the one that transformers loads without remote code.

  UserError: when the layout cannot hold a model of this config.
  """
  default = next((n for n, features in _FEATURES.items() if features == (cfg.qkv_bias, cfg.qk_norm)), None)
  if name is None or name == default:
    if default is None:
      raise UserError(f'no Hugging Face architecture has qkv_bias={cfg.qkv_bias} with qk_norm={cfg.qk_norm}')
    return default
  if name not in LAYOUTS:
    raise UserError(f'layout {name!r} is not one of {", ".join(LAYOUTS)}')
  if misfits := _misfits(cfg, name):
    raise UserError(f'layout {name} cannot hold this model ({", ".join(misfits)}): leave --layout out for {default}')
  return name


def _misfits(cfg: ModelConfig, name: str) -> list[str]:
  """What a model has that the layout `name` cannot express."""
  if name == 'qwen1':
    reasons = {
      'no qkv_bias': not cfg.qkv_bias,
      'qk_norm': cfg.qk_norm,
      'grouped-query attention': cfg.num_key_value_heads != cfg.num_attention_heads,
      'a tied head': cfg.tie_word_embeddings,
    }
  else:
    bias, norm = _FEATURES[name]
    reasons = {
      f'qkv_bias={cfg.qkv_bias}': cfg.qkv_bias != bias,
      f'qk_norm={cfg.qk_norm}': cfg.qk_norm != norm,
    }
  return [reason for reason, applies in reasons.items() if applies]


class WeightPart(NamedTuple):
  """One layer of one of our weights; layer None: a weight that is not stacked."""

  path: Path
  layer: int | None


@dataclasses.dataclass(frozen=True)
class FileTensor:
  """One tensor of a file: its shape there, and the parts of our weights whose rows it holds in this order."""

  name: str
  shape: tuple[int, ...]
  parts: tuple[WeightPart, ...]


def file_tensors(cfg: ModelConfig, layout: str) -> list[FileTensor]:
  """Every tensor of files of this layout.

  Ordered by weight, then by layer: a writer that takes them in this order needs each of our stacked weights once.
  """
  shapes = qwen.abstract(cfg)
  found = []
  for rule in LAYOUTS[layout].top:
    if rule.ours[0] in shapes:  # a tied model has no head, for example
      shape = _shape_in_file(rule, [shapes[name].shape for name in rule.ours])
      found.append(FileTensor(rule.name, shape, tuple(WeightPart((name,), None) for name in rule.ours)))
  for rule in LAYOUTS[layout].layer:
    if rule.ours[0] in shapes['layers']:
      shape = _shape_in_file(rule, [shapes['layers'][name].shape[1:] for name in rule.ours])
      for layer in range(cfg.num_hidden_layers):
        parts = tuple(WeightPart(('layers', name), layer) for name in rule.ours)
        found.append(FileTensor(rule.name.format(layer), shape, parts))
  return found


def _shape_in_file(rule: TensorRule, our_shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
  """Shape of a file's tensor that holds weights of these shapes (of one layer)."""
  rows = sum(math.prod(shape[: rule.outputs]) for shape in our_shapes)
  if rule.outputs is None:
    return (rows,)
  return (rows, math.prod(our_shapes[0][rule.outputs :]))


@dataclasses.dataclass(frozen=True)
class RowRange:
  """Rows `start` to `stop` of tensor `name` in a file."""

  name: str
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class WeightPlace:
  """Where one of our weights, `path` in the tree, stands in files: one range per layer, or a single one."""

  path: Path
  shape: tuple[int, ...]  # of one layer
  stacked: bool  # whether ours has a leading axis of layers
  ranges: tuple[RowRange, ...]


def weight_places(cfg: ModelConfig, layout: str) -> list[WeightPlace]:
  """`file_tensors` seen from our side: each of our weights, with where it stands in files of this layout."""
  shapes = qwen.abstract(cfg)
  ranges: dict[Path, list[RowRange]] = {}
  for tensor in file_tensors(cfg, layout):
    rows = tensor.shape[0] // len(tensor.parts)  # q, k and v of Qwen-1 have equal sizes
    for number, part in enumerate(tensor.parts):
      ranges.setdefault(part.path, []).append(RowRange(tensor.name, number * rows, (number + 1) * rows))

  found = []
  for path, rows_of_path in ranges.items():
    stacked = path[0] == 'layers'
    shape = shapes['layers'][path[1]].shape[1:] if stacked else shapes[path[0]].shape
    found.append(WeightPlace(path, shape, stacked, tuple(rows_of_path)))
  return found
