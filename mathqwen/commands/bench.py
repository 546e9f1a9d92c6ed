"""`mathqwen bench`"""

import argparse
from collections.abc import Iterable

from mathqwen.commands import _devices, _flags

HELP = 'tokens per second, CPU seconds and peak memory on this machine'

# {verb: its help}
VERBS = {
  'train': 'the whole training step, AdamW included',
  'decode': 'greedy decoding with the KV cache',
}
# Fields of ModelConfig and their values in a benchmark; their declarations have the help.
MODEL = {
  'num_hidden_layers': 8,
  'hidden_size': 512,
  'intermediate_size': 1408,
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'head_dim': 64,
  'vocab_size': 32_000,
  'tie_word_embeddings': False,
  'qkv_bias': True,
  'qk_norm': False,
}
# Fields of TrainConfig, for `train`
TRAIN = {'dropout': 0.0, 'remat': 'dots', 'attention': 'auto'}
# {verb: {option: (default, help)}}
OPTIONS = {
  'train': {
    'batch': (2, 'rows in a step'),
    'seq_len': (1024, 'tokens in a row'),
    'loss_share': (0.55, 'share of the positions that have a loss'),
    'steps': (5, 'timed steps, after one that is not timed'),
  },
  'decode': {
    'batch': (8, 'prompts decoded at the same time'),
    'prompt': (128, 'tokens in a prompt'),
    'new_tokens': (128, 'tokens decoded for each prompt'),
    'long_tail': (
      0,
      'answers of the lengths of GSM8K, decoded continuously and in batches that wait for their longest; 0 skips this',
    ),
    'steps': (5, 'timed batches, after one that is not timed'),
  },
}


def add_flags(parser: _flags.Parser) -> None:
  """Adds `train` and `decode`, whose flags are the entries of MODEL, TRAIN and OPTIONS."""
  from mathqwen.config import SETTINGS

  verbs = _flags.add_verbs(parser, '|'.join(VERBS))
  for name, text in VERBS.items():
    verb = _flags.add_command(verbs, name, text, run)
    for field, default in MODEL.items():
      _add_value(verb, field, default, SETTINGS[f'model.{field}'].help)
    for field, default in TRAIN.items() if name == 'train' else ():
      setting = SETTINGS[f'train.{field}']
      _add_value(verb, field, default, setting.help, setting.choices or None)
    for option, (default, what) in OPTIONS[name].items():
      _add_value(verb, option, default, what)
    verb.add_argument(
      '--dtype', choices=_flags.DTYPES, default='float32', help='of weights and activations (default: %(default)s)'
    )
    _flags.add_platform(verb)
    verb.add_argument('--torch', action='store_true', help='measure torch and transformers too, in turn (extra: dev)')


def _add_value(parser: _flags.Parser, name: str, default, what: str, choices: tuple[str, ...] | None = None):
  """Adds the flag for `name`, of the type of its default."""
  flag = _flags.flag(name)
  if isinstance(default, bool):
    parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=what)
    return
  metavar = None if choices else {int: 'N', float: 'X', str: 'NAME'}[type(default)]
  what = f'{what} (default: %(default)s)'
  parser.add_argument(flag, type=type(default), default=default, choices=choices, metavar=metavar, help=what)


def run(args: argparse.Namespace) -> dict:
  """Measures one verb. The JSON: `tokens_per_second`, `step_seconds`, `cpu_seconds_per_step`, `peak_rss_bytes`, ..."""
  from mathqwen.bench import measurement, sides
  from mathqwen.model.config import ModelConfig

  def values(names: Iterable[str]) -> dict:
    return {name: getattr(args, name) for name in names}

  if args.verb == 'train':
    positions = args.seq_len
    options = values(TRAIN | OPTIONS['train'])
  else:
    positions = args.prompt + max(args.new_tokens, sides.GSM8K_TOKENS[-1])
    options = values(OPTIONS['decode'])
  cfg = ModelConfig(**values(MODEL), max_position_embeddings=positions)
  turns = options.pop('steps')
  _devices.start(args)
  return measurement.run(args.verb, cfg, dtype=args.dtype, torch=args.torch, turns=turns, **options)
