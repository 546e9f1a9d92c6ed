"""Data sets in a bucket: prepared from there, read from there, and named when something is missing."""

import json

import pytest

from mathqwen import files
from mathqwen.cli import main
from mathqwen.errors import UserError

ROWS = [{'question': f'{a}+1=', 'answer': f'{a + 1}\n#### {a + 1}'} for a in range(20)]


@pytest.fixture
def data(bucket, tmp_path, monkeypatch):
  """The URL of a --data-dir with GSM8K's layout, and a cache of prepared data sets that is this test's own."""
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  text = ''.join(json.dumps(row) + '\n' for row in ROWS)
  for split in ('train', 'test'):
    (files.path(bucket) / f'data/gsm8k/{split}.jsonl').write_text(text)
  return f'{bucket}/data'


def test_prepared_from_a_bucket(data, nowhere, capsys):
  assert main(['data', 'prepare', 'gsm8k', '--data-dir', data, '--json']) == 0
  (prepared,) = json.loads(capsys.readouterr().out.splitlines()[-1])['prepared']
  assert prepared['splits'] == {'train': 20, 'test': 20} and prepared['source'] == data
  assert main(['data', 'prepare', 'gsm8k', '--data-dir', data]) == 0  # again
  from mathqwen.data import sources

  examples, _ = sources.load('gsm8k', 'test')  # from where `prepare` found them
  assert [example.answer for example in examples] == [str(a + 1) for a in range(20)]


def test_what_is_missing_is_named(data, bucket, fails, nowhere):
  line = fails('data', 'prepare', 'gsm8k', '--data-dir', f'{bucket}/elsewhere')
  assert line.startswith(f'no gsm8k train data in {bucket}/elsewhere: tried gsm8k/train.jsonl')
  line = fails('data', 'inspect', 'gsm8k_small', '--set', f'data.sources={bucket}/none.jsonl')
  assert line.startswith(f'cannot read {bucket}/none.jsonl: no such object; check the path')


def test_patterns_in_any_part_of_a_path(data, bucket, nowhere):
  from mathqwen.data import folders

  def read(pattern):
    return [
      str(path).removeprefix(f'{data}/') for path in folders.data_files(files.path(f'{bucket}/{pattern}'), 'train')
    ]

  (files.path(data) / 'more/x.jsonl').write_text('{}')
  assert read('data/*/train.jsonl') == ['gsm8k/train.jsonl']
  assert read('*/**/*.jsonl') == ['gsm8k/test.jsonl', 'gsm8k/train.jsonl', 'more/x.jsonl']
  assert read('data/*') == ['gsm8k/train.jsonl', 'more/x.jsonl']
  with pytest.raises(UserError, match=f'no file matches; look at the folder {bucket}$'):
    read('data*/none/*.jsonl')


def test_the_cache_is_local(monkeypatch, fails, nowhere, data):
  monkeypatch.setenv('MATHQWEN_CACHE', 'gs://bucket/cache')
  line = fails('data', 'prepare', 'gsm8k', '--data-dir', data)
  assert line.startswith('MATHQWEN_CACHE is gs://bucket/cache: ') and line.endswith('set it to a local directory')
