"""A Hugging Face directory that transformers and vLLM load: weights, configs, tokenizer, model card.

Weights are fetched and written one at a time. On a local disk the directory appears whole or not at all: all of it is
written beside it and then renamed. An object store cannot rename, so there config.json comes last.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mathqwen.errors import UserError
from mathqwen.hf import config, layouts
from mathqwen.hf.files import DTYPES, Writer
from mathqwen.hf.reading import INDEX, SINGLE, at
from mathqwen.model.config import ModelConfig
from mathqwen.tokenizer import SentencePiece

SHARD_BYTES = 5 * 10**9


class Tree:
  """Weights that are arrays already, on this host or over several."""

  def __init__(self, params: dict):
    self._params = params

  def dtype(self, path) -> np.dtype:
    return np.dtype(at(self._params, path).dtype)

  def read(self, path) -> np.ndarray:
    array = at(self._params, path)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)

  @property
  def collective(self) -> bool:
    """Whether all hosts must read each weight together."""
    leaves = jax.tree.leaves(self._params)
    return any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves)


def check_target(directory: str):
  """UserError where `save` would refuse to write."""
  target = epath.Path(directory)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f'{directory} is {"not empty" if target.is_dir() else "a file"}: name a new directory')


@contextlib.contextmanager
def whole(directory: str, size: int = 0):
  """Yields where to write what is to become `directory`, which it becomes at the end, and only without an error.

  size: bytes that will be written, refused before any is if the disk has less. Over several hosts all of them enter.
  """
  if '://' in str(directory):
    yield epath.Path(directory)
    _together('written')
    return
  target, first = pathlib.Path(directory).absolute(), jax.process_index() == 0  # as Orbax wants it
  number = os.getpid()
  if jax.process_count() > 1:
    number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
  temporary = target.parent / f'.{target.name}.{number}'
  try:
    if first:
      target.parent.mkdir(parents=True, exist_ok=True)
      temporary.mkdir()
      free = shutil.disk_usage(temporary).free
      if size > free:
        raise UserError(
          f'{directory}: {size / 2**30:.1f} GiB are to be written and the disk has {free / 2**30:.1f}: '
          'free some space or name another directory'
        )
    _together('made')
    yield epath.Path(temporary)
    _together('written')
    if first:
      if target.exists():
        target.rmdir()
      temporary.rename(target)
  except OSError as error:
    raise UserError(
      f'{directory}: {error.strerror or error}; free some space or name a directory that can be written'
    ) from None
  finally:
    if first:
      shutil.rmtree(temporary, ignore_errors=True)


def _together(what: str):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'hugging face directory {what}')


def save(
  directory: str,
  weights,
  cfg: ModelConfig,
  tokenizer,
  dtype: str | None = None,
  layout: str | None = None,
  card: str = '',
  system_prompt: str = '',
  verify: Callable[[str], None] | None = None,
):
  """Writes `weights`: a tree of arrays, or anything with `dtype(path)` and `read(path)`, such as files of either kind.

  dtype: of the files; None keeps each weight's own. layout: 'qwen1', or by default what `layouts.choose` says.
  verify: called with the finished directory before it gets its name; what it raises leaves nothing behind.
  Over several hosts every host calls this, and each writes its own share of the shards; the disk must be a shared one.
  """
  check_target(directory)
  weights = Tree(weights) if isinstance(weights, dict) else weights
  layout = layouts.choose(cfg, layout)
  tensors = layouts.stored(cfg, layout)
  of = {path: DTYPES[dtype] if dtype else weights.dtype(path) for tensor in tensors for path, _ in tensor.parts}
  size = sum(math.prod(tensor.shape) * of[tensor.parts[0][0]].itemsize for tensor in tensors)
  first = jax.process_index() == 0
  if first:
    _warn(directory, cfg, tokenizer, layout)
  with whole(directory, size) as folder:
    _save_weights(folder, weights, tensors, of)
    if first:
      names = [of[tensor.parts[0][0]].name for tensor in tensors if len(tensor.shape) > 1]
      common = max(set(names), key=names.count)
      if tokenizer is not None:
        generation = {
          'bos_token_id': config.bos(tokenizer),
          'eos_token_id': list(tokenizer.stop_ids),
          'pad_token_id': tokenizer.pad,
          'do_sample': False,
        }
        (folder / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')
        tokenizer.save(folder, layout)
      if card:
        (folder / 'README.md').write_text(card)
      _together('weights')  # config.json last: on an object store it says that the rest is there
      values = config.to_hf(cfg, tokenizer, common, layout)
      values |= {config.SYSTEM_PROMPT: system_prompt} if system_prompt else {}
      (folder / 'config.json').write_text(json.dumps(values, indent=2) + '\n')
      if verify is not None:
        verify(str(folder))
    else:
      _together('weights')


def _warn(directory, cfg, tokenizer, layout):
  if tokenizer is None:
    print(
      f'{directory}: its source has no tokenizer files, so none are written, nor what stops generation', file=sys.stderr
    )
  if layout == 'qwen2' and isinstance(tokenizer, SentencePiece):
    print(
      f'{directory}: transformers reads the tokenizer of a Qwen2 model as byte-level BPE, which this one is not, and '
      'would lose spaces and newlines; use mathqwen.load there, or train with model.qkv_bias=false (Qwen3, LLaMA)',
      file=sys.stderr,
    )
  if layout != 'qwen1' and (cfg.use_dynamic_ntk or cfg.use_logn_attn):
    print(
      f'{directory}: only Qwen-1 files have dynamic NTK and logn attention, so positions end at {cfg.seq_length} here; '
      '--layout qwen1 keeps them',
      file=sys.stderr,
    )


def _save_weights(folder, weights, tensors, of):
  """Each shard by one host, in the order of `tensors`; at any time the weights of one tensor are held."""
  bytes_of = {tensor.name: math.prod(tensor.shape) * of[tensor.parts[0][0]].itemsize for tensor in tensors}
  total = sum(bytes_of.values())
  limit = min(SHARD_BYTES, -(-total // jax.process_count()))  # a share for every host
  shards: list[list[layouts.Stored]] = [[]]
  size = 0
  for tensor in tensors:
    if size + bytes_of[tensor.name] > limit and shards[-1]:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += bytes_of[tensor.name]
  held: dict = {}
  weight_map = {}
  for number, shard in enumerate(shards):
    file = SINGLE if len(shards) == 1 else f'model-{number + 1:05}-of-{len(shards):05}.safetensors'
    weight_map |= {tensor.name: file for tensor in shard}
    mine = number % jax.process_count() == jax.process_index()
    if not mine and not getattr(weights, 'collective', False):
      continue
    writer = Writer(folder / file, [(t.name, t.shape, of[t.parts[0][0]]) for t in shard]) if mine else None
    for tensor in shard:
      paths = [path for path, _ in tensor.parts]
      if set(held) != set(paths):
        held.clear()  # before the next are read
        held |= {path: weights.read(path) for path in paths}
      for path, layer in tensor.parts:
        if writer is not None:  # nothing here may keep a weight in a variable
          writer.write((held[path] if layer is None else held[path][layer]).astype(of[paths[0]], copy=False))
    if writer is not None:
      writer.close()
  if len(shards) > 1 and jax.process_index() == 0:
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')
