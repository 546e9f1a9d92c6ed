"""Sums and differences of whole numbers worked out column by column, the units first, as one does on paper.

  47+59=   7+9=16         23-58=   -(58-23)       -5-(-9)=   9-5
           4+5+1=10                8-3=5                     9-5=4
           106                     5-2=3                     4
                                   -35

A model that must give all digits of a sum at once has to learn every carry by heart; one that writes the columns
learns some two hundred facts and how to line them up.
"""

import re

MAX_PLACES = 4  # the columns of longer numbers would fill a row
_SUM = re.compile(r'(-?\d+)([+-])(?:(\d+)|\((-?\d+)\))=')


def worked(query: str) -> str | None:
  """The solution of 'A+B=' or 'A-B=' in lines, the last of which is the answer; None for longer or other queries."""
  match = _SUM.fullmatch(query)
  if match is None:
    return None
  left, right = int(match[1]), int(match[3] or match[4])
  if max(abs(left), abs(right)) >= 10**MAX_PLACES:
    return None
  taken_away = (match[2] == '-') != (right < 0)
  answer = left - abs(right) if taken_away else left + abs(right)
  operator = '-' if taken_away != (left < 0) else '+'
  first, second = abs(left), abs(right)
  if operator == '-' and first < second:
    first, second = second, first
  reduced = f'-({first}{operator}{second})' if answer < 0 else f'{first}{operator}{second}'
  lines = [] if f'{reduced}=' == query else [reduced]
  return '\n'.join([*lines, *_columns(first, second, operator), str(answer)])


def _columns(first: int, second: int, operator: str) -> list[str]:
  """A line for each decimal place: digit, digit, carry or borrow, result. `first` >= `second` to subtract."""
  places = max(len(str(first)), len(str(second)))
  digits = zip(reversed(f'{first:0{places}}'), reversed(f'{second:0{places}}'), strict=True)
  lines, carry = [], 0
  for top, bottom in ((int(a), int(b)) for a, b in digits):
    if operator == '+':
      result = top + bottom + carry
      lines.append(f'{top}+{bottom}{"+1" if carry else ""}={result}')
      carry = int(result > 9)
    else:
      borrow = int(top - bottom - carry < 0)
      top += 10 * borrow
      lines.append(f'{top}-{bottom}{"-1" if carry else ""}={top - bottom - carry}')
      carry = borrow
  return lines
