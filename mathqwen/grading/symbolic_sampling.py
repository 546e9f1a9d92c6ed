"""Whether two expressions are equal, by their values at fixed points. Runs in the worker: SymPy alone is imported.

Two expressions that agree to 40 digits at several points are equal, and ones that differ at a point are different. That
needs no simplification, whose time nobody can foresee. Comparisons are relative, so that 1/2004! is not 1/2006!.
"""

import itertools
import random
import re

import sympy

_DIGITS = 60  # of each value
_SAME = sympy.Float('1e-40')  # relative difference of equal values
_POINTS = 5  # at which both expressions must have a value
_TRIES = 30  # points that are tried
_MAX_SYMBOLS = 12


def equal(gold: sympy.Basic, answer: sympy.Basic, text: str = '') -> bool | None:
  """True or False; None where values decide nothing.

  text: the answer as written: a decimal of six digits or more that is the gold answer rounded equals it.
  """
  if isinstance(gold, sympy.Equality) and isinstance(answer, sympy.Equality):
    return _same_equation(gold, answer)
  if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
    if gold.shape != answer.shape:
      return False
    verdicts = [equal(*pair) for pair in zip(gold, answer, strict=True)]
    return False if False in verdicts else None if None in verdicts else True
  if isinstance(gold, sympy.MatrixBase) != isinstance(answer, sympy.MatrixBase):
    return False
  if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
    return None
  gold, answer = _exact(gold), _exact(answer)
  if gold == answer:
    return True
  if gold.is_Rational and answer.is_Rational:
    return _rounded(gold, answer, text)
  pairs = _values(gold, answer)
  if not pairs:
    return None
  if all(_close(*pair) for pair in pairs):
    return True
  if not gold.free_symbols and not answer.free_symbols:
    return _rounded(*pairs[0], text)
  return False


def _exact(expression: sympy.Expr) -> sympy.Expr:
  """The expression with fractions for its decimals."""
  decimals = expression.atoms(sympy.Float)
  return expression.xreplace({decimal: sympy.Rational(str(decimal)) for decimal in decimals})


def _same_equation(gold: sympy.Equality, answer: sympy.Equality) -> bool | None:
  """Whether each equation is a multiple of the other, without denominators."""
  left, right = (sympy.together(_exact(equation.lhs - equation.rhs)).as_numer_denom()[0] for equation in (gold, answer))
  pairs = _values(left, right)
  ratios = [a / b for a, b in pairs if b]
  if len(ratios) < 2 or not ratios[0]:
    return None
  return all(_close(ratio, ratios[0]) for ratio in ratios)


def _values(gold: sympy.Expr, answer: sympy.Expr) -> list[tuple]:
  """The values of both at the same points; where there are such points, of the real domain of both."""
  symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
  if len(symbols) > _MAX_SYMBOLS:
    return []
  if not symbols:
    pair = _value(gold, {}), _value(answer, {})
    return [] if None in pair else [pair]
  bases = _bases(gold) | _bases(answer)
  real, other = [], []
  for point in itertools.islice(_points(symbols), _TRIES):
    if bases and not all(_is_positive(base, point) for base in bases):
      others = other
    else:
      others = real
    if len(others) < _POINTS:
      pair = _value(gold, point), _value(answer, point)
      if None not in pair:
        others.append(pair)
    if len(real) == _POINTS:
      break
  return real if len(real) > 1 else other


def _points(symbols):
  """Points of both signs and several sizes, the same at each call."""
  generator = random.Random(0)
  for turn in itertools.count():
    size = (1, 3, 10)[turn % 3]
    low = 1 if turn % 4 == 0 else -97 * size  # every fourth: positive alone
    yield {symbol: sympy.Rational(generator.randint(low, 97 * size) or 1, 97) for symbol in symbols}


def _bases(expression: sympy.Expr) -> set:
  """What must not be negative: below roots and in logarithms."""
  powers = {power.base for power in expression.atoms(sympy.Pow) if not power.exp.is_integer}
  found = powers | {log.args[0] for log in expression.atoms(sympy.log)}
  return {base for base in found if base.free_symbols or base.is_negative}


def _is_positive(base: sympy.Expr, point: dict) -> bool:
  value = _value(base, point)
  return value is not None and bool(value.is_real) and value > 0


def _value(expression: sympy.Expr, point: dict) -> sympy.Expr | None:
  """The value to _DIGITS digits, real or complex; None when there is none."""
  try:
    value = expression.evalf(_DIGITS, subs=point, maxn=400)
    parts = [_part(part) for part in value.as_real_imag()]
  except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError, RecursionError):
    return None
  if None in parts:
    return None
  return parts[0] + sympy.I * parts[1] if parts[1] else parts[0]


def _part(value: sympy.Expr) -> sympy.Expr | None:
  """A finite number; 0 for one of which no digit is known."""
  if not value.is_number or not value.is_finite or not (value.is_Float or value.is_Rational):
    return None
  return sympy.Integer(0) if value.is_Float and value._prec < 20 else value


def _close(left: sympy.Expr, right: sympy.Expr) -> bool:
  if left == right:
    return True
  size = max(abs(left), abs(right))
  return bool(abs(left - right).evalf(50) <= _SAME * size)


def _rounded(gold: sympy.Expr, answer: sympy.Expr, text: str) -> bool:
  decimal = re.fullmatch(r'-?(\d*)\.(\d+)', text.strip())
  if not decimal or len((decimal[1] + decimal[2]).lstrip('0')) < 6:
    return False
  return bool(abs(gold - answer) <= sympy.Rational(1, 2 * 10 ** len(decimal[2])))
