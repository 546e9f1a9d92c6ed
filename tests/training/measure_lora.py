"""CPU seconds of a step with adapters beside a step that trains all weights, of a model of 100M parameters, by turns.

python tests/training/measure_lora.py [TURNS]        ends with status 1 if the adapters' step takes more than ALLOWED
"""

import statistics
import sys
import time

import jax

from mathqwen.adapter_config import NO_ADAPTER, AdapterConfig
from mathqwen.bench.sides import train_rows
from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from mathqwen.hardware import sharding
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig
from mathqwen.training import optim
from mathqwen.training import step as step_lib

CFG = ModelConfig(16_000, 768, 2048, 12, 12, 12, 64, 512, tie_word_embeddings=True)
ROWS, LENGTH = 2, 256
ALLOWED = 0.75


def stepper(adapter: AdapterConfig):
  """A function that takes one step, and returns its CPU seconds."""
  train = TrainConfig(adapter=adapter, dropout=0.0, remat='none')
  experiment = Experiment(CFG, data=DataConfig(batch_size=ROWS, seq_len=LENGTH), optim=OptimConfig(), train=train)
  mesh = sharding.make_mesh(MeshConfig())
  tx = optim.optimizer(experiment.optim, train.steps)
  inputs = (sharding.global_batch(train_rows(CFG, ROWS, LENGTH, 0.5), mesh),)
  if adapter.rank:
    held = lambda key: jax.tree.map(lambda w: w.astype(adapter.base), parameters.init(key, CFG))
    inputs = (jax.jit(held)(jax.random.key(0)), *inputs)
  state = step_lib.init_state(mesh, CFG, tx, 0, adapter=adapter, base=inputs[0])
  compiled = step_lib.compile_step(mesh, CFG, experiment, tx)

  def step():
    nonlocal state
    started = time.process_time()
    state, metrics = compiled(state, *inputs)
    jax.block_until_ready((state, metrics))
    return time.process_time() - started

  step()  # compiles
  return step


def main(turns: int) -> float:
  sides = {'all weights': stepper(NO_ADAPTER), 'rank 8': stepper(AdapterConfig(8))}
  seconds = {name: [] for name in sides}
  for _ in range(turns):
    for name, step in sides.items():
      seconds[name].append(step())
  medians = {name: statistics.median(values) for name, values in seconds.items()}
  weights = sum(x.size for x in jax.tree.leaves(parameters.abstract(CFG)))
  for name, median in medians.items():
    print(
      f'{name}: {median:.2f} CPU s a step (median of {turns}; {min(seconds[name]):.2f} to {max(seconds[name]):.2f})'
    )
  ratio = medians['rank 8'] / medians['all weights']
  print(f'{weights:,} weights, {ROWS} x {LENGTH} positions, {TrainConfig().compute_dtype}: {ratio:.2f} of a full step')
  return ratio


if __name__ == '__main__':
  sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7) > ALLOWED)
