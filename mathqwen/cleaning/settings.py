"""`Cleaning`: what `mathqwen data clean` leaves out. Its settings are called clean.* on the command line."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mathqwen.errors import UserError
from mathqwen.settings import check_fields, declared, did_you_mean, replace_fields, setting

# Kinds of contamination, strongest first.
KINDS = ('exact', 'punctuation', 'ngrams_half', 'solution_half', 'ngrams_any', 'template')
SCRIPTS = ('latin', 'han', 'other')
_PREFIX = 'clean.'


@dataclasses.dataclass(frozen=True)
class Cleaning:
  """Filters, thresholds and what is done about test problems. The defaults suit math word problems and competitions."""

  answer: str = setting(
    'final',
    help='final: leave out rows whose last answer has no gold answer, box or number; boxed: those without \\boxed; '
    'any: none',
    choices=('final', 'boxed', 'any'),
  )
  max_characters: int = setting(20_000, help='of a row, questions and answers together', at_least=1)
  scripts: tuple[str, ...] = setting(
    ('latin', 'han'), help=f'scripts that most letters of a row may be of: {", ".join(SCRIPTS)}'
  )
  same_script: bool = setting(
    True, help='leave out rows whose question is Chinese and whose answer is not, and the other way round'
  )
  truncated: bool = setting(
    True, help='leave out answers that stop in the middle: after a comma or an operator, in an open box or environment'
  )
  refusals: bool = setting(True, help='leave out answers that decline ("As an AI language model, I ...")')
  repetitive: bool = setting(True, help='leave out answers that say the same over and over')
  duplicates: bool = setting(True, help='leave out rows equal to an earlier one but for spacing, braces, punctuation')
  near_duplicates: float = setting(
    0.8,
    help='leave out rows with the numbers, operators and answer of an earlier one and at least this Jaccard similarity '
    'of three-word shingles (characters in Chinese), estimated by MinHash; 0 looks for none',
    at_least=0,
    at_most=1,
  )
  contamination: tuple[str, ...] = setting(
    KINDS[:4],
    help=f'kinds of overlap with test problems for which a row is left out, of {", ".join(KINDS)}; all are reported',
  )

  def __post_init__(self):
    check_fields(self, _PREFIX)
    for name, allowed in (('scripts', SCRIPTS), ('contamination', KINDS)):
      for value in getattr(self, name):
        if value not in allowed:
          raise UserError(f'{_PREFIX}{name}: {value!r} is none of {", ".join(allowed)}{did_you_mean(value, allowed)}')


def split(texts: Sequence[str]) -> tuple[list[str], 'Cleaning']:
  """(the settings that are not clean.*, `Cleaning` with those that are), of texts 'a.b=value' as --set takes them.

  UserError: when one of clean.* does not exist, or its value is not allowed.
  """
  known = declared(Cleaning, _PREFIX)
  others: list[str] = []
  changes: dict[str, Any] = {}
  for text in texts:
    name, separator, value = text.partition('=')
    if not name.startswith(_PREFIX):
      others.append(text)
    elif name not in known or not separator:
      raise UserError(f'--set {text}: there is no such setting{did_you_mean(name, known)}')
    else:
      changes[name.removeprefix(_PREFIX)] = known[name].parse(name, value)
  return others, replace_fields(Cleaning(), changes)
