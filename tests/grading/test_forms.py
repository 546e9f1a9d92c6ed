"""Short forms in which people and models write answers, and the verdict that a careful person gives."""

import json
import pathlib

import pytest

from mathqwen.errors import UserError
from mathqwen.grading import chinese, cleaning, grade, structure, thinking, units

FORMS = pathlib.Path(__file__).parents[3] / 'shared' / 'fixtures' / 'grading' / 'forms.jsonl'

# kind: (rule, gold, response, right)
OURS = [
  *[('math', gold, f'\\boxed{{{answer}}}', True) for gold, answer in [
    ('90^\\circ', '\\pi/2'), ('60^\\circ', '\\frac{\\pi}{3}'), ('1/3', '0.\\overline{3}'),
    ('\\frac16', '0.1\\overline{6}'),
    ('1/3', '0.333\\ldots'), ('1011_2', '1011_{\\text{two}}'), ('-18', '–18'), ('12345', '12\\,345'),
    ('18', '18\\text{个}'),
    ('2400000', '240万'), ('3000000', '3 \\text{ million}'), ('2\\sqrt2\\text{ cm}', '2\\sqrt{2}'),
    ('6', '6\\text{ cm}^2'),
    ('(-\\infty,5]', 'x \\leq 5'), ('(2,5)', 'x>2 \\text{ and } x<5'), ('\\{1,2\\}', '2,1'), ('(5,2)', 'x=5,y=2'),
    ('\\text{(C)}', '\\text{(C) } 5'), ('\\$5', '500\\text{ cents}'), ('y=-\\frac12x+\\frac34', '2x+4y-3=0'),
    ('\\sin 30^\\circ', '0.5'),
    ('2:30\\text{ p.m.}', '2:30 PM'), ('5((7)/(10))', '5\\frac{7}{10}'), ('\\sqrt{x}\\sqrt{y}', '\\sqrt{xy}'),
  ]],
  *[('math', gold, f'\\boxed{{{answer}}}', False) for gold, answer in [
    ('x<5 \\text{ or } x>7', 'x<5 \\text{ and } x>7'), ('(1,000)', '(1,0)'), ('AB', 'BA'), ('x=5', 'y=5'),
    ('12', '1 2'),
    ('45^\\circ', "45'"), ('(3,4)', '3,4'), ('9', '9!'), ('36', '2^{36}'), ('18', '18+x'), ('1.2', '1.2万'),
    ('2', '2x'),
    ('\\frac{1}{30!}', '\\frac{1}{31!}'), ('0', '10^{-30}'), ('1011_2', '1011_{\\text{three}}'), ('[2,5)', '2<x<5'),
    ('2\\sqrt2\\text{ cm}', '2\\sqrt{2}\\text{ m}'), ('3:2', '2:3'), ('(1,2)', '(2,1)'), ('\\sqrt{x^2}', 'x'),
    ('\\begin{pmatrix}1\\\\2\\end{pmatrix}', '1'), ('5\\text{ million}', '5'), ('\\text{(C)}', 'D'),
  ]],
  ('math', '18', 'It is \\boxed{18}. Check \\boxed{...} again.', True),
  ('math', '1,2', 'So $x=\\boxed{1}$ and $x=\\boxed{2}$.', True),
  ('math', '18', '答：她每天一共赚18美元。', True),
  ('math', '1200', '答案是一千二百米。', True),
  ('math', '13.4', '答案：１３．４米', True),
  ('math', '45', 'The answer is not 45.', False),
  ('math', 'x+1', '<answer>x+1</answer>', True),
  ('math', '20', '<thinking>\\boxed{20}', False),
  ('number', '20', 'Maybe \\boxed{20}</think>She pays **18**.', False),
  ('number', '18', 'Maybe \\boxed{20}</think>She pays **18**.', True),
  ('number', '9', 'The answer is 9!', False),
  ('number', '2', '(1,2)', False),
  ('number', '0.00008', 'It is 0', False),
  ('number', '25%', '\\boxed{25}', True),
  ('number', '18.5', '\\boxed{18,50 €}', True),
  ('math23k', '((3)/(4))', '四分之三', True),
  ('math23k', '5((7)/(10))', '五又十分之七', True),
  ('math23k', '25%', '百分之二十五', True),
  ('math23k', '1000', '１，０００元', True),
  ('math23k', '5', '答：还需要5天才能修完这一段路。', True),
  ('math23k', '15', '这个三角形的面积是十五平方厘米。', True),
  ('math23k', '1.2', '1.2万', False),
  ('math401', '36', '2^{36}', False),
  ('math', '48, 384', 'The answer is $48$, $384$', True),
  ('math', '48', 'The answer is $48$, $384$', False),
  ('math', '1, 2', 'The solutions are $x=1$ and $x=2$.', True),
  ('math', '2', 'The solutions are $x=1$ and $x=2$.', False),
  ('math', '12', 'The answer is Mrs. Hilt has 12 apples.', True),
  ('math', '18', 'The answer is **18** because $x=18$ and $y=2$.', True),
  ('number', '18', 'The answer is 18, since x=18 and y=2.', True),
  ('number', '2', 'The answer is 18, since x=18 and y=2.', False),
  ('math', '18', 'The answers are as follows: 18', True),
  ('math', '\\frac12', 'The answer is $\\frac{1}{2}$ or $0.5$.', True),
  ('math', '\\frac12', 'The answer is $\\frac{1}{2}$ or $0.6$.', False),
  ('math', '46', "The answer isn't 45, it is 46.", True),
  ('number', '18', 'The answer should be 18 and not 17.', True),
  ('number', '48', 'The answers are 48 and 384.', False),
  ('number', '48', 'The answers are 48, 384.', False),
  ('number', '18', 'The answer is 18, 3 more than before.', True),
  ('math', '8.49e-4', '\\boxed{8.49e-4 \\mathrm{M}}', True),
  ('number', '300', '\\boxed{300\\ \\mathrm{K}}', True),
  ('number', '300', '\\boxed{300\\mathrm{K}}', True),
  ('number', '300000', 'The answer is 300K', True),
  ('number', '300', 'The answer is 300K', False),
  ('number', '50\\text{ cm}', '\\boxed{50\\text{ m}}', False),
  ('number', '50\\text{ cm}', '\\boxed{0.5\\text{ m}}', True),
  ('number', '50\\text{ cm}', '\\boxed{50}', True),
  ('number', '3', 'The answer is 3 hours and 20 minutes.', False),
  ('math23k', '20', 'The answer is 3 hours and 20 minutes.', False),
  ('number', '3', 'The answer is 3 hours.', True),
  ('math23k', '12', 'The answer is 12 cm².', True),
  ('number', '12', 'So its area is 12 cm².', True),
  ('math', '12', '\\boxed{\\textbf{(C)}~12}', True),
  ('math', '13', '\\boxed{\\textbf{(C)}~12}', False),
  ('math', '5', '\\boxed{\\underline{5}}', True),
]  # fmt: skip


