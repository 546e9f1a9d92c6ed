"""Runs that are stopped in every way and continued, against one that is not; damage and full disks in one line."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from mathqwen import config
from mathqwen.cli import main
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.observe import metrics
from mathqwen.storage import checkpoint
from mathqwen.training import loop, optim
from mathqwen.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]


def state_of(workdir, step=20):
  """Every array and counter of a checkpoint, by name."""
  experiment = config.from_json((workdir / 'experiment.json').read_text(), 'experiment.json')
  mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
  tx = optim.optimizer(experiment.optim, experiment.train.steps)
  target = step_lib.abstract_state(mesh, experiment.model, tx)
  checkpoints = checkpoint.Checkpoints(str(workdir))
  params, opt_state, data = checkpoints.restore(step, target.params, target.opt_state)
  checkpoints.close()
  leaves = jax.tree_util.tree_leaves_with_path({'params': params, 'opt_state': opt_state})
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, data


def logged(workdir, name):
  """{step: value}; a step must not be there twice."""
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  steps = collections.Counter(row['step'] for row in rows if name in row)
  assert set(steps.values()) == {1}, steps
  return {row['step']: row[name] for row in rows if name in row}


def assert_same_run(workdir, reference):
  (ours, our_data), (theirs, their_data) = state_of(workdir), state_of(reference)
  assert ours.keys() == theirs.keys() and len(ours) > 30
  different = [name for name in ours if not np.array_equal(ours[name], theirs[name])]
  assert not different
  assert our_data == their_data
  for name in ('loss', 'grad_norm', 'learning_rate', 'packing_efficiency', 'eval_loss'):
    assert logged(workdir, name) == logged(reference, name)


@pytest.fixture
def copied(trained, tmp_path):
  """copied(7): the workdir as a process leaves it that died after step 7 was saved, its later lines included."""

  def copy(step):
    workdir = tmp_path / f'until{step}'
    shutil.copytree(trained, workdir)
    for later in (workdir / 'checkpoints').iterdir():
      if int(later.name) > step:
        shutil.rmtree(later)
    return workdir

  return copy


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


def test_sigterm_is_given_back(tiny, trained):
  before = signal.getsignal(signal.SIGTERM)
  with loop.StopOnSigterm() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked(1)
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_says_its_numbers_again(tiny, trained, capsys):
  before = (trained / 'metrics.jsonl').read_text()
  assert main(['train', tiny.config, '--workdir', str(trained), '--json']) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (said['step'], said['loss']) == (20, logged(trained, 'loss')[20])
  assert said['tokens_per_second'] > 0
  assert (trained / 'metrics.jsonl').read_text() == before


# --- damage ---


def fails(capsys, *command):
  status = main(list(map(str, command)))
  lines = capsys.readouterr().err.splitlines()
  assert status == 2, lines
  assert lines[-1].startswith('mathqwen: ')
  return lines[-1]


def test_a_save_that_was_cut_off_is_not_seen(tiny, trained, copied):
  workdir = copied(20)
  os.rename(workdir / 'checkpoints' / '20', workdir / 'checkpoints' / '20.orbax-checkpoint-tmp')
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  assert_same_run(workdir, trained)


@pytest.mark.parametrize('gone', ['params', 'opt_state', 'data/metadata', 'params/manifest.ocdbt', '.'])
def test_a_damaged_checkpoint_is_named(tiny, trained, copied, capsys, gone):
  workdir = copied(20)
  path = workdir / 'checkpoints' / '20' / gone
  if path.is_file():
    path.unlink()
  else:
    shutil.rmtree(path)
    path.mkdir()
  line = fails(capsys, 'train', tiny.config, '--workdir', workdir)
  assert f'the checkpoint {workdir}/checkpoints/20 is damaged' in line
  assert line.endswith(f'to continue from step 14, delete {workdir}/checkpoints/20')
  if gone == '.':  # the remedy is one
    shutil.rmtree(workdir / 'checkpoints' / '20')
    assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
    assert_same_run(workdir, trained)


def test_a_damaged_checkpoint_without_an_earlier_one(copied, capsys):
  workdir = copied(7)
  shutil.rmtree(workdir / 'checkpoints' / '7' / 'params')
  assert fails(capsys, 'generate', workdir, '1+1=').endswith('copy it again; there is no earlier one')


def test_no_space_before_the_first_step(tiny, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: collections.namedtuple('U', 'total used free')(9, 9, 1000))
  line = fails(capsys, 'train', tiny.config, '--workdir', tmp_path / 'run')
  assert f'{tmp_path}/run has 0.0 MiB free and 10 checkpoints' in line and 'train.keep_checkpoints=1' in line
  assert not list((tmp_path / 'run').glob('checkpoints/*'))


def test_no_space_while_saving(tiny, trained, copied, capsys, monkeypatch):
  workdir = copied(7)
  save = checkpoint.ocp.CheckpointManager.save

  def full(self, step, **kwargs):
    if step == 14:
      raise ValueError('RESOURCE_EXHAUSTED: Error writing params/d/0: No space left on device [OS error 28: ENOSPC]')
    return save(self, step, **kwargs)

  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'save', full)
  line = fails(capsys, 'train', tiny.config, '--workdir', workdir)
  assert line.startswith(f'mathqwen: no space left on the disk of {workdir}/checkpoints: free some and run the same')
  monkeypatch.undo()
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  assert_same_run(workdir, trained)


@pytest.mark.parametrize(
  'text', ['[Errno 28] No space left on device', 'UNKNOWN: write [OS error 28: ENOSPC]', 'Disk quota exceeded']
)
def test_the_guises_of_a_full_disk(tmp_path, text):
  with pytest.raises(UserError, match='no space left on the disk of'), checkpoint._explain_full_disk(tmp_path):
    raise ValueError(text)


def test_a_limit_of_file_sizes_is_named(tmp_path):
  """As TensorStore says it: `ulimit -f 200` stops it in a file that Orbax writes."""
  text = 'OUT_OF_RANGE: Error writing params/d/0: File too large [OS error 27: EFBIG]'
  with pytest.raises(UserError, match='raise the limit .ulimit -f.'), checkpoint._explain_full_disk(tmp_path):
    raise ValueError(text)


def test_other_errors_of_saving_are_not_hidden(tmp_path):
  with pytest.raises(ValueError, match='a defect'), checkpoint._explain_full_disk(tmp_path):
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
    'train.attention=blocks',
    'train.checkpoint_every=1',
    'train.eval_every=2',
    'train.keep_checkpoints=1',
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
  checkpoint.claim(str(workdir), experiment)
  assert config.from_json((workdir / 'experiment.json').read_text(), 'experiment.json') == experiment


def test_any_other_setting_may_not_change(tiny, copied):
  """With one other value for each: the test above names every setting that may change."""
  may_change = {name for name, setting in config.SETTINGS.items() if setting.resume() != 'no'}
  tested = next(mark for mark in test_settings_that_may_change.pytestmark if mark.name == 'parametrize').args[1]
  assert may_change == {setting.partition('=')[0] for setting in tested} | {'train.steps'}
  workdir, experiment = copied(7), config.load(tiny.config)
  for setting in ('model.hidden_size=64', 'data.seed=1', 'optim.beta1=0.8', 'train.dropout=0.2', 'train.seed=1'):
    with pytest.raises(UserError, match=f'holds a run of another config .{setting.partition("=")[0]} '):
      checkpoint.claim(str(workdir), config.override(experiment, [setting]))


CONSTANT = ['--set', 'optim.schedule=constant']


def test_more_steps_of_a_constant_schedule(tiny, tmp_path, capsys):
  """8 steps, then 12, are the 12 of a run that had them from the start."""

  def train(workdir, steps):
    return ['train', tiny.config, '--workdir', str(tmp_path / workdir), *CONSTANT, '--set', f'train.steps={steps}']

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
  checkpoint.claim(str(workdir), config.load(tiny.config))
  assert json.loads((workdir / 'experiment.json').read_text())['data']['sources'] == [tiny.train]


@pytest.mark.parametrize('text', ['{"model": {"hid', '[1]', '{}'])
def test_a_damaged_experiment(trained, copied, capsys, text):
  workdir = copied(7)
  (workdir / 'experiment.json').write_text(text)
  line = fails(capsys, 'generate', workdir, '1+1=')
  assert f'{workdir}/experiment.json is not a resolved config of mathqwen' in line


def test_find(trained, tmp_path, monkeypatch):
  steps = trained / 'checkpoints'
  for path, step in [(trained, 20), (steps, 20), (steps / '14', 14), (f'{trained}/', 20)]:
    workdir, experiment, found = checkpoint.find_checkpoint(str(path))
    assert (workdir, found, experiment.train.steps) == (str(trained), step, 20)
  monkeypatch.chdir(steps)
  assert checkpoint.find_checkpoint('7')[2] == 7
  for path in (tmp_path, trained / 'tokenizer', steps / '14' / 'params'):
    assert checkpoint.find_checkpoint(str(path)) is None
  for step in ('13', 'latest'):
    with pytest.raises(UserError, match=f'{steps}/{step} is not a checkpoint step: give {trained} for its newest .20.'):
      checkpoint.find_checkpoint(str(steps / step))


def test_find_before_the_first_checkpoint(tiny, tmp_path):
  checkpoint.claim(str(tmp_path / 'run'), config.load(tiny.config))
  with pytest.raises(UserError, match='holds no finished checkpoint yet'):
    checkpoint.find_checkpoint(str(tmp_path / 'run'))
