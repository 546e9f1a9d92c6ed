"""Worked solutions of all groups: literal rows, and every line of thousands of problems against exact arithmetic."""

import random
import re
from fractions import Fraction

import mpmath
import pytest

from mathqwen.data import arithmetic, columns
from mathqwen.data.expressions import evaluate
from mathqwen.data.worked import worked
from mathqwen.grading.grade import grade

# Groups whose last digits may differ from the label, because they round on the way, and by how much
ROUNDED = {'e_pi': Fraction(1, 10**4), 'log': Fraction(4, 10**4), 'pow_decimal': Fraction(1, 10**4)}
NAMES = {name: getattr(mpmath, name) for name in ('sin', 'cos', 'tan', 'pi', 'e', 'mpf')}
NAMES |= {'ln': mpmath.log, 'lb': lambda x: mpmath.log(x, 2), 'lg': mpmath.log10}
mpmath.mp.dps = 40


@pytest.mark.parametrize(
  ('query', 'lines'),
  [
    ('4+6=', ['4+6=10', '10']),
    ('47+59=', ['7+9=16', '4+5+1=10', '106']),
    ('55+7=', ['5+7=12', '5+0+1=06', '62']),
    ('72-38=', ['12-8=4', '07-3-1=3', '34']),
    ('100-1=', ['10-1=9', '10-0-1=9', '01-0-1=0', '99']),
    ('23-58=', ['-(58-23)', '08-3=5', '05-2-0=3', '-35']),
    ('-5+9=', ['9-5', '09-5=4', '4']),
    ('-5-(-9)=', ['9-5', '09-5=4', '4']),
    ('8+(-8)=', ['8-8', '08-8=0', '0']),
    ('-6-5=', ['-(6+5)', '6+5=11', '-11']),
    ('-4+(-1)=', ['-(4+1)', '4+1=05', '-5']),
    ('0-0=', ['0+0', '0+0=00', '0']),
    ('7×8=', ['7*8=56', '56']),
    ('8*57=', ['7*8=56', '5*8+5=45', '456']),
    ('47*86=', ['7*6=42', '4*6+4=28', '7*8+8=64', '4*8+2+6=40', '4042']),
    # 16 = 0*83 + 16; 160 = 1*83 + 77; 770 = 9*83 + 23; 230 = 2*83 + 64; 640 = 7*83 + 59, more than half of 83
    (
      '16÷83=',
      ['3*0+6=06', '8*0+0+1=01', '3*1+7=10', '8*1+1+7=16', '3*9+3=30', '8*9+3+2=77', '3*2+4=10', '8*2+1+6=23',
       '3*7+9=30', '8*7+3+5=64', '59+59=118', '0.1928'],
    ),
    ('7**3=', ['7*7=49', '9*7=63', '4*7+6=34', '343']),
    ('0.7*0.09=', ['7*9=63', '0.0630']),
    (
      '3.9-(-0.0021)=',
      ['03.9000+00.0021', '0+1=01', '0+2+0=02', '0+0+0=00', '9+0+0=09', '3+0+0=03', '0+0+0=00', '3.9021'],
    ),
    ('sin(-4.83π)=', ['-sin(4.83π)', '-sin(0.83π)', 'sin(0.83π)≈0.5090', '-0.5090']),
    ('cos(-225°)=', ['cos(225°)', '-cos(45°)', 'cos(45°)≈0.7071', '-0.7071']),
    ('tan(3.0π)=', ['tan(0.0π)', 'tan(0.0π)≈0.0000', '0.0000']),
    ('7/π=', ['1/π≈0.31831', '7*0.31831', '1*7=07', '3*7+0=21', '8*7+2=58', '1*7+5=12', '3*7+1=22', '2.2282']),
    ('log 10(63)=', ['log 10(63)≈1.7993', '1.7993']),
    (
      'ln(725)=',
      ['ln(720)≈6.57925', 'ln(730)≈6.59304', '6.59304-6.57925=0.01379', '0.01379*0.5≈0.00690',
       '6.57925+0.00690=6.58615', '6.5862'],
    ),
    ('( 8 - 90) / 95=',
     ['8-90=-(90-8)', '10-8=2', '09-0-1=8', '-82/95', '5*0+2=02', '9*0+0+8=08', '5*8+0=40', '9*8+4+6=82',
      '5*6+0=30', '9*6+3+3=60', '5*3+5=20', '9*3+2+1=30', '5*1+5=10', '9*1+1+5=15', '55+55=110', '-0.8632']),
    (' 1 / 3 + 2 * 4=',
     ['2*4=08', '(1/3)+8', '8*3=24', '(1/3)+8=(1+24)/3', '1+4=05', '0+2+0=02', '25/3',
      '3*8+1=25', '0*8+2+0=02', '3*3+1=10', '0*3+1+0=01', '3*3+1=10', '0*3+1+0=01', '3*3+1=10', '0*3+1+0=01',
      '3*3+1=10', '0*3+1+0=01', '1+1=2', '8.3333']),
  ],
)  # fmt: skip
def test_literal_rows(query, lines):
  assert worked(query).split('\n') == lines