@pytest.mark.parametrize('rule, gold, response, right', OURS)
def test_forms_of_our_own(rule, gold, response, right):
  verdict = grade.grade(response, gold, rule)
  assert verdict.correct == right, verdict


def test_the_forms_that_are_handed_over():
  if not FORMS.exists():
    pytest.skip(f'the file of short forms is not here: {FORMS}')
  rows = [json.loads(line) for line in FORMS.read_text(encoding='utf-8').splitlines()]
  wrong = [
    (row['id'], verdict)
    for row in rows
    if (verdict := grade.grade(row['response'], row['gold'], row['rule'])).correct != row['expected']
  ]
  assert len(rows) == 209 and not wrong


@pytest.mark.parametrize(
  'numeral, digits',
  [
    ('一千二百', '1200'), ('十三点四', '13.4'), ('一亿三千万', '130000000'), ('一百零五', '105'),
    ('一百二', '120'), ('负五', '-5'),
    ('二〇二四', '2024'), ('五千米', '5千米'), ('一共', '一共'), ('万', '万'),
    ('三分之二', '3分之2'), ('三万亿', '3000000000000'),
  ],
)  # fmt: skip
def test_chinese_numerals(numeral, digits):
  assert chinese.digits(numeral) == digits


@pytest.mark.parametrize(
  'text, form',
  [
    ('１３．４', '13.4'), ('1，000', '1,000'), ('5，6', '5，6'), ('3½', '3\\frac{1}{2}'),
    ('12\u00a0345', '12345'), ('1 2', '1 2'),
    ('10⁶', '10^{6}'), ('**18**', '18'), ('2**3', '2**3'), ('١٢', '12'), ('in 2012 345 men', 'in 2012 345 men'),
  ],
)  # fmt: skip
def test_cleaning(text, form):
  assert cleaning.clean(text) == form


@pytest.mark.parametrize(
  'response, text, cut_off',
  [
    ('<think>a</think> b', ' b', False),
    ('a</think>b', 'b', False),
    ('b <think>a', '', True),
    ('<think>9</think><answer>18</answer>', '18', False),
    ('18<|im_end|>\n', '18', False),
    ('[THINK]a[/THINK]b', 'b', False),
  ],
)
def test_thinking_apart_from_the_answer(response, text, cut_off):
  reading = thinking.apart(response)
  assert (reading.text, reading.cut_off) == (text, cut_off)


def test_verdicts_have_names():
  rows = [('\\boxed{2}', False), ('\\boxed{3}', False), ('none', False), ('none', True), ('<think>2', False)]
  records = [{'response': response, 'gold': '2', 'truncated': cut} for response, cut in rows]
  assert [row['verdict'] for row in grade.judge(records, 'number')] == [
    'right',
    'wrong',
    'no answer',
    'cut off',
    'cut off',
  ]


def test_gold_answers_are_read_or_refused():
  record = {'id': 'a', 'response': 'The answer is 18.', 'gold': '9*2=<<9*2=18>>18\n#### 18'}
  for rule in ('number', 'math', 'math401', 'math23k'):
    assert grade.judge([record], rule)[0]['verdict'] == 'right', rule
  assert grade.grade('A: 18', record['gold'], 'openai').correct
  with pytest.raises(UserError, match=r'1 of 2 gold answers are not numbers.*number.*\(b\); correct them'):
    grade.judge([record, {'id': 'b', 'response': '5', 'gold': 'x+1'}], 'number')
  with pytest.raises(UserError, match='not a number'):
    grade.grade('5', 'two or three', 'number')


def test_a_long_gold_answer_of_math_equals_itself():
  gold = 'x_{1} + ' * 270 + 'x'
  assert len(gold) > 2100 and grade.grade(gold, gold, 'math').correct
  assert grade.grade(f'\\boxed{{{gold[:1500]}}}', gold, 'math').verdict == 'undecided'


def test_structure_of_answers():
  kinds = {'(3,4)': 'tuple', '3,4': 'list', '\\{1\\}': 'set', '1,000': 'atom', '[1,2)': 'interval', 'x\\ne0': 'union'}
  assert {text: structure.parse(text).kind for text in kinds} == kinds
  assert units.quantity('5x') is None and units.quantity('5 apples').value == 5
