"""Text -> answer string, row by row; and time that grows with the text, not with its square."""

import time
from fractions import Fraction

import pytest

from mathqwen.grading import extract, values
from mathqwen.grading.cleaning import clean, words


@pytest.mark.parametrize(
  'text, last, value',
  [
    ('so 3 + 4 = 7 apples.', '7', 7),
    ('#### -$38,000', '-38,000', -38000),
    ('a loss of $-5.50!', '-5.50', Fraction(-11, 2)),
    ('16-3', '3', 3),  # a minus between numbers is no sign
    ('(a)-3', '3', 3),
    ('x_{2}-3', '3', 3),
    ('结果是-5。', '-5', -5),
    ('x=-.5', '-.5', Fraction(-1, 2)),
    ('14,\\!400', '14,400', 14400),
    ('10{,}000', '10,000', 10000),
    ('in 2012, 1,200 and 1,2345', '2345', 2345),
    ('1,200.', '1,200', 1200),
    ('25%', '25%', Fraction(1, 4)),
    ('12.5\\%', '12.5\\%', Fraction(1, 8)),
    ('答：３．５％．', '3.5%', Fraction(7, 200)),
    ('百分之40', '百分之40', Fraction(2, 5)),
    ('３分之２', '3分之2', Fraction(2, 3)),
    ('3/4 of it', '3/4', Fraction(3, 4)),
    ('-(1/2)', '-(1/2)', Fraction(-1, 2)),
    ('((28)/(3))', '((28)/(3))', Fraction(28, 3)),
    ('5((7)/(10))', '5((7)/(10))', Fraction(57, 10)),
    ('1(5/6)', '1(5/6)', Fraction(11, 6)),
    ('3 1/2 cups', '3 1/2', Fraction(7, 2)),
    ('3 1/2.5', '1/2.5', Fraction(2, 5)),
    ('5又10分之7', '5又10分之7', Fraction(57, 10)),
    ('\\frac{3}{4}', '\\frac{3}{4}', Fraction(3, 4)),
    ('$1\\dfrac12$', '1\\dfrac12', Fraction(3, 2)),
    ('-\\frac{1.5}{2}', '-\\frac{1.5}{2}', Fraction(-3, 4)),
    ('1.9e12', '1.9e12', 1900000000000),
    ('2 \\times 10^{-3}', '2 \\times 10^{-3}', Fraction(1, 500)),
    ('3*10^5', '3*10^5', 300000),
    ('10^12', '10^12', 10**12),
    ('-0.0000', '-0.0000', 0),
    ('1/0', '1/0', None),
    ('7' * 500, '7' * 500, None),
    ('none here', None, None),
    ('', None, None),
  ],
)
def test_last_number_and_its_value(text, last, value):
  assert values.last(words(clean(text))) == last
  assert values.value(last) == value


@pytest.mark.parametrize('text', ['5 apples', 'x', '1 2', '--5', '5-3', '1e9999', '__import__("os")', '9**9'])
def test_what_is_not_one_number_has_no_value(text):
  assert values.value(text) is None


@pytest.mark.parametrize(
  'text, number',
  [
    ('She has 5 left.\n#### 18', '18'),
    ('#### 18 dollars for 3 days', '18'),
    ('#### Step 2\nso we get 7', '7'),  # a Markdown heading is no answer
    ('#### 5\n#### 6\nthe 7 dwarfs', '6'),
    ('#### ((3)/(4))', '((3)/(4))'),
    ('#### **18** of 20', '18'),
    ('The answer is 1, but \\boxed{2}', '2'),
    ('Answer: x = about 7 in 2 days', '7'),  # the first behind the equals sign
    ('Answer: two. Not 7 or 8', '7'),  # the sentence has no number
    ('\\boxed{12 \\text{ of } 13}, for 2 days', '12'),
    ('\\boxed{x = 5}', '5'),
    ('The answer is 5 for the 3 kids.', '5'),
    ('The answer is 3 + 4 = 7 apples of 9', '7'),
    ('The Final Answer is: $20', '20'),
    ('Answer: none of it\n9', '9'),
    ('算式：44*20\n答案：880', '880'),
    ('答：一共有25%。', '25%'),
    ('first 3, then 4', '4'),
    ('nothing', None),
  ],
)
def test_number_given_as_the_answer(text, number):
  assert extract.number(text) == number


@pytest.mark.parametrize(
  'text, content',
  [
    ('\\boxed{\\frac{1}{2}} and \\boxed{ 3 }.', '3'),
    ('\\boxed{\\frac{1}{\\sqrt{2}}}$', '\\frac{1}{\\sqrt{2}}'),
    ('\\boxed 2$', '2'),
    ('is \\boxed 9.', '9'),
    ('\\boxed 2 or \\boxed 3$', '3'),
    ('\\fbox{7}', '7'),
    ('\\boxed{1} then \\boxed{2', '1'),  # the second was cut off
    ('\\boxed{a \\boxed{b} c}', 'b'),
    ('\\boxed{\\left\\{ 1 \\right.}', '\\left\\{ 1 \\right.'),  # an escaped brace opens nothing
    ('\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'),
    ('\\boxed{}', ''),
    ('\\boxed{', None),
    ('} \\boxed{4}', '4'),
    ('box', None),
  ],
)
def test_last_box(text, content):
  assert extract.boxed(text) == content


@pytest.mark.parametrize(
  'text, answer',
  [
    ('Final Answer: The final answer is $x+1$. I hope it is correct.', 'x+1'),
    ('The answer is 3.5.', '3.5'),
    ('The answer is \\(\\frac{1}{2}\\), as wanted. Also 3.', '\\frac{1}{2}'),
    ('the answer is: **12**', '12'),
    ('the answer is 1, but \\boxed{2}', '2'),
    ('#### 18', '18'),
    ('The answer is 5\n#### 6', '5'),
    ('The final answer is 5 I hope it is correct', '5'),
    ('答案是12。', '12'),
    ('答案是12；共3', '12'),
    ('A: 12', '12'),
    ('EA: 12', None),
    ('so x = 3', None),
  ],
)
def test_final_answer(text, answer):
  assert extract.final_answer(text) == answer


@pytest.mark.parametrize('text, formula', [('$a$ or \\(b\\)', 'b'), ('$$x$$', 'x'), ('\\[ y \\] 3', 'y'), ('$5', None)])
def test_last_math(text, formula):
  assert extract.last_math(text) == formula


SIZE = 300_000  # characters


UNITS = ['7', '{', '}', '\\boxed{', '\\boxed{1}', '$', '1,', ',234', ' ', '\\frac{', '(', '1/', '#### ', '.']


@pytest.mark.parametrize('unit', UNITS)
def test_time_is_linear(unit):
  """Quadratic time would be 64 times an eighth's; 20, in one of three tries, leaves room for a busy machine."""
  text = '1' + unit * (SIZE // len(unit))
  functions = [extract.number, extract.final_answer, extract.last_math]

  def cost(part):
    start = time.process_time()
    for function in functions:
      function(part)
    return time.process_time() - start

  assert any(cost(text) < 20 * cost(text[: SIZE // 8]) + 0.5 for _ in range(3))


@pytest.mark.parametrize('text, value', [('-$-5', 5), ('$-5', -5), ('-$5', -5), ('+5', 5), ('-25%', Fraction(-1, 4))])
def test_signs_inside_and_outside_of_the_currency(text, value):
  assert values.value(text) == value
