import itertools

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
  assert found['maj_at_k'] == {'3': 0.5}  # '4' is right; of '7' and '8' the first counts, and is wrong
  assert found['pass_at_k'] == pytest.approx({'1': 0.5, '2': (1 + 2 / 3) / 2, '3': 1.0})
  assert found['stderr'] == pytest.approx(((1 / 6) ** 2 * 2 / 2) ** 0.5)  # means 2/3 and 1/3


def test_votes_are_for_answers_and_not_for_spellings():
  texts = [('1,000', True), ('1000', True), ('1000.00', True), ('7', False), ('7.0', False)]
  found = samples.summarise([record('a', i, text, right) for i, (text, right) in enumerate(texts)], 5)
  assert found['maj_at_k'] == {'5': 1.0}
  texts = [('5', True), (r'\frac12', False), (r'\dfrac{1}{2}', False)]
  found = samples.summarise([record('a', i, text, right) for i, (text, right) in enumerate(texts)], 3)
  assert found['maj_at_k'] == {'3': 0.0}


def test_no_answer_is_no_majority():
  assert samples.summarise([record('a', i, None, False) for i in range(2)], 2)['maj_at_k'] == {'2': 0.0}
