"""What a grader is: a pure function `(response, gold) -> Verdict`."""

import dataclasses
from collections.abc import Callable

MAX_ANSWER = 2000  # characters; the longest gold answer of MATH has 159


@dataclasses.dataclass(frozen=True)
class Verdict:
  correct: bool
  extracted: str | None  # None: no answer was found in the response
  reason: str


@dataclasses.dataclass(frozen=True)
class Rule:
  """Find the answer, then compare it. `about` says whose rule it is and what counts as equal."""

  about: str
  extract: Callable[[str], str | None]  # response -> answer
  compare: Callable[[str, str], tuple[bool, str]]  # answer, gold -> equal, reason
  numeric: bool = False  # it compares values, so every gold answer must be a number

  def __call__(self, response: str, gold: str) -> Verdict:
    extracted = self.extract(response)
    if extracted is None or not extracted.strip():
      return Verdict(False, None, 'no answer found')
    if len(extracted) > MAX_ANSWER:
      return Verdict(False, extracted[:MAX_ANSWER], f'answer of {len(extracted)} characters is too long to compare')
    correct, reason = self.compare(extracted, gold)
    return Verdict(correct, extracted, reason)
