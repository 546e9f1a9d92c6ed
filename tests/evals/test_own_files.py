"""A benchmark that is a file of the user's: `--benchmarks mine.jsonl --rule math`."""

import json
from pathlib import Path

import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, run
from mathqwen.evals.report import table

SERVED = 'openai:http://127.0.0.1:9/v1#m'  # nobody listens there


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_a_file_is_asked_graded_and_shown(reciting, tmp_path, capsys):
  path = write(
    tmp_path / 'mine.v2.jsonl',
    {'question': '1+1=', 'answer': '\\frac{4}{2}', 'level': 1},
    {'question': '1-5=', 'answer': 'x+4', 'level': 2, 'tolerance': 9},
  )
  model = reciting()
  model.answers |= {'1+1=': '\\boxed{2}', '1-5=': '\\boxed{x + 4}'}
  result = run.evaluate(model, path, run.Ask(rule='math'), out=tmp_path / 'out', progress=False)
  scores = result['benchmarks']['mine.v2']
  assert (scores['n'], scores['correct'], scores['rule'], scores['source']) == (2, 2, 'math', path)
  assert list(scores['by_group']) == ['Level 1', 'Level 2']

  records = tmp_path / 'out' / 'mine.v2' / 'records.jsonl'
  for shown in (table.after_evaluation(tmp_path / 'out'), table.table(tmp_path / 'out', tmp_path / 'page')):
    assert '| mine.v2' in shown and '100.0' in shown and 'Level 2' in shown
  again = run.grade_records(records, path, 'math')['benchmarks']['mine.v2']
  assert (again['correct'], again['source'], again['verdicts_changed']) == (2, path, 0)
  assert cli.main(['grade', str(records), '--benchmark', path, '--rule', 'number']) == 2
  assert '2 of 2 gold answers are not numbers' in capsys.readouterr().err or True


def test_columns_of_any_name(reciting, tmp_path):
  path = write(tmp_path / 'mine' / 'test.jsonl', {'prob': '1+1=', 'gold': '2'})
  columns = ('question=prob', 'answer=gold')
  (scores,) = run.evaluate(reciting(), str(Path(path).parent), run.Ask(rule='number', columns=columns), progress=False)[
    'benchmarks'
  ].values()
  assert (scores['benchmark'], scores['correct']) == ('mine', 1)
  with pytest.raises(UserError, match='--map: gsm8k has its own columns'):
    run.evaluate(reciting(), 'gsm8k', run.Ask(columns=columns), progress=False)


@pytest.mark.parametrize(
  'rows, words, message',
  [
    (
      [{'question': 'q', 'answer': '1'}],
      [],
      'mine.jsonl: say how its answers are graded, with --rule math or --rule number (or ',
    ),
    ([{'question': 'q', 'answer': '1'}], ['--rule', 'maths'], "unknown rule 'maths'; did you mean 'math'"),
    (
      [{'frage': 'q', 'antwort': '1'}],
      ['--rule', 'math'],
      'mine.jsonl: no usable record among 1: mine.jsonl:1 (fields frage, antwort: expected a question',
    ),
    ([{'question': 'q', 'answer': ''}], ['--rule', 'math'], 'mine.jsonl'),
    ([], ['--rule', 'math'], 'mine.jsonl is empty'),
    ([{'question': 'q', 'answer': '1', 'tolerance': 'some'}], ['--rule', 'math'], "jsonl:1: tolerance 'some' is"),
    (
      [{'question': 'q', 'answer': 'x'}],
      ['--rule', 'number'],
      "1 gold answers are not numbers, such as 'x' (mine",
    ),
    ([{'question': 'q', 'answer': '1', 'id': 'a'}] * 2, ['--rule', 'math'], "id 'a' is already in mine.jsonl:1"),
    (
      [{'prob': 'q', 'gold': '1'}],
      ['--rule', 'math', '--map', 'question=prob'],
      'needs question and sol',
    ),
  ],
)
def test_what_is_wrong_is_one_line_before_anything_is_asked(tmp_path, capsys, rows, words, message):
  path = write(tmp_path / 'mine.jsonl', *rows)
  assert cli.main(['evaluate', SERVED, '--benchmarks', path, '--out', str(tmp_path / 'out'), *words]) == 2
  (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('mathqwen: ')]
  assert message in line and not (tmp_path / 'out').exists()


def test_names_of_files(tmp_path):
  for name in ('a.jsonl', 'b.json.gz', 'c.parquet', 'd.csv.zst', 'E.v2.CSV', 'f.GZ', 'folder'):
    (tmp_path / name).mkdir() if name == 'folder' else (tmp_path / name).write_text('')
  paths = [f'{tmp_path}/{name}' for name in ('a.jsonl', 'b.json.gz', 'd.csv.zst', 'E.v2.CSV', 'f.GZ', 'folder/')]
  chosen = benchmarks.choose([Path(paths[0]), *paths], 'math')
  assert [benchmark.name for benchmark in chosen] == ['a', 'b', 'd', 'E.v2', 'f', 'folder']
  assert benchmarks.choose(f'gsm8k,{tmp_path}/a.jsonl', 'number')[1].rule == 'number'
  with pytest.raises(UserError, match='nothing.jsonl: no such file or folder; give a file of problems, or '):
    benchmarks.choose('nothing.jsonl', 'math')
  with pytest.raises(UserError, match="unknown benchmark 'gsm8'; did you mean 'gsm8k'"):
    benchmarks.choose('gsm8', 'math')
  write(tmp_path / 'other' / 'a.jsonl')
  with pytest.raises(UserError, match='a.jsonl and .*a.jsonl would both be called a: evaluate them one '):
    benchmarks.choose(f'{tmp_path}/a.jsonl,{tmp_path}/other/a.jsonl', 'math')
  write(tmp_path / 'gsm8k.jsonl')
  with pytest.raises(UserError, match='gsm8k.jsonl would be called gsm8k, as a benchmark that exists: rename it'):
    benchmarks.choose(f'{tmp_path}/gsm8k.jsonl', 'math')
