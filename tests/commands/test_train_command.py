"""`mathqwen train`: what it refuses, in one line, and what it returns."""

import errno
import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest

from mathqwen import cli

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def train(fails, tiny, tmp_path):
  """train('data.seq_len=5') -> the error of a run in tmp_path/run with these settings."""

  def run(*settings, workdir=None, options=()):
    words = [word for setting in settings for word in ('--set', setting)]
    return fails('train', tiny.config, '--workdir', workdir or tmp_path / 'run', *options, *words)

  return run


def test_data_files(train, tiny, tmp_path):
  content = pathlib.Path(tiny.train).read_bytes()
  files = {
    'cut.jsonl.gz': gzip.compress(content)[:-20],
    'cut.jsonl': content[:-20],
    'schema.jsonl': b'{"text": "1+1=", "label": "2"}\n',
    'empty.jsonl': b'',
    'latin.jsonl': '{"query": "é", "response": "1"}\n'.encode('latin-1'),
  }
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  message = lambda name: train(f'data.sources={tmp_path / name}')
  assert message('none.jsonl') == f'cannot read {tmp_path}/none.jsonl: No such file or directory; check the path'
  assert message('cut.jsonl.gz').startswith(f'{tmp_path}/cut.jsonl.gz is half-written or damaged')
  assert message('cut.jsonl').startswith(f'{tmp_path}/cut.jsonl:168: the last line is half-written')
  error = message('schema.jsonl')
  assert 'fields found: text, label; expected: {messages}, {conversations}, ' in error
  assert message('empty.jsonl').startswith(f'{tmp_path}/empty.jsonl is empty; fetch or write it again')
  assert message('latin.jsonl').startswith(f'{tmp_path}/latin.jsonl:1: not UTF-8; save it as UTF-8')
  (tmp_path / 'folder').mkdir()
  assert message('folder').startswith(f'{tmp_path}/folder: no file of records in this folder')


def test_missing_named_data(train, tmp_path):
  assert "unknown data set 'gsm8': the names are gsm8k" in train('data.sources=gsm8')
  error = train('data.sources=gsm8k', options=['--data-dir', str(tmp_path)])
  assert error.startswith(f'no gsm8k train data in {tmp_path}: tried gsm8k/train.jsonl')


def test_a_data_directory_that_nothing_reads(train, tiny, fails, tmp_path):
  for words in ({'options': ['--data-dir', str(tmp_path)]}, {}):
    error = train(*[] if words else [f'data.data_dir={tmp_path}'], **words)
    assert error == (
      f'data.data_dir is {tmp_path}: nothing reads it, because data.sources are paths of files ({tiny.train}); the '
      "nearest setting that is read is 'data.sources'"
    )
  assert 'nothing reads it' in fails('data', 'inspect', tiny.config, '--data-dir', tmp_path)
  assert not (tmp_path / 'run').exists()


def test_sizes(train):
  assert train('data.seq_len=97') == (
    "data.seq_len 97 is above the model's max_position_embeddings 96: set data.seq_len=96 or less"
  )
  assert train('data.batch_size=6', 'train.micro_batches=4').endswith('set train.micro_batches=3')
  assert train('mesh.fsdp=3').startswith("mesh {'data': 1, 'fsdp': 3, 'context': 1, 'tensor': 1} does not divide the")
  assert train('mesh.data=2').endswith('the sizes other than -1 multiply to 2: lower one that is above 1')
  assert train('model.vocab_size=1000') == (
    'the tokenizer knows 1024 tokens and model.vocab_size is 1000: set model.vocab_size=1024 or more'
  )
  error = train('data.seq_len=10')
  assert error.startswith('no example to train on: 168 too_long: train.jsonl:1 (1') and 'seq_len is 10' in error
  assert train('data.eval_examples=500').endswith('lower data.eval_examples')


