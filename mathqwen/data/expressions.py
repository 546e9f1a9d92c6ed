"""The exact value of arithmetic written as text, without Python's `eval`."""

import re
from fractions import Fraction

# Limits of `evaluate`, which is given text of data files: no deep recursion, no huge numbers.
_MAX_DEPTH = 40
_MAX_EXPONENT = 64


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


class _Parser:
  """Recursive descent, one method for each level of precedence: total > product > signed > power > atom."""

  def __init__(self, expression: str):
    self._expression = expression
    text = canonical(expression).replace('[', '(').replace(']', ')')
    self._tokens = re.findall(r'\d+\.\d+|\d+|\S', text)
    self._tokens.append('')  # the end
    self._at = 0

  def parse(self) -> Fraction:
    """The value of all of it; see `evaluate`."""
    value = self._total(0)
    if self._next:
      raise ValueError(f'{self._next!r} is left over in {self._expression!r}')
    return value

  @property
  def _next(self) -> str:
    return self._tokens[self._at]

  def _take(self) -> str:
    self._at += 1
    return self._tokens[self._at - 1]

  def _total(self, depth: int) -> Fraction:
    value = self._product(depth)
    while self._next in ('+', '-'):
      if self._take() == '+':
        value += self._product(depth)
      else:
        value -= self._product(depth)
    return value

  def _product(self, depth: int) -> Fraction:
    value = self._signed(depth)
    while self._next in ('*', '/'):
      if self._take() == '*':
        value *= self._signed(depth)
      else:
        divisor = self._signed(depth)
        if divisor == 0:
          raise ValueError(f'division by zero in {self._expression!r}')
        value /= divisor
    return value

  def _signed(self, depth: int) -> Fraction:
    if depth > _MAX_DEPTH:
      raise ValueError(f'too deep: {self._expression!r}')
    if self._next == '-':
      self._take()
      return -self._signed(depth + 1)
    return self._power(depth)

  def _power(self, depth: int) -> Fraction:
    base = self._atom(depth)
    while self._next == '%':
      self._take()
      base /= 100
    if self._next != '^':
      return base
    self._take()
    exponent = self._signed(depth + 1)  # right to left: 2^3^2 is 2^(3^2)
    if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT or (base == 0 and exponent < 0):
      raise ValueError(f'power out of range in {self._expression!r}')
    return base ** int(exponent)

  def _atom(self, depth: int) -> Fraction:
    token = self._take()
    if token == '(':
      value = self._total(depth + 1)
      if self._take() != ')':
        raise ValueError(f'unbalanced brackets in {self._expression!r}')
      return value
    if not re.fullmatch(r'[0-9]+(\.[0-9]+)?', token):
      raise ValueError(f'{token!r} in {self._expression!r} is not a number')
    return Fraction(token)
