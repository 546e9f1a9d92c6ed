"""A run that continues on another mesh, or in other micro-batches, has the losses of one that did not change."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(600)  # it compiles five training steps
SCRIPT = pathlib.Path(__file__).parent / 'run_resume.py'
ROOT = SCRIPT.parents[2]


def run(devices, *words):
  """(what the script prints as JSON, what it says on standard error)"""
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + f' --xla_force_host_platform_device_count={devices}',
    'PYTHONPATH': str(ROOT),
  }
  done = subprocess.run([sys.executable, str(SCRIPT), *words], env=env, capture_output=True, text=True, timeout=290)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(tmp_path_factory.mktemp('resume'))


@pytest.fixture(scope='module')
def losses(tiny, folder):
  return run(8, tiny.config, folder)[0]


@pytest.mark.parametrize('changed', ['micro_batches', 'context', 'tensor'])
def test_resumed_with_other_settings(losses, changed):
  reference = losses['reference']
  assert len(reference) == 6 and reference[3] - reference[5] > 0.01  # wrong updates would show
  assert losses[changed] == pytest.approx(reference, rel=1e-5)


def test_resumed_on_fewer_devices(losses, folder, tiny):
  """On 3 of 8: neither the 16 rows nor the width of 32 are divisible. Dropout is on."""
  elastic, said = run(3, tiny.config, folder, 'elastic')
  assert elastic == pytest.approx(losses['reference'], rel=1e-5)
  assert (
    'continuing on 3 devices, before 8: mesh data 3; micro-batches: 3, with 2 rows on a device; 2 empty rows fill each '
    'batch of 16\n'
  ) in said
