"""The whole way with a served model: rows, samples and cards; faults; going on where a run has ended."""

import json
import pathlib
import threading
import time

import pytest
from fake_server import FAILURES, echo_key
from four_questions import QUESTIONS

from mathqwen import cli, files
from mathqwen.data import hub_sets, sources
from mathqwen.errors import Preempted, UserError
from mathqwen.files import large

REPLIES = [
  '40 + 2 = 42',
  'first 41 + 1 = 42, so 42',
  'It is 42: 40 + 2 = 42 of them',
  '40 + 2 = 43, no: 42',
  '7',
  '42...',
]


def of_the_first(question, number):
  """What the tests of rows are made of: six answers to the first question, and one to the others."""
  return REPLIES[number % 6] if '40' in question else f'so {QUESTIONS[question]}'


def test_rows_samples_and_card(run, server, lines, tmp_path):
  server.reply = of_the_first
  summary = run(samples=6)
  first = [row for row in lines('train') if row['question'] == 'What is 40 + 2?']
  # 0 and 2 have the same equation. 2 differs more from 1, the only other one that is kept.
  assert [(row['id'], row['paths']) for row in first] == [('rows/0', 3), ('rows/0#1', 3), ('rows/0#2', 3)]
  gold = first[0]
  assert gold == {
    'id': 'rows/0', 'question': 'What is 40 + 2?', 'solution': '40 + 2 = 42\n#### 42', 'answer': '42',
    'source': summary['source'], 'paths': 3,
  }  # fmt: skip
  dropped = [sample['dropped'] for sample in lines('samples')[:6]]
  assert dropped == ['same equations', None, None, 'wrong calculation', 'wrong', 'cut off']
  assert [sample['verdict'] for sample in lines('samples')[:6]] == ['right'] * 4 + ['wrong', 'right']
  assert summary['samples'] == 24 and summary['kept'] == 5 and summary['rows'] == 9 == len(lines('train'))
  assert summary['right'] == 23 and summary['dropped']['cut off'] == 1 and summary['paths_per_question'] == 1.25
  card = (tmp_path / 'out' / 'README.md').read_text()
  shown = ['| answers | 24 |', '| kept | 5 |', '| distinct paths per question | 1.25 |', '| wrong calculation | 1 |']
  for text in (*shown, server.model, summary['sha256'], 'temperature: 0.7', "rule: 'number'", 'licence'):
    assert text in card, text
  body = server.asked[0][2]
  assert body['temperature'] == 0.7 and 'seed' not in body and 'top_p' not in body

  found, left_out = sources.load(str(tmp_path / 'out' / 'train.jsonl'))  # a source for training
  assert [example.solution for example in found] == [row['solution'] for row in lines('train')]
  assert not left_out.counts and found[0].answer == '42'


def test_the_card_has_the_licence_and_revision_of_a_data_set_on_the_hub(run, source, tmp_path, monkeypatch):
  commit = 'ab' * 20
  snapshot = tmp_path / 'datasets--some--rows' / 'snapshots' / commit
  snapshot.mkdir(parents=True)
  pathlib.Path(source).rename(snapshot / 'train.jsonl')
  (snapshot / 'README.md').write_text('---\nlicense: cc-by-4.0\n---\n')
  monkeypatch.setattr(hub_sets.hub, 'fetch_data', lambda name, revision: str(snapshot))
  run(samples=1, of='hf:some/rows')
  assert f'- hf:some/rows; licence: cc-by-4.0, revision {commit}\n' in (tmp_path / 'out' / 'README.md').read_text()


def test_without_gold(run, server, lines):
  server.reply = of_the_first
  with_gold = run(samples=6)
  asked = len(server.asked)
  summary = run(samples=6, keep_gold=False)  # needs no answer again
  assert len(server.asked) == asked and summary['rows'] == with_gold['rows'] - 4
  assert summary['tokens_per_second'] == with_gold['tokens_per_second']  # of the run that asked
  assert all('#' in row['id'] for row in lines('train'))


