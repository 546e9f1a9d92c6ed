"""Whole numbers added, subtracted, multiplied and divided digit by digit, the units first, as one does on paper.

  47+59    7+9=16         47*86    7*6=42          16/83    3*0+6=06       16 = 0*83 + 16
           4+5+1=10                4*6+4=28                 8*0+0+1=01
           = 106                   7*8+8=64                 3*1+7=10       160 = 1*83 + 77
                                   4*8+2+6=40               8*1+1+7=16
                                   = 4042                   ...

A model that must write all digits at once has to learn every carry by heart. One that writes the columns needs only
some hundred facts and where the digits stand. For the latter, lines of one kind have one length: results of
sums and products have two digits, and so have the numbers that a difference takes from.

The functions return the lines, each of them a true equation. All but the last two take numbers without sign.
"""

from fractions import Fraction

from mathqwen.data.expressions import rounded


def _digits(number: int, places: int = 1) -> list[int]:
  """The digits, units first, with zeros up to `places` of them: 42, 3 -> [2, 4, 0]."""
  return [int(digit) for digit in reversed(str(number).zfill(places))]


def add(first: int, second: int, places: int = 1) -> list[str]:
  """A line for each decimal place, `places` of them at least: '7+9=16', '4+5+1=10'. The last is the carry."""
  places = max(places, len(str(first)), len(str(second)))
  lines = []
  carry = ''
  for top, bottom in zip(_digits(first, places), _digits(second, places), strict=True):
    result = top + bottom + int(carry or 0)
    lines.append(f'{top}+{bottom}{carry}={result:02d}')
    carry = f'+{result // 10}'
  return lines


def subtract(first: int, second: int, places: int = 1) -> list[str]:
  """A line for each decimal place, `places` of them at least: 72-38 -> '12-8=4', '07-3-1=3'. first >= second."""
  places = max(places, len(str(first)))
  lines = []
  borrowed = ''
  for top, bottom in zip(_digits(first, places), _digits(second, places), strict=True):
    result = top - bottom + int(borrowed or 0)
    borrow = 1 if result < 0 else 0
    lines.append(f'{borrow}{top}-{bottom}{borrowed}={result + 10 * borrow}')
    borrowed = f'-{borrow}'
  return lines


def multiply(first: int, second: int) -> list[str]:
  """A line for each digit of one and each of the other, which adds what is already in that place, and the carry.

  47*86 -> '7*6=42', '4*6+4=28' and then, with the 28 that are in the tens, '7*8+8=64', '4*8+2+6=40'.
  """
  if len(str(first)) < len(str(second)):
    first, second = second, first
  lines = []
  total = [0] * len(str(first))  # the digits from the place of this row on, units first
  for row, factor in enumerate(_digits(second)):
    carry = 0
    for column, digit in enumerate(_digits(first)):
      # Two digits at most: 9*9+9+9 is 99.
      result = digit * factor + total[column] + carry
      terms = f'+{total[column]}' if row else ''
      terms += f'+{carry}' if column else ''
      lines.append(f'{digit}*{factor}{terms}={result:02d}')
      total[column] = result % 10
      carry = result // 10
    total = [*total[1:], carry]
  return lines


def divide(dividend: int, divisor: int, decimals: int) -> tuple[list[str], str]:
  """(lines, quotient with so many decimals, cut off): long division, each step of it checked from the units on.

  With 77 left over of 16/83, the next step divides 770: 9 times 83 and 23 left over. Its lines are '3*9+3=30' (the
  units), '8*9+3+2=77' (the tens, with the carry).
  """
  factors = _digits(divisor, 2)
  shown = str(dividend).zfill(2)
  start = len(shown) - 1  # these digits are too few to be divided, or not to be divided yet
  while start and int(shown[:start]) >= divisor:
    start -= 1
  left = int(shown[:start] or 0)
  lines = []
  quotient = ''
  for digit in shown[start:] + '0' * decimals:
    left = 10 * left + int(digit)
    times, left = divmod(left, divisor)
    quotient += str(times)
    carry = ''
    for factor, rest in zip(factors, _digits(left, len(factors)), strict=True):
      result = factor * times + rest + int(carry or 0)
      lines.append(f'{factor}*{times}{carry}+{rest}={result:02d}')
      carry = f'+{result // 10}'
  lines.append(f'{left}+{left}={2 * left}')  # above the divisor, the last digit is rounded up
  whole = quotient[: len(quotient) - decimals]
  return lines, f'{int(whole)}.{quotient[len(whole) :]}' if decimals else str(int(whole))


# --- numbers with signs ---


def without_signs(left, right) -> tuple:
  """(first, second, '+' or '-', sign): left+right as a sum or difference of two numbers without sign, first >= second
  in a difference, and '-' when the result is negative."""
  total = left + right
  operator = '+' if (left < 0) == (right < 0) or not left or not right else '-'
  first, second = abs(left), abs(right)
  if operator == '-' and first < second:
    first, second = second, first
  return first, second, operator, '-' if total < 0 else ''


def decimal_sum(left: Fraction, right: Fraction) -> list[str] | None:
  """left+right by columns of numbers with four decimals and two digits before the point; None when they have more."""
  first, second, operator, sign = without_signs(left, right)
  units = [first * 10000, second * 10000]
  if max(units) >= 10**6 or any(unit.denominator != 1 for unit in units):
    return None
  shown = operator.join(f'{int(unit) // 10000:02d}.{int(unit) % 10000:04d}' for unit in units)
  work = add if operator == '+' else subtract
  return [
    f'-({shown})' if sign else shown,
    *work(int(units[0]), int(units[1]), places=6),
    rounded(left + right, 4),
  ]
