"""Memory, open handles and threads of a long run must not grow: 2,000 tiny steps, 40 evaluations, 10 checkpoints.

python tests/training/measure_flat.py [STEPS]        ends with status 1 if one of them grows
"""

import json
import os
import pathlib
import re
import statistics
import sys
import tempfile

import mathqwen
from mathqwen import config
from mathqwen.config import Experiment
from mathqwen.training.loop import TrainingLoop

TINY = pathlib.Path(__file__).parents[1] / 'faults' / 'tiny.py'
STEPS = 2000
EVALUATE_EVERY = 50  # steps
# Rarer, because TensorStore (0.1.86) keeps 0.1 to 0.3 MB of each save: the metrics that Orbax asks it for
# (`tensorstore.experimental_collect_matching_metrics`, which keeps what it returned, also in an empty process).
SAVE_EVERY = 200
# Memory, handles and threads that the last third may have more than the first: the allocator's ups and downs, and pools
# of threads that fill up as they are needed. One that each checkpoint leaves behind would be 6 more.
# Each third counts with its median: the files of a checkpoint that is just being written are open at some of the steps.
ALLOWED = (8 * 2**20, 4, 6)


def experiment(steps: int, train: pathlib.Path) -> Experiment:
  """The model of tests/faults/tiny.py, with all that a run writes."""
  changes = {
    'data.sources': (str(train),),
    'train.steps': steps,
    'train.eval_every': EVALUATE_EVERY,
    'train.checkpoint_every': SAVE_EVERY,
    'train.spike_factor': 1.5,  # so that spikes are written, too
  }
  return config.override(config.load(str(TINY)), changes)


def sample() -> tuple[int, int, int]:
  """(resident bytes, open handles, threads) of this process, now."""
  status = pathlib.Path('/proc/self/status').read_text()
  resident, threads = (int(re.search(rf'{name}:\s*(\d+)', status).group(1)) for name in ('VmRSS', 'Threads'))
  return resident * 1024, len(os.listdir('/proc/self/fd')), threads


def measure(steps: int) -> list[tuple[int, int, int]]:
  """A sample after each step of a run."""
  samples = []
  take_step = TrainingLoop.take_step

  def sampled(self, *arguments):
    result = take_step(self, *arguments)
    samples.append(sample())
    return result

  TrainingLoop.take_step = sampled
  try:
    with tempfile.TemporaryDirectory() as folder:
      train = pathlib.Path(folder) / 'train.jsonl'
      rows = [{'query': f'{a}+{b}=', 'response': str(a + b)} for a in range(10, 40) for b in range(10, 40)]
      train.write_text(''.join(json.dumps(row) + '\n' for row in rows))
      mathqwen.train(experiment(steps, train), pathlib.Path(folder) / 'run')
  finally:
    TrainingLoop.take_step = take_step
  return samples


def main() -> int:
  """Prints the median of each in thirds of the run, after a quarter in which pools fill up. Returns the exit status."""
  steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
  samples = measure(steps)[steps // 4 :]
  third = len(samples) // 3
  parts = [samples[i * third : (i + 1) * third] for i in range(3)]
  medians = [[statistics.median_high(values) for values in zip(*part, strict=True)] for part in parts]
  grown = False
  for name, allowed, *values in zip(('memory', 'handles', 'threads'), ALLOWED, *medians, strict=True):
    texts = [f'{value / 2**20:.1f} MiB' if name == 'memory' else str(value) for value in values]
    grows = values[-1] > values[0] + allowed
    grown |= grows
    print(f'{name}: {", ".join(texts)} in thirds of {len(samples):,} steps{": it grows" if grows else ""}')
  return int(grown)


if __name__ == '__main__':
  sys.exit(main())
