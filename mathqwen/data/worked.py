"""Arithmetic worked out step by step, in the 16 groups of Math401: each line is true, and the last is the answer.

  47+59=   7+9=16         23-58=   -(58-23)       0.5-3.9=   -(03.9000-00.5000)      7*0.09=   7*9=63
           4+5+1=10                08-3=5                    00-0=0 ...              0.6300
           106                     05-2-0=3                  -3.4000
                                   -35

A line without '=' is another way to write the query. Whole numbers are worked out by `columns`, digit by digit.
"""

import dataclasses
import re
from fractions import Fraction

from mathqwen.data import columns, known_values
from mathqwen.data.expressions import canonical, rounded

_INTEGER_PAIR = re.compile(r'(-?\d+)([-+*/^])(?:(\d+)|\((-?\d+)\))')
_DECIMAL_PAIR = re.compile(r'(-?\d+\.\d+)([-+*])(?:(\d+\.\d+)|\((-?\d+\.\d+)\))')
_BRACKETS = re.compile(r'[-+*/()\d ]+=')
_MAX_DIGITS = 40  # of a whole number that is worked out


def worked(query: str) -> str | None:
  """The solution of an expression that ends in '=', line by line; the last line is the answer as Math401 writes it.

  Where it rounds on the way, the last line may differ from the exact answer by 0.0004 at most, which Math401 accepts.

  None: for a query of another kind.
  """
  for solve in (
    _integers,
    _decimals,
    known_values.trigonometry,
    known_values.e_and_pi,
    known_values.logarithm,
    known_values.decimal_power,
    _brackets,
  ):
    lines = solve(query)
    if lines is not None:
      return '\n'.join(lines)
  return None


# --- two numbers ---


def _integers(query: str) -> list[str] | None:
  if not query.endswith('=') or query != query.strip() or ' ' in query:
    return None  # Math401 writes spaces where brackets may be, and answers with decimals there
  match = _INTEGER_PAIR.fullmatch(canonical(query))
  if match is None or len(query) > _MAX_DIGITS:
    return None
  left = int(match[1])
  right = int(match[3] or match[4])
  if match[2] in '+-':
    lines = _sum(left, right if match[2] == '+' else -right, query)
    return [*lines, str(left + right if match[2] == '+' else left - right)]
  if left < 0 or right < 0:
    return None
  if match[2] == '*':
    return [*columns.multiply(left, right), str(left * right)]
  if match[2] == '/':
    return _quotient(left, right) if right else None
  return _integer_power(left, right)


def _sum(left: int, right: int, query: str = '') -> list[str]:
  """The columns of left+right, after a line with what is worked out in place of the query, if that is another sum."""
  first, second, operator, sign = columns.without_signs(left, right)
  reduced = f'{first}{operator}{second}'
  work = columns.add if operator == '+' else columns.subtract
  lines = work(int(first), int(second))
  written = f'-({reduced})' if sign else reduced
  return lines if f'{written}=' == query else [written, *lines]


def _integer_power(base: int, exponent: int) -> list[str] | None:
  if exponent < 1 or base**exponent >= 10**_MAX_DIGITS:
    return None
  power = base
  lines = []
  for _ in range(exponent - 1):
    lines += [f'{power}*{base}={power * base}'] if len(str(power)) == 1 else columns.multiply(power, base)
    power *= base
  return [*lines, str(power)]


def _quotient(dividend: int, divisor: int, sign: str = '') -> list[str]:
  """dividend / divisor, both whole: long division, and the answer with four decimals."""
  lines, _ = columns.divide(dividend, divisor, 4)
  answer = rounded(Fraction(dividend, divisor), 4)
  return [*lines, sign + answer if Fraction(answer) else answer]


def _decimals(query: str) -> list[str] | None:
  match = _DECIMAL_PAIR.fullmatch(canonical(query)) if query.endswith('=') else None
  if match is None:
    return None
  left = Fraction(match[1])
  right = Fraction(match[3] or match[4])
  if match[2] != '*':
    return columns.decimal_sum(left, right if match[2] == '+' else -right)
  if left < 0 or right < 0:
    return None
  factors = [_without_point(number) for number in (match[1], match[3])]
  return [*columns.multiply(*factors), rounded(left * right, 4)]


def _without_point(number: str) -> int:
  """The significant digits: 7 of '7.0', '0.7' and '0.07'."""
  return int(number.replace('.', '').rstrip('0') or 0)


# --- brackets ---


