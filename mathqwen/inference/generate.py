"""Continuous batching on a few static shapes: lists of prompt ids in, lists of answer ids out.

`B` answers are decoded together, each in a slot of the batch. A slot whose answer ends takes the next prompt at once,
so that no answer waits for the longest one:

  step      1   2   3   4   5   6   7   8
  slot 0    a   a   a   d   d   d   d   d     a ends after 3 tokens, and d takes its slot
  slot 1    b   b   b   b   b   b   b   .
  slot 2    c   e   e   e   e   f   f   f     c ends after 1 token, e after 4

Prompts are prefilled in groups, ahead of the slots that will take them. With 64 slots or more, decoding stops to fill
slots only once a 32nd of them are free.
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

from mathqwen.hardware import sharding
from mathqwen.inference import cpu
from mathqwen.inference.budget import Budget
from mathqwen.inference.sampling import AnswerRequest, Sampling, check
from mathqwen.inference.shapes import STEPS, ended_slots, prefill_rows, round_up, whole_shards
from mathqwen.model import attention, parameters, qwen
from mathqwen.model.cache import AXES, KVCache
from mathqwen.model.compute import Compute
from mathqwen.model.config import ModelConfig
from mathqwen.model.quantized import Quantized


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The functions that decode on one kind of device: those of `model.qwen`, or others with the same arguments."""

  pack: Callable  # (params, cfg, rows) -> params as the other functions take them
  empty_cache: Callable  # (cfg, rows, slots, dtype) -> cache
  prefill: Callable
  decode_step: Callable
  argmax: Callable  # [B, V] -> int32 [B]


def _argmax(x_BV: jax.Array) -> jax.Array:
  """int32 [B], the plain way; `cpu.argmax` is the other one."""
  return jnp.argmax(x_BV, axis=-1).astype(jnp.int32)


ACCELERATOR = Decoder(lambda params, cfg, rows: params, KVCache.empty, qwen.prefill, qwen.decode_step, _argmax)
CPU = Decoder(cpu.pack, cpu.CpuCache.empty, cpu.prefill, cpu.decode_step, cpu.argmax)


def _platform(params: dict) -> str:
  return next(iter(jax.tree.leaves(params)[0].devices())).platform


def decoder_for(params: dict, mesh: Mesh | None) -> Decoder:
  """The only place that chooses how to decode. A mesh of CPUs decodes like accelerators."""
  # The CPU's layout is of floats, which would be as large as weights that are not quantised.
  quantized = isinstance(qwen.head(params), Quantized)
  return CPU if _platform(params) == 'cpu' and mesh is None and not quantized else ACCELERATOR


@dataclasses.dataclass(frozen=True)
class Execution:
  """How answers are computed. Up to rounding, the answers do not depend on it."""

  batch_size: int = 32  # answers decoded together
  dtype: str = 'float32'  # of activations, and of weights while they are used
  cache_dtype: str | None = None  # of keys and values, also of the prompt's: one of `cache.DTYPES`; None: `dtype`
  mesh: Mesh | None = None


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling, argmax: Callable = _argmax) -> jax.Array:
  """Token ids, int32 [B], drawn from logits with a random key for each row. Greedy sorts nothing and needs no keys."""
  if sampling.temperature == 0:
    return argmax(logits_BV)
  logits_BV = logits_BV / sampling.temperature
  if sampling.top_k or sampling.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    keep_B = jnp.full((logits_BV.shape[0],), logits_BV.shape[1])
    if sampling.top_k:
      keep_B = jnp.minimum(keep_B, sampling.top_k)
    if sampling.top_p < 1:
      in_top_k_BV = jnp.arange(logits_BV.shape[1]) < keep_B[:, None]
      probs_BV = jax.nn.softmax(jnp.where(in_top_k_BV, sorted_BV, -jnp.inf), axis=-1)
      # The smallest set whose probability reaches top_p: a token stays if those before it have less.
      before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
      keep_B = jnp.minimum(keep_B, jnp.sum(before_BV < sampling.top_p, axis=-1))
    # By value, not by rank: tokens that tie with the last one kept stay in too.
    least_B1 = jnp.take_along_axis(sorted_BV, keep_B[:, None] - 1, axis=-1)
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """The state of B answers. A slot whose answer has ended, or that never had one, is not live."""

  cache: KVCache
  last_B: jax.Array  # int32: the token that the model reads next, drawn or the prompt's last
  count_B: jax.Array  # int32: tokens of the answer so far
  limits_B: jax.Array  # int32: tokens that the answer may have
  keys_B: jax.Array  # a random key for each answer: what it draws depends neither on its slot nor on other answers
  live_B: jax.Array  # bool


