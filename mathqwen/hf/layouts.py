"""Where each weight stands in a Hugging Face file: one table a layout, read in both directions.

Both sides store a Linear outputs first, so a tensor of a file is one of ours in another shape, or, where Qwen-1 keeps
q, k and v in one tensor, several of ours one after the other.
"""

import dataclasses
import math

from mathqwen.errors import UserError
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
  """`name` in a file, {} being the layer. `ours`: names of our weights, whose rows it holds one after the other."""

  name: str
  ours: tuple[str, ...]
  outputs: int | None = None  # leading axes of ours that a Linear puts out; None: a vector in the file


@dataclasses.dataclass(frozen=True)
class Layout:
  architecture: str
  model_type: str
  top: tuple[Tensor, ...]
  layer: tuple[Tensor, ...]
  ignored: tuple[str, ...] = ()  # ends of names that old files have and nobody needs


_LLAMA_TOP = (
  Tensor('model.embed_tokens.weight', ('embed',), 1),
  Tensor('model.norm.weight', ('norm',)),
  Tensor('lm_head.weight', ('head',), 1),
)
_LLAMA_LAYER = (
  Tensor('model.layers.{}.input_layernorm.weight', ('input_norm',)),
  Tensor('model.layers.{}.self_attn.q_proj.weight', ('q',), 2),
  Tensor('model.layers.{}.self_attn.k_proj.weight', ('k',), 2),
  Tensor('model.layers.{}.self_attn.v_proj.weight', ('v',), 2),
  Tensor('model.layers.{}.self_attn.q_proj.bias', ('q_bias',)),
  Tensor('model.layers.{}.self_attn.k_proj.bias', ('k_bias',)),
  Tensor('model.layers.{}.self_attn.v_proj.bias', ('v_bias',)),
  Tensor('model.layers.{}.self_attn.q_norm.weight', ('q_norm',)),
  Tensor('model.layers.{}.self_attn.k_norm.weight', ('k_norm',)),
  Tensor('model.layers.{}.self_attn.o_proj.weight', ('o',), 1),
  Tensor('model.layers.{}.post_attention_layernorm.weight', ('post_norm',)),
  Tensor('model.layers.{}.mlp.gate_proj.weight', ('gate',), 1),
  Tensor('model.layers.{}.mlp.up_proj.weight', ('up',), 1),
  Tensor('model.layers.{}.mlp.down_proj.weight', ('down',), 1),
)
_QWEN1_TOP = (
  Tensor('transformer.wte.weight', ('embed',), 1),
  Tensor('transformer.ln_f.weight', ('norm',)),
  Tensor('lm_head.weight', ('head',), 1),
)
_QWEN1_LAYER = (
  Tensor('transformer.h.{}.ln_1.weight', ('input_norm',)),
  Tensor('transformer.h.{}.attn.c_attn.weight', ('q', 'k', 'v'), 2),
  Tensor('transformer.h.{}.attn.c_attn.bias', ('q_bias', 'k_bias', 'v_bias')),
  Tensor('transformer.h.{}.attn.c_proj.weight', ('o',), 1),
  Tensor('transformer.h.{}.ln_2.weight', ('post_norm',)),
  Tensor('transformer.h.{}.mlp.w2.weight', ('gate',), 1),  # c_proj(w1(x) * silu(w2(x)))
  Tensor('transformer.h.{}.mlp.w1.weight', ('up',), 1),
  Tensor('transformer.h.{}.mlp.c_proj.weight', ('down',), 1),
)

LAYOUTS = {
  'qwen1': Layout('QWenLMHeadModel', 'qwen', _QWEN1_TOP, _QWEN1_LAYER, ('rotary_emb.inv_freq',)),
  'qwen2': Layout('Qwen2ForCausalLM', 'qwen2', _LLAMA_TOP, _LLAMA_LAYER, ('rotary_emb.inv_freq',)),
  'qwen3': Layout('Qwen3ForCausalLM', 'qwen3', _LLAMA_TOP, _LLAMA_LAYER),
  'llama': Layout('LlamaForCausalLM', 'llama', _LLAMA_TOP, _LLAMA_LAYER, ('rotary_emb.inv_freq',)),
}


