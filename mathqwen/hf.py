"""Hugging Face directories in and out: one table of names, read by `load_params` and `save`."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from mathqwen.errors import UserError
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.tokenizer import HuggingFace

SHARD_BYTES = 5 * 10**9
SYSTEM_PROMPT = 'system_prompt'  # our key in config.json: the system turn of training, where there was one
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}


@dataclasses.dataclass(frozen=True)
class Weight:
  """`name` in a Hugging Face file, {} being the layer. Both sides store a Linear outputs first: only shapes differ."""

  name: str
  outputs: int | None = None  # leading axes of ours that a Linear puts out; None: a vector there

  def hf_shape(self, shape):
    if self.outputs is None:
      return (math.prod(shape),)
    return (math.prod(shape[: self.outputs]), math.prod(shape[self.outputs :]))


TOP = {
  'embed': Weight('model.embed_tokens.weight', 1),
  'norm': Weight('model.norm.weight'),
  'head': Weight('lm_head.weight', 1),
}
LAYER = {
  'input_norm': Weight('model.layers.{}.input_layernorm.weight'),
  'q': Weight('model.layers.{}.self_attn.q_proj.weight', 2),
  'k': Weight('model.layers.{}.self_attn.k_proj.weight', 2),
  'v': Weight('model.layers.{}.self_attn.v_proj.weight', 2),
  'q_bias': Weight('model.layers.{}.self_attn.q_proj.bias'),
  'k_bias': Weight('model.layers.{}.self_attn.k_proj.bias'),
  'v_bias': Weight('model.layers.{}.self_attn.v_proj.bias'),
  'q_norm': Weight('model.layers.{}.self_attn.q_norm.weight'),
  'k_norm': Weight('model.layers.{}.self_attn.k_norm.weight'),
  'o': Weight('model.layers.{}.self_attn.o_proj.weight', 1),
  'post_norm': Weight('model.layers.{}.post_attention_layernorm.weight'),
  'gate': Weight('model.layers.{}.mlp.gate_proj.weight', 1),
  'up': Weight('model.layers.{}.mlp.up_proj.weight', 1),
  'down': Weight('model.layers.{}.mlp.down_proj.weight', 1),
}

# architecture -> (model_type, what distinguishes it)
ARCHITECTURES = {
  'Qwen2ForCausalLM': ('qwen2', {'qkv_bias': True, 'qk_norm': False}),
  'Qwen3ForCausalLM': ('qwen3', {'qkv_bias': False, 'qk_norm': True}),
  'LlamaForCausalLM': ('llama', {'qkv_bias': False, 'qk_norm': False}),
}


def config_from_hf(values: dict, where: str) -> ModelConfig:
  """ModelConfig of a config.json. UserError names everything in it that this decoder does not do."""
  problems = []
  architecture = (values.get('architectures') or ['none'])[0]
  if architecture not in ARCHITECTURES:
    raise UserError(f'{where}: architecture {architecture!r} is not one of {", ".join(ARCHITECTURES)}')
  needed = ['vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads']
  if missing := [n for n in [*needed, 'max_position_embeddings', 'rms_norm_eps'] if values.get(n) is None]:
    problems.append(f'no {", ".join(missing)}')
  rope = values.get('rope_parameters') or {}
  # Llama 2's own config.json has no rope_theta: it is older than the field.
  theta = values.get('rope_theta', rope.get('rope_theta', 10_000.0 if architecture == 'LlamaForCausalLM' else None))
  if theta is None:
    problems.append('neither rope_theta nor rope_parameters.rope_theta')
  scaling = values.get('rope_scaling') or {}
  for kind in {rope.get('rope_type', 'default'), scaling.get('rope_type', scaling.get('type', 'default'))} - {
    'default'
  }:
    problems.append(f'rope scaling {kind!r}')
  if values.get('hidden_act', 'silu') != 'silu':
    problems.append(f'hidden_act {values["hidden_act"]!r}')
  if values.get('use_sliding_window'):
    problems.append('use_sliding_window')
  if values.get('attention_bias') or values.get('mlp_bias'):
    problems.append('attention_bias or mlp_bias')
  if problems:
    raise UserError(f'{where}: this decoder cannot take {"; ".join(problems)}')
  heads = values['num_attention_heads']
  return ModelConfig(
    vocab_size=values['vocab_size'],
    hidden_size=values['hidden_size'],
    intermediate_size=values['intermediate_size'],
    num_hidden_layers=values['num_hidden_layers'],
    num_attention_heads=heads,
    num_key_value_heads=values.get('num_key_value_heads') or heads,
    head_dim=values.get('head_dim') or values['hidden_size'] // heads,
    max_position_embeddings=values['max_position_embeddings'],
    rope_theta=float(theta),
    rms_norm_eps=values['rms_norm_eps'],
    tie_word_embeddings=bool(values.get('tie_word_embeddings', False)),
    initializer_range=values.get('initializer_range', 0.02),
    **ARCHITECTURES[architecture][1],
  )


def config_to_hf(cfg: ModelConfig, tokenizer, dtype: str) -> dict:
  """The config.json that transformers and vLLM read; both spellings of the rotary base, for versions 4 and 5."""
  for architecture, (model_type, kind) in ARCHITECTURES.items():  # noqa: B007
    if kind == {'qkv_bias': cfg.qkv_bias, 'qk_norm': cfg.qk_norm}:
      break
  else:
    raise UserError(f'no Hugging Face architecture has qkv_bias={cfg.qkv_bias} with qk_norm={cfg.qk_norm}')
  same = (
    'vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim '
    'max_position_embeddings rope_theta rms_norm_eps tie_word_embeddings initializer_range'
  )
  return {
    'architectures': [architecture],
    'model_type': model_type,
    **{name: getattr(cfg, name) for name in same.split()},
    'rope_parameters': {'rope_type': 'default', 'rope_theta': cfg.rope_theta},
    'hidden_act': 'silu',
    'attention_bias': False,
    'attention_dropout': 0.0,
    'use_cache': True,
    'bos_token_id': tokenizer.endoftext,
    'eos_token_id': tokenizer.im_end,
    'pad_token_id': tokenizer.pad,
    'torch_dtype': dtype,
  }


def read_config(directory: str) -> ModelConfig:
  file = pathlib.Path(directory) / 'config.json'
  return config_from_hf(_read_json(file), str(file))


def read_system_prompt(directory: str) -> str:
  file = pathlib.Path(directory) / 'config.json'
  prompt = _read_json(file).get(SYSTEM_PROMPT, '')
  if not isinstance(prompt, str):
    raise UserError(f'{file}: {SYSTEM_PROMPT} is {type(prompt).__name__}: write text, or leave it out')
  return prompt


def _read_json(file: pathlib.Path) -> dict:
  try:
    values = json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f'{file} is not JSON ({error}): is it a half-written file?') from None
  if not isinstance(values, dict):
    raise UserError(f'{file} holds {type(values).__name__}, wants one JSON object: is this a Hugging Face directory?')
  return values


def table(cfg: ModelConfig):
  """(path of ours, Weight, shape of one layer's array, layers or None) for each weight of `cfg`."""
  shapes = qwen.abstract(cfg)
  for name, struct in shapes.items():
    if name != 'layers':
      yield (name,), TOP[name], struct.shape, None
  for name, struct in shapes['layers'].items():
    yield ('layers', name), LAYER[name], struct.shape[1:], struct.shape[0]


def _names(weight, layers):
  return [weight.name] if layers is None else [weight.name.format(i) for i in range(layers)]


class _Files:
  """The tensors of a directory, by name, read when asked for."""

  def __init__(self, directory: str):
    self.directory = pathlib.Path(directory)
    index = self.directory / 'model.safetensors.index.json'
    if index.exists():
      files = sorted(set(_read_json(index)['weight_map'].values()))
    else:
      files = ['model.safetensors']
    self._stack = contextlib.ExitStack()
    self.where = {}
    for file in files:
      path = self.directory / file
      if not path.exists():
        raise UserError(f'{path} is missing: the download is not complete, or this is no Hugging Face directory')
      try:
        opened = self._stack.enter_context(safetensors.safe_open(path, framework='numpy'))
      except safetensors.SafetensorError as error:
        raise UserError(f'{path} cannot be read as safetensors ({error}): is it half a file? Fetch it again') from None
      self.where |= dict.fromkeys(opened.keys(), opened)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    return self._stack.__exit__(*error)

  def shape(self, name):
    return tuple(self.where[name].get_slice(name).get_shape())

  def get(self, name):
    return self.where[name].get_tensor(name)


def load_params(directory: str, cfg: ModelConfig, shardings=None, dtype='float32'):
  """The weights of a Hugging Face directory as our tree, each placed in its sharding as soon as it is stacked.

  Missing, extra and misshapen tensors are one UserError that lists them all, before any is read.
  """
  with _Files(directory) as files:
    wanted = {}
    for _, weight, shape, layers in table(cfg):
      wanted |= dict.fromkeys(_names(weight, layers), weight.hf_shape(shape))
    ignored = {'lm_head.weight'} if cfg.tie_word_embeddings else set()
    problems = [f'{name} is missing' for name in wanted if name not in files.where]
    problems += [
      f'{name} is not in a model of this config'
      for name in files.where
      if name not in wanted and name not in ignored and not name.endswith('rotary_emb.inv_freq')
    ]
    problems += [
      f'{name} has shape {files.shape(name)}, the config says {shape}'
      for name, shape in wanted.items()
      if name in files.where and files.shape(name) != shape
    ]
    if problems:
      raise UserError(f'{directory} does not fit its config.json: {"; ".join(problems)}')

    params: dict = {}
    for path, weight, shape, layers in table(cfg):
      arrays = [files.get(name).astype(DTYPES[dtype]).reshape(shape) for name in _names(weight, layers)]
      array = arrays[0] if layers is None else np.stack(arrays)
      where = None if shardings is None else _at(shardings, path)
      _put(params, path, jax.device_put(array, where))
    return params


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _put(tree, path, value):
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def check_target(directory: str):
  """UserError where `save` would refuse to write."""
  target = pathlib.Path(directory)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f'{directory} is {"not empty" if target.is_dir() else "a file"}: name a new directory')


