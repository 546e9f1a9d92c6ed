"""A MODEL wherever it is stored: its weights one at a time and all at once, without a word from any library."""

import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest

from mathqwen import hf
from mathqwen.adapter_config import AdapterConfig
from mathqwen.config import MeshConfig, TrainConfig
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.storage import source
from mathqwen.storage.source import open_source

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def stored(trained, tmp_path_factory):
  """The same weights as a run, as a Hugging Face directory and as a converted model."""
  folder = tmp_path_factory.mktemp('stored')
  shutil.copytree(trained, folder / 'run')
  convert_to_hf(str(trained), str(folder / 'hf'), dtype='float32', compare=False)
  convert_from_hf(str(folder / 'hf'), str(folder / 'converted'), compare=False)
  return folder


LOAD = """
import sys
import mathqwen
model = mathqwen.load(sys.argv[1], dtype='float32')
print(model.generate(['11+3='], max_new_tokens=2))
"""


@pytest.mark.parametrize('kind', ['run', 'converted', 'hf'])
def test_loading_prints_nothing(kind, stored, tiny):
  """Neither a warning nor a line of a log, with every Python warning an error."""
  env = os.environ | tiny.env | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-W', 'error', '-c', LOAD, str(stored / kind)]
  done = subprocess.run(command, env=env, cwd=stored, capture_output=True, text=True, timeout=120)
  assert done.stderr == ''
  assert done.returncode == 0 and done.stdout.startswith('[')


def weights_of(kind, stored):
  source = open_source(str(stored / ('hf' if kind == 'memory' else kind)))
  if kind == 'memory':
    return hf.ArrayWeights(source.read())
  return source.weights


@pytest.mark.parametrize('kind', ['run', 'converted', 'hf', 'memory'])
def test_weights_are_the_same_wherever_they_are(kind, stored):
  """One at a time, and all at once in another dtype on a mesh: against the tensors of the Hugging Face files."""
  source = open_source(str(stored / 'hf'))
  expected = source.read()
  weights = weights_of(kind, stored)
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  assert sorted(weights.paths()) == sorted(tuple(key.key for key in path) for path, _ in leaves)
  for path in weights.paths():
    array = weights.read(path)
    assert isinstance(array, np.ndarray) and array.dtype == weights.dtype(path) == np.float32
    assert np.array_equal(array, hf.weight_at(expected, path)), path
  assert not weights.collective

  mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
  shardings = sharding.params_shardings(mesh, source.config)
  for dtype in (None, 'bfloat16'):
    params = weights.read_all(shardings, dtype)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for path in weights.paths():
      array, want = hf.weight_at(params, path), hf.weight_at(expected, path)
      assert array.sharding == hf.weight_at(shardings, path)
      assert array.dtype == (ml_dtypes.bfloat16 if dtype else np.float32)
      assert np.array_equal(array, want.astype(array.dtype)), path
  weights.close()


def test_where_the_base_of_a_run_may_be_instead(monkeypatch, tmp_path):
  """A bucket has no links."""
  gone = types.SimpleNamespace(json=lambda item: {'name': str(tmp_path / 'gone')})
  monkeypatch.setattr(source.converted, 'StepWeights', lambda *args: gone)
  monkeypatch.setattr(source.bases, 'place_of', lambda name, workdir: name)
  train = TrainConfig(adapter=AdapterConfig(4))
  experiment = types.SimpleNamespace(model=None, train=train)
  for workdir, instead in ((f'{tmp_path}/run', 'a link to it'), ('gs://bucket/run', 'a copy of it')):
    with pytest.raises(UserError, match=f'put it back, or {instead} at {workdir}/base'):
      source._weights_of_run(workdir, 6, experiment)
