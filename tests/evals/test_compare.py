import itertools
import json
import math
import random

import numpy as np
import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals import compare


def write(folder, verdicts, name='gsm8k', **change):
  """verdicts: {id: correct}"""
  path = folder / name / 'records.jsonl'
  path.parent.mkdir(parents=True)
  rows = [
    {'id': i, 'benchmark': name, 'question': f'q{i}', 'response': 'r', 'gold': '1', 'correct': ok} | change
    for i, ok in verdicts.items()
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (path.parent / 'scores.json').write_text('{"rule": "number"}')
  return folder


@pytest.mark.parametrize('b, c', [(0, 0), (0, 1), (1, 1), (0, 6), (3, 9), (9, 3), (40, 71), (500, 430)])
def test_mcnemar_beside_scipy_and_a_literal_sum(b, c):
  stats = pytest.importorskip('scipy.stats')
  got = compare.mcnemar(b, c)
  if b + c:
    assert got == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue, rel=1e-9)
  if b + c <= 12:  # every way in which so many flips can fall
    ways = [bin(way).count('1') for way in range(2 ** (b + c))]
    extreme = sum(abs(2 * k - b - c) >= abs(b - c) for k in ways)
    assert got == extreme / len(ways)


def test_interval_is_that_of_the_differences():
  n, b, c = 50, 4, 11
  values = [0] * (n - b - c) + [-1] * b + [1] * c + [0, 0, -1, 1]  # and one of each outcome,
  weights = [1] * n + [0.5] * 4  # by half
  mean = np.average(values, weights=weights)
  error = math.sqrt(np.average((values - mean) ** 2, weights=weights) / sum(weights))
  assert compare.interval(n, b, c) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=1e-4)
  assert compare.interval(n, c, b) == tuple(-x for x in reversed(compare.interval(n, b, c)))
  low, high = compare.interval(1, 0, 0)
  assert -1 <= low < 0 < high <= 1


def test_undecided_answers_are_counted(tmp_path):
  a = write(tmp_path / 'a', {'1': False, '2': False}, verdict='undecided')
  b = write(tmp_path / 'b', {'1': False, '2': False}, verdict='wrong')
  result = compare.compare(a, b)
  assert result['benchmarks']['gsm8k']['undecided'] == [2, 0]
  assert '  undecided, which count as not right: 2 and 0; grade them again' in compare.describe(result).splitlines()
  assert 'undecided' not in compare.describe(compare.compare(b, b))


@pytest.mark.parametrize('n, share_b, share_c', [(60, 0.02, 0.02), (100, 0.05, 0.15), (500, 0.002, 0.004)])
def test_interval_covers(n, share_b, share_c):
  # Wald's own covers the last one in 86% of the draws.
  rng = random.Random(n)
  covered = 0
  for _ in range(1000):
    flips = rng.choices([-1, 0, 1], [share_b, 1 - share_b - share_c, share_c], k=n)
    low, high = compare.interval(n, flips.count(-1), flips.count(1))
    covered += low <= share_c - share_b <= high
  assert covered >= 930


def test_flips(tmp_path):
  a = write(tmp_path / 'a', {'1': True, '2': True, '3': False, '4': False, '5': True, '6': False})
  b = write(tmp_path / 'b', {'6': True, '5': True, '4': True, '3': False, '2': False, '1': True})  # in another order
  write(a, {'1': True}, 'math500')
  result = compare.compare(a, b)
  one = result['benchmarks']['gsm8k']
  assert (one['n'], one['accuracy_a'], one['accuracy_b'], one['difference']) == (6, 1 / 2, 4 / 6, 1 / 6)
  assert (one['right_to_wrong'], one['wrong_to_right']) == (['2'], ['4', '6'])
  assert one['p_value'] == 1.0 and result['only_in_one'] == ['math500']
  assert compare.compare(a / 'gsm8k', b)['benchmarks'] == result['benchmarks']
  text = compare.describe(result, shown=1)
  assert 'gsm8k: 6 problems, 50.0% and 66.7%; difference +16.7 points (95%: ' in text
  assert '  right -> wrong: 1 (2)\n  wrong -> right: 2 (4, ... (all with --json))' in text
  assert 'in one of the two only: math500' in text and 'different rules' not in text
  (b / 'gsm8k' / 'scores.json').write_text('{"rule": "abel"}')
  assert 'graded by different rules, number and abel, which' in compare.describe(compare.compare(a, b))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'verdicts': {'1': True}}, r"gsm8k: 2 problems in .* and 1 in .*, 1 of them in one only, such as '2'"),
    ({'verdicts': {'1': True, '3': True}}, r"2 of them in one only, such as '2'"),
    ({'question': 'other'}, r"'1' has another question in"),
    ({'correct': None}, r'1 has no verdict; `mathqwen grade`'),
    ({'verdicts': {}}, r'no records in it'),
    ({'name': 'math500', 'benchmark': 'math500'}, r'holds gsm8k and .* math500: no benchmark in common'),
  ],
)
def test_runs_over_different_problems_are_refused(tmp_path, change, message):
  a = write(tmp_path / 'a', {'1': True, '2': False})
  verdicts = change.pop('verdicts', {'1': True, '2': True})
  b = write(tmp_path / 'b', verdicts, **change)
  with pytest.raises(UserError, match=message):
    compare.compare(a, b)


def test_gold_answers_are_compared_where_there_are_no_questions(tmp_path):
  a = write(tmp_path / 'a', {'1': True}, gold='2,125')
  assert compare.compare(a, write(tmp_path / 'b', {'1': True}, gold='2125'))['benchmarks']['gsm8k']['n'] == 1
  path = write(tmp_path / 'c', {'1': True}) / 'gsm8k' / 'records.jsonl'
  path.write_text('{"id": "1", "response": "r", "gold": "7", "correct": true}')
  with pytest.raises(UserError, match="'1' has another gold in"):
    compare.compare(a, path.parent)


