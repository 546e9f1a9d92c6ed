"""What an evaluation keeps in its directory: interrupted, continued, damaged, locked, on several hosts."""

import contextlib
import errno
import json
import resource
from pathlib import Path

import pytest
from reciting import evaluate, lines
from two_hosts import on_two_hosts

from mathqwen.errors import UserError
from mathqwen.evals import records, run
from mathqwen.evals.report import table
from mathqwen.files import locks


@pytest.mark.parametrize('answers', [0, 1, 2, 3])
def test_interrupted_run_continues_after_the_last_finished_record(reciting, data_dir, tmp_path, answers):
  complete, out = tmp_path / 'complete', tmp_path / 'out'
  evaluate(reciting(), complete, data_dir, batch_size=2)
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=answers), out, data_dir, batch_size=2)
  path = out / 'arithmetic' / 'records.jsonl'
  assert len(lines(out)) == answers and not (out / 'arithmetic' / 'scores.json').exists()
  with open(path, 'ab') as file:
    file.write(b'{"id": "arith')  # killed while writing
  model = reciting()
  scores = evaluate(model, out, data_dir, batch_size=2)['benchmarks']['arithmetic']
  assert (sum(model.asked), scores['resumed'], scores['n']) == (4 - answers, answers, 4)
  assert path.read_bytes() == (complete / 'arithmetic' / 'records.jsonl').read_bytes()


def test_one_host_continues_what_several_began(reciting, data_dir, tmp_path, capsys):
  complete, out = tmp_path / 'complete', tmp_path / 'out'
  evaluate(reciting(), complete, data_dir)
  evaluate(reciting(), out, data_dir)
  rows = (complete / 'arithmetic' / 'records.jsonl').read_bytes().splitlines(keepends=True)
  changed = rows[0].replace(b'the answer is', b'another host said')  # host 0's own counts
  for name, part in {'': rows[:1], '.3': [changed, *rows[2:3]], '.10': [*rows[2:], b'{"id": "arith']}.items():
    (out / 'arithmetic' / f'records{name}.jsonl').write_bytes(b''.join(part))
  model = reciting()
  scores = evaluate(model, out, data_dir)['benchmarks']['arithmetic']
  assert (sum(model.asked), scores['resumed'], scores['n']) == (1, 3, 4)
  assert (out / 'arithmetic' / 'records.jsonl').read_bytes() == b''.join(rows)
  assert 'records.10.jsonl:3: half-written last line dropped' in capsys.readouterr().err
  (out / 'arithmetic' / 'settings.json').unlink()
  (out / 'arithmetic' / 'records.jsonl').unlink()
  with pytest.raises(UserError, match='records.3.jsonl is there without settings.json'):
    evaluate(model, out, data_dir)


@pytest.mark.parametrize('disks', [['shared', 'shared'], ['own 0', 'own 1']])
@pytest.mark.parametrize('first', ['nothing', 'unanswered', 'host 0', 'host 1', 'both'])
def test_two_hosts(reciting, data_dir, tmp_path, monkeypatch, disks, first):
  evaluate(reciting(), tmp_path / 'complete', data_dir)
  complete = (tmp_path / 'complete' / 'arithmetic' / 'records.jsonl').read_bytes()
  out = [tmp_path / disk for disk in disks]
  for number in (0, 1):  # what an earlier run left
    folder = out[number] / 'arithmetic'
    folder.mkdir(parents=True, exist_ok=True)
    if first in (f'host {number}', 'both'):
      name = 'records.1.jsonl' if number else 'records.jsonl'
      (folder / name).write_bytes(complete.splitlines(keepends=True)[2 - number])
      if first == 'both' and number == 1 and disks[0] != disks[1]:  # which host 0 has, too, and counts
        with (folder / name).open('ab') as file:
          file.write(complete.splitlines(keepends=True)[2].replace(b'I cannot say.', b'It is 7.'))
      settings = (tmp_path / 'complete' / 'arithmetic' / 'settings.json').read_bytes()
      (folder / 'settings.json').write_bytes(settings)
  if first == 'unanswered':
    (out[0] / 'arithmetic' / 'unanswered.json').write_text('{"arithmetic/test/0": "no"}')
  models = [reciting(), reciting()]
  work = lambda number: evaluate(models[number], out[number], data_dir)['benchmarks']['arithmetic']
  scores = on_two_hosts(monkeypatch, work)
  known = {'nothing': 0, 'unanswered': 0, 'host 0': 1, 'host 1': 1, 'both': 2}[first]
  assert sum(models[0].asked) + sum(models[1].asked) == 4 - known
  assert [(one['n'], one['correct'], one['resumed']) for one in scores] == [(4, 3, known)] * 2
  assert (out[0] / 'arithmetic' / 'records.jsonl').read_bytes() == complete
  assert evaluate(reciting(stops_after=0), out[0], data_dir)['benchmarks']['arithmetic']['n'] == 4


