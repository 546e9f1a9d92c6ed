"""Calculations in solutions: marked ones, and plain ones where they can be read with certainty."""

import gzip
import json
import re

import pytest

from mathqwen.augment import equations


def plain(text):
  return [(equation.text, equation.holds) for equation in equations.read(text)]


@pytest.mark.parametrize(
  'text, expected',
  [
    ('48/2 = <<48/2=24>>24 clips', [('48/2=24', True)]),
    ('<<48/2=25>>25', [('48/2=25', False)]),
    ('<<10/3=3.333>>3.333', [('10/3=3.333', True)]),  # within a thousandth
    ('<<10/3=3.33>>3.33', [('10/3=3.33', False)]),
    ('<<1+1=2=3>>', [('1+1=2=3', False)]),
    ('<<$1,000 * .5 = 500>> <<20%*50=10>>', [('1000*0.5=500', True), ('20%*50=10', True)]),
    ('<<+5+6=11>> <<560//10=56>>', [('5+6=11', True), ('560/10=56', True)]),
    ('<<x=5>> <<5>> <<import os=1>>', [('x=5', False), ('5', False), ('importos=1', False)]),
    ('<<1/0=1>>', [('1/0=1', False)]),
    ('<<3*4=12>>12, then 12+1 = 14', [('3*4=12', True), ('12+1=14', False)]),  # a plain one contradicts itself
  ],
)
def test_marked_calculations(text, expected):
  assert plain(text) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    ('She has 5 + 3 = 8 apples.', [('5+3=8', True)]),
    ('She has 5 + 3 = 9 apples.', [('5+3=9', False)]),
    ('First 5+3 = 8, then 8*2 = 16. So (16-4) = 12.', [('5+3=8', True), ('8*2=16', True), ('(16-4)=12', True)]),
    ('5 + 3 * 2 = 5 + 6 = 12', [('5+3*2=5+6', True), ('5+6=12', False)]),
    ('It costs $1,000 x .5 = $500.', [('1000*0.5=500', True)]),
    ('Total: 2 × 3 ÷ 6 = 1', [('2*3/6=1', True)]),
    ('算式：（３＋４）×２＝１４', [('(3+4)*2=14', True)]),
    (r'so $\frac{3}{4} \cdot 8 = 6$ and \(2^{3} = 8\)', [('((3)/(4))*8=6', True), ('2^(3)=8', True)]),
    ('25/100*100 = 25%', [('25/100*100=25%', True)]),
    ('(she has 5+3 = 8)', [('5+3=8', True)]),
    ('x = 2+3 = 5', [('2+3=5', True)]),
    ('7+9=16\n4+5+1=10', [('7+9=16', True), ('4+5+1=10', True)]),
  ],
)
def test_plain_equations(text, expected):
  assert plain(text) == expected


@pytest.mark.parametrize(
  'text',
  [
    '2x + 3 = 7', 'x + 2 * 3 = 10', '3*2 = 6x', '5 apples * 4 = 20', 'x = 5', '20% of 30 + 20 = 26', '1 1/2 * 4 = 5',
    '8 people x 1 1/2 = 11', 'from 100 - 20% = 80', '25 / 1/3 = 75', '0900-0130 = 0730', '$1 / 2 = 50 cents',
    '13/6 = 2 with a remainder of 1', '17/3 = 5 and 2/3', '$20/$5 = 4 $5 bills', '3 + 4 <= 9', '3 + 4 != 9',
    '2*3 = 6 + x', '5! = 120', '4 students x 2/3 = 40', '2(3+4) = 15', r'3*2 = 6\sqrt{2}',
    'y2 + 3 = 7', 'f(2) + 3 = 7', '3:4 = 6:8', '1/2 + x = 3',
  ],
)  # fmt: skip
def test_what_is_not_certain_is_no_equation(text):
  assert plain(text) == []


@pytest.mark.parametrize(
  'text, expected',
  [
    ('- 5 + 3 = 8', ('5+3=8', True)),
    ('- $20 - $5 = $15', ('20-5=15', True)),
    ('- **5 x 3 = 15**', ('5*3=15', True)),
    (r'  - \(5 \times 3 = 15\)', ('5*3=15', True)),
    ('– 3 × 4 = 12', ('3*4=12', True)),
    ('- 10 - 5 = -15', ('-10-5=-15', True)),  # a minus
    ('-10 + 5 = -5', ('-10+5=-5', True)),
    ('- 5 + 3 = 9', ('5+3=9', False)),
    ('-5 + 3 = 8', ('-5+3=8', False)),
    ('Step 1 - 5 + 3 = 8', ('5+3=8', True)),
    ('**Step 1** - 5 + 3 = 9', ('1-5+3=9', False)),
    ('1 - 20% - 30% = 50%', ('1-20%-30%=50%', True)),
    ('2．20-5=15', ('20-5=15', True)),
    ('３．５＋１＝４．５', ('3.5+1=4.5', True)),
    ('1.5 + 3 = 5.5', ('1.5+3=5.5', False)),
    ('He has 3 - 5 + 2 = 7', ('3-5+2=7', False)),
  ],
)
def test_what_begins_a_line_may_be_no_part_of_the_equation(text, expected):
  assert plain(text) == [expected]


