"""Runs that are stopped in every way and continued, against one that is not; damage and full disks in one line."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from runs import assert_same_run, fails, logged, state_of

from mathqwen import config
from mathqwen.cli import main
from mathqwen.errors import UserError
from mathqwen.observe import metrics
from mathqwen.storage import checkpoint
from mathqwen.storage import workdir as workdirs

ROOT = pathlib.Path(__file__).parents[2]


def test_the_reference_run(trained, tiny):
  assert sorted(int(p.name) for p in (trained / 'checkpoints').iterdir()) == [7, 14, 20]
  assert list(logged(trained, 'loss')) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
  assert list(logged(trained, 'eval_loss')) == [10, 20]
  epochs = [state_of(trained, step)[1]['position'] for step in (7, 14)]
  assert epochs[0] != epochs[1]
  first, _ = state_of(trained, 7)
  last, _ = state_of(trained, 20)
  assert not np.array_equal(first["['params']['embed']"], last["['params']['embed']"])


@pytest.mark.parametrize('step', [7, 14], ids=['in the first epoch', 'in the second epoch'])
def test_resumed_is_undisturbed(copied, trained, tiny, step, capsys):
  workdir = copied(step)
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  assert f'continuing {workdir} at step {step}' in capsys.readouterr().err
  assert_same_run(workdir, trained)


KILLED = """
import os, signal, sys
from mathqwen.observe import metrics
from mathqwen.cli import main
update = metrics.Progress.update
def killing(self, done, text):
  update(self, done, text)
  if done == 17: os.kill(os.getpid(), signal.SIGKILL)
