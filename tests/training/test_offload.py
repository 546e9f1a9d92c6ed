"""Moments in the memory of the host: the numbers and checkpoints of a run without; or no such memory."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from mathqwen import config
from mathqwen.cli import main
from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.model.config import ModelConfig
from mathqwen.storage import checkpoint, checksums
from mathqwen.training import offload, optim, step

CFG = ModelConfig(64, 32, 64, 3, 4, 2, 8, 64, tie_word_embeddings=True)


@functools.cache
def supported() -> bool:
  try:
    offload.check()
  except UserError:
    return False
  return True


needs_host_memory = pytest.mark.skipif('not supported()', reason='JAX 0.7 has no memory of the host beside a CPU')


@functools.cache
def stepped(offloaded: bool):
  """(abstract state, state after three steps); the second of them is skipped, because its loss is not finite."""
  experiment = Experiment(
    CFG,
    data=DataConfig(batch_size=4, seq_len=16),
    optim=OptimConfig(learning_rate=0.01, warmup_steps=1, eps=1e-3, clip_norm=0.5, offload=offloaded),
    train=TrainConfig(steps=10, compute_dtype='float32', dropout=0.0, remat='none'),
  )
  mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:2])
  tx = optim.optimizer(experiment.optim, 10)
  run = step.compile_step(mesh, CFG, experiment, tx)
  state = step.init_state(mesh, CFG, tx, 0)
  rng = np.random.default_rng(0)
  for scale in (1, np.nan, 1):
    batch = {'tokens': rng.integers(0, 64, (4, 16)), 'targets': rng.integers(0, 64, (4, 16))}
    batch |= {'segment_ids': np.ones((4, 16)), 'positions': np.tile(np.arange(16), (4, 1))}
    batch = {name: values.astype(np.int32) for name, values in batch.items()}
    batch['loss_weights'] = np.full((4, 16), scale, np.float32)
    state, metrics = run(state, sharding.global_batch(batch, mesh))
    assert bool(metrics['skipped']) == (scale != 1)
  return step.abstract_state(mesh, CFG, tx), state


def kinds(tree):
  return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


@needs_host_memory
def test_the_numbers_of_a_run_without():
  (_, ours), (_, plain) = stepped(True), stepped(False)
  assert kinds(ours.opt_state) == {offload.KIND} and offload.KIND not in kinds((ours.params, plain))
  assert jax.tree.structure(ours) == jax.tree.structure(plain)
  for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7, err_msg=str(path))
  sizes = [step.bytes_per_device(ours.opt_state, of_host=of_host) for of_host in (False, True)]
  assert sizes[0] == 8 and sizes[1] + 8 == step.bytes_per_device(plain.opt_state)  # two counters stay


@needs_host_memory
def test_its_checkpoint_is_one_of_a_run_without(tmp_path):
  abstract, state = stepped(True)
  tree = {'params': state.params, 'opt_state': state.opt_state}
  finite, arrays = checksums.examine(tree)
  plain = jax.tree.map(np.asarray, tree)
  assert finite and arrays == checksums.examine(jax.tree.map(jax.numpy.asarray, plain))[1]
  mine = checkpoint.Checkpoints(str(tmp_path), checkpoint.Keep(1))
  mine.save(3, state.params, state.opt_state, {'data': {}}, arrays)
  mine.wait()
  for target, kind in ((abstract, True), (stepped(False)[0], False)):
    params, opt_state, _ = mine.restore(3, target.params, target.opt_state)
    assert (kinds(opt_state) == {offload.KIND}) == kind
    restored = jax.tree.leaves({'params': params, 'opt_state': opt_state})
    assert all(np.array_equal(a, b) for a, b in zip(restored, jax.tree.leaves(plain), strict=True))
  mine.close()


@needs_host_memory
def test_a_run_goes_on_with_its_moments_on_the_host(tiny, trained, tmp_path):
  """From step 14 on, beside the run that kept them on the device."""
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '20')
  assert main(['train', tiny.config, '--workdir', str(workdir), '--set', 'optim.offload=true']) == 0
  lines = ((folder / 'metrics.jsonl').read_text().splitlines() for folder in (workdir, trained))
  ours, plain = ([line['loss'] for line in map(json.loads, text) if 'loss' in line][-1] for text in lines)
  assert ours == pytest.approx(plain, rel=1e-5)
  assert (workdir / 'checkpoints' / '20').is_dir()


@needs_host_memory
def test_a_dry_run_says_what_is_on_the_host(tiny, capsys):
  assert main(['train', tiny.config, '--dry-run', '--json', '--set', 'optim.offload=true']) == 0
  lines = capsys.readouterr().out.splitlines()
  found = json.loads(lines[-1])
  assert found['host_moments_bytes'] == 8 * found['parameters'] and found['moments_bytes'] == 8  # two counters
  rows = 4 * 64 * 5 * 4  # five numbers for each position
  assert found['arguments_bytes'] == pytest.approx(found['weights_bytes'] + rows, rel=0.01)
  assert found['total_bytes'] < found['arguments_bytes'] + found['temporaries_bytes'] + found['host_moments_bytes']
  assert any('AdamW moments, and 0.00 GiB of them on the host' in line for line in lines)


def test_where_there_is_none_nothing_is_allocated(tiny, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(offload, 'KIND', 'no_such_memory')
  workdir = tmp_path / 'run'
  assert main(['train', tiny.config, '--workdir', str(workdir), '--set', 'optim.offload=true']) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert 'optim.offload: JAX' in line and 'set optim.offload=false' in line and not workdir.exists()


def test_only_moments_of_adamw(tiny):
  with pytest.raises(UserError, match='optim.offload moves the moments of adamw .* set optim.name=adamw'):
    config.override(config.load(tiny.config), ['optim.name=adamw_8bit', 'optim.offload=true'])
