"""Evaluations into a bucket: killed and continued, alone in their folder, and the same as on a disk."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mathqwen import files
from mathqwen.cli import main
from mathqwen.evals import compare

ROOT = pathlib.Path(__file__).parents[2]

KILLED = """
import os, signal, sys
from mathqwen.cli import main
from mathqwen.evals import progress
from mathqwen import files
advance = progress.Bar.advance
def killing(self, correct):
  advance(self, correct)
  if self._new == 3:
    path = files.path(sys.argv[-1]) / 'arithmetic' / 'records.jsonl'
    while files.read_journal(path).count(b'\\n') < 3: pass
    os.kill(os.getpid(), signal.SIGKILL)
progress.Bar.advance = killing
main(sys.argv[1:])
"""


@pytest.fixture
def asking(trained, tiny):
  """The command without its --out; decoded one by one, so that answers end one by one."""
  return [
    'evaluate', str(trained), '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--batch-size', '1', '--out',
  ]  # fmt: skip


def test_killed_and_continued(bucket, store, asking, tiny, tmp_path, download, capsys):
  out = f'{bucket}/scores'
  env = os.environ | store.env | tiny.env | {'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-c', KILLED, *asking, out]
  done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
  assert done.returncode == -9, done.stderr
  folder = files.path(out) / 'arithmetic'
  assert (folder / '.lock').exists() and not (folder / 'scores.json').exists()
  assert files.read_journal(folder / 'records.jsonl').count(b'\n') == 3

  assert main(['table', out]) == 2
  assert 'not finished' in capsys.readouterr().err
  assert main([*asking, out, '--json']) == 0
  printed = capsys.readouterr()
  scores = json.loads(printed.out.splitlines()[-1])['benchmarks']['arithmetic']
  assert (scores['resumed'], scores['n']) == (3, 8)
  assert 'arithmetic: 3 of 8 answers are there, 5 to go' in printed.err
  assert sorted(path.name for path in folder.iterdir()) == ['records.jsonl', 'scores.json', 'settings.json']

  local = tmp_path / 'local'
  assert main([*asking, str(local)]) == 0
  found = compare.compare(out, local)['benchmarks']['arithmetic']
  assert (found['n'], found['other_texts']) == (8, 0)
  copied = download(f'{out}/arithmetic', tmp_path / 'copied')
  assert (copied / 'records.jsonl').read_bytes() == (local / 'arithmetic' / 'records.jsonl').read_bytes()
  capsys.readouterr()
  assert main([*asking, out]) == 0  # finished: nothing is asked again
  assert '8 of 8 answers are there, 0 to go' in capsys.readouterr().err


def test_two_at_the_same_time(bucket, asking, fails):
  out = f'{bucket}/scores'
  with files.locked(files.path(out) / 'arithmetic'):
    line = fails(*asking, out)
    assert line.startswith(f'{out}/arithmetic: another evaluation is writing here (process {os.getpid()} on ')
  assert main([*asking, out]) == 0


def test_other_settings_in_the_same_folder(bucket, asking, fails):
  out = f'{bucket}/scores'
  assert main([*asking, out]) == 0
  line = fails(*asking, out, '--max-new-tokens', '3')
  assert line.startswith(f'{out}/arithmetic holds another run (max_new_tokens')
