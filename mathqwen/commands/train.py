"""`mathqwen train`"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mathqwen.commands import _devices, _flags
from mathqwen.errors import UserError
from mathqwen.hardware import hosts
from mathqwen.training import stops

if TYPE_CHECKING:
  from mathqwen.training.reproduce import Original

HELP = 'train a config, or continue the run in --workdir'


def add_flags(parser: _flags.Parser) -> None:
  """Adds CONFIG, --workdir, and flags for what changes from run to run."""
  _flags.add_config(parser, optional=True)
  parser.add_argument(
    '--workdir', type=_flags.path, metavar='DIR', help='where checkpoints, metrics and the resolved config go'
  )
  _flags.add_setting(parser, '--init', 'init', 'MODEL|random')
  _flags.add_setting(parser, '--data-dir', 'data.data_dir', 'DIR')
  _flags.add_map(parser)
  _flags.add_settings(parser)
  _flags.add_platform(parser)
  _flags.add_distributed(parser, 'one run over several hosts')
  parser.add_argument(
    '--dry-run', action='store_true', help='print sizes, memory and the first packed row; train nothing'
  )
  parser.add_argument(
    '--strict', action='store_true', help='refuse a damaged newest checkpoint, instead of using the one before it'
  )
  parser.add_argument(
    '--reproduce',
    type=_flags.path,
    metavar='CHECKPOINT',
    help='instead of CONFIG: run what made this checkpoint (or the newest of a --workdir) again, with its config and '
    'init, and say what differs',
  )
  parser.add_argument(
    '--profile',
    nargs='?',
    const=3,
    type=int,
    metavar='STEPS',
    help='trace this many steps (3 without a number), from the third one on, into WORKDIR/profile for xprof',
  )


def run(args: argparse.Namespace) -> dict:
  """Trains. The JSON: `step`, `loss`, `checkpoint`, speeds and times (mathqwen/training/README.md)."""
  _check_start(args)
  if args.workdir is None and not args.dry_run:
    raise UserError('train needs --workdir DIR, where checkpoints and metrics go (or --dry-run)')
  if args.profile is not None and args.dry_run:
    raise UserError('--dry-run takes no step that --profile could trace: leave out one of them')
  return train(args)


def train(args: argparse.Namespace) -> dict:
  """What `run` does after it has checked the flags; `mathqwen.train` starts here.

  args.config and args.settings: whatever `config.resolve` takes. UserError: when the user can fix something.
  Preempted: when SIGTERM or Ctrl-C stopped it.
  """
  with stops.watching():
    return _train(args)


def _train(args: argparse.Namespace) -> dict:
  from mathqwen import config, files
  from mathqwen.data import sources
  from mathqwen.settings import to_flat

  files.check(args.workdir)  # a misspelt bucket, or no gcsfs, before a model is fetched

  # Before JAX is imported: a misspelled setting is reported at once.
  _check_start(args)
  original = _find_original(args)
  start = args.config if original is None else original.experiment
  experiment = config.resolve(start, args.settings, args.init, args.data_dir)
  sources.check_data_dir(experiment.data, args.data_dir, args.settings)

  _devices.start(args, 'training continues from its newest checkpoint')
  from mathqwen.training.prepare import TrainingRun, dry_run

  prepared = TrainingRun.prepare(experiment, args.dry_run, args.workdir, original)
  flags = {name: getattr(args, name) for name in ('workdir', 'dry_run', 'profile', 'strict', 'reproduce')}
  hosts.agree('settings', to_flat(prepared.experiment) | flags)
  return dry_run(prepared) if args.dry_run else prepared.train(args.workdir, args.profile, args.strict, original)


def _check_start(args: argparse.Namespace) -> None:
  """UserError: unless either CONFIG or --reproduce is given."""
  if args.config is None and args.reproduce is None:
    raise UserError(
      'the following arguments are required: CONFIG (see mathqwen train --help); or --reproduce CHECKPOINT, a run to '
      'make again'
    )
  if args.config is not None and args.reproduce is not None:
    raise UserError('CONFIG and --reproduce, which takes the config of its checkpoint: leave out one of them')


def _find_original(args: argparse.Namespace) -> Original | None:
  """The run that --reproduce names; None for a CONFIG. UserError: when there is no such run, or it is in --workdir."""
  if args.reproduce is None:
    return None
  from mathqwen import files
  from mathqwen.training import reproduce

  original = reproduce.find_original(args.reproduce)
  if args.workdir is not None and files.path(args.workdir).resolve() == files.path(original.workdir).resolve():
    raise UserError(f'--workdir {args.workdir} is that of the run to make again: give another one')
  return original
