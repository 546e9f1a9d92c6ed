"""The data set that fake models are asked, and the fakes."""

import json
import threading

import pytest
from fake_server import KEY, Server
from reciting import QUESTIONS, RecitingModel


@pytest.fixture
def data_dir(tmp_path):
  folder = tmp_path / 'data' / 'arithmetic'
  folder.mkdir(parents=True)
  rows = [json.dumps({'query': q, 'response': a, 'group': g}) + '\n' for q, a, g in QUESTIONS]
  (folder / 'test.jsonl').write_text(''.join(rows))
  return str(tmp_path / 'data')


@pytest.fixture
def reciting():
  """Three right answers of four; one has no number."""

  def make(**kwargs):
    answers = {q: f'the answer is {a}' for q, a, _ in QUESTIONS} | {'1-5=': 'I cannot say.'}
    return RecitingModel(answers, **kwargs)

  return make


@pytest.fixture
def key(monkeypatch):
  """The key that servers are sent."""
  monkeypatch.setenv('OPENAI_API_KEY', KEY)


@pytest.fixture
def server():
  """A running Server."""
  one = Server()
  threading.Thread(target=one.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
  yield one
  one.shutdown()
  one.server_close()
