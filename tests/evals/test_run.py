"""From prompts to scores with a model that recites; interrupted, resumed, refused, graded again."""

import concurrent.futures
import contextlib
import errno
import json
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals import records, run
from mathqwen.evals.report import table

ROOT = Path(__file__).parents[2]


def lines(out):
  return [json.loads(line) for line in (out / 'arithmetic' / 'records.jsonl').read_text().splitlines()]


def evaluate(model, out, data_dir, names='arithmetic', batch_size=64, **ask):
  ask = run.Ask(data_dir=data_dir, **ask)
  return run.evaluate(model, names, ask, out=out, batch_size=batch_size, progress=False)


def test_evaluate(reciting, data_dir, tmp_path):
  result = evaluate(reciting(), tmp_path / 'out', data_dir, batch_size=3)
  scores = result['benchmarks']['arithmetic']
  wanted = {'n': 4, 'correct': 3, 'accuracy': 0.75, 'unextractable': 1, 'truncated': 0, 'rule': 'math401'}
  wanted |= {'prompt': 'chatml', 'model': 'reciting', 'dtype': 'float32', 'resumed': 0, 'limit': None}
  assert {key: scores[key] for key in wanted} == wanted
  assert scores['by_group']['add'] == {'n': 2, 'correct': 1, 'accuracy': 0.5}
  assert scores['decoding'] == {
    'temperature': 0.0, 'top_p': 1.0, 'top_k': 0, 'seed': 0, 'cache_dtype': None, 'max_new_tokens': 64, 'batch_size': 3
  }  # fmt: skip
  assert scores['tokens'] == sum(row['tokens'] for row in lines(tmp_path / 'out'))
  assert result['tokens_per_second'] > 0
  assert json.loads((tmp_path / 'out' / 'arithmetic' / 'scores.json').read_text()) == scores


def test_a_record(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir)
  rows = lines(tmp_path)
  assert [row['question'] for row in rows] == ['1+1=', '2*3=', '1-5=', '7/2=']  # in the benchmark's order
  first = rows[0]
  assert tuple(first)[: len(records.FIELDS)] == records.FIELDS
  assert first['prompt'] == '<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n'
  assert (first['response'], first['extracted'], first['gold'], first['correct']) == ('the answer is 2', '2', '2', True)
  assert (first['tokens'], first['truncated'], first['extra']['group']) == (16, False, 'add')
  assert rows[2]['reason'] == 'no answer found'


