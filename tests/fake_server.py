"""A server of the OpenAI API on this machine, which can also answer with errors, garbage, nothing, or too late."""

import http.server
import json
import threading
import time

from mathqwen.evals import client, endpoint, run

KEY = 'sk-very-secret-0123456789'
SEED = 1
ANSWERS = {'1+1=': 'the answer is 2', '2*3=': '6', '1-5=': 'I cannot say.', '7/2=': 'so 3.5'}


def answer(question, **change):
  """What a server of the OpenAI API says."""
  choice = {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': ANSWERS.get(question)}}
  usage = {'prompt_tokens': 9, 'completion_tokens': 5, 'total_tokens': 14}
  return {'model': 'served-0613', 'choices': [choice | change], 'usage': usage}


class Server(http.server.ThreadingHTTPServer):
  """`script`: functions of the handler, one for each of the first requests; then `respond` answers every question."""

  daemon_threads = True
  request_queue_size = 128

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.script, self.asked, self.lock, self.under_way, self.most = [], [], threading.Lock(), 0, 0
    self.url = f'http://127.0.0.1:{self.server_address[1]}/v1'
    self.model = f'openai:{self.url}#Qwen/Q'
    self.delay = 0
    self.respond = lambda handler: handler.say(answer(handler.question))

  def handle_error(self, request, client_address):
    pass  # the client left


class Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    body = self.body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    server = self.server
    with server.lock:
      server.asked.append((self.path, dict(self.headers), body, time.monotonic()))
      act = server.script.pop(0) if server.script else None
      server.under_way += 1
      server.most = max(server.most, server.under_way)
    time.sleep(server.delay)
    with server.lock:
      server.under_way -= 1  # before the answer: the client that has it may ask again at once
    self.question = body['messages'][-1]['content'] if 'messages' in body else body['prompt']
    (act or server.respond)(self)

  def say(self, body, status=200, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in {'Content-Length': str(len(data)), **headers}.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *_):
    pass


def status(code, body=b'', **headers):
  return lambda handler: handler.say(body, code, **headers)


def echo_key(code):
  return lambda handler: handler.say({'error': {'message': f'bad key {handler.headers["Authorization"]}'}}, code)


def slow(handler):
  time.sleep(0.6)
  handler.say(answer(handler.question))


def dripping(handler):
  handler.send_response(200)
  handler.end_headers()
  for _ in range(12):
    handler.wfile.write(b' ')
    handler.wfile.flush()
    time.sleep(0.05)
  handler.wfile.write(json.dumps(answer(handler.question)).encode())


def half(handler):
  handler.send_response(200)
  handler.send_header('Content-Length', '1000')
  handler.end_headers()
  handler.wfile.write(b'{"choices"')


def dripping_headers(handler):
  for piece in b'HTTP/1.0 200 OK\r\n' + b'X-Drip: 1\r\n' * 20:
    handler.wfile.write(bytes([piece]))
    handler.wfile.flush()
    time.sleep(0.02)


FAILURES = {
  '500': status(500, b'oops'),
  '502': status(502, b'<html>Bad gateway</html>'),
  '429': status(429, b'{"error": {"message": "too many"}}'),
  '503': status(503),
  '408': status(408),
  '409': status(409),
  'too much': lambda h: h.say(b' ' * (client.MAX_BODY + 1)),
  'garbage': status(200, b'\xff\x00 not JSON'),
  'nothing': status(200),
  'half': half,
  'slow': slow,
  'dripping': dripping,
  'another schema': status(200, b'{"text": "2"}'),
  'a list': status(200, b'[]'),
  'no choices': status(200, b'{"choices": []}'),
  'no text': lambda h: h.say(answer(h.question, message={'role': 'assistant', 'content': None})),
  'nothing said': lambda h: h.say(answer(h.question, message={'content': ''}, finish_reason=None)),
  'interrupted': lambda h: h.say(answer(h.question, finish_reason='abort')),
  'half a stream': lambda h: h.say(b'data: {"choices": [{"delta": {"content": "6"}}]}\n\n'),
  'an error in a stream': lambda h: h.say(b'data: {"error": {"message": "out of memory"}}\n\n'),
  'a picture': lambda h: h.say(answer(h.question, message={'content': [{'type': 'image_url', 'image_url': {}}]})),
  'a number': lambda h: h.say(answer(h.question, message={'content': 7})),
  'gone': lambda h: h.connection.close(),
}


def evaluate(server, data_dir, out=None, names='arithmetic', decoding=run.GREEDY, **options):
  # limit_seed: of limit 1, it draws the first problem
  asked = {'limit_seed': SEED if 'limit' in options else 0} | {
    name: options.pop(name) for name in ('limit', 'prompt', 'max_new_tokens', 'max_thinking_tokens') if name in options
  }
  options = {'backoff': 0.001, 'tries': 3, 'progress': False} | options
  ask = run.Ask(data_dir, decoding=decoding, **asked)
  return endpoint.evaluate(server.model, names, ask, out=out, **options)
