"""What servers of today do: other names of parameters, parts, streams, thinking apart; and several samples of them."""

import json

import pytest
from fake_server import ANSWERS, FAILURES, answer, echo_key, evaluate, status
from reciting import lines

from mathqwen import cli
from mathqwen.errors import Preempted, UserError
from mathqwen.evals import endpoint, replies, run

pytestmark = pytest.mark.usefixtures('key')
SAMPLED = run.Decoding(samples=3, temperature=0.7, top_p=0.9, top_k=20, seed=5)


def refusing(*names, message="Unsupported parameter: '{}' is not supported with this model.", code=400, **error):
  """Answers a request only when it has none of these fields."""

  def respond(handler):
    sent = handler.body
    bad = next((name for name in names if name in sent), None)
    if bad is None:
      return handler.say(answer(handler.question))
    told = {'message': message.format(bad)} | {key: bad if value == 'name' else value for key, value in error.items()}
    return handler.say({'error': told}, code)

  return respond


@pytest.mark.parametrize(
  'message, error, code',
  [
    ("Unsupported parameter: '{}' is not supported with this model.", {'param': 'name'}, 400),
    ("Unsupported value: '{}' does not support 0.0 with this model. Only the default (1) value is supported.", {}, 400),
    ('Invalid JSON payload received. Unknown name "{}": Cannot find field.', {}, 400),
    ('[{{"type":"extra_forbidden","loc":["body","{}"],"msg":"Extra inputs are not permitted"}}]', {}, 422),
  ],
)
def test_a_refused_parameter_is_left_out_once(server, data_dir, tmp_path, capsys, message, error, code):
  server.respond = refusing('temperature', 'seed', message=message, code=code, **error)
  decoding = run.Decoding(temperature=0.7)
  scores = evaluate(server, data_dir, tmp_path, decoding=decoding, concurrency=1)['benchmarks']['arithmetic']
  assert (scores['correct'], len(server.asked)) == (3, 4 + 2)
  assert scores['decoding']['request_changes'] == ['seed left out', 'temperature left out']
  assert lines(tmp_path)[0]['request_changes'] == ['temperature left out', 'seed left out']
  err = capsys.readouterr().err
  assert err.count('temperature is left out, so the server decides it') == 1 and err.count('seed is left out') == 1
  # Continued, it finds out again, and says the same.
  again = evaluate(server, data_dir, tmp_path, decoding=decoding)['benchmarks']['arithmetic']
  assert again['decoding'] == scores['decoding'] and len(server.asked) == 6


def test_the_other_name_of_the_limit(server, data_dir, tmp_path, capsys):
  message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
  server.respond = refusing('max_tokens', message=message)
  scores = evaluate(server, data_dir, tmp_path, concurrency=4)['benchmarks']['arithmetic']
  assert scores['correct'] == 3 and 'max_completion_tokens' in server.asked[-1][2]
  assert 'max_tokens' not in server.asked[-1][2] and server.asked[-1][2]['max_completion_tokens'] == 64
  assert scores['decoding']['request_changes'] == ['max_completion_tokens for max_tokens']
  assert capsys.readouterr().err.count('max_completion_tokens is sent for max_tokens') == 1


@pytest.mark.parametrize(
  'message',
  [
    "'max_tokens' or 'max_completion_tokens' is too large: 64. The context length is 32 tokens.",
    'temperature must be at most 1',
    'please stop: this question is not supported',
  ],
)
def test_a_refused_value_is_not_a_refused_parameter(server, data_dir, message):
  server.respond = lambda h: h.say({'error': {'message': message}}, 400)
  with pytest.raises(UserError, match='400 Bad Request'):
    evaluate(server, data_dir, concurrency=1)
  assert len(server.asked) == 4  # once each


def test_a_parameter_is_left_out_no_more_than_once(server, data_dir):
  server.respond = lambda h: h.say({'error': {'message': 'Unsupported: temperature, max_tokens'}}, 400)
  with pytest.raises(UserError, match='400 Bad Request'):
    evaluate(server, data_dir, concurrency=1)
  assert len(server.asked) == 2 + 4


