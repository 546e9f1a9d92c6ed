"""What `generate` is asked for, as plain data without JAX: how tokens are drawn, and when an answer ends."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mathqwen.errors import UserError

if TYPE_CHECKING:
  from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn from the logits: temperature, then top-k, then top-p.

  UserError: when a value is out of range.
  """

  temperature: float = 0.0  # 0 is greedy
  top_p: float = 1.0  # keep the fewest, most probable tokens whose probabilities reach this sum; 1 keeps all
  top_k: int = 0  # keep this many of the most probable tokens; 0 keeps all

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise UserError(
        f'temperature {self.temperature} is not a finite number >= 0: 0 is greedy, 1 samples from the model as it is'
      )
    if not 0 < self.top_p <= 1:
      raise UserError(f'top_p {self.top_p} is not in (0, 1]: 1 leaves every token in')
    if self.top_k < 0:
      raise UserError(f'top_k {self.top_k} is below 0: 0 leaves every token in')


GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class AnswerRequest:
  """What is asked for each prompt of a call of `generate`."""

  max_new_tokens: int | Sequence[int]  # one limit for all answers, or one for each
  vocab_size: int  # ids from here on, which the tokenizer does not know, are never drawn
  stop_ids: tuple[int, ...]  # an answer ends with the first of them
  sampling: Sampling = GREEDY
  seed: int = 0
  streams: Sequence[int] | None = None  # which of the seed's random streams each answer draws from; None: its index

  def limits(self, prompts: Sequence) -> list[int]:
    """The most new tokens of each answer."""
    if isinstance(self.max_new_tokens, int):
      return [self.max_new_tokens] * len(prompts)
    return list(self.max_new_tokens)


def check_seed(seed: int):
  """UserError when `seed` is not a 32-bit number."""
  if not 0 <= seed < 2**32:
    raise UserError(f'seed is {seed}: it must be from 0 to 2**32 - 1')


def check(cfg: 'ModelConfig', prompts: Sequence[Sequence[int]], request: AnswerRequest, batch_size: int = 1):
  """UserError where `generate.generate` would refuse these arguments."""
  limits = request.limits(prompts)
  asked = [request.max_new_tokens] if isinstance(request.max_new_tokens, int) else limits
  for limit in asked:
    if limit < 1:
      raise UserError(f'max_new_tokens is {limit}: it must be at least 1')
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size}: it must be at least 1')
  check_seed(request.seed)
  for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
    room = cfg.longest - len(prompt)
    if not prompt:
      raise UserError(f'prompt {index} is empty: give at least one token')
    if not 0 <= min(prompt) <= max(prompt) < cfg.vocab_size:
      raise UserError(f'prompt {index} has ids outside 0 to {cfg.vocab_size - 1}, which are all that the model knows')
    if limit > room:
      remedy = f'set max_new_tokens to at most {room}, or shorten the prompt' if room > 0 else 'shorten the prompt'
      raise UserError(
        f"prompt {index} has {len(prompt)} tokens, which with max_new_tokens {limit} is above the model's "
        f'{cfg.limit}: {remedy}'
      )
