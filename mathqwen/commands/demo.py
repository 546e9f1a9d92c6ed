"""`mathqwen demo`: the whole way on one machine, made of what the other commands do."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex
import sys
import time
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.commands import _devices, _flags
from mathqwen.errors import UserError

if TYPE_CHECKING:
  from mathqwen.config import Experiment
  from mathqwen.inference.model import Model
  from mathqwen.training.prepare import TrainingRun

HELP = 'the whole way on this machine: data, training, evaluation, export, table'

TRAIN_EXAMPLES = 40_000
TEST_PER_GROUP = 100
SEED = 0  # of the arithmetic problems
MAX_NEW_TOKENS = 136  # as many as the longest worked solution of a division has
BATCH_SIZE = 128  # problems decoded at the same time


def add_flags(parser: _flags.Parser) -> None:
  """Adds where the demo works and how long it trains."""
  parser.add_argument(
    '--workdir',
    type=_flags.path,
    default='mathqwen-demo',
    metavar='DIR',
    help='where everything goes (default: %(default)s)',
  )
  parser.add_argument(
    '--steps', type=int, metavar='N', help='train only N steps: shows every stage in less time, with a poor model'
  )
  _flags.add_platform(parser)


def run(args: argparse.Namespace) -> dict:
  """Runs all stages. The JSON: `seconds`, the scores `before`, `after` and of the export (`hf`), and `train`."""
  from mathqwen.data import arithmetic
  from mathqwen.evals.report import table
  from mathqwen.evals.run import Ask, evaluate
  from mathqwen.inference.model import load
  from mathqwen.training.prepare import TrainingRun

  started = time.monotonic()
  root = files.path(args.workdir)
  data_dir = root / 'data'
  run_dir = root / 'run'
  scores = root / 'scores'
  export = root / 'hf'
  experiment = _experiment(data_dir, args.steps)
  _devices.start(args)
  prepared = TrainingRun.prepare(experiment, workdir=str(run_dir))
  ask = Ask(data_dir, max_new_tokens=MAX_NEW_TOKENS)

  def score(model, name):
    return evaluate(model, 'arithmetic', ask, out=scores / name, batch_size=BATCH_SIZE)

  _heading('1. arithmetic in the 16 groups of Math401, training and test disjoint')
  written = arithmetic.write(data_dir / 'arithmetic', TRAIN_EXAMPLES, TEST_PER_GROUP, SEED)
  print(f'{written["train"]:,} training and {written["test"]:,} held-out problems in {data_dir / "arithmetic"}')

  _heading('2. the held-out problems before training, with random weights')
  before = score(_random_model(prepared), 'before')

  _heading(f'3. training {prepared.experiment.train.steps:,} steps')
  summary = prepared.train(str(run_dir))

  _heading('4. the same problems after training')
  model = load(str(run_dir), dtype='float32')
  after = score(model, 'after')

  _heading('5. as a Hugging Face directory, loaded again')
  for earlier in (export, scores / 'hf'):  # of an earlier demo in the same workdir
    files.remove_tree(earlier)
  model.save_hf(str(export))
  exported = score(load(str(export), dtype='float32'), 'hf')
  print(f'{export}: {_agreement(scores)}')

  _heading('6. beside the published systems')
  print(table.table([str(scores / 'before'), str(scores / 'after')], str(root / 'table')))
  seconds = time.monotonic() - started
  print(f'{seconds:.0f} seconds in all. Ask it yourself: {_next_command(run_dir)}')
  return {'seconds': seconds, 'before': before, 'after': after, 'hf': exported, 'train': summary}


def _experiment(data_dir: files.AnyPath, steps: int | None) -> Experiment:
  """configs/demo.py with its data in `data_dir`; with `steps`, shortened to them."""
  from mathqwen import config

  experiment = config.load('demo')
  if steps is not None:
    if steps < 2:
      raise UserError(f'--steps {steps}: the demo needs at least 2 steps, one to warm up and one to decay')
    warmup = min(experiment.optim.warmup_steps, steps // 2)
    experiment = dataclasses.replace(
      experiment,
      optim=dataclasses.replace(experiment.optim, warmup_steps=warmup),
      train=dataclasses.replace(experiment.train, steps=steps),
    )
  sources = [data_dir / 'arithmetic' / 'train' / pathlib.Path(source).name for source in experiment.data.sources]
  data = dataclasses.replace(experiment.data, sources=tuple(map(str, sources)))
  return dataclasses.replace(experiment, data=data)


def _random_model(prepared: TrainingRun) -> Model:
  """The random weights that training starts from, as a model."""
  import functools

  import jax

  from mathqwen.hardware import sharding
  from mathqwen.inference.model import Model
  from mathqwen.model import parameters

  experiment = prepared.experiment
  where = sharding.params_shardings(prepared.mesh, experiment.model)
  init = jax.jit(functools.partial(parameters.init, cfg=experiment.model), out_shardings=where)
  return Model(
    'random weights',
    experiment.model,
    prepared.tokenizer,
    init(parameters.random_key(experiment.train.seed)),
    dtype=experiment.train.compute_dtype,
    chat=prepared.chat,
  )


def _heading(text: str):
  print(f'\n\033[1m{text}\033[0m' if sys.stdout.isatty() else f'\n{text}', flush=True)


def _agreement(scores: files.AnyPath) -> str:
  """How many answers of the exported model are, to the letter, those of the checkpoint."""
  from mathqwen.evals import records

  def responses(name):
    read = records.read(scores / name / 'arithmetic' / 'records.jsonl').records
    return {record['id']: record['response'] for record in read}

  ours, exported = responses('after'), responses('hf')
  same = sum(ours[problem] == exported[problem] for problem in ours)
  return f'{same} of {len(ours)} answers are the same text'


def _next_command(run_dir: files.AnyPath) -> str:
  """The command that asks the trained model, ready to be pasted into a shell."""
  program = sys.argv[0] if pathlib.Path(sys.argv[0]).name == 'mathqwen' else 'mathqwen'
  return f'{shlex.quote(program)} generate {shlex.quote(str(run_dir))} "37+45="'
