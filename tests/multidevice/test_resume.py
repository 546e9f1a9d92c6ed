"""A run that continues on another mesh, or in other micro-batches, has the losses of one that did not change."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(600)  # it compiles four training steps
SCRIPT = pathlib.Path(__file__).parent / 'run_resume.py'
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope='module')
def losses(tiny, tmp_path_factory):
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8',
    'PYTHONPATH': str(ROOT),
  }
  words = [sys.executable, str(SCRIPT), tiny.config, str(tmp_path_factory.mktemp('resume'))]
  done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=590)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('changed', ['micro_batches', 'context', 'tensor'])
def test_resumed_with_other_settings(losses, changed):
  reference = losses['reference']
  assert len(reference) == 6 and reference[3] - reference[5] > 0.01  # wrong updates would show
  assert losses[changed] == pytest.approx(reference, rel=1e-5)
