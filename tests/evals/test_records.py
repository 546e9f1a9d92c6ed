import gzip
import json
import math

import pytest

from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, records


def record(name, correct=True, **more):
  base = {'id': name, 'response': 'r', 'gold': '1', 'extracted': '1', 'truncated': False, 'tokens': 2}
  return base | {'correct': correct} | more


def test_fields_come_first_and_in_order_and_nothing_is_lost():
  line = records.line({'mine': 1, 'truncated': False, 'gold': '½', 'id': 'a', 'response': 'x\ny'})
  assert line == '{"id": "a", "response": "x\\ny", "gold": "½", "truncated": false, "mine": 1}\n'.encode()


def test_lone_surrogate_survives():
  assert json.loads(records.line({'response': 'a\ud800"'}))['response'] == 'a\ud800"'


def test_each_record_is_on_disk_when_write_returns(tmp_path):
  path = tmp_path / 'new' / 'records.jsonl'
  with records.RecordWriter(path) as writer:
    for name in ('a', 'b'):
      writer.write(record(name))
      assert path.read_text().endswith('}\n')
  stored = records.read(path)
  assert [r['id'] for r in stored.records] == ['a', 'b']
  assert (stored.note, stored.size) == (None, path.stat().st_size)


@pytest.mark.parametrize('tail', [b'{"id": "c", "resp', b'\xe7', b'{"id"'])
def test_half_written_last_line_is_dropped_with_a_note_and_overwritten(tmp_path, tail):
  path = tmp_path / 'records.jsonl'
  complete = records.line(record('a')) + records.line(record('b'))
  path.write_bytes(complete + tail)
  stored = records.read(path)
  assert [r['id'] for r in stored.records] == ['a', 'b']
  assert stored.size == len(complete)
  assert stored.note == f'{path}:3: half-written last line dropped'
  with records.RecordWriter(path, stored.size) as writer:
    writer.write(record('c'))
  assert path.read_bytes() == complete + records.line(record('c'))


def test_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
  path = tmp_path / 'records.jsonl'
  path.write_bytes(records.line(record('a')).rstrip(b'\n'))
  stored = records.read(path)
  assert len(stored.records) == 1
  with records.RecordWriter(path, stored.size) as writer:
    writer.write(record('b'))
  assert path.read_bytes() == records.line(record('a')) + records.line(record('b'))


@pytest.mark.parametrize(
  'lines, message',
  [
    (['{"id": "a"', '{}'], r':1: not JSON'),
    (['[' * 100_000, '{}'], r':1: not JSON'),
    (['[1]'], r':1: a record is a JSON object, not list'),
    (['{"id": "a", "response": "r", "gold": "1"}', '', '{"id": "b", "gold": "1"}'], r":3: field 'response' is missing"),
    (['{"id": "a", "response": "r", "gold": 1}'], r":1: field 'gold' is int; it must be text"),
    (['{"id": "a", "response": "r", "gold": " "}'], r":1: field 'gold' is empty"),
    (['{"id": "a", "response": "r", "gold": "1", "benchmark": ["x"]}'], r":1: field 'benchmark' is list"),
    (['{"response": "r", "gold": "1"}'], r":1: field 'id' or 'question' is needed"),
    (['{"question": "q", "id": [1], "response": "r", "gold": "1"}'], r":1: field 'id' is list"),
    (['{"id": 1, "response": "r", "gold": "1", "truncated": "no"}'], r":1: field 'truncated' is str"),
    (['{"id": 1, "response": "r", "gold": "1", "extra": []}'], r":1: field 'extra' is list"),
    (['{"id": "a", "response": "r", "gold": "1"}'] * 2, r":2: id 'a' is already in line 1"),
  ],
)
def test_malformed_lines_are_named(tmp_path, lines, message):
  path = tmp_path / 'records.jsonl'
  path.write_text('\n'.join(lines) + '\n')
  with pytest.raises(UserError, match=message):
    records.read(path)


def test_bad_lines_are_counted_and_all_named(tmp_path):
  path = tmp_path / 'records.jsonl'
  good = records.line(record('a')).decode()
  path.write_text(good + '[1]\n' + good + '{"id": ["x"], "response": "r", "gold": "1"}\n')
  before = path.read_bytes()
  with pytest.raises(UserError) as caught:
    records.read(path)
  message = str(caught.value)
  assert message.startswith(f'{path}:2: a record is') and message.endswith(
    '; 3 bad lines in all, correct or delete them'
  )
  assert (
    "; line 3: id 'a' is already in line 1; ids must be unique; line 4: field 'id'" in message and '\n' not in message
  )
  path.write_bytes(before + b'[]\n' * 9)
  with pytest.raises(UserError, match='; line 6: [^;]*; 12 bad lines in all, correct or delete them'):
    records.read(path)
  assert path.read_bytes() == before + b'[]\n' * 9


def test_unreadable_files(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    records.read(tmp_path / 'none.jsonl')
  with pytest.raises(UserError, match='is a directory'):
    records.read(tmp_path)
  half = tmp_path / 'half.jsonl.gz'
  half.write_bytes(gzip.compress(records.line(record('a')) * 100)[:-9])
  with pytest.raises(UserError, match='cannot be read'):
    records.read(half)
  complete = tmp_path / 'whole.jsonl.gz'
  complete.write_bytes(gzip.compress(records.line(record('a'))))
  assert len(records.read(complete).records) == 1


def test_scores_are_written_completely_or_not_at_all(tmp_path):
  path = tmp_path / 'scores.json'
  records.write_json(path, {'n': 1})
  with pytest.raises(TypeError):
    records.write_json(path, {'n': object()})
  assert records.read_json(path) == {'n': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['scores.json']
  path.write_text('{')
  with pytest.raises(UserError, match='scores.json: not JSON'):
    records.read_json(path)


def test_summary():
  rows = [
    record('a', True, extra={'group': 'g 10'}),
    record('b', False, extracted=None, extra={'group': 'g 10'}),
    record('c', True, extra={'group': 'g 2'}, extracted='1.0005'),
    record('d', False, extra={'group': 'g 2'}, extracted='3', truncated=True),
  ]
  scores = records.summarise(rows, benchmarks.get('math401'), 'math401')
  assert scores['n'] == 4 and scores['correct'] == 2 and scores['accuracy'] == 0.5
  assert scores['stderr'] == pytest.approx(math.sqrt(0.5 * 0.5 / 4))
  assert (scores['unextractable'], scores['truncated'], scores['rule']) == (1, 1, 'math401')
  assert scores['relative_error'] == pytest.approx((0 + 10 + 0.0005 + 2) / 4)
  assert scores['non_number_ratio'] == 0.25
  assert list(scores['by_group'].items()) == [
    ('g 2', {'n': 2, 'correct': 1, 'accuracy': 0.5}),
    ('g 10', {'n': 2, 'correct': 1, 'accuracy': 0.5}),
  ]


def test_summary_does_not_invent_what_records_do_not_say():
  rows = [{'id': 'a', 'response': '', 'gold': '1', 'correct': False, 'extracted': None}]
  scores = records.summarise(rows, benchmarks.get('gsm8k'), 'number')
  assert scores['truncated'] is None and 'by_group' not in scores and 'relative_error' not in scores


def test_levels_that_are_not_numbers():
  names = ['Level ²', 'Level 10', 'Level 2', 'Level ' + '9' * 5_000]
  rows = [record(str(i), extra={'level': name}) for i, name in enumerate(names)]
  found = list(records.summarise(rows, benchmarks.get('math'), 'math')['by_group'])
  assert found.index('Level 2') < found.index('Level 10') and sorted(found) == sorted(names)
