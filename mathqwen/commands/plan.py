"""`mathqwen plan`"""

import argparse

from mathqwen.commands import _flags

HELP = 'memory, time and settings of training on TPU slices: compiles the step for them on this machine'


def add_flags(parser: _flags.Parser) -> None:
  """Adds CONFIG, the slices, and settings that the planner must keep."""
  _flags.add_config(parser)
  parser.add_argument(
    '--topology',
    action='append',
    required=True,
    dest='topologies',
    metavar='SLICE',
    help='a TPU slice to compile for: v5p-32, v6e-16, v5e-1, ...; may be repeated',
  )
  _flags.add_settings(parser, '. The planner keeps these and chooses the other settings that change memory and time')


def run(args: argparse.Namespace) -> dict:
  """Prints one row for each slice. The JSON: `topologies`, the rows in full."""
  from mathqwen import config
  from mathqwen.planning import plan_table

  experiment = config.resolve(args.config, args.settings)
  fixed = {setting.partition('=')[0] for setting in args.settings}
  return plan_table.plan(experiment, args.topologies, fixed)