def test_finished_run_is_not_generated_again(reciting, data_dir, tmp_path):
  first = evaluate(reciting(), tmp_path, data_dir)['benchmarks']
  model = reciting()
  assert evaluate(model, tmp_path, data_dir)['benchmarks'] == first
  assert sum(model.asked) == 0


@pytest.mark.parametrize(
  'change, kwargs, message',
  [
    ({'name': 'other'}, {}, "model 'reciting' there and 'other' now"),
    ({}, {'max_new_tokens': 7}, 'max_new_tokens 64 there and 7 now'),
    ({}, {'limit': 2}, 'limit None there and 2 now'),
    ({}, {'prompt': 'qwen-chat'}, "prompt 'chatml' there and 'qwen-chat' now"),
  ],
)
def test_another_run_in_the_same_directory_is_refused(reciting, data_dir, tmp_path, change, kwargs, message):
  evaluate(reciting(), tmp_path, data_dir)
  before = (tmp_path / 'arithmetic' / 'records.jsonl').read_bytes()
  model = reciting(**change)
  with pytest.raises(UserError, match=message):
    evaluate(model, tmp_path, data_dir, **kwargs)
  assert sum(model.asked) == 0
  assert (tmp_path / 'arithmetic' / 'records.jsonl').read_bytes() == before


def test_verdicts_of_another_rule_are_not_taken_over(reciting, data_dir, tmp_path):
  first = evaluate(reciting(), tmp_path, data_dir)['benchmarks']
  run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', rule='abel', out=tmp_path)
  assert not any(row['correct'] for row in lines(tmp_path))
  again = evaluate(reciting(), tmp_path, data_dir)['benchmarks']
  assert again['arithmetic']['correct'] == first['arithmetic']['correct'] == 3
  assert sum(row['correct'] for row in lines(tmp_path)) == 3


def test_stored_record_that_lacks_a_field_is_named(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  rows = [{key: value for key, value in row.items() if key != 'tokens'} for row in lines(tmp_path)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with pytest.raises(UserError, match=":1: field 'tokens' is missing; line 2: .*; 4 bad lines"):
    evaluate(reciting(), tmp_path, data_dir)


@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda rows: [rows[0], '{"id": 5', *rows[1:]], ':2: not JSON'),
    (lambda rows: [*rows[:2], rows[0], *rows[2:]], ":3: id 'arithmetic/test/0' is already in line 1"),
    (
      lambda rows: ['7', rows[0].replace('"response"', '"reply"'), *rows[1:]],
      ':1: .*not int; line 2: .*response.*; 2 bad lines in all',
    ),
  ],
)
def test_a_damaged_record_is_named_and_none_is_lost(reciting, data_dir, tmp_path, spoil, message):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  path.write_text('\n'.join(spoil(path.read_text().splitlines())) + '\n')
  before, model = {p: p.read_bytes() for p in path.parent.iterdir()}, reciting()
  for again in (
    lambda: evaluate(model, tmp_path, data_dir),
    lambda: run.grade_records(path, 'arithmetic', out=tmp_path),
  ):
    with pytest.raises(UserError, match=message):
      again()
  assert sum(model.asked) == 0 and {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_one_evaluation_writes_to_a_directory_at_a_time(reciting, data_dir, tmp_path):
  first, second = reciting(), reciting()
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  with run.prepare(first, 'arithmetic', run.Ask(data_dir), tmp_path / 'out') as prepared:
    for other in (
      lambda: evaluate(second, tmp_path / 'out', data_dir),
      lambda: run.grade_records(tmp_path / 'r.jsonl', 'arithmetic', out=tmp_path / 'out'),
    ):
      with pytest.raises(
        UserError, match='out/arithmetic: another evaluation is writing here .process .*; wait for it'
      ):
        other()
    run.run(first, prepared, progress=False)
  assert len(lines(tmp_path / 'out')) == 4 and sum(second.asked) == 0
  assert evaluate(second, tmp_path / 'out', data_dir)['benchmarks']['arithmetic']['resumed'] == 0  # and it is let go


def test_grading_during_an_evaluation_loses_no_answer(reciting, data_dir, tmp_path, monkeypatch):
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=2), tmp_path, data_dir)
  judge = run.graders.judge

  def slow(rows, rule):
    monkeypatch.undo()
    with pytest.raises(UserError, match='another evaluation is writing here'):
      evaluate(reciting(), tmp_path, data_dir)
    return judge(rows, rule)

  monkeypatch.setattr(run.graders, 'judge', slow)
  graded = run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  assert graded['benchmarks']['arithmetic']['n'] == 2
  scores = tmp_path / 'arithmetic' / 'scores.json'
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=1), tmp_path, data_dir)
  assert not scores.exists()  # scores of a part do not cover the records any more
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['resumed'] == 3
  assert json.loads(scores.read_text())['decoding']['batch_size'] == 64


