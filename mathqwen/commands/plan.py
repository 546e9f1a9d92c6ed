"""`mathqwen plan`"""

import argparse

from mathqwen import files
from mathqwen.commands import _asking, _flags
from mathqwen.errors import UserError

HELP = 'memory and time of training or evaluation on TPU slices: compiles the steps for them on this machine'

# Flags for --evaluate, which are the fields of `evaluation.Asked`: {name: (type, metavar, help)}
ASKED = {
  'batch_size': (int, 'N', f'slots: answers decoded together (default: {_asking.BATCH_SIZE})'),
  'limit': (int, 'N', 'problems of each benchmark (default: all)'),
  'max_new_tokens': (int, 'N', "longest answer (default: the benchmark's)"),
  'answer_tokens': (int, 'N', 'mean answer (default: as in published answers to it, where known, else the longest)'),
  'prompt_tokens': (int, 'N', 'a question with its turns (default: 128)'),
  'price': (float, 'X', 'of a chip-hour, for the price of the benchmark'),
}


def add_flags(parser: _flags.Parser) -> None:
  """Adds what is planned, the slices, settings that the planner must keep, and the flags of --evaluate."""
  parser.add_argument(
    'config',
    nargs='?',
    type=_flags.model_path,
    metavar='CONFIG|MODEL',
    help='what to train, as `mathqwen train` takes it; with --evaluate or --fits a MODEL, whose weights need not be '
    'there, the name of a published size such as Qwen2.5-7B, or a CONFIG; --fits alone takes the sizes of Qwen2.5',
  )
  where = parser.add_mutually_exclusive_group(required=True)
  where.add_argument(
    '--topology',
    action='append',
    dest='topologies',
    metavar='SLICE',
    help='a TPU slice to compile for: v5p-32, v6e-16, v5e-1, ...; may be repeated',
  )
  where.add_argument(
    '--fits',
    metavar='SLICE,SLICE',
    help='which models fit on these slices, and with which method of training: an estimate, which compiles nothing',
  )
  parser.add_argument('--exact', action='store_true', help='with --fits: compile each cell, which takes minutes')
  _flags.add_settings(parser, '. The planner keeps these and chooses the other settings that change memory and time')
  parser.add_argument(
    '--evaluate', metavar='A,B', help='plan the evaluation on these benchmarks, as `mathqwen evaluate` takes them'
  )
  group = parser.add_argument_group('with --evaluate')
  for name, (kind, metavar, text) in ASKED.items():
    group.add_argument(_flags.flag(name), type=kind, metavar=metavar, help=text)
  group.add_argument('--dtype', choices=_flags.DTYPES, help='of weights and activations (default: bfloat16)')
  group.add_argument('--cache-dtype', choices=_asking.CACHE_DTYPES, help='of keys and values (default: --dtype)')
  _flags.add_weights(group)


def run(args: argparse.Namespace) -> dict:
  """Prints one row for each slice, with --evaluate for each slice and benchmark. The JSON: `topologies`, the rows."""
  asked = (*ASKED, 'dtype', 'cache_dtype', 'weights')
  if args.fits is not None:
    return _fits(args, asked)
  if args.config is None:
    raise UserError('--topology needs a CONFIG; --fits alone plans the sizes of Qwen2.5')
  if args.exact:
    raise UserError('--exact is for --fits: leave it out; with --topology every row is compiled')
  if args.evaluate is not None:
    return _evaluation(args, _asking.given(args, asked))
  _asking.refuse_given(args, asked, 'for --evaluate only: leave it out')
  from mathqwen import config
  from mathqwen.planning import plan_table

  experiment = config.resolve(args.config, args.settings)
  fixed = {setting.partition('=')[0] for setting in args.settings}
  return plan_table.plan(experiment, args.topologies, fixed)


def _fits(args: argparse.Namespace, asked: tuple[str, ...]) -> dict:
  from mathqwen.planning import fits

  if args.evaluate is not None:
    raise UserError('--fits is about training, and --evaluate is not: name the slices with --topology')
  _asking.refuse_given(args, asked, 'for --evaluate only: leave it out')
  models = None if args.config is None else {args.config: _experiment(args)}
  names = [name.strip() for name in args.fits.split(',') if name.strip()]
  if not names:
    raise UserError('--fits names no slice: write it as --fits v5e-1,v5e-8')
  return fits.plan(models, names, args.settings, args.exact)


def _evaluation(args: argparse.Namespace, asked: dict) -> dict:
  from mathqwen import config
  from mathqwen.evals import benchmarks
  from mathqwen.planning import evaluation

  chosen = benchmarks.choose(args.evaluate, 'number')  # of a file of problems: the rule changes no row of the plan
  experiment = config.override(_experiment(args), args.settings)
  return evaluation.plan(experiment, chosen, args.topologies, evaluation.Asked(**asked))


def _experiment(args: argparse.Namespace):
  """The experiment of the CONFIG or MODEL, before --set. UserError: when there is no such model."""
  from mathqwen import config, config_files, hf
  from mathqwen.model.config import PRESETS
  from mathqwen.storage import workdir

  if args.config.startswith(files.HUB):
    raise UserError(f'{args.config}: plan downloads nothing; give a folder with its config.json, or {_known(PRESETS)}')
  place = files.path(args.config)
  if args.config in PRESETS:
    experiment = config.Experiment(PRESETS[args.config])
  elif place.is_dir() and files.is_there(place / 'config.json'):
    experiment = config.Experiment(hf.read_config(args.config))
  elif place.is_dir():
    found = workdir.find_checkpoint(args.config)
    if found is None:
      raise UserError(f'{args.config} has neither config.json nor a run of ours: give {_known(PRESETS)}')
    experiment = found[1]
  elif args.config in config_files.names() or place.suffix == '.py':
    experiment = config.load(args.config)
  else:
    raise UserError(f'no model {args.config!r}: give the folder of a MODEL, a CONFIG, or {_known(PRESETS)}')
  return experiment


def _known(presets: dict) -> str:
  return f'one of {", ".join(presets)}'
