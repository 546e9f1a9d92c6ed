"""Peak memory of conversions of a checkpoint several times larger than its largest stacked weight."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from measure_conversion import RandomWeights

from mathqwen import hf
from mathqwen.hf import layouts
from mathqwen.hf.tensor_files import SafetensorsReader
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig

SIZES = {
  'vocab_size': 1024,
  'hidden_size': 1024,
  'intermediate_size': 1024,
  'num_attention_heads': 8,
  'num_key_value_heads': 8,
  'head_dim': 128,
  'max_position_embeddings': 64,
}
SMALL = ModelConfig(num_hidden_layers=1, **SIZES)
LARGE = ModelConfig(num_hidden_layers=24, **SIZES)
LARGEST = 24 * 1024 * 1024 * 2  # bytes of each of seven stacked weights
ALLOWED = 3 * LARGEST


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
  folder = tmp_path_factory.mktemp('memory')
  for name, cfg in (('small', SMALL), ('large', LARGE)):
    hf.save(str(folder / name), RandomWeights(cfg), cfg, None)
  total = sum(file.stat().st_size for file in (folder / 'large').iterdir())
  assert max(x.size for x in jax.tree.leaves(parameters.abstract(LARGE))) * 2 == LARGEST and total > 6 * LARGEST
  return folder


def test_a_conversion_holds_a_weight_at_a_time(directories):
  peak = {}
  for size in ('small', 'large'):
    ours, out = directories / f'{size}-ours', directories / f'{size}-out'
    peak['from-hf', size] = peak_rss('convert', 'from-hf', directories / size, ours, '--no-check')
    peak['to-hf', size] = peak_rss('convert', 'to-hf', ours, out, '--no-check')
  for way in ('from-hf', 'to-hf'):
    assert peak[way, 'large'] - peak[way, 'small'] < ALLOWED, way
  before, after = ((directories / name / 'model.safetensors').read_bytes() for name in ('large', 'large-out'))
  assert before == after


def run(*words, devices=1) -> str:
  """The last line that Python printed."""
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + f' --xla_force_host_platform_device_count={devices}',
    'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
  }
  done = subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()[-1]


def peak_rss(*command) -> int:
  """Bytes that a command held at most."""
  return json.loads(run('-m', 'mathqwen', *command, '--json'))['peak_rss_bytes']


LOAD = """
import sys
import jax, mathqwen
from mathqwen.observe.metrics import peak_rss_bytes
from mathqwen.hardware import sharding
from mathqwen.config import MeshConfig
model = mathqwen.load(sys.argv[1], sharding.make_mesh(MeshConfig(fsdp=2, tensor=2)))
jax.block_until_ready(model.params)
print(peak_rss_bytes(), sum(x.nbytes for x in jax.tree.leaves(model.params)))
"""


def test_loading_onto_a_mesh_holds_one_more_weight_than_the_mesh(directories):
  beside = {}
  for size in ('small', 'large'):
    peak, held = map(int, run('-c', LOAD, directories / size, devices=4).split())
    beside[size] = peak - held  # the mesh is simulated in this memory too
  assert beside['large'] - beside['small'] < ALLOWED


def test_every_weight_is_read_once(directories, monkeypatch):
  read = []
  original = SafetensorsReader.read

  def count(self, name, start, stop, out=None):
    read.append((name, start, stop))
    return original(self, name, start, stop, out)

  monkeypatch.setattr(SafetensorsReader, 'read', count)
  hf.load_params(str(directories / 'small'))
  rows = {tensor.name: tensor.shape[0] for tensor in layouts.file_tensors(SMALL, 'qwen2')}
  assert sorted(read) == sorted((name, 0, n) for name, n in rows.items())