def test_nothing_is_written_without_out(reciting, data_dir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = sorted(tmp_path.rglob('*'))
  assert evaluate(reciting(), None, data_dir)['benchmarks']['arithmetic']['correct'] == 3
  assert sorted(tmp_path.rglob('*')) == before


def test_truncated_answers(reciting, data_dir):
  model = reciting()
  model.answers |= {'1+1=': '2', '2*3=': '6'}
  scores = evaluate(model, None, data_dir, max_new_tokens=2)['benchmarks']['arithmetic']
  assert scores['truncated'] == 2  # '2' and its stop token fit


def test_limit_prompt_and_batch_size(reciting, data_dir):
  model = reciting()
  result = evaluate(model, None, data_dir, limit=3, prompt='qwen-chat', batch_size=2)
  assert result['benchmarks']['arithmetic']['n'] == 3
  assert result['benchmarks']['arithmetic']['prompt'] == 'qwen-chat'
  assert (model.asked, model.batch_size) == ([3], 2)


def test_answers_end_at_the_stop_texts_of_the_prompt(reciting, data_dir, tmp_path):
  model = reciting(positions=9000)
  model.answers = {'1+1=': '2\n\nQuestion: 3+3=', '2*3=': '6Question:', '1-5=': '-4 is right', '7/2=': '3.5'}
  scores = evaluate(model, tmp_path, data_dir, prompt='qwen-base', max_new_tokens=8)['benchmarks']['arithmetic']
  rows = lines(tmp_path)
  assert [row['response'] for row in rows] == ['2', '6Questio', '-4 is ri', '3.5']
  assert [row['truncated'] for row in rows] == [False, True, True, False]
  assert (scores['correct'], scores['truncated'], scores['prompt'], scores['rule']) == (4, 2, 'qwen-base', 'math401')
  assert rows[0]['prompt'].endswith("\n\nQuestion: 1+1=\nLet's think step by step\n") and rows[0]['tokens'] == 8
  assert {(row['prompt_name'], row['rule']) for row in rows} == {('qwen-base', 'math401')}


@pytest.mark.parametrize(
  'prompt, rule, wanted, new_tokens, stop',
  [
    (None, None, 'number', 512, ()),
    (None, 'rft', 'rft', 512, ()),
    ('alpaca', None, 'rft', 256, ()),
    ('wizardmath', None, 'wizardmath-gsm8k', 1024, ('Instruction', 'Response')),
    ('abel', 'number', 'number', 2048, ()),
    ('minerva', None, 'number', 512, ('Problem:',)),  # Minerva has no rule of its own for GSM8K
  ],
)
def test_a_prompt_brings_the_rule_and_the_limits_of_its_system(
  reciting, tmp_path, prompt, rule, wanted, new_tokens, stop
):
  (tmp_path / 'gsm8k').mkdir()
  (tmp_path / 'gsm8k' / 'test.jsonl').write_text('{"question": "1+1=", "answer": "It is 2.\\n#### 2"}\n')
  model = reciting(positions=9000)
  with run.prepare(model, 'gsm8k', run.Ask(str(tmp_path), prompt=prompt, rule=rule)) as [(job, _)]:
    assert (job.settings['rule'], job.settings['max_new_tokens'], job.stop) == (wanted, new_tokens, stop)
  scores = evaluate(model, None, str(tmp_path), 'gsm8k', prompt=prompt, rule=rule)
  assert scores['benchmarks']['gsm8k']['rule'] == wanted


@pytest.mark.parametrize('answers', [0, 1, 2, 3])
def test_interrupted_run_continues_after_the_last_finished_record(reciting, data_dir, tmp_path, answers):
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  evaluate(reciting(), whole, data_dir, batch_size=2)
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=answers), out, data_dir, batch_size=2)
  path = out / 'arithmetic' / 'records.jsonl'
  assert len(lines(out)) == answers and not (out / 'arithmetic' / 'scores.json').exists()
  with open(path, 'ab') as file:
    file.write(b'{"id": "arith')  # killed while writing
  model = reciting()
  scores = evaluate(model, out, data_dir, batch_size=2)['benchmarks']['arithmetic']
  assert (sum(model.asked), scores['resumed'], scores['n']) == (4 - answers, answers, 4)
  assert path.read_bytes() == (whole / 'arithmetic' / 'records.jsonl').read_bytes()


def test_one_host_continues_what_several_began(reciting, data_dir, tmp_path, capsys):
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  evaluate(reciting(), whole, data_dir)
  evaluate(reciting(), out, data_dir)
  rows = (whole / 'arithmetic' / 'records.jsonl').read_bytes().splitlines(keepends=True)
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


def on_two_hosts(monkeypatch, work):
  """What `work(host)` returns on each, in two threads."""
  here, meeting, told = threading.local(), threading.Barrier(2, timeout=30), [None, None]

  def gather(value):
    told[here.number] = json.loads(json.dumps(value))
    meeting.wait()
    found = list(told)
    meeting.wait()
    return found

  def host(number):
    here.number = number
    try:
      return work(number)
    except BaseException:
      meeting.abort()
      raise

  monkeypatch.setattr(run.hosts, 'share', lambda: (getattr(here, 'number', 0), 2))
  monkeypatch.setattr(run.hosts, 'gather', gather)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = list(pool.map(host, range(2)))
  monkeypatch.undo()
  return results


