r"""The graders, by name in RULES, each a pure function `(response, gold) -> Verdict`.

    grade('She pays $18.\n#### 18', '18', 'number')           Verdict(True, '18', 'equal text')
    grade('Thus \\boxed{\\dfrac12}.', '\\frac{1}{2}', 'math')  Verdict(True, '\\dfrac12', 'equal text')

A rule belongs to a benchmark, not to a model: `number` reads GSM8K and is unfit for MATH, and a symbolic grader alone
misreads endings of GSM8K such as `... $129,200. #### 129200`. Every rule of ours compares strings first, so that gold
against gold is 100%.
"""

import concurrent.futures
import os
import re
from collections.abc import Sequence
from fractions import Fraction

from mathqwen.errors import UserError, look_up
from mathqwen.grading import extract, mathematics, symbolic, thinking, units, values
from mathqwen.grading.cleaning import clean, words
from mathqwen.grading.published import PUBLISHED, close
from mathqwen.grading.rule import MAX_ANSWER, Rule, Verdict, verdict_of

_within_1e4 = close('1e-4')
_SHOWN = 5  # gold answers that an error names
_GSM8K_GOLD = re.compile(r'(?:^|\n)#### *([^\n]+)')  # the data set's own answer field ends with it
_ANSWER_MARK = re.compile(r'####|\\(?:boxed|fbox)|answer|答', re.IGNORECASE)
_PARAGRAPH = re.compile(r'\n\s*\n')


def _compare_number(answer: str, gold: str) -> tuple[bool, str]:
  """By value, so that 25% is 0.25. 25% and 25 are the same where one of the two has no percent sign, as in GSM8K."""
  if answer == gold:
    return True, 'equal text'
  equal, reason = _compare_value(answer, gold)
  if not equal and values.is_percent(answer) != values.is_percent(gold):
    without, _ = _compare_value(values.without_percent(answer), values.without_percent(gold))
    if without:
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


class _OurRule(Rule):
  """A rule of ours reads the answer behind the thinking. A response that is nothing but the gold answer is right."""

  def __call__(self, response: str, gold: str) -> Verdict:
    """As `Rule`; 'cut off' when the response ends inside its thinking."""
    reading = thinking.apart(response)
    if reading.cut_off:
      return Verdict(False, None, 'no answer found: cut off inside the thinking', 'cut off')
    text = reading.text
    if text.strip() == gold.strip() and text.strip():
      return Verdict(True, text.strip(), 'equal text')
    if reading.tagged and not _ANSWER_MARK.search(text):
      text = f'The answer is: {text}'
    return self.judge(text, gold)

  def judge(self, text: str, gold: str) -> Verdict:
    """The verdict on the answer's part of a response."""
    return super().__call__(text, gold)


class _MathRule(_OurRule):
  """MATH. Where the gold answer has several parts, they may stand in as many boxes of the last paragraph."""

  def answer(self, response: str) -> str | None:
    """As `Rule.answer`; None where only the gold answer would show whether several boxes are parts of one answer."""
    together = [box for box in extract.boxes(_last_paragraph(thinking.apart(response).text)) if '\\boxed' not in box]
    if not all(mathematics.same_text(one, together[0]) for one in together):
      return None
    return super().answer(response)

  def judge(self, text: str, gold: str) -> Verdict:
    """As `_OurRule.judge`."""
    bare = text.strip()
    if len(bare) <= MAX_ANSWER and len(gold) <= MAX_ANSWER and mathematics.same_text(bare, gold):
      return Verdict(True, bare, 'equal after normalisation')
    verdict = super().judge(text, gold)
    ways = (verdict.extracted or '').split('\\text{ or }')[:20]
    if not verdict.correct and len(ways) > 1 and all(self.compare(way.strip(), gold)[0] for way in ways):
      return Verdict(True, verdict.extracted, 'equal in each of its forms')  # 1/2 or 0.5
    if verdict.correct or '\\boxed' not in text:
      return verdict
    together = extract.boxes(_last_paragraph(text))
    if 2 <= len(together) <= 20:
      joined = super().judge(f'\\boxed{{{", ".join(together)}}}', gold)
      if joined.correct:
        return joined
    return verdict


def _last_paragraph(text: str) -> str:
  return _PARAGRAPH.split(text.strip())[-1]


def _extract_mathematics(response: str) -> str | None:
  response = clean(response)
  answer = extract.final_answer(response)
  if answer is None:
    answer = extract.last_math(response) or extract.last_whole_number(response)
  return answer


RULES: dict[str, Rule] = {
  'number': _OurRule(
    'GSM8K: the number after `#### `, in \\boxed{}, after `The answer is`, else the last one; '
    '|difference| < 1e-4; a percent sign that the gold answer lacks may be dropped',
    extract.number,
    _compare_number,
    numeric=True,
  ),
  'math23k': _OurRule(
    'Math23K: as GSM8K, but the last number of the sentence, by its value (percent, fraction, mixed number); '
    '|difference| < 1e-4, and at most a hundredth of the gold answer',
    extract.chinese_number,
    _compare_value,
    numeric=True,
  ),
  'math401': _OurRule(
    'Math401 (arXiv 2304.02015): the last number; |decoded - target| < 1e-3',
    extract.last_whole_number,
    close('1e-3'),
    numeric=True,
  ),
  'math': _MathRule(
    'MATH: the last \\boxed{}, else the stated answer, else the last formula, else the last number; '
    'equal as texts, as numbers with units, part by part, or by their values at several points',
    _extract_mathematics,
    mathematics.equal,
  ),
  **PUBLISHED,
}


