"""A whole job with real training: two processes stand for two hosts, of which one is preempted twice.

test_up.py has four hosts: what the launcher does depends on their number, training only on there being several."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from fake_cloud import FakeCloud

import mathqwen
from mathqwen.cli import main

ROOT = pathlib.Path(__file__).parents[2]
STEPS, EVERY = 24, 5
SETTINGS = [
  'data.weights=',
  'data.seq_len=64',
  'data.batch_size=4',
  'data.eval_examples=16',
  'model.hidden_size=32',
  'model.intermediate_size=64',
  'model.num_hidden_layers=2',
  'model.num_attention_heads=4',
  'model.num_key_value_heads=4',
  'model.head_dim=16',
  'mesh.fsdp=2',
  'optim.warmup_steps=3',
  f'train.steps={STEPS}',
  f'train.eval_every={STEPS}',
  f'train.checkpoint_every={EVERY}',
  'train.log_every=1',
]


def steps(workdir) -> list[int]:
  """The steps with a loss that are in metrics.jsonl now."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line)['step'] for line in lines if '"loss"' in line and line.endswith('}')]


@pytest.mark.timeout(400)
def test_a_job_preempted_twice_ends_like_an_undisturbed_one(tiny, tmp_path, capsys):
  fake = FakeCloud(tmp_path / 'cloud', hosts=2)
  settings = [f'data.sources={tiny.train}', *SETTINGS]
  env = os.environ | tiny.env | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  # The first start compiles; the other two read what it wrote.
  env |= {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  env |= {'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1'}
  job, bucket = tmp_path / 'job.toml', tmp_path / 'bucket'
  fields = {'config': 'demo', 'name': 'arithmetic', 'slice': 'v5p-16', 'zone': 'us-east5-a', 'bucket': str(bucket)}
  fields |= {'set': settings, 'price_per_chip_hour': 2.0}
  job.write_text(''.join(f'{name} = {json.dumps(value)}\n' for name, value in fields.items()))
  workdir = bucket / 'arithmetic'
  # The processes find each other as tasks of a Slurm job; JAX derives the port from its number.
  launcher = env | fake.environment(gcloud=False) | {'FAKE_JOB': str(random.randrange(4096)), 'MATHQWEN_REHEARSAL': '1'}
  line = [sys.executable, '-m', 'launch.tpu', 'up', str(job), '--yes', '--no-plan', '--pace', '0.5']
  line += ['--logs', str(tmp_path / 'launches')]
  with subprocess.Popen(line, cwd=ROOT, env=launcher, stderr=subprocess.PIPE, text=True) as up:
    try:
      reached = []
      for after in (EVERY + 3, 3 * EVERY + 3):
        deadline = time.monotonic() + 120
        while not (got := steps(workdir)) or max(got) < after:
          assert up.poll() is None and time.monotonic() < deadline, up.stderr.read()
          time.sleep(0.05)
        fake.preempt('arithmetic', 1)
        reached.append(max(steps(workdir)))
      output = up.communicate(timeout=150)[1]
    finally:
      up.kill()
      fake.stop()
  assert up.returncode == 0, output

  # Every step is in the metrics once, and the weights are those of one process that was never interrupted.
  assert steps(workdir) == list(range(1, STEPS + 1))
  alone = ['train', 'demo', '--workdir', str(tmp_path / 'alone'), '--json']
  alone += [f'--set={setting}' for setting in settings if not setting.startswith('mesh.')]
  assert main(alone) == 0
  ends = [mathqwen.load(str(path), dtype='float32').params for path in (workdir, tmp_path / 'alone')]
  for got, want in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

  # The summary, which launch/README.md shows; `-n0` lets it through to the terminal.
  last = output.splitlines()[-1]
  tokens = json.loads(capsys.readouterr().out.splitlines()[-1])['tokens']
  with capsys.disabled():
    print(f'\n{last}')
  assert last.startswith(f'done: {STEPS} steps; {tokens:,} tokens; starts: 3; preemptions: 2, ')
  shape = lambda line: re.sub(r'\d[\d,.]*', 'N', line.partition('; logs in')[0])
  assert shape(last) in map(shape, (ROOT / 'launch/README.md').read_text().splitlines())
  ledger = [json.loads(text) for text in (tmp_path / 'launches/arithmetic/ledger.jsonl').read_text().splitlines()]
  times = lambda *names: [event['time'] for event in ledger if event['event'] in names]
  paid = sum(end - begin for begin, end in zip(times('active'), [*times('gone'), times('deleted')[-1]], strict=True))
  assert float(re.search(r'cost ([\d.]+)', last)[1]) == pytest.approx(paid * 8 / 3600 * 2, abs=0.006)
  continued = [int(step) for step in re.findall(r'\[arithmetic\.0\] continuing .* at step (\d+)', output)]
  assert len(continued) == 2 and all(
    step % EVERY == 0 and step <= was for step, was in zip(continued, reached, strict=True)
  )