def test_command_line(tmp_path, capsys):
  a, b = (write(tmp_path / name, {'1': name == 'a'}) for name in 'ab')
  assert cli.main(['compare', str(a), str(b), '--json']) == 0
  message = capsys.readouterr().out
  assert 'right -> wrong: 1 (1)' in message
  assert json.loads(message.splitlines()[-1])['benchmarks']['gsm8k']['right_to_wrong'] == ['1']
  assert cli.main(['compare', str(a), str(tmp_path / 'none')]) == 2
  assert 'no such directory' in capsys.readouterr().err
  (tmp_path / 'empty').mkdir()
  assert cli.main(['compare', str(a), str(tmp_path / 'empty')]) == 2


def test_an_unfinished_benchmark_does_not_keep_others_from_being_compared(tmp_path):
  a, b = (write(write(tmp_path / name, {'1': True}), {'1': True, '2': True}, 'math500') for name in 'ab')
  (b / 'math500' / 'scores.json').unlink()
  (b / 'math500' / 'settings.json').write_text('{}')
  path = b / 'math500' / 'records.jsonl'
  path.write_text(path.read_text().splitlines()[0] + '\n')
  result = compare.compare(a, b)
  assert (list(result['benchmarks']), result['unfinished'], result['only_in_one']) == (['gsm8k'], ['math500'], [])
  assert 'math500 is not finished in one of the two: not compared' in compare.describe(result)
  with pytest.raises(UserError, match=r"such as '2'; compare runs over the same problems"):
    compare.compare(a / 'math500', b / 'math500')


def test_the_rule_is_that_of_the_records(tmp_path):
  a, b = (write(tmp_path / name, {'1': True}, rule=rule) for name, rule in (('a', 'number'), ('b', 'abel')))
  for folder in (a, b):
    (folder / 'gsm8k' / 'scores.json').unlink()
  assert compare.compare(a, b)['benchmarks']['gsm8k']['rules'] == ['number', 'abel']


def test_several_answers_to_a_problem_are_refused(tmp_path):
  a, b = write(tmp_path / 'a', {1: True}), write(tmp_path / 'b', {1: False})
  (b / 'gsm8k' / 'scores.json').write_text('{"rule": "number", "samples": 4}')
  with pytest.raises(UserError, match='4 answers to each problem'):
    compare.compare(a, b)
  (b / 'gsm8k' / 'scores.json').rename(b / 'gsm8k' / 'settings.json')
  with pytest.raises(UserError, match='4 answers to each problem'):
    compare.compare(a, b)


@pytest.mark.parametrize('field', [{}, {'id': None}])
def test_questions_asked_twice_count_twice(tmp_path, field):
  """Without ids, as in Math401."""
  for name, verdicts in (('a', [True, False, True]), ('b', [True, True, False])):
    row = {'benchmark': 'math401', 'response': 'r', 'gold': '1'} | field
    rows = [row | {'question': q, 'correct': ok} for q, ok in zip('xxy', verdicts, strict=True)]
    (tmp_path / name).mkdir()
    (tmp_path / name / 'records.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  one = next(iter(compare.compare(tmp_path / 'a', tmp_path / 'b')['benchmarks'].values()))
  assert (one['n'], one['wrong_to_right'], one['right_to_wrong']) == (3, ['x (no. 2)'], ['y'])


def test_several_answers_are_compared_over_problems(tmp_path):
  rng = random.Random(2)
  right = {'a': {}, 'b': {}}
  for problem in range(9):
    right['a'] |= {f'p{problem}#{i}': rng.random() < 0.4 for i in range(2)}
    right['b'] |= {f'p{problem}#{i}': rng.random() < 0.8 for i in range(3)}
  a, b = (write(tmp_path / name, verdicts, extracted='1', question='q') for name, verdicts in right.items())
  for folder, count in ((a, 2), (b, 3)):
    (folder / 'gsm8k' / 'scores.json').write_text(json.dumps({'rule': 'number', 'samples': count}))
  one = compare.compare(a, b)['benchmarks']['gsm8k']
  means = [
    sum(right['b'][f'p{p}#{i}'] for i in range(3)) / 3 - sum(right['a'][f'p{p}#{i}'] for i in range(2)) / 2
    for p in range(9)
  ]
  assert (one['n'], one['samples'], one['other_texts']) == (9, [2, 3], None)
  assert one['accuracy_a'] == pytest.approx(sum(right['a'].values()) / 18)
  assert one['difference'] == pytest.approx(sum(means) / 9)
  sums = [abs(sum(s * d for s, d in zip(signs, means, strict=True))) for signs in itertools.product((1, -1), repeat=9)]
  assert one['p_value'] == pytest.approx(np.mean(np.array(sums) >= abs(sum(means)) - 1e-9))
  lost = [p for p in range(9) if right['a'][f'p{p}#0'] and sum(right['b'][f'p{p}#{i}'] for i in range(3)) == 0]
  assert set(one['right_to_wrong']) >= {f'p{p}' for p in lost}
  assert 'exact sign-flip test p = ' in compare.describe(compare.compare(a, b))


@pytest.mark.parametrize('b, c', [(0, 0), (0, 1), (3, 9), (40, 71)])
def test_one_answer_each_is_a_case_of_several(b, c):
  differences = [-1] * b + [1] * c + [0] * 7
  assert compare.sign_flips(differences) == pytest.approx(compare.mcnemar(b, c))
  assert compare.interval_of(differences) == pytest.approx(compare.interval(len(differences), b, c))
