"""Our side of a measurement: a training step and decoding as functions without arguments, on random weights and ids."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from mathqwen.bench import turns
from mathqwen.config import Experiment, OptimConfig
from mathqwen.hardware import sharding
from mathqwen.inference import generate
from mathqwen.inference.sampling import AnswerRequest
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig
from mathqwen.training import optim
from mathqwen.training import step as step_lib

OPTIM = OptimConfig(warmup_steps=10)
STEPS = 1_000  # length of the learning rate's schedule
# Lengths of GSM8K's 1,319 test answers without calculator marks, in this package's tokenizer: each of these shares of
# them has at most the number of tokens below it.
GSM8K_SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
GSM8K_TOKENS = (34, 51, 61, 76, 88, 103, 117, 130, 147, 170, 202, 236, 312, 479)


def train_rows(cfg: ModelConfig, batch: int, seq_len: int, loss_share: float) -> dict[str, np.ndarray]:
  """A batch of training, [batch, seq_len] each: one segment a row, a `loss_share` of random positions with loss."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, cfg.vocab_size, (batch, seq_len + 1)).astype(np.int32)
  weights = np.zeros((batch, seq_len), np.float32)
  for row in weights:
    row[rng.permutation(seq_len)[: max(1, round(loss_share * seq_len))]] = 1
  return {
    'tokens': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segment_ids': np.ones((batch, seq_len), np.int32),
    'positions': np.tile(np.arange(seq_len, dtype=np.int32), (batch, 1)),
    'loss_weights': weights,
  }


def train_side(experiment: Experiment, rows: dict[str, np.ndarray]) -> Callable[[], float]:
  """A function that takes one training step on `rows`, each time from the state before, and returns its loss."""
  cfg = experiment.model
  mesh = sharding.make_mesh(experiment.mesh)
  sharding.check(dict(mesh.shape), cfg, experiment.data.batch_size)
  tx = optim.optimizer(OPTIM, STEPS)
  compiled = step_lib.compile_step(mesh, cfg, experiment, tx)
  state = step_lib.init_state(mesh, cfg, tx, 0)
  rows = sharding.global_batch(rows, mesh)

  def step():
    nonlocal state
    state, metrics = compiled(state, rows)
    return float(metrics['loss_sum'] / metrics['loss_tokens'])

  return step


def decode_prompts(cfg: ModelConfig, batch: int, prompt: int) -> np.ndarray:
  """Random ids, int32 [batch, prompt]."""
  return np.random.default_rng(0).integers(0, cfg.vocab_size, (batch, prompt)).astype(np.int32)


def answer_request(cfg: ModelConfig, new_tokens: int | list[int]) -> AnswerRequest:
  """Greedy answers of exactly `new_tokens`: no id stops them."""
  return AnswerRequest(new_tokens, cfg.vocab_size, stop_ids=(-1,))


def decode_side(
  cfg: ModelConfig, dtype: str, prompts: np.ndarray, new_tokens: int | list[int], batch: int | None = None
) -> Callable[..., list[list[int]]]:
  """A function that decodes greedily and returns the answers. Its arguments replace `prompts` and `new_tokens`.

  prompts: int32 [answers, prompt]. batch: answers decoded together; None: all of them.
  """
  batch = batch or len(prompts)
  make = lambda key: jax.tree.map(lambda x: x.astype(dtype), parameters.init(key, cfg))
  params = jax.jit(make)(parameters.random_key(0))
  params = generate.decoder_for(params, None).pack(params, cfg, batch)  # here, so that packing is not measured

  def decode(prompts=prompts, new_tokens=new_tokens):
    request = answer_request(cfg, new_tokens)
    return generate.generate(params, cfg, prompts.tolist(), request, generate.Execution(batch, dtype))

  return decode


def gsm8k_lengths(n: int) -> list[int]:
  """Tokens of `n` answers, drawn from the lengths of GSM8K's test answers in this package's tokenizer."""
  return np.interp(np.random.default_rng(1).random(n), GSM8K_SHARES, GSM8K_TOKENS).astype(int).tolist()


def long_tail_sides(
  cfg: ModelConfig, dtype: str, prompts: np.ndarray, lengths: list[int], batch: int
) -> dict[str, Callable[[], turns.Timing]]:
  """{'mathqwen': slots that are refilled, 'static': batches that each wait for their longest answer}.

  Each is a function that times itself. prompts: int32 [answers, prompt]. lengths: tokens of each answer.
  """
  decode = decode_side(cfg, dtype, prompts, lengths, batch)
  groups = [slice(start, start + batch) for start in range(0, len(lengths), batch)]
  static = lambda: [decode(prompts[group], lengths[group]) for group in groups]
  return {'mathqwen': functools.partial(turns.timed, decode), 'static': functools.partial(turns.timed, static)}
