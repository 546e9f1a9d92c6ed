"""Rules of published systems, mistakes included, for comparing with their numbers. One entry each.

What each does is said in its `about`. They look for their own system's ending (`#### 18`, `A: 18`, `The answer is: 18`)
and are meaningless on answers that end in another way.
"""

import re
from fractions import Fraction

from mathqwen.evals import extract, latex, symbolic, values
from mathqwen.evals.rule import Rule

_LAST_SIGNED = re.compile(r'-?\d[\d,]*+(?:\.\d++)?')
_HASHES = re.compile(r'#### (-?[0-9.,]+)')
_LETTER_A = re.compile(r'A: (-?[0-9.,]+)')
_ABEL = re.compile(r'#### (.*)')
_MINERVA = 'The final answer is '
_WIZARD = 'The answer is: '


def _first(pattern: re.Pattern):
  def extractor(response):
    match = pattern.search(response)
    return match.group(1).replace(',', '') if match else None

  return extractor


def _last_signed(response):
  numbers = _LAST_SIGNED.findall(response)
  return numbers[-1].replace(',', '') if numbers else None


def _last_digits(response):
  runs = re.findall(r'\d+', response)
  return runs[-1] if runs else None


def _abel(response):
  lines = response.partition('Question')[0].removesuffix('\n').rpartition('\n')
  match = _ABEL.search(lines[2])  # only the last line is looked at
  return match.group(1).replace('</s>', '') if match else None


def _minerva(response):
  _, mark, rest = response.rpartition(_MINERVA)
  return rest.partition('. I hope it is correct.')[0].strip() if mark else None


def _wizard(response):
  _, mark, rest = response.rpartition(_WIZARD)
  return rest if mark else None


def _wizard_number(response):
  rest = _wizard(response)
  match = re.search(r'-?\d[\d,]*+(?:\.\d++)?(?:/\d++)?', rest) if rest else None
  return match.group().replace(',', '') if match else None


def _wizard_math(response):
  rest = _wizard(response)
  return rest.partition('.\n')[0].strip().removesuffix('.') if rest else None


def same_text(answer: str, gold: str) -> tuple[bool, str]:
  equal = answer == gold.replace(',', '')
  return equal, 'equal text' if equal else 'different text'


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
  """Minerva's form on both sides; equal strings, or a difference that is zero."""
  answer, gold = latex.minerva(answer), latex.minerva(gold)
  if answer == gold:
    return True, 'equal after normalisation'
  got, want = values.value(answer), values.value(gold)
  if got is not None and want is not None:
    return got == want, 'equal value' if got == want else 'different value'
  return symbolic.equal(gold, answer, test='difference')


def same_after_normalisation(answer: str, gold: str) -> tuple[bool, str]:
  equal = latex.normalise(answer) == latex.normalise(extract.boxed(gold) or gold)
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
    _first(_HASHES), close('1e-4'),
  ),
  'qwen-chat': Rule('Qwen-Chat on GSM8K: last signed number, commas allowed, |difference| < 1e-4',
                    _last_signed, close('1e-4')),
  'qwen-base': Rule('Qwen base on GSM8K: last run of digits (loses signs and decimals), string equality',
                    _last_digits, same_text),
  'wizardmath-gsm8k': Rule('WizardMath on GSM8K: first number or fraction after `The answer is: `, equal value',
                           _wizard_number, close('1e-9')),
  'wizardmath-math': Rule('WizardMath on MATH: after the last `The answer is: ` up to the period; equal strings after '
                          "the normalisation of rule `math` (not WizardMath's own)",
                          _wizard_math, same_after_normalisation),
  'minerva': Rule('Minerva on MATH: `The final answer is X. I hope it is correct.`; its Appendix D normalisation; '
                  'equal strings or zero difference',
                  _minerva, same_after_minerva),
  'lm-eval-strict': Rule('lm-evaluation-harness GSM8K, strict-match: number after the first `#### `, string equality',
                         _first(_HASHES), same_text),
  'lm-eval-flexible': Rule('lm-evaluation-harness GSM8K, flexible-extract: last number of the text, string equality',
                           _last_signed, same_text),
}  # fmt: skip
