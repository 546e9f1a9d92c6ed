import functools
import json
import os

import numpy as np
import pytest

from mathqwen import cli
from mathqwen.bench import sides, torch_side, turns
from mathqwen.config import DataConfig, Experiment, TrainConfig
from mathqwen.errors import UserError
from mathqwen.model import parameters

TINY = [
  f'--{flag}={value}'
  for flag, value in {
    'num-hidden-layers': 2, 'hidden-size': 32, 'intermediate-size': 48, 'num-attention-heads': 4,
    'num-key-value-heads': 2, 'head-dim': 8, 'vocab-size': 97, 'steps': 2, 'batch': 2,
  }.items()
]  # fmt: skip
FIGURES = {'tokens_per_second', 'step_seconds', 'cpu_seconds_per_step', 'peak_rss_bytes', 'what', 'shape'}


@pytest.mark.parametrize('flags', [['train', '--seq-len', '24'], ['decode', '--prompt', '6', '--new-tokens', '4']])
def test_both_sides(flags, capsys):
  pytest.importorskip('torch')
  assert cli.main(['bench', *flags, *TINY, '--torch', '--json']) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert set(result) == FIGURES | {'torch', 'ratio'}
  tokens = 2 * (24 if flags[0] == 'train' else 4)
  assert result['tokens_per_second'] * result['step_seconds'] == pytest.approx(tokens)
  assert result['ratio'] == result['tokens_per_second'] / result['torch']['tokens_per_second'] > 0
  assert result['shape']['hidden_size'] == 32 and result['shape']['steps'] == 2


def test_the_two_sides_take_the_same_step(tiny_config, torch_model, from_torch, monkeypatch):
  """From the same weights, both have the same loss on the same rows, step after step."""
  reference = torch_model('qwen2')
  cfg, params = from_torch(reference)
  import torch

  monkeypatch.setattr(torch_side, 'torch_model', lambda *_: (torch, reference))
  monkeypatch.setattr(parameters, 'init', lambda *_: params)
  rows = sides.train_rows(cfg, 2, 24, 0.5)
  assert rows['loss_weights'].sum() == 24
  experiment = Experiment(
    cfg,
    data=DataConfig(batch_size=2, seq_len=24),
    optim=sides.OPTIM,
    train=TrainConfig(steps=sides.STEPS, compute_dtype='float32', dropout=0.0),
  )
  ours, theirs = sides.train_side(experiment, rows), torch_side.train_side(experiment, rows, 'cpu')
  assert ours() == pytest.approx(theirs(), rel=1e-5)
  prompts = sides.decode_prompts(cfg, 2, 5)
  assert np.shape(sides.decode_side(cfg, 'float32', prompts, 4)()) == (2, 4)
  assert torch_side.decode_side(cfg, 'float32', prompts, 4, 'cpu')().shape == (2, 9)


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--loss-share', '0'], '--loss-share is 0.0'),
    (['--batch', '0'], '--batch is 0'),
    (['--steps', '0'], '--steps is 0'),
    (['--attention', 'flash'], "invalid choice: 'flash' (choose from 'auto', 'reference'"),
    (['--head-dim', '7'], 'model.head_dim 7 is odd'),
  ],
)
def test_refused_values(flags, message, capsys):
  assert cli.main(['bench', 'train', *TINY, *flags]) == 2
  assert message in capsys.readouterr().err


def test_a_missing_torch_names_the_extra(tiny_config, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  with pytest.raises(UserError, match=r'--torch needs torch: .*\[dev\]'):
    torch_side.torch_model(tiny_config('qwen2'), 'cpu')


def fail():
  raise UserError('nothing to measure')


def take_a_moment():
  return functools.partial(sum, range(1_000_000))


def test_the_other_side_has_a_process_of_its_own():
  run = turns.Elsewhere(take_a_moment)
  seconds, cpu, peak = run()
  assert 0 < cpu <= seconds * 1.5 and peak > 0
  assert run.process.pid != os.getpid() and run.process.is_alive()
  run.pipe.close()
  run.process.join(30)
  assert run.process.exitcode == 0


def test_a_side_that_is_killed():
  run = turns.Elsewhere(take_a_moment)
  run.process.kill()
  run.process.join(30)
  with pytest.raises(UserError, match='ended with exit code -9'):
    run()


@pytest.mark.parametrize(
  'make, message', [(fail, 'nothing to measure'), (functools.partial(os._exit, 3), 'ended with exit code 3')]
)
def test_a_side_that_fails(make, message):
  with pytest.raises(UserError, match=message):
    turns.Elsewhere(make)
