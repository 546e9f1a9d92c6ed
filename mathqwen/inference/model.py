"""Weights with what is needed to use them: one object for a model, wherever it comes from."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mathqwen import hf
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.inference import generate
from mathqwen.inference.sampling import Sampling
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.storage.source import Source, open_source
from mathqwen.text import chatml
from mathqwen.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 512


@dataclasses.dataclass
class Model:
  """Weights with what is needed to use them."""

  name: str  # which weights: the Hugging Face directory, or 'WORKDIR/checkpoints/STEP'
  config: ModelConfig
  tokenizer: Tokenizer | None  # None: its directory has no tokenizer files
  params: dict | None  # None until read, in what `open_model` returns
  dtype: str = 'bfloat16'  # of weights and activations
  mesh: jax.sharding.Mesh | None = None
  system_prompt: str = ''  # the system turn it was trained with; '' is none

  def logits(self, tokens_BT, segment_ids=None, positions=None):
    """float32 [B, T, V] of int32 [B, T]. Attention does not cross segments; positions count from 0 unless given."""
    tokens = np.asarray(tokens_BT)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
      raise UserError(f'logits takes whole numbers [B, T], and these are {tokens.dtype} {list(tokens.shape)}')
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
      raise UserError(f'ids from {tokens.min()} to {tokens.max()}: the model knows 0 to {self.config.vocab_size - 1}')
    arrays = [None if x is None else jnp.asarray(x, jnp.int32) for x in (tokens_BT, segment_ids, positions)]
    return _logits(self.params, *arrays, cfg=self.config, dtype=self.dtype)

  def generate(
    self,
    questions: Sequence[str],
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    system_prompt: str | None = None,
  ) -> list[str]:
    """The assistant's answer to each question, asked in ChatML as in training: with the model's own system prompt
    unless another is given. max_new_tokens: by default 512, or what the model's positions leave."""
    if isinstance(questions, str):
      raise UserError('generate takes a list of questions: write generate([question])')
    prompts = [self.prompt([{'role': 'user', 'content': q}], system_prompt) for q in questions]
    answers = self.generate_ids(prompts, max_new_tokens, temperature, top_p, top_k, seed)
    return [self.tokenizer.decode(ids) for ids in answers]

  def prompt(self, messages: Sequence[dict], system_prompt: str | None = None) -> list[int]:
    """Ids that ask for the next turn of a conversation, after the system prompt."""
    system = self.system_prompt if system_prompt is None else system_prompt
    if self.tokenizer is None:
      raise UserError(f'{self.name} has no tokenizer files: copy those of its model there, or use logits(ids)')
    return chatml.prompt([*([{'role': 'system', 'content': system}] if system else []), *messages], self.tokenizer)

  def new_tokens(self, prompts: Sequence[Sequence[int]]) -> int:
    """How many an answer may have by default: 512, or what the longest prompt leaves of the model's positions."""
    return max(1, min(MAX_NEW_TOKENS, self.config.max_position_embeddings - max(map(len, prompts), default=0)))

  def check(self, prompts, max_new_tokens=None, temperature=0.0, top_p=1.0, top_k=0, seed=0):
    """UserError where `generate_ids` would refuse these arguments; needs no weights."""
    if max_new_tokens is None:
      max_new_tokens = self.new_tokens(prompts)
    Sampling(temperature, top_p, top_k)
    generate.check(self.config, prompts, max_new_tokens, seed)

  def generate_ids(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    on_done: Callable[[int, list[int]], None] | None = None,
    stop_texts: tuple[str, ...] = (),
    numbers: Sequence[int] | None = None,
    cache_dtype: str | None = None,
  ) -> list[list[int]]:
    """Ids of each answer; the stop id, when one was reached, is the last, and where the text holds one of `stop_texts`
    the id that completes it. on_done(index, ids) as answers end. The rest as in `generate.generate`."""
    answers: list[list[int]] = [[] for _ in prompts]

    def done(index, ids):
      answers[index] = _up_to(stop_texts, ids, self.tokenizer) if stop_texts else ids
      if on_done is not None:
        on_done(index, answers[index])

    holds_stop = lambda ids: any(text in self.tokenizer.decode(ids) for text in stop_texts)
    generate.generate(
      self.params,
      self.config,
      prompts,
      max_new_tokens=self.new_tokens(prompts) if max_new_tokens is None else max_new_tokens,
      vocab_size=self.config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size,
      stop_ids=() if self.tokenizer is None else self.tokenizer.stop_ids,
      sampling=Sampling(temperature, top_p, top_k),
      seed=seed,
      numbers=numbers,
      batch_size=batch_size,
      dtype=self.dtype,
      cache_dtype=cache_dtype,
      mesh=self.mesh,
      ended=holds_stop if stop_texts else None,
      on_done=done,
    )
    return answers

  def save_hf(self, directory: str, dtype: str | None = None, layout: str | None = None, card: str = ''):
    """Writes a Hugging Face directory; `dtype` is the files', by default the weights' own."""
    hf.save(directory, self.params, self.config, self.tokenizer, dtype, layout, card, system_prompt=self.system_prompt)


def _up_to(stop_texts: tuple[str, ...], ids: list[int], tokenizer: Tokenizer) -> list[int]:
  """The shortest beginning whose text holds one of `stop_texts`, else all."""

  def holds(length):
    text = tokenizer.decode(ids[:length])
    return any(stop in text for stop in stop_texts)

  return ids[: bisect.bisect_left(range(len(ids)), True, key=holds)]


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def _logits(params, tokens, segment_ids, positions, *, cfg, dtype):
  x_BTD = qwen.hidden(params, cfg, tokens, segment_ids, positions, dtype=jnp.dtype(dtype))
  return qwen.unembed(params, cfg, x_BTD)


def load(path: str, mesh: jax.sharding.Mesh | None = None, dtype: str = 'bfloat16') -> Model:
  """A model from a Hugging Face directory (or a name on the hub) or from a checkpoint directory of ours, onto `mesh`
  when one is given."""
  model, read = open_model(path, mesh, dtype)
  model.params = read()
  return model


def open_model(
  path: str, mesh: jax.sharding.Mesh | None = None, dtype: str = 'bfloat16'
) -> tuple[Model, Callable[[], dict]]:
  """(model without its weights, read): what can be checked is checked now, `read() -> params` takes its time."""
  if dtype not in hf.DTYPES:
    raise UserError(f'dtype {dtype!r} is not one of {", ".join(hf.DTYPES)}')
  return model_of(open_source(path), mesh, dtype)


def model_of(source: Source, mesh: jax.sharding.Mesh | None, dtype: str) -> tuple[Model, Callable[[], dict]]:
  """`open_model` of what `open_source` found."""
  if mesh is not None:
    sharding.check(dict(mesh.shape), source.config)
  model = Model(source.name, source.config, source.tokenizer, None, dtype, mesh, source.system_prompt)
  return model, functools.partial(source.read, mesh, dtype)
