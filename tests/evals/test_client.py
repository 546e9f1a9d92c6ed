"""One request to a served model: what is an answer, what is a failure, and where the key goes."""

import json
import shutil
import ssl
import subprocess
import time

import pytest
from fake_server import KEY, answer, dripping_headers, echo_key, evaluate, status
from reciting import lines

from mathqwen.errors import Preempted, UserError
from mathqwen.evals import client, endpoint, run

pytestmark = pytest.mark.usefixtures('key')


def test_an_answer_that_was_truncated_while_thinking(server, data_dir, tmp_path):
  message = {'role': 'assistant', 'content': None, 'reasoning_content': 'hm'}
  server.script = [lambda h: h.say(answer('1+1=', message=message, finish_reason='length'))]
  evaluate(server, data_dir, tmp_path, limit=1)
  assert (lines(tmp_path)[0]['response'], lines(tmp_path)[0]['truncated']) == ('', True)


def test_an_answer_that_was_withheld(server, data_dir, tmp_path):
  server.script = [lambda h: h.say(answer('1+1=', message={'content': None}, finish_reason='content_filter'))]
  evaluate(server, data_dir, tmp_path, limit=1)
  assert (lines(tmp_path)[0]['response'], lines(tmp_path)[0]['truncated']) == ('', False)


@pytest.mark.parametrize('reason', ['content_filter', 'SAFETY'])
def test_an_answer_that_a_filter_ended_is_not_finished(server, data_dir, tmp_path, reason):
  message = {'role': 'assistant', 'content': '1 + 1 = 2 and'}
  server.script = [lambda h: h.say(answer('1+1=', message=message, finish_reason=reason))]
  scores = evaluate(server, data_dir, tmp_path, limit=1)['benchmarks']['arithmetic']
  assert (lines(tmp_path)[0]['response'], lines(tmp_path)[0]['truncated']) == ('1 + 1 = 2 and', True)
  assert scores['truncated'] == 1


def test_a_server_that_counts_no_tokens(server, data_dir, tmp_path):
  body = answer('1+1=')
  del body['usage']
  server.script = [lambda h: h.say(body)]
  scores = evaluate(server, data_dir, tmp_path)
  assert scores['benchmarks']['arithmetic']['tokens'] is None
  assert sum(row['tokens'] is None for row in lines(tmp_path)) == 1


def test_an_escaped_key_in_garbage_is_masked(server, data_dir, tmp_path, monkeypatch, capsys):
  key = 'sk/very/secret/0123456789'
  monkeypatch.setenv('OPENAI_API_KEY', key)
  server.script = [status(200, json.dumps({'error': key}).replace('/', '\\/').encode())]
  evaluate(server, data_dir, tmp_path)
  err = capsys.readouterr().err
  assert '***' in err and 'very' not in err


def test_the_timeout_holds_while_headers_come(server, data_dir, tmp_path):
  server.script = [dripping_headers] * 2
  begin = time.monotonic()
  with pytest.raises(Preempted, match='no answer within 0.3 seconds'):
    evaluate(server, data_dir, tmp_path, timeout=0.3, concurrency=1, tries=2)
  assert time.monotonic() - begin < 3  # each drips for 5 seconds


@pytest.mark.parametrize(
  'header, seconds',
  [('7', 7), ('0.5', 0.5), ('-3', 0), ('soon', None), ('nan', None), ('inf', None), (None, None),
   ('Wed, 21 Oct 2015 07:28:00 GMT', 0), ('21 Oct 99999999999999999999 07:28:00 GMT', None)],
)  # fmt: skip
def test_retry_after(header, seconds):
  assert client.parse_retry_after(header) == seconds


