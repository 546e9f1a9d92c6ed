"""An augmentation into a bucket: killed and continued, and the same as on a disk."""

import json

import pytest

from mathqwen import files
from mathqwen.augment import asking, augment
from mathqwen.evals.ask import Ask, Decoding

QUESTIONS = {'1+1=': '2', '2+3=': '5'}


class Reciter:
  """Takes the place of a model; it is killed after some answers."""

  name, dtype, chat, system_prompt, at_a_time, drawn = 'reciter', 'float32', None, '', 2, ('temperature',)
  request_json = None

  def __init__(self, answers=100):
    self.left = answers
    self.asked = 0

  requests = staticmethod(lambda prompt, questions: [question.question for question in questions])
  room = staticmethod(lambda request: None)

  def answer(self, requests, limits, streams, decoding, stop, done):
    for position, question in enumerate(requests):
      if self.left == self.asked:
        raise KeyboardInterrupt
      self.asked += 1
      done(position, {'response': f'{streams[position]}+0={streams[position]}: {QUESTIONS[question]}', 'tokens': 1,
                      'truncated': False})  # fmt: skip


def augmented(model: asking.Asked, source, out):
  ask = Ask(rule='number', decoding=Decoding(samples=3, temperature=0.7))
  prepared = augment.prepare(augment.AugmentRequest(str(source), str(out), ask), model)
  return augment.augment(model, prepared, show=False)


def test_killed_and_continued(bucket, tmp_path):
  source = tmp_path / 'rows.jsonl'
  source.write_text(''.join(json.dumps({'query': q, 'response': a}) + '\n' for q, a in QUESTIONS.items()))
  whole = augmented(Reciter(), source, tmp_path / 'out')
  out = files.path(f'{bucket}/out')
  with pytest.raises(KeyboardInterrupt):
    augmented(Reciter(4), source, out)
  assert files.read_journal(out / 'samples.jsonl').count(b'\n') == 4 and not (out / 'train.jsonl').exists()
  second = Reciter()
  summary = augmented(second, source, out)
  assert second.asked == 2 and summary['sha256'] == whole['sha256']
  for name in ('train.jsonl', 'samples.jsonl'):
    assert (out / name).read_bytes() == (tmp_path / 'out' / name).read_bytes()
  assert files.read_journal(out / 'samples.jsonl') == (out / 'samples.jsonl').read_bytes()  # without old parts
  third = Reciter()
  assert augmented(third, source, out)['rows'] == whole['rows'] and third.asked == 0