@dataclasses.dataclass(frozen=True)
class Program:
  """What a compiled step depends on, apart from shapes."""

  cfg: ModelConfig
  vocab_size: int  # as in AnswerRequest
  stop_ids: tuple[int, ...]
  sampling: Sampling
  compute: Compute
  decoder: Decoder
  mesh: Mesh | None = None

  def draw(self, params: dict, x_BD: jax.Array, keys_B: jax.Array, count_B: jax.Array) -> jax.Array:
    """The next token of each answer, int32 [B], from final-norm outputs."""
    logits_BV = self.compute.placement(qwen.unembed(params, x_BD), 'copy', 'vocab')
    if self.vocab_size < self.cfg.vocab_size:
      logits_BV = jnp.where(jnp.arange(self.cfg.vocab_size) < self.vocab_size, logits_BV, -jnp.inf)
    # A key for each token, from its number in the answer: no state to carry.
    step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, count_B)
    return sample(logits_BV, step_keys_B, self.sampling, self.decoder.argmax)


@functools.partial(jax.jit, static_argnames='program')
def prefill(params: dict, tokens_PT: jax.Array, lengths_P: jax.Array, *, program: Program) -> tuple:
  """(keys, values), each [L, P, T, K, H], of P prompts, padded on the right, for `insert`.

  There are no logits: `decode` reads a prompt's last token once more.
  """
  place = sharding.placement(program.mesh)
  tokens_PT = place(tokens_PT, 'batch', 'whole')
  keys_and_values = program.decoder.prefill(params, program.cfg, tokens_PT, lengths_P, program.compute)
  return jax.tree.map(lambda x: place(x, 'layers', 'batch', 'whole', 'kv_heads', 'head_dim'), keys_and_values)


@functools.partial(jax.jit, static_argnames='program', donate_argnames='slots')
def insert(
  slots: Slots, row: jax.Array, prompts: tuple, i: jax.Array, length: jax.Array, start: dict, *, program: Program
) -> Slots:
  """The slots after prompt `i` has started an answer in slot `row`.

  prompts: what `prefill` returned. length: tokens of this prompt.
  start: for this row, the value of each field of `Slots` except the cache.
  """

  def take(x_LPTKH):
    if program.mesh is None:
      return jax.lax.dynamic_slice_in_dim(x_LPTKH, i, 1, axis=1)
    # On a mesh the prompts are split over devices. A sum with zeros sends this one to all of them; for a slice, XLA
    # would send the whole group.
    is_i_P = (jnp.arange(x_LPTKH.shape[1]) == i)[:, None, None, None]
    return jnp.sum(jnp.where(is_i_P, x_LPTKH, 0), axis=1, keepdims=True, dtype=x_LPTKH.dtype)

  keys, values = jax.tree.map(take, prompts)
  # The last token of the prompt does not count as written: `decode` reads it again and overwrites its keys and values.
  cache = slots.cache.admit(jnp.array([row]), keys, values, length - 1, length)
  others = {name: getattr(slots, name).at[row].set(value) for name, value in start.items()}
  return _placed(Slots(cache, **others), program)


@functools.partial(jax.jit, static_argnames=('program', 'steps'), donate_argnames='slots')
def decode(params: dict, slots: Slots, enough: jax.Array, *, program: Program, steps: int) -> tuple:
  """(slots, (tokens [B, steps], live [B])) after `steps` tokens, or as soon as `enough` slots are not live.

  tokens: -1 where a slot was not live, and for steps that were not taken. Every host gets all tokens and `live`.
  """
  stops = jnp.array(program.stop_ids, jnp.int32)

  def unfinished(loop):
    step, slots, _ = loop
    return (step < steps) & (jnp.sum(~slots.live_B) < enough)

  def body(loop):
    step, slots, tokens = loop
    x_B1D, cache = program.decoder.decode_step(
      params, program.cfg, slots.last_B[:, None], slots.cache, program.compute
    )  # fmt: skip
    last_B = program.draw(params, x_B1D[:, 0], slots.keys_B, slots.count_B)
    tokens = tokens.at[:, step].set(jnp.where(slots.live_B, last_B, -1))

    count_B = slots.count_B + slots.live_B
    ended_B = jnp.any(last_B[:, None] == stops, axis=-1) | (count_B >= slots.limits_B)
    # A slot that is not live is computed too, but its length stays, so that it never outgrows the cache.
    cache = dataclasses.replace(cache, lengths=jnp.where(slots.live_B, cache.lengths, slots.cache.lengths))
    slots = dataclasses.replace(slots, cache=cache, last_B=last_B, count_B=count_B, live_B=slots.live_B & ~ended_B)
    return step + 1, slots, tokens

  tokens = jnp.full((slots.last_B.shape[0], steps), -1, jnp.int32)
  _, slots, tokens = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, tokens))
  place = sharding.placement(program.mesh)
  return _placed(slots, program), (place(tokens, 'whole', 'whole'), place(slots.live_B, 'whole'))


