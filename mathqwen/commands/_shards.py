"""`mathqwen data shards`"""

import argparse
from typing import TYPE_CHECKING

from mathqwen.commands import _flags
from mathqwen.errors import UserError

if TYPE_CHECKING:
  from mathqwen.text.tokenizer import Tokenizer

HELP = "a config's data as tokenised shards, which training of any size reads at random"


def add_flags(parser: _flags.Parser) -> None:
  """Adds the flags of the verb."""
  _flags.add_config(parser)
  parser.add_argument(
    '--out', type=_flags.path, required=True, metavar='DIR', help='where they are written, also gs://'
  )
  parser.add_argument(
    '--tokenizer',
    type=_flags.path,
    metavar='DIR',
    help="a directory with tokenizer files (default: that of the config's init, else this package's small tokenizer)",
  )
  _flags.add_setting(parser, '--init', 'init', 'MODEL')
  _flags.add_setting(parser, '--data-dir', 'data.data_dir', 'DIR')
  _flags.add_map(parser)
  _flags.add_settings(parser)


def run(args: argparse.Namespace) -> dict:
  """Writes the shards, and prints what is in them. The JSON: counts as in their card, and `shards`, how many."""
  from mathqwen import config
  from mathqwen.chat import chat_format
  from mathqwen.data import sources
  from mathqwen.data.left_out import Report
  from mathqwen.data.making_shards import make_shards

  experiment = config.resolve(args.config, args.settings, args.init, args.data_dir)
  sources.check_data_dir(experiment.data, args.data_dir, args.settings)
  tokenizer = _tokenizer(experiment.init, args.tokenizer)
  data = experiment.data
  chat = chat_format.for_training(data.template, data.system_prompt, tokenizer)
  card = make_shards(data, tokenizer, chat, args.out)
  for source, counts in card['sources'].items():
    print(f'{source}: {counts["examples"]:,} examples, {counts["tokens"]:,} tokens')
    for line in Report.from_dict(card['left_out'][source]).lines():
      print(f'  left out: {line}')
  print(f'{args.out}: {len(card["shards"]):,} shard files; train on them with --set data.sources={args.out}')
  return {name: card[name] for name in ('examples', 'tokens', 'loss_tokens', 'sources', 'fingerprint')} | {
    'shards': len(card['shards'])
  }


def _tokenizer(init: str | None, given: str | None) -> 'Tokenizer':
  """That of a directory, of the model that a run would start from, or of this package. UserError: there is none."""
  from mathqwen.storage.source import open_source
  from mathqwen.text.loading import load_tokenizer

  if given is not None or init is None:
    return load_tokenizer(given)
  tokenizer = open_source(init).tokenizer
  if tokenizer is None:
    raise UserError(f'{init} has no tokenizer files: copy those of its model there, or give --tokenizer')
  return tokenizer
