"""A served model: answers as those of a model of ours, failures retried, reported and continued."""

import dataclasses
import email.utils
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from fake_server import ANSWERS, FAILURES, KEY, answer, echo_key, evaluate, slow, status
from reciting import lines

from mathqwen import cli
from mathqwen.errors import Preempted, UserError
from mathqwen.evals import benchmarks, client, endpoint, pacing, records, run
from mathqwen.evals.tasks import PromptSettings

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures('key')


def test_records_and_scores_are_those_of_a_model_of_ours(server, data_dir, reciting, tmp_path):
  scores = evaluate(server, data_dir, tmp_path / 'served')['benchmarks']['arithmetic']
  model = reciting()
  model.answers = ANSWERS
  own = run.evaluate(model, 'arithmetic', run.Ask(data_dir), out=tmp_path / 'own', progress=False)
  own = own['benchmarks']['arithmetic']
  differ = {
    'model',
    'dtype',
    'tokens',
    'lengths',
    'seconds',
    'tokens_per_second',
    'decoding',
    'template',
    'template_sha256',
  }
  assert {k: v for k, v in scores.items() if k not in differ} == {k: v for k, v in own.items() if k not in differ}
  assert (scores['correct'], scores['model'], scores['tokens']) == (3, server.model, 20)
  for served, ours in zip(lines(tmp_path / 'served'), lines(tmp_path / 'own'), strict=True):
    assert served.pop('served_model') == 'served-0613'
    assert json.loads(served['prompt']) == [{'role': 'user', 'content': served['question']}]
    differ = {'prompt', 'tokens', 'template'}
    assert {k: v for k, v in served.items() if k not in differ} == {k: v for k, v in ours.items() if k not in differ}
  path, headers, body, _ = server.asked[0]
  assert (path, headers['Authorization']) == ('/v1/chat/completions', f'Bearer {KEY}')
  wanted = {'model': 'Qwen/Q', 'messages': body['messages'], 'temperature': 0, 'max_tokens': 64}
  assert body == wanted and body['messages'][0]['content'] in ANSWERS


def test_text_prompts_go_to_completions(server, data_dir, tmp_path, monkeypatch):
  prompt = endpoint.prompts_lib.Prompt(
    'of a base model',
    text=lambda example: f'Q: {example.question}\nA:',
    stop=('Q:', '\n\n'),
  )
  limited = dataclasses.replace(benchmarks.get('arithmetic'), by_prompt={'base': PromptSettings(max_new_tokens=7)})
  monkeypatch.setitem(benchmarks.BENCHMARKS, 'arithmetic', limited)
  monkeypatch.setitem(endpoint.prompts_lib.PROMPTS, 'base', prompt)
  message = {'choices': [{'text': ' 2', 'finish_reason': 'length'}], 'usage': {'completion_tokens': 7}}
  server.script = [status(200, json.dumps(message).encode())]
  scores = evaluate(server, data_dir, tmp_path, prompt='base', limit=1)['benchmarks']['arithmetic']
  path, _, body, _ = server.asked[0]
  assert path == '/v1/completions'
  assert body == {
    'model': 'Qwen/Q', 'prompt': 'Q: 1+1=\nA:', 'stop': ['Q:', '\n\n'], 'temperature': 0, 'max_tokens': 7
  }  # fmt: skip
  assert (scores['correct'], scores['truncated'], lines(tmp_path)[0]['prompt']) == (1, 1, 'Q: 1+1=\nA:')


@pytest.mark.parametrize('name', FAILURES)
def test_a_temporary_failure_changes_nothing(server, data_dir, tmp_path, name, capsys):
  server.script = [FAILURES[name]] * 2
  timeout = 0.3 if name in ('slow', 'dripping') else 20
  scores = evaluate(server, data_dir, tmp_path, timeout=timeout, concurrency=1)['benchmarks']['arithmetic']
  assert (scores['n'], scores['correct'], len(server.asked)) == (4, 3, 6)
  assert [row['response'] for row in lines(tmp_path)] == list(ANSWERS.values())
  assert capsys.readouterr().err.count('asked again') == 1  # the same failure is reported once