@pytest.mark.parametrize(
  'query', ['1+2', '(1+2', '1/0=', '3 / ( 2 - 2)=', 'ln(0)=', 'sin(x)=', '1.23456+2.0=', '-2.0^1.5=', 'a+b=', '+=']
)
def test_other_queries_have_no_worked_solution(query):
  assert worked(query) is None


def value(text):
  """The value by mpmath, with 40 digits; the text is our own."""
  text = text.rstrip('=').strip().replace('^', '**').replace('log 2(', 'lb(').replace('log 10(', 'lg(')
  text = re.sub(r'\d+(\.\d+)?', lambda number: f'mpf("{number[0]}")', text)
  text = text.replace(')π', ')*pi').replace('π', 'pi').replace('°', '*pi/180')
  return eval(text, {'__builtins__': {}}, NAMES)


def check_line(line, query, exact):
  """Whether a line is true: an equation, a stated rounding, or the query in another form."""
  if '≈' in line:
    left, right = line.split('≈')
    unit = Fraction(1, 10 ** len(right.partition('.')[2]))
    try:
      return abs(evaluate(left) - Fraction(right)) <= unit / 2
    except ValueError:
      return abs(value(left) - mpmath.mpf(right)) <= float(unit) / 2 * (1 + 1e-12)
  if '=' in line:
    left, right = line.split('=')
    return evaluate(left) == evaluate(right)
  try:
    return evaluate(line) == evaluate(query) if exact else abs(float(evaluate(line)) - value(query)) < 2e-4
  except ValueError:
    return abs(value(line) - value(query)) < 1e-30


@pytest.mark.parametrize('group', arithmetic.GROUPS)
def test_every_line_is_true_and_the_last_is_the_answer(group):
  rng = random.Random(0)
  for _ in range(1000):
    row = arithmetic.problem(group, rng)
    query = row['query']
    *lines, answer = worked(query).split('\n')
    assert lines or ' / 1=' in query
    assert re.fullmatch(r'-?\d+' if re.fullmatch(r'-?\d+', row['response']) else r'-?\d+\.\d{4}', answer)
    if group in ROUNDED:
      assert abs(Fraction(answer) - Fraction(row['response'])) <= ROUNDED[group], (query, answer)
    else:
      assert answer == row['response'], query
    assert grade('\n'.join([*lines, answer]), row['response'], 'math401').correct
    roundings = False
    for line in lines:
      roundings |= '≈' in line
      assert check_line(line, query, not roundings), (query, line)


def test_columns_write_the_digits_of_the_result():
  rng = random.Random(1)
  for _ in range(1000):
    first, second = rng.randrange(10 ** rng.randint(1, 6)), rng.randrange(1, 10 ** rng.randint(1, 6))
    unit = lambda line: line[-1]
    total = [line.split('=')[1] for line in columns.add(first, second)]
    assert int(total[-1] + ''.join(digits[-1] for digits in reversed(total[:-1]))) == first + second
    top, bottom = max(first, second), min(first, second)
    assert int(''.join(map(unit, reversed(columns.subtract(top, bottom))))) == top - bottom
    lines = columns.multiply(first, second)
    width = max(len(str(first)), len(str(second)))
    rows = [lines[at : at + width] for at in range(0, len(lines), width)]
    tail = ''.join(unit(row[0]) for row in reversed(rows[:-1]))
    head = rows[-1][-1].split('=')[1] + ''.join(map(unit, reversed(rows[-1][:-1])))
    assert int(head + tail) == first * second
    lines, quotient = columns.divide(first, second, 4)
    assert Fraction(quotient) == Fraction(first * 10**4 // second, 10**4)
