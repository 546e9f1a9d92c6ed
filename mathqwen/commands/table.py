"""`mathqwen table`"""

import argparse

from mathqwen.commands import _flags
from mathqwen.errors import UserError

HELP = 'Table 12 of the Qwen Technical Report: published rows beside measured ones'


def add_flags(parser: _flags.Parser) -> None:
  """Adds the scores, and where the page goes."""
  parser.add_argument(
    'scores', type=_flags.path, nargs='+', metavar='SCORES', help='scores.json files, or directories that hold some'
  )
  parser.add_argument(
    '--out',
    type=_flags.path,
    metavar='DIR',
    help='also write it there as Markdown, LaTeX, and a web page with every problem',
  )
  parser.add_argument(
    '--metrics',
    action='append',
    type=_flags.path,
    default=[],
    metavar='FILE',
    help="a metrics.jsonl whose losses the page shows (default: those in the models' workdirs); may be repeated",
  )


def run(args: argparse.Namespace) -> dict:
  """Prints the table. The JSON: `table`, its Markdown."""
  from mathqwen.evals.report import table

  if args.metrics and args.out is None:
    raise UserError('--metrics is for the page: give --out DIR, where it goes')
  text = table.table(args.scores, args.out, args.metrics)
  print(text)
  return {'table': text}
