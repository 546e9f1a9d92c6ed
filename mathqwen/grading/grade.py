r"""The graders, by name in RULES, each a pure function `(response, gold) -> Verdict`.

    grade('She pays $18.\n#### 18', '18', 'number')           Verdict(True, '18', 'equal text')
    grade('Thus \\boxed{\\dfrac12}.', '\\frac{1}{2}', 'math')  Verdict(True, '\\dfrac12', 'equal after normalisation')

A rule belongs to a benchmark, not to a model: `number` reads GSM8K and is unfit for MATH, and a symbolic grader alone
misreads endings of GSM8K such as `... $129,200. #### 129200`. Every rule of ours compares strings first, so that gold
against gold is 100%.
"""

import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Sequence
from fractions import Fraction

from mathqwen.errors import look_up
from mathqwen.grading import extract, latex, symbolic, values
from mathqwen.grading.published import PUBLISHED, close
from mathqwen.grading.rule import MAX_ANSWER, Rule, Verdict

_within_1e4 = close('1e-4')

# Parts of an answer that math-verify ignores: it takes 2112_5 for 2112_6, and 9 a.m. for 9 p.m.
# Where answer and gold both have such a part (group 1), the parts must agree.
_MUST_AGREE = {
  # 2112_5, 2112_{5}, \text{2AB}_{\text{16}}: the digits of the base
  'number base': re.compile(r'[0-9A-Z]\}?_\{?(?:\\text\{)?(\d+)'),
  # 9 a.m., 9:30 PM, 9\text{ p.m.}: the a or the p
  'half of the day': re.compile(r'\d[^\da-zA-Z]*(?:\\(?:text|mbox|mathrm|textrm)\s?\{\s*)?([apAP])\.?\s?[mM]\b'),
  # 5 million, 5\text{ billion}, three hundred: the word
  'scale': re.compile(r'(?<![a-zA-Z])((?:m|b|tr)illion|thousand|hundred)', re.IGNORECASE),
}


def _compare_number(answer: str, gold: str) -> tuple[bool, str]:
  """By value, so that 25% is 0.25. Where the gold answer has no percent sign, 25% is also 25, as GSM8K writes it."""
  if answer == gold:
    return True, 'equal text'
  equal, reason = _within_1e4(answer, gold)
  if not equal and values.is_percent(answer) and not values.is_percent(gold):
    equal_without_sign, _ = _within_1e4(values.without_percent(answer), gold)
    if equal_without_sign:
      return True, 'difference < 1e-4 without the percent sign'
  return equal, reason


def _compare_value(answer: str, gold: str) -> tuple[bool, str]:
  """By value, and within a hundredth of the gold answer. This matters below 0.01: 0 is not 0.00008."""
  if answer == gold:
    return True, 'equal text'
  equal, reason = _within_1e4(answer, gold)
  if equal:
    wanted = values.value(gold)
    if abs(values.value(answer) - wanted) > abs(wanted) / 100:
      return False, 'difference of more than a hundredth'
  return equal, reason


class _MathRule(Rule):
  """MATH. A response that is nothing but the gold answer is right, whatever an extractor would cut out of it."""

  def __call__(self, response: str, gold: str) -> Verdict:
    if len(response) <= MAX_ANSWER and latex.normalise(response) == latex.normalise(gold):
      return Verdict(True, response.strip(), 'equal after normalisation')
    return super().__call__(response, gold)


def _extract_mathematics(response: str) -> str | None:
  answer = extract.final_answer(response)
  if answer is None:
    answer = extract.last_math(response) or extract.last_number(response)
  return answer


def _compare_mathematics(answer: str, gold: str) -> tuple[bool, str]:
  if latex.normalise(answer) == latex.normalise(gold):
    return True, 'equal after normalisation'
  for part, pattern in _MUST_AGREE.items():
    in_answer = pattern.search(answer)
    in_gold = pattern.search(gold)
    if in_answer and in_gold and in_answer.group(1).lower() != in_gold.group(1).lower():
      return False, f'different {part}'
  return symbolic.equal(gold, answer)


RULES: dict[str, Rule] = {
  'number': Rule(
    'GSM8K: the number after `#### `, in \\boxed{}, after `The answer is`, else the last one; '
    '|difference| < 1e-4; a percent sign that the gold answer lacks may be dropped',
    extract.number,
    _compare_number,
    numeric=True,
  ),
  'math23k': Rule(
    'Math23K: as GSM8K, but the last number of the sentence, by its value (percent, fraction, mixed number); '
    '|difference| < 1e-4, and at most a hundredth of the gold answer',
    extract.chinese_number,
    _compare_value,
    numeric=True,
  ),
  'math401': Rule(
    'Math401 (arXiv 2304.02015): the last number; |decoded - target| < 1e-3',
    extract.last_number,
    close('1e-3'),
    numeric=True,
  ),
  'math': _MathRule(
    'MATH: the last \\boxed{}, else the stated answer, else the last formula, else the last number; '
    'equal strings after normalisation, else equal by math-verify',
    _extract_mathematics,
    _compare_mathematics,
  ),
  **PUBLISHED,
}


def get(rule: str) -> Rule:
  """The rule of that name. UserError, with the nearest name, when there is none."""
  return look_up('rule', rule, RULES)


def grade(response: str, gold: str, rule: str) -> Verdict:
  """The verdict of the rule of that name. UserError when there is none."""
  return get(rule)(response, gold)


def judged(record: dict, rule: str) -> dict:
  """A copy of the record with its verdict: `extracted`, `correct`, `reason` and the name of the `rule`."""
  verdict = grade(record['response'], record['gold'], rule)
  return {**record, **dataclasses.asdict(verdict), 'rule': rule}


def judge(records: Sequence[dict], rule: str, workers: int | None = None) -> list[dict]:
  """`judged` of each record, in order.

  workers: how many answers are compared symbolically at a time, each in a process of its own; None: one for each CPU,
  at most 8. Verdicts do not depend on it.
  """
  with concurrent.futures.ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
    return list(pool.map(lambda record: judged(record, rule), records))


def relative_error(extracted: str | None, gold: str) -> float:
  """Math401's second metric: min(10, |decoded - target| / max(|target|, 1)); 10 when no number was decoded."""
  decoded = values.value(extracted)
  target = values.value(gold)
  if decoded is None or target is None:
    return 10.0
  return float(min(Fraction(10), abs(decoded - target) / max(abs(target), 1)))