def _placed(slots: Slots, program: Program) -> Slots:
  """The slots, on a mesh with rows split like those of a batch and heads like those of the weights."""
  place = sharding.placement(program.mesh)
  return jax.tree.map(lambda x: place(x, *(('batch',) if x.ndim == 1 else AXES)), slots)


@functools.partial(jax.jit, static_argnums=range(4))
def empty_slots(program: Program, rows: int, slots: int, cache_dtype: str) -> Slots:
  """`rows` slots without answers, none of them live; `slots` is the number of positions in the cache."""
  cache = program.decoder.empty_cache(program.cfg, rows, slots, cache_dtype)
  zeros = lambda dtype: jnp.zeros((rows,), dtype)
  keys_B = jnp.broadcast_to(parameters.random_key(0), (rows,))
  return _placed(Slots(cache, zeros(jnp.int32), zeros(jnp.int32), zeros(jnp.int32), keys_B, zeros(bool)), program)


def program_for(cfg: ModelConfig, request: AnswerRequest, execution: Execution, decoder: Decoder) -> Program:
  """What `generate` compiles its steps with."""
  dtype, mesh = str(jnp.dtype(execution.dtype)), execution.mesh
  placement = sharding.placement(mesh, cfg.vocab_size)
  compute = Compute(dtype=dtype, attention=attention.select('auto', mesh, dtype), placement=placement)
  vocab_size = min(request.vocab_size, cfg.vocab_size)
  return Program(cfg, vocab_size, tuple(request.stop_ids), request.sampling, compute, decoder, mesh)


def generate(
  params: dict,
  cfg: ModelConfig,
  prompts: Sequence[Sequence[int]],
  request: AnswerRequest,
  execution: Execution = Execution(),
  ended: Callable[[list[int]], bool] | None = None,
  on_done: Callable[[int, list[int]], None] | None = None,
  budget: Budget | None = None,
) -> list[list[int]]:
  """The answer's ids for each prompt, the stop id included when one was reached.

  params: of `parameters.init`; on one CPU they are copied into the layout of `cpu.pack`, unless they are in it already.
  ended(ids): whether a live answer may end here; asked every `STEPS` tokens and whenever other answers have ended.
  on_done(index, ids): called as answers end. budget: closes the thinking of answers that reach it.
  UserError: as `check` says, when a prompt is empty or has unknown ids, or exceeds the model's positions together with
  its `max_new_tokens`.
  """
  check(cfg, prompts, request, execution.batch_size)
  if not prompts:
    return []
  program = program_for(cfg, request, execution, decoder_for(params, execution.mesh))
  batch = _Batch(params, program, prompts, request, execution, budget)
  while batch.unfinished:
    batch.fill()
    for index in batch.step(ended):
      if on_done is not None:
        on_done(index, batch.answers[index])
  return batch.answers


