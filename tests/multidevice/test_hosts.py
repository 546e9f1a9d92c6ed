"""Two real processes, joined by jax.distributed, against one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import safetensors.numpy

from mathqwen import convert, hf, hosts
from mathqwen.errors import UserError
from mathqwen.hf import layouts

pytestmark = pytest.mark.timeout(400)
ROOT = pathlib.Path(__file__).parents[2]


def start(tiny, workdir, *settings):
  """The processes 0 and 1 of a training run, each with two simulated devices."""
  command = ['train', tiny.config, '--workdir', str(workdir)]
  return start_command(tiny, *command, *(word for setting in settings for word in ('--set', setting)))


def start_command(tiny, *command):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = (
    os.environ
    | tiny.env
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
      'PYTHONPATH': str(ROOT),
    }
  )
  command = [sys.executable, '-m', 'mathqwen', *command, '--distributed']
  return [
    subprocess.Popen([*command, f'127.0.0.1:{port},2,{i}'], env=env, stderr=subprocess.PIPE, text=True) for i in (0, 1)
  ]


def losses(workdir):
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [(values['step'], values['loss']) for values in map(json.loads, lines) if 'loss' in values]


def test_two_hosts_train_like_one_and_stop_together(tiny, trained, tmp_path):
  workdir = tmp_path / 'two'
  run = start(tiny, workdir)
  said = [process.communicate(timeout=300)[1] for process in run]
  assert [process.returncode for process in run] == [0, 0], said
  got, one = losses(workdir), losses(trained)
  assert [step for step, _ in got] == [step for step, _ in one] and len(got) > 5
  assert [loss for _, loss in got] == pytest.approx([loss for _, loss in one], rel=1e-5)


def test_sigterm_to_one_host_stops_both_at_one_step(tiny, tmp_path):
  workdir = tmp_path / 'two'
  run = start(tiny, workdir, 'train.steps=100000', 'train.checkpoint_every=100000', 'train.eval_every=100000')
  deadline = time.monotonic() + 200
  while not (workdir / 'metrics.jsonl').exists() or not losses(workdir):
    assert time.monotonic() < deadline and all(process.poll() is None for process in run)
    time.sleep(0.2)
  run[1].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=200)[1].splitlines()[-1] for process in run]
  assert [process.returncode for process in run] == [75, 75]
  assert said[0] == said[1] and said[0].startswith('mathqwen: stopped by SIGTERM at step ')
  (saved,) = (path.name for path in (workdir / 'checkpoints').iterdir())
  assert f'at step {saved},' in said[0]


def test_each_host_writes_its_share_of_an_export(tiny, trained, tmp_path):
  run = start_command(tiny, 'convert', 'to-hf', str(trained), str(tmp_path / 'two'))
  said = [process.communicate(timeout=300)[1] for process in run]
  assert [process.returncode for process in run] == [0, 0], said
  assert [path.name for path in tmp_path.iterdir()] == ['two']
  shards = sorted(path.name for path in (tmp_path / 'two').glob('*.safetensors'))
  assert len(shards) >= 2 and shards[0] == f'model-00001-of-{len(shards):05}.safetensors'
  convert.to_hf(str(trained), str(tmp_path / 'one'), check=False)
  one, two = (hf.load_params(str(tmp_path / name)) for name in ('one', 'two'))
  assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and (a == b).all(), one, two))
  same = {path.name for path in (tmp_path / 'one').iterdir()} - {'model.safetensors'}
  assert same == {path.name for path in (tmp_path / 'two').iterdir()} - {*shards, 'model.safetensors.index.json'}
  for name in same:
    assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


def test_what_fails_on_one_host_fails_on_all(tiny, trained, tmp_path):
  convert.to_hf(str(trained), str(tmp_path / 'hf'), dtype='float32', check=False)
  tensors = safetensors.numpy.load_file(tmp_path / 'hf' / 'model.safetensors')
  last = layouts.stored(hf.read_config(str(tmp_path / 'hf')), 'qwen2')[-1].name
  tensors[last][0, 0] = float('nan')
  safetensors.numpy.save_file(tensors, tmp_path / 'hf' / 'model.safetensors')
  run = start_command(tiny, 'convert', 'to-hf', str(tmp_path / 'hf'), str(tmp_path / 'two'))
  said = [process.communicate(timeout=120)[1] for process in run]
  assert [process.returncode for process in run] == [2, 2], said
  assert any('holds NaN or infinity' in text for text in said)
  assert all('holds NaN' in text or 'could not go on: see what it said' in text for text in said)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


@pytest.mark.parametrize('where', ['127.0.0.1', '127.0.0.1:1,2', '127.0.0.1:1,two,0', '127.0.0.1:1,2,2'])
def test_bad_addresses(where):
  with pytest.raises(UserError, match='--distributed'):
    hosts.join(where)
