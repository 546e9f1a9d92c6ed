"""How a run goes on with other devices; tests/multidevice runs it."""

import dataclasses

import pytest

from mathqwen.config import DataConfig, Experiment, MeshConfig, TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.model.config import PRESETS
from mathqwen.settings import to_flat
from mathqwen.training import elastic
from mathqwen.training.elastic import Batch


def experiment_of(tiny_config, batch_size, micro_batches=1):
  return Experiment(
    tiny_config(), data=DataConfig(batch_size=batch_size), train=TrainConfig(micro_batches=micro_batches)
  )


def shape_of(**sizes):
  return {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1} | sizes


def session(experiment, shape, batch):
  return {
    'devices': 16,
    'mesh': shape,
    'batch': dataclasses.asdict(batch),
    'settings': to_flat(experiment),
  }


@pytest.mark.parametrize(
  ('before', 'now', 'hosts', 'want'),
  [
    ((16, 1, Batch(128, 1)), shape_of(fsdp=16), 4, Batch(128, 1)),
    ((16, 1, Batch(128, 1)), shape_of(fsdp=8), 2, Batch(128, 2)),  # 8 rows on a device, as before
    ((16, 1, Batch(128, 1)), shape_of(data=3, fsdp=4), 3, Batch(144, 2)),  # 6 rows on a device
    ((12, 1, Batch(144, 2)), shape_of(data=2, fsdp=4), 2, Batch(144, 3)),  # after a second loss; still 6
    ((12, 1, Batch(144, 2)), shape_of(fsdp=16), 4, Batch(128, 2)),
    ((16, 2, Batch(128, 2)), shape_of(data=3, fsdp=4), 3, Batch(144, 3)),
    ((16, 1, Batch(128, 1)), shape_of(fsdp=4, context=4), 4, Batch(128, 1)),  # more rows, of a quarter of the length
    ((4, 1, Batch(128, 1)), shape_of(tensor=4, fsdp=4), 12, Batch(132, 1)),  # rows for each host
  ],
)
def test_batches(tiny_config, before, now, hosts, want):
  shards, micro_batches, batch = before
  experiment = experiment_of(tiny_config, 128, micro_batches)
  got = elastic.batch_of(experiment, now, hosts, session(experiment, shape_of(fsdp=shards), batch))
  assert got == want
  rows = now | {'tensor': 1}  # its axes divide none of this model
  sharding.check(rows, tiny_config(), got.rows, got.micro_batches, 64)


def test_a_setting_that_was_changed_is_taken_as_it_is(tiny_config):
  was, now = experiment_of(tiny_config, 128, 2), experiment_of(tiny_config, 128, 1)
  assert elastic.batch_of(now, shape_of(fsdp=4), 1, session(was, shape_of(fsdp=16), Batch(128, 2))) == Batch(128, 1)


def test_a_new_run_is_taken_as_it_is(tiny_config):
  """Its sizes can still be chosen: `sharding.check` refuses what does not divide."""
  assert elastic.batch_of(experiment_of(tiny_config, 128), shape_of(fsdp=12), 3, None) == Batch(128, 1)


def test_mesh(tiny_config):
  """The width is 48."""
  cfg = tiny_config()
  mesh = lambda devices, **sizes: elastic.mesh_of(MeshConfig(**sizes), cfg, devices)
  assert mesh(16) == MeshConfig() and mesh(3) == MeshConfig()
  assert mesh(20) == MeshConfig(data=5, fsdp=4)
  assert mesh(40, data=2, tensor=2) == MeshConfig(data=10, fsdp=2, tensor=2)
  assert mesh(5, fsdp=5) == MeshConfig(fsdp=5)  # as asked for: refused by `sharding.check`
  with pytest.raises(UserError, match='does not divide the 3 devices'):
    mesh(3, fsdp=4)


@pytest.mark.parametrize('base', ['bfloat16', 'int8', 'int4', 'nf4'])
def test_frozen_weights_in_4_bits_continue_on_any_number_of_devices(base):
  """A block of Qwen2.5-7B has 32 bytes, which 7 does not divide, though it divides the width."""
  cfg = PRESETS['Qwen2.5-7B']
  for devices in range(1, 40):
    mesh = elastic.mesh_of(MeshConfig(), cfg, devices, base)
    sharding.check(sharding.mesh_shape(mesh, devices), cfg, base=base)
  assert elastic.mesh_of(MeshConfig(), cfg, 7, base) == (
    MeshConfig() if base in ('bfloat16', 'int8') else MeshConfig(data=7, fsdp=1)
  )


def test_what_is_said(tiny_config):
  experiment = experiment_of(tiny_config, 128)
  before = session(experiment, shape_of(fsdp=16), Batch(128, 1))
  assert elastic.describe(experiment, shape_of(fsdp=16), Batch(128, 1), before) is None
  assert elastic.describe(experiment, shape_of(fsdp=12), Batch(128, 1), None) is None
  assert elastic.describe(experiment, shape_of(data=3, fsdp=4), Batch(144, 2), before) == (
    'continuing on 12 devices, before 16: mesh data 3 x fsdp 4; micro-batches: 2, with 6 rows on a device; 16 empty '
    'rows fill each batch of 128'
  )