def choose(cfg: ModelConfig, name: str | None = None) -> str:
  """The layout `name`, by default what transformers loads without remote code; UserError where it cannot hold `cfg`."""
  kinds = {'qwen2': (True, False), 'qwen3': (False, True), 'llama': (False, False)}
  default = next((n for n, kind in kinds.items() if kind == (cfg.qkv_bias, cfg.qk_norm)), None)
  if name is None or name == default:
    if default is None:
      raise UserError(f'no Hugging Face architecture has qkv_bias={cfg.qkv_bias} with qk_norm={cfg.qk_norm}')
    return default
  if name not in LAYOUTS:
    raise UserError(f'layout {name!r} is not one of {", ".join(LAYOUTS)}')
  misfits = []
  if name == 'qwen1':
    misfits += ['no qkv_bias'] if not cfg.qkv_bias else []
    misfits += ['qk_norm'] if cfg.qk_norm else []
    misfits += ['grouped-query attention'] if cfg.num_key_value_heads != cfg.num_attention_heads else []
    misfits += ['a tied head'] if cfg.tie_word_embeddings else []
  else:
    bias, norm = kinds[name]
    misfits += [f'qkv_bias={cfg.qkv_bias}'] if cfg.qkv_bias != bias else []
    misfits += [f'qk_norm={cfg.qk_norm}'] if cfg.qk_norm != norm else []
  if misfits:
    raise UserError(f'layout {name} cannot hold this model ({", ".join(misfits)}): leave --layout out for {default}')
  return name


@dataclasses.dataclass(frozen=True)
class Slot:
  """Rows `start` to `stop` of tensor `name` in a file: one layer of one of our weights."""

  name: str
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Weight:
  """One of our weights, `path` in the tree: in the file it is `slots`, one a layer (one in all without `stacked`)."""

  path: tuple[str, ...]
  shape: tuple[int, ...]  # of one layer
  stacked: bool
  slots: tuple[Slot, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
  """One tensor of a file: its shape there, and which layer of which of our weights it holds."""

  name: str
  shape: tuple[int, ...]
  parts: tuple[tuple[tuple[str, ...], int | None], ...]  # (path, layer)


def stored(cfg: ModelConfig, layout: str) -> list[Stored]:
  """Every tensor of a file of this layout: weight by weight, each over all its layers, so that it is read at once."""
  shapes, table = qwen.abstract(cfg), LAYOUTS[layout]
  found = []
  for tensor in table.top:
    if tensor.ours[0] in shapes:
      shape = _shape(tensor, [shapes[n].shape for n in tensor.ours])
      found.append(Stored(tensor.name, shape, tuple(((n,), None) for n in tensor.ours)))
  for tensor in table.layer:
    if tensor.ours[0] in shapes['layers']:
      shape = _shape(tensor, [shapes['layers'][n].shape[1:] for n in tensor.ours])
      for layer in range(cfg.num_hidden_layers):
        parts = tuple((('layers', n), layer) for n in tensor.ours)
        found.append(Stored(tensor.name.format(layer), shape, parts))
  return found


def _shape(tensor, shapes):
  """Of the tensor in the file, made of ours of these shapes."""
  rows = lambda shape: math.prod(shape[: tensor.outputs])
  if tensor.outputs is None:
    return (sum(map(rows, shapes)),)
  return (sum(map(rows, shapes)), math.prod(shapes[0][tensor.outputs :]))


def weights(cfg: ModelConfig, layout: str) -> list[Weight]:
  """Each of our weights, with where it stands in files of this layout."""
  shapes = qwen.abstract(cfg)
  slots: dict[tuple, list[Slot]] = {}
  for tensor in stored(cfg, layout):
    start = 0
    for path, _ in tensor.parts:
      rows = tensor.shape[0] // len(tensor.parts)  # q, k and v of Qwen-1 are of one size
      slots.setdefault(path, []).append(Slot(tensor.name, start, start + rows))
      start += rows
  found = []
  for path, places in slots.items():
    stacked = len(path) > 1
    struct = shapes['layers'][path[1]] if stacked else shapes[path[0]]
    found.append(Weight(path, struct.shape[1:] if stacked else struct.shape, stacked, tuple(places)))
  return found