@pytest.mark.parametrize(
  'name', ['500', 'garbage', 'nothing', 'half', 'another schema', 'gone', 'no text', 'nothing said']
)
def test_a_failure_of_one_problem_leaves_the_others_answered(server, data_dir, tmp_path, name, capsys):
  server.script = [None, FAILURES[name], FAILURES[name], FAILURES[name]]
  message = (
    rf'{re.escape(server.model)}: 1 problem has no answer \(arithmetic/test/1: .*\); '
    rf'3 of 4 answers are kept in {tmp_path}, beside unanswered.json, and the same command continues'
  )
  with pytest.raises(Preempted, match=message):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert [row['question'] for row in lines(tmp_path)] == ['1+1=', '1-5=', '7/2=']  # nothing recorded as wrong
  assert not (tmp_path / 'arithmetic' / 'scores.json').exists() and len(server.asked) == 6
  assert 'requests repeated: 2 times ' in capsys.readouterr().err
  scores = evaluate(server, data_dir, tmp_path)['benchmarks']['arithmetic']
  assert (scores['correct'], scores['resumed'], len(server.asked)) == (3, 3, 7)


@pytest.mark.parametrize('code', [413, 422])
def test_a_refusal_of_one_problem_leaves_the_others_answered(server, data_dir, tmp_path, code):
  server.script = [None, echo_key(400), echo_key(code)]
  message = (
    r'2 problems have no answer \(arithmetic/test/1: 400 Bad Request \(bad key Bearer \*\*\*\); another --prompt or '
    rf'--max-new-tokens may help; arithmetic/test/2: {code} .*\); 2 of 4 answers are kept'
  )
  with pytest.raises(UserError, match=message):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert len(server.asked) == 4


def test_unanswered_problems_of_one_benchmark_do_not_keep_another_from_being_asked(server, data_dir, tmp_path):
  (pathlib.Path(data_dir) / 'gsm8k').mkdir()
  (pathlib.Path(data_dir) / 'gsm8k' / 'test.jsonl').write_text('{"question": "2*3=", "answer": "#### 6"}\n')
  server.script = [FAILURES['500']] * 3
  with pytest.raises(Preempted, match=r'arithmetic/test/0: 500 .*; 4 of 5 answers are kept'):
    evaluate(server, data_dir, tmp_path, 'arithmetic,gsm8k', concurrency=1)
  assert json.loads((tmp_path / 'gsm8k' / 'scores.json').read_text())['correct'] == 1


def test_a_server_that_answers_nothing_is_not_asked_everything(server, data_dir, tmp_path):
  path = pathlib.Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 5)
  server.script = [None] + [FAILURES['500']] * 100
  message = (
    r'8 problems have no answer \(.*arithmetic/test/5, \.\.\.: 500 .*\); 11 more were not asked; 1 of 20 answers'
  )
  with pytest.raises(Preempted, match=message):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert len(server.asked) == 1 + 8 * 3


def test_the_first_problems_are_asked_last_once_they_stayed_unanswered(server, data_dir, tmp_path):
  """Eight consecutive refusals end the run; the next run asks the other problems first."""
  path = pathlib.Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 5)
  server.script = [echo_key(403)] * 8
  message = (
    r'8 problems have no answer \(.*: 403 .*; the key in OPENAI_API_KEY may not use this model, .*\); 12 more were not'
  )
  with pytest.raises(UserError, match=f'{message} asked; 0 of 20 answers'):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  noted = json.loads((tmp_path / 'arithmetic' / 'unanswered.json').read_text())
  assert list(noted) == [f'arithmetic/test/{i}' for i in range(8)] and '403 Forbidden' in noted['arithmetic/test/7']
  server.script = [*[None] * 12, echo_key(400), *[None] * 5, echo_key(400)]
  with pytest.raises(UserError, match='2 problems have no answer .*; 18 of 20 answers are kept'):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert len(server.asked) == 8 + 20
  noted = json.loads((tmp_path / 'arithmetic' / 'unanswered.json').read_text())
  assert list(noted) == ['arithmetic/test/0', 'arithmetic/test/6']
  assert evaluate(server, data_dir, tmp_path)['benchmarks']['arithmetic']['n'] == 20
  assert not (tmp_path / 'arithmetic' / 'unanswered.json').exists()


