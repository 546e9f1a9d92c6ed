"""Verdicts, row by row."""

import pytest

from mathqwen.errors import UserError
from mathqwen.grading import grade
from mathqwen.grading.rule import MAX_ANSWER, Verdict


@pytest.mark.parametrize(
  'rule, response, gold, correct, extracted',
  [
    ('number', 'pays $129,200. #### 129200', '129200', True, '129200'),
    ('number', 'The answer is 18.00', '18', True, '18.00'),
    ('number', '18.0001', '18', False, '18.0001'),
    ('number', '18.00009', '18', True, '18.00009'),
    ('number', 'It fell by 25%.', '25', True, '25%'),
    ('number', 'It fell by 0.25.', '25%', True, '0.25'),
    ('number', 'It fell by 25%.', '2500%', False, '25%'),
    ('number', 'Nothing left.', '0', False, None),
    ('number', 'It fell by 25\\%.', '25', True, '25\\%'),
    ('math23k', '25%', '25', False, '25%'),
    ('math23k', '答：0.25', '25%', True, '0.25'),
    ('math23k', '57/10', '5((7)/(10))', True, '57/10'),
    ('math23k', '9.33', '((28)/(3))', False, '9.33'),
    ('math23k', '9.33333', '((28)/(3))', True, '9.33333'),
    ('math23k', '30-3*4=18（吨）\n答：3天后还剩18吨。', '18', True, '18'),
    ('math23k', '答案是：甲、乙2地相距18千米。这比20少。', '18', True, '18'),
    ('math23k', '答：1又1/2小时。', '1((1)/(2))', True, '1又1/2'),
    ('math23k', '1又\\frac{1}{2}', '1.5', True, '1又\\frac{1}{2}'),
    ('math23k', '答：0', '0.00008', False, '0'),
    ('math23k', '答：0.00085', '0.0008', False, '0.00085'),  # 6% more
    ('math23k', '答：0.000801', '0.0008', True, '0.000801'),
    ('math23k', '0.33333', '((1)/(3))', True, '0.33333'),
    ('number', 'Answer: In 3 days she earns $18.', '18', True, '18'),
    ('number', 'The answer is 18 dollars for 3 days.', '18', True, '18'),
    ('number', 'The answer is 3 + 4 = 7 apples in 2 days.', '7', True, '7'),
    ('math401', '= 0.5910', '0.5914', True, '0.5910'),
    ('math401', '= 0.592', '0.591', False, '0.592'),  # exactly 1e-3 apart: not below
    ('math401', 'The answer is 7 (4 digits)', '7', False, '4'),  # the last number, whatever comes before
    ('math401', '0.0', '-0.0000', True, '0.0'),
    ('math', '\\boxed{\\dfrac12}', '\\frac{1}{2}', True, '\\dfrac12'),
    ('math', '\\boxed{0.5}', '\\frac{1}{2}', True, '0.5'),
    ('math', 'so $x = 5$ or\n\\boxed{x=5}', '5', True, 'x=5'),
    ('math', '\\boxed{(2,4)}', '(2, 4)', True, '(2,4)'),
    ('math', '\\boxed{(4,2)}', '(2,4)', False, '(4,2)'),
    ('math', '\\boxed{9999}', '10{,}000', False, '9999'),
    ('math', '\\boxed{10000}', '10{,}000', True, '10000'),
    ('math', '\\boxed{2112_5}', '2112_6', False, '2112_5'),
    ('math', 'The answer is $\\$115,000$.', '\\$115,000', True, '\\$115,000'),
    ('math', 'They pay \\$3, then $\\$40$.', '\\$40', True, '\\$40'),
    ('math', '\\boxed{9\\text{ p.m.}}', '9\\text{ a.m.}', False, '9\\text{ p.m.}'),
    ('math', '\\boxed{9 \\text{ AM}}', '9\\text{ a.m.}', True, '9 \\text{ AM}'),
    ('math', '\\boxed{5\\text{ million}}', '5\\text{ billion}', False, '5\\text{ million}'),
    ('math', 'p - q', 'p - q', True, 'p - q'),
    ('math', 'We get 5 apples', '5', True, '5'),
    ('math', 'We find $a$ and then $b+1$.', '1+b', True, 'b+1'),
    ('math', '\\boxed{\\sqrt{8}}', '2\\sqrt{2}', True, '\\sqrt{8}'),
    ('math', '\\boxed{}', '4', False, None),
    ('abel', '1. [...] #### 18', '18', True, '18'),
    ('abel', '#### 1\nQuestion: another #### 2', '1', True, '1'),
    ('abel', '#### 18\nso 18', '18', False, None),  # only the last line is read
    ('abel', '#### 9.0', '9', True, '9.0'),
    ('abel', '####   ', '18', False, None),
    ('openai', 'so 26\nA: 1,026', '1026', True, '1026'),
    ('openai', 'A: 26.', '26', False, '26.'),  # string equality, period and all
    ('rft', '#### 5 #### 6', '5', True, '5'),
    ('abel', '#### 18</s>', '18', True, '18'),
    ('abel', '#### 18</s> ', '18', False, '18<'),  # four characters go, whatever they are
    ('abel', '#### 20 miles', '20', False, '20 miles'),  # a product of letters, where a unit is not Minerva's
    ('abel', '#### 20 dollars', '20', True, '20 dollars'),
    ('abel', '#### 25\\%', '25', False, '25\\%'),
    ('abel', '#### 25', '25\\%', False, '25'),
    ('abel', '#### \\frac{31}{5}', '6\\frac{1}{5}', False, '\\frac{31}{5}'),
    ('abel', '#### 1\\dfrac{9}{10}', '1\\frac{9}{10}', True, '1\\dfrac{9}{10}'),
    ('abel', '#### \\frac{\\sqrt{3}}{3}.', '\\frac{\\sqrt{3}}{3}', True, '\\frac{\\sqrt{3}}{3}.'),
    ('abel', '#### \\frac{36}2', '18', True, '\\frac{36}2'),
    ('abel', '#### 25\\%.', '25\\%', False, '25\\%.'),
    ('abel', '#### 18.', '18', False, '18.'),
    ('abel', '#### 6 * 3', '18', True, '6 * 3'),
    ('abel', '#### x^2-1', '(x-1)(x+1)', True, 'x^2-1'),
    ('rft', '5', '5', False, None),
    ('rft', '#### 18.', '18', True, '18.'),
    ('rft', '#### 2,125', '2,125', True, '2125'),
    ('rft', '#### 1.2.3', '1', False, '1.2.3'),
    ('rft', '#### 18.00009', '18', True, '18.00009'),
    ('rft', '#### 18.00015', '18', False, '18.00015'),
    ('qwen-chat', 'about -1,000.50 then', '-1000.5', True, '-1,000.50'),
    ('qwen-chat', 'it is 18.', '18', True, '18.'),
    ('qwen-chat', 'so 5-3', '-3', True, '-3'),
    ('qwen-chat', 'at 10:05', '5', False, '05'),
    ('qwen-chat', 'at 10:00', '0', True, '00'),
    ('qwen-chat', 'it costs $1.00', '1', True, '1.00'),
    ('qwen-base', 'it is -12', '12', True, '12'),
    ('qwen-base', 'it is 12.5', '12.5', False, '5'),
    ('qwen-base', 'it is 1,000', '1000', False, '000'),
    ('wizardmath-gsm8k', 'The answer is: 1/2 cup', '0.5', True, '1/2'),
    ('wizardmath-gsm8k', 'The answer is: 4. The answer is: 36/2.', '18', True, '36/2'),
    ('wizardmath-gsm8k', 'The answer is: 12.5', '12', True, '12.5'),  # Python rounds a half to the even side
    ('wizardmath-gsm8k', 'The answer is: 13.5', '14', True, '13.5'),
    ('wizardmath-gsm8k', 'The answer is: 12.6', '13', True, '12.6'),  # rounded, not cut off
    ('wizardmath-gsm8k', 'The answer is: 12.6', '12', False, '12.6'),
    ('wizardmath-gsm8k', 'The answer is: -12.6', '-13', True, '-12.6'),
    ('wizardmath-gsm8k', 'The answer is: 1,234,567', '1234567', False, '1,234'),
    ('wizardmath-gsm8k', 'The answer is: $1,200', '1,200', True, '1,200'),
    ('wizardmath-gsm8k', 'The answer is: 3/0', '3', True, '3/0'),
    ('wizardmath-gsm8k', 'The answer is: -/5', '1', False, '-/5'),
    ('wizardmath-gsm8k', 'The answer is: ' + '0' * 400 + '5', '5', False, '0' * 400 + '5'),  # too long for a number
    ('wizardmath-gsm8k', 'The answer is 18', '18', False, None),
    ('wizardmath-math', 'The answer is: 5', 'so \\boxed{5}', True, '5'),
    ('wizardmath-math', 'The answer is: 5\nThus', '5', False, '5\nThus'),  # a line ends with a period there
    ('wizardmath-math', 'The answer is: \\dfrac12.', '\\frac{1}{2}', True, '\\dfrac12'),
    ('wizardmath-math', 'The answer is: 5\\text{ cm}.\nThus', '5', True, '5\\text{ cm}'),
    ('wizardmath-math', 'The answer is: 0.25', '\\frac{1}{4}', False, '0.25'),
    ('wizardmath-math', 'The answer is: x/2', 'x/2', True, 'x/2'),
    ('minerva', 'The final answer is $x=5$. I hope it is correct.', '5', True, '$x=5$'),
    ('minerva', 'The final answer is $\\frac{2}{4}$. I hope it is correct.', '\\frac12', True, '$\\frac{2}{4}$'),
    (
      'minerva',
      'The final answer is 4. I hope it is correct. The final answer is 5. I hope it is correct.',
      '4',
      True,
      '4',
    ),
    ('minerva', 'The final answer is $5$', '5', False, None),
    ('lm-eval-strict', '#### 1,000', '1000', True, '1000'),
    ('lm-eval-strict', '#### 18.', '18', True, '18.'),
    ('lm-eval-strict', '#### $18', '18', False, None),
    ('lm-eval-flexible', 'it is 1,000 then', '1000', True, '1,000'),
    ('lm-eval-flexible', 'he pays $18.', '18', True, '$18.'),
    ('lm-eval-flexible', 'he pays $18.', ' 18 ', True, '$18.'),
    ('lm-eval-flexible', 'he pays 18.00', '18', False, '18.00'),
    ('lm-eval-flexible', 'it is 18, so...', '18', False, '...'),
  ],
)
def test_verdicts(rule, response, gold, correct, extracted):
  verdict = grade.grade(response, gold, rule)
  assert (verdict.correct, verdict.extracted) == (correct, extracted), verdict.reason
  assert verdict.reason