def test_settings_may_change_while_there_is_no_answer(reciting, data_dir, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=0, name='mistyped'), tmp_path, data_dir)
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['model'] == 'reciting'
  assert json.loads((tmp_path / 'arithmetic' / 'settings.json').read_text())['model'] == 'reciting'


@pytest.mark.parametrize('text', ['', '{"n": ', '[]'])
def test_damaged_scores_are_written_again(reciting, data_dir, tmp_path, text):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'scores.json'
  complete = json.loads(path.read_text())
  for again in (
    lambda: evaluate(reciting(), tmp_path, data_dir),
    lambda: run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path),
  ):
    path.write_text(text)
    again()
    repaired = json.loads(path.read_text())
    assert all(repaired[key] == complete[key] for key in ('n', 'correct', 'model', 'prompt', 'tokens'))


def test_a_run_that_was_killed_at_its_end_is_finished_by_the_next(reciting, data_dir, tmp_path):
  complete = evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']
  (tmp_path / 'arithmetic' / 'scores.json').unlink()
  run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  scores = evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']
  assert (scores['decoding'], scores['resumed']) == (complete['decoding'], 4)


def test_a_part_that_is_graded_is_not_finished(reciting, data_dir, tmp_path, capsys):
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=3), tmp_path, data_dir)
  for _ in range(2):
    run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  assert '(n = 3)' in table.table([tmp_path])
  message = f'{tmp_path}/arithmetic: not finished; the scores are of what is answered so far'
  assert message in capsys.readouterr().err
  evaluate(reciting(), tmp_path, data_dir)
  run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  table.table([tmp_path])
  assert 'not finished' not in capsys.readouterr().err


def test_killed_twice(reciting, data_dir, tmp_path):
  for answers in (1, 2):
    with pytest.raises(KeyboardInterrupt):
      evaluate(reciting(stops_after=1), tmp_path, data_dir)
    assert len(lines(tmp_path)) == answers
  evaluate(reciting(), tmp_path, data_dir)
  assert len(lines(tmp_path)) == 4


def test_a_refused_directory_releases_every_lock(reciting, data_dir, tmp_path):
  (Path(data_dir) / 'gsm8k').mkdir()
  (Path(data_dir) / 'gsm8k' / 'test.jsonl').write_text('{"question": "1+1=", "answer": "#### 2"}\n')
  evaluate(reciting(), tmp_path, data_dir, 'gsm8k')
  traceback = None
  try:
    evaluate(reciting(), tmp_path, data_dir, 'arithmetic,gsm8k', max_new_tokens=3)
  except UserError as error:
    traceback = error.__traceback__  # as a notebook keeps it, with the frames that hold the directories
  assert traceback and evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['n'] == 4


def test_a_file_system_without_locks(reciting, data_dir, tmp_path, monkeypatch):
  def none(*_):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(locks.fcntl, 'flock', none)
  with run.prepare(reciting(), 'arithmetic', run.Ask(data_dir), tmp_path) as prepared:
    with pytest.raises(UserError, match='another evaluation is writing here .process .*; wait for it'):
      evaluate(reciting(), tmp_path, data_dir)
    assert run.run(reciting(), prepared, progress=False)['benchmarks']['arithmetic']['n'] == 4


