"""`mathqwen compare`"""

import argparse

from mathqwen.commands import _flags

HELP = 'two runs over the same problems: which verdicts changed, and a paired test'


def add_flags(parser: _flags.Parser) -> None:
  """Adds the two directories to compare."""
  parser.add_argument('a', type=_flags.path, metavar='A', help='what evaluate or grade wrote with --out')
  parser.add_argument('b', type=_flags.path, metavar='B', help='the same, of the other run')


def run(args: argparse.Namespace) -> dict:
  """Prints which verdicts differ between two runs. The JSON: that of `evals.compare.compare`."""
  from mathqwen.evals import compare

  result = compare.compare(args.a, args.b)
  print(compare.describe(result))
  return result