@pytest.mark.parametrize(
  'act, message',
  [
    (echo_key(401), r'401 Unauthorized \(bad key Bearer \*\*\*\); put the key of this server into OPENAI_API_KEY'),
    (echo_key(404), r'check the address \(most end in /v1\) and the name after #'),
    (status(429, b'{"error": {"code": "insufficient_quota", "message": "pay"}}'), r'429 Too Many Requests \(pay\)'),
    (status(302, Location=f'/{KEY}'), r'redirects to /\*\*\*, where the key is not sent'),
    (status(308, Location='http://[::1'), r'redirects to http://\[::1, where the key is not sent'),
    (status(402), r'402 Payment Required; the server will not answer this request'),
    (status(405), r'405 Method Not Allowed; the server will not answer this request'),
    (status(304), r'304 Not Modified; the server will not answer this request'),
  ],
)
def test_a_failure_that_no_retry_helps_ends_the_run_at_once(server, data_dir, tmp_path, act, message):
  server.script = [act]
  with pytest.raises(UserError, match=message):
    evaluate(server, data_dir, tmp_path, concurrency=1)
  assert len(server.asked) == 1


def test_no_server(data_dir, tmp_path):
  message = r'#m: cannot be reached .*Connection refused.*; 0 of 4 answers are kept'  # and no list of problems
  with pytest.raises(Preempted, match=message):
    endpoint.evaluate(
      'openai:http://127.0.0.1:9/v1#m', 'arithmetic', run.Ask(data_dir), out=tmp_path, concurrency=1, backoff=0.001
    )


def test_a_key_that_travels_unencrypted_is_reported(capsys):
  endpoint.Endpoint('openai:http://somewhere.example/v1#m')
  assert 'somewhere.example is asked over http: the key travels unencr' in capsys.readouterr().err
  endpoint.Endpoint('openai:https://somewhere.example/v1#m')
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('count', [-3, 10**400, 2.5, '7'])
def test_impossible_token_counts(server, data_dir, tmp_path, count):
  server.script = [lambda h: h.say(answer(h.question) | {'usage': {'completion_tokens': count}})]
  assert evaluate(server, data_dir, tmp_path)['benchmarks']['arithmetic']['tokens'] is None


def test_https(server, data_dir, tmp_path, monkeypatch):
  if not shutil.which('openssl'):
    pytest.skip('no openssl here, which makes the certificate')
  words = 'openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost -addext'
  subprocess.run([*words.split(), 'subjectAltName=DNS:localhost'], cwd=tmp_path, check=True, capture_output=True)
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(tmp_path / 'cert.pem', tmp_path / 'key.pem')
  server.socket = context.wrap_socket(server.socket, server_side=True)
  server.model = server.model.replace('http://127.0.0.1', 'https://localhost')
  monkeypatch.setenv('SSL_CERT_FILE', str(tmp_path / 'cert.pem'))
  server.script = [dripping_headers]
  assert evaluate(server, data_dir, timeout=0.5, concurrency=1)['benchmarks']['arithmetic']['correct'] == 3
  assert len(server.asked) == 5
  monkeypatch.delenv('SSL_CERT_FILE')
  asked = len(server.asked)
  message = 'cannot be reached .*CERTIFICATE_VERIFY_FAILED.*; SSL_CERT_FILE names .*; 0 of 4 answers are kept'
  with pytest.raises(UserError, match=message):
    evaluate(server, data_dir, tmp_path)
  assert len(server.asked) == asked


def test_a_proxy_is_named_and_what_is_in_its_address_is_not(server, data_dir, monkeypatch, capsys):
  monkeypatch.setenv('http_proxy', 'http://me:hunter2@127.0.0.1:9')
  monkeypatch.setenv('no_proxy', '')
  with pytest.raises(UserError, match='cannot be reached by the proxy that http_proxy names .*refused') as caught:
    evaluate(server, data_dir)
  assert 'hunter2' not in str(caught.value) + capsys.readouterr().err


