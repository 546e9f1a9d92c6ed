import collections
import itertools
import random

import pytest

from mathqwen.evals import samples


@pytest.mark.parametrize('n, correct, k', [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 4), (7, 1, 7)])
def test_pass_at_k_counts_the_draws(n, correct, k):
  draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
  assert samples.pass_at(k, n, correct) == pytest.approx(sum(map(any, draws)) / len(draws))


def record(problem, sample, extracted, correct):
  return {'id': f'{problem}#{sample}', 'extracted': extracted, 'correct': correct}


def test_majority_and_error_are_over_problems():
  records = [
    record('a', 0, '3', False), record('a', 1, '4', True), record('a', 2, '4', True),
    record('b', 0, None, False), record('b', 1, '7', False), record('b', 2, '8', True),
  ]  # fmt: skip
  found = samples.summarise(records, 3)
  assert (found['problems'], found['samples']) == (2, 3)
  assert found['maj_at_k']['3'] == 0.5  # '4' is right; of '7' and '8' the first counts, and is wrong
  assert found['pass_at_k'] == pytest.approx({'1': 0.5, '2': (1 + 2 / 3) / 2, '3': 1.0})
  assert found['stderr'] == pytest.approx(((1 / 6) ** 2 * 2 / 2) ** 0.5)  # means 2/3 and 1/3


def test_votes_are_for_answers_and_not_for_spellings():
  texts = [('1,000', True), ('1000', True), ('1000.00', True), ('7', False), ('7.0', False)]
  found = samples.summarise([record('a', i, text, right) for i, (text, right) in enumerate(texts)], 5)
  assert found['maj_at_k']['5'] == 1.0
  texts = [('5', True), (r'\frac12', False), (r'\dfrac{1}{2}', False)]
  found = samples.summarise([record('a', i, text, right) for i, (text, right) in enumerate(texts)], 3)
  assert found['maj_at_k']['3'] == 0.0


def test_no_answer_is_no_majority():
  assert samples.summarise([record('a', i, None, False) for i in range(2)], 2)['maj_at_k'] == {'1': 0.0, '2': 0.0}


def majority_by_enumeration(votes, k):
  """The slow way: every draw of k, and the first of its most frequent votes."""
  won = total = 0
  for draw in itertools.combinations(votes, k):
    counts = collections.Counter(vote for vote in draw if vote is not None)
    won += bool(counts) and counts.most_common(1)[0][0] is True
    total += 1
  return won / total


def test_majority_at_k_counts_every_draw():
  rng = random.Random(3)
  for n in (1, 2, 5, 9):
    for _ in range(25):
      votes = rng.choices([True, ('7',), ('8',), ('9',), None], [4, 3, 2, 1, 1], k=n)
      found = samples.majority_at(votes, range(1, n + 1))
      assert found == {k: pytest.approx(majority_by_enumeration(votes, k), abs=1e-12) for k in range(1, n + 1)}
  many = samples.majority_at([True, ('7',)] * 100 + [('9',)] * 56, [1, 64, 256])
  assert many[1] == pytest.approx(100 / 256) and many[256] == 1.0 and 0.5 < many[64] < 1


def test_each_metric_has_an_interval_over_problems():
  rng = random.Random(1)
  records = []
  for problem in range(60):
    chance = rng.random()
    for sample in range(8):
      correct = rng.random() < chance
      records.append(record(problem, sample, '1' if correct else str(rng.randrange(2, 5)), correct))
  found = samples.summarise(records, 8)
  assert found['avg_at_n'].keys() == {'8'} and found['pass_at_k'].keys() == found['maj_at_k'].keys() == set('1248')
  assert found['cons_at_k'] == found['maj_at_k']
  assert found['avg_at_n']['8'] == pytest.approx(found['pass_at_k']['1']) == pytest.approx(found['maj_at_k']['1'])
  by_problem = [records[i : i + 8] for i in range(0, 480, 8)]
  values = {
    ('avg_at_n', '8'): [sum(one['correct'] for one in answers) / 8 for answers in by_problem],
    ('maj_at_k', '8'): [majority_by_enumeration([samples.vote(one) for one in answers], 8) for answers in by_problem],
    ('pass_at_k', '4'): [
      sum(any(one['correct'] for one in draw) for draw in itertools.combinations(answers, 4)) / 70
      for answers in by_problem
    ],
  }
  for (metric, k), of_problems in values.items():
    assert found[metric][k] == pytest.approx(sum(of_problems) / 60)
    means = sorted(sum(rng.choices(of_problems, k=60)) / 60 for _ in range(4000))  # the bootstrap over problems
    assert found['intervals95'][metric][k] == pytest.approx((means[100], means[3900]), abs=0.02)
  certain = samples.summarise(
    [record('a', i, '1', True) for i in range(4)] + [record('b', i, '1', True) for i in range(4)], 4
  )
  low, high = certain['intervals95']['pass_at_k']['4']
  assert low < 0.4 and high == 1.0  # two problems say little
