"""A checkpoint that one version of JAX wrote continues on another, and back.

The versions are those of this Python and of the Pythons in MATHQWEN_PYTHONS, paths separated by colons. `.ci/run` names
those with Colab's packages and with the newest.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from mathqwen import compat

ROOT = pathlib.Path(__file__).parents[2]
NAMED = 'MATHQWEN_PYTHONS'
VERSION = 'import importlib.metadata; print(importlib.metadata.version("jax"))'


@pytest.fixture(scope='module')
def pythons():
  """[(version of JAX, path of its Python)]: the oldest and the newest JAX."""
  paths = [sys.executable, *filter(None, os.environ.get(NAMED, '').split(':'))]
  of = {subprocess.run([path, '-c', VERSION], capture_output=True, text=True, check=True).stdout.strip(): path
        for path in paths}  # fmt: skip
  ordered = sorted(of.items(), key=lambda item: compat.release(item[0]))
  if len(ordered) < 2:
    pytest.skip(f'the only JAX here is {ordered[0][0]}: name Pythons with others in {NAMED}')
  return [ordered[0], ordered[-1]]


def train(python, config, workdir):
  """Trains to the end, or from the newest checkpoint on."""
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}  # one version's, not the other's
  env |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  words = [python, '-m', 'mathqwen', 'train', config, '--workdir', str(workdir)]
  done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=250)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stderr


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {(name, row['step']): row[name] for row in rows for name in ('loss', 'eval_loss') if name in row}


@pytest.fixture(scope='module')
def whole(pythons, tiny, tmp_path_factory):
  """{version: workdir of a run that was never interrupted, with checkpoints 7, 14 and 20}"""
  folder = tmp_path_factory.mktemp('whole')
  for version, python in pythons:
    train(python, tiny.config, folder / version)
  return {version: folder / version for version, _ in pythons}


@pytest.mark.timeout(600)
@pytest.mark.parametrize('back', [False, True])
def test_a_checkpoint_continues_on_another_jax(back, pythons, whole, tiny, tmp_path):
  (first, _), (second, python) = reversed(pythons) if back else pythons
  workdir = tmp_path / 'run'
  shutil.copytree(whole[first], workdir)
  for step in ('14', '20'):
    shutil.rmtree(workdir / 'checkpoints' / step)
  assert f'continuing {workdir} at step 7' in train(python, tiny.config, workdir)
  continued = losses(workdir)
  assert len(continued) == 11  # nine windows of steps, two evaluations
  for version in (first, second):
    reference = losses(whole[version])
    assert reference['loss', 3] - reference['loss', 20] > 0.5  # it learns: a lost optimizer state would show
    assert continued == pytest.approx(reference, abs=1e-6, rel=0)
