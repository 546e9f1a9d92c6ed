"""The names and shapes of weights in Hugging Face files: one table per layout, used for reading and for writing.

Both sides store the outputs of a Linear first, so nothing is ever transposed. A tensor of a file is one of our weights
reshaped, or, where Qwen-1 keeps q, k and v in one tensor, several of ours below each other:

  file    transformer.h.0.attn.c_attn.weight  [3 * heads * head_dim, hidden]
  ours    layers/q[0], layers/k[0], layers/v[0]  [heads, head_dim, hidden] each

To add a family:
1. Add one `Layout` to LAYOUTS, with a new table if its tensors have other names, and one `Family` in `families.py`,
   which names it and says what missing keys mean. Its config.json is then read like those of Qwen2, Qwen3 and LLaMA;
   handle keys with other names or meanings in `config_json.py`.
2. Where its layers compute something that no other family does, declare a switch in `model/config.py`, read it in
   `model/qwen.py`, and name it in the `features` of every layout. The name of a norm's weight ends in `norm`, or weight
   decay applies to it. Activation, RMSNorm and the scale of embeddings are fixed in `model/layers.py` and `qwen.embed`.
3. Add a tiny random model of it to `tests/conftest.py` (FAMILIES and `torch_model`): the tests of logits, round trips
   and decoding then cover it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from mathqwen.errors import UserError
from mathqwen.hf.weights import Path
from mathqwen.model import parameters
from mathqwen.model.config import NO_ROPE_SCALING, ModelConfig


@dataclasses.dataclass(frozen=True)
class TensorRule:
  """One row of a layout's table: a tensor of a file, and our weights in it."""

  name: str  # in the file; {} stands for the number of the layer
  ours: tuple[str, ...]  # our weights whose rows the tensor holds, in this order
  outputs: int | None = None  # how many leading axes of ours are rows of the file's matrix; None: it has a vector


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which tensors the files of one transformers architecture hold, and what its layers have."""

  architecture: str  # `architectures` and `model_type` in config.json
  model_type: str
  top: tuple[TensorRule, ...]
  layer: tuple[TensorRule, ...]  # the same for every layer
  features: Mapping[str, bool]  # what its layers have: fields of ModelConfig
  attention_bias: bool = False  # whether that key of config.json gives q, k, v and o biases
  remote_code: bool = False  # whether transformers needs code of the checkpoint to load it
  ignored: tuple[str, ...] = ()  # names with these endings are skipped: constants that old files hold


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
  TensorRule('model.layers.{}.self_attn.o_proj.bias', ('o_bias',)),
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

_CONSTANTS = ('rotary_emb.inv_freq', 'rotary_emb.cos_cached', 'rotary_emb.sin_cached', 'attn.masked_bias')
LAYOUTS = {
  'qwen1': Layout(
    'QWenLMHeadModel',
    'qwen',
    _QWEN1_TOP,
    _QWEN1_LAYER,
    {'qkv_bias': True, 'o_bias': False, 'qk_norm': False},
    remote_code=True,
    ignored=_CONSTANTS,
  ),
  'qwen2': Layout(
    'Qwen2ForCausalLM',
    'qwen2',
    _LLAMA_TOP,
    _LLAMA_LAYER,
    {'qkv_bias': True, 'o_bias': False, 'qk_norm': False},
    ignored=_CONSTANTS,
  ),
  'qwen3': Layout(
    'Qwen3ForCausalLM',
    'qwen3',
    _LLAMA_TOP,
    _LLAMA_LAYER,
    {'qkv_bias': False, 'o_bias': False, 'qk_norm': True},
    attention_bias=True,
  ),
  'llama': Layout(
    'LlamaForCausalLM',
    'llama',
    _LLAMA_TOP,
    _LLAMA_LAYER,
    {'qkv_bias': False, 'o_bias': False, 'qk_norm': False},
    attention_bias=True,
    ignored=_CONSTANTS,
  ),
}


def features(name: str, attention_bias: bool) -> dict[str, bool]:
  """What the layers of the layout `name` have. attention_bias: the key of its config.json, where it has the key."""
  layout = LAYOUTS[name]
  biases = {'qkv_bias': True, 'o_bias': True} if attention_bias and layout.attention_bias else {}
  return {**layout.features, **biases}


def choose(cfg: ModelConfig, name: str | None = None) -> str:
  """The name of a layout: `name`, or by default the one that transformers loads without remote code.

  UserError: when the layout cannot hold a model of this config.
  """
  default = next((n for n, layout in LAYOUTS.items() if not layout.remote_code and not _feature_misfits(cfg, n)), None)
  if name is None or name == default:
    if default is None:
      ours = ' with '.join(f'{feature}={getattr(cfg, feature)}' for feature in next(iter(LAYOUTS.values())).features)
      raise UserError(f'no Hugging Face architecture has {ours}')
    return default
  if name not in LAYOUTS:
    raise UserError(f'layout {name!r} is not one of {", ".join(LAYOUTS)}')
  if misfits := _misfits(cfg, name):
    raise UserError(f'layout {name} cannot hold this model ({", ".join(misfits)}): leave --layout out for {default}')
  return name


def _misfits(cfg: ModelConfig, name: str) -> list[str]:
  """What a model has that the layout `name` cannot express."""
  misfits = _feature_misfits(cfg, name)
  if name == 'qwen1':
    if cfg.num_key_value_heads != cfg.num_attention_heads:
      misfits.append('grouped-query attention')
    if cfg.tie_word_embeddings:
      misfits.append('a tied head')
    if cfg.rope_scaling != NO_ROPE_SCALING:
      misfits.append('rotary scaling')
  return misfits


def _feature_misfits(cfg: ModelConfig, name: str) -> list[str]:
  """The features of a model's layers that differ from those of the layout `name`."""
  found = features(name, attention_bias=cfg.qkv_bias and cfg.o_bias)
  return [f'{feature}={getattr(cfg, feature)}' for feature in found if getattr(cfg, feature) != found[feature]]