def test_rows_with_one_question_are_one_question(run, server, source, lines):
  """It is asked once, and the solutions of all its rows stay."""
  with open(source, 'a') as file:
    file.write(json.dumps({'question': 'What is 40 + 2?', 'answer': '41 + 1 = 42\n#### 42'}) + '\n')
  replies = ['20 + 22 = 42', '7', '41 + 1 = 42\n#### 42', '30 + 12 = 42']
  server.reply = lambda question, number: replies[number] if '40' in question else f'so {QUESTIONS[question]}'
  summary = run(samples=4, pairs=9)
  assert len(server.asked) == 16 and summary['questions'] == 4
  first = [row for row in lines('train') if row['question'] == 'What is 40 + 2?']
  assert [(row['id'], row['paths']) for row in first] == [
    ('rows/0', 4), ('rows/4', 4), ('rows/0#0', 4), ('rows/0#3', 4)
  ]  # fmt: skip
  assert lines('samples')[2]['why'] == 'as the gold answer' and len(lines('pairs')) == 1


def test_pairs_of_right_and_wrong_answers(run, server, lines, tmp_path):
  replies = ['so 42', '7', '40 + 2 = 42', '7', '40 + 2 = 43, no: 42', '8', 'I do not know', '9...']
  server.reply = lambda question, number: replies[number] if '40' in question else f'so {QUESTIONS[question]}'
  summary = run(samples=8, pairs=5)
  # Kept answers come first, each text once; neither the wrong calculation nor what was cut off or has no answer.
  assert [(row['prompt'], row['chosen'], row['rejected'], row['id']) for row in lines('pairs')] == [
    ('What is 40 + 2?', 'so 42', '7', 'rows/0#0 rows/0#1'),
    ('What is 40 + 2?', '40 + 2 = 42', '8', 'rows/0#2 rows/0#5'),
  ]
  assert (summary['pairs'], summary['questions_with_pairs']) == (2, 1)
  assert '`pairs.jsonl` has 2 pairs' in (tmp_path / 'out' / 'README.md').read_text()
  found, report = sources.load(str(tmp_path / 'out' / 'pairs.jsonl'), pairs=True)
  assert [(pair.solution, pair.rejected, pair.answer) for pair in found] == [
    ('so 42', '7', '42'),
    ('40 + 2 = 42', '8', '42'),
  ]
  assert run(samples=8, pairs=1)['pairs'] == 1 == len(lines('pairs'))
  assert 'pairs' not in run(samples=8)
  with pytest.raises(UserError, match='samples=2'):
    run(samples=1, pairs=1)


def test_bad_rows_are_counted(run, source, capsys):
  with open(source, 'a') as file:
    file.write(
      '{"query": "Who?", "response": "nobody knows it"}\n{"question": 7}\n{"question": "So?", "answer": "x"}\n'
    )
  summary = run(samples=1)
  assert summary['questions'] == 4
  assert summary['left_out'] == {
    'malformed': 1, 'without a gold answer': 1, 'with a gold answer that rule number cannot read': 1
  }  # fmt: skip
  assert 'rows.jsonl:5' in capsys.readouterr().err


def test_rows_that_their_authors_mark_as_wrong_are_counted(run, source, tmp_path):
  row = {'problem': 'What is 1 + 1?', 'solution': 'so 2', 'answer': '2', 'problem_is_valid': 'Yes'}
  with open(source, 'w') as file:
    for question, answer in QUESTIONS.items():
      more = {'problem': question, 'solution': f'so {answer}', 'answer': answer, 'solution_is_valid': 'Yes'}
      file.write(json.dumps(row | more) + '\n')
    file.write(json.dumps(row | {'problem_is_valid': 'No', 'solution_is_valid': 'Yes'}) + '\n')
  summary = run(samples=1)
  assert summary['questions'] == 4 and summary['left_out'] == {'unverified': 1}
  assert '| unverified | 1 |' in (tmp_path / 'out' / 'README.md').read_text()


