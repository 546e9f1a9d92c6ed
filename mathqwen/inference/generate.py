"""Continuous batching on a few static shapes: lists of prompt ids in, lists of answer ids out.

`B` answers are decoded together, each in a slot. Prompts are prefilled in groups ahead of that, and a slot whose answer
ends takes the next one at once; of 64 slots or more, a 32nd of them together. Nothing waits for the longest answer but
the end of the run.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.inference.sampling import GREEDY, Sampling, check_seed
from mathqwen.model import attention, qwen
from mathqwen.model.cache import KVCache
from mathqwen.model.config import ModelConfig

STEPS = 32  # tokens of each answer between two looks at what has ended, at most
PREFILL = 2048  # positions up to which prompts are prefilled together; but at least one on each shard of a batch


def argmax(x_BV):
  """int32 [B]. On a CPU first of groups of 64: XLA takes a maximum there with vectors, an argmax number by number."""
  B, V = x_BV.shape
  if jax.default_backend() != 'cpu' or V % 64:
    return jnp.argmax(x_BV, axis=-1).astype(jnp.int32)
  x_BGV = x_BV.reshape(B, V // 64, 64)
  group_B = jnp.argmax(jnp.max(x_BGV, axis=-1), axis=-1)
  within_B = jnp.argmax(jnp.take_along_axis(x_BGV, group_B[:, None, None], axis=1)[:, 0], axis=-1)
  return (group_B * 64 + within_B).astype(jnp.int32)


def sample(logits_BV, keys_B, sampling: Sampling):
  """Token ids [B]. Greedy takes no sort; top-k and top-p take one."""
  if sampling.temperature == 0:
    return argmax(logits_BV)
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """B answers under way. A slot whose answer has ended, or that never had one, is not live."""

  cache: KVCache
  last_B: jax.Array  # int32: what the model reads next, drawn or a prompt's last
  told_B: jax.Array  # int32: tokens of the answer so far
  limits_B: jax.Array  # int32: tokens that it may have
  keys_B: jax.Array  # a random key for each answer, so that it is the same in any slot and beside any others
  live_B: jax.Array  # bool


@dataclasses.dataclass(frozen=True)
class Program:
  """What a compiled step depends on besides shapes."""

  cfg: ModelConfig
  vocab_size: int  # ids from here on, which the tokenizer does not know, are never drawn
  stop_ids: tuple[int, ...]
  sampling: Sampling
  dtype: str
  attention: Callable  # of a prompt: from `attention.select`
  mesh: Mesh | None = None

  def draw(self, params, x_BD, keys_B, told_B):
    logits_BV = qwen.unembed(params, self.cfg, x_BD)
    if self.vocab_size < self.cfg.vocab_size:
      logits_BV = jnp.where(jnp.arange(self.cfg.vocab_size) < self.vocab_size, logits_BV, -jnp.inf)
    return sample(logits_BV, jax.vmap(jax.random.fold_in)(keys_B, told_B), self.sampling)


@functools.partial(jax.jit, static_argnames='program')
def prefill(params, tokens_PT, lengths_P, *, program: Program) -> tuple:
  """(keys, values), each [L, P, T, K, H], of P prompts, padded on the right, for `insert`.

  `decode` reads a prompt's last token once more, so that no logits are made here, and on a CPU nothing of the last
  layer but keys and values.
  """
  place = sharding.Placement(program.mesh)
  tokens_PT = place(tokens_PT, 'batch', 'whole')
  columns_PT = jnp.broadcast_to(jnp.arange(tokens_PT.shape[1]), tokens_PT.shape)
  segment_ids_PT = (columns_PT < lengths_P[:, None]).astype(jnp.int32)
  _, kept = qwen.hidden(
    params, program.cfg, tokens_PT, segment_ids_PT, columns_PT, keep=True, dtype=program.dtype,
    attend_rows=program.attention,
  )  # fmt: skip
  return jax.tree.map(lambda x: place(x, 'layers', 'batch', 'whole', 'kv_heads', 'head_dim'), kept)


@functools.partial(jax.jit, static_argnames='program', donate_argnames='slots')
def insert(slots: Slots, row, prompts, i, length, begun: dict, *, program: Program) -> Slots:
  """Prompt `i` of `prefill`'s, of `length` tokens, begins an answer in slot `row`. begun: what each field of `Slots`
  but the cache holds of it."""

  def take(x_LPTKH):
    if program.mesh is None:
      return jax.lax.dynamic_slice_in_dim(x_LPTKH, i, 1, axis=1)
    # Prompts are split over devices: a sum with zeros brings one to all of them, where a slice would bring the group.
    its_P = (jnp.arange(x_LPTKH.shape[1]) == i)[:, None, None, None]
    return jnp.sum(jnp.where(its_P, x_LPTKH, 0), axis=1, keepdims=True, dtype=x_LPTKH.dtype)

  one = jax.tree.map(take, prompts)
  cache = slots.cache.admit(jnp.array([row]), one, length - 1, length)
  others = {name: getattr(slots, name).at[row].set(value) for name, value in begun.items()}
  return _placed(Slots(cache, **others), program)


@functools.partial(jax.jit, static_argnames=('program', 'steps'), donate_argnames='slots')
def decode(params, slots: Slots, enough, *, program: Program, steps: int):
  """(slots, (tokens [B, steps], -1 where there are none, live [B])) after `steps` tokens, or once `enough` slots are
  not live. The second is whole on every host."""
  stops = jnp.array(program.stop_ids, jnp.int32)

  def going(loop):
    step, slots, _ = loop
    return (step < steps) & (jnp.sum(~slots.live_B) < enough)

  def body(loop):
    step, slots, tokens = loop
    x_B1D, cache = qwen.hidden(params, program.cfg, slots.last_B[:, None], cache=slots.cache, dtype=program.dtype)
    last_B = program.draw(params, x_B1D[:, 0], slots.keys_B, slots.told_B)
    told_B = slots.told_B + slots.live_B
    ended_B = jnp.any(last_B[:, None] == stops, axis=-1) | (told_B >= slots.limits_B)
    # A slot that is not live stays where it is: its next prompt begins anew.
    cache = dataclasses.replace(cache, lengths=jnp.where(slots.live_B, cache.lengths, slots.cache.lengths))
    tokens = tokens.at[:, step].set(jnp.where(slots.live_B, last_B, -1))
    live_B = slots.live_B & ~ended_B
    return step + 1, dataclasses.replace(slots, cache=cache, last_B=last_B, told_B=told_B, live_B=live_B), tokens

  tokens = jnp.full((slots.last_B.shape[0], steps), -1, jnp.int32)
  _, slots, tokens = jax.lax.while_loop(going, body, (jnp.int32(0), slots, tokens))
  place = sharding.Placement(program.mesh)
  return _placed(slots, program), (place(tokens, 'whole', 'whole'), place(slots.live_B, 'whole'))


def _placed(slots: Slots, program: Program) -> Slots:
  """On a mesh, rows are split as a batch is, and heads as weights are."""
  axes = {
    1: ('batch',),
    4: ('batch', 'kv_heads', 'whole', 'head_dim'),
    5: ('layers', 'batch', 'kv_heads', 'whole', 'head_dim'),
  }
  place = sharding.Placement(program.mesh)
  return jax.tree.map(lambda x: place(x, *axes[x.ndim]), slots)


@functools.partial(jax.jit, static_argnums=range(5))
def _empty(program: Program, rows: int, slots: int, cache_dtype: str, stacked: bool) -> Slots:
  cache = KVCache.empty(program.cfg, rows, slots, cache_dtype, stacked)
  zeros = lambda dtype: jnp.zeros((rows,), dtype)
  keys_B = jnp.broadcast_to(jax.random.key(0), (rows,))
  return _placed(Slots(cache, zeros(jnp.int32), zeros(jnp.int32), zeros(jnp.int32), keys_B, zeros(bool)), program)


def check(
  cfg: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], seed: int, batch_size=1
):
  """UserError where `generate` would refuse these arguments."""
  limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
  if least := [n for n in [max_new_tokens, *limits] if isinstance(n, int) and n < 1]:
    raise UserError(f'max_new_tokens is {least[0]}: it must be at least 1')
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size}: it must be at least 1')
  check_seed(seed)
  for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
    room = cfg.max_position_embeddings - len(prompt)
    if not prompt:
      raise UserError(f'prompt {index} is empty: give at least one token')
    if not 0 <= min(prompt) <= max(prompt) < cfg.vocab_size:
      raise UserError(f'prompt {index} has ids outside 0 to {cfg.vocab_size - 1}, which are all that the model knows')
    if limit > room:
      remedy = f'set max_new_tokens to at most {room}, or shorten the prompt' if room > 0 else 'shorten the prompt'
      raise UserError(
        f"prompt {index} has {len(prompt)} tokens, which with max_new_tokens {limit} is above the model's "
        f'max_position_embeddings {cfg.max_position_embeddings}: {remedy}'
      )


def generate(
  params,
  cfg: ModelConfig,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int | Sequence[int],
  vocab_size: int,
  stop_ids: tuple[int, ...],
  sampling: Sampling = GREEDY,
  seed: int = 0,
  numbers: Sequence[int] | None = None,
  batch_size: int = 32,
  dtype=jnp.float32,
  cache_dtype: str | None = None,
  mesh: Mesh | None = None,
  ended: Callable[[list[int]], bool] | None = None,
  on_done: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
  """The answer's ids for each prompt, the stop id included when one was reached.

  params: of `qwen.init`; on one CPU layers and head are copied by `qwen.for_cpu`, unless that was done.
  max_new_tokens: of every answer, or of each. numbers: which of the seed's random streams each answer draws from; by
  default its index. batch_size: answers under way at one time. cache_dtype: of keys and values, also a prompt's,
  float32, bfloat16 or int8; by default `dtype`. ended(ids): whether an answer that goes on may end, asked every `STEPS`
  tokens and whenever others have ended. on_done(index, ids): called as answers end. UserError when a prompt and its
  `max_new_tokens` exceed the model's positions.
  """
  limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
  check(cfg, prompts, limits, seed, batch_size)
  if not prompts:
    return []
  program = Program(
    cfg, min(vocab_size, cfg.vocab_size), tuple(stop_ids), sampling, str(jnp.dtype(dtype)),
    attention.select('auto', mesh, str(jnp.dtype(dtype))), mesh,
  )  # fmt: skip
  numbers = range(len(prompts)) if numbers is None else numbers
  batch = _Batch(params, program, prompts, limits, seed, numbers, batch_size, cache_dtype or program.dtype)
  while batch.waiting or batch.ready or batch.owners:
    batch.fill()
    for index in batch.step(ended):
      if on_done is not None:
        on_done(index, batch.answers[index])
  return batch.answers


class _Batch:
  """The slots of a run of `generate`, and whose they are."""

  def __init__(self, params, program: Program, prompts, limits, seed, numbers, batch_size, cache_dtype):
    platform = next(iter(jax.tree.leaves(params)[0].devices())).platform
    stacked = platform != 'cpu' or program.mesh is not None
    self.program, self.prompts, self.limits = program, prompts, limits
    self.answers: list[list[int]] = [[] for _ in prompts]
    self.waiting = collections.deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True))
    self.ready: collections.deque[tuple[int, int]] = collections.deque()  # (row of `prefilled`, index of its prompt)
    self.prefilled = None
    self.owners: dict[int, int] = {}  # slot -> index of its prompt
    self.root, self.numbers = jax.random.key(seed), numbers
    self.shards = 1 if program.mesh is None else sharding.batch_shards(dict(program.mesh.shape))
    self.rows = self._whole(min(batch_size, 1 << (len(prompts) - 1).bit_length()))
    plain = stacked or isinstance(params['layers'], tuple)
    self.params = params if plain else qwen.for_cpu(params, program.cfg, self.rows)
    self.least = 128 if platform == 'tpu' else 64  # positions come in multiples of it, as kernels take them
    self.positions = self._positions(self.waiting[0])
    self.slots = _empty(program, self.rows, self.positions, cache_dtype, stacked)

  def _whole(self, rows: int) -> int:
    return -(-rows // self.shards) * self.shards

  def _size(self, n: int) -> int:
    """`n` positions rounded up to one of few sizes: 1, 2, 3, 4, 6, 8, 12, 16, ... times the least."""
    parts, power = -(-n // self.least), 1
    while parts > 4 * power:
      power *= 2
    return -(-parts // power) * power * self.least

  def _positions(self, index: int) -> int:
    """That this answer needs in the next `STEPS` steps; the last token of an answer is not read."""
    return self._size(len(self.prompts[index]) + min(len(self.answers[index]) + STEPS, self.limits[index]) - 1)

  def _prefill(self):
    width = self._size(len(self.prompts[self.waiting[0]]))
    P = self._whole(max(1, min(self.rows, PREFILL // width)))
    taken = [self.waiting.popleft() for _ in range(min(P, len(self.waiting)))]
    tokens, lengths = np.zeros((P, width), np.int32), np.zeros(P, np.int32)
    for i, index in enumerate(taken):
      lengths[i] = len(self.prompts[index])
      tokens[i, : lengths[i]] = self.prompts[index]
    self.prefilled = prefill(self.params, tokens, lengths, program=self.program)
    self.ready.extend(enumerate(taken))

  def fill(self):
    """Gives free slots the next prompts, and all of them as many positions as they need."""
    free = [row for row in range(self.rows) if row not in self.owners]
    following = itertools.chain((index for _, index in self.ready), self.waiting)
    coming = list(itertools.islice(following, len(free)))
    need = max(map(self._positions, [*self.owners.values(), *coming]))
    if need != self.positions:
      self.positions = need
      self.slots = dataclasses.replace(self.slots, cache=self.slots.cache.resize(need))
    for row in free[: len(coming)]:
      if not self.ready:
        self._prefill()
      i, index = self.ready.popleft()
      self.owners[row] = index
      begun = {
        'last_B': self.prompts[index][-1],
        'told_B': 0,
        'limits_B': self.limits[index],
        'keys_B': jax.random.fold_in(self.root, self.numbers[index]),
        'live_B': True,
      }
      length = len(self.prompts[index])
      self.slots = insert(self.slots, row, self.prefilled, i, length, begun, program=self.program)
      if not self.ready:
        self.prefilled = None  # its memory is free for the next

  def step(self, ended) -> list[int]:
    """Decodes until a slot is free, of many slots a few, `STEPS` tokens at most. Returns the prompts whose answers
    have ended."""
    enough = min(max(1, self.rows // 32), len(self.waiting) + len(self.ready)) or self.rows
    self.slots, said = decode(self.params, self.slots, enough, program=self.program, steps=STEPS)
    tokens, live = jax.device_get(said)
    done, asked = [], np.zeros(self.rows, bool)
    for row, index in list(self.owners.items()):
      self.answers[index] += tokens[row][tokens[row] >= 0].tolist()
      asked[row] = live[row] and ended is not None and ended(self.answers[index])
      if asked[row] or not live[row]:
        done.append(index)
        del self.owners[row]
    if asked.any():
      self.slots = dataclasses.replace(self.slots, live_B=self.slots.live_B & ~asked)
    return done
