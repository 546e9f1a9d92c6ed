"""`mathqwen evaluate`: what it refuses before weights are read, and what it returns."""

import json

import pytest

from mathqwen import cli

KEYS = {'n', 'correct', 'accuracy', 'stderr', 'unextractable', 'truncated', 'rule', 'prompt'}


@pytest.mark.parametrize(
  'options, message',
  [
    (['--limit', '0'], 'limit is 0; it must be 1 or more'),
    (['--batch-size', '0'], 'batch_size is 0; it must be 1 or more'),
    (['--max-new-tokens', '0'], 'max_new_tokens is 0; it must be 1 or more'),
    (['--max-new-tokens', '96'], 'with 96 new ones it passes the 96 positions; at most'),
    (['--data-dir', 'none'], 'no arithmetic test data in none: tried arithmetic/test.jsonl'),
    (['--benchmarks', 'gsm8k'], 'no gsm8k test data in'),
    (['--out', 'file'], 'file/arithmetic: Not a directory; a file stands where a directory is needed'),
  ],
)
def test_evaluate(fails, unread, trained, tiny, tmp_path, monkeypatch, options, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('x')
  error = fails('evaluate', trained, '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, *options)
  assert message in error


def test_evaluate_json(evaluated, trained):
  result, out = evaluated
  assert result['tokens_per_second'] > 0
  scores = result['benchmarks']['arithmetic']
  assert set(scores) >= KEYS
  assert (scores['n'], scores['prompt'], scores['rule']) == (4, 'chatml', 'math401')
  assert scores['model'] == f'{trained}/checkpoints/20'
  assert scores == json.loads((out / 'arithmetic' / 'scores.json').read_text())


def test_evaluate_samples(trained, tiny, tmp_path, fails, capsys):
  command = ['evaluate', trained, '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--limit', '3', '--json']
  command += ['--max-new-tokens', '5', '--samples', '4', '--temperature', '1.5', '--cache-dtype', 'int8']
  command = [str(word) for word in command]
  assert cli.main([*command, '--out', str(tmp_path / 'a')]) == 0
  scores = json.loads(capsys.readouterr().out.splitlines()[-1])['benchmarks']['arithmetic']
  assert (scores['n'], scores['problems'], list(scores['pass_at_k'])) == (12, 3, ['1', '2', '4'])
  records = (tmp_path / 'a' / 'arithmetic' / 'records.jsonl').read_text().splitlines()
  assert len({json.loads(line)['response'] for line in records}) > 3
  # Stopped in between, the rest is drawn as it would have been.
  (tmp_path / 'b' / 'arithmetic').mkdir(parents=True)
  for name, text in {'records.jsonl': '\n'.join(records[:5]) + '\n', 'settings.json': None}.items():
    source = tmp_path / 'a' / 'arithmetic' / name
    (tmp_path / 'b' / 'arithmetic' / name).write_text(source.read_text() if text is None else text)
  assert cli.main([*command, '--out', str(tmp_path / 'b')]) == 0
  capsys.readouterr()
  assert (tmp_path / 'b' / 'arithmetic' / 'records.jsonl').read_text().splitlines() == records
  assert 'samples at temperature 0 are all the same' in fails('evaluate', *command[1:6], '--samples', '4')


def test_another_checkpoint_is_another_run(fails, evaluated, trained, tiny):
  _, out = evaluated
  error = fails(
    'evaluate', trained / 'checkpoints' / '7', '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir,
    '--limit', '4', '--out', out,
  )  # fmt: skip
  assert f"model '{trained}/checkpoints/20' there and '{trained}/checkpoints/7' now" in error
  assert error.endswith('give another --out, or delete it')
