"""`mathqwen bench`"""

import argparse

from mathqwen.commands import _flags

HELP = 'tokens per second, CPU seconds and peak memory on this machine'

# {verb: its help}
VERBS = {
  'train': 'the whole training step, AdamW included',
  'decode': 'greedy decoding with the KV cache',
}
# {flag: (default, help)}. The first table sets fields of ModelConfig.
MODEL = {
  'num-hidden-layers': (8, 'layers, L'),
  'hidden-size': (512, 'width of the residual stream, D'),
  'intermediate-size': (1408, 'width of the MLP, F'),
  'num-attention-heads': (8, 'query heads, N'),
  'num-key-value-heads': (4, 'key and value heads, K'),
  'head-dim': (64, 'width of a head, H'),
  'vocab-size': (32_000, 'rows of the embedding, V'),
  'tie-word-embeddings': (False, 'use the embedding as output head'),
  'qkv-bias': (True, 'biases on queries, keys and values, as in Qwen-1 to Qwen2.5'),
  'qk-norm': (False, 'RMSNorm on queries and keys, as in Qwen3'),
}
OPTIONS = {
  'train': {
    'batch': (2, 'rows in a step'),
    'seq-len': (1024, 'tokens in a row'),
    'loss-share': (0.55, 'share of the positions that have a loss'),
    'dropout': (0.0, 'setting train.dropout; with --torch only ours has it'),
    'remat': ('dots', 'setting train.remat'),
    'attention': ('auto', 'setting train.attention'),
    'steps': (5, 'timed steps, after one that is not timed'),
  },
  'decode': {
    'batch': (8, 'prompts decoded at the same time'),
    'prompt': (128, 'tokens in a prompt'),
    'new-tokens': (128, 'tokens decoded for each prompt'),
    'long-tail': (
      0,
      'answers of the lengths of GSM8K, decoded continuously and in batches that wait for their longest; 0 skips this',
    ),
    'steps': (5, 'timed batches, after one that is not timed'),
  },
}


def add_flags(parser: _flags.Parser):
  verbs = _flags.add_verbs(parser, '|'.join(VERBS))
  for name, text in VERBS.items():
    verb = _flags.add_command(verbs, name, text, run)
    for flag, (default, what) in (MODEL | OPTIONS[name]).items():
      if isinstance(default, bool):
        verb.add_argument(f'--{flag}', action=argparse.BooleanOptionalAction, default=default, help=what)
      else:
        kind = type(default)
        metavar = {int: 'N', float: 'X', str: 'NAME'}[kind]
        text = f'{what} (default: %(default)s)'
        verb.add_argument(f'--{flag}', type=kind, default=default, metavar=metavar, help=text)
    verb.add_argument(
      '--dtype', choices=_flags.DTYPES, default='float32', help='of weights and activations (default: %(default)s)'
    )
    verb.add_argument('--torch', action='store_true', help='measure torch and transformers too, in turn (extra: dev)')


def run(args) -> dict:
  from mathqwen.bench import measurement, sides
  from mathqwen.model.config import ModelConfig

  def values(flags) -> dict:
    names = [flag.replace('-', '_') for flag in flags]
    return {name: getattr(args, name) for name in names}

  if args.verb == 'train':
    positions = args.seq_len
  else:
    positions = args.prompt + max(args.new_tokens, sides.GSM8K_TOKENS[-1])
  cfg = ModelConfig(**values(MODEL), max_position_embeddings=positions)
  options = values(OPTIONS[args.verb])
  turns = options.pop('steps')
  return measurement.run(args.verb, cfg, dtype=args.dtype, torch=args.torch, turns=turns, **options)