@pytest.mark.parametrize('disks', [['shared', 'shared'], ['own 0', 'own 1']])
@pytest.mark.parametrize('first', ['nothing', 'in vain', 'host 0', 'host 1', 'both'])
def test_two_hosts(reciting, data_dir, tmp_path, monkeypatch, disks, first):
  evaluate(reciting(), tmp_path / 'whole', data_dir)
  whole = (tmp_path / 'whole' / 'arithmetic' / 'records.jsonl').read_bytes()
  out = [tmp_path / disk for disk in disks]
  for number in (0, 1):  # what an earlier run left
    folder = out[number] / 'arithmetic'
    folder.mkdir(parents=True, exist_ok=True)
    if first in (f'host {number}', 'both'):
      name = 'records.1.jsonl' if number else 'records.jsonl'
      (folder / name).write_bytes(whole.splitlines(keepends=True)[2 - number])
      if first == 'both' and number == 1 and disks[0] != disks[1]:  # which host 0 has, too, and counts
        with (folder / name).open('ab') as file:
          file.write(whole.splitlines(keepends=True)[2].replace(b'I cannot say.', b'It is 7.'))
      settings = (tmp_path / 'whole' / 'arithmetic' / 'settings.json').read_bytes()
      (folder / 'settings.json').write_bytes(settings)
  if first == 'in vain':
    (out[0] / 'arithmetic' / 'unanswered.json').write_text('{"arithmetic/test/0": "no"}')
  models = [reciting(), reciting()]
  work = lambda number: evaluate(models[number], out[number], data_dir)['benchmarks']['arithmetic']
  scores = on_two_hosts(monkeypatch, work)
  known = {'nothing': 0, 'in vain': 0, 'host 0': 1, 'host 1': 1, 'both': 2}[first]
  assert sum(models[0].asked) + sum(models[1].asked) == 4 - known
  assert [(one['n'], one['correct'], one['resumed']) for one in scores] == [(4, 3, known)] * 2
  assert (out[0] / 'arithmetic' / 'records.jsonl').read_bytes() == whole
  assert evaluate(reciting(stops_after=0), out[0], data_dir)['benchmarks']['arithmetic']['n'] == 4


def test_finished_run_is_not_generated_again(reciting, data_dir, tmp_path):
  first = evaluate(reciting(), tmp_path, data_dir)['benchmarks']
  model = reciting()
  assert evaluate(model, tmp_path, data_dir)['benchmarks'] == first
  assert sum(model.asked) == 0


@pytest.mark.parametrize(
  'change, kwargs, said',
  [
    ({'name': 'other'}, {}, "model 'reciting' there and 'other' now"),
    ({}, {'max_new_tokens': 7}, 'max_new_tokens 64 there and 7 now'),
    ({}, {'limit': 2}, 'limit None there and 2 now'),
    ({}, {'prompt': 'qwen-chat'}, "prompt 'chatml' there and 'qwen-chat' now"),
  ],
)
def test_another_run_in_the_same_directory_is_refused(reciting, data_dir, tmp_path, change, kwargs, said):
  evaluate(reciting(), tmp_path, data_dir)
  before = (tmp_path / 'arithmetic' / 'records.jsonl').read_bytes()
  model = reciting(**change)
  with pytest.raises(UserError, match=said):
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
  'spoil, said',
  [
    (lambda rows: [rows[0], '{"id": 5', *rows[1:]], ':2: not JSON'),
    (lambda rows: [*rows[:2], rows[0], *rows[2:]], ":3: id 'arithmetic/test/0' is already in line 1"),
    (
      lambda rows: ['7', rows[0].replace('"response"', '"reply"'), *rows[1:]],
      ':1: .*not int; line 2: .*response.*; 2 bad lines in all',
    ),
  ],
)
def test_a_spoilt_record_is_named_and_none_is_lost(reciting, data_dir, tmp_path, spoil, said):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  path.write_text('\n'.join(spoil(path.read_text().splitlines())) + '\n')
  before, model = {p: p.read_bytes() for p in path.parent.iterdir()}, reciting()
  for again in (
    lambda: evaluate(model, tmp_path, data_dir),
    lambda: run.grade_records(path, 'arithmetic', out=tmp_path),
  ):
    with pytest.raises(UserError, match=said):
      again()
  assert sum(model.asked) == 0 and {p: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize('row', ['{"prompt": "1+1=", "completion": "2"}', '{"query": "1+1="}', '[]', '{"query"'])
def test_a_benchmark_of_the_wrong_schema_is_named(reciting, data_dir, tmp_path, row):
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() + row + '\n')
  model = reciting()
  with pytest.raises(UserError, match=r'arithmetic/test.jsonl:5: '):
    evaluate(model, tmp_path / 'out', data_dir)
  assert sum(model.asked) == 0 and not (tmp_path / 'out').exists()