def test_answers_that_are_too_long_are_wrong():
  longest = '9' * MAX_ANSWER
  assert grade.grade(f'A: {longest}', longest, 'openai').correct
  verdict = grade.grade(f'A: {longest}9', f'{longest}9', 'openai')
  assert verdict == Verdict(False, longest, f'answer of {MAX_ANSWER + 1} characters is too long to compare')


def test_every_rule_has_a_row_above():
  rows = next(mark for mark in test_verdicts.pytestmark if mark.name == 'parametrize').args[1]
  assert {row[0] for row in rows} == set(grade.RULES)


def test_unknown_rule_names_the_nearest():
  with pytest.raises(UserError, match="unknown rule 'maths'; did you mean 'math'"):
    grade.get('maths')


@pytest.mark.parametrize('decoded, error', [('5', 0.0), ('6', 0.2), ('-1000', 10.0), (None, 10.0), ('abc', 10.0)])
def test_relative_error(decoded, error):
  assert grade.relative_error(decoded, '5') == error


def test_relative_error_to_a_negative_target():
  assert grade.relative_error('-6', '-5') == 0.2


def test_relative_error_divides_by_one_at_least():
  assert grade.relative_error('0.25', '0.125') == 0.125


@pytest.mark.parametrize(
  'rule, response, answer',
  [
    ('number', 'so 18', '18'),
    ('number', '<think>it is 18', None),
    ('math', 'Thus \\boxed{2, 3}.', '2, 3'),
    ('math', 'First \\boxed{6}.\n\nThe answer is \\boxed{7}.', '7'),
    ('math', 'Thus $\\boxed{2}$, that is \\boxed{ 2 }.', '2'),
    ('math', '\\boxed{\\boxed{2}}', '2'),
    # Two parts of an answer, or a step and the answer: only the gold answer would show it.
    ('math', 'The roots are $\\boxed{2}$ and $\\boxed{3}$.', None),
  ],
)
def test_an_answer_whose_gold_answer_is_not_known(rule, response, answer):
  assert grade.RULES[rule].answer(response) == answer
  assert grade.unjudged({'id': 'a#0', 'response': response, 'gold': '7', 'correct': True}, rule) == {
    'id': 'a#0', 'response': response, 'gold': None, 'extracted': answer, 'correct': False, 'reason': '',
    'verdict': None, 'rule': rule,
  }  # fmt: skip
