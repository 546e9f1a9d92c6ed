"""`mathqwen data clean`"""

import argparse

from mathqwen.commands import _flags
from mathqwen.errors import UserError, look_up

HELP = (
  "a config's data without duplicates, test problems and broken rows, as text or as tokenised shards, with a report"
)


def add_flags(parser: _flags.Parser) -> None:
  """Adds the flags of the verb."""
  _flags.add_config(parser)
  parser.add_argument('--out', type=_flags.path, required=True, metavar='DIR', help='where it is written, also gs://')
  parser.add_argument(
    '--test-sets',
    metavar='NAME,...',
    help='benchmarks that the data must not overlap with; all of these must be found (default: all that are found)',
  )
  parser.add_argument(
    '--tokenizer',
    type=_flags.path,
    metavar='DIR',
    help='a directory with tokenizer files: shards of tokens are written, which training reads at random, with the '
    "config's data.template, data.system_prompt and data.seq_len",
  )
  parser.add_argument(
    '--format', choices=('shards', 'jsonl'), help='what is written (default: shards with --tokenizer, otherwise jsonl)'
  )
  parser.add_argument(
    '--beam',
    action='append',
    default=[],
    metavar='OPTION=VALUE',
    help='a pipeline option of Apache Beam, as runner=DataflowRunner or project=NAME; may be repeated',
  )
  _flags.add_setting(parser, '--data-dir', 'data.data_dir', 'DIR')
  _flags.add_map(parser)
  _flags.add_settings(parser, '; clean.* are those of mathqwen/cleaning/README.md')


def run(args: argparse.Namespace) -> dict:
  """Cleans the data, and prints what was kept and left out. The JSON: what report.json holds, without the hits."""
  import sys

  from mathqwen import config
  from mathqwen.cleaning import card
  from mathqwen.cleaning import settings as cleaning_settings
  from mathqwen.cleaning.clean import clean
  from mathqwen.data.left_out import Report
  from mathqwen.evals.benchmarks import BENCHMARKS

  others, cleaning = cleaning_settings.split(args.settings)
  experiment = config.resolve(args.config, others, data_dir=args.data_dir)
  if experiment.train.objective == 'dpo':
    raise UserError(
      'data clean reads single answers, and train.objective=dpo pairs: clean the source of their questions'
    )
  asked = None if args.test_sets is None else [name.strip() for name in args.test_sets.split(',') if name.strip()]
  for name in asked or ():
    look_up('benchmark', name, BENCHMARKS)
  test_sets = {name: (benchmark.source, benchmark.split) for name, benchmark in BENCHMARKS.items()}
  if args.format == 'shards' and args.tokenizer is None:
    raise UserError('--format shards: give --tokenizer DIR, whose tokens are written')
  if args.format == 'jsonl' and args.tokenizer is not None:
    raise UserError('--tokenizer: text has no tokens; leave it out, or give --format shards')
  command = ['mathqwen', *sys.argv[1:]]
  result = clean(experiment.data, cleaning, args.out, test_sets, asked, args.beam, command, args.tokenizer)
  for entry in result['sources']:
    apart = not args.tokenizer or experiment.data.weights or experiment.data.epochs
    where = f'{args.out}/{entry["folder"]}' if apart else args.out
    print(f'{entry["source"]}: {entry["rows"]:,} of {entry["rows_read"]:,} rows kept, in {where}')
    for line in Report.from_dict(entry['left_out']).lines(2):
      print(f'  left out: {line}')
    if entry.get('unread'):
      print(f'  fields that training does not read: {", ".join(entry["unread"])}')
  for name, found in result['test_sets'].items():
    counts = ', '.join(f'{kind} {count:,}' for kind, count in found.items() if kind != 'problems')
    print(f'{name}: of {found["problems"]:,} test problems, rows overlap with {counts or "none"}')
  if settings := card.mixed(result, args.out):
    print(f'train on this mixture: {settings}')
  return {name: value for name, value in result.items() if name != 'contamination'}
