"""Rules of published systems, mistakes included, for comparing with their numbers. One entry each.

What each does is said in its `about`. They look for their own system's ending (`#### 18`, `A: 18`, `The answer is: 18`)
and are meaningless on answers that end in another way.
"""

import re
from fractions import Fraction

from mathqwen.grading import extract, latex, symbolic, values
from mathqwen.grading.rule import Rule

_HASHES = re.compile(r'#### (-?[0-9.,]+)')
_LETTER_A = re.compile(r'A: (-?[0-9.,]+)')
_QWEN_NUMBER = re.compile(r'[+-]?(?=\.?[0-9])(?:0|[1-9]\d{0,2}(?:,\d{3})*|\d*)(?:\.\d*)?(?!\d)')
_LEADING_ZERO = re.compile(r'[+-]?0\d+')  # 05 is no Python number, which that grader takes it for
_ABEL = re.compile(r'#### (.*)')
_MINERVA, _MINERVA_END = 'The final answer is', '. I hope it is correct'
_PLAIN = re.compile(r'-?[\d.,/]+|-?\\frac\{-?[\d.]+\}\{[\d.]+\}')
_PRODUCT = re.compile(r'(?<=\d)\\[dt]?frac')
_WIZARD = 'The answer is: '
_WIZARD_NUMBER = re.compile(r'[-+]?\d*[.,/]?\d+')
_HARNESS_NUMBER = re.compile(r'-?[$0-9.,]{2,}|-?[0-9]+')


def _first(pattern: re.Pattern):
  def extractor(response):
    match = pattern.search(response)
    return match.group(1).replace(',', '') if match else None

  return extractor


def _last(pattern: re.Pattern):
  def extractor(response):
    match = None
    for match in pattern.finditer(response):  # noqa: B007 - the last one is wanted
      pass
    return match.group() if match else None

  return extractor


def _abel(response):
  lines = response.partition('Question')[0].removesuffix('\n').rpartition('\n')
  match = _ABEL.search(lines[2])  # only the last line is looked at
  if not match:
    return None
  return match.group(1)[:-4] if '</s>' in match.group(1) else match.group(1)


def _minerva(response):
  for line in response.split('\n'):
    answer, end, _ = line.partition(_MINERVA)[2].partition(_MINERVA_END)
    if end:
      return answer.strip()
  return None


def _wizard(response):
  _, mark, rest = response.rpartition(_WIZARD)
  return rest if mark else None


def _wizard_number(response):
  match = _WIZARD_NUMBER.search(_wizard(response) or '')
  return match.group() if match else None


def _wizard_math(response):
  rest = _wizard(response)
  return rest.partition('.\n')[0].strip().removesuffix('.').strip() if rest else None


def _wizard_equal(answer: str, gold: str) -> tuple[bool, str]:
  """Both are whole numbers there: the answer is rounded to one. `1,234,567` is read as 1,234; a/0 as a."""
  if len(answer) > values.MAX_LENGTH:
    return False, 'not a number'
  upper, _, lower = answer.replace(',', '').partition('/')
  if upper in ('', '-', '+'):  # of `/5`
    return False, 'not a number'
  got = Fraction(upper) / (int(lower or 1) or 1)
  want = values.value(gold)
  if want is None:
    return False, f'the gold answer {gold!r} is not a number'
  if want.denominator == 1:
    return round(got) == want, 'equal when rounded' if round(got) == want else 'different when rounded'
  return got == want, 'equal value' if got == want else 'different value'


def same_text(answer: str, gold: str) -> tuple[bool, str]:
  equal = answer == gold.replace(',', '')
  return equal, 'equal text' if equal else 'different text'


def _harness_equal(answer: str, gold: str) -> tuple[bool, str]:
  answer, gold = (text.strip().replace(',', '').replace('$', '').removesuffix('.') for text in (answer, gold))
  return answer == gold, 'equal text' if answer == gold else 'different text'


def _float(text: str) -> float | None:
  try:
    return float(text.replace(',', ''))
  except ValueError:
    return None


def _close(answer: str, gold: str) -> tuple[bool, str]:
  """Absolute difference below 1e-4, of Python's floats as there: `18.` is a number, `1.2.3` none."""
  got, want = _float(answer), _float(gold)
  if got is None or want is None:
    return False, 'not a number' if got is None else f'the gold answer {gold!r} is not a number'
  equal = abs(got - want) < 1e-4
  return equal, 'difference < 1e-4' if equal else 'difference >= 1e-4'