class WeightPart(NamedTuple):
  """One layer of one of our weights; layer None: a weight that is not stacked."""

  path: Path
  layer: int | None


@dataclasses.dataclass(frozen=True)
class FileTensor:
  """One tensor of a file: its shape there, and the parts of our weights whose rows it holds, in this order."""

  name: str
  shape: tuple[int, ...]
  parts: tuple[WeightPart, ...]


def file_tensors(cfg: ModelConfig, layout: str) -> list[FileTensor]:
  """Every tensor that the files of a model have in this layout.

  Ordered by weight, then by layer: a writer that goes in this order loads each of our stacked weights once.
  """
  shapes = parameters.abstract(cfg)
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
  _check_every_weight_has_a_place(shapes, found, layout)
  return found


def _check_every_weight_has_a_place(shapes: dict, tensors: list[FileTensor], layout: str):
  """Without this, a weight that a new family has and its table lacks would be left out of exports."""
  ours = {(name,) for name in shapes if name != 'layers'} | {('layers', name) for name in shapes['layers']}
  missing = ours - {part.path for tensor in tensors for part in tensor.parts}
  if missing:
    names = ', '.join(sorted('/'.join(path) for path in missing))
    raise ValueError(f'the table of layout {layout} has no tensor for {names}: add a TensorRule')


def _shape_in_file(rule: TensorRule, our_shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
  """The shape of a file's tensor that holds weights of these shapes, each of one layer."""
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
  """Where the files have one of our weights: one range of rows per layer, or a single one."""

  path: Path  # in our tree
  shape: tuple[int, ...]  # of one layer
  stacked: bool  # whether ours has a leading axis of layers
  ranges: tuple[RowRange, ...]


def weight_places(cfg: ModelConfig, layout: str) -> list[WeightPlace]:
  """`file_tensors` seen from our side: each of our weights, and where files of this layout have it."""
  shapes = parameters.abstract(cfg)
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
