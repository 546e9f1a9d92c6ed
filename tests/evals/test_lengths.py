"""Accuracy by length, and mean lengths of right and wrong answers."""

import pytest

from mathqwen.evals import benchmarks, lengths, records


def test_bins_and_means():
  rows = [
    {'tokens': tokens, 'thinking_tokens': thinking, 'correct': correct}
    for tokens, thinking, correct in [(0, 0, False), (5, 2, True), (7, 7, False), (8, 3, True), (15, 5, True)]
  ]
  rows += [{'tokens': 6, 'correct': False}, {'tokens': None, 'correct': True}]
  found = lengths.summarise(rows)
  assert found['bins'] == [
    {'from': 0, 'below': 1, 'n': 1, 'correct': 0, 'accuracy': 0.0},
    {'from': 4, 'below': 8, 'n': 3, 'correct': 1, 'accuracy': pytest.approx(1 / 3)},
    {'from': 8, 'below': 16, 'n': 2, 'correct': 2, 'accuracy': 1.0},
  ]
  assert found['uncounted'] == 1
  right, wrong = found['mean']['right'], found['mean']['wrong']
  assert right == {'n': 3, 'tokens': pytest.approx(28 / 3), 'thinking': pytest.approx(10 / 3), 'answer': 6.0}
  assert wrong == {'n': 3, 'tokens': pytest.approx(13 / 3), 'thinking': 3.5, 'answer': 0.0}


def test_scores_without_lengths():
  row = {'extracted': '1', 'gold': '1', 'correct': True}
  assert 'lengths' not in records.summarise([row], benchmarks.get('gsm8k'), 'number')
  assert records.summarise([row | {'tokens': 3}], benchmarks.get('gsm8k'), 'number')['lengths']['bins'][0]['n'] == 1
