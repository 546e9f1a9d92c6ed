"""Sums and differences of whole numbers worked out column by column, the units first, as one does on paper.

  47+59=   7+9=16         23-58=   -(58-23)       -5-(-9)=   9-5
           4+5+1=10                8-3=5                     9-5=4
           106                     5-2=3                     4
                                   -35

A model that must write all digits of a sum at once has to learn every carry by heart. One that writes the columns needs
only some two hundred facts, and how to line them up.
"""

import re

MAX_PLACES = 4  # the columns of longer numbers would fill a row
_SUM = re.compile(r'(-?\d+)([+-])(?:(\d+)|\((-?\d+)\))=')


def worked(query: str) -> str | None:
  """The solution of 'A+B=' or 'A-B=', line by line; the last line is the answer.

  None: for any other query, and for numbers of more than MAX_PLACES digits.
  """
  match = _SUM.fullmatch(query)
  if match is None:
    return None
  left = int(match[1])
  right = int(match[3] or match[4])
  if max(abs(left), abs(right)) >= 10**MAX_PLACES:
    return None

  # Reduce it to the sum or difference of two numbers without sign, the larger one first in a difference.
  subtracts = (match[2] == '-') != (right < 0)  # -5-(-9) adds 9
  answer = left - abs(right) if subtracts else left + abs(right)
  operator = '-' if subtracts != (left < 0) else '+'
  first = abs(left)
  second = abs(right)
  if operator == '-' and first < second:
    first, second = second, first
  reduced = f'{first}{operator}{second}'
  if answer < 0:
    reduced = f'-({reduced})'

  lines = _column_lines(first, second, operator)
  if f'{reduced}=' != query:
    lines.insert(0, reduced)
  return '\n'.join([*lines, str(answer)])


def _column_lines(first: int, second: int, operator: str) -> list[str]:
  """A line for each decimal place, the units first. To subtract, `first` must be at least `second`."""
  lines = []
  carry = 0  # carried into this place, or borrowed from it
  for place in range(max(len(str(first)), len(str(second)))):
    top = first // 10**place % 10
    bottom = second // 10**place % 10
    if operator == '+':
      result = top + bottom + carry
      lines.append(f'{top}+{bottom}{"+1" if carry else ""}={result}')
      carry = 1 if result > 9 else 0
    else:
      borrow = 1 if top < bottom + carry else 0
      top += 10 * borrow
      lines.append(f'{top}-{bottom}{"-1" if carry else ""}={top - bottom - carry}')
      carry = borrow
  return lines
