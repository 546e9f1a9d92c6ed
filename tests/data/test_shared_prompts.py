"""Rows that hold a question once and several answers to it."""

import collections
import json

import numpy as np
import pytest
from encoded_sums import encode, example
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_shared_prompts import encoded_answers, positions_per_answer
from train_batches import train_batches

from mathqwen import cli
from mathqwen.data import packing, pipeline, shared_prompts
from mathqwen.data.encoded import Encoded, Without
from mathqwen.data.inspect import describe
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer


def pair(ids, mask):
  return np.array(ids, np.int32), np.array(mask, np.uint8)


def seen_by(row, at):
  """The slots that a token sees, by the rule in the docstring of `shared_prompts`."""
  segment, answer = row['segment_ids'][at], row['answer_ids'][at]
  return [
    slot for slot in range(at + 1) if row['segment_ids'][slot] == segment and row['answer_ids'][slot] in (0, answer)
  ]


def examples_in(row):
  """(ids, mask from the second on) of each example of a row, read back from what its last token sees."""
  found = []
  for segment in range(1, row['segment_ids'].max() + 1):
    slots = np.flatnonzero(row['segment_ids'] == segment)
    answers = sorted(set(row['answer_ids'][slots].tolist()) - {0}) or [0]
    assert answers in ([0], list(range(1, len(answers) + 1)))
    for answer in answers:
      seen = seen_by(row, slots[row['answer_ids'][slots] == answer][-1])
      assert row['positions'][seen].tolist() == list(range(len(seen)))
      tokens, targets, weights = (row[name][seen] for name in ('tokens', 'targets', 'loss_weights'))
      own = row['answer_ids'][seen] == answer
      assert answer == 0 or not weights[~own].any()  # a question has no loss, which would count once for all answers
      # Each token is the target of the one before it, where the question ends too: its last token is in the answer.
      assert targets[:-1].tolist() == tokens[1:].tolist()
      found.append(((*tokens.tolist(), int(targets[-1])), tuple(weights.tolist())))
  return found


def rows_of(features):
  return [{name: values[i] for name, values in features.items()} for i in range(len(features['tokens']))]


def test_the_row_drawn_in_the_docstring():
  S, a, b, A, E, n, C, D = range(11, 19)
  examples = [pair([S, a, b, A, E, n], [0, 0, 0, 1, 1, 0]), pair([S, a, b, C, D, E], [0, 0, 0, 1, 1, 1])]
  features = shared_prompts.pack(examples, 9)
  assert features['tokens'].tolist() == [[S, a, b, A, E, b, C, D, 0]]
  assert features['targets'].tolist() == [[a, b, A, E, n, C, D, E, 0]]
  assert features['loss_weights'].tolist() == [[0, 0, 1, 1, 0, 1, 1, 1, 0]]
  assert features['segment_ids'].tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 0]]
  assert features['positions'].tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 0]]
  assert features['answer_ids'].tolist() == [[0, 0, 1, 1, 1, 2, 2, 2, 0]]
  assert {name: values.dtype for name, values in features.items()} == shared_prompts.FEATURES
  assert [features['tokens'][0, slot] for slot in seen_by(rows_of(features)[0], 7)] == [S, a, b, C, D]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(15, 60), st.integers(0, 99))
def test_every_example_is_in_the_rows_once_and_sees_itself(questions_and_answers, counts, seq_len, seed):
  examples = questions_and_answers(counts, seed=seed)
  features = shared_prompts.pack(examples, seq_len, seed=3)
  found = [found for row in rows_of(features) for found in examples_in(row)]
  expected = [(tuple(ids.tolist()), tuple(mask[1:].astype(float).tolist())) for ids, mask in examples]
  assert collections.Counter(found) == collections.Counter(expected)
  assert len(features['tokens']) <= len(packing.pack(examples, seq_len)['tokens'])


def test_what_shares_a_question():
  examples = [
    pair([7, 8, 1], [0, 0, 1]),
    pair([7, 8, 2, 3], [0, 0, 1, 1]),
    pair([7, 8, 2, 4], [0, 0, 0, 1]),  # another question, which begins like the first
    pair([5, 6], [0, 1]),  # nothing to share but the token that each answer has a copy of
    pair([5, 7], [0, 1]),
    pair([7, 8, 9], [0, 0, 1]),
  ]
  ((*segments,),) = shared_prompts.plan(examples, 20, 0)
  assert sorted(map(sorted, segments)) == [[0, 1, 5], [2], [3, 4]]
  row = rows_of(shared_prompts.pack(examples, 20))[0]
  assert np.count_nonzero(row['segment_ids']) == (1 + 1 + 2 + 1) + 3 + (1 + 1)