def test_one_evaluation_writes_to_a_directory_at_a_time(reciting, data_dir, tmp_path):
  first, second = reciting(), reciting()
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  with run.prepare(first, 'arithmetic', run.Ask(data_dir), tmp_path / 'out') as prepared:
    for other in (
      lambda: evaluate(second, tmp_path / 'out', data_dir),
      lambda: run.grade_records(tmp_path / 'r.jsonl', 'arithmetic', out=tmp_path / 'out'),
    ):
      with pytest.raises(UserError, match='out/arithmetic: another evaluation is writing here; wait for it'):
        other()
    run.run(first, prepared, progress=False)
  assert len(lines(tmp_path / 'out')) == 4 and sum(second.asked) == 0
  assert evaluate(second, tmp_path / 'out', data_dir)['benchmarks']['arithmetic']['resumed'] == 0  # and it is let go


def test_grading_what_is_continued_meanwhile_loses_no_answer(reciting, data_dir, tmp_path, monkeypatch):
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
  assert not scores.exists()  # those of a part are no longer those of what is there
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['resumed'] == 3
  assert json.loads(scores.read_text())['decoding']['batch_size'] == 64


def test_a_run_without_an_answer_may_be_put_right(reciting, data_dir, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=0, name='mistyped'), tmp_path, data_dir)
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['model'] == 'reciting'
  assert json.loads((tmp_path / 'arithmetic' / 'settings.json').read_text())['model'] == 'reciting'


@pytest.mark.parametrize('text', ['', '{"n": ', '[]'])
def test_spoilt_scores_are_written_again(reciting, data_dir, tmp_path, text):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'scores.json'
  whole = json.loads(path.read_text())
  for again in (
    lambda: evaluate(reciting(), tmp_path, data_dir),
    lambda: run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path),
  ):
    path.write_text(text)
    again()
    mended = json.loads(path.read_text())
    assert all(mended[key] == whole[key] for key in ('n', 'correct', 'model', 'prompt', 'tokens'))


def test_a_run_that_was_killed_at_its_end_is_finished_by_the_next(reciting, data_dir, tmp_path):
  whole = evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']
  (tmp_path / 'arithmetic' / 'scores.json').unlink()
  run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  scores = evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']
  assert (scores['decoding'], scores['resumed']) == (whole['decoding'], 4)


def test_a_part_that_is_graded_is_not_finished(reciting, data_dir, tmp_path, capsys):
  with pytest.raises(KeyboardInterrupt):
    evaluate(reciting(stops_after=3), tmp_path, data_dir)
  for _ in range(2):
    run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  assert '(n = 3)' in table.table([tmp_path])
  said = f'{tmp_path}/arithmetic: not finished; the scores are of what is answered so far'
  assert said in capsys.readouterr().err
  evaluate(reciting(), tmp_path, data_dir)
  run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic', out=tmp_path)
  table.table([tmp_path])
  assert 'not finished' not in capsys.readouterr().err


def test_golds_that_no_number_can_equal(reciting, data_dir):
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text().replace('"3.5"', '"two"'))
  with pytest.raises(UserError, match=r"1 gold answers are not numbers, such as 'two' \(test.jsonl:4\): correct them"):
    evaluate(reciting(), None, data_dir)
  assert evaluate(reciting(), None, data_dir, rule='math')['benchmarks']['arithmetic']['n'] == 4


def test_repeated_problems_are_told(reciting, data_dir, capsys):
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 2)
  assert evaluate(reciting(), None, data_dir)['benchmarks']['arithmetic']['n'] == 8
  assert 'arithmetic: 4 duplicate: test.jsonl:5 (same as test.jsonl:1), ' in capsys.readouterr().err


def test_killed_twice(reciting, data_dir, tmp_path):
  for answers in (1, 2):
    with pytest.raises(KeyboardInterrupt):
      evaluate(reciting(stops_after=1), tmp_path, data_dir)
    assert len(lines(tmp_path)) == answers
  evaluate(reciting(), tmp_path, data_dir)
  assert len(lines(tmp_path)) == 4


def test_a_directory_of_other_problems_lets_all_go(reciting, data_dir, tmp_path):
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

  monkeypatch.setattr(run.folder_lib.fcntl, 'flock', none)
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['n'] == 4


