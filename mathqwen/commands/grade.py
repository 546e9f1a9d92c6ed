"""`mathqwen grade`"""

import argparse

from mathqwen.commands import _flags, _scores, evaluate
from mathqwen.errors import UserError

HELP = 'grade stored answers again; needs no model and no accelerator'


def add_flags(parser: _flags.Parser) -> None:
  """Adds the records, their benchmark, and the rule."""
  from mathqwen.evals import benchmarks

  parser.add_argument(
    'records', type=_flags.path, metavar='RECORDS.jsonl', help='one JSON object a line: id, response, gold'
  )
  parser.add_argument(
    '--benchmark',
    required=True,
    metavar='NAME',
    help='where they come from: a file of problems (with --rule), or ' + ', '.join(benchmarks.BENCHMARKS),
  )
  parser.add_argument('--rule', metavar='NAME', help="how answers are graded (default: the benchmark's rule)")
  evaluate.add_against(parser)
  parser.add_argument(
    '--data-dir', type=_flags.path, metavar='DIR', help='a copy of the data sets that --against names'
  )
  parser.add_argument('--out', type=_flags.path, metavar='DIR', help='where the graded records and their scores go')


def run(args: argparse.Namespace) -> dict:
  """Grades stored answers and prints the scores. The JSON: `benchmarks`, scores by name."""
  from mathqwen.evals.run import grade_records

  if args.data_dir and not args.against:
    raise UserError('--data-dir holds data sets that --against names; give --against too, or leave --data-dir out')

  result = grade_records(args.records, args.benchmark, args.rule, args.out, args.against, args.data_dir)
  _scores.show(result)
  return result
