import dataclasses
import importlib.util
import json

import pytest

from mathqwen import chips, cli, plan
from mathqwen.config import DataConfig, Experiment, MeshConfig, TrainConfig
from mathqwen.errors import UserError
from mathqwen.model.config import PRESETS

TINY = """
from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig

config = Experiment(
  ModelConfig(512, 256, 512, 2, 2, 1, 128, 1024),
  data=DataConfig(batch_size=8, seq_len=128),
  optim=OptimConfig(warmup_steps=1),
  train=TrainConfig(steps=10, dropout=0.0),
)
"""


@pytest.mark.parametrize(
  'name, chips_, shape',
  [
    ('v5p-32', 16, (2, 2, 4)),
    ('v4-32', 16, (2, 2, 4)),
    ('v5p-8', 4, (2, 2, 1)),
    ('v6e-16', 16, (4, 4)),
    ('v5litepod-32', 32, (4, 8)),
    ('v5e-1', 1, (1, 1)),
    ('2xv5p-32', 32, (2, 2, 4)),
  ],
)
def test_slices(name, chips_, shape):
  found = chips.slice_of(name)
  assert (found.chips, found.shape) == (chips_, shape)


@pytest.mark.parametrize('name', ['v5p', 'v3-8', '0xv5e-4', '2xv4-8', 'v5p-31', 'v5e-5', 'v6e-x', 'h100-8', ''])
def test_slices_that_do_not_exist(name):
  with pytest.raises(UserError, match='--topology'):
    chips.slice_of(name)


def test_links():
  """Open rows of 4 have one link a direction, rings of 16 two; v5e's are of 50 GB/s."""
  assert chips.slice_of('v5e-16').ici_bytes_per_second == 2 * 50e9
  assert chips.slice_of('v5e-256').ici_bytes_per_second == 4 * 50e9
  assert chips.slice_of('v5e-1').ici_bytes_per_second == 0


def test_model_flops_by_hand():
  cfg = PRESETS['Qwen2.5-7B']
  layer = 3584 * (3584 + 512 + 512 + 3584) + 3 * 3584 * 18944
  weights = 28 * layer + 152064 * 3584
  pairs = 1024 * 1025 // 2  # of a query and a key up to it
  want = 128 * (6 * 1024 * weights + 3 * 28 * 2 * 2 * 3584 * pairs)
  assert plan.model_flops(cfg, 128, 1024) == want
  assert plan.recomputed_flops(cfg, 'mlp', 128, 1024) - plan.recomputed_flops(cfg, 'dots', 128, 1024) == (
    128 * 1024 * 28 * 2 * 2 * 3584 * 18944
  )


def experiment(mesh=None, **train):
  mesh, train = mesh or MeshConfig(), TrainConfig(**{'dropout': 0.0} | train)
  return Experiment(PRESETS['Qwen2.5-7B'], data=DataConfig(batch_size=128), mesh=mesh, train=train)


def test_settings_that_are_tried():
  large = plan.candidates(experiment(), chips.slice_of('v5p-32'), set())
  assert large[0] == {
    'mesh.data': 1, 'mesh.fsdp': 16, 'mesh.context': 1, 'mesh.tensor': 1,
    'train.remat': 'dots', 'train.micro_batches': 1,
  }  # fmt: skip
  small = plan.candidates(experiment(), chips.slice_of('v5e-16'), set())
  assert 1 <= len(small) <= plan.ATTEMPTS and small[0]['train.micro_batches'] > 1
  kept = plan.candidates(experiment(remat='mlp'), chips.slice_of('v5e-16'), {'train.remat'})
  assert {tried['train.remat'] for tried in kept} == {'mlp'}
  # 128 rows on 256 chips: two chips share a row.
  wide = plan.candidates(experiment(), chips.slice_of('v5e-256'), set())
  assert (wide[0]['mesh.fsdp'], wide[0]['mesh.context'], wide[0]['mesh.tensor']) == (128, 2, 1)
  wide = plan.candidates(experiment(), chips.slice_of('v5e-256'), {'mesh.context'})
  assert (wide[0]['mesh.fsdp'], wide[0]['mesh.context'], wide[0]['mesh.tensor']) == (128, 1, 2)
  with pytest.raises(UserError, match='v5e-256.*data.batch_size'):
    plan.candidates(experiment(), chips.slice_of('v5e-256'), {'mesh.context', 'mesh.tensor'})
  two = plan.candidates(experiment(), chips.slice_of('2xv5p-32'), set())
  assert (two[0]['mesh.data'], two[0]['mesh.fsdp']) == (2, 16)  # a copy of the model in each slice


@pytest.mark.parametrize(
  'sizes, want',
  [
    ({'tensor': 2}, (1, 8, 1, 2)),
    ({'context': 4}, (1, 4, 4, 1)),
    ({'data': 2}, (2, 8, 1, 1)),
    ({'fsdp': 4, 'context': -1}, (1, 4, 4, 1)),
  ],
)
def test_mesh_sizes_of_a_config_file_are_kept(sizes, want):
  for settings in plan.candidates(experiment(MeshConfig(**sizes)), chips.slice_of('v5p-32'), set()):
    assert tuple(settings[f'mesh.{name}'] for name in ('data', 'fsdp', 'context', 'tensor')) == want


def test_names_come_before_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install'):
    plan.plan(experiment(), ['v5e-1'], set())
  with pytest.raises(UserError, match='--topology v5q-8: write KIND-SIZE'):
    plan.plan(experiment(), ['v5q-8'], set())


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="no TPU compiler: pip install 'libtpu==0.0.42.*'"
)
def test_plan_of_a_tiny_step(tmp_path, capsys):
  path = tmp_path / 'tiny.py'
  path.write_text(TINY)
  assert cli.main(['plan', str(path), '--topology', 'v5e-4', '--json']) == 0
  (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])['topologies']
  assert row['fits'] and row['chips'] == 4 and row['settings']['mesh.fsdp'] == 4
  assert 0 < row['peak_bytes_per_chip'] < row['hbm_capacity_bytes'] == 16 * 2**30
  assert row['hbm_bytes_per_chip'] > row['weights_bytes'] + row['moments_bytes']
  params = 512 * 256 * 2 + 2 * (256 * 128 * 2 * 3 + 3 * 256 * 512)
  assert row['weights_bytes'] == pytest.approx(4 * params / 4, rel=0.05)  # norms and biases besides
  assert row['moments_bytes'] == pytest.approx(2 * row['weights_bytes'], rel=0.01)
  assert 1 <= row['executed_flops_per_step'] / row['model_flops_per_step'] < 1.6
  gathered = 2 * (256 * 128 * 2 * 3 + 3 * 256 * 512) * 2 * 3 / 4  # once, in bfloat16
  assert row['collectives']['all-gather'] > gathered and 0 < row['mfu'] <= 1
  assert row['days'] == pytest.approx(10 * row['step_seconds'] / 86_400)


def test_settings_are_all_read():
  names = plan.candidates(experiment(), chips.slice_of('v6e-16'), set())[0]
  assert dataclasses.asdict(plan._with(experiment(), names).mesh) == {
    'data': 1, 'fsdp': 16, 'context': 1, 'tensor': 1
  }  # fmt: skip
