"""`mathqwen grade` and `mathqwen table`: what they read, refuse and return."""

import json

import pytest

from mathqwen import cli

KEYS = {'n', 'correct', 'accuracy', 'stderr', 'unextractable', 'truncated', 'rule', 'prompt'}


def test_grade_json(evaluated, capsys):
  result, out = evaluated
  assert cli.main(['grade', str(out / 'arithmetic' / 'records.jsonl'), '--benchmark', 'arithmetic', '--json']) == 0
  again = json.loads(capsys.readouterr().out.splitlines()[-1])['benchmarks']['arithmetic']
  assert set(again) >= KEYS
  assert {key: again[key] for key in KEYS} == {key: result['benchmarks']['arithmetic'][key] for key in KEYS}


@pytest.mark.parametrize(
  'text, message',
  [
    (None, 'no such file; give a records.jsonl'),
    ('', 'no records in it; give the records.jsonl of an evaluation'),
    ('rubbish\n{}\n', ':1: not JSON'),
    ('[]\n', ':1: a record is a JSON object, not list'),
    ('{"id": "a", "response": "3"}\n', ":1: field 'gold' is missing"),
    ('{"id": "a", "response": 3, "gold": "3"}\n', ":1: field 'response' is int; it must be text"),
    ('{"response": "3", "gold": "3"}\n', ":1: field 'id' or 'question' is needed"),
  ],
)
def test_grade(fails, tmp_path, text, message):
  path = tmp_path / 'records.jsonl'
  if text is not None:
    path.write_text(text)
  error = fails('grade', path, '--benchmark', 'gsm8k', '--out', tmp_path / 'out')
  assert error.startswith(str(path)) and message in error
  assert not (tmp_path / 'out').exists()


def test_grade_names(fails, evaluated):
  path = evaluated[1] / 'arithmetic' / 'records.jsonl'
  assert "unknown benchmark 'gsm8'; did you mean 'gsm8k'?" in fails('grade', path, '--benchmark', 'gsm8')
  assert "unknown rule 'numbr'; did you mean 'number'?" in fails(
    'grade', path, '--benchmark', 'gsm8k', '--rule', 'numbr'
  )


def test_table(fails, evaluated, tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'no.json').write_text('{"a": 1}')
  (tmp_path / 'half.json').write_text('{"benchm')
  for path, message in [
    ('empty', 'no scores.json below it; give the --out directory of an evaluation'),
    ('none', 'no such file'),
    ('no.json', "field 'benchmark' is missing; evaluate or grade again to write it"),
    ('half.json', 'not JSON'),
  ]:
    error = fails('table', tmp_path / path)
    assert error.startswith(f'{tmp_path / path}: {message}')
  assert cli.main(['table', str(evaluated[1])]) == 0
  assert 'Math-Qwen-Chat' in capsys.readouterr().out