def test_more_fields_of_each_request(server, data_dir, tmp_path):
  more = {'chat_template_kwargs': {'enable_thinking': False}, 'temperature': None}
  scores = evaluate(server, data_dir, tmp_path, request_json=more)['benchmarks']['arithmetic']
  body = server.asked[0][2]
  assert body['chat_template_kwargs'] == {'enable_thinking': False} and 'temperature' not in body
  assert scores['decoding']['request_json'] == more
  with pytest.raises(UserError, match='holds another run .request_json'):
    evaluate(server, data_dir, tmp_path)
  with pytest.raises(UserError, match="request_json has 'temperature', which --temperature decides"):
    evaluate(server, data_dir, request_json={'temperature': 1})
  command = ['evaluate', server.model, '--benchmarks', 'arithmetic', '--data-dir', data_dir, '--request-json']
  assert [cli.main([*command, text]) for text in ('{"min_p": 0.1}', '[]', '{')] == [0, 2, 2]
  assert server.asked[-1][2]['min_p'] == 0.1


THINKING_PART = {'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'Hm'}]}
LINE = 'It\u2028is '  # with a character at which str.splitlines splits


def chat(**message):
  return {'message': {'role': 'assistant', **message}}


def stream(*deltas, done=True, usage=None, reason='stop'):
  """Server-sent events, as vLLM writes them."""
  events = [{'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]} for delta in deltas]
  events.append({'choices': [{'index': 0, 'delta': {}, 'finish_reason': reason}]})
  events.append({'model': 'served-0613', 'choices': [], 'usage': usage})
  texts = [f'data: {json.dumps(event, ensure_ascii=False)}' for event in events] + (['data: [DONE]'] if done else [])
  return ': ping\n\n' + '\n\n'.join(texts) + '\n\n'


@pytest.mark.parametrize(
  'body, text, reasoning, truncated',
  [
    (chat(content=[{'type': 'text', 'text': 'It is '}, {'type': 'text', 'text': '18'}]), 'It is 18', None, False),
    (chat(content=['It is ', {'type': 'output_text', 'text': '18'}]), 'It is 18', None, False),
    (chat(content=[THINKING_PART, {'type': 'text', 'text': '18'}]), '18', 'Hm', False),
    (chat(content='18', reasoning_content='Hm'), '18', 'Hm', False),
    (chat(content='18', reasoning='Hm'), '18', 'Hm', False),
    (chat(content='18', reasoning='Hm', reasoning_content='Hm'), '18', 'Hm', False),
    (chat(content=None, reasoning='Hm'), '', 'Hm', False),
    (chat(content='18') | {'finish_reason': 'MAX_TOKENS'}, '18', None, True),
    (chat(content='18') | {'finish_reason': None}, '18', None, False),
    (chat(content='18') | {'finish_reason': ''}, '18', None, False),
    (chat(content=None, refusal='I will not.'), 'I will not.', None, False),
    (stream({'role': 'assistant', 'content': ''}, {'content': LINE}, {'content': '18'}), f'{LINE}18', None, False),
    (stream({'reasoning_content': 'H'}, {'reasoning_content': 'm'}, {'content': '18'}), '18', 'Hm', False),
    (stream({'content': '18'}, reason=None), '18', None, None),
    (stream({'content': '18'}, reason=None, usage={'completion_tokens': 64}), '18', None, True),
    (stream({'content': '18'}, reason='length', done=False), '18', None, True),
    (stream({'content': [THINKING_PART]}, {'content': '18'}), '18', 'Hm', False),
    (
      'data: {"choices": [{"text": "1"}]}\r\n\r\ndata: {"choices": [{"text": "8", "finish_reason": "stop"}]}',
      '18', None, False,
    ),
  ],
)  # fmt: skip
def test_forms_of_an_answer(body, text, reasoning, truncated):
  if isinstance(body, dict):
    body = json.dumps({'choices': [{'finish_reason': 'stop'} | body], 'usage': {'completion_tokens': 5}})
  found = replies.read(body, limit=64)
  assert (found.text, found.reasoning, found.truncated) == (text, reasoning, truncated)


def test_a_server_that_streams_unasked(server, data_dir, tmp_path):
  def respond(handler):
    text = ANSWERS[handler.question]
    usage = {'completion_tokens': 5, 'completion_tokens_details': {'reasoning_tokens': 3}}
    deltas = [{'reasoning_content': 'Maybe \\boxed{20}?'}, {'content': text[:2]}, {'content': text[2:]}]
    handler.say(stream(*deltas, usage=usage).encode(), Content_Type='text/event-stream')

  server.respond = respond
  scores = evaluate(server, data_dir, tmp_path)['benchmarks']['arithmetic']
  assert (scores['correct'], scores['tokens'], scores['truncated']) == (3, 20, 0)
  first = lines(tmp_path)[0]
  assert (first['response'], first['reasoning']) == ('the answer is 2', 'Maybe \\boxed{20}?')
  assert (first['thinking_tokens'], first['served_model']) == (3, 'served-0613')


def test_thinking_that_is_counted_and_not_sent():
  def of(text, **fields):
    answer = replies.Answer(text, 500, False, None, **fields)
    return endpoint.response_of_answer(answer, ()).get('thinking_tokens', 'not known')

  assert of('18', reasoning_tokens=480) == 480  # OpenAI sends the number alone
  assert of('18') == of('18', reasoning_tokens=0) == 0
  assert of('18', reasoning='Hm', reasoning_tokens=480) == 480
  assert {of('18', reasoning='Hm'), of('[THINK]Hm[/THINK]18'), of('Hm</think>18', reasoning_tokens=0)} == {'not known'}


def test_several_samples(server, data_dir, tmp_path):
  scores = evaluate(server, data_dir, tmp_path, decoding=SAMPLED, concurrency=1)['benchmarks']['arithmetic']
  bodies = [body for _, _, body, _ in server.asked]
  assert (scores['n'], scores['samples'], scores['problems'], scores['correct']) == (12, 3, 4, 9)
  assert [body['messages'][-1]['content'] for body in bodies] == list(ANSWERS) * 3  # a sample of each at a time
  assert {(body['temperature'], body['top_p'], body['top_k']) for body in bodies} == {(0.7, 0.9, 20)}
  seeds = [body['seed'] for body in bodies]
  assert len(set(seeds)) == 12 and all(0 <= seed < 2**31 for seed in seeds)
  assert [row['id'] for row in lines(tmp_path)][:4] == [
    *(f'arithmetic/test/0#{i}' for i in range(3)),
    'arithmetic/test/1#0',
  ]
  other = tmp_path / 'other'
  evaluate(server, data_dir, other, decoding=run.Decoding(samples=3, temperature=0.7, seed=6))
  assert not set(seeds) & {body['seed'] for _, _, body, _ in server.asked[12:]}


@pytest.mark.parametrize(
  'failure, error', [('500', Preempted), ('429', Preempted), ('gone', Preempted), ('key', UserError)]
)
def test_what_is_paid_for_is_kept_to_the_sample(server, data_dir, tmp_path, failure, error):
  """The server dies, refuses the key, or is swamped in the middle of sampling: the same command asks the rest only."""
  act = echo_key(401) if failure == 'key' else FAILURES[failure]
  server.script = [None] * 5 + [act] * 1000
  with pytest.raises(error, match='5 of 12 answers are kept .* the same command continues'):
    evaluate(server, data_dir, tmp_path, decoding=SAMPLED, concurrency=1, patience=0.05)
  kept = {row['id']: row for row in lines(tmp_path)}
  asked = [body['seed'] for _, _, body, _ in server.asked[:5]]
  server.script, before = [], len(server.asked)
  scores = evaluate(server, data_dir, tmp_path, decoding=SAMPLED, concurrency=1)['benchmarks']['arithmetic']
  assert (scores['n'], scores['resumed'], len(server.asked) - before) == (12, 5, 7)
  assert kept == {row['id']: row for row in lines(tmp_path) if row['id'] in kept}
  seeds = {body['seed'] for _, _, body, _ in server.asked[before:]}
  assert len(seeds) == 7 and not seeds & set(asked)


def test_a_problem_that_is_always_refused_does_not_end_the_sampling_of_others(server, data_dir, tmp_path):
  server.respond = lambda h: h.say(answer(h.question)) if h.question != '1+1=' else status(400, b'filtered')(h)
  decoding = run.Decoding(samples=9, temperature=0.7)
  with pytest.raises(UserError, match='9 problems have no answer .*; 27 of 36 answers are kept'):
    evaluate(server, data_dir, tmp_path, decoding=decoding, concurrency=1)


def test_sampling_by_the_command(server, data_dir, tmp_path, capsys):
  words = ['evaluate', server.model, '--benchmarks', 'arithmetic', '--data-dir', data_dir, '--out', str(tmp_path)]
  assert cli.main([*words, '--samples', '2', '--temperature', '0.6', '--seed', '3', '--json']) == 0
  scores = json.loads(capsys.readouterr().out.splitlines()[-1])['benchmarks']['arithmetic']
  assert (scores['n'], scores['samples'], scores['decoding']['temperature']) == (8, 2, 0.6)