@pytest.mark.parametrize(
  'text, expected',
  [
    ('一共有5×2=11个', [('5*2=11', False)]),  # no blanks between words
    ('共5×2=10个，答案是10', [('5*2=10', True)]),
    ('5×2=10，100-10=90', [('5*2=10', True), ('100-10=90', True)]),
    ('5×2=10，100-10=95', [('5*2=10', True), ('100-10=95', False)]),
    ('5×2=10，100元减10元', [('5*2=10', True)]),
    ('5×2=10，110-10=100，200-100=100', [('5*2=10', True), ('110-10=100', True), ('200-100=100', True)]),
    ('12×5=60,160-60=100', [('12*5=60', True), ('160-60=100', True)]),
    ('3 × 4,000 + 100 = 12,000 + 100 = 12,100', [('3*4000+100=12000+100', True), ('12000+100=12100', True)]),
    ('3 × 4,000 = 12,500', [('3*4000=12500', False)]),
    ('7/2 = 3, so there are 3', [('7/2=3', False)]),
  ],
)
def test_chinese_and_commas(text, expected):
  assert plain(text) == expected


@pytest.mark.parametrize(
  'text',
  [
    '23÷5=4（袋）……3（个）', '7÷2=3……1', '23÷5=4(组)......3(人)', '23÷5=4余3', '23 ÷ 5 = 4 …… 3', '7 / 2 = 3 R 1',
    '- 23÷5=4余3', '7 / 2 = 3, and 1 is left over',
    '22/7 = 3.14...', '50000×2=10万', '5加3×2=11', '20的1/2+3=13', '2小时30+15=45',
  ],
)  # fmt: skip
def test_remainders_and_parts_of_chinese_numbers_are_not_certain(text):
  assert plain(text) == []


@pytest.mark.parametrize(
  'text, expected',
  [
    ('2·3 + 4 = 10', [('2*3+4=10', True)]),
    ('2 ⋅ 3 + 4 = 11', [('2*3+4=11', False)]),
    ('10 + 10 = 4∗5', [('10+10=4*5', True)]),
    ('2 ✕ 3 = 6', [('2*3=6', True)]),
    ('• 5 + 3 = 9', [('5+3=9', False)]),
    (r'\Rightarrow 5 + 3 = 9', [('5+3=9', False)]),
    ('∴ 5 + 3 = 9', [('5+3=9', False)]),
    ('5 + 3 = 9 b) 4 + 2 = 6', [('5+3=9', False)]),
    ('2 • 3 + 4 = 10', []), ('10 + 10 = 4 · 5', []), ('9 + 5 = 2 (mod 12)', []), ('17 mod 5 + 1 = 3', []),
    (r'\log 100 + 1 = 3', []), (r'\log_{2} 8 + 1 = 4', []), ('sin 30 + 1 = 1.5', []), ('∛27 + 1 = 4', []),
    (r'\approx 3 * 4 = 12', [('3*4=12', True)]), ('10 + 5 = 3 x', []),
    ('500000 * 4 = 2 million', []), ('16 + 12 = $29 million', [('16+12=29', False)]),
  ],
)  # fmt: skip
def test_signs_and_words_that_join_numbers(text, expected):
  assert plain(text) == expected


def test_a_long_text_is_read_once():
  text = '1+' * 5_000 + '1 = 3 ' + '(' * 5_000 + '= ' * 5_000
  assert [equation.holds for equation in equations.read(text)] in ([], [False])


def test_the_gold_answers_of_gsm8k():
  """Their marks and their plain equations hold, but for slips of the authors."""
  path = __file__.replace('tests/augment/test_equations.py', 'tests/testdata/data_sets/gsm8k/train.jsonl.gz')
  with gzip.open(path, 'rt') as file:
    rows = [json.loads(line)['answer'] for line in file]
  marked = [equation for row in rows for equation in equations.read(row)]
  without = [equation for row in rows for equation in equations.read(re.sub('<<.*?>>', '', row))]
  assert len(marked) > 2 * len(rows) and sum(not equation.holds for equation in marked) < len(marked) / 100
  assert len(without) > len(marked) / 2 and sum(not equation.holds for equation in without) < len(without) / 100


def test_right_answers_of_a_model():
  """In Markdown and LaTeX. One of them divides the wrong way around: 1 ÷ 50 = 50."""
  path = __file__.replace('tests/augment/test_equations.py', 'tests/testdata/grading/qwen25math_math_half.jsonl.gz')
  with gzip.open(path, 'rt') as file:
    rows = [row for row in map(json.loads, file) if row['correct']]
  read = [equations.read(row['response']) for row in rows]
  wrong = [row['id'] for row, found in zip(rows, read, strict=True) if not all(one.holds for one in found)]
  assert len(rows) == 93 and len(wrong) == 1 and sum(map(len, read)) > 2 * len(rows)
