"""Our verdicts beside those that authors of published systems gave, and gold answers beside themselves."""

import gzip
import json
import pathlib

import pytest

from mathqwen.grading import grade

ROOT = pathlib.Path(__file__).parents[2]
SAMPLES = ROOT / 'tests' / 'testdata' / 'grading'
SHARED = ROOT.parent / 'shared'


def read(path):
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


def verdicts(rows, rule):
  return [grade.grade(row['response'], row['gold'], rule).correct for row in rows]


@pytest.mark.parametrize(
  'name, rule, right',
  [
    ('openai_6b_finetuning_gsm8k', 'openai', 17),
    ('openai_6b_finetuning_gsm8k', 'number', 17),
    ('qwen25math_math_half', 'math', 93),
  ],
)
def test_agreement_on_the_samples_that_come_with_the_tests(name, rule, right):
  rows = read(SAMPLES / f'{name}.jsonl.gz')
  assert len(rows) == len({row['id'] for row in rows}) == 100
  found = verdicts(rows, rule)
  assert found == [row['correct'] for row in rows] and sum(found) == right


def test_problems_of_math_are_not_in_the_samples():
  """MATH may not be distributed: the responses stand here without its problems, and where they quote one, cut."""
  rows = read(SAMPLES / 'qwen25math_math_half.jsonl.gz')
  assert all(row.keys() == {'id', 'response', 'gold', 'correct'} for row in rows)
  assert sum('[...]' in row['response'] for row in rows) == 51


def test_gold_answers_of_the_samples_beside_themselves():
  for name, rule in (('openai_6b_finetuning_gsm8k', 'number'), ('qwen25math_math_half', 'math')):
    for row in read(SAMPLES / f'{name}.jsonl.gz'):
      assert grade.grade(row['gold'], row['gold'], rule).correct, row


# Abel's outputs may not be distributed. These are of our own, written as Abel writes, with what its rule says.
ABEL = [
  ('She sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = $18.\n\n#### 18', '18', True),
  ('He buys 2 / 2 = 1 bolt more.\nThe answer is: 3 \n\n#### 3\nQuestion: Another one?\nAnswer: 4\n\n#### 4', '3', True),
  ('The profit is 70,000.\n\n#### 70,000', '70000', True),
  ('So 540 meters in all.\n\n#### 540 meters', '540', True),
  ('That is 20 eggs.\n\n#### 20 eggs', '20', False),
  ('It costs $64.\n\n#### \\$64.00', '64', True),
  ('#### 260\n\nTherefore, the answer is 260.', '260', False),
  ('Half of it is left.\n\n#### \\frac{1}{2}', '0.5', True),
  ('A quarter.\n\n#### 25%', '25', False),
  ('I cannot tell.', '7', False),
]


@pytest.mark.parametrize('response, gold, correct', ABEL)
def test_answers_written_as_abel_writes_them(response, gold, correct):
  assert grade.grade(response, gold, 'abel').correct == correct


def published(name):
  path = SHARED / 'fixtures' / 'grading' / f'{name}.jsonl.gz'
  if not path.exists():
    pytest.skip(f'the full file of published outputs is not here: {path}')
  return read(path)


@pytest.mark.parametrize(
  'name, rule, least',
  [
    ('abel_7b_gsm8k', 'abel', 1.0),
    ('openai_6b_finetuning_gsm8k', 'openai', 1.0),
    ('abel_7b_gsm8k', 'number', 0.995),
    ('openai_6b_finetuning_gsm8k', 'number', 0.995),
    ('qwen25math_math_half', 'math', 0.995),
  ],
)
def test_agreement_with_published_verdicts(name, rule, least):
  rows = published(name)
  pairs = zip(verdicts(rows, rule), rows, strict=True)
  assert sum(correct == row['correct'] for correct, row in pairs) / len(rows) >= least


@pytest.mark.parametrize(
  'name, rule, right', [('abel_7b_gsm8k', 'abel', 788), ('openai_6b_finetuning_gsm8k', 'openai', 286)]
)
def test_published_accuracies(name, rule, right):
  assert sum(verdicts(published(name), rule)) == right


@pytest.mark.parametrize('name', ['gsm8k', 'math500', 'math', 'math401', 'math23k'])
def test_gold_against_itself(name):
  from mathqwen.data import sources
  from mathqwen.evals import benchmarks

  if not (SHARED / 'data').exists():
    pytest.skip(f'the full data sets are not here: there is no directory {SHARED / "data"}')
  benchmark = benchmarks.get(name)
  rows, _ = sources.load(benchmark.source, benchmark.split, str(SHARED / 'data'), strict=True)
  assert len(rows) == benchmark.size
  for row in rows:
    for response in (row.answer, row.solution):
      verdict = grade.grade(response, row.answer, benchmark.rule)
      assert verdict.correct, (row.id, response, row.answer, verdict)
