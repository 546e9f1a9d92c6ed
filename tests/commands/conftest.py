"""Commands in a process of their own, and an evaluation that several tests read."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def subprocess_main(*command, env=None, **kwargs):
  """The finished process of `python -m mathqwen COMMAND`."""
  words = [sys.executable, '-m', 'mathqwen', *map(str, command)]
  return subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, **kwargs)


@pytest.fixture
def unread(monkeypatch):
  """Fails a test that reads weights: arguments are checked first."""
  from mathqwen.storage import converted

  def refuse(*_):
    raise AssertionError('weights were read')

  for name in ('read', 'place'):
    monkeypatch.setattr(converted.StepWeights, name, refuse)


@pytest.fixture(scope='session')
def evaluated(trained, tiny, tmp_path_factory):
  """(the object that `evaluate --json` prints, its --out); not to be changed."""
  out = tmp_path_factory.mktemp('scores') / 'out'
  command = ['evaluate', trained, '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--limit', '4', '--json']
  done = subprocess_main(*command, '--out', out, env=tiny.env)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), out
