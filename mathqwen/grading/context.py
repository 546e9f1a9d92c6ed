r"""Whether a number in a text is the answer, or a part of something else. Standard library only.

    18 dollars       the number 18          9!, 2^{36}, 18+x, 10-5      expressions around a number
    not 45           no number              45 or 54                    two numbers

A number that belongs to an expression is given with its expression, which has no value: it equals no number.
"""

import re

from mathqwen.grading import units, values

_NEAR = 40  # characters on each side that are looked at

_OPERATOR = r'(?:[-+*/^×·÷]|\\(?:times|cdot|div|pm|mp|over)(?![a-zA-Z]))'
_BEFORE = re.compile(
  r'(?:'
  rf'(?:[\d)}}\]%]|(?<![a-zA-Z\\])[a-zA-Z])[ ]?{_OPERATOR}[ ]?[({{]*'  # 10-5, x + 5, 2^{36}
  rf'|\^\{{?-?|_\{{?|[\d]:'  # powers, indices, 5:30
  r'|\([ ]?-?\d+,[ ]?'  # (1,2)
  r'|(?<=\d)[ ]x[ ]'  # 3 x 5
  r'|\\(?:d?frac|sqrt|log|ln|sin|cos|tan|binom|sec|csc|cot)(?:\[\d+\])?\s?\{?'
  r'|(?:[<>]|\\(?:ne|lt|gt|le|ge|neq|leq|geq)(?![a-zA-Z]))[ ]?'  # x > 18
  r"|(?:\b(?:is|are|was|be|do|does)(?:n't|\ not)|(?:(?<=[\w,] )|^)not)(?:\ equal(?:\ to)?|\ just|\ exactly)?[ :]*\$?"
  r'|不(?:是|等于|为)[^\d]{0,2}'
  r')$',
  re.IGNORECASE,
)
_AFTER = re.compile(
  r'(?:'
  r'\^|!(?![=!])|_\{?\d'  # 2^, 9!, a base
  r'|\*\*|:\d|[ ]x[ ](?=\d)'
  r'|\s?\\(?:sqrt|pi|times|cdot|div|pm|mp|d?frac|binom|alpha|theta|sin|cos|tan|log|ln)(?![a-zA-Z])'
  rf'|[ ]?{_OPERATOR}[ ]?(?:[\d({{\\√]|[a-zA-Z](?![a-zA-Z]))'  # 18+x, 18-20
  r'|(?:[abcdinpqrtuvwxyz]|[xyz]{2,3})(?![a-zA-Z])'  # 5x
  r'|\s?(?:[~～至]|to)\s?\d'  # a range
  r')'
)
_UNIT_IN_FRONT = re.compile(r'\d\s?([^\W\d_]+),?\s?(?:and\s)?$')
_UNIT_BEHIND = re.compile(r'\s?([^\W\d_]+)(?:,?\s?(?:and\s)?\d[\d.]*\s?([^\W\d_]+))?')
_ANOTHER = re.compile(r'[^\d]{0,20}?(?:\bor\b|或)[^\d]{0,20}\d', re.IGNORECASE)
_LIST = re.compile(
  r'\s?(?:(?:and\b|和)\s?[-$\\]{0,3}\d'  # 48 and 384
  r'|[,;，、]\s?[-$\\]{0,3}\d[\d./]*+(?!\s[^\W\d_]{2}))',  # 48, 384; but not 18, 3 more than before
  re.IGNORECASE,
)


def whole(text: str, number: re.Match) -> str:
  """The number as written, or the expression that it belongs to."""
  before = text[max(0, number.start() - _NEAR) : number.start()]
  after = text[number.end() : number.end() + _NEAR]
  line = before.rpartition('\n')[2]
  if not _BEFORE.search(line) and not _AFTER.match(after) and not _in_two_units(line, after):
    return values.as_written(number)
  head = re.search(r"[^\s$]*(?:\s?[-+*/^]\s?|\b(?:not|isn't|不是|不等于)\s?)?$", line).group()
  tail = re.match(r'(?:\s?[-+*/^]\s?)?[^\s$]*', after).group()
  expression = f'{head}{number.group()}{tail}'.strip()
  return expression if values.value(expression) is None else f'... {expression} ...'


def _in_two_units(before: str, after: str) -> bool:
  """Whether the number is a part of `3 hours and 20 minutes`, or of 5 dollars 20 cents."""
  front = _UNIT_IN_FRONT.search(before)
  behind = _UNIT_BEHIND.match(after)
  if not behind:
    return False
  pairs = [(behind[1], behind[2])] + ([(front[1], behind[1])] if front else [])
  for first, second in pairs:
    large, small = units.unit_of(first), units.unit_of(second or '')
    if large and small and large.dimension == small.dimension and large.factor > small.factor:
      return True
  return False


def one(text: str, numbers: list[re.Match]) -> str:
  """The first number; where the text goes on as a list of numbers, the text."""
  first = numbers[0]
  after = text[first.end() : first.end() + 2 * _NEAR]
  if _ANOTHER.match(after) or _LIST.match(after):
    return text.strip()
  return whole(text, first)