@pytest.mark.parametrize('concurrency', [1, 4, 64])
def test_failures_among_answers_do_not_end_the_run(server, data_dir, tmp_path, concurrency, monkeypatch):
  """However many there are, at once or after several tries that end when all other problems are answered."""
  path = pathlib.Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 15)

  def failing(_, prompt, max_new_tokens):
    question = prompt['messages'][-1]['content']
    if question in ('2*3=', '7/2='):
      raise client.Failure('500' if question == '2*3=' else '400', retryable=question == '2*3=')
    time.sleep(0.02)
    return client.Answer('2', 1, False, None)

  monkeypatch.setattr(client.Client, 'ask', failing)
  with pytest.raises(Preempted, match='30 problems have no answer .*; 30 of 60 answers are kept'):
    evaluate(server, data_dir, tmp_path, concurrency=concurrency)
  noted = json.loads((tmp_path / 'arithmetic' / 'unanswered.json').read_text())
  assert noted.keys() == {f'arithmetic/test/{i}' for i in range(1, 60, 2)}


def test_a_problem_whose_retry_is_given_up_is_named_too(server, data_dir, tmp_path):
  server.script = [status(500), lambda h: (time.sleep(0.3), h.say(b'', 401))]
  with pytest.raises(UserError, match='401 Unauthorized; put the key .*; 2 more were not asked; 0 of 4 answers'):
    evaluate(server, data_dir, tmp_path, concurrency=2, backoff=30)
  assert len(json.loads((tmp_path / 'arithmetic' / 'unanswered.json').read_text())) == 2


def test_refusals_after_an_answer_do_not_end_the_run(server, data_dir, tmp_path):
  path = pathlib.Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 5)
  server.script = [None, *[echo_key(403)] * 19]
  with pytest.raises(UserError, match='19 problems have no answer .*; 1 of 20 answers are kept'):
    evaluate(server, data_dir, tmp_path, concurrency=1)


def test_failures_count_from_the_last_answer_on():
  criterion, early, answered = pacing.StopCriterion(), time.monotonic(), client.Answer('2', 1, False, None)
  time.sleep(0.01)
  assert criterion.keep_asking(0, early, answered)
  assert all(
    criterion.keep_asking(i, early, client.Failure('500')) for i in range(1, 20)
  )  # first tried before that answer
  late = time.monotonic()
  for _ in range(2):
    assert all(criterion.keep_asking(i, late, client.Failure('500')) for i in range(20, 27))
    assert criterion.keep_asking(27, late, answered)
    late = time.monotonic()
  assert [criterion.keep_asking(i, late, client.Failure('500')) for i in range(30, 38)] == [True] * 7 + [False]


def test_a_stopped_request_is_not_reported_as_repeated(server, data_dir, capsys):
  server.script = [lambda h: (time.sleep(0.3), h.say(b'', 500))] * 3 + [lambda h: (time.sleep(0.1), h.say(b'', 401))]
  with pytest.raises(UserError, match='401'):
    evaluate(server, data_dir, concurrency=4)
  assert len(server.asked) == 4 and 'repeated' not in capsys.readouterr().err


def test_what_stays_unanswered_is_noted_for_this_run_alone(server, data_dir, tmp_path):
  noted = lambda: list(json.loads((tmp_path / 'arithmetic' / 'unanswered.json').read_text()))
  server.script = [echo_key(401)]
  with pytest.raises(UserError):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert noted() == ['arithmetic/test/0']
  server.script = [None, None, echo_key(400), echo_key(400)]  # the first is asked last, and noted last
  with pytest.raises(UserError):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert noted() == ['arithmetic/test/3', 'arithmetic/test/0']
  (tmp_path / 'arithmetic' / 'records.jsonl').write_text('')
  server.script = [echo_key(400)]
  with pytest.raises(UserError):
    evaluate(server, data_dir, tmp_path, concurrency=1, limit=1)
  assert noted() == ['arithmetic/test/0']


