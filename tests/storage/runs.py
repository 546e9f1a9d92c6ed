"""What tests of checkpoints ask of a workdir."""

import collections
import json

import jax
import numpy as np

from mathqwen import config
from mathqwen.cli import main
from mathqwen.hardware import sharding
from mathqwen.storage import checkpoint
from mathqwen.training import optim
from mathqwen.training import step as step_lib


def target_of(workdir):
  """The abstract state that a run of `workdir` restores, on one device."""
  experiment = config.from_json((workdir / 'experiment.json').read_text(), 'experiment.json')
  mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
  return step_lib.abstract_state(mesh, experiment.model, optim.optimizer(experiment.optim, experiment.train.steps))


def state_of(workdir, step=20, target=None):
  """(every array and counter of a checkpoint, by name; the position in the data)"""
  target = target or target_of(workdir)
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


def fails(capsys, *command):
  status = main(list(map(str, command)))
  lines = capsys.readouterr().err.splitlines()
  assert status == 2, lines
  assert lines[-1].startswith('mathqwen: ')
  return lines[-1]
