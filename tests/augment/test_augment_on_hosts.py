"""Several hosts: they share the questions, and whichever of them has an answer, it is asked once."""

import json

import pytest
from four_questions import QUESTIONS
from two_hosts import on_two_hosts

from mathqwen.augment import augment
from mathqwen.evals.ask import Ask, Decoding


class Reciter:
  """Takes the place of `asking.OurModel`: answers from what a stream of it stands for, and keeps what it was asked."""

  name, dtype, chat, system_prompt, at_a_time, drawn = 'reciter', 'float32', None, '', 2, ('temperature', 'seed')
  request_json = None

  def __init__(self):
    self.streams = []

  def requests(self, prompt, questions):
    return [question.question for question in questions]

  def room(self, request):
    return None

  def answer(self, requests, limits, streams, decoding, stop, done):
    self.streams += streams
    for position, question in reversed(list(enumerate(requests))):
      text = f'{streams[position]} - 1 = {streams[position] - 1}, so {QUESTIONS[question]}'
      done(position, {'response': text, 'tokens': 9, 'truncated': False})


@pytest.fixture
def augmented(source):
  def one(model, out):
    ask = Ask(rule='number', decoding=Decoding(samples=3, temperature=0.7))
    prepared = augment.prepare(augment.AugmentRequest(source, str(out), ask), model)
    return augment.augment(model, prepared, show=False)

  return one


@pytest.mark.parametrize('disks', [['shared', 'shared'], ['own 0', 'own 1']])
def test_two_hosts(augmented, tmp_path, monkeypatch, disks):
  whole = augmented(Reciter(), tmp_path / 'whole')
  out = [tmp_path / disk for disk in disks]
  models = [Reciter(), Reciter()]
  summaries = on_two_hosts(monkeypatch, lambda host: augmented(models[host], out[host]))
  assert sorted(models[0].streams + models[1].streams) == list(range(12)) and len(models[0].streams) == 6
  for summary in summaries:
    assert (summary['sha256'], summary['samples'], summary['rows']) == (whole['sha256'], 12, 16)
    assert summary['seconds'] * summary['answers_per_second'] == pytest.approx(12)
    assert summary['seconds'] * summary['tokens_per_second'] == pytest.approx(12 * 9)
  for name in ('train.jsonl', 'samples.jsonl'):
    assert (out[0] / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
  assert disks[0] == disks[1] or not (out[1] / 'train.jsonl').exists()

  # Host 1 lost an answer, and host 0's results are gone: one answer is asked again, by one of the hosts.
  kept = [json.loads(line) for line in (out[0] / 'samples.jsonl').read_text().splitlines()]
  of_host_1 = (out[1] / 'samples.1.jsonl').read_text().splitlines(keepends=True)
  (out[1] / 'samples.1.jsonl').write_text(''.join(of_host_1[:-1]))
  own = {json.loads(line)['id'] for line in of_host_1}
  (out[0] / 'samples.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in kept if x['id'] not in own))
  models = [Reciter(), Reciter()]
  again = on_two_hosts(monkeypatch, lambda host: augmented(models[host], out[host]))
  assert len(models[0].streams + models[1].streams) == 1 and again[0]['sha256'] == whole['sha256']


class Narrow(Reciter):
  """Has no room for an answer to the questions of `full`."""

  full = (list(QUESTIONS)[0], list(QUESTIONS)[1], list(QUESTIONS)[3])  # one of host 0's, and both of host 1's

  def room(self, request):
    return 0 if request in self.full else None


def test_questions_without_room_are_those_of_all_hosts(augmented, tmp_path, monkeypatch):
  summaries = on_two_hosts(monkeypatch, lambda host: augmented(Narrow(), tmp_path / 'out'))
  assert [(found['samples'], found['too_long'], found['missing']) for found in summaries] == [(3, 3, 0)] * 2
  assert 'answers are missing' not in (tmp_path / 'out' / 'README.md').read_text()
