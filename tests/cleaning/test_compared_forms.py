"""The forms in which texts are compared, the filters, and the overlaps that are known of the published data sets."""

import pathlib

import pytest

from mathqwen.cleaning import filters
from mathqwen.cleaning.settings import Cleaning
from mathqwen.data import compared_text as text
from mathqwen.data import examples
from mathqwen.data.compared_rows import Batch, Row, Text
from mathqwen.data.contamination import Found, Problem, TestSets
from mathqwen.data.examples import Example

PUBLISHED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


@pytest.mark.parametrize(
  'a, b, equal',
  [
    (r'What is $\frac{1}{2} + 2,125$?', r'what is \dfrac12+2125', True),
    ('3 × 4 =', '3*4=', True),
    (r'3 \times 4', '3 · 4', True),
    ('求（3/4）的一半．', '求(3/4)的一半。', True),
    ('a well-known sum', 'a well known sum', True),
    ('65+82=', '65-82=', False),
    ('5! = ', '5 = ', False),
    ('tan 22.5', 'tan 225', False),
    ('(2,3)', '(23)', False),
    ('x - 1', 'x + 1', False),
    ('-5 + 2', '5 + 2', False),
  ],
)
def test_plain(a, b, equal):
  assert (text.plain(a) == text.plain(b)) == equal


@pytest.mark.parametrize(
  'wrapped, problem',
  [
    ('**Question 3:** 5! =\nAnswer:', '5! ='),
    ('Problem:\nFind it.\n\nSolution:', 'Find it.'),
    ("Find it. Let's think step by step.", 'Find it.'),
    ('5! = Please reason step by step, and put your final answer within \\boxed{}.', '5! ='),
    ('Solve the following problem step by step.\nFind it.', 'Find it.'),
    ('题目：求和。\n答案：', '求和。'),
    ('5! =\n请逐步推理，并将最终答案放在 \\boxed{} 中。', '5! ='),
    ('水位逐步上升3米。', '水位逐步上升3米。'),
    ('Tom climbs step by step. Find the answer: 5', 'Tom climbs step by step. Find the answer: 5'),
    ('Question:', 'Question:'),
  ],
)
def test_unwrapped(wrapped, problem):
  assert text.unwrapped(wrapped) == problem


LONG = 'Tom has 12 red boxes and puts 3 green stones into each of them, so how many stones are there?'
CHINESE = '小明有十二个苹果，他又买了三十个苹果，然后分给五个朋友，每个朋友得到几个？'
SHORT = 'What is half of 18 apples?'
TESTS = TestSets([Problem('', '', question) for question in (LONG, CHINESE, SHORT, '1+1=')])


def kinds(question, answer=''):
  """{test problem: kinds} of a row."""
  found = Found()
  TESTS.check(Batch([Row('', [Text.of(question)], [Text.of(answer)], '', '', '')]), found)
  assert set(found.rows.values()) <= {1}
  result = {}
  for kind, problem in found.rows:
    result.setdefault(TESTS.problems[problem].question, set()).add(kind)
  return result


def test_each_language_of_a_turn_is_compared():
  """Words of Latin letters stay whole beside Chinese ones, in questions and in answers."""
  half = {'ngrams_half', 'ngrams_any'}
  assert kinds(f'{LONG}\n我想知道怎样算。') == {LONG: half}
  assert kinds(f'请看{LONG}怎样算？') == {LONG: half}
  assert kinds(f'{LONG} {CHINESE}') == {LONG: half, CHINESE: half}
  assert kinds('Translate this.', f'{LONG}就是{CHINESE}') == {LONG: {'solution_half'}, CHINESE: {'solution_half'}}
  assert kinds('我想知道怎样算 12 red boxes 和 3 green stones。') == {}