def test_a_question_whose_answers_fill_more_than_a_row_is_repeated():
  question, rng = list(range(5)), np.random.default_rng(0)
  examples = [pair([*question, *rng.integers(0, 9, 4)], [0] * 5 + [1] * 4) for _ in range(7)]
  rows = shared_prompts.plan(examples, 16, 0)  # 4 for the question, 4 for each answer
  assert sorted(len(segment) for row in rows for segment in row) == [1, 3, 3]
  # Beyond MOST_ANSWERED, the numbers of the TPU's kernel end.
  length = shared_prompts.MOST_ANSWERED // 2
  examples = [pair([0, 1, *rng.integers(0, 9, size)], [0, 0] + [1] * size) for size in (length, length, 1, 3 * length)]
  (row,) = shared_prompts.plan(examples, 4096, 0)
  assert sorted(map(len, row)) == [1, 1, 2]


def test_questions_are_drawn_whole(questions_and_answers, monkeypatch):
  """From memory, from sources without what is held out, and from shards; those of several sources together or apart."""
  monkeypatch.setattr(shared_prompts, '_TOGETHER', 4)
  counts = [3, 5, 1, 2]
  examples = questions_and_answers(counts)
  source = Encoded.from_rendered(examples)
  of_question = lambda number: [i for i, (ids, _) in enumerate(examples) if ids[0] == number]
  expected = [of_question(0), of_question(1)[:4], of_question(1)[4:], of_question(2), of_question(3)]
  assert sorted(shared_prompts.Questions([source], apart=False)) == sorted(expected)

  gone = [of_question(0)[0], *of_question(2)]
  left = [i for i in range(len(examples)) if i not in gone]
  without = shared_prompts.Questions([Without(source, gone)], apart=False)
  expected = [[left.index(i) for i in group if i in left] for group in expected]
  assert sorted(without) == sorted(group for group in expected if group)

  two = [source, Encoded.from_rendered([source[i] for i in of_question(3)])]
  assert shared_prompts.Questions(two, apart=True).counts == [5, 1]
  together = shared_prompts.Questions(two, apart=False)
  assert len(together) == 5 and [*of_question(3), 11, 12] in list(together)


def test_a_row_is_filled_with_answers_of_a_question_that_does_not_fit_whole():
  # The second question and its answers take 8 of 13 positions. Of the first, 3 + 2 fit beside them.
  assert shared_prompts.fill([[3, 3, 2], [2, 2, 2, 2]], 13) == [[(1, (0, 1, 2)), (0, (1,))], [(0, (0,))]]
  assert shared_prompts.fill([[3, 3, 2], [2, 2, 2, 2]], 12) == [[(1, (0, 1, 2))], [(0, (0, 1))]]
  assert shared_prompts.fill([[3, 3], [2, 2, 2, 2]], 14) == [[(1, (0, 1, 2)), (0, (0,))]]


def test_eight_answers_to_a_question_of_gsm8k(published):
  encoded = encoded_answers(published / 'gsm8k' / 'train.jsonl.gz', 150)
  shared, plain = (positions_per_answer(encoded, share_prompts) for share_prompts in (True, False))
  assert shared < 0.67 * plain


# --- batches ---


def batches_of(examples, weights=(), shard=(0, 1), batch_size=4, seq_len=40, state=None, epochs=()):
  sources = [Encoded.from_rendered(part, [f'{i}:{n}' for n in range(len(part))]) for i, part in enumerate(examples)]
  batches = train_batches(sources, weights, batch_size, seq_len, 5, shard, None, True, epochs)
  if state:
    batches.set_state(state)
  return batches


def test_hosts_stops_and_names(questions_and_answers, monkeypatch):
  """The batches of two hosts, stopped once and continued on one, are those of one that never stopped."""
  monkeypatch.setattr(pipeline, 'WINDOW_ROWS', (2, 6))
  examples = [questions_and_answers([5, 1, 3, 8, 2]), questions_and_answers([3, 3], seed=1)]
  numbers = {
    (tuple(ids.tolist()), tuple(mask[1:].tolist())): f'{source}:{n}'
    for source, part in enumerate(examples)
    for n, (ids, mask) in enumerate(part)
  }
  for weights in ((), (1, 2)):
    one = batches_of(examples, weights)
    expected, names = [], []
    for _ in range(6):
      names += one.examples(one.get_state())
      expected.append((next(one), one.digest))
    found, state = [], None
    for hosts in (2, 1):
      parts = [batches_of(examples, weights, (host, hosts), state=state) for host in range(hosts)]
      for _ in range(3):
        shares = [next(part) for part in parts]
        joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
        found.append((joined, parts[-1].digest))
      state = json.loads(json.dumps(parts[0].get_state()))
      for part in parts:
        part.close()
    one.close()
    for (a, digest), (b, other) in zip(found, expected, strict=True):
      assert digest == other and set(a) == set(b) == set(shared_prompts.FEATURES)
      for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    rows = [row for batch, _ in expected for row in rows_of(batch)]
    assert names == [[numbers[found] for found in examples_in(row)] for row in rows]
    if not weights:  # the first epoch, whose last window may reach into the second
      drawn = collections.Counter(name for row in names for name in row)
      assert set(drawn) == set(numbers.values()) and max(drawn.values()) - min(drawn.values()) <= 1


