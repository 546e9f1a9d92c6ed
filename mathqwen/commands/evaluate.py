"""`mathqwen evaluate`"""

import argparse
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.commands import _asking, _flags, _models, _scores
from mathqwen.errors import UserError, report
from mathqwen.hardware import hosts

if TYPE_CHECKING:
  from mathqwen.evals.ask import Ask
  from mathqwen.evals.tasks import Benchmark
  from mathqwen.inference.model import Model

HELP = 'answer the problems of benchmarks, grade the answers and record each of them'

# Flags that a served model does not take.
OURS = (*_asking.OURS, 'cache_dtype')


def add_flags(parser: _flags.Parser) -> None:
  """Adds the flags."""
  from mathqwen.evals import benchmarks

  _flags.add_model(parser, ', or openai:URL#NAME, a model that is served')
  parser.add_argument(
    '--benchmarks',
    required=True,
    metavar='A,B',
    help='names, or files of problems (with --rule), with commas between: ' + ', '.join(benchmarks.BENCHMARKS),
  )
  parser.add_argument(
    '--map',
    action='append',
    default=[],
    metavar='FIELD=COLUMN,...',
    help='for files of problems: question=COLUMN,answer=COLUMN, where the columns have names that are not known',
  )
  parser.add_argument(
    '--out', type=_flags.path, metavar='DIR', help='where records and scores go; the same command again continues there'
  )
  parser.add_argument('--limit-seed', type=int, metavar='N', help='of the subset that --limit draws (default: 0)')
  add_against(parser)
  parser.add_argument(
    '--max-thinking-tokens',
    type=int,
    metavar='N',
    help='close the thinking of an answer after N tokens, and ask for the answer (default: no budget)',
  )
  _asking.add_flags(
    parser,
    'N problems of each benchmark only: a random subset, the same for each model and run',
    'sampling; several samples give avg@n, pass@k and maj@k',
  )


def add_against(parser: _flags.Parser) -> None:
  """Adds --against, which `grade` has too."""
  parser.add_argument(
    '--against',
    action='append',
    type=_flags.model_path,
    default=[],
    metavar='DATA',
    help='mark the problems that this training data hold, and give the score without them too: a file, a folder, or '
    'the name of a data set; may be repeated',
  )


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
  from mathqwen.evals import asked, benchmarks, prompts
  from mathqwen.grading import grade

  files.check(args.out)  # a misspelt bucket, or no gcsfs, before a model is opened
  chosen = benchmarks.choose(args.benchmarks, args.rule)
  if args.prompt:
    prompts.get(args.prompt)
  if args.rule:
    grade.get(args.rule)
  for name in dict.fromkeys(args.prompt or benchmark.prompt for benchmark in chosen):
    asked.check(name, args.template, args.system)
  is_served = _asking.is_served(args.model)
  _asking.refuse(args, is_served, OURS)
  return _ask_endpoint(args, chosen) if is_served else _ask_model(args, chosen)


def _ask_endpoint(args: argparse.Namespace, chosen: 'list[Benchmark]') -> dict:
  """Asks a served model. chosen: the benchmarks."""
  from mathqwen.evals import endpoint

  options = _asking.given(args, _asking.SERVED) | {'system_prompt': args.system or ''}
  return endpoint.evaluate(args.model, chosen, _ask_of(args), out=args.out, **options)


def _ask_of(args: argparse.Namespace) -> 'Ask':
  """What is asked, and how answers are drawn."""
  from mathqwen.evals.ask import Ask, Decoding

  asked = _asking.given(args, (*_asking.ASK, 'limit_seed', 'max_thinking_tokens'))
  columns = tuple(column for text in args.map for column in text.split(','))
  decoding = Decoding(**_asking.given(args, _asking.DECODING))
  return Ask(**asked, columns=columns, against=tuple(args.against), decoding=decoding)


def _ask_model(args: argparse.Namespace, chosen: 'list[Benchmark]') -> dict:
  """Opens args.model unless it is open, and checks everything before its weights are read."""
  from mathqwen.evals import run

  batch_size = _asking.BATCH_SIZE if args.batch_size is None else args.batch_size
  ask = _ask_of(args)
  kept = f'the answers in {args.out} are kept' if args.out else 'without --out, no answers were kept'
  _asking.start_devices(args, kept)
  if not isinstance(args.model, str):
    if args.dtype is not None:
      own = repr(args.model.dtype)
      raise UserError(f'dtype is {args.dtype!r}: a loaded model keeps its own, {own}; give dtype to mathqwen.load')
    if args.weights is not None:
      raise UserError(f'weights is {args.weights!r}: a loaded model keeps its own; give weights to mathqwen.load')
    model = args.model.asked_with(args.template, args.system)
    _report_asked(model, args, chosen)
    return run.evaluate(model, chosen, ask, out=args.out, batch_size=batch_size)
  model, read = _models.open_on_this_host(args.model, args.dtype, args.template, args.system, args.weights)
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