def test_a_directory_is_let_go_whatever_happens(reciting, data_dir, tmp_path):
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
  whole, out = tmp_path / 'whole', tmp_path / 'out'
  evaluate(reciting(), whole, data_dir)
  names = ['records.jsonl', 'scores.json', 'settings.json']
  for size, name, left in ((50, 'settings.json', 0), (700, 'records.jsonl', 1), (1300, 'records.jsonl', 3)):
    with files_of_at_most(size), pytest.raises(OSError) as caught:
      evaluate(reciting(), out, data_dir)
    assert caught.value.filename == str(out / 'arithmetic' / name)
    found = sorted(path.name for path in (out / 'arithmetic').iterdir()) if out.exists() else []
    assert found == (names[::2] if left else [])
    if left:
      assert len(records.read(out / 'arithmetic' / 'records.jsonl').records) == left
  assert evaluate(reciting(), out, data_dir)['benchmarks']['arithmetic']['resumed'] == 3
  assert (out / 'arithmetic' / 'records.jsonl').read_bytes() == (whole / 'arithmetic' / 'records.jsonl').read_bytes()
  with files_of_at_most(700), pytest.raises(OSError):
    run.grade_records(out / 'arithmetic' / 'records.jsonl', 'arithmetic', 'abel', out=tmp_path / 'graded')
  assert list((tmp_path / 'graded' / 'arithmetic').iterdir()) == []


@pytest.mark.parametrize('text, said', [('', 'not JSON'), ('{"model": ', 'not JSON'), ('[]', 'holds list')])
def test_spoilt_settings(reciting, data_dir, tmp_path, text, said):
  evaluate(reciting(), tmp_path, data_dir)
  (tmp_path / 'arithmetic' / 'settings.json').write_text(text)
  with pytest.raises(UserError, match=rf'settings.json: {said}.*what is there cannot be continued; give another --out'):
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


