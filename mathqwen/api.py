"""`mathqwen.load`: one object for a model, wherever it comes from."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mathqwen import checkpoint, generate, hf, sharding
from mathqwen.data import chatml
from mathqwen.errors import UserError
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass
class Model:
  """Weights with what is needed to use them."""

  name: str  # the path it was loaded from
  config: ModelConfig
  tokenizer: Tokenizer
  params: dict
  dtype: str = 'bfloat16'  # of weights and activations
  mesh: jax.sharding.Mesh | None = None

  def logits(self, tokens_BT, segment_ids=None, positions=None):
    """float32 [B, T, V] of int32 [B, T]. Attention does not cross segments; positions count from 0 unless given."""
    return _logits(self.params, tokens_BT, segment_ids, positions, cfg=self.config, dtype=self.dtype)

  def generate(
    self,
    questions: Sequence[str],
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system_prompt: str = '',
  ) -> list[str]:
    """The assistant's answer to each question, asked in ChatML."""
    if isinstance(questions, str):
      raise UserError('generate takes a list of questions: write generate([question])')
    system = [{'role': 'system', 'content': system_prompt}] if system_prompt else []
    prompts = [chatml.prompt([*system, {'role': 'user', 'content': q}], self.tokenizer) for q in questions]
    answers = self.generate_ids(prompts, max_new_tokens, temperature, top_p, top_k, seed)
    return [self.tokenizer.decode(ids) for ids in answers]

  def generate_ids(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    on_done: Callable[[int, list[int]], None] | None = None,
  ) -> list[list[int]]:
    """Ids of each answer; the stop id, when one was reached, is the last. on_done(index, ids) as batches end."""
    return generate.generate(
      self.params,
      self.config,
      prompts,
      max_new_tokens=max_new_tokens,
      vocab_size=self.tokenizer.vocab_size,
      stop_ids=self.tokenizer.stop_ids,
      sampling=generate.Sampling(temperature, top_p, top_k),
      seed=seed,
      batch_size=batch_size,
      dtype=self.dtype,
      mesh=self.mesh,
      on_done=on_done,
    )

  def save_hf(self, directory: str, dtype: str | None = None, card: str = ''):
    """Writes a Hugging Face directory; `dtype` is the files', by default the model's own."""
    hf.save(directory, self.params, self.config, self.tokenizer, dtype or self.dtype, card)


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def _logits(params, tokens, segment_ids, positions, *, cfg, dtype):
  x_BTD = qwen.hidden(params, cfg, jnp.asarray(tokens), segment_ids, positions, dtype=jnp.dtype(dtype))
  return qwen.unembed(params, cfg, x_BTD)


def load(path: str, mesh: jax.sharding.Mesh | None = None, dtype: str = 'bfloat16') -> Model:
  """A model from a Hugging Face directory or from a checkpoint directory of ours, onto `mesh` when one is given."""
  path = str(path)
  if dtype not in hf.DTYPES:
    raise UserError(f'dtype {dtype!r} is not one of {", ".join(hf.DTYPES)}')
  config, read = open_model(path)
  tokenizer = read_tokenizer(path)
  if mesh is not None:
    sharding.check(dict(mesh.shape), config)
  return Model(path, config, tokenizer, read(mesh, dtype), dtype, mesh)


def open_model(path: str) -> tuple[ModelConfig, Callable]:
  """(config, read): the sizes at once, and `read(mesh, dtype) -> params` for when they are wanted."""
  if '://' not in path and not pathlib.Path(path).is_dir():
    raise UserError(f'no model at {path}: give a Hugging Face directory, or the --workdir of a run')
  if (pathlib.Path(path) / 'config.json').exists():
    config = hf.read_config(path)

    def read(mesh, dtype):
      where = None if mesh is None else sharding.params_shardings(mesh, config)
      return hf.load_params(path, config, where, dtype)

    return config, read
  found = checkpoint.find(path)
  if found is None:
    raise UserError(f'{path} holds neither config.json (Hugging Face) nor {checkpoint.EXPERIMENT} (a run of ours)')
  workdir, experiment, step = found

  def restore(mesh, dtype):
    devices = sharding.make_mesh(experiment.mesh.__class__(), jax.devices()[:1]) if mesh is None else mesh
    target = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=s),
      qwen.abstract(experiment.model),
      sharding.params_shardings(devices, experiment.model),
    )
    checkpoints = checkpoint.Checkpoints(workdir)
    params = checkpoints.restore_params(step, target)
    checkpoints.close()
    return params

  return experiment.model, restore


def read_tokenizer(path: str) -> Tokenizer:
  """The tokenizer that lies beside the weights of `path`."""
  if (pathlib.Path(path) / 'config.json').exists():
    return load_tokenizer(path)
  found = checkpoint.find(path)
  return load_tokenizer(str(pathlib.Path(found[0]) / 'tokenizer'))