@pytest.mark.parametrize('name', ['500', 'garbage', 'half', 'slow'])
def test_a_temporary_failure_changes_nothing(run, server, name):
  server.script = [FAILURES[name]] * 2
  summary = run(samples=2, timeout=0.3 if name == 'slow' else 20)
  assert summary['samples'] == 8 and summary['missing'] == 0 and len(server.asked) == 10


def test_an_endpoint_that_dies_half_way(run, server, lines, tmp_path):
  """What was paid for is kept, and the same call asks only for the rest."""
  server.script = [None] * 5 + [FAILURES['500']] * 10_000
  with pytest.raises(Preempted, match='500 .* were not asked; what was answered is kept in .*/out, and the same comm'):
    run(samples=6)
  kept = lines('samples')
  assert len(kept) == 5 and not (tmp_path / 'out' / 'train.jsonl').exists()
  server.script = []
  asked = len(server.asked)
  summary = run(samples=6)
  assert len(server.asked) - asked == 24 - 5 and summary['samples'] == 24
  assert [sample for sample in lines('samples') if sample['id'] in {old['id'] for old in kept}][0]['id'] == 'rows/0#0'
  again = run(samples=6)
  assert len(server.asked) - asked == 19 and again['sha256'] == summary['sha256']


def test_an_answer_that_never_comes_does_not_stop_the_others(run, server, lines, tmp_path):
  server.script = [None, *[echo_key(400)]]
  with pytest.raises(UserError, match='1 problem has no answer .rows/1#0: 400 .*train.jsonl is made without these'):
    run(samples=2)
  assert len(lines('samples')) == 7 and len(lines('train')) == 8
  assert '1 answers are missing' in (tmp_path / 'out' / 'README.md').read_text()
  assert list(json.loads((tmp_path / 'out' / 'unanswered.json').read_text())) == ['rows/1#0']
  assert run(samples=2)['missing'] == 0 and not (tmp_path / 'out' / 'unanswered.json').exists()


def test_a_killed_run(run, server, lines, tmp_path, monkeypatch, capsys):
  """A half-written line is asked again, and a whole line without its newline is not."""
  count = iter(range(100))
  real = files.Journal.write

  def dying(journal, line):
    if next(count) == 4:
      real(journal, line[:20])
      raise KeyboardInterrupt
    real(journal, line)

  monkeypatch.setattr(files.Journal, 'write', dying)
  before = threading.enumerate()
  with pytest.raises(KeyboardInterrupt):
    run(samples=3)
  monkeypatch.undo()
  while set(threading.enumerate()) - set(before):  # requests that are still under way are those of the first run
    time.sleep(0.01)
  path = tmp_path / 'out' / 'samples.jsonl'
  whole = path.read_bytes().rsplit(b'\n', 1)[0]
  asked = len(server.asked)
  run(samples=3)
  assert len(server.asked) - asked == 12 - 4 and len(lines('samples')) == 12
  assert 'samples.jsonl:5: half-written last line dropped' in capsys.readouterr().err
  path.write_bytes(whole)
  asked = len(server.asked)
  run(samples=3)
  assert len(server.asked) - asked == 12 - 4 and [x['id'] for x in lines('samples')][:3] == [
    f'rows/0#{i}' for i in range(3)
  ]


@pytest.mark.parametrize('where', ['journal', 'rows'])
def test_a_full_disk(run, server, tmp_path, monkeypatch, where):
  class Full:
    def __init__(self, *_):
      self.file = None

    def write(self, _):
      raise OSError(28, 'No space left on device')

  if where == 'journal':
    monkeypatch.setattr(files.Journal, 'write', Full.write)
  else:
    made = large.PieceWriter.__init__
    monkeypatch.setattr(large.PieceWriter, '__init__', lambda writer, _, path: made(writer, Full(), path))
  with pytest.raises(OSError, match='No space') as error:
    run(samples=2)
  assert where == 'journal' or error.value.filename.endswith('out/train.jsonl')
  monkeypatch.undo()
  asked = len(server.asked)
  assert run(samples=2)['samples'] == 8
  again = len(server.asked) - asked
  # Of the first run, a question that was under way may arrive late.
  assert again >= 8 if where == 'journal' else again == 0
  assert not list((tmp_path / 'out').glob('*.part'))