def test_decoding_settings_are_refused(server, data_dir):
  ask = run.Ask(data_dir, decoding=run.Decoding(cache_dtype='int8'))
  with pytest.raises(UserError, match="cache_dtype is 'int8': a served model decides its own; leave it out"):
    endpoint.evaluate(server.model, 'arithmetic', ask)


def test_stop_texts_hold_for_a_server_that_does_not_take_them(server, data_dir, tmp_path):
  message = {'choices': [{'text': ' 2\n\nQuestion: 99', 'finish_reason': 'length'}]}
  server.script = [status(200, json.dumps(message).encode())]
  scores = evaluate(server, data_dir, tmp_path, prompt='qwen-base', limit=1)['benchmarks']['arithmetic']
  assert (lines(tmp_path)[0]['response'], scores['correct'], scores['truncated']) == (' 2', 1, 0)


def test_a_run_is_worth_another_try_if_one_answer_is(server, data_dir, tmp_path):
  server.script = [echo_key(400), *[FAILURES['500']] * 3]
  with pytest.raises(Preempted, match='2 problems have no answer'):
    evaluate(server, data_dir, tmp_path, concurrency=1)


def test_nothing_is_asked_when_its_answer_cannot_be_kept(server, data_dir, tmp_path, monkeypatch):
  path = pathlib.Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 5)

  def full(*_):
    raise OSError('No space left on device')

  monkeypatch.setattr(records.RecordWriter, 'write', full)
  server.delay = 0.05
  with pytest.raises(OSError, match='No space'):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  asked = len(server.asked)
  time.sleep(0.4)
  assert len(server.asked) <= asked + 1 < 20


