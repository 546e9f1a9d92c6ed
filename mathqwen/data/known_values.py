"""Worked solutions of the groups of Math401 whose values are not rational: e and pi, sines, logarithms, real powers.

They reduce to values that one knows by heart, and round where they say so: in '1/π≈0.31831', ≈ means that the right
side is the left one rounded to the digits that it has.
"""

import math
import re
from fractions import Fraction

from mathqwen.data import columns
from mathqwen.data.expressions import rounded


def trigonometry(query: str) -> list[str] | None:
  """sin, cos and tan of a multiple of pi or of degrees: the sign first, then a period less, then a known value.

  sin(-4.83π)= -> '-sin(4.83π)', '-sin(0.83π)', 'sin(0.83π)≈0.5090', '-0.5090'
  """
  match = re.fullmatch(r'(sin|cos|tan)\((-?)(\d+(?:\.\d+)?)(π|pi|°)\)=', query)
  if match is None:
    return None
  name, minus, shown, unit = match.groups()
  angle = Fraction(shown)
  decimals = len(shown.partition('.')[2])
  half_turn = 180 if unit == '°' else 1
  sign = '-' if minus and name != 'cos' else ''
  lines = []
  if minus:
    lines.append(f'{sign}{name}({shown}{unit})')
  half_turns, rest = divmod(angle, half_turn)
  if half_turns:
    if half_turns % 2 and name != 'tan':
      sign = '' if sign else '-'
    shown = rounded(rest, decimals) if decimals else str(rest)
    lines.append(f'{sign}{name}({shown}{unit})')
  value = getattr(math, name)(float(rest / half_turn) * math.pi)
  known = rounded(value, 4)
  lines.append(f'{name}({shown}{unit})≈{known}')
  if Fraction(known) and sign:
    known = known[1:] if known[0] == '-' else f'-{known}'
  return [*lines, known]


_KNOWN = {'e': math.e, 'π': math.pi}


def e_and_pi(query: str) -> list[str] | None:
  """Sums, differences, products and quotients of e, pi and whole numbers.

  7/π= -> '1/π≈0.31831', '7*0.31831' and its columns, '2.2282'
  """
  match = re.fullmatch(r'(e|π|pi|\d+)([-+*/])(e|π|pi|\d+)=', query)
  if match is None:
    return None
  left, operator, right = (part.replace('pi', 'π') for part in match.groups())
  constants = [part for part in (left, right) if part in _KNOWN]
  if not constants or right == '0' and operator == '/':
    return None
  if len(constants) == 2 and operator in '*/':
    values = (_KNOWN[left], _KNOWN[right])
    value = rounded(values[0] * values[1] if operator == '*' else values[0] / values[1], 4)
    return [f'{left}{operator}{right}≈{value}', value]
  if operator in '+-':
    return _sum_with_constant(left, operator, right)
  return _scaled_constant(left, operator, right)


def _sum_with_constant(left: str, operator: str, right: str) -> list[str]:
  lines = []
  numbers = []
  for part in (left, right):
    number = rounded(_KNOWN[part], 4) if part in _KNOWN else part
    if part in _KNOWN and f'{part}≈{number}' not in lines:
      lines.append(f'{part}≈{number}')
    numbers.append(Fraction(number))
  return lines + columns.decimal_sum(numbers[0], numbers[1] if operator == '+' else -numbers[1])


def _scaled_constant(left: str, operator: str, right: str) -> list[str]:
  """A whole number times or by a constant, or a constant by a whole number: five decimals, four at the end."""
  constant = left if left in _KNOWN else right
  number = right if left in _KNOWN else left
  if operator == '/' and left in _KNOWN:
    known = rounded(_KNOWN[constant], 5)
    lines, quotient = columns.divide(int(known.replace('.', '')), int(number), 1)
    value = Fraction(quotient) / 10**5
    return [f'{constant}≈{known}', *lines, rounded(value, 4)]
  if operator == '/':
    known = rounded(1 / _KNOWN[constant], 5)
    first = f'1/{constant}≈{known}'
  else:
    known = rounded(_KNOWN[constant], 5)
    first = f'{constant}≈{known}'
  digits = int(known.replace('.', ''))
  return [
    first,
    f'{number}*{known}',
    *columns.multiply(digits, int(number)),
    rounded(Fraction(digits * int(number), 10**5), 4),
  ]


# --- logarithms ---

_BASES = {'log 2': math.log2, 'log 10': math.log10, 'ln': math.log}