def test_other_settings_are_refused(run, source, tmp_path):
  run(samples=1)
  with pytest.raises(
    UserError, match=r'out holds another run \(temperature 0.7 there and 0.9 now\); give another --out'
  ):
    run(samples=1, temperature=0.9)
  path = pathlib.Path(source)
  path.write_text(path.read_text().replace('42', '43'))
  with pytest.raises(UserError, match='source_sha256'):
    run(samples=1)
  path.write_text(path.read_text().replace('43', '42'))
  with (tmp_path / 'out' / 'samples.jsonl').open('a') as file:
    file.write('{"id": "rows/9#0", "response": ""}\n')
  with pytest.raises(UserError, match=r"samples.jsonl:5: not an answer of this run \('rows/9#0' is not asked\)"):
    run(samples=1)
  other = tmp_path / 'mine'
  other.mkdir()
  (other / 'train.jsonl').write_text('{}')
  with pytest.raises(UserError, match='mine holds a train.jsonl that is not from here'):
    run(out=other)


def test_the_fields_of_the_requests_are_settings(run, tmp_path):
  more = {'chat_template_kwargs': {'enable_thinking': False}}
  run(samples=1, request_json=more)
  assert "- request_json: {'chat_template_kwargs': " in (tmp_path / 'out' / 'README.md').read_text()
  with pytest.raises(UserError, match='request_json .* there and None now'):
    run(samples=1)
  run(samples=1, request_json=more)


def test_what_the_server_does_not_take_is_on_the_card(run, server, tmp_path):
  respond = server.respond

  def refusing(handler):
    if 'temperature' in handler.body:
      handler.say({'error': {'message': "'temperature' is not supported", 'param': 'temperature'}}, 400)
    else:
      respond(handler)

  server.respond = refusing
  assert run(samples=1)['request_changes'] == ['temperature left out']
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert '- the server did not take this part of the requests: temperature left out\n' in card


def test_the_command(server, source, tmp_path, capsys):
  words = ['data', 'augment', source, '--out', str(tmp_path / 'out')]
  assert cli.main([*words, '--model', server.model, '--samples', '2', '--rule', 'number', '--json']) == 0
  summary = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert summary == json.loads((tmp_path / 'out' / 'summary.json').read_text()) and summary['rows'] == 8

  def refused(*more):
    assert cli.main([*words, *more]) == 2
    return capsys.readouterr().err

  served = ('--model', server.model, '--rule', 'number')
  assert 'the following arguments are required: --model' in refused()
  assert 'not the data of a benchmark, whose rule' in refused('--model', server.model)
  assert '--seed is decided by the server; leave it out' in refused(*served, '--seed', '1')
  assert '--min-share is for --questions' in refused(*served, '--min-share', '0.7')
  assert 'min_share is 1.5' in refused(*served, '--questions', 'numbers', '--min-share', '1.5')
  assert 'without_gold is for the questions of' in refused(*served, '--questions', 'numbers', '--without-gold')
  assert 'samples is 0; it must be from 1 to' in refused(*served, '--samples', '0')
  assert 'samples at temperature 0 are all the same' in refused(*served, '--temperature', '0')
  assert f'--data-dir here: nothing reads it, because {source}' in refused(*served, '--data-dir', 'here')
  assert 'limit is 0' in refused(*served, '--limit', '0')
  assert 'top_p 2.0 is not in' in refused(*served, '--top-p', '2')
  assert 'concurrency is 0' in refused(*served, '--concurrency', '0')
  assert len(server.asked) == 8