def get(rule: str) -> Rule:
  """The rule of that name. UserError, with the nearest name, when there is none."""
  return look_up('rule', rule, RULES)


def grade(response: str, gold: str, rule: str, tolerance: str | None = None) -> Verdict:
  """The verdict of the rule of that name. An undecided comparison is asked again with more time, one at a time.

  tolerance: by how much a number may differ from the gold answer, '0.1', or '1%' of it: the problem's own.
  UserError: when there is no such rule, or when the gold answer is not one that it can read.
  """
  grader = get(rule)
  number = readable(gold, grader)
  if number is None:
    raise UserError(f'the gold answer is not a number, which rule {rule!r} compares; correct it or give another --rule')
  verdict = grader(response, number)
  if grader.numeric and isinstance(grader, _OurRule):
    verdict = _in_unit(verdict, response, gold)
  gold = number
  if verdict.state == 'undecided':
    with symbolic.asking_again():
      verdict = grader(response, gold)
  if verdict.correct or verdict.extracted is None or not tolerance:
    return verdict
  within = _within(verdict.extracted, gold, tolerance)
  return Verdict(True, verdict.extracted, f'within {tolerance}') if within else verdict


def _in_unit(verdict: Verdict, response: str, gold: str) -> Verdict:
  """The verdict with the units of a gold answer that has one: 50 m is not 50 cm, and 0.5 m is."""
  wanted = units.quantity(gold)
  if wanted is None or wanted.unit is None or verdict.extracted is None:
    return verdict
  stated = extract.final_answer(clean(thinking.apart(response).text))
  got = units.quantity(stated) if stated else None
  if got is None or got.unit is None:
    return verdict
  return verdict_of(*units.same(got, wanted), verdict.extracted)


def _within(answer: str, gold: str, tolerance: str) -> bool:
  """Whether both are numbers that differ by no more than the tolerance, in the same unit where both have one.

  25 and 25% are equal: of problems with a tolerance, the question says which is meant.
  """
  pair = [units.quantity(text) for text in (answer, gold)]
  allowed = values.value(tolerance.rstrip('%'))
  if None in pair or allowed is None:
    return False
  kinds = {number.unit for number in pair if number.unit}
  got, wanted = (number.value * (100 if number.percent else 1) for number in pair)
  limit = allowed * abs(wanted) / 100 if tolerance.endswith('%') else allowed
  return len(kinds) < 2 and abs(got - wanted) <= limit


def readable(gold: str, rule: Rule) -> str | None:
  """The gold answer as the rule compares it: of GSM8K's answer field, the number behind its last `#### `.

  A numeric rule gets a number; None when the gold answer is none.
  """
  marks = _GSM8K_GOLD.findall(gold)
  if marks:
    gold = marks[-1].strip()
  if rule.numeric and values.value(gold) is None:
    numbers = [values.as_written(found) for found in values.matches(words(clean(gold)))]
    is_clear = len(numbers) == 1 and extract.number(gold) == numbers[0] and values.value(numbers[0]) is not None
    return numbers[0] if is_clear else None
  return gold


def judged(record: dict, rule: str) -> dict:
  """A copy of the record with its verdict: `extracted`, `correct`, `reason`, `verdict` and the name of the `rule`."""
  tolerance = (record.get('extra') or {}).get('tolerance')
  verdict = grade(record['response'], record['gold'], rule, None if tolerance is None else str(tolerance))
  state = verdict.verdict
  if state == 'no answer' and record.get('truncated'):
    state = 'cut off'
  fields = {'extracted': verdict.extracted, 'correct': verdict.correct, 'reason': verdict.reason}
  return {**record, **fields, 'verdict': state, 'rule': rule}


def unjudged(record: dict, rule: str) -> dict:
  """A copy of the record with its answer and no verdict: for a question whose gold answer is not known."""
  extracted = get(rule).answer(record['response'])
  fields = {'gold': None, 'extracted': extracted, 'correct': False, 'reason': '', 'verdict': None, 'rule': rule}
  return {**record, **fields}


def judge(records: Sequence[dict], rule: str, workers: int | None = None) -> list[dict]:
  """`judged` of each record, in order.

  workers: how many answers are compared symbolically at a time, each in a process of its own; None: one for each CPU,
  at most 8. Verdicts do not depend on it.
  """
  _refuse_unreadable(records, rule)
  with concurrent.futures.ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
    return list(pool.map(lambda record: judged(record, rule), records))


def _refuse_unreadable(records: Sequence[dict], rule: str) -> None:
  """UserError: names the records whose gold answer the rule cannot read. None of their answers could be right."""
  grader = get(rule)
  bad = [
    record.get('id', f'line {number}')
    for number, record in enumerate(records, 1)
    if readable(record['gold'], grader) is None
  ]
  if bad:
    names = ', '.join(map(str, bad[:_SHOWN])) + (', ...' if len(bad) > _SHOWN else '')
    raise UserError(
      f'{len(bad)} of {len(records)} gold answers are not numbers, which rule {rule!r} compares ({names}); '
      'correct them or give another --rule'
    )


def relative_error(extracted: str | None, gold: str) -> float:
  """Math401's second metric: min(10, |decoded - target| / max(|target|, 1)); 10 when no number was decoded."""
  decoded = values.value(extracted)
  target = values.value(gold)
  if decoded is None or target is None:
    return 10.0
  return float(min(Fraction(10), abs(decoded - target) / max(abs(target), 1)))
