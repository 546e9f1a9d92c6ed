"""What saving costs on this machine, for a model of 100 million parameters.

python tests/storage/measure_saving.py
"""

import dataclasses
import tempfile
import time

import jax
import numpy as np

from mathqwen.config import Experiment, MeshConfig, TrainConfig
from mathqwen.hardware import sharding
from mathqwen.model.config import ModelConfig
from mathqwen.storage import checkpoint, checksums
from mathqwen.training import optim
from mathqwen.training.step import abstract_state, init_state

MODEL = ModelConfig(
  vocab_size=32_000,
  hidden_size=640,
  intermediate_size=1_792,
  num_hidden_layers=16,
  num_attention_heads=10,
  num_key_value_heads=10,
  head_dim=64,
  max_position_embeddings=1_024,
  tie_word_embeddings=True,
)


def seconds(work) -> float:
  """The shortest of two calls; the first also compiles."""
  work()
  return min(_once(work) for _ in range(2))


def _once(work) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def main():
  experiment = Experiment(MODEL)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  tx = optim.optimizer(experiment.optim, experiment.train.steps)
  state = init_state(mesh, MODEL, tx, seed=0)
  tree = {'params': state.params, 'opt_state': state.opt_state}
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  checking = seconds(lambda: checksums.examine(tree))
  copying = seconds(lambda: jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree))

  with tempfile.TemporaryDirectory() as workdir:
    checkpoints = checkpoint.Checkpoints(workdir, checkpoint.Keep(1))
    items = {'data': {}, 'config': dataclasses.asdict(experiment)}

    def save(step: int):
      checkpoints.save(step, state.params, state.opt_state, items, checksums.examine(tree)[1])

    blocked, writing = [], []
    for step in (1, 2, 3):
      blocked.append(_once(lambda step=step: save(step)))
      writing.append(_once(checkpoints.wait))
    target = abstract_state(mesh, MODEL, tx)
    restoring = _once(lambda: checkpoints.restore(3, target.params, target.opt_state))
    checkpoints.close()

  interval = 60 * TrainConfig().checkpoint_minutes
  stop = min(blocked)
  all_of_it = stop + min(writing)
  print(f'{count / 1e6:.0f} million parameters, {size / 2**30:.2f} GiB with moments')
  print(f'blocked {stop:.2f} s: checksums {checking:.2f} s; a copy in host memory takes {copying:.2f} s')
  print(f'written in the background in {min(writing):.1f} s; restored and compared in {restoring:.1f} s')
  print(f'{100 * stop / interval:.2f}% of {interval:.0f} s; {100 * all_of_it / interval:.2f}% with all of the writing')


if __name__ == '__main__':
  main()
