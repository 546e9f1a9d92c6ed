"""Every gold answer of the published files, where they are: its own rule finds it right, as text and in a box."""

import collections
import pathlib
import re

import pytest

from mathqwen.data import examples
from mathqwen.evals import benchmarks
from mathqwen.grading import grade

DATA = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'more'
# Rows of the files that are not asked, and why; none of any other.
LEFT_OUT = {'gaokao2023en': {'no_answer': ['gaokao2023en.jsonl.gz:168', 'gaokao2023en.jsonl.gz:193']}}
HERE = [
  'aime24', 'aime25', 'amc23', 'olympiadbench', 'minerva_math', 'svamp', 'asdiv', 'mawps', 'gsm_hard', 'cmath',
  'gaokao2023en', 'college_math',
]  # fmt: skip


def problems(name):
  """(the benchmark, its problems). Skips without the published file."""
  if not DATA.is_dir():
    pytest.skip(f'the published test sets are not here: {DATA}')
  benchmark = benchmarks.get(name)
  found, report = examples.parse_file(examples.find(name, 'test', DATA), name, 'test')
  left_out = {kind: [where for where, _ in rows] for kind, rows in report.rows.items() if rows}
  assert left_out == LEFT_OUT.get(name, {})
  return benchmark, found


def is_right(benchmark, example, response):
  return grade.grade(response, example.answer, benchmark.rule, example.extra.get('tolerance')).correct


@pytest.mark.parametrize('name', HERE)
def test_every_gold_is_right_by_its_own_rule(name):
  benchmark, found = problems(name)
  assert len(found) == benchmark.size == len({example.id for example in found})
  for form in ('{}', 'So the answer is \\boxed{{{}}}.', 'Thinking.</think>\n\\[\\boxed{{{}}}\\]'):
    wrong = [example.where for example in found if not is_right(benchmark, example, form.format(example.answer))]
    assert wrong == [], form
  golds = collections.Counter(example.answer for example in found)
  other = {gold: next(gold2 for gold2 in golds if gold2 != gold) for gold in golds}
  if benchmark.rule == 'number' and name != 'gsm_hard':  # two golds of which may be within a hundredth
    fooled = [e.where for e in found if is_right(benchmark, e, f'\\boxed{{{other[e.answer]}}}')]
    assert fooled == []


def test_answers_as_models_write_them():
  benchmark, found = problems('aime24')
  for form in ('\\boxed{{{:03d}}}', '\\boxed{{{}}}', '**{}**', '\\boxed{{m+n={}}}'):
    assert all(is_right(benchmark, example, form.format(int(example.answer))) for example in found), form

  benchmark, found = problems('gsm_hard')  # to the cent, and no further
  large = [example for example in found if abs(float(example.answer)) > 1]
  assert all(is_right(benchmark, example, f'#### {float(example.answer):,.2f}') for example in large)
  assert not any(is_right(benchmark, example, f'#### {float(example.answer) + 0.02:.2f}') for example in large)

  benchmark, found = problems('olympiadbench')
  lists = [example for example in found if re.fullmatch(r'[-\d]+(,\s*[-\d]+)+', example.answer)]
  turned = [', '.join(reversed(example.answer.split(','))) for example in lists]
  assert len(lists) > 20
  assert all(is_right(benchmark, e, f'\\boxed{{{text}}}') for e, text in zip(lists, turned, strict=True))
  (rounded,) = [example for example in found if 'tolerance' in example.extra]
  for text, right in (('4.3', True), ('4.15 \\%', True), ('4.31', False)):
    assert is_right(benchmark, rounded, f'\\boxed{{{text}}}') == right

  benchmark, found = problems('gaokao2023en')
  choices = [example for example in found if re.fullmatch(r'\\text\{[A-K]\}', example.answer)]
  assert len(choices) == 46
  for form in ('The answer is ({}).', '\\boxed{{{}. 17}}', '\\boxed{{\\text{{({})}}}}'):
    assert all(is_right(benchmark, example, form.format(example.answer[6])) for example in choices), form

  benchmark, found = problems('asdiv')
  words = [example.answer[6:-1] for example in found if example.answer.startswith('\\text')]
  assert 'They are equal' in words and 'Yes' in words
  with_brackets = [example.answer for example in found if '(' in example.answer]
  assert with_brackets == ['-(1/3)']  # which is no unit
