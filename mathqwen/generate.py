"""Prefill and decode with a KV cache on static shapes: lists of prompt ids in, lists of answer ids out."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mathqwen import sharding
from mathqwen.errors import UserError
from mathqwen.model import qwen
from mathqwen.model.cache import KVCache
from mathqwen.model.config import ModelConfig

PROMPT_BUCKET = 64  # prompts are padded to a multiple of this, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn; temperature 0 is greedy, top_k 0 and top_p 1 leave every token in."""

  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise UserError(
        f'temperature {self.temperature} is not a number of at least 0: 0 is greedy, 1 samples as the model says'
      )
    if not 0 < self.top_p <= 1:
      raise UserError(f'top_p {self.top_p} is not in (0, 1]: 1 leaves every token in')
    if self.top_k < 0:
      raise UserError(f'top_k {self.top_k} is below 0: 0 leaves every token in')


def sample(logits_BV, keys_B, sampling: Sampling):
  """Token ids [B]. Greedy takes no sort; top-k and top-p take one."""
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / sampling.temperature
  if sampling.top_k or sampling.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    keep = jnp.full((logits_BV.shape[0],), logits_BV.shape[1])
    if sampling.top_k:
      keep = jnp.minimum(keep, sampling.top_k)
    if sampling.top_p < 1:
      probs_BV = jax.nn.softmax(jnp.where(jnp.arange(logits_BV.shape[1]) < keep[:, None], sorted_BV, -jnp.inf), axis=-1)
      # The smallest set whose probability reaches top_p: a token stays while those before it have less.
      keep = jnp.minimum(keep, jnp.sum(jnp.cumsum(probs_BV, axis=-1) - probs_BV < sampling.top_p, axis=-1))
    least_B1 = jnp.take_along_axis(sorted_BV, keep[:, None] - 1, axis=-1)
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('cfg', 'new_tokens', 'vocab_size', 'stop_ids', 'sampling', 'dtype'))
def decode(params, tokens_BT, lengths_B, keys_B, *, cfg, new_tokens, vocab_size, stop_ids, sampling, dtype):
  """Answers [B, new_tokens], filled with -1 after each stop id; the loop ends when every row has stopped.

  tokens_BT: prompts padded on the left, so that the last token of each stands in the last column.
  lengths_B: tokens of each prompt; 0 is an empty row, which is stopped from the start.
  keys_B: one random key a row, so that a row draws the same tokens in any batch. Ids from `vocab_size` on, which the
  tokenizer does not know, are never drawn.
  """
  B, T = tokens_BT.shape
  columns = jnp.arange(T)
  segment_ids_BT = (columns >= T - lengths_B[:, None]).astype(jnp.int32)
  positions_BT = jnp.maximum(columns - (T - lengths_B[:, None]), 0)
  known_V = jnp.arange(cfg.vocab_size) < vocab_size
  stops = jnp.array(stop_ids, jnp.int32)

  def choose(x_BD, keys_B):
    logits_BV = jnp.where(known_V, qwen.unembed(params, cfg, x_BD), -jnp.inf)
    return sample(logits_BV, keys_B, sampling)

  def step_keys(step):
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, step)

  cache = KVCache.empty(cfg, B, T + new_tokens, dtype)
  x_BTD, cache = qwen.hidden(params, cfg, tokens_BT, segment_ids_BT, positions_BT, cache=cache, dtype=dtype)
  first_B = choose(x_BTD[:, -1], step_keys(0))
  answers = jnp.full((B, new_tokens), -1, jnp.int32)
  done_B = lengths_B == 0

  def body(loop):
    step, last_B, done_B, answers, cache = loop
    answers = answers.at[:, step].set(jnp.where(done_B, -1, last_B))
    done_B = done_B | jnp.any(last_B[:, None] == stops, axis=-1)
    x_B1D, cache = qwen.hidden(
      params, cfg, last_B[:, None], jnp.ones((B, 1), jnp.int32), (lengths_B + step)[:, None], cache=cache, dtype=dtype
    )
    return step + 1, choose(x_B1D[:, 0], step_keys(step + 1)), done_B, answers, cache

  def going(loop):
    return (loop[0] < new_tokens) & ~jnp.all(loop[2])

  return jax.lax.while_loop(going, body, (jnp.int32(0), first_B, done_B, answers, cache))[3]


def check(cfg: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int):
  """UserError where `generate` would refuse these arguments."""
  if max_new_tokens < 1:
    raise UserError(f'max_new_tokens is {max_new_tokens}: it must be at least 1')
  if not 0 <= seed < 2**32:
    raise UserError(f'seed is {seed}: it must be from 0 to 2**32 - 1')
  for index, prompt in enumerate(prompts):
    room = cfg.max_position_embeddings - len(prompt)
    if not prompt:
      raise UserError(f'prompt {index} is empty: give at least one token')
    if not 0 <= min(prompt) <= max(prompt) < cfg.vocab_size:
      raise UserError(f'prompt {index} has ids outside 0 to {cfg.vocab_size - 1}, which are all that the model knows')
    if max_new_tokens > room:
      remedy = f'set max_new_tokens to at most {room}, or shorten the prompt' if room > 0 else 'shorten the prompt'
      raise UserError(
        f"prompt {index} has {len(prompt)} tokens, which with max_new_tokens {max_new_tokens} is above the model's "
        f'max_position_embeddings {cfg.max_position_embeddings}: {remedy}'
      )


def generate(
  params,
  cfg: ModelConfig,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  vocab_size: int,
  stop_ids: tuple[int, ...],
  sampling: Sampling = Sampling(),
  seed: int = 0,
  batch_size: int = 32,
  dtype=jnp.float32,
  mesh=None,
  on_done: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
  """The answer's ids for each prompt, the stop id included when one was reached.

  Prompts are sorted by length and padded to a few static shapes. on_done(index, ids) is called as batches end.
  UserError when a prompt and `max_new_tokens` exceed the model's positions.
  """
  check(cfg, prompts, max_new_tokens, seed)
  where = None if mesh is None else sharding.batch_sharding(mesh, 'batch', 'whole')
  if mesh is not None:
    shards = sharding.batch_shards(dict(mesh.shape))
    batch_size = -(-batch_size // shards) * shards
  rows = min(batch_size, 1 << max(len(prompts) - 1, 0).bit_length()) if mesh is None else batch_size
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
  answers: list[list[int]] = [[] for _ in prompts]
  root = jax.random.key(seed)
  for start in range(0, len(order), rows):
    batch = order[start : start + rows]
    longest = len(prompts[batch[0]])
    width = min(-(-longest // PROMPT_BUCKET) * PROMPT_BUCKET, cfg.max_position_embeddings)
    tokens, lengths, numbers = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.uint32)
    for row, index in enumerate(batch):
      tokens[row, width - len(prompts[index]) :] = prompts[index]
      lengths[row], numbers[row] = len(prompts[index]), index
    out = decode(
      params,
      tokens if where is None else jax.device_put(tokens, where),
      lengths,
      jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, numbers),
      cfg=cfg,
      new_tokens=max_new_tokens,
      vocab_size=min(vocab_size, cfg.vocab_size),
      stop_ids=stop_ids,
      sampling=sampling,
      dtype=jnp.dtype(dtype),
    )
    for row, index in zip(np.asarray(out), batch, strict=False):
      answers[index] = [int(i) for i in row if i >= 0]
      if on_done is not None:
        on_done(index, answers[index])
  return answers
