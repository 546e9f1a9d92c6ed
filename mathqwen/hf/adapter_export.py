"""Adapters as PEFT's files, which `peft` and vLLM load beside the base: `adapters.py` reads such files.

  adapter_config.json           rank, alpha, the base's name
  adapter_model.safetensors     base_model.model.MODULE.lora_A.weight [rank, in] and lora_B.weight [out, rank]

Where a file of the base holds several of our matrices, Qwen-1's q, k and v, so does one adapter, of their ranks in sum:

  A    a_q       B    b_q
       a_k              b_k
       a_v                     b_v
"""

import json
import math
from collections.abc import Callable

import numpy as np

from mathqwen import files
from mathqwen.adapter_config import AdapterConfig
from mathqwen.hf import layouts
from mathqwen.hf.adapters import ADAPTER_CONFIG
from mathqwen.hf.tensor_files import SafetensorsWriter
from mathqwen.hf.weights import Path
from mathqwen.model.config import ModelConfig

TENSORS = 'adapter_model.safetensors'

Read = Callable[[Path], np.ndarray]  # one of the adapters' arrays, [L, ...]


def write_adapter(
  folder: files.AnyPath,
  read: Read,
  lengths: Read,
  cfg: ModelConfig,
  adapter: AdapterConfig,
  layout: str,
  base: dict[str, str | None],
  dtype: np.dtype,
) -> None:
  """Writes both files into `folder`.

  lengths: the length of each row of one of the base's matrices, [L, *outputs]; only read with DoRA, for rows that have
  no adapter and share a tensor with rows that have one. base: the keys of adapter_config.json that name the base.
  """
  tensors = {tensor.name.removesuffix('.weight'): tensor for tensor in layouts.file_tensors(cfg, layout)}
  modules = {
    module: _parts(tensor, read, lengths, adapter)
    for module, tensor in tensors.items()
    if any(part.path[-1] in adapter.targets and part.layer is not None for part in tensor.parts)
  }
  names = {module: _short(module, list(tensors)) for module in modules}
  values = _config({names[module]: len(parts['lora_A.weight']) for module, parts in modules.items()}, adapter) | base
  (folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2) + '\n')
  arrays = {
    f'base_model.model.{module}.{name}': np.asarray(array, dtype)
    for module, parts in modules.items()
    for name, array in parts.items()
  }
  specs = [(name, array.shape, array.dtype) for name, array in arrays.items()]
  with SafetensorsWriter(folder / TENSORS, specs) as writer:
    for array in arrays.values():
      writer.write(array)


def _parts(tensor: layouts.FileTensor, read: Read, lengths: Read, adapter: AdapterConfig) -> dict[str, np.ndarray]:
  """{'lora_A.weight': ..., ...} of the module with this weight."""
  rows = tensor.shape[0] // len(tensor.parts)
  adapted = [part for part in tensor.parts if part.path[-1] in adapter.targets]
  rank = adapter.rank
  a = np.concatenate([read((*part.path, 'a'))[part.layer].reshape(rank, -1) for part in adapted])
  b = np.zeros((tensor.shape[0], len(a)), np.float32)
  found = {'lora_A.weight': a, 'lora_B.weight': b}
  for row, part in enumerate(tensor.parts):
    if part in adapted:
      column = adapted.index(part) * rank
      of_part = read((*part.path, 'b'))[part.layer]
      b[row * rows : (row + 1) * rows, column : column + rank] = of_part.reshape(rows, rank)
  if adapter.dora:
    magnitudes = [read((*part.path, 'magnitude')) if part in adapted else lengths(part.path) for part in tensor.parts]
    found['lora_magnitude_vector'] = np.concatenate(
      [of_part[part.layer].reshape(-1) for of_part, part in zip(magnitudes, tensor.parts, strict=True)]
    )
  return found


def _config(ranks: dict[str, int], adapter: AdapterConfig) -> dict:
  """adapter_config.json without the base. ranks: of each kind of module, by the end of its name."""
  # The scale, alpha / rank or alpha / sqrt(rank), is the same in a module of several adapters.
  alpha_of = lambda rank: adapter.scale * (math.sqrt(rank) if adapter.rank_stabilized else rank)
  several = {name: rank for name, rank in ranks.items() if rank != adapter.rank}
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'r': adapter.rank,
    'lora_alpha': adapter.alpha,
    'lora_dropout': adapter.dropout,
    'target_modules': list(ranks),
    'use_rslora': adapter.rank_stabilized,
    'use_dora': adapter.dora,
    'rank_pattern': several,
    'alpha_pattern': {name: alpha_of(rank) for name, rank in several.items()},
    'bias': 'none',
    'modules_to_save': None,
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
  }


def _short(module: str, modules: list[str]) -> str:
  """'q_proj' for 'model.layers.0.self_attn.q_proj'; 'attn.c_proj' where the last part is not enough to tell."""
  *_, before, last = module.split('.')
  is_clear = all(other.split('.')[-2] == before for other in modules if other.split('.')[-1] == last)
  return last if is_clear else f'{before}.{last}'
