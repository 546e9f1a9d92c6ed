"""`mathqwen compare`"""

from mathqwen.commands import _flags

HELP = 'two runs over the same problems: which verdicts changed, and a paired test'


def add_flags(parser: _flags.Parser):
  parser.add_argument('a', metavar='A', help='what evaluate or grade wrote with --out')
  parser.add_argument('b', metavar='B', help='the same, of the other run')


def run(args) -> dict:
  from mathqwen.evals import compare

  result = compare.compare(args.a, args.b)
  print(compare.describe(result))
  return result