class _Batch:
  """The slots of a run of `generate`, and which prompt each of them answers."""

  def __init__(self, params, program: Program, prompts, request, execution: Execution, budget: Budget | None):
    self.program, self.prompts, self.budget = program, prompts, budget
    self.limits = request.limits(prompts)
    self.root_key = parameters.random_key(request.seed)
    self.streams = range(len(prompts)) if request.streams is None else request.streams
    self.answers: list[list[int]] = [[] for _ in prompts]

    # Prompts go from `waiting`, longest first, to `ready`, prefilled, to a slot. From `continued`, which comes first,
    # they do so with what is answered already.
    self.continued: collections.deque[int] = collections.deque()
    longest_first = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    self.waiting = collections.deque(longest_first)
    self.ready: collections.deque[tuple[int, int]] = collections.deque()  # (row of `prefilled`, index of the prompt)
    self.prefilled = None
    self.owners: dict[int, int] = {}  # slot -> index of its prompt

    self.shards = 1 if program.mesh is None else sharding.batch_shards(dict(program.mesh.shape))
    power_of_two = 1 << (len(prompts) - 1).bit_length()  # few sizes, few programs
    self.rows = whole_shards(min(execution.batch_size, power_of_two), self.shards)
    self.params = program.decoder.pack(params, program.cfg, self.rows)
    self.platform = _platform(params)
    self.positions = self._positions_for(self.waiting[0])
    self.slots = empty_slots(program, self.rows, self.positions, execution.cache_dtype or program.compute.dtype)

  @property
  def unfinished(self) -> bool:
    """Whether prompts or live answers are left."""
    return bool(self.waiting or self.continued or self.ready or self.owners)

  def _positions_for(self, index: int) -> int:
    """Positions that this answer needs for the next `STEPS` steps. The last token of an answer is never read."""
    tokens = min(len(self.answers[index]) + STEPS, self.limits[index])
    return round_up(len(self.prompts[index]) + tokens - 1, self.platform)

  def _read(self, index: int) -> list[int]:
    """What the model reads before it goes on with this answer: the prompt, and what is answered already."""
    return [*self.prompts[index], *self.answers[index]]

  def _prefill(self):
    """Prefills the next group of prompts, which are then ready."""
    queue = self.continued or self.waiting
    longest = max(len(self._read(index)) for index in itertools.islice(queue, self.rows))
    width = round_up(longest, self.platform)
    P = prefill_rows(width, self.rows, self.shards)
    taken = [queue.popleft() for _ in range(min(P, len(queue)))]
    tokens = np.zeros((P, width), np.int32)
    lengths = np.zeros(P, np.int32)
    for i, index in enumerate(taken):
      read = self._read(index)
      lengths[i] = len(read)
      tokens[i, : lengths[i]] = read
    self.prefilled = prefill(self.params, tokens, lengths, program=self.program)
    self.ready.extend(enumerate(taken))

  def fill(self):
    """Resizes the cache to what the longest answer needs, then gives free slots the next prompts."""
    free = [row for row in range(self.rows) if row not in self.owners]
    following = itertools.chain((index for _, index in self.ready), self.continued, self.waiting)
    coming = list(itertools.islice(following, len(free)))
    need = max(map(self._positions_for, [*self.owners.values(), *coming]))
    if need != self.positions:
      self.positions = need
      self.slots = dataclasses.replace(self.slots, cache=self.slots.cache.resize(need))

    for row in free[: len(coming)]:
      if not self.ready:
        self._prefill()
      i, index = self.ready.popleft()
      self.owners[row] = index
      read = self._read(index)
      start = {
        'last_B': read[-1],
        'count_B': len(self.answers[index]),
        'limits_B': self.limits[index],
        'keys_B': jax.random.fold_in(self.root_key, self.streams[index]),
        'live_B': True,
      }
      self.slots = insert(self.slots, row, self.prefilled, i, len(read), start, program=self.program)
      if not self.ready:
        self.prefilled = None  # frees its memory for the next group

  def step(self, ended: Callable[[list[int]], bool] | None) -> list[int]:
    """Decodes until a slot is free (or a 32nd of the slots, if that is more), at most `STEPS` tokens of each answer.

    Returns the prompts whose answers have ended.
    """
    left = len(self.waiting) + len(self.continued) + len(self.ready)
    enough = min(ended_slots(self.rows), left) if left else self.rows
    self.slots, result = decode(self.params, self.slots, enough, program=self.program, steps=STEPS)
    tokens, live = jax.device_get(result)
    done = []
    cut_short = np.zeros(self.rows, bool)
    for row, index in list(self.owners.items()):
      answer = self.answers[index] + tokens[row][tokens[row] >= 0].tolist()
      cut = self.budget and self.budget.cut(index, answer, self.limits[index], self.program.stop_ids)
      self.answers[index] = cut or answer
      if cut:
        self.continued.append(index)
      cut_short[row] = live[row] and (cut or (ended is not None and ended(answer)))
      if cut_short[row] or not live[row]:
        if not cut:
          done.append(index)
        del self.owners[row]
    if cut_short.any():
      self.slots = dataclasses.replace(self.slots, live_B=self.slots.live_B & ~cut_short)
    return done
