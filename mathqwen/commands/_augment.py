"""`mathqwen data augment`"""

import argparse
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.commands import _asking, _flags, _models
from mathqwen.errors import UserError, report
from mathqwen.hardware import hosts

if TYPE_CHECKING:
  from mathqwen.augment.asking import Asked

HELP = "a model's own verified answers to the questions of a source, or new questions with theirs, as training data"

SAMPLES = 100  # of RFT
SAMPLES_OF_NEW = 10
TEMPERATURE = 0.7  # of RFT
CONCURRENCY = 16
_REQUEST = ('per_question', 'min_share')  # fields of AugmentRequest
# Flags that a served model does not take.
OURS = (*_asking.OURS, 'top_k', 'seed', 'cache_dtype')


def add_flags(parser: _flags.Parser) -> None:
  """Adds the flags; most are those of `evaluate`."""
  from mathqwen.augment import questions

  parser.add_argument(
    'source',
    type=_flags.model_path,
    metavar='SOURCE',
    help='a source of training data with gold answers, as in data.sources: the name of a data set, files, or '
    'hf://ORGANISATION/NAME',
  )
  parser.add_argument(
    '--out',
    type=_flags.path,
    required=True,
    metavar='DIR',
    help='where train.jsonl, all samples and the data card go; the same command again continues there',
  )
  parser.add_argument(
    '--model',
    type=_flags.model_path,
    required=True,
    metavar='MODEL',
    help="a Hugging Face directory, a model on its hub, a run's --workdir, or openai:URL#NAME, a model that is served",
  )
  parser.add_argument(
    '--questions',
    choices=questions.KINDS,
    help="ask new questions, made of the source's: rephrase (in other words), numbers (with other numbers), backward "
    '(a number is asked for, and the answer told). Default: ask those of the source',
  )
  parser.add_argument('--per-question', type=int, metavar='N', help='new questions made of each (default: 1)')
  parser.add_argument(
    '--min-share',
    type=float,
    metavar='X',
    help='share of the samples of a new question that must agree on its answer (default: 0.5)',
  )
  parser.add_argument('--without-gold', action='store_true', help="leave the source's own solutions out of train.jsonl")
  parser.add_argument(
    '--pairs',
    type=int,
    default=0,
    metavar='N',
    help='write pairs.jsonl as well: up to N pairs of a right and a wrong answer to each question, for '
    'train.objective=dpo',
  )
  _flags.add_map(parser)
  defaults = f'{SAMPLES} samples, {SAMPLES_OF_NEW} with --questions, at temperature {TEMPERATURE}'
  _asking.add_flags(
    parser, 'N questions of the source only: a random subset, the same for each model and run', 'sampling', defaults
  )


def run(args: argparse.Namespace) -> dict:
  """Augments, and prints what came of it on host 0. The JSON: the summary, as in DIR/summary.json."""
  from mathqwen.augment import augment

  summary = _augment(args)
  if hosts.share()[0] == 0:
    print(
      f'{summary["out"]}/{augment.TRAIN}: {summary["rows"]:,} rows to {summary["questions"]:,} questions; '
      f'{summary["kept"]:,} of {summary["samples"]:,} answers kept, {summary["right"]:,} right, '
      f'{summary["undecided"]:,} undecided'
    )
    _print_dropped('not kept', summary['dropped'])
    if 'pairs' in summary:
      print(
        f'{summary["out"]}/{augment.PAIRS}: {summary["pairs"]:,} pairs of a right and a wrong answer to '
        f'{summary["questions_with_pairs"]:,} questions'
      )
    if summary['kind']:
      why = ', '.join(f'{name} {count:,}' for name, count in summary['new_questions_dropped'].items())
      print(
        f'new questions: {summary["new_questions_kept"]:,} of {summary["new_questions"]:,} kept'
        + (why and f'; dropped: {why}')
      )
  return summary


def _print_dropped(what: str, counts: dict[str, int]) -> None:
  if counts:
    print(f'{what}: {", ".join(f"{name} {count:,}" for name, count in counts.items())}')


def _augment(args: argparse.Namespace) -> dict:
  """UserError for bad arguments, before a model is opened."""
  from mathqwen.augment import augment
  from mathqwen.augment.asking import OurModel, ServedModel
  from mathqwen.data import catalog
  from mathqwen.evals import asked, endpoint, prompts
  from mathqwen.evals.ask import Ask, Decoding, check_positive
  from mathqwen.grading import grade

  files.check(args.out)
  if args.data_dir is not None and catalog.of_source(args.source) is None:
    raise UserError(f'--data-dir {args.data_dir}: nothing reads it, because {args.source} has no name; leave it out')
  if args.rule:
    grade.get(args.rule)
  if args.prompt:
    prompts.get(args.prompt)
  asked.check(args.prompt or asked.DEFAULT, args.template, args.system)
  served = _asking.is_served(args.model)
  _asking.refuse(args, served, OURS)
  if not args.questions:
    _asking.refuse_given(args, _REQUEST, 'for --questions; leave it out')
  drawn = {'samples': SAMPLES_OF_NEW if args.questions else SAMPLES, 'temperature': TEMPERATURE}
  decoding = Decoding(**drawn | _asking.given(args, _asking.DECODING))
  request = augment.AugmentRequest(
    args.source,
    args.out,
    Ask(**_asking.given(args, _asking.ASK), decoding=decoding),
    columns=_columns(args.settings),
    questions=args.questions,
    keep_gold=not args.without_gold,
    pairs=args.pairs,
    **_asking.given(args, _REQUEST),
  )
  concurrency = CONCURRENCY if args.concurrency is None else args.concurrency
  batch_size = _asking.BATCH_SIZE if args.batch_size is None else args.batch_size
  check_positive(concurrency=concurrency, batch_size=batch_size)
  model: Asked
  if served:
    options = _asking.given(args, _asking.ENDPOINT) | {'system_prompt': args.system or ''}
    model = ServedModel(endpoint.Endpoint(args.model, **options), concurrency)
  else:
    _asking.start_devices(args, f'the answers in {args.out} are kept')
    opened, read = _models.open_on_this_host(args.model, args.dtype, args.template, args.system, args.weights)
    model = OurModel(opened, read, batch_size)
    if hosts.share()[0] == 0:
      report(asked.describe(opened, args.prompt or asked.DEFAULT))
  return augment.augment(model, augment.prepare(request, model))


def _columns(settings: list[str]) -> tuple[str, ...]:
  """The columns of --map."""
  texts = [text.removeprefix('data.columns=') for text in settings]
  return tuple(column for text in texts for column in text.split(','))
