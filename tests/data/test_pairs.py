"""Pairs of a chosen and a rejected answer: from anybody's file to packed rows."""

import collections
import json

import numpy as np
import pytest
from train_batches import train_batches

from mathqwen.data import encoding, examples, inspect_page, pairs, pipeline
from mathqwen.data.encoded import Encoded
from mathqwen.data.training_data import TrainingData
from mathqwen.data_config import DataConfig
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer

USER = {'role': 'user', 'content': '5! ='}
RIGHT, WRONG = {'role': 'assistant', 'content': '120'}, {'role': 'assistant', 'content': '24'}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
EARLIER = [{'role': 'user', 'content': '3! ='}, {'role': 'assistant', 'content': '6'}]
HUMAN = {'from': 'human', 'value': '5! ='}
GPT = lambda text: {'from': 'gpt', 'value': text}
SILENT = [EARLIER[0], EARLIER[1] | {'weight': 0}]  # an earlier answer, which has no loss


def jsonl(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


@pytest.mark.parametrize(
  'record, chosen, rejected',
  [
    ({'prompt': '5! =', 'chosen': '120', 'rejected': '24'}, '120', '24'),
    ({'question': '5! =', 'chosen': ' 120', 'rejected': 24}, '120', '24'),
    ({'prompt': '5! =', 'chosen': '[1, 2]', 'rejected': '[]'}, '[1, 2]', '[]'),
    ({'prompt': '5! =', 'chosen': [RIGHT], 'rejected': [WRONG]}, '120', '24'),
    ({'instruction': '5! =', 'input': '', 'chosen': '120', 'rejected': '24'}, '120', '24'),
    ({'instruction': '5!', 'question': '5! =', 'chosen': '120', 'rejected': '24'}, '120', '24'),
    ({'instruction': '5! =', 'chosen_response': '120', 'rejected_response': '24'}, '120', '24'),
    ({'conversations': [HUMAN], 'chosen': GPT('120'), 'rejected': GPT('24')}, (USER, RIGHT), (USER, WRONG)),
    ({'prompt': [USER], 'chosen': [RIGHT], 'rejected': [WRONG]}, (USER, RIGHT), (USER, WRONG)),
    ({'prompt': [USER], 'chosen': '120', 'rejected': '24'}, (USER, RIGHT), (USER, WRONG)),
    ({'prompt': json.dumps([USER]), 'chosen': [RIGHT], 'rejected': '24'}, (USER, RIGHT), (USER, WRONG)),
    ({'chosen': [USER, RIGHT], 'rejected': [USER, WRONG]}, (USER, RIGHT), (USER, WRONG)),
    # As UltraFeedback: the question again, and a conversation for supervised fine-tuning, which is not read.
    (
      {'prompt': '5! =', 'chosen': [USER, RIGHT], 'rejected': [USER, WRONG], 'messages': [USER, RIGHT]},
      (USER, RIGHT), (USER, WRONG),
    ),
    (
      {'system': 'Be brief.', 'question': '5! =', 'chosen': '120', 'rejected': '24'},
      (SYSTEM, USER, RIGHT), (SYSTEM, USER, WRONG),
    ),
    (
      {'chosen': [*EARLIER, USER, RIGHT], 'rejected': [*EARLIER, USER, WRONG]},
      (*SILENT, USER, RIGHT), (*SILENT, USER, WRONG),
    ),
    (
      {'prompt': [*EARLIER, USER], 'chosen': [RIGHT], 'rejected': [WRONG]},
      (*SILENT, USER, RIGHT), (*SILENT, USER, WRONG),
    ),
  ],
)  # fmt: skip
def test_shapes_of_pairs(record, chosen, rejected, tmp_path):
  path = jsonl(tmp_path / 'pairs.jsonl', [record | {'answer': 'of the row'}])
  ((found,), report) = examples.parse_files([path], str(path), 'train', pairs=True)
  assert (found.solution if found.messages is None else found.messages, found.rejected) == (chosen, rejected)
  assert found.answer == 'of the row' and report.unread.keys() <= {'messages'}
  sides = encoding.sides(found)
  assert [side.rejected for side in sides] == [None, None]
  assert [side.solution if side.messages is None else side.messages for side in sides] == [chosen, rejected]


def test_what_is_asked_beside_an_instruction(tmp_path):
  row = {'instruction': 'Solve it.', 'question': '5! =', 'chosen': '120', 'rejected': '24'}
  path = jsonl(tmp_path / 'pairs.jsonl', [row, row | {'chosen': [RIGHT, *EARLIER]}])
  ((found,), report) = examples.parse_files([path], str(path), 'train', pairs=True)
  assert found.question == 'Solve it.\n5! =' and not report.unread
  assert 'write all of it as turns' in report.lines()[0]


@pytest.mark.parametrize(
  'record, why',
  [
    ({'prompt': '5! =', 'chosen': '120', 'rejected': '120 '}, 'are the same'),
    ({'chosen': [USER, RIGHT], 'rejected': [USER, RIGHT]}, 'are the same'),
    ({'chosen': [USER, RIGHT], 'rejected': [EARLIER[0], WRONG]}, 'differ before an answer'),
    ({'chosen': 'Human: 5! =\n\nAssistant: 120', 'rejected': 'Human: 5! =\n\nAssistant: 24'}, 'without a prompt'),
    ({'prompt': '6! =', 'chosen': [USER, RIGHT], 'rejected': [USER, WRONG]}, 'not those of the prompt'),
    ({'prompt': '5! =', 'completion': '120'}, 'expected a chosen and a rejected answer'),
    ({'instruction': 'Count', 'input': '5', 'chosen': [RIGHT, *EARLIER], 'rejected': '24'}, 'write all of it as turns'),
    ({'prompt': '5! =', 'chosen': '120', 'rejected': '24', 'context': 'more'}, 'field "context" is not read'),
  ],
)
def test_records_that_are_no_pairs_are_named(record, why, tmp_path):
  path = jsonl(tmp_path / 'pairs.jsonl', [{'prompt': '1+1=', 'chosen': '2', 'rejected': '3'}, record])
  found, report = examples.parse_files([path], str(path), 'train', pairs=True)
  assert len(found) == 1 and report.counts == {'malformed': 1}
  assert why in report.rows['malformed'][0][1]


# --- tokens and rows ---


def drawn(numbers, vocab=90, seed=0):
  """(ids, mask) of pairs; the first id says which pair, the first id of the answer which side."""
  rng = np.random.default_rng(seed)
  found = []
  for number in numbers:
    for side in range(2):
      answer = rng.integers(0, vocab, rng.integers(1, 6))
      ids = np.array([number, 5, side, *answer], np.int32)
      found.append((ids, np.array([0, 0, *[1] * (len(ids) - 2)], np.uint8)))
  return found


def pairs_in(features):
  """(number of the pair, its chosen and its rejected tokens) of packed rows, in their order."""
  found = []
  for row in range(len(features['tokens'])):
    ids = features['pair_ids'][row]
    for pair in range(1, ids.max() + 1):
      sides = []
      for sign in (1, -1):
        here = ids == sign * pair
        assert len(set(features['segment_ids'][row][here])) == 1
        sides.append((*features['tokens'][row][here].tolist(), int(features['targets'][row][here][-1])))
      assert sides[0][:2] == sides[1][:2] and (sides[0][2], sides[1][2]) == (0, 1)
      found.append((sides[0][0], *sides))
  return found


def test_the_row_drawn_in_the_docstring():
  S, a, b, C, E, D = range(11, 17)
  side = lambda ids: (np.array(ids, np.int32), np.array([0, 0, 0, *[1] * (len(ids) - 3)], np.uint8))
  features = pairs.pack([side([S, a, b, C, E]), side([S, a, b, D])], 9)
  assert features['tokens'].tolist() == [[S, a, b, C, S, a, b, 0, 0]]
  assert features['targets'].tolist() == [[a, b, C, E, a, b, D, 0, 0]]
  assert features['loss_weights'].tolist() == [[0, 0, 1, 1, 0, 0, 1, 0, 0]]
  assert features['segment_ids'].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0, 0]]
  assert features['positions'].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0]]
  assert features['pair_ids'].tolist() == [[1, 1, 1, 1, -1, -1, -1, 0, 0]]
  assert {name: values.dtype for name, values in features.items()} == pairs.FEATURES


