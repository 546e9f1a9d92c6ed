"""`mathqwen data`"""

import argparse
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.commands import _augment, _clean, _flags
from mathqwen.errors import UserError, report

if TYPE_CHECKING:
  from mathqwen.text.tokenizer import Tokenizer

HELP = 'prepare, inspect, augment, clean and audit data sets, and verify what a run was trained on'


def add_flags(parser: _flags.Parser) -> None:
  """Adds the verbs, each with a function of its own below."""
  from mathqwen.data import catalog

  verbs = _flags.add_verbs(parser, 'prepare|inspect|augment|clean|audit|verify')

  text = 'download data sets, or read them from --data-dir, and store them for random access'
  prepare = _flags.add_command(verbs, 'prepare', text, run_prepare)
  prepare.add_argument('names', nargs='+', metavar='NAME', help=', '.join(catalog.prepared()))
  prepare.add_argument(
    '--data-dir',
    type=_flags.path,
    metavar='DIR',
    help='a copy, local or gs://; without it, they are downloaded from their public addresses',
  )

  text = "counts, packing efficiency, tokens per second and the first row of a config's data"
  inspect = _flags.add_command(verbs, 'inspect', text, run_inspect)
  _add_config_and_tokenizer(inspect, "this package's small tokenizer")
  inspect.add_argument(
    '--page',
    type=_flags.path,
    metavar='FILE.html',
    help='write a page as well: texts and tokens with their mask, packed rows, histograms, what was left out and why',
  )

  _augment.add_flags(_flags.add_command(verbs, 'augment', _augment.HELP, _augment.run))

  _clean.add_flags(_flags.add_command(verbs, 'clean', _clean.HELP, _clean.run))

  text = 'which tokens carry loss, beside what other trainers would mask'
  audit = _flags.add_command(verbs, 'audit', text, run_audit)
  _add_config_and_tokenizer(audit, "that of the config's init, else this package's small tokenizer")
  audit.add_argument(
    '--against',
    type=_flags.path,
    metavar='FILE',
    help='JSON Lines that another trainer made of the same conversations, in their order: ids and mask, or ids and '
    'labels with -100',
  )
  audit.add_argument('--limit', type=int, metavar='N', help='the first N conversations only')
  _flags.add_setting(audit, '--init', 'init', 'MODEL')

  text = "make the batches of a run again, and compare each with the run's ledger"
  verify = _flags.add_command(verbs, 'verify', text, run_verify)
  verify.add_argument('workdir', type=_flags.path, metavar='WORKDIR', help='the --workdir of a run')
  _flags.add_setting(verify, '--data-dir', 'data.data_dir', 'DIR')


def _add_config_and_tokenizer(parser: _flags.Parser, default_tokenizer: str) -> None:
  """Adds CONFIG, the settings of its data, and the tokenizer that they are shown with."""
  _flags.add_config(parser)
  parser.add_argument(
    '--tokenizer',
    type=_flags.path,
    metavar='DIR',
    help=f'a directory with tokenizer files (default: {default_tokenizer})',
  )
  _flags.add_setting(parser, '--data-dir', 'data.data_dir', 'DIR')
  _flags.add_map(parser)
  _flags.add_settings(parser)


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
  from mathqwen.data import sources
  from mathqwen.data.inspect import inspect_data

  experiment = config.resolve(args.config, args.settings, data_dir=args.data_dir)
  sources.check_data_dir(experiment.data, args.data_dir, args.settings)
  return inspect_data(experiment, args.tokenizer, args.page)


def run_audit(args: argparse.Namespace) -> dict:
  """Prints which tokens carry loss, and what other trainers would mask. The JSON: `conversations`, `others` by name."""
  import sys

  from mathqwen import config
  from mathqwen.data import sources
  from mathqwen.data.audit import audit

  if args.limit is not None and args.limit < 1:
    raise UserError(f'--limit is {args.limit}; it must be 1 or more')
  experiment = config.resolve(args.config, args.settings, args.init, args.data_dir)
  sources.check_data_dir(experiment.data, args.data_dir, args.settings)
  tokenizer = _tokenizer_for_audit(experiment.init, args.tokenizer)
  pairs = experiment.train.objective == 'dpo'
  return audit(experiment.data, tokenizer, args.against, args.limit, sys.stdout.isatty(), pairs)


def _tokenizer_for_audit(init: str | None, given: str | None) -> 'Tokenizer':
  """The tokenizer of a directory, of the model that a run would start from, or of this package."""
  from mathqwen.files import hub
  from mathqwen.storage.source import open_source
  from mathqwen.text.loading import load_tokenizer

  if given is not None or init is None:
    return load_tokenizer(given)
  if (name := hub.name_of(init)) and not hub.cached(name):
    report(f'{init} is not on this machine: the small tokenizer of this package is used; --tokenizer names another')
    return load_tokenizer()
  tokenizer = open_source(init).tokenizer
  if tokenizer is None:
    raise UserError(f'{init} has no tokenizer files: copy those of its model there, or give --tokenizer')
  return tokenizer


def run_verify(args: argparse.Namespace) -> dict:
  """Compares the data with a run's ledger, and prints how many steps agree. The JSON: `steps`.

  UserError: when WORKDIR holds no run with a ledger, the data is not that of the run, or a batch differs.
  """
  import dataclasses

  from mathqwen.chat import chat_format
  from mathqwen.data import sources
  from mathqwen.data.training_data import TrainingData
  from mathqwen.data.verify import verify
  from mathqwen.observe import ledger
  from mathqwen.storage import checkpoint, provenance
  from mathqwen.storage import workdir as workdirs
  from mathqwen.text.loading import load_tokenizer

  workdir = files.path(args.workdir)
  experiment = workdirs.config_of_run(workdir)
  if experiment is None or not (workdir / ledger.NAME).exists():
    missing = workdirs.EXPERIMENT if experiment is None else ledger.NAME
    raise UserError(f'{workdir} holds no {missing}: give the --workdir of a run')
  data = experiment.data
  if args.data_dir is not None:
    data = dataclasses.replace(data, data_dir=args.data_dir)
  sources.check_data_dir(data, args.data_dir, ())

  lines = ledger.read(workdir / ledger.NAME)
  lines.report_damage(workdir / ledger.NAME)
  sessions = provenance.read_sessions(str(workdir))
  tokenizer = load_tokenizer(str(workdir / workdirs.TOKENIZER))
  chat = chat_format.trained(data.template, data.system_prompt, tokenizer)
  result = verify(
    TrainingData(data, tokenizer, chat=chat, pairs=experiment.train.objective == 'dpo'),
    lines.values,
    str(workdir / ledger.NAME),
    recorded=sessions[-1]['data'] if sessions else None,
    newest=checkpoint.Checkpoints(str(workdir)).latest or 0,
  )
  print(f'{workdir}: {result["steps"]:,} steps had the batches that this data gives')
  return result