def test_a_defect_of_ours_is_raised_as_it_is(server, data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(client.replies, 'read', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    evaluate(server, data_dir, tmp_path)


def test_started_requests_are_waited_for_and_nothing_new_is_asked(server, data_dir, tmp_path):
  server.script = [slow, echo_key(401)]
  with pytest.raises(UserError, match='1 of 4 answers are kept'):
    evaluate(server, data_dir, tmp_path, concurrency=2)
  assert len(server.asked) == 2


def test_without_out(server, data_dir):
  server.script = [FAILURES['500']] * 3
  with pytest.raises(UserError, match='500 Internal Server Error .oops..; with --out DIR'):
    evaluate(server, data_dir, concurrency=1)


@pytest.mark.parametrize('code', [429, 503])
@pytest.mark.parametrize('form', ['seconds', 'date'])
def test_retry_after_holds_back_every_request(server, data_dir, tmp_path, code, form):
  when = '0.4' if form == 'seconds' else email.utils.formatdate(time.time() + 2, usegmt=True)
  server.script = [status(code, Retry_After=when), lambda h: (time.sleep(0.2), h.say(answer(h.question)))]
  scores = evaluate(server, data_dir, tmp_path, concurrency=2, tries=1)['benchmarks']['arithmetic']
  assert scores['n'] == 4
  times = [asked[-1] for asked in server.asked]
  later = [t - times[0] for t in times if t - times[0] > 0.3]
  assert len(later) >= 3  # all but what was under way


def test_patience_ends(server, data_dir, tmp_path):
  server.script = [status(429, Retry_After='3000')]
  with pytest.raises(
    Preempted, match='429 Too Many Requests, which asks to wait 3,000 seconds; 3 more .*; 0 of 4 answers'
  ):
    evaluate(server, data_dir, tmp_path, concurrency=1, patience=2000)
  server.script = [status(429, Retry_After='0.2')] * 100  # waits that other requests cause count too
  begin = time.monotonic()
  with pytest.raises(Preempted, match='429'):
    evaluate(server, data_dir, tmp_path, concurrency=4, patience=0.7)
  assert time.monotonic() - begin < 1.5
  for busy in (FAILURES['429'], status(503, b'too many', Retry_After='0')):
    server.script = [busy] * 1000
    with pytest.raises(Preempted, match='too many'):
      evaluate(server, data_dir, tmp_path, concurrency=1, patience=0.05)


def test_a_busy_server_is_not_a_failure(server, data_dir):
  server.script = [FAILURES['429']] * 5 + [FAILURES['500']] * 2
  assert evaluate(server, data_dir, concurrency=1, tries=3)['benchmarks']['arithmetic']['n'] == 4


@pytest.mark.parametrize(
  'options, message',
  [
    ({'timeout': 0}, 'timeout is 0; it must be above 0 and below'),
    ({'timeout': 1e10}, 'timeout is 10000000000.0'),
    ({'timeout': float('nan')}, 'timeout is nan'),
    ({'requests_per_minute': 1e-300}, 'requests_per_minute is 1e-300'),
    ({'requests_per_minute': float('inf')}, 'requests_per_minute is inf'),
  ],
)
def test_times_out_of_range(options, message):
  with pytest.raises(UserError, match=message):
    endpoint.Endpoint('openai:https://somewhere.example/v1#m', **options)


def test_concurrency(server, data_dir):
  server.delay = 0.1
  evaluate(server, data_dir, concurrency=3)
  assert server.most == 3


def test_pace(server, data_dir):
  evaluate(server, data_dir, requests_per_minute=600)
  times = sorted(asked[-1] for asked in server.asked)
  assert times[-1] - times[0] > 0.25  # three tenths between four requests


def command(server, data_dir, out, *more):
  words = ['evaluate', server.model, '--benchmarks', 'arithmetic', '--data-dir', data_dir, '--out', out, *more]
  return [str(word) for word in words]


def test_killed_and_started_again(server, data_dir, tmp_path):
  server.script = [None, None, lambda _: time.sleep(60)]
  words = [sys.executable, '-m', 'mathqwen', *command(server, data_dir, tmp_path / 'out', '--concurrency', '1')]
  process = subprocess.Popen(words, cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE)
  deadline = time.monotonic() + 60
  while len(server.asked) < 3 and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert len(lines(tmp_path / 'out')) == 2
  assert cli.main(command(server, data_dir, tmp_path / 'out')) == 0
  assert cli.main(command(server, data_dir, tmp_path / 'uninterrupted')) == 0
  asked = [body['messages'][-1]['content'] for _, _, body, _ in server.asked]
  assert len(asked) == 3 + 2 + 4 and len(set(asked[:5])) == 4
  path = pathlib.Path('arithmetic', 'records.jsonl')
  assert (tmp_path / 'out' / path).read_bytes() == (tmp_path / 'uninterrupted' / path).read_bytes()


def test_command_line(server, data_dir, tmp_path, capsys):
  assert cli.main([*command(server, data_dir, tmp_path), '--json']) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result['benchmarks']['arithmetic']['correct'] == 3 and result['tokens_per_second'] > 0
  server.script = [status(404)]
  assert cli.main(command(server, data_dir, tmp_path / 'b', '--concurrency', '1')) == 2
  assert cli.main(command(server, data_dir, tmp_path / 'b', '--dtype', 'float32')) == 2
  assert '--dtype is decided by the server' in capsys.readouterr().err
  assert cli.main(['evaluate', 'here', '--benchmarks', 'gsm8k', '--timeout', '3']) == 2
  assert '--timeout is for openai:URL#MODEL only' in capsys.readouterr().err
  for flag in ('--concurrency', '--timeout', '--requests-per-minute'):
    assert cli.main(command(server, data_dir, tmp_path / 'b', flag, '0')) == 2


def test_no_accelerator_is_started(server, data_dir):
  code = (
    f'import sys; from mathqwen.evals import endpoint, run; endpoint.evaluate({server.model!r}, "arithmetic", '
    f'run.Ask({data_dir!r})); print([m for m in ("jax", "flax", "tokenizers") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == '[]', done.stderr
