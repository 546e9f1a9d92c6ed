"""Every command that computes says on what, and takes --platform."""

import os
import shutil

import pytest

from mathqwen import cli
from mathqwen.hardware import devices

TINY_BENCH = '--num-hidden-layers 1 --hidden-size 16 --intermediate-size 16 --num-attention-heads 2 --vocab-size 64 '
TINY_BENCH += '--num-key-value-heads 1 --head-dim 8 --batch 1 --steps 1'
COMMANDS = [
  'train CONFIG --dry-run',
  'train CONFIG --workdir new',
  'evaluate RUN --benchmarks arithmetic --data-dir DATA --limit 2',
  'generate RUN 1+1= --max-new-tokens 2',
  'convert to-hf RUN new',
  'convert check RUN RUN',
  f'bench train {TINY_BENCH} --seq-len 8',
  f'bench decode {TINY_BENCH} --prompt 4 --new-tokens 4',
]


@pytest.fixture
def words(tiny, trained, tmp_path, monkeypatch):
  """words(command): its words, with the paths filled in. The run is finished: training has nothing left to do."""
  monkeypatch.chdir(tmp_path)
  shutil.copytree(trained, tmp_path / 'new')
  paths = {'CONFIG': tiny.config, 'RUN': str(trained), 'DATA': tiny.data_dir}

  def fill(command):
    if not command.startswith('train'):
      shutil.rmtree('new', ignore_errors=True)
    return [paths.get(word, word) for word in command.split()]

  return fill


@pytest.mark.parametrize('command', COMMANDS)
def test_the_first_line(command, words, capsys):
  assert cli.main([*words(command), '--platform', 'cpu']) == 0
  assert capsys.readouterr().err.splitlines()[0].split(',')[0] == f'CPU ({len(os.sched_getaffinity(0))} cores)'


@pytest.mark.parametrize('command', [*COMMANDS, 'convert from-hf RUN new', 'demo --workdir new --steps 2'])
def test_no_tpu_here(command, words, fails, tmp_path, monkeypatch):
  """Nothing is begun, whatever JAX_PLATFORMS says."""
  monkeypatch.setattr(devices.Accelerators, 'tpu', lambda self: None)
  monkeypatch.setattr(devices.Accelerators, 'gpu', lambda self: None)
  before = sorted(tmp_path.rglob('*'))
  words = words(command)
  if not command.startswith('train'):
    before = []
  message = fails(*words, '--platform', 'tpu')
  assert message.startswith('--platform tpu: this machine has no TPU') and message.endswith('or --platform cpu')
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('command', ['train CONFIG --dry-run', 'evaluate RUN --benchmarks arithmetic --data-dir DATA'])
def test_another_slice(command, words, fails):
  message = fails(*words(command), '--slice', 'v5p-32')
  assert message.startswith('--slice v5p-32 is 16 chips of v5p; found CPU (')
  assert fails(*words(command), '--slice', 'v5p-33').startswith('--slice v5p-33: v5p slices have sizes 8, 16')


def test_a_served_model_has_no_platform(fails):
  message = fails('evaluate', 'openai:http://localhost:1#m', '--benchmarks', 'gsm8k', '--platform', 'cpu')
  assert message == '--platform is decided by the server; leave it out'


def test_the_python_face(trained, tiny):
  import mathqwen
  from mathqwen.errors import UserError

  with pytest.raises(UserError, match="unknown platform 'gpus'; did you mean 'gpu'"):
    mathqwen.load(str(trained), platform='gpus')
  if devices.Accelerators().tpu() is None:
    for call in (
      lambda: mathqwen.load(str(trained), platform='tpu'),
      lambda: mathqwen.train(tiny.config, 'new', platform='tpu'),
      lambda: mathqwen.evaluate(str(trained), 'arithmetic', data_dir=tiny.data_dir, platform='tpu'),
    ):
      with pytest.raises(UserError, match='this machine has no TPU'):
        call()
  assert mathqwen.load(str(trained), platform='cpu').params
