"""`fit`: how often it compiles, and what it reports."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import shutil
import time
import types

import jax
import pytest
from toy_batches import examples_of, train_config
from train_batches import train_batches

from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig
from mathqwen.data import pipeline
from mathqwen.data.holding_out import hold_out
from mathqwen.errors import UserError
from mathqwen.hardware import chips, sharding
from mathqwen.hardware.flops import model_flops
from mathqwen.storage import checkpoint
from mathqwen.training import loop, optim
from mathqwen.training import step as step_lib


@contextlib.contextmanager
def compilations():
  """Counter-like list of the names of jitted functions, as XLA compiles them."""
  names, logger = [], logging.getLogger('jax._src.interpreters.pxla')

  class Handler(logging.Handler):
    def emit(self, record):
      message = record.getMessage()
      if message.startswith('Compiling '):
        names.append(message.split()[1])

  handler, level, propagate = Handler(), logger.level, logger.propagate
  logger.addHandler(handler)
  logger.setLevel(logging.DEBUG)
  logger.propagate = False
  try:
    yield names
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def small_run(tiny_config, tmp_path):
  """small_run(steps=5) -> (experiment, workdir, data, mesh) to fit."""

  def make(**changes):
    experiment = Experiment(
      tiny_config(num_hidden_layers=1),
      data=DataConfig(batch_size=2, seq_len=12, eval_examples=3),
      optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
      train=train_config(**changes),
    )
    (encoded,), held_out = hold_out([pipeline.Encoded.from_rendered(examples_of(20))], 3, 0)
    data = types.SimpleNamespace(
      held_out=held_out,
      origins={},
      train=lambda: train_batches([encoded], (), 2, 12, 0),
      eval=lambda: pipeline.eval_batches(held_out, 2, 12),
    )
    (tmp_path / 'run').mkdir()
    return experiment, str(tmp_path / 'run'), data, sharding.make_mesh(MeshConfig(), jax.devices()[:1])

  return make


def test_one_program_for_all_steps(small_run):
  experiment, workdir, data, mesh = small_run(steps=5, log_every=2, eval_every=2, checkpoint_every=3)
  with compilations() as names:
    summary = loop.fit(experiment, workdir, data, mesh)
  assert summary['step'] == 5 and summary['eval_loss'] > 0
  counts = {name: sum(name in compiled for compiled in names) for name in ('train_step', 'eval_step')}
  assert counts == {'train_step': 1, 'eval_step': 1}, names
  # Continued, it is one program as well, which refuses what is not laid out as what the step returns.
  longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=7))
  with compilations() as names:
    assert loop.fit(longer, workdir, data, mesh)['step'] == 7
  assert sum('train_step' in compiled for compiled in names) == 1, names


class Slow:
  """0.4 seconds for a batch."""

  def __init__(self, batches):
    self._batches, self.get_state = batches, batches.get_state

  @property
  def digest(self):
    return self._batches.digest

  def __next__(self):
    time.sleep(0.4)
    return next(self._batches)


def test_where_the_time_of_a_run_goes(small_run, monkeypatch):
  experiment, workdir, data, mesh = small_run(
    steps=4, log_every=1, eval_every=4, checkpoint_every=2, compute_dtype='bfloat16'
  )
  monkeypatch.setitem(chips.DEVICE_FLOPS, 'cpu', 1e9)
  make, save, evaluate = data.train, checkpoint.Checkpoints.save, data.eval
  data.train = lambda: Slow(make())
  data.eval = lambda: time.sleep(0.3) or evaluate()
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *args: time.sleep(2.5) or save(*args))
  summary = loop.fit(experiment, workdir, data, mesh)
  lines = [json.loads(line) for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()]
  windows = {line['step']: line for line in lines if 'loss' in line}
  assert list(windows) == [1, 2, 3, 4] and windows[1]['input_seconds'] >= 0.4
  flops = model_flops(experiment.model, 2, 12)
  for window in windows.values():
    assert 0 < window['input_seconds'] < window['step_seconds']  # the step before hides some of the wait
    assert window['step_seconds'] < 2.5  # neither compiling nor saving is in it
    assert window['mfu'] == pytest.approx(flops / window['step_seconds'] / 1e9)
  (saves, evals) = ([line for line in lines if name in line] for name in ('checkpoint_seconds', 'eval_loss'))
  assert [line['step'] for line in saves] == [2, 4] and all(line['checkpoint_seconds'] >= 2.5 for line in saves)
  assert [line['step'] for line in evals] == [4] and evals[0]['eval_seconds'] >= 0.3
  assert summary['mfu'] == windows[4]['mfu']
  assert summary['input_seconds'] == pytest.approx(sum(w['input_seconds'] for w in windows.values()))
  assert summary['checkpoint_seconds'] >= 5 and summary['compile_seconds'] > 0
  stepping = sum(window['step_seconds'] for window in windows.values())
  assert stepping > 4 * 0.4
  names = ('compile_seconds', 'checkpoint_seconds', 'eval_seconds')
  assert stepping + sum(summary[name] for name in names) < summary['total_seconds']
  assert summary['goodput'] == pytest.approx((stepping - summary['input_seconds']) / summary['total_seconds'])


class Broken:
  """Batches of which some, by their number, have a loss weight that is not finite."""

  def __init__(self, batches, numbers):
    self._batches, self._numbers, self._count = batches, numbers, 0
    self.get_state, self.set_state, self.examples = batches.get_state, batches.set_state, batches.examples

  @property
  def digest(self):
    return self._batches.digest

  def __next__(self):
    self._count += 1
    batch = next(self._batches)
    return batch | {'loss_weights': batch['loss_weights'] * float('nan')} if self._count in self._numbers else batch


def test_a_batch_that_is_not_finite_is_skipped_and_named(small_run):
  experiment, workdir, data, mesh = small_run(steps=6, log_every=2, checkpoint_every=2, max_skipped=1)
  make = data.train
  data.train = lambda: Broken(make(), {3})
  summary = loop.fit(experiment, workdir, data, mesh)
  assert summary['step'] == 6 and summary['loss'] > 0
  folder = pathlib.Path(workdir)
  for line in (folder / 'metrics.jsonl').read_text().splitlines():
    json.loads(line, parse_constant=lambda word: pytest.fail(f'{word} is not JSON'))
  skipped = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines() if '"skipped"' in line]
  assert [(line['step'], line['skipped']) for line in skipped] == [(4, 1)]
  (file,) = (folder / 'skipped').iterdir()
  content = json.loads(file.read_text())
  batches = make()
  for _ in range(2):
    next(batches)
  assert (file.name, content['step'], content['loss']) == ('3.json', 3, None)
  assert content['examples'] == batches.examples(batches.get_state()) and len(content['examples']) == 2


def test_a_run_does_not_begin_without_the_weights_of_init(small_run):
  """As when its checkpoints are removed between the look for them and the restore."""
  experiment, workdir, data, mesh = small_run()
  with pytest.raises(UserError, match='run the same command again'):
    loop.fit(dataclasses.replace(experiment, init='model'), workdir, data, mesh)


def test_too_many_skipped_steps_end_the_run(small_run):
  experiment, workdir, data, mesh = small_run(steps=9, log_every=9, checkpoint_every=2, max_skipped=2)
  make = data.train
  data.train = lambda: Broken(make(), {5, 6, 7, 8, 9})
  with pytest.raises(UserError, match=r'in 3 steps in a row, up to step 7 .* newest checkpoint is .*checkpoints/6$'):
    loop.fit(experiment, workdir, data, mesh)
  # What was saved meanwhile is as good as before: the run continues with other data.
  data.train = make
  assert loop.fit(experiment, workdir, data, mesh)['step'] == 9


def test_weights_that_are_not_finite_are_not_saved(small_run, monkeypatch):
  experiment, workdir, data, mesh = small_run(steps=4, checkpoint_every=2)
  take = loop.TrainingLoop.take_step

  def overflow(self):
    take(self)
    if self.step == 4:
      params = self.state.params | {'norm': self.state.params['norm'] * float('inf')}
      self.state = dataclasses.replace(self.state, params=params)

  monkeypatch.setattr(loop.TrainingLoop, 'take_step', overflow)
  with pytest.raises(UserError, match=r'not finite at step 4, and were not saved: .* newest checkpoint is .*/2$'):
    loop.fit(experiment, workdir, data, mesh)
  assert [path.name for path in (pathlib.Path(workdir) / 'checkpoints').iterdir()] == ['2']


def test_a_skipped_last_step_is_reported_once(small_run, capsys):
  experiment, workdir, data, mesh = small_run(steps=3, log_every=1, max_skipped=1)
  make = data.train
  data.train = lambda: Broken(make(), {3})
  assert loop.fit(experiment, workdir, data, mesh)['step'] == 3
  printed = capsys.readouterr().err
  assert printed.count('step 3: the loss or the gradient is not finite') == 1
  assert printed.count('train 3/3') == 1


def test_spikes_are_skipped_alike_by_a_run_that_is_continued(small_run):
  """With a factor of almost 1, about half of the steps are spikes."""
  experiment, workdir, data, mesh = small_run(
    steps=26, log_every=1, eval_every=10, checkpoint_every=16, max_skipped=99, skip_spikes=True, spike_factor=1.01
  )
  with compilations() as names:
    summary = loop.fit(experiment, workdir, data, mesh)
  assert sum('train_step' in compiled for compiled in names) == 1, names
  folder = pathlib.Path(workdir)

  def result():
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    windows = [(each['step'], each['loss'], each['grad_norm'], each.get('skipped')) for each in lines if 'loss' in each]
    files = {file.name: file.read_text() for file in (folder / 'spikes').iterdir()}
    return windows, files, (folder / 'ledger.jsonl').read_text(), weights(workdir, 26, experiment, mesh)

  windows, files, ledger, params = result()
  spikes = {step for step, _, _, skipped in windows if skipped}
  assert 4 <= len(spikes) < 20 and min(spikes) > 11 and {f'{step}.json' for step in spikes} == set(files)
  for step in spikes:
    spike = json.loads(files[f'{step}.json'])
    above = spike['loss'] > 1.01 * spike['median_loss'], spike['grad_norm'] > 1.01 * spike['median_grad_norm']
    assert any(above) and spike['skipped'] and len(spike['examples']) == 2

  shutil.rmtree(folder / 'checkpoints' / '26')
  shutil.rmtree(folder / 'spikes')
  metrics = folder / 'metrics.jsonl'
  metrics.write_text(re.sub(', "tokens": [0-9]+', '', metrics.read_text()))  # which the checkpoint has, too
  assert loop.fit(experiment, workdir, data, mesh)['tokens'] == summary['tokens']
  again, files_again, ledger_again, params_again = result()
  assert again == windows and ledger_again == ledger
  assert files_again == {name: text for name, text in files.items() if int(name.split('.')[0]) > 16}
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, params_again))


def weights(workdir, step, experiment, mesh):
  checkpoints = checkpoint.Checkpoints(workdir)
  target = step_lib.abstract_state(mesh, experiment.model, optim.optimizer(experiment.optim, experiment.train.steps))
  params = checkpoints.restore(step, target.params, target.opt_state)[0]
  checkpoints.close()
  return params