def save(
  directory: str, params, cfg: ModelConfig, tokenizer, dtype: str = 'bfloat16', card: str = '', system_prompt: str = ''
):
  """Writes a directory that transformers and vLLM load: weights, config, generation config, tokenizer, model card.

  The directory appears whole or not at all: everything is written beside it first, then renamed.
  """
  check_target(directory)
  if cfg.qkv_bias and not isinstance(tokenizer, HuggingFace):
    print(
      f'{directory}: transformers reads the tokenizer of a Qwen2 model as byte-level BPE, which this one is not, and '
      'would lose spaces and newlines; use mathqwen.load there, or train with model.qkv_bias=false (Qwen3, LLaMA)',
      file=sys.stderr,
    )
  target = pathlib.Path(directory)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}.'))
  except OSError as error:
    raise UserError(f'{directory}: {error.strerror}; name a directory that can be written') from None
  try:
    _save_weights(temporary, params, cfg, dtype)
    generation = {
      'bos_token_id': tokenizer.endoftext,
      'eos_token_id': list(tokenizer.stop_ids),
      'pad_token_id': tokenizer.pad,
      'do_sample': False,
    }
    config = config_to_hf(cfg, tokenizer, dtype) | ({SYSTEM_PROMPT: system_prompt} if system_prompt else {})
    (temporary / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    (temporary / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')
    tokenizer.save(temporary)
    if card:
      (temporary / 'README.md').write_text(card)
    temporary.chmod(0o755)
    if target.exists():
      target.rmdir()
    temporary.rename(target)
  except OSError as error:
    raise UserError(f'{directory}: {error.strerror}; free some space or name another directory') from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _save_weights(directory: pathlib.Path, params, cfg, dtype):
  itemsize = np.dtype(DTYPES[dtype]).itemsize
  shards: list[list] = [[]]
  size = 0
  for path, weight, shape, layers in table(cfg):
    for layer, name in enumerate(_names(weight, layers)):
      bytes_ = int(np.prod(shape)) * itemsize
      if size + bytes_ > SHARD_BYTES and shards[-1]:
        shards.append([])
        size = 0
      shards[-1].append((name, path, weight, layer if layers is not None else None))
      size += bytes_
  weight_map, total = {}, 0
  for number, shard in enumerate(shards, 1):
    file = 'model.safetensors' if len(shards) == 1 else f'model-{number:05}-of-{len(shards):05}.safetensors'
    tensors = {}
    for name, path, weight, layer in shard:
      array = _at(params, path)
      array = np.asarray(array if layer is None else array[layer])
      tensors[name] = np.ascontiguousarray(array.astype(DTYPES[dtype])).reshape(weight.hf_shape(array.shape))
      weight_map[name] = file
      total += tensors[name].nbytes
    safetensors.numpy.save_file(tensors, directory / file, metadata={'format': 'pt'})
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n')
  for file in directory.glob('*.safetensors'):
    with file.open('rb') as f:
      os.fsync(f.fileno())
