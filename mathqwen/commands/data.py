"""`mathqwen data`"""

import argparse

from mathqwen.commands import _flags

HELP = 'prepare and inspect data sets'


def add_flags(parser: _flags.Parser) -> None:
  """Adds `prepare` and `inspect`, each with a function of its own below."""
  from mathqwen.data import catalog

  verbs = _flags.add_verbs(parser, 'prepare|inspect')

  text = 'download data sets, or read them from --data-dir, and store them for random access'
  prepare = _flags.add_command(verbs, 'prepare', text, run_prepare)
  prepare.add_argument('names', nargs='+', metavar='NAME', help=', '.join(catalog.downloadable()))
  prepare.add_argument(
    '--data-dir',
    type=_flags.path,
    metavar='DIR',
    help='a copy, local or gs://; without it, they are downloaded from their public addresses',
  )

  text = "counts, packing efficiency, tokens per second and the first row of a config's data"
  inspect = _flags.add_command(verbs, 'inspect', text, run_inspect)
  _flags.add_config(inspect)
  inspect.add_argument(
    '--tokenizer',
    type=_flags.path,
    metavar='DIR',
    help="a directory with tokenizer files (default: this package's small tokenizer)",
  )
  _flags.add_setting(inspect, '--data-dir', 'data.data_dir', 'DIR')
  _flags.add_settings(inspect)


def run_prepare(args: argparse.Namespace) -> dict:
  """Prepares data sets, and prints how many rows each split has. The JSON: `prepared`, one object for each data set."""
  from mathqwen.data import datasets

  prepared = [datasets.prepare(name, args.data_dir, download=args.data_dir is None) for name in args.names]
  for dataset in prepared:
    rows = ', '.join(f'{split} {count:,}' for split, count in dataset['splits'].items())
    print(f'{dataset["name"]}: {rows} rows in {dataset["path"]}')
  return {'prepared': prepared}


def run_inspect(args: argparse.Namespace) -> dict:
  """Prints the statistics of a config's data and its first packed row. The JSON: `sources`, by name."""
  from mathqwen import config
  from mathqwen.data.inspect import inspect_data

  experiment = config.resolve(args.config, args.settings, data_dir=args.data_dir)
  return inspect_data(experiment, args.tokenizer)
