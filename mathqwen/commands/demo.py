"""The whole way on one machine: data, training, evaluation before and after, export, and the table."""

import dataclasses
import functools
import pathlib
import shutil
import sys
import time

import jax

from mathqwen import config
from mathqwen.data import arithmetic
from mathqwen.errors import UserError
from mathqwen.evals.report import table
from mathqwen.evals.run import Ask, evaluate
from mathqwen.hardware import sharding
from mathqwen.inference.model import Model, load
from mathqwen.model import qwen
from mathqwen.training.prepare import TrainingRun

TRAIN_EXAMPLES, TEST_PER_GROUP, SEED = 40_000, 100, 0


def run(workdir: str, steps: int | None = None) -> dict:
  """Runs configs/demo.py in `workdir`; with `steps`, only so many of its steps. Returns scores and the summary."""
  root, begun = pathlib.Path(workdir), time.monotonic()
  data_dir, run_dir, out, export = root / 'data', root / 'run', root / 'scores', root / 'hf'

  experiment = config.load('demo')
  if steps is not None:
    if steps < 2:
      raise UserError(f'--steps {steps}: the demo needs at least 2 steps, one to warm up and one to decay')
    optim = dataclasses.replace(experiment.optim, warmup_steps=min(experiment.optim.warmup_steps, steps // 2))
    experiment = dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, steps=steps))
  sources = tuple(str(data_dir / 'arithmetic' / 'train' / pathlib.Path(s).name) for s in experiment.data.sources)
  data = dataclasses.replace(experiment.data, sources=sources)
  prepared = TrainingRun.prepare(dataclasses.replace(experiment, data=data))

  _say('1. arithmetic in the 16 groups of Math401, training and test disjoint')
  written = arithmetic.write(data_dir / 'arithmetic', TRAIN_EXAMPLES, TEST_PER_GROUP, SEED)
  print(f'{written["train"]:,} training and {written["test"]:,} held-out problems in {data_dir / "arithmetic"}')

  ask = Ask(data_dir, max_new_tokens=80)
  _say('2. the held-out problems before training, with random weights')
  before = evaluate(random_model(prepared), 'arithmetic', ask, out=out / 'before', batch_size=128)

  _say(f'3. training {prepared.experiment.train.steps:,} steps')
  summary = prepared.train(str(run_dir))

  _say('4. the same problems after training')
  model = load(str(run_dir), dtype='float32')
  after = evaluate(model, 'arithmetic', ask, out=out / 'after', batch_size=128)

  _say('5. as a Hugging Face directory, loaded again')
  for earlier in (export, out / 'hf'):  # of a demo in the same workdir
    shutil.rmtree(earlier, ignore_errors=True)
  model.save_hf(str(export))
  again = evaluate(load(str(export), dtype='float32'), 'arithmetic', ask, out=out / 'hf', batch_size=128)
  print(f'{export}: {_agreement(out)}')

  _say('6. beside the published systems')
  print(table.table([str(out / 'before'), str(out / 'after')], str(root / 'table')))
  seconds = time.monotonic() - begun
  program = sys.argv[0] if pathlib.Path(sys.argv[0]).name == 'mathqwen' else 'mathqwen'
  print(f'{seconds:.0f} seconds in all. Ask it yourself: {program} generate {run_dir} "37+45="')
  return {'seconds': seconds, 'before': before, 'after': after, 'hf': again, 'train': summary}


def random_model(run: TrainingRun) -> Model:
  """The model that training starts from when it starts from random weights."""
  cfg, seed = run.experiment.model, run.experiment.train.seed
  init = jax.jit(functools.partial(qwen.init, cfg=cfg), out_shardings=sharding.params_shardings(run.mesh, cfg))
  params, dtype = init(jax.random.key(seed)), run.experiment.train.compute_dtype
  return Model('random weights', cfg, run.tokenizer, params, dtype, None, run.experiment.data.system_prompt)


def _say(title):
  print(f'\n\033[1m{title}\033[0m' if sys.stdout.isatty() else f'\n{title}', flush=True)


def _agreement(out):
  from mathqwen.evals import records

  ours, theirs = (
    {r['id']: r['response'] for r in records.read(out / name / 'arithmetic' / 'records.jsonl').records}
    for name in ('after', 'hf')
  )
  same = sum(ours[i] == theirs[i] for i in ours)
  return f'{same} of {len(ours)} answers are the same text'
