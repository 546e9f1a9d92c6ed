"""Samples of a model of ours: the same ones however the run is interrupted, asked as it is served."""

import json

import pytest

from mathqwen import files
from mathqwen.augment import asking, augment
from mathqwen.evals.ask import Ask, Decoding
from mathqwen.inference.model import Model
from mathqwen.text.loading import load_tokenizer

LONG = 'What is ' + ' + '.join('1' * 40) + '?'


@pytest.fixture(scope='module')
def model(tiny_config, random_params, compiled_once):
  tokenizer = load_tokenizer()
  cfg = tiny_config(vocab_size=tokenizer.vocab_size, num_hidden_layers=1)
  return Model('tiny', cfg, tokenizer, random_params(cfg), 'float32')


@pytest.fixture
def augmented(model, source):
  """augmented(out, batch_size, questions) -> (summary, lines of samples.jsonl)"""
  with open(source, 'a') as file:
    file.write(json.dumps({'question': LONG, 'answer': '#### 40'}) + '\n')

  def one(out, batch_size=4, questions=None):
    ask = Ask(rule='number', max_new_tokens=5, decoding=Decoding(samples=3, temperature=1.5, top_p=0.9, seed=2))
    ours = asking.OurModel(model, lambda: model.params, batch_size)
    prepared = augment.prepare(augment.AugmentRequest(source, str(out), ask, questions=questions), ours)
    summary = augment.augment(ours, prepared, show=False)
    return summary, (out / 'samples.jsonl').read_text().splitlines()

  return one


def test_samples_of_our_model(augmented, model, tmp_path, monkeypatch):
  summary, lines = augmented(tmp_path / 'a')
  samples = [json.loads(line) for line in lines]
  assert summary['questions'] == 5 and summary['too_long'] == 1 and summary['missing'] == 0  # LONG has no room
  assert summary['samples'] == len(samples) == 12 and summary['tokens_per_second'] > 0
  assert len({sample['response'] for sample in samples}) > 6
  assert all(sample['truncated'] == (sample['tokens'] == 5) or not sample['truncated'] for sample in samples)
  assert [json.loads(line)['id'] for line in (tmp_path / 'a' / 'train.jsonl').read_text().splitlines()][-1] == 'rows/4'
  settings = json.loads((tmp_path / 'a' / 'settings.json').read_text())
  assert settings['template'] == 'chatml' and settings['seed'] == 2 and settings['top_p'] == 0.9

  # As the model itself answers, from the random streams 0, 1, 2.
  [ids] = [model.prompt([{'role': 'user', 'content': 'What is 40 + 2?'}])]
  direct = model.generate_ids([ids] * 3, 5, 1.5, 0.9, seed=2, batch_size=4)
  assert [model.text(answer) for answer in direct] == [sample['response'] for sample in samples[:3]]

  # Killed in the middle, the rest is drawn as it would have been.
  count = iter(range(100))
  real = files.Journal.write

  def dying(journal, line):
    if next(count) == 5:
      raise KeyboardInterrupt
    real(journal, line)

  monkeypatch.setattr(files.Journal, 'write', dying)
  with pytest.raises(KeyboardInterrupt):
    augmented(tmp_path / 'b', batch_size=4)
  monkeypatch.undo()
  assert augmented(tmp_path / 'b', batch_size=4)[1] == lines


def test_no_samples_are_missing_where_the_teacher_had_no_room(augmented, tmp_path):
  """What the teacher is not asked for is no question, and needs no samples."""
  summary, _ = augmented(tmp_path / 'out', questions='rephrase')
  assert summary['too_long'] > 0 and summary['missing'] == 0
