"""Rules of published systems, mistakes included, for comparing with their numbers.

Each rule's `about` says what it does. It looks for the ending of its own system (`#### 18`, `A: 18`,
`The answer is: 18`) and is meaningless on answers that end in another way.
"""

import re
from fractions import Fraction

from mathqwen.grading import extract, latex, symbolic, values
from mathqwen.grading.rule import Comparison, Extractor, Rule

_HASHES = re.compile(r'#### (-?[0-9.,]+)')  # #### -1,234.5
_LETTER_A = re.compile(r'A: (-?[0-9.,]+)')  # A: 1,026
# 18, -1,000.50, .5, 18., 0.25: a number with commas, which must not begin with a zero or go on with another digit
_QWEN_NUMBER = re.compile(r'[+-]?(?=\.?[0-9])(?:0|[1-9]\d{0,2}(?:,\d{3})*|\d*)(?:\.\d*)?(?!\d)')
_QWEN_DIGITS = re.compile(r'\d+')  # of 12.5: 12, then 5
_LEADING_ZERO = re.compile(r'[+-]?0\d+')  # 05: Qwen's grader reads the answer as Python source, where 05 is an error
_ABEL = re.compile(r'#### (.*)')  # everything behind #### on the line
_MINERVA, _MINERVA_END = 'The final answer is', '. I hope it is correct'
_PLAIN = re.compile(r'-?[\d.,/]+|-?\\frac\{-?[\d.]+\}\{[\d.]+\}')  # 18, 36/2, \frac{1}{2}: compared by value
_PRODUCT = re.compile(r'(?<=\d)\\[dt]?frac')  # the \frac of 6\frac{1}{5}
_WIZARD = 'The answer is: '
_WIZARD_NUMBER = re.compile(r'[-+]?\d*[.,/]?\d+')  # 12.5, 1/2, 1,234 (and of 1,234,567 no more than that)
_HARNESS_NUMBER = re.compile(r'-?[$0-9.,]{2,}|-?[0-9]+')  # $1,000.50 or 7; also `...`


def _first(pattern: re.Pattern) -> Extractor:
  """Extracts group 1 of the first match, without commas."""

  def extractor(response: str) -> str | None:
    match = pattern.search(response)
    return match.group(1).replace(',', '') if match else None

  return extractor


def _last(pattern: re.Pattern) -> Extractor:
  """Extracts the last match."""

  def extractor(response: str) -> str | None:
    match = None
    for match in pattern.finditer(response):  # noqa: B007 - only the last one is wanted
      pass
    return match.group() if match else None

  return extractor


def _abel_answer(response: str) -> str | None:
  """Abel reads only the last line of the answer, which ends where the model goes on with another `Question`."""
  text = response.partition('Question')[0].removesuffix('\n')
  last_line = text.rpartition('\n')[2]
  match = _ABEL.search(last_line)
  if not match:
    return None
  answer = match.group(1)
  # When `</s>` occurs, Abel drops the last four characters, whatever they are: `18</s> ` becomes `18<`.
  return answer[:-4] if '</s>' in answer else answer


def _minerva_answer(response: str) -> str | None:
  """The answer in the first line that has both marks, which need not be the last answer of the response."""
  for line in response.split('\n'):
    answer, end, _ = line.partition(_MINERVA)[2].partition(_MINERVA_END)
    if end:
      return answer.strip()
  return None


def _wizard(response: str) -> str | None:
  _, mark, rest = response.rpartition(_WIZARD)
  return rest if mark else None


def _wizard_number(response: str) -> str | None:
  match = _WIZARD_NUMBER.search(_wizard(response) or '')
  return match.group() if match else None


def _wizard_math(response: str) -> str | None:
  rest = _wizard(response)
  return rest.partition('.\n')[0].strip().removesuffix('.').strip() if rest else None


def _wizard_equal(answer: str, gold: str) -> tuple[bool, str]:
  """Answers are whole numbers to WizardMath: it rounds. It reads `1,234,567` as 1,234, and a/0 as a."""
  if len(answer) > values.MAX_LENGTH:
    return False, 'not a number'
  numerator, _, denominator = answer.replace(',', '').partition('/')
  if numerator in ('', '-', '+'):  # of `/5`
    return False, 'not a number'
  got = Fraction(numerator) / (int(denominator or 1) or 1)
  want = values.value(gold)
  if want is None:
    return False, f'the gold answer {gold!r} is not a number'
  if want.denominator == 1:
    equal = round(got) == want  # Python's round, as there: 12.5 is 12 and 13.5 is 14
    return equal, 'equal when rounded' if equal else 'different when rounded'
  return got == want, 'equal value' if got == want else 'different value'


def _same_text(answer: str, gold: str) -> tuple[bool, str]:
  """Equal strings; the gold answer loses its commas."""
  equal = answer == gold.replace(',', '')
  return equal, 'equal text' if equal else 'different text'


def _harness_equal(answer: str, gold: str) -> tuple[bool, str]:
  """Equal strings without commas, dollar signs and a final period."""
  answer, gold = (text.strip().replace(',', '').replace('$', '').removesuffix('.') for text in (answer, gold))
  return answer == gold, 'equal text' if answer == gold else 'different text'


def _float(text: str) -> float | None:
  try:
    return float(text.replace(',', ''))
  except ValueError:
    return None


