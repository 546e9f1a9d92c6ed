"""What a grader is: a pure function `(response, gold) -> Verdict`."""

import dataclasses
from collections.abc import Callable

Extractor = Callable[[str], str | None]  # response -> answer
Comparison = Callable[[str, str], tuple[bool | None, str]]  # (answer, gold) -> (equal, reason); None: undecided

MAX_ANSWER = 2000  # characters; the longest gold answer of MATH has 159


VERDICTS = ('right', 'wrong', 'undecided', 'no answer', 'cut off')


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a rule says about one response."""

  correct: bool
  extracted: str | None  # the answer as the response gives it; None: no answer was found
  reason: str  # a few words for whoever reads the records: 'equal text', 'no answer found'
  state: str | None = None  # 'undecided' or 'cut off', where the answer is not wrong by comparison

  @property
  def verdict(self) -> str:
    """One of VERDICTS."""
    if self.correct:
      return 'right'
    return self.state or ('no answer' if self.extracted is None else 'wrong')


@dataclasses.dataclass(frozen=True)
class Rule:
  """Finds the answer in a response, then compares it with the gold answer."""

  about: str  # which system's rule this is, and what counts as equal
  extract: Extractor
  compare: Comparison
  numeric: bool = False  # compares by value: a gold answer that is not one number is a mistake in the data

  def __call__(self, response: str, gold: str) -> Verdict:
    """The verdict. An answer of more than MAX_ANSWER characters is wrong without being compared."""
    extracted = self.extract(response)
    if extracted is None or not extracted.strip():
      return Verdict(False, None, 'no answer found')
    if len(extracted) > MAX_ANSWER:
      return Verdict(False, extracted[:MAX_ANSWER], f'answer of {len(extracted)} characters is too long to compare')
    return verdict_of(*self.compare(extracted, gold), extracted)

  def answer(self, response: str) -> str | None:
    """The answer in a response to a question whose gold answer is not known; None where it is not certain."""
    without_comparison = dataclasses.replace(self, compare=lambda answer, gold: (False, ''))
    return without_comparison(response, '0').extracted


def verdict_of(equal: bool | None, reason: str, extracted: str) -> Verdict:
  """The verdict of a comparison."""
  return Verdict(bool(equal), extracted, reason, 'undecided' if equal is None else None)
