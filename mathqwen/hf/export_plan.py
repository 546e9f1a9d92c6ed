"""What an export will write, decided before anything is written: files, tensors, dtypes, sizes, config.json."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.hf import config_json, layouts
from mathqwen.hf.tensor_directory import SINGLE
from mathqwen.hf.tensor_files import DTYPES
from mathqwen.hf.weights import Weights, widest
from mathqwen.model.config import ModelConfig
from mathqwen.text.sentencepiece_model import SentencePiece
from mathqwen.text.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
  """One tensor of a file that will be written."""

  tensor: layouts.FileTensor
  dtype: np.dtype

  @property
  def size(self) -> int:
    """Bytes in the file."""
    return math.prod(self.tensor.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Shard:
  """One safetensors file that will be written, its tensors in this order."""

  file: str
  tensors: tuple[PlannedTensor, ...]


@dataclasses.dataclass(frozen=True)
class ExportPlan:
  """A Hugging Face directory that will be written."""

  layout: str
  shards: tuple[Shard, ...]
  config: dict  # config.json
  tokenizer: Tokenizer | None
  generation: dict | None  # generation_config.json
  chat: ChatFormat | None  # what a run was trained with; None keeps what the tokenizer's files say
  notes: tuple[str, ...]  # what the user should know about the result

  @property
  def size(self) -> int:
    """Bytes of all tensors. The other files are small."""
    return sum(planned.size for shard in self.shards for planned in shard.tensors)

  @property
  def index(self) -> dict | None:
    """model.safetensors.index.json, which only several shards have."""
    if len(self.shards) == 1:
      return None
    weight_map = {}
    for shard in self.shards:
      weight_map |= {planned.tensor.name: shard.file for planned in shard.tensors}
    return {'metadata': {'total_size': self.size}, 'weight_map': weight_map}


def plan_export(
  weights: Weights,
  cfg: ModelConfig,
  tokenizer: Tokenizer | None,
  dtype: str | None = None,
  layout: str | None = None,
  chat: ChatFormat | None = None,
  system_prompt: str = '',
) -> ExportPlan:
  """The export of these weights; none of them is read.

  dtype: of all tensors; None keeps each weight's own. layout: a name in LAYOUTS; None takes what `layouts.choose` says.
  chat: what a run was trained with. system_prompt: without `chat`, the system turn that config.json is to keep.
  UserError: when the layout cannot hold the model.
  """
  layout = layouts.choose(cfg, layout)
  if chat is None and system_prompt and tokenizer is not None and not tokenizer.has_template:
    chat = ChatFormat(system_prompt=system_prompt)
  stops = None if tokenizer is None or chat is None else chat.stop_ids(tokenizer)
  tensors = []
  for tensor in layouts.file_tensors(cfg, layout):
    stored = widest(weights.dtype(part.path) for part in tensor.parts)
    tensors.append(PlannedTensor(tensor, DTYPES[dtype] if dtype else stored))

  # config.json names a single dtype: take that of most matrices, as norms and biases are often kept in float32.
  matrix_dtypes = [planned.dtype.name for planned in tensors if len(planned.tensor.shape) > 1]
  main_dtype = max(set(matrix_dtypes), key=matrix_dtypes.count)
  return ExportPlan(
    layout,
    _shards(tensors, hosts=jax.process_count()),
    config_json.make(cfg, tokenizer, main_dtype, layout, chat.system_prompt if chat else system_prompt, stops),
    tokenizer,
    None if tokenizer is None else config_json.make_generation_config(tokenizer, stops),
    chat,
    _notes(cfg, tokenizer, layout),
  )


def _shards(tensors: Sequence[PlannedTensor], hosts: int) -> tuple[Shard, ...]:
  """Consecutive tensors in files of at most SHARD_BYTES, and about as many files as hosts, so that each writes some."""
  total = sum(planned.size for planned in tensors)
  limit = min(SHARD_BYTES, -(-total // hosts))  # rounded up
  groups: list[list[PlannedTensor]] = [[]]
  size = 0
  for planned in tensors:
    if groups[-1] and size + planned.size > limit:
      groups.append([])
      size = 0
    groups[-1].append(planned)
    size += planned.size
  if len(groups) == 1:
    return (Shard(SINGLE, tuple(groups[0])),)
  return tuple(
    Shard(f'model-{number:05}-of-{len(groups):05}.safetensors', tuple(group))
    for number, group in enumerate(groups, start=1)
  )


def _notes(cfg: ModelConfig, tokenizer: Tokenizer | None, layout: str) -> tuple[str, ...]:
  """What the exported directory cannot do and the model can."""
  notes = []
  if tokenizer is None:
    notes.append('its source has no tokenizer files, so none are written, and no generation_config.json')
  if layout == 'qwen2' and isinstance(tokenizer, SentencePiece):
    notes.append(
      'transformers reads the tokenizer of a Qwen2 model as byte-level BPE, which this one is not, and would lose '
      'spaces and newlines; use mathqwen.load there, or train with model.qkv_bias=false (Qwen3, LLaMA)'
    )
  if layout != 'qwen1' and (cfg.use_dynamic_ntk or cfg.use_logn_attn):
    notes.append(
      f'only Qwen-1 files have dynamic NTK and logn attention, so positions end at {cfg.seq_length} here; '
      '--layout qwen1 keeps them'
    )
  return tuple(notes)