def logarithm(query: str) -> list[str] | None:
  """Logarithms of whole numbers below 1000, between two known values.

  ln(725)= -> 'ln(720)≈6.57925', 'ln(730)≈6.59304', their difference, half of it, and the sum
  """
  match = re.fullmatch(r'(log 2|log 10|ln)\((\d{1,3})\)=', query)
  number = int(match[2]) if match else 0
  if number < 1:
    return None
  name = match[1]
  log = _BASES[name]
  if number < 100:
    value = rounded(log(number), 4)
    return [f'{name}({number})≈{value}', value]

  lines = []
  x = number
  if number < 250:  # between 100 and 110 the curve is too far from a straight line
    x = 4 * number
    lines.append(f'{name}({x})-{name}(4)')
  tens, units = divmod(x, 10)
  below = rounded(log(10 * tens), 5)
  lines.append(f'{name}({10 * tens})≈{below}')
  value = Fraction(below)
  if units:
    above = rounded(log(10 * tens + 10), 5)
    step = Fraction(above) - value
    part = Fraction(rounded(step * units / 10, 5))
    value += part
    lines += [
      f'{name}({10 * tens + 10})≈{above}',
      f'{above}-{below}={rounded(step, 5)}',
      f'{rounded(step, 5)}*0.{units}≈{rounded(part, 5)}',
      f'{below}+{rounded(part, 5)}={rounded(value, 5)}',
    ]
  if x != number:
    less = Fraction(rounded(log(4), 5))
    lines += [f'{name}(4)≈{rounded(less, 5)}', f'{rounded(value, 5)}-{rounded(less, 5)}={rounded(value - less, 5)}']
    value -= less
  return [*lines, rounded(value, 4)]


# --- powers of real numbers: b^x = e^(x ln b) ---

_DIGITS = 10  # decimals that are carried along; the power may have five digits before its point


def decimal_power(query: str) -> list[str] | None:
  """A positive decimal to a decimal power, by logarithms: ln b from known ones and a series, and back the same way."""
  match = re.fullmatch(r'(\d+\.\d+)(?:\^|\*\*)(\d+(?:\.\d+)?)=', query)
  if match is None or not Fraction(match[1]):
    return None
  shown, exponent = match.groups()
  lines: list[str] = []
  log = _log_lines(Fraction(shown), shown, lines)
  product = Fraction(rounded(log * Fraction(exponent), _DIGITS))
  if abs(product) > 20:
    return None
  lines.append(f'{exponent}*{_signed(rounded(log, _DIGITS))}≈{rounded(product, _DIGITS)}')
  power = _exp_lines(product, lines)
  return [*lines, rounded(power, 4)]


def _signed(number: str) -> str:
  return f'({number})' if number.startswith('-') else number


def _log_lines(number: Fraction, shown: str, lines: list[str]) -> Fraction:
  """ln of `number`: it is divided by a digit, then by 1.d, then by 1.0d, and the rest is near 1."""
  terms = []
  rest = number
  for scale in (1, 10, 100, 1000):
    factor = Fraction(math.floor(rest * scale), scale)
    if factor < Fraction(1, 2) or factor == 1:
      continue
    factor_shown = str(factor.numerator) if scale == 1 else rounded(factor, int(math.log10(scale)))
    known = rounded(math.log(factor), _DIGITS)
    divided = rounded(rest / factor, _DIGITS)
    lines += [f'{shown}/{factor_shown}≈{divided}', f'ln({factor_shown})≈{known}']
    terms.append(Fraction(known))
    rest = Fraction(divided)
    shown = divided
  if rest != 1:
    x = rest - 1
    series = Fraction(rounded(x - x * x / 2 + x**3 / 3, _DIGITS))
    small = _signed(rounded(x, _DIGITS))
    lines.append(f'{small}-{small}^2/2+{small}^3/3≈{rounded(series, _DIGITS)}')
    terms.append(series)
  total = sum(terms, Fraction(0))
  if len(terms) > 1:
    added = '+'.join(_signed(rounded(term, _DIGITS)) for term in terms)
    lines.append(f'{added}={rounded(total, _DIGITS)}')
  return total


def _exp_lines(power: Fraction, lines: list[str]) -> Fraction:
  """e to the `power`: known for its whole part, its tenths and its hundredths; for the rest there is a series."""
  whole = math.floor(power)
  rest = power - whole
  tenths = Fraction(math.floor(rest * 10), 10)
  hundredths = Fraction(math.floor((rest - tenths) * 100), 100)
  small = rest - tenths - hundredths
  parts = [(Fraction(whole), str(whole)), (tenths, rounded(tenths, 1)), (hundredths, rounded(hundredths, 2))]
  factors = []
  for part, shown in parts:
    if part:
      known = rounded(math.exp(part), _DIGITS)
      lines.append(f'e^{_signed(shown)}≈{known}')
      factors.append(Fraction(known))
  if small:
    series = Fraction(rounded(1 + small + small**2 / 2 + small**3 / 6, _DIGITS))
    shown = rounded(small, _DIGITS)
    lines.append(f'1+{shown}+{shown}^2/2+{shown}^3/6≈{rounded(series, _DIGITS)}')
    factors.append(series)
  result = Fraction(1)
  for factor in factors:
    product = Fraction(rounded(result * factor, _DIGITS))
    if result != 1:
      lines.append(f'{rounded(result, _DIGITS)}*{rounded(factor, _DIGITS)}≈{rounded(product, _DIGITS)}')
    result = product
  return result