def _close_floats(answer: str, gold: str) -> tuple[bool, str]:
  """Absolute difference below 1e-4 of Python's floats, as there: `18.` is a number, `1.2.3` is not."""
  got, want = _float(answer), _float(gold)
  if got is None:
    return False, 'not a number'
  if want is None:
    return False, f'the gold answer {gold!r} is not a number'
  equal = abs(got - want) < 1e-4
  return equal, 'difference < 1e-4' if equal else 'difference >= 1e-4'


def _qwen_close(answer: str, gold: str) -> tuple[bool, str]:
  digits = answer.replace(',', '')
  if _LEADING_ZERO.fullmatch(digits) and digits.strip('+-0'):  # 00 is Python source for 0
    return False, 'leading zero: not a number'
  return _close_floats(digits, gold)


def close(limit: str) -> Comparison:
  """Compares by value in exact arithmetic: equal when the absolute difference is below `limit`, a decimal."""

  def compare(answer: str, gold: str) -> tuple[bool, str]:
    got, want = values.value(answer), values.value(gold)
    if got is None:
      return False, 'not a number'
    if want is None:
      return False, f'the gold answer {gold!r} is not a number'
    equal = abs(got - want) < Fraction(limit)
    return equal, f'difference < {limit}' if equal else f'difference >= {limit}'

  return compare


def _same_after_minerva(answer: str, gold: str) -> tuple[bool, str]:
  """Minerva's form on both sides, then equal strings or a difference that is zero.

  The difference follows how SymPy reads LaTeX there: it cannot read a percent sign, takes `6\\frac{1}{5}` for a product
  and letters for variables, and ignores a final period behind a formula, but not behind a number.
  """
  answer, gold = latex.minerva(answer), latex.minerva(gold)
  if answer == gold:
    return True, 'equal after normalisation'
  if '%' in answer + gold:
    return False, 'different text'

  got = values.value(answer) if _PLAIN.fullmatch(answer) else None
  want = values.value(gold) if _PLAIN.fullmatch(gold) else None
  if got is not None and want is not None:
    return got == want, 'equal value' if got == want else 'different value'
  return symbolic.equal(_as_sympy_reads(gold), _as_sympy_reads(answer), test='difference')


def _as_sympy_reads(text: str) -> str:
  """The text as Minerva's SymPy reads it: see `_same_after_minerva`."""
  if not _PLAIN.fullmatch(text):
    text = text.rstrip('.')
  return _PRODUCT.sub(r'\\cdot\\frac', latex.whole_fractions(text))


def _same_after_hendrycks(answer: str, gold: str) -> tuple[bool, str]:
  """The form of the MATH release on both sides; equal strings as they are when one of them has no such form."""
  gold = extract.boxed(gold) or gold
  try:
    equal = latex.hendrycks(answer) == latex.hendrycks(gold)
  except ValueError:
    equal = answer == gold
  return equal, 'equal after normalisation' if equal else 'different after normalisation'


PUBLISHED: dict[str, Rule] = {
  'openai': Rule(
    'openai/grade-school-math, 6B fine-tuning outputs: number after the first `A: `, no commas, string equality',
    _first(_LETTER_A),
    _same_text,
  ),
  'abel': Rule(
    "GAIR-NLP/abel: cut at `Question`; what follows `#### ` in the last line; Minerva's normalisation on both sides; "
    'equal strings or zero difference',
    _abel_answer,
    _same_after_minerva,
  ),
  'rft': Rule(
    'OFA-Sys/gsm8k-ScRel: number after the first `#### `, commas removed, |difference| < 1e-4; no match is wrong',
    _first(_HASHES),
    _close_floats,
  ),
  'qwen-chat': Rule(
    'Qwen-Chat on GSM8K: last signed number, commas allowed (`5-3` gives -3), |difference| < 1e-4',
    _last(_QWEN_NUMBER),
    _qwen_close,
  ),
  'qwen-base': Rule(
    'Qwen base on GSM8K: last run of digits (loses signs and decimals), string equality',
    _last(_QWEN_DIGITS),
    _same_text,
  ),
  'wizardmath-gsm8k': Rule(
    'WizardMath on GSM8K: after the last `The answer is: `, its first number or fraction, rounded to a whole number '
    '(`1,234,567` is read as 1,234)',
    _wizard_number,
    _wizard_equal,
  ),
  'wizardmath-math': Rule(
    'WizardMath on MATH: after the last `The answer is: ` up to the period; equal strings after the normalisation of '
    'the MATH release',
    _wizard_math,
    _same_after_hendrycks,
  ),
  'minerva': Rule(
    'Minerva on MATH: `The final answer is X. I hope it is correct.`, the first; its Appendix D normalisation; '
    'equal strings or zero difference',
    _minerva_answer,
    _same_after_minerva,
  ),
  'lm-eval-strict': Rule(
    'lm-evaluation-harness GSM8K, strict-match: number after the first `#### `; string equality without commas, '
    'dollar signs and a final period',
    _first(_HASHES),
    _harness_equal,
  ),
  'lm-eval-flexible': Rule(
    'lm-evaluation-harness GSM8K, flexible-extract: last number of the text (`...` counts as one); string equality as '
    'in lm-eval-strict',
    _last(_HARNESS_NUMBER),
    _harness_equal,
  ),
}
