"""A run in a bucket that is killed and continued, against one on a disk that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax

from mathqwen import config, files
from mathqwen.cli import main
from mathqwen.hardware import sharding
from mathqwen.storage import checkpoint
from mathqwen.training import optim
from mathqwen.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]

KILLED = """
import os, signal, sys
from mathqwen.observe import metrics
from mathqwen.storage import checkpoint
from mathqwen.cli import main
update = metrics.Progress.update
save = checkpoint.Checkpoints.save
def killing(self, done, text):
  update(self, done, text)
  if done == 17: os.kill(os.getpid(), signal.SIGKILL)
def waiting(self, step, *args):
  save(self, step, *args)
  self.wait()
metrics.Progress.update = killing
checkpoint.Checkpoints.save = waiting
main(sys.argv[1:])
"""


def test_killed_and_continued(bucket, store, tiny, trained, capsys):
  run = f'{bucket}/run'
  env = os.environ | store.env | tiny.env | {'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', KILLED, 'train', tiny.config, '--workdir', run]
  done = subprocess.run(command, env=env, cwd=tiny.folder, capture_output=True, text=True, timeout=200)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert main(['train', tiny.config, '--workdir', run]) == 0
  assert f'continuing {run} at step 14' in capsys.readouterr().err

  def losses(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return {row['step']: row['loss'] for row in rows if 'loss' in row}

  assert losses((files.path(run) / 'metrics.jsonl').read_text()) == losses((trained / 'metrics.jsonl').read_text())
  assert main(['convert', 'check', run, str(trained), '--tolerance', '0']) == 0
  assert sorted(path.name for path in files.path(run).iterdir()) == sorted(path.name for path in trained.iterdir())


def test_another_config_in_the_same_workdir(bucket, tiny, fails):
  run = f'{bucket}/run'
  steps = ['--set', 'train.steps=6']
  assert main(['train', tiny.config, '--workdir', run, *steps]) == 0
  line = fails('train', tiny.config, '--workdir', run, *steps, '--set', 'data.seed=1')
  assert line.startswith(f'{run} holds a run of another config (data.seed')


def test_a_damaged_checkpoint_is_set_aside(bucket, trained, upload, tiny, capsys):
  """On a bucket, where there are no folders to rename."""
  run = f'{bucket}/run'
  upload(trained, run)
  root = files.path(run)
  for step in ('20', '14', '7'):
    (root / 'checkpoints' / step / 'commit_success.txt').write_text('')  # what a run writes there, and not on a disk
  (root / 'checkpoints' / '999' / 'commit_success.txt').write_text('')
  (root / 'checkpoints' / '1000').write_text('')  # no folder: no step
  name = max((path for path in (root / 'checkpoints' / '20').rglob('*')), key=lambda path: path.stat().st_size)
  data = bytearray(name.read_bytes())
  data[len(data) // 2] ^= 1
  name.write_bytes(bytes(data))
  experiment = config.load(tiny.config)
  mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
  target = step_lib.abstract_state(mesh, experiment.model, optim.optimizer(experiment.optim, experiment.train.steps))
  checkpoints = checkpoint.Checkpoints(run, checkpoint.Keep(9))
  restored = checkpoints.restore_newest(target.params, target.opt_state)
  checkpoints.close()
  assert restored.step == 14 and checkpoints.latest == 14
  assert restored.damaged == {999: f'{run}/damaged/999', 20: f'{run}/damaged/20'}
  moved = root / 'damaged' / '20' / str(name.relative_to(root / 'checkpoints' / '20'))
  assert moved.read_bytes() == bytes(data)