def test_weights_are_shares_of_examples(questions_and_answers):
  """The first source has 40 questions with 6 answers each, the second 40 with one."""
  examples = [questions_and_answers([count] * 40, seed=count) for count in (6, 1)]
  batches = batches_of(examples, (1, 1), batch_size=40)
  names = [name for row in batches.examples(batches.get_state()) for name in row]
  batches.close()
  assert 0.4 < sum(name.startswith('0') for name in names) / len(names) < 0.6


def test_epochs_are_passes_over_the_questions_of_each_source(questions_and_answers):
  examples = [questions_and_answers([count] * 4, seed=count) for count in (3, 1)]
  batches = batches_of(examples, epochs=(2, 1))
  order, questions = batches._rows.order, batches._rows.groups
  drawn = [n for place in range(len(order)) for n in questions[order[place]]]
  batches.close()
  assert sorted(drawn) == sorted([*range(12)] * 2 + [*range(12, 16)])


def test_a_state_is_not_continued_in_other_rows(questions_and_answers):
  examples = [questions_and_answers([2, 3])]
  shared = batches_of(examples)
  plain = train_batches([Encoded.from_rendered(examples[0])], (), 4, 40, 5)
  with pytest.raises(UserError, match='share_prompts was None, is True'):
    shared.set_state(plain.get_state())
  assert list(plain.get_state()['data']) == ['examples', 'crc32', 'weights', 'seq_len', 'seed']  # as in old checkpoints
  shared.close()
  plain.close()


def test_a_shared_row_in_words():
  encoded = encode([example(0, '5! =', '120'), example(1, '5! =', 'so 120')])
  (row,) = rows_of(shared_prompts.pack([encoded[0], encoded[1]], 32))
  lines = describe(row, load_tokenizer()).split('\n')
  assert lines[0] == 'row of 32 positions: 1 segments, 23 tokens (71.9%), 11 with loss, 9 padding'
  assert lines[1] == 'segment 1: 10 tokens, 0 with loss'
  assert lines[2:5] == ['  <|im_start|>user', '  5! =<|im_end|>', '  <|im_start|>assistant']
  # An answer begins with its copy of the question's last token, a new line.
  assert lines[5:8] == ['segment 1, answer 1: 8 tokens, 7 with loss', '  ', '  [[so 120<|im_end|>]]']
  assert lines[8:] == ['segment 1, answer 2: 5 tokens, 4 with loss', '  ', '  [[120<|im_end|>]]']


# --- a run ---


def test_a_run_is_continued_and_verified(tiny, fails, tmp_path, capsys):
  """With the loss on held-out questions, whose rows have no answer ids."""
  rows = []
  for n in range(60):
    for said in ('', 'it is ', 'so '):
      rows.append({'query': f'{n}+{n}=', 'response': f'{said}{2 * n}'})
  file = tmp_path / 'answers.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  setting = lambda *settings: [word for each in settings for word in ('--set', each)]
  options = setting(f'data.sources={file}', 'train.eval_every=2', 'train.log_every=1', 'optim.schedule=constant')
  command = ['train', tiny.config, '--workdir', str(tmp_path / 'run'), *options]
  share = setting('data.share_prompts=true')
  assert cli.main([*command, *share, *setting('train.steps=2'), '--json']) == 0
  printed = capsys.readouterr()
  assert '132 answers share 44 questions: in the first window they take' in printed.out + printed.err
  assert json.loads(printed.out.splitlines()[-1])['eval_loss'] > 0
  assert 'data.share_prompts' in fails(*command, *setting('train.steps=4'))
  assert cli.main([*command, *share, *setting('train.steps=4')]) == 0
  capsys.readouterr()
  assert cli.main(['data', 'verify', str(tmp_path / 'run'), '--json']) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {'steps': 4}
