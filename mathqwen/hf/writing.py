"""A Hugging Face directory that transformers and vLLM load: weights, configs, tokenizer, model card.

Weights are fetched and written one at a time. On a local disk the directory appears whole or not at all: all of it is
written beside it and then renamed. An object store cannot rename, so there config.json comes last.
"""

import contextlib
import errno
import glob
import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mathqwen.errors import UserError
from mathqwen.hf import config, layouts
from mathqwen.hf.files import DTYPES, Writer, is_finite
from mathqwen.hf.reading import INDEX, SINGLE, at, widest
from mathqwen.model.config import ModelConfig
from mathqwen.text.sentencepiece_model import SentencePiece

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
  directory = str(directory)
  if '://' in directory:
    if not directory.startswith('gs://'):
      raise UserError(f'{directory}: name a local directory, or one on gs://')
    try:
      target = epath.Path(directory)
      exists = target.exists()
    except ImportError:
      raise UserError(f"{directory}: pip install 'mathqwen[gcs]' first") from None
  else:
    if pathlib.PurePath(directory).name in ('', '..'):
      raise UserError(f'{directory!r} is no name of a new directory: give it one')
    target = pathlib.Path(directory)
    exists = target.exists() or target.is_symlink()
    if target.is_symlink():
      raise UserError(f'{directory} is a link: name the directory itself')
  if exists and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f'{directory} is {"not empty" if target.is_dir() else "a file"}: name a new directory')


@contextlib.contextmanager
def whole(directory: str, size: int = 0):
  """Yields where to write what is to become `directory`, which it becomes at the end, and only without an error.

  size: bytes that will be written, refused before any is if the disk has less. Over several hosts all of them enter,
  and what fails on one must have failed on all (`together`).
  """
  if '://' in str(directory):
    yield epath.Path(directory)
    return
  target, first = pathlib.Path(directory).absolute(), jax.process_index() == 0  # as Orbax wants it
  number = os.getpid()
  if jax.process_count() > 1:
    number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
  temporary = target.parent / f'.{target.name}.{number}'

  def make():
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary.mkdir()
    free = shutil.disk_usage(temporary).free
    if size > free:
      raise UserError(
        f'{directory}: {_bytes(size)} are to be written and the disk has {_bytes(free)}: '
        'free some space or name another directory'
      )

  def name():
    if target.exists():
      target.rmdir()
    temporary.rename(target)

  try:
    together(make if first else None)
    yield epath.Path(temporary)
    together(name if first else None)
  except OSError as error:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = 'free some space or name another directory' if full else 'name a directory that can be written'
    raise UserError(f'{directory}: {error.strerror or error}; {remedy}') from None
  finally:
    if first:
      shutil.rmtree(temporary, ignore_errors=True)


def together(work: Callable[[], None] | None):
  """Does this host's work, and waits for that of the others: where it fails on one, it fails on all."""
  error = None
  try:
    if work is not None:
      work()
  except (UserError, OSError) as raised:
    error = raised
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.int32(error is not None))
    if error is None and failed.any():
      raise UserError(f'host {int(np.argmax(failed))} could not go on: see what it said')
  if error is not None:
    raise error


def _sweep(target: pathlib.Path):
  """Removes what a killed process left of an earlier try."""
  for left in target.parent.glob(f'.{glob.escape(target.name)}.*'):
    number = left.name.rpartition('.')[2]
    if number.isdigit() and not pathlib.Path('/proc', number).exists() and pathlib.Path('/proc').exists():
      shutil.rmtree(left, ignore_errors=True)


def _bytes(n: int) -> str:
  return f'{n / 2**30:.1f} GiB' if n >= 2**30 else f'{n / 2**20:.1f} MiB'


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
  of = {t.name: DTYPES[dtype] if dtype else widest(weights.dtype(path) for path, _ in t.parts) for t in tensors}
  names = [of[t.name].name for t in tensors if len(t.shape) > 1]
  values = config.to_hf(cfg, tokenizer, max(set(names), key=names.count), layout)
  values |= {config.SYSTEM_PROMPT: system_prompt} if system_prompt else {}
  generation = None
  if tokenizer is not None:
    generation = {
      'bos_token_id': config.bos(tokenizer),
      'eos_token_id': list(tokenizer.stop_ids),
      'pad_token_id': tokenizer.pad,
      'do_sample': False,
    }
  with whole(directory, sum(math.prod(t.shape) * of[t.name].itemsize for t in tensors)) as folder:
    together(lambda: _save_weights(folder, weights, tensors, of))

    def finish():
      if tokenizer is not None:
        (folder / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')
        tokenizer.save(folder, layout)
      if card:
        (folder / 'README.md').write_text(card)
      (folder / 'config.json').write_text(json.dumps(values, indent=2) + '\n')
      if verify is not None:
        verify(str(folder))

    together(finish if jax.process_index() == 0 else None)
  if jax.process_index() == 0:
    _warn(directory, cfg, tokenizer, layout)


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
  bytes_of = {t.name: math.prod(t.shape) * of[t.name].itemsize for t in tensors}
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
    writer = Writer(folder / file, [(t.name, t.shape, of[t.name]) for t in shard]) if mine else None
    for tensor in shard:
      paths = [path for path, _ in tensor.parts]
      if set(held) != set(paths):
        held.clear()  # before the next are read
        held |= {path: weights.read(path) for path in paths}
      for path, layer in tensor.parts:
        if writer is not None:  # nothing here may keep a weight in a variable
          _write(writer, tensor.name, held[path] if layer is None else held[path][layer], of[tensor.name])
    if writer is not None:
      writer.close()
  if len(shards) > 1 and jax.process_index() == 0:
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def _write(writer, name, array, dtype):
  with np.errstate(over='ignore'):  # the next lines say it better
    cast = np.ascontiguousarray(array.astype(dtype, copy=False))
  if not is_finite(cast):
    as_ = f' as {dtype.name}, whose largest number is {ml_dtypes.finfo(dtype).max}' if is_finite(array) else ''
    raise UserError(f'{name} holds NaN or infinity{as_}: nothing is written')
  writer.write(cast)
