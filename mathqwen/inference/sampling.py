"""How tokens are drawn, as an argument: `generate.sample` draws them. Without JAX."""

import dataclasses
import math

from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Temperature 0 is greedy, top_k 0 and top_p 1 leave every token in."""

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


GREEDY = Sampling()


def check_seed(seed: int):
  if not 0 <= seed < 2**32:
    raise UserError(f'seed is {seed}: it must be from 0 to 2**32 - 1')