def test_short_problems_are_found_in_their_wrapping_and_as_a_line_of_a_question():
  equal = {'exact', 'punctuation', 'template'}
  assert kinds(f'Question: {SHORT}\nAnswer:') == {SHORT: equal}
  assert kinds(f'{SHORT}\n请逐步推理，并将最终答案放在 \\boxed{{}} 中。') == {SHORT: equal}
  assert kinds(f'Here are two.\n{SHORT}\n1+1=\n{SHORT}\nThanks!') == {SHORT: equal, '1+1=': equal}
  assert kinds(f'Hello.\n{LONG}')[LONG] == {'ngrams_half', 'ngrams_any'}  # it has n-grams: no line is looked up
  # Neither a part of a line, nor a line of an answer.
  assert kinds(f'Ann asked: {SHORT} Bob did not know.\nWhy?') == {}
  assert kinds('Add them all.\nShow each sum.', 'First\n1+1=\n2') == {}


def row_of(question, answer):
  return Row.of(Example('1', question, answer, '', {}, 'a:1'), 'a')


@pytest.mark.parametrize(
  'question, answer, reason, settings',
  [
    ('What is 1+1?', 'It is 2.', None, {}),
    ('What is 1+1?', 'It is 2.', 'no_box', {'answer': 'boxed'}),
    ('Why?', 'Because it is so.', 'no_final_answer', {}),
    ('Why?', 'Because it is so.', None, {'answer': 'any'}),
    ('Solve.', 'As an AI language model, I have no 5.', 'refusal', {}),
    ('求和。', '很抱歉，我无法回答这个问题 5', 'refusal', {}),
    ('Solve.', r'So \boxed{\frac{1}{2', 'truncated', {}),
    ('Solve.', r'\begin{align} x &= 5', 'truncated', {}),
    ('Solve.', '5 and so it is 5, because', 'truncated', {}),
    ('Solve.', '-(58-23)\n-35', None, {}),
    ('Solve.', 'The answer is 5 because we wait. ' * 60, 'repetitive', {}),
    ('Сколько всего яблок у Маши и Пети вместе?', 'Всего у них пять яблок: 2 + 3 = 5', 'script', {}),
    ('Solve.', 'x' * 9 + '5', 'too_many_characters', {'max_characters': 12}),
  ],
)
def test_filters(question, answer, reason, settings):
  found = filters.reason_to_leave_out(row_of(question, answer), Cleaning(**settings))
  assert (found and found[0]) == reason


COUNTS = {
  'gsm8k': {'gsm8k': {'ngrams_any': 3, 'ngrams_half': 1}},
  'math': {
    'math': {'exact': 1, 'punctuation': 5, 'ngrams_any': 589, 'ngrams_half': 170, 'template': 393},
    'math500': {'ngrams_any': 58, 'ngrams_half': 17, 'template': 35},
  },
  'math23k': {
    'math23k': {
      'punctuation': 3,
      'ngrams_any': 226,
      'ngrams_half': 26,
      'ngrams_any_30': 14,
      'ngrams_half_30': 6,
      'template': 59,
    }
  },
}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f'the full data sets are not here: there is no {PUBLISHED}')
@pytest.mark.parametrize('source', COUNTS)
def test_overlaps_of_published_splits(source):
  """Counted independently of this code: exact, but for punctuation, 13-grams, 30 characters, masked digits."""
  problems = []
  for name in COUNTS[source]:
    rows, _ = examples.parse_file(examples.find(name, 'test', PUBLISHED), name, 'test')
    problems += [Problem(name, row.id, row.question) for row in rows]
  tests = TestSets(problems)
  train, _ = examples.parse_file(examples.find(source, 'train', PUBLISHED), source, 'train')
  found = Found()
  tests.check(Batch([Row('', [Text.of(example.question)], [], '', '', '') for example in train]), found)
  for name, counts in found.summary(tests).items():
    counts.pop('problems')
    assert counts == COUNTS[source][name]
  # No row of these is taken for a broken one.
  rows = [Row.of(example, source) for example in train[::10]]
  assert not [row.where for row in rows if filters.reason_to_leave_out(row, Cleaning())]
