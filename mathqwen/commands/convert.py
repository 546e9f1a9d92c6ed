"""`mathqwen convert`"""

import argparse
import signal
import sys

from mathqwen.commands import _devices, _flags
from mathqwen.hardware import hosts

HELP = 'Hugging Face directories in and out, and a comparison of two models'


def add_flags(parser: _flags.Parser) -> None:
  """Adds `from-hf`, `to-hf` and `check`, each with a function of its own below."""
  verbs = _flags.add_verbs(parser, 'from-hf|to-hf|check')

  text = 'a Hugging Face directory, or a model on the hub, as a checkpoint of ours'
  from_hf = _flags.add_command(verbs, 'from-hf', text, run_from_hf)
  from_hf.add_argument(
    'source',
    type=_flags.model_path,
    metavar='HF_DIR',
    help='a Hugging Face directory, or a name such as Qwen/Qwen2.5-7B',
  )
  from_hf.add_argument('target', type=_flags.path, metavar='OUT', help='a directory that is new or empty')
  _flags.add_platform(from_hf)
  _add_no_check(from_hf)

  text = 'a MODEL as a Hugging Face directory, which transformers and vLLM load'
  to_hf = _flags.add_command(verbs, 'to-hf', text, run_to_hf)
  to_hf.add_argument(
    'source',
    type=_flags.model_path,
    metavar='MODEL',
    help="a run's --workdir, one of its checkpoints, or a Hugging Face directory",
  )
  to_hf.add_argument('target', type=_flags.path, metavar='OUT', help='a directory that is new or empty')
  to_hf.add_argument(
    '--layout', metavar='NAME', help='qwen1 writes a Qwen-1 in its own format (default: converts it to qwen2)'
  )
  to_hf.add_argument(
    '--dtype',
    choices=['bfloat16', 'float16', 'float32'],
    help="of the weights in the files (default: bfloat16 for a run's float32 masters, otherwise as stored)",
  )
  to_hf.add_argument(
    '--adapter',
    action='store_true',
    help='of a run with train.adapter: the adapter alone, as the files that PEFT and vLLM load beside the base '
    '(default: both, merged)',
  )
  to_hf.add_argument(
    '--scores',
    action='append',
    type=_flags.path,
    default=[],
    metavar='DIR',
    help='what evaluate --out wrote, for the model card; may be repeated',
  )
  _flags.add_platform(to_hf)
  _flags.add_distributed(to_hf, 'each host writes its share of the shards')
  _add_no_check(to_hf)

  text = 'how far two models differ: logits, KL divergence and greedy tokens on a small batch'
  check = _flags.add_command(verbs, 'check', text, run_check)
  check.add_argument('source', type=_flags.model_path, metavar='A', help='a MODEL')
  check.add_argument('target', type=_flags.model_path, metavar='B', help='the MODEL to compare it with')
  check.add_argument('--tolerance', type=float, metavar='X', help='exit with status 2 when a logit differs by more')
  _flags.add_platform(check)


def _add_no_check(parser: _flags.Parser):
  parser.add_argument(
    '--no-check', action='store_true', help='do not compare the two models afterwards, which loads both in turn'
  )


def _exit_on_sigterm():
  """Makes SIGTERM raise SystemExit, so that half-written files are removed."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def run_from_hf(args: argparse.Namespace) -> dict:
  """Imports a Hugging Face directory, and compares the result with it unless --no-check is given."""
  from mathqwen.conversion.from_hf import convert_from_hf

  _exit_on_sigterm()
  _devices.start(args)
  return convert_from_hf(args.source, args.target, compare=not args.no_check)


def run_to_hf(args: argparse.Namespace) -> dict:
  """Exports a MODEL, on one host or several, and compares the result with it unless --no-check is given."""
  from mathqwen.conversion.to_hf import convert_to_hf

  _exit_on_sigterm()
  _devices.start(args, 'the export starts from the beginning')
  names = ('source', 'target', 'layout', 'dtype', 'scores', 'adapter')
  hosts.agree('arguments', {name: getattr(args, name) for name in names})
  if args.adapter:
    from mathqwen.conversion.to_adapter import export_adapter

    return export_adapter(args.source, args.target, args.layout, args.dtype, args.scores, not args.no_check)
  return convert_to_hf(args.source, args.target, args.layout, args.dtype, args.scores, compare=not args.no_check)


def run_check(args: argparse.Namespace) -> dict:
  """Compares two models. UserError: when a logit differs by more than --tolerance."""
  from mathqwen.conversion import check

  _devices.start(args)
  return check.compare_models(args.source, args.target, args.tolerance)
