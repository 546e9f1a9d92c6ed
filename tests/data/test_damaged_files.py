"""What `load` leaves out of damaged files, what it says about them, and which it refuses."""

import gzip
import json

import pytest
from json_lines import write_lines

from mathqwen.data import examples
from mathqwen.data.examples import Report
from mathqwen.data.sources import load
from mathqwen.errors import UserError


def test_malformed_and_duplicate_rows_are_left_out_by_line(tmp_path):
  good = {'query': '1+1=', 'response': '2'}
  path = write_lines(
    tmp_path / 'a.jsonl',
    good,
    '{"query": "2+2="',
    '',
    {'query': '3+3=', 'response': ''},
    good,
    '[1]',
    r'{"query": "\ud800", "response": "1"}',
    {'query': 'u\u2028v', 'response': '6'},
  )
  kept, report = load(str(path))
  assert [e.where for e in kept] == ['a.jsonl:1', 'a.jsonl:8'] and kept[1].question == 'u\u2028v'
  assert report.counts == {'malformed': 4, 'duplicate': 1}
  malformed, duplicate = report.lines()
  assert malformed.startswith('4 malformed: a.jsonl:2 (not JSON: ')
  assert 'a.jsonl:4 (field "response" is empty), a.jsonl:6 (not a JSON object but a list: name ' in malformed
  assert duplicate == '1 duplicate: a.jsonl:5 (same as a.jsonl:1)'
  assert report.lines(limit=1)[0].endswith(', ...')
  with pytest.raises(UserError, match=r'a\.jsonl:2: not JSON'):
    load(str(path), strict=True)


def test_strict_keeps_duplicates(tmp_path):
  row = {'query': '1+1=', 'response': '2'}
  kept, report = load(str(write_lines(tmp_path / 'a.jsonl', row, row)), strict=True)
  assert len(kept) == 2 and report.lines() == ['1 duplicate: a.jsonl:2 (same as a.jsonl:1)']


def test_last_line_without_its_end(tmp_path):
  row = {'query': '1+1=', 'response': '2'}
  assert len(load(str(write_lines(tmp_path / 'a.jsonl', row, end='')))[0]) == 1  # complete JSON, no final newline
  with pytest.raises(UserError, match=r'a\.jsonl:2: the last line is half-written'):
    load(str(write_lines(tmp_path / 'a.jsonl', row, '{"query": "2+', end='')))


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize(
  'content, words',
  [
    (b'', 'empty'),
    (b'\n \n', 'empty'),
    (gzip.compress(b'{"query": "1=", "response": "1"}\n' * 99, mtime=0)[:-9], 'half-written'),
    (gzip.compress(b'{}\n', mtime=0)[:4], 'half-written'),
    (b'{"query": "\xff"}\n', 'a.jsonl:1: not UTF-8'),
    (
      b'{"text": "t", "label": 1}\n' * 3,
      r'no usable record among 3: a.jsonl:1 \(.*\); fields found: text, label; expected: {messages}, {conv',
    ),
  ],
)
def test_files_without_usable_records(content, words, strict, tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(content)
  with pytest.raises(UserError, match=words) as caught:
    load(str(tmp_path / 'a.jsonl'), strict=strict)
  assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


def test_missing_files_and_names(tmp_path):
  with pytest.raises(UserError, match="unknown data set 'gms8k'.*gsm8k"):
    load('gms8k', 'train', str(tmp_path))
  with pytest.raises(UserError, match='cannot read .*none.jsonl: No such file'):
    load(str(tmp_path / 'none.jsonl'))
  with pytest.raises(UserError, match='no file of records in this folder'):
    load(str(tmp_path))
  with pytest.raises(UserError, match='tried gsm8k/train.jsonl, gsm8k/train.jsonl.gz'):
    examples.find('gsm8k', 'train', tmp_path)
  with pytest.raises(UserError, match="no split 'valid'"):
    examples.find('gsm8k', 'valid', tmp_path)


def test_byte_order_mark_and_windows_lines(tmp_path):
  rows = '\ufeff{"query": "1=", "response": "1"}\r\n{"query": "2=", "response": "2"}\r\n'
  (tmp_path / 'a.jsonl').write_bytes(rows.encode())
  kept, report = load(str(tmp_path / 'a.jsonl'))
  assert len(kept) == 2 and not report.counts


def test_reports_merge_and_travel():
  a, b = Report(), Report()
  a.add('malformed', 'x:1', 'why')
  for n in range(300):
    b.add('malformed', f'y:{n}')
  b.add('too_long', 'y:1')
  a.merge(b)
  assert a.counts == {'malformed': 301, 'too_long': 1} and len(a.rows['malformed']) <= 100
  again = Report.from_dict(json.loads(json.dumps(a.to_dict())))
  assert again.lines() == a.lines() and again.counts == a.counts
  assert a.lines(2) == ['301 malformed: x:1 (why), y:0, ...', '1 too_long: y:1']
