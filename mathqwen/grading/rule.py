"""What a grader is: a pure function `(response, gold) -> Verdict`."""

import dataclasses
from collections.abc import Callable

Extractor = Callable[[str], str | None]  # response -> answer
Comparison = Callable[[str, str], tuple[bool, str]]  # (answer, gold) -> (equal, reason)

MAX_ANSWER = 2000  # characters; the longest gold answer of MATH has 159


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a rule says about one response."""

  correct: bool
  extracted: str | None  # the answer as the response gives it; None: no answer was found
  reason: str  # a few words for whoever reads the records: 'equal text', 'no answer found'


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
    correct, reason = self.compare(extracted, gold)
    return Verdict(correct, extracted, reason)