def test_batch_and_devices():
  """Two devices cannot share one row; error by a process with two devices."""
  code = (
    'from mathqwen import config\nfrom mathqwen.errors import UserError\n'
    'from mathqwen.training.prepare import TrainingRun\n'
    'e = config.override(config.load("demo"), ["data.batch_size=3", "data.eval_examples=0"])\n'
    'try: TrainingRun.prepare(e)\nexcept UserError as error: print(error)'
  )
  env = {
    **os.environ,
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2',
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.stdout == (
    'data.batch_size 3 in 1 micro-batches is not divisible by the 2 devices of mesh.data x mesh.fsdp: '
    'set data.batch_size=4\n'
  )


def test_starting_models(train, tmp_path):
  error = train(options=['--init', str(tmp_path / 'none')])
  assert error == f'no model at {tmp_path}/none: give a Hugging Face directory, or the --workdir of a run'
  (tmp_path / 'empty').mkdir()
  assert 'holds neither config.json' in train(options=['--init', str(tmp_path / 'empty')])
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('where', ['file', 'file/below', '/proc/none'])
def test_impossible_workdirs(train, tmp_path, where):
  (tmp_path / 'file').write_text('x')
  assert train(workdir=tmp_path / where).endswith('use a directory that can be written')
  assert (tmp_path / 'file').read_text() == 'x'


def test_workdir_without_permission(train, tmp_path, monkeypatch):
  def refuse(path, *_, **__):
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))

  monkeypatch.setattr(os, 'makedirs', refuse)  # a test that runs as root is refused nothing
  assert train() == f'--workdir {tmp_path}/run: Permission denied; use a directory that can be written'


def test_a_diverged_run_says_where_it_stopped(train, tiny, tmp_path, monkeypatch):
  from mathqwen.data.pipeline import TrainBatches

  take = TrainBatches.__next__
  numbers = iter(range(1, 100))

  def infinite_from_16(self):
    batch = take(self)
    return batch | {'loss_weights': batch['loss_weights'] + float('inf')} if next(numbers) > 15 else batch

  monkeypatch.setattr(TrainBatches, '__next__', infinite_from_16)
  error = train('train.max_skipped=1')
  assert error.startswith('the loss or the gradient was not finite in 2 steps in a row, up to step 17 ')
  assert error.endswith(f'the newest checkpoint is {tmp_path}/run/checkpoints/14')


def test_train_json(trained, tiny, capsys):
  assert cli.main(['train', tiny.config, '--workdir', str(trained), '--json']) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  wanted = (
    'step loss tokens_per_second loss_tokens_per_second step_seconds packing_efficiency peak_rss_bytes checkpoint'
  )
  assert set(wanted.split()) <= set(result)
  assert (result['step'], result['checkpoint']) == (20, f'{trained}/checkpoints/20')
  assert 0 < result['packing_efficiency'] <= 1 and result['peak_rss_bytes'] > 10**7
  assert result['mfu'] is None  # a CPU has no published peak
  # Of this process, which had nothing left to do.
  assert (result['compile_seconds'], result['input_seconds'], result['goodput']) == (0, 0, 0)
  assert 0 < result['checkpoint_seconds'] < result['total_seconds']


def test_dry_run(tiny, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['train', tiny.config, '--dry-run', '--json', '--init', 'random']) == 0
  lines = capsys.readouterr().out.splitlines()
  # 1024 x 32 embedding; 2 layers of 2 x 32 norms, 32 x (32 + 16 + 16) + 64 attention in, 32 x 32 out, 3 x 32 x 64;
  # one norm
  layer = 2 * 32 + 32 * 64 + 64 + 32 * 32 + 3 * 32 * 64
  parameters = 1024 * 32 + 2 * layer + 32
  assert f'parameters: {parameters:,}' in lines
  numbers = json.loads(lines[-1])
  assert numbers['parameters'] == parameters and numbers['weights_bytes'] == 4 * parameters
  assert numbers['moments_bytes'] >= 2 * numbers['weights_bytes']
  text = '\n'.join(lines)
  assert 'activations, gradients and other temporaries' in text and 'GiB in all' in text
  row = text[text.index('row of 64 positions') :]
  assert text.index('GiB in all') < text.index('all settings:') < text.index('"hidden_size"')
  assert '<|im_start|>user\n' in row and '[[' in row and '<|im_end|>]]' in row
  assert not list(tmp_path.iterdir())