metrics.Progress.update = killing
main(sys.argv[1:])
"""


def test_kill_9(tiny, trained, tmp_path):
  workdir = tmp_path / 'run'
  command = [sys.executable, '-c', KILLED, 'train', tiny.config, '--workdir', str(workdir)]
  done = subprocess.run(command, env={**os.environ, **tiny.env}, cwd=ROOT, capture_output=True, timeout=120)
  assert done.returncode == -signal.SIGKILL
  assert not (workdir / 'checkpoints' / '20').exists()
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  assert_same_run(workdir, trained)


def test_sigterm(tiny, trained, tmp_path, capsys, monkeypatch):
  workdir, update = tmp_path / 'run', metrics.Progress.update

  def stopping(self, done, text):
    update(self, done, text)
    if done == 17:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(metrics.Progress, 'update', stopping)
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 75
  assert capsys.readouterr().err.splitlines()[-1] == (
    f'mathqwen: stopped by SIGTERM at step 17, saved in {workdir}/checkpoints/17: run the same command to continue'
  )
  monkeypatch.undo()
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  ours, theirs = logged(workdir, 'loss'), logged(trained, 'loss')
  # The stop ends a window of its own: 16-17 here and then 18, where the reference has 16-18.
  assert set(ours) == set(theirs) | {17}
  assert {s: v for s, v in ours.items() if s not in (17, 18)} == {s: v for s, v in theirs.items() if s != 18}
  (mine, _), (other, _) = state_of(workdir), state_of(trained)
  assert all(np.array_equal(mine[name], other[name]) for name in other)


def test_a_finished_run_says_its_numbers_again(tiny, trained, capsys):
  before = (trained / 'metrics.jsonl').read_text()
  assert main(['train', tiny.config, '--workdir', str(trained), '--json']) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (said['step'], said['loss']) == (20, logged(trained, 'loss')[20])
  assert said['tokens_per_second'] > 0
  assert (trained / 'metrics.jsonl').read_text() == before


# --- saving ---


def test_no_space_before_the_first_step(tiny, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: collections.namedtuple('U', 'total used free')(9, 9, 1000))
  line = fails(capsys, 'train', tiny.config, '--workdir', tmp_path / 'run')
  assert f'{tmp_path}/run has 0.0 MiB free and 10 checkpoints' in line and 'train.keep_checkpoints=1' in line
  assert not list((tmp_path / 'run').glob('checkpoints/*'))


FULL = 'RESOURCE_EXHAUSTED: Error writing params/d/0: No space left on device [OS error 28: ENOSPC]'


@pytest.fixture
def full_disk(monkeypatch):
  """full_disk({14}): saving these steps fails."""
  save = checkpoint.ocp.CheckpointManager.save

  def fill(steps):
    def full(self, step, **kwargs):
      if step in steps:
        raise ValueError(FULL)
      return save(self, step, **kwargs)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'save', full)

  return fill


def test_no_space_while_saving(tiny, trained, copied, capsys, full_disk):
  """The run goes on, and saves at the end of the next window."""
  workdir = copied(7)
  full_disk({14})
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  said = [line for line in capsys.readouterr().err.splitlines() if 'not written' in line]
  assert said == [
    f'the checkpoint of step 14 was not written (no space left on the disk of {workdir}/checkpoints): the run goes on '
    f'and will try again; {workdir}/checkpoints/7 is whole'
  ]
  assert sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir()) == [7, 15, 20]
  assert logged(workdir, 'failed_saves') == {14: 1}
  assert_same_run(workdir, trained)


def test_no_space_at_the_end(tiny, trained, copied, capsys, full_disk):
  workdir = copied(14)
  full_disk({20})
  line = fails(capsys, 'train', tiny.config, '--workdir', workdir)
  assert line.startswith(f'mathqwen: no space left on the disk of {workdir}/checkpoints: free some and run the same')
  full_disk(set())
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  assert_same_run(workdir, trained)


def test_no_space_for_the_first_checkpoint(tiny, tmp_path, capsys, full_disk):
  full_disk({7})
  line = fails(capsys, 'train', tiny.config, '--workdir', tmp_path / 'run')
  assert 'no space left on the disk' in line


@pytest.mark.parametrize(
  'text', ['[Errno 28] No space left on device', 'UNKNOWN: write [OS error 28: ENOSPC]', 'Disk quota exceeded']
)
def test_the_guises_of_a_full_disk(tmp_path, text):
  with pytest.raises(UserError, match='no space left on the disk of'), checkpoint.explain_failed_save(tmp_path):
    raise ValueError(text)


def test_a_limit_of_file_sizes_is_named(tmp_path):
  """As TensorStore says it: `ulimit -f 200` stops it in a file that Orbax writes."""
  text = 'OUT_OF_RANGE: Error writing params/d/0: File too large [OS error 27: EFBIG]'
  with pytest.raises(UserError, match='raise the limit .ulimit -f.'), checkpoint.explain_failed_save(tmp_path):
    raise ValueError(text)


def test_other_errors_of_saving_are_not_hidden(tmp_path):
  with pytest.raises(ValueError, match='a defect'), checkpoint.explain_failed_save(tmp_path):
    raise ValueError('a defect')


# --- whose workdir it is ---


def test_changed_settings_are_listed(tiny, trained, capsys):
  changes = ['--set', 'optim.learning_rate=1e-3', '--set', 'train.steps=30']
  line = fails(capsys, 'train', tiny.config, '--workdir', trained, *changes)
  assert 'holds a run of another config (optim.learning_rate 0.003 -> 0.001, train.steps 20 -> 30)' in line
  assert line.endswith('use another --workdir, or the same settings')


def test_free_settings_may_change(tiny, trained, copied):
  workdir = copied(7)
  options = ['--set', 'train.log_every=20', '--set', 'train.keep_checkpoints=2', '--set', 'mesh.data=1']
  assert main(['train', tiny.config, '--workdir', str(workdir), *options]) == 0
  assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['14', '20']
  mine, reference = state_of(workdir)[0], state_of(trained)[0]
  assert all(np.array_equal(mine[name], reference[name]) for name in reference)


@pytest.mark.parametrize(
  'setting',
  [
    'init=elsewhere',
    'data.data_dir=here',
    'data.max_left_out=0.5',
    'mesh.data=2',
    'mesh.fsdp=1',
    'mesh.context=2',
    'mesh.tensor=2',
    'optim.offload=true',
    'train.attention=blocks',
    'train.checkpoint_every=1',
    'train.checkpoint_minutes=0',
    'train.compile_minutes=5',
    'train.eval_every=2',
    'train.hang_minutes=0',
    'train.keep_best=1',
    'train.keep_checkpoints=1',
    'train.keep_every=5',
    'train.log_every=1',
    'train.loss_chunk=16',
    'train.max_skipped=3',
    'train.micro_batches=2',
    'train.remat=full',
    'train.skip_spikes=true',
    'train.spike_factor=3',
  ],
)
def test_settings_that_may_change(tiny, copied, setting):
  workdir, experiment = copied(7), config.override(config.load(tiny.config), [setting])
  workdirs.check_claim(str(workdir), experiment)
  workdirs.claim(str(workdir), experiment)
  assert config.from_json((workdir / 'experiment.json').read_text(), 'experiment.json') == experiment


def test_any_other_setting_may_not_change(tiny, copied):
  """With one other value for each: the test above names every setting that may change."""
  may_change = {name for name, setting in config.SETTINGS.items() if setting.resume() != 'no'}
  tested = next(mark for mark in test_settings_that_may_change.pytestmark if mark.name == 'parametrize').args[1]
  assert may_change == {setting.partition('=')[0] for setting in tested} | {'train.steps'}
  workdir, experiment = copied(7), config.load(tiny.config)
  for setting in ('model.hidden_size=64', 'data.seed=1', 'optim.beta1=0.8', 'train.dropout=0.2', 'train.seed=1'):
    with pytest.raises(UserError, match=f'holds a run of another config .{setting.partition("=")[0]} '):
      workdirs.check_claim(str(workdir), config.override(experiment, [setting]))


CONSTANT = ['--set', 'optim.schedule=constant']


def test_more_steps_of_a_constant_schedule(tiny, tmp_path, capsys):
  """8 steps, then 12, are the 12 of a run that had them from the start; moments in 8 bits, rounded at random, too."""

  def train(workdir, steps):
    changes = [*CONSTANT, '--set', 'optim.name=adamw_8bit', '--set', f'train.steps={steps}']
    return ['train', tiny.config, '--workdir', str(tmp_path / workdir), *changes]

  assert main(train('longer', 8)) == main(train('longer', 12)) == main(train('whole', 12)) == 0
  (ours, our_data), (theirs, their_data) = state_of(tmp_path / 'longer', 12), state_of(tmp_path / 'whole', 12)
  assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []
  assert our_data == their_data
  losses, expected = logged(tmp_path / 'longer', 'loss'), logged(tmp_path / 'whole', 'loss')
  assert losses[12] == expected[12]
  # Fewer, as long as the newest checkpoint is not beyond them
  capsys.readouterr()
  line = fails(capsys, *train('longer', 11))
  assert f'{tmp_path}/longer cannot continue with train.steps 12 -> 11: the newest checkpoint is of step 12' in line
  assert line.endswith('set train.steps=12 or more, or start again in another --workdir')


@pytest.mark.parametrize('steps, jump', [(30, 'back up'), (15, 'down')])
def test_other_steps_of_a_decaying_schedule(tiny, copied, capsys, steps, jump):
  workdir = copied(7)
  line = fails(capsys, 'train', tiny.config, '--workdir', workdir, '--set', f'train.steps={steps}')
  assert f'cannot continue with train.steps 20 -> {steps}: with optim.schedule=cosine the learning rate decays' in line
  assert f'at step 7 it would jump {jump}: keep train.steps=20, or start a new run from these weights' in line
  assert config.from_json((workdir / 'experiment.json').read_text(), '').train.steps == 20


def test_a_workdir_without_a_checkpoint_may_change_hands(tiny, tmp_path, capsys):
  workdir = tmp_path / 'run'
  assert 'cannot read' in fails(
    capsys, 'train', tiny.config, '--workdir', workdir, '--set', f'data.sources={tmp_path}/none.jsonl'
  )
  workdirs.check_claim(str(workdir), config.load(tiny.config))
  workdirs.claim(str(workdir), config.load(tiny.config))
  assert json.loads((workdir / 'experiment.json').read_text())['data']['sources'] == [tiny.train]


@pytest.mark.parametrize('text', ['{"model": {"hid', '[1]', '{}'])
def test_a_damaged_experiment(trained, copied, capsys, text):
  """It counts only where no checkpoint has a config, as in what an older version converted."""
  workdir = copied(7)
  (workdir / 'experiment.json').write_text(text)
  assert workdirs.find_checkpoint(str(workdir))[2] == 7
  assert 'experiment.json is damaged: the config in checkpoints/7 counts' in capsys.readouterr().err
  shutil.rmtree(workdir / 'checkpoints' / '7' / 'config')
  line = fails(capsys, 'generate', workdir, '1+1=')
  assert f'{workdir}/experiment.json is not a resolved config of mathqwen' in line


def test_find(trained, tmp_path, monkeypatch):
  steps = trained / 'checkpoints'
  for path, step in [(trained, 20), (steps, 20), (steps / '14', 14), (f'{trained}/', 20)]:
    workdir, experiment, found = workdirs.find_checkpoint(str(path))
    assert (workdir, found, experiment.train.steps) == (str(trained), step, 20)
  monkeypatch.chdir(steps)
  assert workdirs.find_checkpoint('7')[2] == 7
  for path in (tmp_path, trained / 'tokenizer', steps / '14' / 'params'):
    assert workdirs.find_checkpoint(str(path)) is None
  for step in ('13', 'latest'):
    with pytest.raises(UserError, match=f'{steps}/{step} is not a checkpoint step: give {trained} for its newest .20.'):
      workdirs.find_checkpoint(str(steps / step))


def test_find_before_the_first_checkpoint(tiny, tmp_path):
  workdirs.claim(str(tmp_path / 'run'), config.load(tiny.config))
  with pytest.raises(UserError, match='holds no finished checkpoint yet'):
    workdirs.find_checkpoint(str(tmp_path / 'run'))
