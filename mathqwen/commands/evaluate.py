"""`mathqwen evaluate`"""

import argparse
import os
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.commands import _devices, _flags, _models, _scores
from mathqwen.errors import UserError, report
from mathqwen.hardware import hosts

if TYPE_CHECKING:
  from mathqwen.evals.tasks import Benchmark
  from mathqwen.inference.model import Model

HELP = 'answer the problems of benchmarks, grade the answers and record each of them'

CACHE_DTYPES = ('float32', 'bfloat16', 'int8')
BATCH_SIZE = 64
ASK = ('data_dir', 'limit', 'prompt', 'rule', 'max_new_tokens')  # fields of evals.ask.Ask
DECODING = ('samples', 'temperature', 'top_p', 'top_k', 'seed', 'cache_dtype')  # fields of evals.ask.Decoding
SERVED = ('concurrency', 'requests_per_minute', 'timeout')  # arguments of evals.endpoint.evaluate
# Flags that a served model does not take.
OURS = ('template', 'batch_size', 'dtype', 'platform', 'distributed', 'slice', *DECODING)


def add_flags(parser: _flags.Parser) -> None:
  """Adds flags for all models, then those for models of ours and for served ones."""
  from mathqwen.evals import benchmarks

  _flags.add_model(parser, ', or openai:URL#NAME, a model that is served')
  parser.add_argument(
    '--benchmarks', required=True, metavar='A,B', help=f'which, with commas between: {", ".join(benchmarks.BENCHMARKS)}'
  )
  parser.add_argument('--data-dir', type=_flags.path, metavar='DIR', help='a copy of the data sets, local or gs://')
  parser.add_argument('--limit', type=int, metavar='N', help='the first N problems of each benchmark only')
  parser.add_argument(
    '--prompt',
    metavar='NAME',
    help='how problems are asked: chatml (default), alpaca, abel, ... (mathqwen/evals/README.md)',
  )
  parser.add_argument(
    '--rule', metavar='NAME', help="how answers are graded (default: the prompt's rule, else the benchmark's)"
  )
  parser.add_argument(
    '--out', type=_flags.path, metavar='DIR', help='where records and scores go; the same command again continues there'
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
  drawn = parser.add_argument_group('sampling, for a model of ours (default: one greedy answer)')
  drawn.add_argument('--samples', type=int, metavar='N', help='answers to each problem, for pass@k and maj@k')
  drawn.add_argument('--temperature', type=float, metavar='X', help='divides the logits; 0 is greedy (default)')
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


def run(args: argparse.Namespace) -> dict:
  """Evaluates, and prints the scores on host 0. The JSON: `benchmarks`, scores by name, and `tokens_per_second`."""
  from mathqwen.evals.report import table

  result = evaluate(args)
  if hosts.share()[0] == 0:
    _scores.show(result)
    if args.out and not args.json:
      print(table.after_evaluation([files.join(args.out, name, 'scores.json') for name in result['benchmarks']]))
  return result


def evaluate(args: argparse.Namespace) -> dict:
  """What `run` does, without printing the scores. args.model may be a `Model`, which then keeps its weights.

  UserError for bad arguments, before a model is opened, and for bad data, before anything is generated.
  """
  from mathqwen.evals import ask, asked, prompts
  from mathqwen.grading import grade

  files.check(args.out)  # a misspelt bucket, or no gcsfs, before a model is opened
  chosen = ask.choose(args.benchmarks)
  if args.prompt:
    prompts.get(args.prompt)
  if args.rule:
    grade.get(args.rule)
  for name in dict.fromkeys(args.prompt or benchmark.prompt for benchmark in chosen):
    asked.check(name, args.template, args.system)
  is_served = isinstance(args.model, str) and args.model.startswith('openai:')
  for name in _given(args, OURS if is_served else SERVED):
    why = 'decided by the server; leave it out' if is_served else 'for openai:URL#MODEL only'
    raise UserError(f'--{name.replace("_", "-")} is {why}')
  return _ask_endpoint(args, chosen) if is_served else _ask_model(args, chosen)


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict:
  """The flags among `names` that have a value; the others keep the defaults of the function that takes them."""
  return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _ask_endpoint(args: argparse.Namespace, chosen: 'list[Benchmark]') -> dict:
  """Asks a served model. chosen: the benchmarks."""
  from mathqwen.evals import endpoint
  from mathqwen.evals.ask import Ask

  options = _given(args, SERVED) | {'system_prompt': args.system or ''}
  return endpoint.evaluate(args.model, chosen, Ask(**_given(args, ASK)), out=args.out, **options)


def _ask_model(args: argparse.Namespace, chosen: 'list[Benchmark]') -> dict:
  """Opens args.model unless it is open, and checks everything before its weights are read."""
  from mathqwen.evals import run
  from mathqwen.evals.ask import Ask, Decoding

  batch_size = BATCH_SIZE if args.batch_size is None else args.batch_size
  ask = Ask(**_given(args, ASK), decoding=Decoding(**_given(args, DECODING)))
  _start_devices(args)
  if not isinstance(args.model, str):
    model = args.model.asked_with(args.template, args.system)
    _report_asked(model, args, chosen)
    return run.evaluate(model, chosen, ask, out=args.out, batch_size=batch_size)
  model, read = _models.open_on_this_host(args.model, args.dtype, args.template, args.system)
  _report_asked(model, args, chosen)
  with run.prepare(model, chosen, ask, args.out, batch_size) as opened:
    model.params = read()
    return run.run(model, opened, batch_size)


def _report_asked(model: 'Model', args: argparse.Namespace, chosen: 'list[Benchmark]') -> None:
  """Says which prompt, template and system turn the model is asked with."""
  from mathqwen.evals import asked

  if hosts.share()[0] == 0 and model.tokenizer is not None:
    for prompt in dict.fromkeys(args.prompt or benchmark.prompt for benchmark in chosen):
      report(asked.describe(model, prompt))


def _start_devices(args: argparse.Namespace) -> None:
  """Joins the other hosts, if there are any, and has SIGTERM end this one: each answer so far is recorded already."""
  kept = f'the answers in {args.out} are kept' if args.out else 'without --out, no answers were kept'
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
