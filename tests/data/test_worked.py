"""Worked sums and differences, against literal rows and Python's own integers."""

import random
import re

import pytest

from mathqwen.data.worked import worked


@pytest.mark.parametrize(
  ('query', 'lines'),
  [
    ('4+6=', ['4+6=10', '10']),
    ('47+59=', ['7+9=16', '4+5+1=10', '106']),
    ('55+7=', ['5+7=12', '5+0+1=6', '62']),
    ('72-38=', ['12-8=4', '7-3-1=3', '34']),
    ('100-1=', ['10-1=9', '10-0-1=9', '1-0-1=0', '99']),
    ('23-58=', ['-(58-23)', '8-3=5', '5-2=3', '-35']),
    ('-5+9=', ['9-5', '9-5=4', '4']),
    ('-5-(-9)=', ['9-5', '9-5=4', '4']),
    ('8+(-8)=', ['8-8', '8-8=0', '0']),
    ('-6-5=', ['-(6+5)', '6+5=11', '-11']),
    ('-4+(-1)=', ['-(4+1)', '4+1=5', '-5']),
    ('0-0=', ['0-0=0', '0']),
  ],
)
def test_literal_rows(query, lines):
  assert worked(query).split('\n') == lines


@pytest.mark.parametrize(
  'query', ['7*8=', '1.5+2=', '3/4=', '(1+2)-3=', '1+2', 'e+1=', '45 + 34=', '1+2+3=', '10000+1=', '5-(-10000)=']
)
def test_other_queries_have_no_worked_solution(query):
  assert worked(query) is None


def test_every_line_holds_and_the_last_is_the_answer():
  rng = random.Random(0)
  for _ in range(3000):
    size = 10 ** rng.randint(1, 4)
    left, right, operator = rng.randrange(-size, size), rng.randrange(-size, size), rng.choice('+-')
    shown = f'({right})' if right < 0 else right
    *columns, answer = worked(f'{left}{operator}{shown}=').split('\n')
    assert int(answer) == (left + right if operator == '+' else left - right)
    written = ''
    for line in columns:
      if '=' not in line:
        continue  # the sum that is worked out instead
      terms, result = line.split('=')
      first, *rest = (int(n) for n in re.findall(r'\d+', terms))
      assert int(result) == (first + sum(rest) if '+' in terms else first - sum(rest)) >= 0
      written = str(int(result) % 10) + written
    carry = str(int(columns[-1].split('=')[1]) // 10).strip('0') if '=' in columns[-1] else ''
    assert int(carry + written) == abs(int(answer))