@pytest.mark.parametrize(
  'names, kwargs, said',
  [
    ('arithmetic,gsm8', {}, "unknown benchmark 'gsm8'"),
    ([], {}, 'no benchmark given'),
    ('arithmetic', {'prompt': 'vicuna'}, "unknown prompt 'vicuna'"),
    ('arithmetic', {'rule': 'abl'}, "unknown rule 'abl'; did you mean 'abel'"),
    ('arithmetic', {'limit': 0}, 'limit is 0; it must be 1 or more'),
    ('arithmetic', {'batch_size': 0}, 'batch_size is 0; it must be 1 or more'),
    ('arithmetic', {'max_new_tokens': 500}, 'it passes the 512 positions; at most 489 fit'),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_generated(reciting, data_dir, tmp_path, names, kwargs, said):
  model = reciting()
  with pytest.raises(UserError, match=said):
    evaluate(model, tmp_path / 'out', data_dir, names, **kwargs)
  assert sum(model.asked) == 0 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('prompt', ['chatml', 'minerva'])
def test_a_model_without_a_tokenizer(reciting, data_dir, prompt):
  model = reciting()
  model.tokenizer = None
  with pytest.raises(UserError, match='reciting has no tokenizer files: copy those of its model there'):
    evaluate(model, None, data_dir, prompt=prompt)


def test_room_for_the_prompt(reciting, data_dir, capsys):
  with pytest.raises(UserError, match='has 23 tokens, the model has 23 positions'):
    evaluate(reciting(positions=23), None, data_dir)
  scores = evaluate(reciting(positions=43), None, data_dir)['benchmarks']['arithmetic']
  assert scores['decoding']['max_new_tokens'] == 20
  assert 'answers end after 20 new tokens instead of 64' in capsys.readouterr().err


def test_progress_goes_to_standard_error(reciting, data_dir, capsys):
  run.evaluate(reciting(), ['arithmetic'], run.Ask(data_dir), progress=True)
  said = capsys.readouterr()
  assert said.out == ''
  assert '4/4' in said.err and '75.0% right' in said.err and 'problems/s' in said.err


def test_grade_again(tmp_path):
  path = tmp_path / 'stored.jsonl'
  rows = [
    {'question': 'q', 'response': 'so 5. #### 18', 'gold': '18', 'correct': False, 'mine': [1]},
    {'id': 7, 'response': 'nothing', 'gold': '1'},
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  scores = run.grade_records(path, 'gsm8k', out=tmp_path / 'out')['benchmarks']['gsm8k']
  assert (scores['n'], scores['correct'], scores['unextractable'], scores['verdicts_changed']) == (2, 1, 1, 1)
  assert (scores['prompt'], scores['truncated'], scores['model']) == (None, None, None)
  stored = [json.loads(line) for line in (tmp_path / 'out' / 'gsm8k' / 'records.jsonl').read_text().splitlines()]
  assert stored[0]['mine'] == [1] and stored[0]['correct'] and 'id' not in stored[0]
  assert stored[1] == {
    'id': 7, 'benchmark': 'gsm8k', 'response': 'nothing', 'extracted': None, 'gold': '1', 'correct': False,
    'reason': 'no answer found', 'rule': 'number',
  }  # fmt: skip
  assert run.grade_records(path, 'gsm8k', rule='abel')['benchmarks']['gsm8k']['rule'] == 'abel'


def test_the_line_of_grade_leaves_out_what_the_records_do_not_say(tmp_path, capsys):
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  assert cli.main(['grade', str(tmp_path / 'r.jsonl'), '--benchmark', 'gsm8k']) == 0
  said = 'gsm8k: 1 of 1 right, 100.0% (standard error 0.0), 0 without an answer; rule number\n'
  assert capsys.readouterr().out == said


def test_the_line_of_evaluate_has_all_of_it(reciting, data_dir, tmp_path, capsys):
  evaluate(reciting(), tmp_path, data_dir)
  assert cli.main(['grade', str(tmp_path / 'arithmetic' / 'records.jsonl'), '--benchmark', 'arithmetic']) == 0
  assert capsys.readouterr().out.endswith('1 without an answer, 0 cut off; rule math401, prompt chatml\n')


def test_grading_an_evaluation_again_gives_the_same_scores(reciting, data_dir, tmp_path):
  scores = evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']
  again = run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic')['benchmarks']['arithmetic']
  assert again['verdicts_changed'] == 0
  for key in again.keys() & scores.keys():
    assert again[key] == scores[key], key


def test_several_samples_are_summed_up_over_problems_and_again(reciting, data_dir, tmp_path):
  drawn = run.Decoding(samples=2, temperature=1.0)
  scores = evaluate(reciting(), tmp_path, data_dir, decoding=drawn)['benchmarks']['arithmetic']
  assert (scores['n'], scores['problems'], scores['pass_at_k'], scores['maj_at_k']) == (
    8, 4, {'1': 0.75, '2': 0.75}, {'2': 0.75}
  )  # fmt: skip
  assert scores['stderr'] == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
  assert scores['by_group']['add'] == {'n': 4, 'correct': 2, 'accuracy': 0.5, 'problems': 2, 'stderr': 0.5}
  again = run.grade_records(tmp_path / 'arithmetic' / 'records.jsonl', 'arithmetic')['benchmarks']['arithmetic']
  assert {key: again[key] for key in again.keys() & scores.keys()} == {
    key: scores[key] for key in again.keys() & scores.keys()
  }


def test_answers_to_a_problem_are_no_problems_where_the_scores_are_not_there(reciting, data_dir, tmp_path):
  drawn = run.Decoding(samples=2, temperature=1.0)
  scores = evaluate(reciting(), tmp_path, data_dir, decoding=drawn)['benchmarks']['arithmetic']
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  (tmp_path / 'arithmetic' / 'scores.json').unlink()
  again = run.grade_records(path, 'arithmetic')['benchmarks']['arithmetic']
  assert all(again[key] == scores[key] for key in ('problems', 'samples', 'stderr', 'pass_at_k', 'model', 'prompt'))
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
  with pytest.raises(UserError, match="'arithmetic/test/3' does not have all of its 2 answers; finish the evaluation"):
    run.grade_records(path, 'arithmetic')
  for name in ('7', '"arithmetic/test/0"', 'null'):
    path.write_text(f'{{"id": {name}, "question": "q", "response": "1", "gold": "1"}}\n')
    with pytest.raises(UserError, match=f"'{json.loads(name)}' does not have all of its 2 answers"):
      run.grade_records(path, 'arithmetic')
  (tmp_path / 'arithmetic' / 'scores.json').write_text('{"samples": "2"}')
  with pytest.raises(UserError, match="arithmetic: samples is '2' in its scores or settings"):
    run.grade_records(path, 'arithmetic')


def test_answers_to_a_problem_are_no_problems_elsewhere(reciting, data_dir, tmp_path):
  drawn = run.Decoding(samples=2, temperature=1.0)
  scores = evaluate(reciting(), tmp_path, data_dir, decoding=drawn)['benchmarks']['arithmetic']
  path = tmp_path / 'copied.jsonl'
  path.write_bytes((tmp_path / 'arithmetic' / 'records.jsonl').read_bytes())
  again = run.grade_records(path, 'arithmetic')['benchmarks']['arithmetic']
  assert all(again[key] == scores[key] for key in ('problems', 'samples', 'stderr', 'pass_at_k'))
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[1:]))
  with pytest.raises(UserError, match="'arithmetic/test/0' does not have all of its 2 answers"):
    run.grade_records(path, 'arithmetic')


@pytest.mark.parametrize('ids', [['gsm8k#0', 'gsm8k#1'], ['q#10', 'q#20'], ['a#1', 'a#2']])
@pytest.mark.parametrize('questions', [['x', 'y'], [None, None]])
def test_numbered_problems_are_no_answers_to_one(tmp_path, ids, questions):
  rows = [
    {'id': i, 'response': '1', 'gold': '1'} | ({'question': q} if q else {})
    for i, q in zip(ids, questions, strict=True)
  ]
  (tmp_path / 'r.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  scores = run.grade_records(tmp_path / 'r.jsonl', 'gsm8k')['benchmarks']['gsm8k']
  assert scores['n'] == 2 and 'problems' not in scores


def test_records_of_another_benchmark_are_not_graded(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir)
  path = tmp_path / 'arithmetic' / 'records.jsonl'
  with pytest.raises(UserError, match="'arithmetic/test/0' is of arithmetic, not of math401; give --benchmark arith"):
    run.grade_records(path, 'math401')
  path.write_text(path.read_text().replace('"benchmark": "arithmetic"', '"benchmark": "my own"'))
  assert run.grade_records(path, 'math401')['benchmarks']['math401']['correct'] == 3


@pytest.mark.parametrize('benchmark, rule, said', [('gsm', None, "mean 'gsm8k'"), ('gsm8k', 'abl', "mean 'abel'")])
def test_grade_with_unknown_names(tmp_path, benchmark, rule, said):
  with pytest.raises(UserError, match=said):
    run.grade_records(tmp_path / 'none', benchmark, rule)


def test_empty_records(tmp_path):
  (tmp_path / 'r.jsonl').write_text('')
  with pytest.raises(UserError, match='no records in it'):
    run.grade_records(tmp_path / 'r.jsonl', 'gsm8k')


def test_grading_needs_no_jax(tmp_path):
  (tmp_path / 'r.jsonl').write_text('{"id": "a", "response": "#### 1", "gold": "1"}\n')
  code = (
    f'import sys; from mathqwen.evals import run; run.grade_records({str(tmp_path / "r.jsonl")!r}, "gsm8k"); '
    'print([m for m in ("jax", "numpy", "tensorflow_datasets") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == '[]', done.stderr


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'samples': 0}, 'samples is 0'),
    ({'samples': 10_000_000, 'temperature': 1.0}, 'samples is 10000000; it must be from 1 to 10,000'),
    ({'samples': 2}, '2 samples at temperature 0'),
    ({'temperature': -1.0}, 'temperature -1.0'),
    ({'temperature': float('nan')}, 'temperature nan'),
    ({'temperature': 1.0, 'top_p': 2.0}, 'top_p 2.0'),
    ({'temperature': 1.0, 'top_k': -1}, 'top_k -1'),
    ({'top_k': 5}, 'top_p and top_k have no effect at temperature 0'),
    ({'seed': -1}, 'seed is -1'),
  ],
)
def test_decoding_is_refused_before_anything_is_read(settings, message):
  with pytest.raises(UserError, match=message):
    run.Decoding(**settings)
