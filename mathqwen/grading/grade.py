r"""Graders: pure functions `(response, gold) -> Verdict`, by name in RULES.

A rule belongs to a benchmark, not to a model: `number` reads GSM8K and is unfit for MATH; a symbolic grader alone
misreads GSM8K endings such as `... $129,200. #### 129200`. String equality always comes first, so gold against gold is
100%.

    grade('She pays $18.\n#### 18', '18', 'number')             Verdict(True, '18', 'equal text')
    grade('Thus \boxed{\dfrac12}.', '\frac{1}{2}', 'math')    Verdict(True, '\dfrac12', 'equal after normalisation')
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
# What math-verify leaves unread, and what must agree where both have it: it takes 2112_5 for 2112_6, 9 a.m. for 9 p.m.
_TOLD_APART = {
  'number base': re.compile(r'[0-9A-Z]\}?_\{?(?:\\text\{)?(\d+)'),
  'half of the day': re.compile(r'\d[^\da-zA-Z]*(?:\\(?:text|mbox|mathrm|textrm)\s?\{\s*)?([apAP])\.?\s?[mM]\b'),
  'scale': re.compile(r'(?<![a-zA-Z])((?:m|b|tr)illion|thousand|hundred)', re.IGNORECASE),
}


def _number(answer: str, gold: str) -> tuple[bool, str]:
  """Percent counts by value (25% = 0.25); where the gold answer has no sign, also as GSM8K writes it (25% for 25)."""
  if answer == gold:
    return True, 'equal text'
  equal, reason = _within_1e4(answer, gold)
  if not equal and values.is_percent(answer) and not values.is_percent(gold):
    bare, _ = _within_1e4(values.without_percent(answer), gold)
    if bare:
      return True, 'difference < 1e-4 without the percent sign'
  return equal, reason


def _value(answer: str, gold: str) -> tuple[bool, str]:
  """Where the gold answer is below 0.01, within a hundredth of it: 0 is not 0.00008."""
  if answer == gold:
    return True, 'equal text'
  equal, reason = _within_1e4(answer, gold)
  if equal and abs(values.value(answer) - (want := values.value(gold))) > abs(want) / 100:
    return False, 'difference of more than a hundredth'
  return equal, reason


def math(response: str, gold: str) -> Verdict:
  r"""MATH: the last \boxed{}, else the stated answer, else the last formula; equal strings first, then math-verify."""
  if len(response) <= MAX_ANSWER and latex.normalise(response) == latex.normalise(gold):
    return Verdict(True, response.strip(), 'equal after normalisation')
  answer = extract.final_answer(response)
  if answer is None:
    answer = extract.last_math(response) or extract.last_number(response)
  return Rule('', lambda _: answer, _mathematics)(response, gold)


def _mathematics(answer: str, gold: str) -> tuple[bool, str]:
  if latex.normalise(answer) == latex.normalise(gold):
    return True, 'equal after normalisation'
  for what, pattern in _TOLD_APART.items():
    found = [pattern.search(text) for text in (answer, gold)]
    if all(found) and found[0].group(1).lower() != found[1].group(1).lower():
      return False, f'different {what}'
  return symbolic.equal(gold, answer)


RULES = {
  'number': Rule(
    'GSM8K: the number after `#### `, in \\boxed{}, after `The answer is`, else the last one; '
    '|difference| < 1e-4; a percent sign the gold answer lacks may be dropped',
    extract.number, _number, numeric=True,
  ),
  'math23k': Rule(
    'Math23K: as GSM8K, but the last number of the sentence, by its value (percent, fraction, mixed number); '
    '|difference| < 1e-4, and at most a hundredth of the gold answer',
    extract.chinese_number, _value, numeric=True,
  ),
  'math401': Rule(
    'Math401 (arXiv 2304.02015): the last number; |decoded - target| < 1e-3',
    extract.last_number, close('1e-3'), numeric=True,
  ),
  'math': math,
  **PUBLISHED,
}  # fmt: skip


def grade(response: str, gold: str, rule: str) -> Verdict:
  """The verdict of the rule of that name."""
  return get(rule)(response, gold)


def judged(record: dict, rule: str) -> dict:
  """The record with its verdict: `extracted`, `correct`, `reason` and the name of the `rule`."""
  return {**record, **dataclasses.asdict(grade(record['response'], record['gold'], rule)), 'rule': rule}


def judge(records: Sequence[dict], rule: str, workers: int | None = None) -> list[dict]:
  """`judged` of each, in order; so many `workers` (one a CPU, at most 8) compare answers symbolically at a time."""
  with concurrent.futures.ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
    return list(pool.map(lambda record: judged(record, rule), records))


def get(rule: str):
  return look_up('rule', rule, RULES)


def relative_error(extracted: str | None, gold: str) -> float:
  """Math401's second metric: min(10, |decoded - target| / max(|target|, 1)); 10 when no number was decoded."""
  got, want = values.value(extracted), values.value(gold)
  if got is None or want is None:
    return 10.0
  return float(min(Fraction(10), abs(got - want) / max(abs(want), 1)))