def _qwen_close(answer: str, gold: str) -> tuple[bool, str]:
  digits = answer.replace(',', '')
  if _LEADING_ZERO.fullmatch(digits) and digits.strip('+-0'):
    return False, 'leading zero: not a number'
  return _close(digits, gold)


def close(limit: str):
  """Absolute difference below `limit`, in exact arithmetic."""

  def compare(answer, gold):
    got, want = values.value(answer), values.value(gold)
    if got is None or want is None:
      return False, 'not a number' if got is None else f'the gold answer {gold!r} is not a number'
    equal = abs(got - want) < Fraction(limit)
    return equal, f'difference < {limit}' if equal else f'difference >= {limit}'

  return compare


def same_after_minerva(answer: str, gold: str) -> tuple[bool, str]:
  """Minerva's form on both sides; equal strings, or a difference that is zero.

  As SymPy reads LaTeX there: a percent sign cannot be read, `6\\frac{1}{5}` is a product, letters are variables, and a
  period behind a formula, but not behind a number, is left unread.
  """
  answer, gold = latex.minerva(answer), latex.minerva(gold)
  if answer == gold:
    return True, 'equal after normalisation'
  if '%' in answer + gold:
    return False, 'different text'
  got, want = (values.value(text) if _PLAIN.fullmatch(text) else None for text in (answer, gold))
  if got is not None and want is not None:
    return got == want, 'equal value' if got == want else 'different value'
  answer, gold = (text if _PLAIN.fullmatch(text) else text.rstrip('.') for text in (answer, gold))
  answer, gold = (_PRODUCT.sub(r'\\cdot\\frac', latex.whole_fractions(text)) for text in (answer, gold))
  return symbolic.equal(gold, answer, test='difference')


def same_after_hendrycks(answer: str, gold: str) -> tuple[bool, str]:
  """The form of the MATH release on both sides; as they are, where one of them has none."""
  gold = extract.boxed(gold) or gold
  try:
    equal = latex.hendrycks(answer) == latex.hendrycks(gold)
  except ValueError:
    equal = answer == gold
  return equal, 'equal after normalisation' if equal else 'different after normalisation'


PUBLISHED: dict[str, Rule] = {
  'openai': Rule(
    'openai/grade-school-math, 6B fine-tuning outputs: number after the first `A: `, no commas, string equality',
    _first(_LETTER_A), same_text,
  ),
  'abel': Rule(
    "GAIR-NLP/abel: cut at `Question`; what follows `#### ` in the last line; Minerva's normalisation on both sides; "
    'equal strings or zero difference',
    _abel, same_after_minerva,
  ),
  'rft': Rule(
    'OFA-Sys/gsm8k-ScRel: number after the first `#### `, commas removed, |difference| < 1e-4; no match is wrong',
    _first(_HASHES), _close,
  ),
  'qwen-chat': Rule('Qwen-Chat on GSM8K: last signed number, commas allowed (`5-3` gives -3), |difference| < 1e-4',
                    _last(_QWEN_NUMBER), _qwen_close),
  'qwen-base': Rule('Qwen base on GSM8K: last run of digits (loses signs and decimals), string equality',
                    _last(re.compile(r'\d+')), same_text),
  'wizardmath-gsm8k': Rule('WizardMath on GSM8K: after the last `The answer is: `, its first number or fraction, '
                           'rounded to a whole one (`1,234,567` is read as 1,234)',
                           _wizard_number, _wizard_equal),
  'wizardmath-math': Rule('WizardMath on MATH: after the last `The answer is: ` up to the period; equal strings after '
                          'the normalisation of the MATH release',
                          _wizard_math, same_after_hendrycks),
  'minerva': Rule('Minerva on MATH: `The final answer is X. I hope it is correct.`, the first; its Appendix D '
                  'normalisation; equal strings or zero difference',
                  _minerva, same_after_minerva),
  'lm-eval-strict': Rule('lm-evaluation-harness GSM8K, strict-match: number after the first `#### `; string equality '
                         'without commas, dollar signs and a last period',
                         _first(_HASHES), _harness_equal),
  'lm-eval-flexible': Rule('lm-evaluation-harness GSM8K, flexible-extract: last number of the text (`...` is one), '
                           'likewise',
                           _last(_HARNESS_NUMBER), _harness_equal),
}  # fmt: skip
