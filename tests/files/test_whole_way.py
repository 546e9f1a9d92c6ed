"""From data in a bucket to a table and an export in it, in one process without a file on this machine."""

import json
import os
import pathlib
import subprocess
import sys

from leftovers import left_in

ROOT = pathlib.Path(__file__).parents[2]

WAY = """
import json, sys
from mathqwen.cli import main
for words in json.loads(sys.argv[1]):
  print('$', *words, flush=True)
  status = main(words)
  if status:
    sys.exit(f'{words}: status {status}')
"""


def test_a_run_leaves_no_local_file(bucket, store, tiny, tmp_path, upload):
  upload(tiny.folder / 'data', f'{bucket}/data')
  sources = f'data.sources={bucket}/data/arithmetic/train.jsonl'
  upload(pathlib.Path(tiny.config), f'{bucket}/configs')
  config, run = f'{bucket}/configs/tiny.py', f'{bucket}/run'
  scores, asked = f'{bucket}/scores', ['--benchmarks', 'arithmetic', '--data-dir', f'{bucket}/data', '--limit', '4']
  train = ['train', config, '--workdir', run, '--set', sources, '--set', 'train.steps=8', '--profile', '1']
  commands = [
    ['data', 'inspect', config, '--set', sources],
    train,
    train[:-2],  # continues at its end
    ['evaluate', run, *asked, '--out', scores],
    ['evaluate', f'{run}/checkpoints/7', *asked, '--out', f'{bucket}/before'],
    ['grade', f'{scores}/arithmetic/records.jsonl', '--benchmark', 'arithmetic', '--out', f'{bucket}/graded'],
    ['compare', scores, f'{bucket}/before'],
    ['table', scores, f'{bucket}/before', '--out', f'{bucket}/table', '--metrics', f'{run}/metrics.jsonl'],
    ['convert', 'to-hf', run, f'{bucket}/hf', '--scores', scores],
    ['convert', 'from-hf', f'{bucket}/hf', f'{bucket}/converted'],
    ['convert', 'check', f'{bucket}/hf', f'{bucket}/converted', '--tolerance', '0'],
    ['generate', f'{bucket}/hf', '11+3='],
    ['generate', f'{bucket}/converted', '11+3='],
    ['train', config, '--workdir', f'{bucket}/next', *train[4:-2], '--init', f'{bucket}/converted'],
    ['evaluate', f'{bucket}/hf', *asked],
    ['configs', config],
  ]  # fmt: skip
  for name in ('cwd', 'home', 'tmp'):
    (tmp_path / name).mkdir()
  env = os.environ | store.env | tiny.env | {'PYTHONPATH': str(ROOT), 'HOME': str(tmp_path / 'home')}
  env |= {'TMPDIR': str(tmp_path / 'tmp')}
  done = subprocess.run(
    [sys.executable, '-c', WAY, json.dumps(commands)],
    env=env, cwd=tmp_path / 'cwd', capture_output=True, text=True, timeout=280,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
  assert left_in(tmp_path) == []