def test_an_interrupted_run_releases_its_lock(reciting, data_dir, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=1), tmp_path, data_dir)
  before = (tmp_path / 'arithmetic' / 'settings.json').stat()
  evaluate(reciting(), tmp_path, data_dir)
  assert (tmp_path / 'arithmetic' / 'settings.json').stat() == before  # not written again
  with pytest.raises(UserError, match='holds another run'):
    evaluate(reciting(), tmp_path, data_dir, limit=1)
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['n'] == 4


@contextlib.contextmanager
def files_of_at_most(size):
  """As on a disk that is full: what goes beyond is not written."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_file_and_leaves_no_pieces(reciting, data_dir, tmp_path):
  complete, out = tmp_path / 'complete', tmp_path / 'out'
  evaluate(reciting(), complete, data_dir)
  names = ['records.jsonl', 'scores.json', 'settings.json']
  for size, name, left in ((50, 'settings.json', 0), (700, 'records.jsonl', 1), (1400, 'records.jsonl', 3)):
    with files_of_at_most(size), pytest.raises(OSError) as caught:
      evaluate(reciting(), out, data_dir)
    assert caught.value.filename == str(out / 'arithmetic' / name)
    found = sorted(path.name for path in (out / 'arithmetic').iterdir()) if out.exists() else []
    assert found == (names[::2] if left else [])
    if left:
      assert len(records.read(out / 'arithmetic' / 'records.jsonl').records) == left
  assert evaluate(reciting(), out, data_dir)['benchmarks']['arithmetic']['resumed'] == 3
  assert (out / 'arithmetic' / 'records.jsonl').read_bytes() == (complete / 'arithmetic' / 'records.jsonl').read_bytes()
  with files_of_at_most(700), pytest.raises(OSError):
    run.grade_records(out / 'arithmetic' / 'records.jsonl', 'arithmetic', 'abel', out=tmp_path / 'graded')
  assert list((tmp_path / 'graded' / 'arithmetic').iterdir()) == []


@pytest.mark.parametrize('text, message', [('', 'not JSON'), ('{"model": ', 'not JSON'), ('[]', 'holds list')])
def test_damaged_settings(reciting, data_dir, tmp_path, text, message):
  evaluate(reciting(), tmp_path, data_dir)
  (tmp_path / 'arithmetic' / 'settings.json').write_text(text)
  with pytest.raises(
    UserError, match=rf'settings.json: {message}.*what is there cannot be continued; give another --out'
  ):
    evaluate(reciting(), tmp_path, data_dir)


@pytest.mark.parametrize('field, value', [('tokens', '12'), ('tokens', [1]), ('truncated', 1)])
def test_a_field_of_another_kind_is_named(reciting, data_dir, tmp_path, field, value):
  evaluate(reciting(), tmp_path, data_dir)
  rows = lines(tmp_path)
  rows[1][field] = value
  (tmp_path / 'arithmetic' / 'records.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with pytest.raises(UserError, match=rf":2: field '{field}' is {type(value).__name__}; correct or delete the line"):
    evaluate(reciting(), tmp_path, data_dir)


def test_an_empty_out_is_refused(reciting, data_dir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  before, model = sorted(tmp_path.rglob('*')), reciting()
  with pytest.raises(UserError, match='--out is empty'):
    evaluate(model, '', data_dir)
  with pytest.raises(UserError, match='--out is empty'):
    run.grade_records('r.jsonl', 'gsm8k', out='')
  assert sum(model.asked) == 0 and sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('where', ['data', 'records'])
def test_another_gold_answer_in_the_same_directory_is_refused(reciting, data_dir, tmp_path, where):
  evaluate(reciting(), tmp_path / 'out', data_dir)
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  if where == 'records':
    path = tmp_path / 'out' / 'arithmetic' / 'records.jsonl'
  old, new = ('"gold": "6"', '"gold": "7"') if where == 'records' else ('"response": "6"', '"response": "7"')
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))
  there, now = ("'7'", "'6'") if where == 'records' else ("'6'", "'7'")
  with pytest.raises(UserError, match=f"gold answer to 'arithmetic/test/1' is {there} there and {now} in this data"):
    evaluate(reciting(), tmp_path / 'out', data_dir)


def test_other_data_in_the_same_directory_is_refused(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path / 'out', data_dir)
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text().replace('1+1=', '1+2='))
  with pytest.raises(UserError, match='is not a problem of this data'):
    evaluate(reciting(), tmp_path / 'out', data_dir)
