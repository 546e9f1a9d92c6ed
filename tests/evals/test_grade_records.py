"""Stored answers graded again: which records can be, what the scores say, and the line that is printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reciting import evaluate

from mathqwen import cli
from mathqwen.commands import _scores
from mathqwen.errors import UserError
from mathqwen.evals import run

ROOT = Path(__file__).parents[2]


def test_grade_again(tmp_path):
  path = tmp_path / 'stored.jsonl'
  rows = [
    {'question': 'q', 'response': 'so 5. #### 18', 'gold': '18', 'correct': False, 'mine': [1]},
    {'id': 7, 'response': 'nothing', 'gold': '1'},
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  scores = run.grade_records(path, 'gsm8k', out=tmp_path / 'out')['benchmarks']['gsm8k']
  assert (scores['n'], scores['correct'], scores['unextractable'], scores['verdicts_changed']) == (2, 1, 1, 1)
  assert (scores['prompt'], scores['truncated'], scores['model']) == (None, None, None)
  stored = [json.loads(line) for line in (tmp_path / 'out' / 'gsm8k' / 'records.jsonl').read_text().splitlines()]
  assert stored[0]['mine'] == [1] and stored[0]['correct'] and 'id' not in stored[0]
  assert stored[1] == {
    'id': 7, 'benchmark': 'gsm8k', 'response': 'nothing', 'extracted': None, 'gold': '1', 'correct': False,
    'reason': 'no answer found', 'verdict': 'no answer', 'rule': 'number',
  }  # fmt: skip
  assert run.grade_records(path, 'gsm8k', rule='abel')['benchmarks']['gsm8k']['rule'] == 'abel'


def test_the_line_of_grade_leaves_out_what_the_records_do_not_say(tmp_path, capsys):
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  assert cli.main(['grade', str(tmp_path / 'r.jsonl'), '--benchmark', 'gsm8k']) == 0
  message = 'gsm8k: 1 of 1 right, 100.0% (standard error 0.0), 0 without an answer; rule number\n'
  assert capsys.readouterr().out == message
  # Undecided answers are named where there are some.
  result = run.grade_records(tmp_path / 'r.jsonl', 'gsm8k')
  result['benchmarks']['gsm8k']['verdicts']['undecided'] = 3
  _scores.show(result)
  assert capsys.readouterr().out == message.replace('; rule', ', 3 undecided; rule')


def test_the_line_of_evaluate_has_all_of_it(reciting, data_dir, tmp_path, capsys):
  evaluate(reciting(), tmp_path, data_dir)
  assert cli.main(['grade', str(tmp_path / 'arithmetic' / 'records.jsonl'), '--benchmark', 'arithmetic']) == 0
  assert capsys.readouterr().out.endswith('1 without an answer, 0 cut off; rule math401, prompt chatml\n')


def test_grading_an_evaluation_again_gives_the_same_scores(reciting, data_dir, tmp_path):
  scores = evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']
  again = run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic')['benchmarks']['arithmetic']
  assert again['verdicts_changed'] == 0
  for key in again.keys() & scores.keys():
    assert again[key] == scores[key], key


def test_several_samples_are_summed_up_over_problems_and_again(reciting, data_dir, tmp_path):
  drawn = run.Decoding(samples=2, temperature=1.0)
  scores = evaluate(reciting(), tmp_path, data_dir, decoding=drawn)['benchmarks']['arithmetic']
  assert (scores['n'], scores['problems'], scores['pass_at_k'], scores['maj_at_k']) == (
    8, 4, {'1': 0.75, '2': 0.75}, {'1': 0.75, '2': 0.75}
  )  # fmt: skip
  assert scores['stderr'] == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
  assert scores['by_group']['add'] == {'n': 4, 'correct': 2, 'accuracy': 0.5, 'problems': 2, 'stderr': 0.5}
  again = run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic')['benchmarks']['arithmetic']
  assert {key: again[key] for key in again.keys() & scores.keys()} == {
    key: scores[key] for key in again.keys() & scores.keys()
  }


def test_samples_are_not_counted_as_problems_without_the_scores(reciting, data_dir, tmp_path):
  drawn = run.Decoding(samples=2, temperature=1.0)
  scores = evaluate(reciting(), tmp_path, data_dir, decoding=drawn)['benchmarks']['arithmetic']
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  (tmp_path / 'arithmetic' / 'scores.json').unlink()
  again = run.grade_records(path, 'arithmetic')['benchmarks']['arithmetic']
  assert all(again[key] == scores[key] for key in ('problems', 'samples', 'stderr', 'pass_at_k', 'model', 'prompt'))
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
  with pytest.raises(UserError, match="'arithmetic/test/3' does not have all of its 2 answers; finish the evaluation"):
    run.grade_records(path, 'arithmetic')
  for name in ('7', '"arithmetic/test/0"', 'null'):
    path.write_text(f'{{"id": {name}, "question": "q", "response": "1", "gold": "1"}}\n')
    with pytest.raises(UserError, match=f"'{json.loads(name)}' does not have all of its 2 answers"):
      run.grade_records(path, 'arithmetic')
  (tmp_path / 'arithmetic' / 'scores.json').write_text('{"samples": "2"}')
  with pytest.raises(UserError, match="arithmetic: samples is '2' in its scores or settings"):
    run.grade_records(path, 'arithmetic')


def test_samples_are_not_counted_as_problems_in_a_copied_file(reciting, data_dir, tmp_path):
  drawn = run.Decoding(samples=2, temperature=1.0)
  scores = evaluate(reciting(), tmp_path, data_dir, decoding=drawn)['benchmarks']['arithmetic']
  path = tmp_path / 'copied.jsonl'
  path.write_bytes((tmp_path / 'arithmetic' / 'records.jsonl').read_bytes())
  again = run.grade_records(path, 'arithmetic')['benchmarks']['arithmetic']
  assert all(again[key] == scores[key] for key in ('problems', 'samples', 'stderr', 'pass_at_k'))
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[1:]))
  with pytest.raises(UserError, match="'arithmetic/test/0' does not have all of its 2 answers"):
    run.grade_records(path, 'arithmetic')


@pytest.mark.parametrize('ids', [['gsm8k#0', 'gsm8k#1'], ['q#10', 'q#20'], ['a#1', 'a#2']])
@pytest.mark.parametrize('questions', [['x', 'y'], [None, None]])
def test_numbered_problems_are_not_samples_of_one(tmp_path, ids, questions):
  rows = [
    {'id': i, 'response': '1', 'gold': '1'} | ({'question': q} if q else {})
    for i, q in zip(ids, questions, strict=True)
  ]
  (tmp_path / 'r.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  scores = run.grade_records(tmp_path / 'r.jsonl', 'gsm8k')['benchmarks']['gsm8k']
  assert scores['n'] == 2 and 'problems' not in scores


def test_records_of_another_benchmark_are_not_graded(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  with pytest.raises(UserError, match="'arithmetic/test/0' is of arithmetic, not of math401; give --benchmark arith"):
    run.grade_records(path, 'math401')
  path.write_text(path.read_text().replace('"benchmark": "arithmetic"', '"benchmark": "my own"'))
  assert run.grade_records(path, 'math401')['benchmarks']['math401']['correct'] == 3


@pytest.mark.parametrize('benchmark, rule, message', [('gsm', None, "mean 'gsm8k'"), ('gsm8k', 'abl', "mean 'abel'")])
def test_grade_with_unknown_names(tmp_path, benchmark, rule, message):
  with pytest.raises(UserError, match=message):
    run.grade_records(tmp_path / 'none', benchmark, rule)


def test_empty_records(tmp_path):
  (tmp_path / 'r.jsonl').write_text('')
  with pytest.raises(UserError, match='no records in it'):
    run.grade_records(tmp_path / 'r.jsonl', 'gsm8k')


def test_grading_needs_no_jax(tmp_path):
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  code = (
    f'import sys; from mathqwen.evals import run; run.grade_records({str(tmp_path / "r.jsonl")!r}, "gsm8k"); '
    'print([m for m in ("jax", "numpy", "tensorflow_datasets") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == '[]', done.stderr