@dataclasses.dataclass(frozen=True)
class _Ratio:
  """A whole number, or a quotient of two that is not worked out yet and not reduced. bottom > 0."""

  top: int
  bottom: int = 1

  def __str__(self) -> str:
    return str(self.top) if self.bottom == 1 else f'{self.top}/{self.bottom}'


def _brackets(query: str) -> list[str] | None:
  """Brackets first, then * and /, from left to right; quotients stay fractions, as 41/153, until the end.

  Each operation is worked out in columns, and the expression that is left is written below.
  """
  if not _BRACKETS.fullmatch(query) or len(query) > 2 * _MAX_DIGITS:
    return None
  tokens: list[_Ratio | str] = []
  for text in re.findall(r'\d+|[-+*/()]', query):
    tokens.append(_Ratio(int(text)) if text.isdigit() else text)

  if len(tokens) < 3:
    return None

  lines = []
  while len(tokens) > 1:
    at = _next_operation(tokens)
    if at is None or any(isinstance(tokens[near], str) for near in (at - 1, at + 1)):
      return None
    left, operator, right = tokens[at - 1 : at + 2]
    if operator == '/' and not right.top:
      return None
    steps, result = _operation(left, operator, right)
    tokens[at - 1 : at + 2] = [result]
    _drop_brackets(tokens)
    lines += steps
    if steps and (len(tokens) > 1 or result.bottom > 1):
      lines.append(_text(tokens))
  value = tokens[0]
  if value.bottom > 1:
    return [*lines, *_quotient(abs(value.top), value.bottom, '-' if value.top < 0 else '')]
  return [*lines, rounded(value.top, 4)]


def _next_operation(tokens: list[_Ratio | str]) -> int | None:
  """Where the operator of the next operation stands. None: nowhere between two other tokens."""
  end = tokens.index(')') if ')' in tokens else len(tokens)
  start = max((at for at in range(end) if tokens[at] == '('), default=-1)
  for operators in (('*', '/'), ('+', '-')):
    for at in range(start + 2, end - 1):
      if tokens[at] in operators:
        return at
  return None


def _drop_brackets(tokens: list[_Ratio | str]) -> None:
  """Takes the brackets off single numbers."""
  for at in range(len(tokens) - 3, -1, -1):
    if tokens[at] == '(' and tokens[at + 2] == ')':
      tokens[at : at + 3] = [tokens[at + 1]]


def _text(tokens: list[_Ratio | str]) -> str:
  """The expression, with brackets around negative numbers and fractions where they are needed."""
  parts = []
  for at, token in enumerate(tokens):
    needed = isinstance(token, _Ratio) and (token.bottom > 1 or token.top < 0)
    follows = at > 0 and tokens[at - 1] != '('
    parts.append(f'({token})' if needed and (follows or token.bottom > 1) and len(tokens) > 1 else str(token))
  return ''.join(parts)


def _operation(left: _Ratio, operator: str, right: _Ratio) -> tuple[list[str], _Ratio]:
  """(lines, left operator right)."""
  lines: list[str] = []

  def product(a: int, b: int, worked_out: bool = True) -> int:
    if worked_out:
      lines.extend(columns.multiply(abs(a), abs(b)))
    return a * b

  if operator == '/':
    flip = -1 if right.top < 0 else 1
    right = _Ratio(flip * right.bottom, abs(right.top))
  if operator in '*/':
    top = product(left.top, right.top, operator == '*' or right.top != 1)
    return lines, _Ratio(top, product(left.bottom, right.bottom, left.bottom != 1 != right.bottom))

  # a/b + c/d is (ad + cb) / bd
  bottom = product(left.bottom, right.bottom, left.bottom != 1 != right.bottom)
  first = product(left.top, right.bottom, right.bottom != 1)
  second = product(right.top, left.bottom, left.bottom != 1)
  signed = second if operator == '+' else -second
  if bottom > 1:
    written = [f'({number})' if number.bottom > 1 or number.top < 0 else str(number) for number in (left, right)]
    lines.append(f'{written[0]}{operator}{written[1]}=({first}{operator}{_bracketed(second)})/{bottom}')
  steps = _sum(first, signed)
  if steps and '=' not in steps[0]:  # it is written in another way
    steps[0] = f'{first}{operator}{_bracketed(second)}={steps[0]}'
    if steps[0].partition('=')[0] == steps[0].partition('=')[2]:
      del steps[0]
  return [*lines, *steps], _Ratio(first + signed, bottom)


def _bracketed(number: int) -> str:
  return f'({number})' if number < 0 else str(number)
