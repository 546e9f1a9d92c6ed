"""The flags of commands that ask a model many questions, and what they do with them: `evaluate` and `data augment`."""

import argparse
import os
import signal
from collections.abc import Iterable

from mathqwen.commands import _devices, _flags
from mathqwen.errors import UserError, report
from mathqwen.hardware import hosts

CACHE_DTYPES = ('float32', 'bfloat16', 'int8')
BATCH_SIZE = 64
ASK = ('data_dir', 'limit', 'prompt', 'rule', 'max_new_tokens')  # fields of evals.ask.Ask
DECODING = ('samples', 'temperature', 'top_p', 'top_k', 'seed', 'cache_dtype')  # fields of evals.ask.Decoding
ENDPOINT = ('requests_per_minute', 'timeout', 'request_json')  # of evals.endpoint.Endpoint
SERVED = ('concurrency', *ENDPOINT)  # for a served model
OURS = ('template', 'batch_size', 'dtype', 'weights', 'platform', 'distributed', 'slice')  # for a model of ours


def add_flags(parser: _flags.Parser, limit: str, sampling: str, defaults: str = '1 greedy answer') -> None:
  """Adds what is asked and how, for all models, then flags for models of ours and for served ones.

  limit: the help of --limit. sampling: the title of the group of flags about it. defaults: of these.
  """
  parser.add_argument('--data-dir', type=_flags.path, metavar='DIR', help='a copy of the data sets, local or gs://')
  parser.add_argument('--limit', type=int, metavar='N', help=limit)
  parser.add_argument(
    '--prompt',
    metavar='NAME',
    help='how problems are asked: chatml (default), alpaca, abel, ... (mathqwen/evals/README.md)',
  )
  parser.add_argument(
    '--rule', metavar='NAME', help="how answers are graded (default: the prompt's rule, else the benchmark's)"
  )
  _flags.add_chat(parser)
  _flags.add_distributed(parser, 'each host holds a copy of the model and answers its share of the problems')
  parser.add_argument(
    '--max-new-tokens', type=int, metavar='N', help="longest answer, in tokens (default: the prompt's or benchmark's)"
  )
  parser.add_argument(
    '--batch-size', type=int, metavar='N', help=f'problems decoded at the same time (default: {BATCH_SIZE})'
  )
  _flags.add_dtype(parser)
  _flags.add_platform(parser)
  drawn = parser.add_argument_group(f'{sampling} (default: {defaults})')
  drawn.add_argument('--samples', type=int, metavar='N', help='answers to each problem')
  drawn.add_argument('--temperature', type=float, metavar='X', help='divides the logits; 0 is greedy')
  drawn.add_argument(
    '--top-p', type=float, metavar='X', help='draw from the likeliest tokens that together have probability X'
  )
  drawn.add_argument('--top-k', type=int, metavar='N', help='draw from the N likeliest tokens (default: 0, from all)')
  drawn.add_argument('--seed', type=int, metavar='N', help='of the random draws (default: 0)')
  drawn.add_argument(
    '--cache-dtype', choices=CACHE_DTYPES, help="of the KV cache's keys and values (default: the model's dtype)"
  )
  served = parser.add_argument_group('for openai:URL#NAME; the environment variable OPENAI_API_KEY holds its key')
  served.add_argument('--concurrency', type=int, metavar='N', help='requests in flight at the same time (default: 16)')
  served.add_argument('--requests-per-minute', type=float, metavar='N', help='at most (default: no limit)')
  served.add_argument('--timeout', type=float, metavar='SECONDS', help='of one request (default: 600)')
  served.add_argument(
    '--request-json',
    type=_request_json,
    metavar='OBJECT',
    help='more fields of each request, such as \'{"chat_template_kwargs": {"enable_thinking": false}}\'; null leaves '
    'one out',
  )


def _request_json(text: str) -> dict:
  """The object in a text. UserError: when it is none, or decides what a flag does."""
  from mathqwen.evals import dialect

  return dialect.parse_json(text)


def given(args: argparse.Namespace, names: Iterable[str]) -> dict:
  """The flags among `names` that have a value; the others keep the defaults of the function that takes them."""
  return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def is_served(model: object) -> bool:
  """Whether MODEL is the name of a served one."""
  return isinstance(model, str) and model.startswith('openai:')


def refuse(args: argparse.Namespace, served: bool, ours: Iterable[str]) -> None:
  """UserError: when a flag is given that this kind of model does not take. ours: those for models of ours only."""
  if served:
    refuse_given(args, ours, 'decided by the server; leave it out')
  else:
    refuse_given(args, SERVED, 'for openai:URL#MODEL only')


def refuse_given(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
  """UserError: when one of these flags has a value. why: 'for --questions; leave it out'."""
  for name in given(args, names):
    raise UserError(f'{_flags.flag(name)} is {why}')


def start_devices(args: argparse.Namespace, kept: str) -> None:
  """Joins the other hosts, if there are any, and has SIGTERM end this one: each answer so far is recorded already.

  kept: what is kept then, for the message.
  """
  _devices.start(args, kept)
  if not args.distributed:
    return
  hosts.agree('arguments', {name: value for name, value in vars(args).items() if name not in ('run', 'distributed')})
  stopped = f'stopped by SIGTERM; {kept}, and the same command on every host continues'

  def stop(*_):
    report(f'mathqwen: {stopped}')
    hosts.leave(os.EX_TEMPFAIL, stopped)

  # JAX's preemption service has taken the signal and waits until a program asks for it, as training does. Here each
  # answer is recorded as soon as it is complete, so the process can end at once.
  signal.signal(signal.SIGTERM, stop)
