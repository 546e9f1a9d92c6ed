"""A Hugging Face directory that transformers and vLLM load: weights, configs, tokenizer, model card.

An export is planned (`export_plan.plan_export`), written into a temporary directory (`write_export`), checked there if
the caller wants that, and then appears under its name (`new_directory.new_directory`). `save` does all but the check.
"""

import json

import jax
import ml_dtypes
import numpy as np

from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat, save_tokenizer
from mathqwen.errors import UserError, report
from mathqwen.hf.export_plan import ExportPlan, plan_export
from mathqwen.hf.new_directory import check_target, new_directory, together
from mathqwen.hf.tensor_directory import INDEX
from mathqwen.hf.tensor_files import SafetensorsWriter, is_finite
from mathqwen.hf.weights import ArrayWeights, Path, Weights
from mathqwen.model.config import ModelConfig
from mathqwen.text.tokenizer import Tokenizer


def save(
  directory: str,
  weights: Weights | dict,
  cfg: ModelConfig,
  tokenizer: Tokenizer | None,
  dtype: str | None = None,
  layout: str | None = None,
  card: str = '',
  chat: ChatFormat | None = None,
  system_prompt: str = '',
) -> None:
  """Writes `weights`, or a tree of arrays, as a new Hugging Face directory.

  dtype: of the files, a name in DTYPES; None keeps each weight's own. layout: a name in LAYOUTS; None: the one that
  transformers loads. card: text of README.md. chat: what a run was trained with, from which template, stop ids and
  configs are made; None keeps what the tokenizer's files say, and `system_prompt` in config.json. With several hosts,
  all must call this, on a disk that they share.
  UserError: when the directory is not new, the layout cannot hold the model, the disk is full, or a weight is not
  finite. Then nothing is left behind.
  """
  check_target(directory)
  if isinstance(weights, dict):
    weights = ArrayWeights(weights)
  plan = plan_export(weights, cfg, tokenizer, dtype, layout, chat, system_prompt)
  with new_directory(directory, plan.size) as folder:
    write_export(plan, weights, folder, card)
  print_notes(directory, plan)


def write_export(plan: ExportPlan, weights: Weights, folder: files.AnyPath, card: str = '') -> None:
  """Writes all files of a plan into `folder`; with several hosts, each writes its share of the shards.

  UserError: when a weight is not finite in its dtype, on this host or on another.
  """
  together(lambda: _write_shards(plan, weights, folder))

  def write_other_files():
    write_prompt(plan, folder)
    if card:
      (folder / 'README.md').write_text(card)
    if plan.index is not None:
      (folder / INDEX).write_text(_json(plan.index))
    (folder / 'config.json').write_text(_json(plan.config))

  together(write_other_files if jax.process_index() == 0 else None)


def write_prompt(plan: ExportPlan, folder: files.AnyPath) -> None:
  """Writes what a server asks with and stops at: tokenizer, chat template, stop ids. Nothing without a tokenizer."""
  if plan.tokenizer is not None:
    (folder / 'generation_config.json').write_text(_json(plan.generation))
    save_tokenizer(plan.tokenizer, folder, plan.layout, plan.chat)


def print_notes(directory: str, plan: ExportPlan) -> None:
  """Prints what the user should know about an export, on one host."""
  if jax.process_index() == 0:
    for note in plan.notes:
      report(f'{directory}: {note}')


def _write_shards(plan: ExportPlan, weights: Weights, folder: files.AnyPath):
  """Writes this host's shards. At any time, this host holds only the weights that one tensor is made of."""
  held: dict[Path, np.ndarray] = {}
  for number, shard in enumerate(plan.shards):
    if number % jax.process_count() != jax.process_index():
      if weights.collective:  # another host writes this shard and cannot read without this one
        for planned in shard.tensors:
          _hold([part.path for part in planned.tensor.parts], weights, held)
      continue

    specs = [(planned.tensor.name, planned.tensor.shape, planned.dtype) for planned in shard.tensors]
    with SafetensorsWriter(folder / shard.file, specs) as writer:
      for planned in shard.tensors:
        _hold([part.path for part in planned.tensor.parts], weights, held)
        for path, layer in planned.tensor.parts:
          # No local variable may refer to a weight: it would keep it in memory while the next one is read.
          writer.write(_cast(held[path] if layer is None else held[path][layer], planned.dtype, planned.tensor.name))


def _hold(paths: list[Path], weights: Weights, held: dict[Path, np.ndarray]):
  """Makes `held` the weights at these paths. Consecutive tensors are layers of the same weights, read only once."""
  if set(held) == set(paths):
    return
  held.clear()  # frees the previous weights before the next are read
  for path in paths:
    held[path] = weights.read(path)


def _cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """A contiguous array of `dtype`. UserError: when it is not finite."""
  with np.errstate(over='ignore'):  # NumPy would warn of what is an error below
    cast = np.ascontiguousarray(array.astype(dtype, copy=False))
  if not is_finite(cast):
    overflow = f' as {dtype.name}, whose largest number is {ml_dtypes.finfo(dtype).max}' if is_finite(array) else ''
    raise UserError(f'{name} holds NaN or infinity{overflow}: nothing is written')
  return cast


def _json(values: dict) -> str:
  return json.dumps(values, indent=2) + '\n'
