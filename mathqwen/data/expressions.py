"""The exact value of arithmetic written as text, without Python's `eval`."""

import re
from fractions import Fraction
from typing import NamedTuple

# Limits of `evaluate`, which is given text of data files: no deep recursion, no huge numbers.
_MAX_DEPTH = 40
_MAX_EXPONENT = 64
_MAX_BITS = 2**14  # of a power
_MAX_PLACES = 8  # decimals of a result in `steps`; one with more is written as a fraction


def canonical(query: str) -> str:
  """One spelling for one expression: ' 3 × 4=' and '3*4=' are both '3*4'."""
  text = re.sub(r'\s+', '', query).rstrip('=')
  for other, ours in (('×', '*'), ('÷', '/'), ('**', '^'), ('π', 'pi')):
    text = text.replace(other, ours)
  return text


def evaluate(expression: str) -> Fraction:
  """The exact value of numbers joined by + - * / ^ ( ) [ ] and a postfix %: evaluate('120*80%*15%') == Fraction(72, 5).

  ValueError: when it is not such an expression, divides by zero, is nested too deeply or has too large an exponent.
  """
  return _Parser(expression).parse()


def steps(expression: str) -> tuple[list[str], str]:
  """The operations of an expression, each as an equation, in the order of a hand calculation, and the last result.

  steps('(24+24*150%)/(1-(1/6))') == (['24*150%=36', '24+36=60', '1-(1/6)=5/6', '60/(5/6)=72'], '72')

  A quotient of two whole numbers in brackets of its own is a fraction, and no operation unless it gives a whole number.
  Results are written as whole numbers or decimals, or else, and where a fraction takes part, as fractions.
  ValueError: as `evaluate`.
  """
  parser = _Steps(expression)
  return parser.lines, parser.parse().text


class _Parser:
  """Recursive descent, one method for each level of precedence: total > product > signed > power > atom.

  Its values are Fractions. A subclass has others, with a `_number`, `_percent`, `_negative` and `_apply` for them.
  """

  def __init__(self, expression: str):
    self._expression = expression
    text = canonical(expression).replace('[', '(').replace(']', ')')
    self._tokens = re.findall(r'\d+\.\d+|\d+|\S', text)
    self._tokens.append('')  # the end
    self._at = 0

  def parse(self):
    """The value of all of it; see `evaluate`."""
    value = self._total(0)
    if self._next:
      raise ValueError(f'{self._next!r} is left over in {self._expression!r}')
    return value

  def _number(self, token: str):
    return Fraction(token)

  def _percent(self, value):
    return value / 100

  def _negative(self, value):
    return -value

  def _apply(self, left, operator: str, right):
    """The value of `left operator right`. ValueError: when there is none, or it is too large."""
    if operator == '+':
      return left + right
    if operator == '-':
      return left - right
    if operator == '*':
      return left * right
    if operator == '/':
      if right == 0:
        raise ValueError(f'division by zero in {self._expression!r}')
      return left / right
    bits = max(left.numerator.bit_length(), left.denominator.bit_length())
    too_large = abs(right) > _MAX_EXPONENT or bits * abs(right) > _MAX_BITS
    if right.denominator != 1 or too_large or (left == 0 and right < 0):
      raise ValueError(f'power out of range in {self._expression!r}')
    return left ** int(right)

  @property
  def _next(self) -> str:
    return self._tokens[self._at]

  def _take(self) -> str:
    self._at += 1
    return self._tokens[self._at - 1]

  def _total(self, depth: int):
    value = self._product(depth)
    while self._next in ('+', '-'):
      value = self._apply(value, self._take(), self._product(depth))
    return value

  def _product(self, depth: int):
    value = self._signed(depth)
    while self._next in ('*', '/'):
      value = self._apply(value, self._take(), self._signed(depth))
    return value

  def _signed(self, depth: int):
    if depth > _MAX_DEPTH:
      raise ValueError(f'too deep: {self._expression!r}')
    if self._next == '-':
      self._take()
      return self._negative(self._signed(depth + 1))
    return self._power(depth)

  def _power(self, depth: int):
    base = self._atom(depth)
    while self._next == '%':
      self._take()
      base = self._percent(base)
    if self._next != '^':
      return base
    return self._apply(base, self._take(), self._signed(depth + 1))  # right to left: 2^3^2 is 2^(3^2)

  def _atom(self, depth: int):
    token = self._take()
    if token == '(':
      value = self._total(depth + 1)
      if self._take() != ')':
        raise ValueError(f'unbalanced brackets in {self._expression!r}')
      return value
    if not re.fullmatch(r'[0-9]+(\.[0-9]+)?', token):
      raise ValueError(f'{token!r} in {self._expression!r} is not a number')
    return self._number(token)


class _Shown(NamedTuple):
  """A number and how it is written."""

  value: Fraction
  text: str

  @property
  def is_fraction(self) -> bool:
    return '/' in self.text

  def as_operand(self) -> str:
    """The text, in brackets where it would otherwise mean something else."""
    return f'({self.text})' if self.is_fraction or self.text.startswith('-') else self.text


class _Steps(_Parser):
  """Keeps an equation for each operation."""

  def __init__(self, expression: str):
    super().__init__(expression)
    self.lines: list[str] = []

  def _number(self, token: str) -> _Shown:
    return _Shown(Fraction(token), token)

  def _percent(self, value: _Shown) -> _Shown:
    return _Shown(value.value / 100, f'{value.as_operand()}%')

  def _negative(self, value: _Shown) -> _Shown:
    return _Shown(-value.value, f'-{value.as_operand()}')

  def _apply(self, left: _Shown, operator: str, right: _Shown) -> _Shown:
    result = super()._apply(left.value, operator, right.value)
    is_whole = left.text.isdigit() and right.text.isdigit()
    in_brackets = self._tokens[self._at - 4 : self._at + 1] == ['(', left.text, '/', right.text, ')']
    if operator == '/' and is_whole and in_brackets and result.denominator != 1:
      return _Shown(result, f'{left.text}/{right.text}')
    text = shown(result, as_fraction=left.is_fraction or right.is_fraction)
    operation = f'{left.as_operand()}{operator}{right.as_operand()}'
    if operation != text:  # 13/30 is a result, too
      self.lines.append(f'{operation}={text}')
    return _Shown(result, text)


def shown(value: Fraction, as_fraction: bool = False) -> str:
  """A whole number or a decimal, or a fraction when it is none of these, or has to be one: '36', '2.4', '5/6'."""
  rest = value.denominator
  twos = fives = 0
  while rest % 2 == 0:
    rest //= 2
    twos += 1
  while rest % 5 == 0:
    rest //= 5
    fives += 1
  places = max(twos, fives)
  if value.denominator == 1:
    return str(value.numerator)
  if rest != 1 or places > _MAX_PLACES or as_fraction:
    return f'{value.numerator}/{value.denominator}'
  return rounded(value, places)


def rounded(value: float | Fraction, decimals: int) -> str:
  """`value` with so many decimals, ties to even, never '-0.0': 0.7071."""
  units = round(Fraction(value) * 10**decimals)
  digits = str(abs(units)).zfill(decimals + 1)
  return f'{"-" if units < 0 else ""}{digits[:-decimals]}.{digits[-decimals:]}'
