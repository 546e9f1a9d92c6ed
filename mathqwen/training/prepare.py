"""From an `Experiment` to a run: model, tokenizer, data and mesh are put together and checked, then trained."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable

import jax
from etils import epath

from mathqwen import config as config_lib
from mathqwen.config import Experiment
from mathqwen.data.inspect import describe
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.hf import hub
from mathqwen.model import attention
from mathqwen.observe import profiling
from mathqwen.storage import checkpoint
from mathqwen.storage.source import open_source
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer
from mathqwen.training import loop, optim, step


@dataclasses.dataclass
class TrainingRun:
  """Everything but the weights, checked to fit together; nothing large is allocated yet."""

  experiment: Experiment  # with the model of `init` filled in
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  read: Callable[[], dict] | None = None  # initial weights in float32 on the mesh; None draws random ones

  @classmethod
  def prepare(cls, experiment: Experiment, dry: bool = False) -> 'TrainingRun':
    """Resolves `init` and checks sizes. With `dry` a missing `init` passes: the preset and our tokenizer stand in."""
    read, tokenizer = None, None
    shape = sharding.mesh_shape(experiment.mesh, jax.device_count())
    mesh = sharding.make_mesh(experiment.mesh)
    if experiment.init is not None:
      # A dry run fetches nothing from the hub.
      if dry and hub.name_of(experiment.init):
        print(
          f'{experiment.init} is not here: sizes are the preset\'s, and text is shown with the small tokenizer of this '
          'package', file=sys.stderr,
        )  # fmt: skip
      else:
        model = open_source(experiment.init)
        sharding.check(dict(mesh.shape), model.config)
        read = functools.partial(model.read, mesh, 'float32')
        tokenizer = model.tokenizer
        if tokenizer is None:
          raise UserError(
            f'{experiment.init} has no tokenizer files, which training needs: copy those of its model there'
          )
        init = model.name if model.name.startswith(hub.PREFIX) else experiment.init  # not a folder of the hub's cache
        experiment = dataclasses.replace(experiment, model=model.config, init=init)
    tokenizer = tokenizer or load_tokenizer(None)
    if tokenizer.vocab_size > experiment.model.vocab_size:
      raise UserError(
        f'the tokenizer knows {tokenizer.vocab_size} tokens and model.vocab_size is {experiment.model.vocab_size}: '
        f'set model.vocab_size={tokenizer.vocab_size} or more'
      )
    experiment.check_model(experiment.model)
    # Refuses what these devices cannot run.
    attention.select(experiment.train.attention, mesh, experiment.train.compute_dtype)
    data = experiment.data
    sharding.check(shape, experiment.model, data.batch_size, experiment.train.micro_batches, data.seq_len)
    if (note := sharding.undivided(shape, experiment.model)) and jax.process_index() == 0:
      print(note, file=sys.stderr)
    return cls(experiment, tokenizer, mesh, read)

  def data(self) -> TrainingData:
    return TrainingData(self.experiment.data, self.tokenizer, (jax.process_index(), jax.process_count()))

  def train(self, workdir: str, profile: int | None = None) -> dict:
    """Trains in `workdir`, or continues what is there. Returns the summary of `loop.fit`.

    profile: steps to trace, from the third of this process on.
    """
    checkpoint.claim(workdir, self.experiment)
    latest = checkpoint.Checkpoints(workdir).latest
    if profile is not None:
      profiling.check(profile, self.experiment.train.steps - (latest or 0))
    data = self.data()
    for line in data.describe():
      print(line, file=sys.stderr)
    started = latest is not None
    target = epath.Path(workdir) / 'tokenizer'
    if jax.process_index() == 0 and not (started and target.exists()):
      self.tokenizer.save(target)
    params = self.read() if self.read and not started else None
    return loop.fit(self.experiment, workdir, data, self.mesh, params, profile or 0)

  def plan(self) -> dict:
    """Parameters, and bytes per device of what the compiled step needs, without allocating any of it."""
    experiment, cfg = self.experiment, self.experiment.model
    tx = optim.optimizer(experiment.optim, experiment.train.steps)
    state = step.abstract_state(self.mesh, cfg, tx)
    batch = step.abstract_batch(self.mesh, experiment)
    memory = step.compile_step(self.mesh, cfg, experiment, tx).lower(state, batch).compile().memory_analysis()
    return {
      'parameters': sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
      'weights_bytes': step.bytes_per_device(state.params),
      'moments_bytes': step.bytes_per_device(state.opt_state),
      'arguments_bytes': memory.argument_size_in_bytes,
      'temporaries_bytes': memory.temp_size_in_bytes,
      'total_bytes': memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes,
    }


def dry_run(run: TrainingRun) -> dict:
  """Prints sizes, memory and the first packed row of a run; trains nothing. Returns the numbers."""
  experiment, cfg = run.experiment, run.experiment.model
  data = run.data()  # first: what is wrong with the data shows before anything is compiled
  print(config_lib.to_json(experiment), end='')
  numbers = run.plan()
  shape = ' x '.join(f'{name} {size}' for name, size in dict(run.mesh.shape).items())
  gib = lambda name: f'{numbers[name] / 2**30:.2f} GiB'
  print(f'parameters: {numbers["parameters"]:,}')
  print(f'mesh: {shape}; memory per device, from the step compiled for {jax.default_backend()}:')
  print(f'  {gib("weights_bytes")} float32 weights, {gib("moments_bytes")} AdamW moments')
  print(f'  {gib("temporaries_bytes")} activations, gradients and other temporaries')
  print(f'  {gib("total_bytes")} in all')
  for line in data.describe():
    print(line)
  tokens = experiment.train.steps * experiment.data.batch_size * experiment.data.seq_len
  print(f'{experiment.train.steps:,} steps of {experiment.data.batch_size} x {experiment.data.seq_len} positions: '
        f'{tokens / data.tokens:,.1f} epochs')  # fmt: skip
  print('the first packed row, what is learnt in [[ ]] (in green on a terminal):')
  first = {name: rows[0] for name, rows in next(data.train()).items()}
  print(describe(first, run.tokenizer, sys.stdout.isatty()))
  return numbers | {'parameters_dtype': 'float32', 'vocab_size': cfg.vocab_size}