def test_batches_of_pairs_on_hosts_and_after_a_stop(monkeypatch):
  """Every pair is whole and comes once an epoch; two hosts and a continued run have the batches of one host."""
  monkeypatch.setattr(pipeline, 'WINDOW_ROWS', (2, 4))
  sources = [Encoded.from_rendered(drawn(range(20))), Encoded.from_rendered(drawn(range(20, 30), seed=1))]
  make = lambda shard=(0, 1), weights=(): train_batches(
    sources, weights, 4, 32, 3, shard, pairs=True
  )  # fmt: skip
  one, hosts = make(), [make((host, 2)) for host in range(2)]
  state, found, names = None, [], []
  for step in range(6):
    if step == 3:
      state = one.get_state()
    names += one.examples(one.get_state())
    batch = next(one)
    found.append(batch)
    shares = [next(host) for host in hosts]
    for name, values in batch.items():
      np.testing.assert_array_equal(values, np.concatenate([share[name] for share in shares]))
  again = make()
  again.set_state(state)
  np.testing.assert_array_equal(next(again)['pair_ids'], found[3]['pair_ids'])
  plain = train_batches(sources, (), 4, 32, 3)
  with pytest.raises(UserError, match='pairs was None, is True'):
    again.set_state(plain.get_state())
  for batches in (one, again, plain, *hosts):
    batches.close()
  together = {name: np.concatenate([batch[name] for batch in found]) for name in pairs.FEATURES}
  counts = collections.Counter(number for number, *_ in pairs_in(together))
  assert set(counts) == set(range(30)) and max(counts.values()) - min(counts.values()) <= 1
  assert [len(row) // 2 for row in names] == together['pair_ids'].max(axis=1).tolist()


def test_what_training_reads_of_a_file_of_pairs(tmp_path):
  records = [{'prompt': f'{n}+{n}=', 'chosen': str(2 * n), 'rejected': str(2 * n + 1)} for n in range(40)]
  long = {'prompt': '1+1=', 'chosen': '2', 'rejected': 'one ' * 60}
  path = jsonl(tmp_path / 'pairs.jsonl', [*records, records[3], long])
  cfg = DataConfig(sources=(str(path),), seq_len=80, batch_size=2, eval_examples=5)
  data = TrainingData(cfg, load_tokenizer(), pairs=True)
  segments = [segment['name'] for row in inspect_page._packed(data) for segment in row[4]['segments']]
  assert segments[0].endswith(', chosen of pair 1') and segments[1].endswith(', rejected of pair 1')
  lines = data.describe()
  assert lines[0].startswith(f'{path}: 35 pairs, ') and 'held out for the evaluation loss: 5 pairs' in lines
  assert data.reports[str(path)].counts == {'duplicate': 1, 'too_long': 1}
  assert 'positions of both answers, seq_len is 80' in data.reports[str(path)].rows['too_long'][0][1]
  assert len(data.held_out) == 10 and len(data.sources[0]) == 70
  assert sum(len(set(row[row > 0])) for batch in data.eval() for row in batch['pair_ids']) == 5
  asked = lambda source: {source[i][0][: source[i][1].argmax()].tobytes() for i in range(len(source))}
  assert not asked(data.held_out) & asked(data.sources[0]) and len(asked(data.held_out)) == 5


def test_refusals(tmp_path):
  answers = jsonl(tmp_path / 'answers.jsonl', [{'question': '1+1=', 'solution': '2'}])
  chosen = jsonl(tmp_path / 'pairs.jsonl', [{'prompt': '1+1=', 'chosen': '2', 'rejected': '3'}])
  read = lambda source, pairs: TrainingData(DataConfig(sources=(source,), seq_len=64), load_tokenizer(), pairs=pairs)
  with pytest.raises(UserError, match='expected: a question .* single answers are for train.objective=sft'):
    read(str(answers), True)
  with pytest.raises(UserError, match='pairs are for train.objective=dpo'):
    read(str(chosen), False)
  with pytest.raises(UserError, match=r'gsm8k holds one answer .* `mathqwen data augment gsm8k --pairs 1'):
    read('gsm8k', True)