@pytest.mark.parametrize(
  'name, message',
  [
    ('openai:127.0.0.1:8000/v1#m', 'is not an http or https address; give openai:URL#MODEL'),
    ('openai:ftp://a/v1#m', 'is not an http or https address'),
    ('openai:http://a:port/v1#m', 'is not an address'),
    ('openai:http://a/v1', 'does not name a model after #'),
    ('openai:http://a/größe#m', "'http://a/größe': write what is not ASCII with percent signs, /gr%C3%B6%C3%9Fe"),
    ('openai:http://a..b/v1#m', 'is not an address'),
    (f'openai:http://{"a" * 64}/v1#m', 'is not an address'),
    ('openai:http://a/v1#\udcff', 'holds characters that cannot be printed'),
    (f'openai:http://{KEY}@a/v1#m', 'the address holds a key'),
    (f'openai:http://user:{KEY}@a:port/v1#m', 'the address holds a key'),
    (f'openai:http://a/v1?key={KEY}#m', 'the address holds a key'),
  ],
)
def test_bad_names(name, message):
  with pytest.raises(UserError, match=message) as caught:
    client.parse(name)
  assert KEY not in str(caught.value)


def test_names():
  assert client.parse('openai:https://a.b/v1/#Qwen/Qwen2.5#x') == ('https://a.b/v1', 'Qwen/Qwen2.5#x')


def test_the_key_is_masked_everywhere(server, data_dir, tmp_path, capsys):
  def telling(handler):
    handler.say(answer(handler.question, message={'content': f'{handler.headers["Authorization"]} 2'}))

  server.script = [telling, echo_key(429), echo_key(500), lambda h: h.say(KEY.encode()), echo_key(500), echo_key(401)]
  with pytest.raises(UserError) as caught:
    evaluate(server, data_dir, tmp_path, concurrency=1, progress=True, tries=9)
  assert len(server.asked) == 6
  texts = [path.read_text() for path in tmp_path.rglob('*.json*')] + list(capsys.readouterr()) + [str(caught.value)]
  assert lines(tmp_path)[0]['response'] == 'Bearer *** 2'
  assert not any(KEY in text for text in texts) and sum('***' in text for text in texts) == 4


def test_a_key_written_with_escapes_is_masked(server, data_dir, tmp_path, capsys):
  escaped = lambda body: json.dumps(body).replace('-', '\\u002d').encode()
  with_key = lambda h: escaped(answer(h.question, message={'content': f'{KEY} 2'}) | {'model': KEY})
  message = {'error': {'message': 'x' * 280 + KEY}}
  server.script = [
    lambda h: h.say(with_key(h)),
    lambda h: h.say(escaped(message), 500),
    lambda h: h.say(b'[' * 200_000),
  ]
  server.script.append(lambda h: h.say(escaped(message), 401))
  with pytest.raises(UserError) as caught:
    evaluate(server, data_dir, tmp_path, concurrency=1, progress=True, tries=9)
  texts = [path.read_text() for path in tmp_path.rglob('*.json*')] + list(capsys.readouterr()) + [str(caught.value)]
  assert lines(tmp_path)[0]['response'] == '*** 2' and lines(tmp_path)[0]['served_model'] == '***'
  assert not any(KEY[:8] in text for text in texts) and len(server.asked) == 4


@pytest.mark.parametrize('key', ['two words', 'line\nend', 'schlüssel'])
def test_a_key_that_no_header_takes_is_not_shown(monkeypatch, server, data_dir, key):
  monkeypatch.setenv('OPENAI_API_KEY', key)
  with pytest.raises(UserError, match='OPENAI_API_KEY holds characters') as caught:
    evaluate(server, data_dir)
  assert key not in str(caught.value) and not server.asked


def test_a_short_key_is_not_masked_and_no_key_is_no_header(monkeypatch, server, data_dir, tmp_path):
  monkeypatch.setenv('OPENAI_API_KEY', 'EMPTY')
  server.script = [lambda h: h.say(answer(h.question, message={'content': 'EMPTY set'}))]
  evaluate(server, data_dir, tmp_path, limit=1)
  assert lines(tmp_path)[0]['response'] == 'EMPTY set'
  monkeypatch.delenv('OPENAI_API_KEY')
  evaluate(server, data_dir, limit=1)
  assert [headers.get('Authorization') for _, headers, _, _ in server.asked] == ['Bearer EMPTY', None]
