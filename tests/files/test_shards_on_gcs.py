"""Shards in a bucket: written there, and read through copies that this machine keeps."""

import json

import pytest

from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.cli import main
from mathqwen.data import shards
from mathqwen.data.shard_reader import Shards
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer

ROWS = [{'question': f'{a}+1=', 'answer': f'{a + 1}\n#### {a + 1}'} for a in range(40)]


@pytest.fixture
def rows(tmp_path, monkeypatch):
  """A file of ROWS, with an empty cache."""
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  return str(tmp_path / 'rows.jsonl')


def test_made_in_a_bucket_and_read_from_there(rows, bucket, nowhere, tmp_path, capsys):
  folder = f'{bucket}/shards'
  pytest.importorskip('apache_beam', reason='the extra `beam` is not installed')
  words = [f'--set=data.sources={rows}', '--out', folder, '--tokenizer', 'arithmetic', '--json']
  assert main(['data', 'clean', 'gsm8k_small', *words]) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['shards']['examples'] == 40
  names = {path.name for path in files.path(folder).iterdir()}
  assert {'card.json', 'data-00000.array_record', 'prompts-00000.array_record'} <= names
  assert main(['data', 'inspect', 'gsm8k_small', f'--set=data.sources={folder}', '--json']) == 0
  said = capsys.readouterr()
  assert json.loads(said.out.splitlines()[-1])['sources'][folder]['rows'] == 40
  assert said.err.count('fetching ') == 2  # each file once, for statistics and batches


def test_copies_of_other_shards_are_not_taken(rows, bucket, tmp_path, monkeypatch):
  """Damaged copies are fetched again; what is damaged in the bucket is refused, and what has no room here."""
  folder = f'{bucket}/shards'
  tokenizer, chat = load_tokenizer(), ChatFormat()
  with shards.Writer(folder, tokenizer, chat, seq_len=64) as writer:
    for number, row in enumerate(ROWS):
      turns = [{'role': 'user', 'content': row['question']}, {'role': 'assistant', 'content': row['answer']}]
      writer.add(*chat.template.render_batch([turns], tokenizer)[0], f'rows.jsonl:{number + 1}', rows)
  read = Shards(folder)
  first = read[0][0].tolist()
  (copy,) = (tmp_path / 'cache' / 'shards').rglob('data-*')
  content = copy.read_bytes()
  for damaged in (content[:-9], b'x' + content[1:]):
    copy.write_bytes(damaged)
    assert Shards(folder)[0][0].tolist() == first and copy.read_bytes() == content
  (files.path(folder) / copy.name).write_bytes(b'x' + content[1:])
  copy.unlink()
  with pytest.raises(UserError, match='data-00000.array_record is damaged .*not the file that the card lists'):
    Shards(folder)[0]

  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'other'))
  monkeypatch.setattr(files, 'free_bytes', lambda path: 100)
  with pytest.raises(UserError, match='MATHQWEN_CACHE to a larger disk, or mount the bucket'):
    Shards(folder)
  (files.path(folder) / 'card.json').unlink()
  with pytest.raises(UserError, match='has no card'):
    Shards(folder)
