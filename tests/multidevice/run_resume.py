"""Losses of runs that are resumed with other settings; run with 8 simulated devices by `test_resume.py`."""

import json
import pathlib
import shutil
import sys

from mathqwen.cli import main

STEPS, STOP = 6, 3
SETTINGS = {
  'data.batch_size': 16,
  'mesh.data': 2,
  'mesh.fsdp': 2,
  'mesh.tensor': 2,
  'model.num_attention_heads': 4,
  'model.num_key_value_heads': 2,
  'train.checkpoint_every': STOP,
  'train.log_every': 1,
  'train.micro_batches': 2,
  'train.steps': STEPS,
  'train.eval_every': STEPS,
}


def train(config, workdir, changes):
  words = [f'--set={name}={value}' for name, value in (SETTINGS | changes).items() if value is not None]
  assert main(['train', config, '--workdir', str(workdir), *words]) == 0
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [row['loss'] for row in rows if 'loss' in row]


def resumed(config, reference, changes):
  """The losses of `reference` up to its checkpoint of step STOP, then of a run with other settings."""
  workdir = reference.with_name('resumed')
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(reference, workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(STEPS))
  return train(config, workdir, changes)


# On 3 devices, which divide neither the 16 rows nor the width of 32
ELASTIC = dict.fromkeys(('mesh.data', 'mesh.fsdp', 'mesh.tensor'))

if __name__ == '__main__':
  config, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  if sys.argv[3:] == ['elastic']:
    print(json.dumps(resumed(config, folder / 'reference', ELASTIC)))
    sys.exit()
  losses = {
    'reference': train(config, folder / 'reference', {}),
    'micro_batches': resumed(config, folder / 'reference', {'train.micro_batches': 4}),
    'context': resumed(config, folder / 'reference', {'mesh.data': 1, 'mesh.context': 2}),
    'tensor': resumed(config, folder / 'reference', {'mesh.data': 4, 'mesh.tensor': 1}),
  }
  print(json.dumps(losses))
