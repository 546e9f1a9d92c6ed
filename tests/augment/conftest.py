"""A served model that says what a test wants, and the source that it is asked about."""

import json
import threading

import fake_server
import pytest
from four_questions import QUESTIONS

from mathqwen.augment import asking, augment
from mathqwen.evals import endpoint
from mathqwen.evals.ask import Ask, Decoding


@pytest.fixture
def source(tmp_path):
  """A file with four questions and their worked answers; ids are rows/0, rows/1, ..."""
  path = tmp_path / 'rows.jsonl'
  rows = [{'question': q, 'answer': f'{q[8:-1]} = {a}\n#### {a}'} for q, a in QUESTIONS.items()]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.fixture
def server():
  """A running server. `server.reply(question, number)` gives an answer; one that ends with `...` is cut off."""
  one = fake_server.Server()
  times = {}

  def respond(handler):
    with one.lock:
      number = times[handler.question] = times.get(handler.question, -1) + 1
    text = one.reply(handler.question, number)
    cut = {'finish_reason': 'length'} if text.endswith('...') else {}
    handler.say(fake_server.answer('', message={'role': 'assistant', 'content': text}, **cut))

  one.respond = respond
  one.reply = lambda question, number: f'so {QUESTIONS[question]}'
  threading.Thread(target=one.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
  yield one
  one.shutdown()
  one.server_close()


@pytest.fixture
def run(server, source, tmp_path):
  """run(samples=3, ...) -> summary. Rows, samples and new questions are read by `lines`."""

  def one(
    samples=3, concurrency=1, temperature=0.7, out=tmp_path / 'out', limit=None, rule='number', of=source, **options
  ):
    retries = {name: options.pop(name) for name in ('tries', 'timeout', 'request_json') if name in options}
    model = endpoint.Endpoint(server.model, backoff=0.001, **{'tries': 3} | retries)
    ask = Ask(limit=limit, rule=rule, decoding=Decoding(samples=samples, temperature=temperature))
    request = augment.AugmentRequest(of, str(out), ask, **options)
    served = asking.ServedModel(model, concurrency)
    return augment.augment(served, augment.prepare(request, served), show=False)

  return one


@pytest.fixture
def lines(tmp_path):
  """lines('train') -> the rows of OUT/train.jsonl"""
  return lambda name: [json.loads(line) for line in (tmp_path / 'out' / f'{name}.jsonl').read_text().splitlines()]
