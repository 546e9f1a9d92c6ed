"""The rule of RFT, against a literal loop of its authors' script that knows nothing of ours."""

import random
import re

from mathqwen.augment import selection


def slow_distance(a, b):
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    corner, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
  return row[-1]


def slow_rule(texts):
  """Indices of the kept ones among right answers with marks, whose calculations are plain Python."""
  lists, kept = [], []
  for i, text in enumerate(texts):
    marks = re.findall(r'<<([^>]*)>>', text)
    if any(abs(eval(mark.split('=')[0]) - float(mark.split('=')[1])) >= 1e-3 for mark in marks):  # noqa: S307
      continue
    if marks not in lists:
      lists.append(marks)
      kept.append(i)
      continue
    at = lists.index(marks)
    others = [texts[k] for k in kept if k != kept[at]]
    score = [sum(slow_distance(x, other) for other in others) for x in (text, texts[kept[at]])]
    if score[0] > score[1]:
      kept[at] = i
  return kept


def sample(i, text, **change):
  right = {'verdict': 'right', 'correct': True, 'reason': '', 'truncated': False}
  return {'id': f'q#{i}', 'response': text, **right, **change}


def test_the_edit_distance_is_levenshteins():
  draw = random.Random(0)
  for length in (1, 4, 40, 90):
    for _ in range(60):
      a, b = (''.join(draw.choices('ab中', k=draw.randrange(length + 1))) for _ in range(2))
      assert selection.edit_distance(a, b) == slow_distance(a, b), (a, b)


def test_kept_are_those_of_the_authors_script():
  draw = random.Random(1)
  words = ['so', 'then', 'the total is', 'we add', 'clips', 'and', 'she gets', '.']
  replaced = 0
  for _ in range(60):
    texts = []
    for _ in range(draw.randrange(1, 14)):
      text = ''
      for _ in range(draw.randrange(1, 4)):
        a, b = draw.randrange(1, 3), draw.randrange(1, 3)
        result = a + b + (draw.random() < 0.1)
        text += ' '.join(draw.choices(words, k=draw.randrange(1, 6))) + f' <<{a}+{b}={result}>> '
      texts.append(text)
    records = [sample(i, text) for i, text in enumerate(texts)]
    selected = selection.select(records, [])
    assert [i for i, record in enumerate(selected) if record['kept']] == sorted(slow_rule(texts))
    replaced += any('differs more' in record['why'] for record in selected)
  assert replaced > 10


def test_why_a_sample_is_dropped():
  records = [
    sample(0, '1+1 = 2, as said'),
    sample(1, '1+1 = 2', truncated=True),
    sample(2, '3', verdict='wrong', correct=False, reason='difference'),
    sample(3, '?', verdict='undecided', correct=False),
    sample(4, '?', verdict='no answer', correct=False),
    sample(5, '1+1 = 3, or 2'),
    sample(6, '1+1 = 2'),
    sample(7, 'The  gold\nanswer'),
    sample(8, '2 - 0 = 2'),
  ]
  selected = selection.select(records, ['A gold answer', 'The gold answer'])
  wanted = [
    None, 'cut off', 'wrong', 'undecided', 'no answer', 'wrong calculation', 'same equations', 'same text', None
  ]  # fmt: skip
  assert [record['dropped'] for record in selected] == wanted
  assert [record['kept'] for record in selected] == [dropped is None for dropped in wanted]
  assert set(filter(None, wanted)) == set(selection.DROPPED)
  assert selected[5]['why'] == '1+1=3' and selected[6]['why'] == 'as q#0'
  assert selection.select(records, [])[7]['kept']  # without the gold answer, its words are as good as others


def test_answers_without_equations_are_told_apart_by_formulas_and_words():
  texts = ['Since $a = b$, it is 2.', 'As $a=b$ we get 2.', 'From $x = b$: 2', 'It is 2.', 'It  is 2.', 'Clearly 2.']
  kept = [record['kept'] for record in selection.select([sample(i, text) for i, text in enumerate(texts)], [])]
  assert kept.count(True) == 4 and kept[2:] == [True, True, False, True]


def test_pairs_begin_with_the_answers_that_are_kept():
  """Of two right answers with the same words the first counts: a later one does not lose its place."""
  right = [
    {'response': text, 'dropped': dropped, 'kept': dropped is None}
    for text, dropped in (('b', 'same equations'), ('a', None), ('a', 'same text'))
  ]
  wrong = [{'response': text, 'dropped': 'wrong', 'kept': False} for text in ('x', 'y', 'x')]
  found = selection.pairs([*wrong, *right], 2)
  assert [(chosen['response'], rejected['response']) for chosen, rejected in found] == [('a', 'x'), ('b', 'y')]
