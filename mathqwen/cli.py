"""The command line: parse, call, exit status. 0 done, 2 what the user can fix (one line), 75 run it again."""

import argparse
import atexit
import ctypes
import errno
import io
import json
import logging
import os
import signal
import sys

from mathqwen.data import catalog
from mathqwen.errors import Preempted, UserError
from mathqwen.evals.benchmarks import BENCHMARKS
from mathqwen.hardware import hosts

REMEDIES = {
  errno.ENOSPC: 'free some space and run the same command again',
  errno.EDQUOT: 'free some of the quota and run the same command again',
  errno.EFBIG: 'raise the limit of file sizes (ulimit -f) and run the same command again',
  errno.EIO: 'the disk failed: see to it and run the same command again',
  errno.EACCES: 'name a place that you may read and write',
  errno.EPERM: 'name a place that you may read and write',
  errno.ENAMETOOLONG: 'give a shorter name',
  errno.EROFS: 'name a place that can be written',
  errno.ENOENT: 'look at the spelling of the path',
  errno.ENOTDIR: 'a file stands where a directory is needed',
  errno.EEXIST: 'a file stands where a directory is needed',
  errno.EISDIR: 'name a file, not a directory',
}

# Flags of `bench`: {flag: (default, help)}. The model's are the fields of ModelConfig.
BENCH_MODEL = {
  'num-hidden-layers': (8, 'layers'),
  'hidden-size': (512, 'D'),
  'intermediate-size': (1408, 'F'),
  'num-attention-heads': (8, 'N'),
  'num-key-value-heads': (4, 'K'),
  'head-dim': (64, 'H'),
  'vocab-size': (32_000, 'V'),
  'tie-word-embeddings': (False, 'the head is the embedding'),
  'qkv-bias': (True, 'as in Qwen-1 to Qwen2.5'),
  'qk-norm': (False, 'as in Qwen3'),
}
BENCH = {
  'train': {
    'batch': (2, 'rows'),
    'seq-len': (1024, 'positions of a row'),
    'loss-share': (0.55, 'share of positions with loss'),
    'dropout': (0.0, 'train.dropout; torch has none'),
    'remat': ('dots', 'train.remat'),
    'attention': ('auto', 'train.attention'),
    'steps': (5, 'steps that are timed, after one that is not'),
  },
  'decode': {
    'batch': (8, 'prompts'),
    'prompt': (128, 'tokens of each'),
    'new-tokens': (128, 'tokens decoded for each'),
    'long-tail': (0, 'so many answers, as long as those of GSM8K, beside batches that wait for their longest; 0: no'),
    'steps': (5, 'batches that are timed, after one that is not'),
  },
}

CACHE_DTYPES = ('float32', 'bfloat16', 'int8')
ASK = ('data_dir', 'limit', 'prompt', 'rule', 'max_new_tokens')  # fields of evals.run.Ask
SERVED = ('concurrency', 'requests_per_minute', 'timeout')
DECODING = ('samples', 'temperature', 'top_p', 'top_k', 'seed', 'cache_dtype')  # fields of evals.run.Decoding


class Parser(argparse.ArgumentParser):
  """Errors in one line."""

  def error(self, message):
    hint = '; write -- before a question that begins with -' if message.startswith('unrecognized arguments: -') else ''
    raise UserError(f'{message} (see {self.prog} --help{hint})')


def build_parser() -> Parser:
  parser = Parser(prog='mathqwen', description='Math models of the Qwen family with JAX and Flax on TPU pods.')
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=Parser)
  parser.set_defaults(json=False)
  for add in (
    add_demo, add_train, add_plan, add_evaluate, add_grade, add_compare, add_generate, add_convert, add_bench, add_data,
    add_table,
  ):  # fmt: skip
    add(commands)
  return parser


def _add_parser(commands, name: str, text: str) -> Parser:
  parser = commands.add_parser(name, help=text, description=text)
  what = 'make the last line of standard output one JSON object'
  parser.add_argument('--json', action='store_true', default=argparse.SUPPRESS, help=what)
  return parser


def _command(commands, name: str, run, text: str) -> Parser:
  parser = _add_parser(commands, name, text)
  parser.set_defaults(run=run)
  return parser


def _group(commands, name: str, text: str, metavar: str):
  parser = _add_parser(commands, name, text)
  return parser.add_subparsers(dest='verb', required=True, metavar=metavar, parser_class=Parser)


def _add_distributed(parser, what):
  parser.add_argument(
    '--distributed', nargs='?', const='auto', metavar='HOST:PORT,N,I',
    help=f'{what}: give it on each of them (a pod slice needs no value)',
  )  # fmt: skip


def _add_dtype(parser):
  parser.add_argument(
    '--dtype', choices=['bfloat16', 'float32'], help='of weights and activations (default: bfloat16, on a CPU float32)'
  )


def _open(path, dtype):
  """(model without its weights, read): arguments are checked between the two."""
  import jax

  from mathqwen.hardware import sharding
  from mathqwen.inference import model as models
  from mathqwen.storage.source import open_source

  source, mesh = open_source(path), None
  if jax.local_device_count() > 1:  # each of several hosts has a copy of the model
    mesh = sharding.make_mesh(sharding.fitting(source.config, jax.local_device_count()), jax.local_devices())
  return models.model_of(source, mesh, dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16'))


def _experiment(args):
  from mathqwen import config

  settings = list(args.settings)
  experiment = config.load(args.config)
  init = getattr(args, 'init', None)
  if init is not None:
    settings.insert(0, f'init={"None" if init == "random" else init}')
  if args.data_dir is not None:
    settings.insert(0, f'data.data_dir={args.data_dir}')
  return config.override(experiment, settings)


def add_demo(commands):
  sub = _command(commands, 'demo', run_demo, 'the whole way on this machine: data, training, evaluation, export, table')
  sub.add_argument(
    '--workdir', default='mathqwen-demo', metavar='DIR', help='where everything goes (default: %(default)s)'
  )
  sub.add_argument('--steps', type=int, metavar='N', help='fewer steps, to see the way and not the result')


def run_demo(args):
  from mathqwen.commands import demo

  return demo.run(args.workdir, args.steps)


def add_train(commands):
  sub = _command(commands, 'train', run_train, 'train a config, or continue the run in the workdir')
  sub.add_argument('config', metavar='CONFIG', help='a name in configs/, or the path of such a file')
  sub.add_argument('--workdir', metavar='DIR', help='checkpoints, metrics and the resolved config')
  sub.add_argument('--init', metavar='MODEL', help="a MODEL to start from, or 'random'")
  sub.add_argument('--data-dir', metavar='DIR', help='a local copy of the data sets (data.data_dir)')
  sub.add_argument(
    '--set', action='append', default=[], dest='settings', metavar='A.B=VALUE', help='override a setting'
  )
  _add_distributed(sub, 'one run over several hosts')
  sub.add_argument('--dry-run', action='store_true', help='print sizes, memory and the first packed row; train nothing')
  sub.add_argument(
    '--profile',
    nargs='?',
    const=3,
    type=int,
    metavar='STEPS',
    help='trace so many steps (3), from the third on, into WORKDIR/profile for xprof',
  )


def run_train(args):
  if args.workdir is None and not args.dry_run:
    raise UserError('train needs --workdir DIR, where checkpoints and metrics go (or --dry-run)')
  if args.profile is not None and args.dry_run:
    raise UserError('--dry-run takes no step that --profile could trace: leave out one of them')
  experiment = _experiment(args)
  from mathqwen import config
  from mathqwen.training.prepare import TrainingRun, dry_run

  if args.distributed:
    hosts.join(args.distributed, 'training continues from its newest checkpoint')
  run = TrainingRun.prepare(experiment, dry=args.dry_run)
  given = {'--workdir': args.workdir, '--dry-run': args.dry_run, '--profile': args.profile}
  hosts.agree('settings', config.to_flat(run.experiment) | given)
  return dry_run(run) if args.dry_run else run.train(args.workdir, args.profile)


def add_plan(commands):
  sub = _command(
    commands, 'plan', run_plan, 'compile the training step for TPU slices that are not here: memory, time, settings'
  )
  sub.add_argument('config', metavar='CONFIG')
  sub.add_argument(
    '--topology', action='append', required=True, dest='topologies', metavar='SLICE', help='v5p-32, v6e-16, v5e-1, ...'
  )
  sub.add_argument(
    '--set', action='append', default=[], dest='settings', metavar='A.B=VALUE', help='override a setting; it is kept'
  )


def run_plan(args):
  from mathqwen import config
  from mathqwen.planning import plan

  experiment = config.override(config.load(args.config), args.settings)
  return plan.plan(experiment, args.topologies, {setting.partition('=')[0] for setting in args.settings})


def add_evaluate(commands):
  sub = _command(commands, 'evaluate', run_evaluate, 'greedy answers to benchmarks, graded, every one recorded')
  sub.add_argument('model', metavar='MODEL', help="a Hugging Face directory, a run's workdir, or openai:URL#MODEL")
  sub.add_argument('--benchmarks', required=True, metavar='A,B', help=', '.join(BENCHMARKS))
  sub.add_argument('--data-dir', metavar='DIR', help='a local copy of the data sets')
  sub.add_argument('--limit', type=int, metavar='N', help='the first N problems of each')
  sub.add_argument(
    '--prompt', metavar='NAME', help='how problems are asked: chatml (default), alpaca, abel, ... (README, Prompts)'
  )
  sub.add_argument(
    '--rule', metavar='NAME', help="how answers are graded (default: as the prompt's system was, else the benchmark's)"
  )
  sub.add_argument('--out', metavar='DIR', help='records and scores; run again to continue there')
  _add_distributed(sub, 'each host has a copy of the model and answers its share of the problems')
  sub.add_argument('--max-new-tokens', type=int, metavar='N')
  sub.add_argument('--batch-size', type=int, metavar='N', help='problems decoded together (default: 64)')
  drawn = sub.add_argument_group('how a model of ours answers (default: greedily, once)')
  drawn.add_argument('--samples', type=int, metavar='N', help='answers to each problem, for pass@k and maj@k')
  drawn.add_argument('--temperature', type=float, metavar='X')
  drawn.add_argument('--top-p', type=float, metavar='X')
  drawn.add_argument('--top-k', type=int, metavar='N')
  drawn.add_argument('--seed', type=int, metavar='N')
  drawn.add_argument('--cache-dtype', choices=CACHE_DTYPES, help="of keys and values (default: the model's)")
  _add_dtype(sub)
  served = sub.add_argument_group('of openai:URL#MODEL, whose key, if it wants one, is in OPENAI_API_KEY')
  served.add_argument('--concurrency', type=int, metavar='N', help='requests under way at a time (default: 16)')
  served.add_argument('--requests-per-minute', type=float, metavar='N', help='at most (default: no limit)')
  served.add_argument('--timeout', type=float, metavar='SECONDS', help='of one request (default: 600)')


def run_evaluate(args):
  from mathqwen.evals import prompts, run
  from mathqwen.evals.report import table
  from mathqwen.grading import grade

  chosen = run.choose(args.benchmarks)
  if args.prompt:
    prompts.get(args.prompt)
  if args.rule:
    grade.get(args.rule)
  served = args.model.startswith('openai:')
  for flag in _given(args, ('batch_size', 'dtype', 'distributed', *DECODING) if served else SERVED):
    whose = "the server's affair; leave it out" if served else 'for openai:URL#MODEL only'
    raise UserError(f'--{flag.replace("_", "-")} is {whose}')
  result = _ask_endpoint(args, chosen) if served else _ask_model(args, chosen)
  if hosts.share()[0] == 0:
    _print_scores(result)
    if args.out and not args.json:
      print(table.table([os.path.join(args.out, name, 'scores.json') for name in result['benchmarks']]))
  return result


def _given(args, names) -> dict:
  """Those of the flags that have a value."""
  return {name: value for name in names if (value := getattr(args, name)) is not None}


def _ask_endpoint(args, chosen):
  from mathqwen.evals import endpoint, run

  return endpoint.evaluate(args.model, chosen, run.Ask(**_given(args, ASK)), out=args.out, **_given(args, SERVED))


def _ask_model(args, chosen):
  from mathqwen.evals import run

  batch_size = 64 if args.batch_size is None else args.batch_size
  ask = run.Ask(**_given(args, ASK), decoding=run.Decoding(**_given(args, DECODING)))
  if args.distributed:
    kept = f'the answers in {args.out} are kept' if args.out else 'without --out, no answers were kept'
    hosts.join(args.distributed, kept)
    hosts.agree('arguments', {name: value for name, value in vars(args).items() if name not in ('run', 'distributed')})
    stopped = f'stopped by SIGTERM; {kept}, and the same command on every host continues'
    # JAX's preemption service has taken the signal, and waits to be asked. Here every answer is kept as it ends.
    signal.signal(signal.SIGTERM, lambda *_: _fail(stopped, os.EX_TEMPFAIL))
  model, read = _open(args.model, args.dtype)
  with run.prepare(model, chosen, ask, args.out, batch_size) as prepared:
    model.params = read()
    return run.run(model, prepared, batch_size)


def _print_scores(result):
  for name, scores in result['benchmarks'].items():
    print(
      f'{name}: {scores["correct"]} of {scores["n"]} right, {100 * scores["accuracy"]:.1f}% '
      f'(standard error {100 * scores["stderr"]:.1f}), {scores["unextractable"]} without an answer, '
      f'{scores["truncated"]} cut off; rule {scores["rule"]}, prompt {scores["prompt"]}'
    )


def add_grade(commands):
  sub = _command(commands, 'grade', run_grade, 'grade stored answers again; needs no accelerator')
  sub.add_argument('records', metavar='RECORDS.jsonl')
  sub.add_argument('--benchmark', required=True, metavar='NAME', help=', '.join(BENCHMARKS))
  sub.add_argument('--rule', metavar='NAME', help="default: the benchmark's")
  sub.add_argument('--out', metavar='DIR')


def run_grade(args):
  from mathqwen.evals.run import grade_records

  result = grade_records(args.records, args.benchmark, args.rule, args.out)
  _print_scores(result)
  return result


def add_compare(commands):
  sub = _command(commands, 'compare', run_compare, 'two runs over the same problems: what flipped, and a paired test')
  sub.add_argument('a', metavar='A', help='what evaluate or grade wrote with --out')
  sub.add_argument('b', metavar='B', help='the same, of the other run')


def run_compare(args):
  from mathqwen.evals import compare

  result = compare.compare(args.a, args.b)
  print(compare.describe(result))
  return result


def add_generate(commands):
  sub = _command(commands, 'generate', run_generate, 'answers to questions; without one, a chat')
  sub.add_argument('model', metavar='MODEL')
  sub.add_argument('questions', nargs='*', metavar='QUESTION')
  sub.add_argument('--max-new-tokens', type=int, metavar='N', help="default: 512, or what the model's positions leave")
  sub.add_argument('--temperature', type=float, default=0.0, metavar='T', help='0 is greedy (default)')
  sub.add_argument('--top-p', type=float, default=1.0, metavar='P')
  sub.add_argument('--top-k', type=int, default=0, metavar='K')
  sub.add_argument('--seed', type=int, default=0, metavar='N')
  _add_dtype(sub)


def run_generate(args):
  options = {k: getattr(args, k) for k in ('max_new_tokens', 'temperature', 'top_p', 'top_k', 'seed')}
  model, read = _open(args.model, args.dtype)
  model.check([model.prompt([{'role': 'user', 'content': question}]) for question in args.questions], **options)
  model.params = read()
  if args.questions:
    answers = model.generate(args.questions, **options)
    for answer in answers:
      print(answer)
    return {'answers': answers}
  from mathqwen.inference import chat

  return chat.interact(model, options)


def add_convert(commands):
  ways = _group(commands, 'convert', 'Hugging Face directories in and out, and two models compared', 'WAY')
  text = 'a Hugging Face directory (or a name on the hub) as a checkpoint of ours'
  from_hf = _command(ways, 'from-hf', run_from_hf, text)
  from_hf.add_argument('source', metavar='HF_DIR')
  from_hf.add_argument('target', metavar='OUT')
  to_hf = _command(ways, 'to-hf', run_to_hf, 'a MODEL as a directory that transformers and vLLM load')
  to_hf.add_argument('source', metavar='MODEL')
  to_hf.add_argument('target', metavar='OUT')
  to_hf.add_argument('--layout', metavar='NAME', help='qwen1 keeps a Qwen-1 in its own files (default: qwen2 for it)')
  to_hf.add_argument(
    '--dtype',
    choices=['bfloat16', 'float16', 'float32'],
    help="of the files (default: bfloat16 for a run's float32 masters, otherwise as stored)",
  )
  to_hf.add_argument(
    '--scores', action='append', default=[], metavar='DIR', help='what evaluate --out wrote, for the model card'
  )
  _add_distributed(to_hf, 'each host writes its share of the shards')
  for way in (from_hf, to_hf):
    way.add_argument(
      '--no-check', action='store_true', help='do not compare the two models afterwards, which loads them in turn'
    )
  text = 'logits, KL divergence and greedy tokens of two models, on a small batch'
  check = _command(ways, 'check', run_check, text)
  check.add_argument('source', metavar='A')
  check.add_argument('target', metavar='B')
  check.add_argument('--tolerance', type=float, metavar='X', help='exit status 2 when a logit differs by more')


def _leave_on_sigterm():
  """So that what is half written is removed."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def run_from_hf(args):
  from mathqwen.conversion import convert

  _leave_on_sigterm()
  return convert.from_hf(args.source, args.target, check=not args.no_check)


def run_to_hf(args):
  from mathqwen.conversion import convert

  _leave_on_sigterm()
  if args.distributed:
    hosts.join(args.distributed, 'the export begins anew')
  names = ('source', 'target', 'layout', 'dtype', 'scores')
  hosts.agree('arguments', {name: getattr(args, name) for name in names})
  return convert.to_hf(args.source, args.target, args.layout, args.dtype, args.scores, check=not args.no_check)


def run_check(args):
  from mathqwen.conversion import convert

  return convert.compare_models(args.source, args.target, args.tolerance)


def add_bench(commands):
  text = 'tokens per second, CPU seconds and peak memory on this machine'
  verbs = _group(commands, 'bench', text, 'train|decode')
  for name, text in (('train', 'the training step, AdamW and all'), ('decode', 'greedy decoding with the KV cache')):
    verb = _command(verbs, name, run_bench, text)
    for flag, (value, what) in (BENCH_MODEL | BENCH[name]).items():
      if isinstance(value, bool):
        verb.add_argument(f'--{flag}', action=argparse.BooleanOptionalAction, default=value, help=what)
      else:
        more = {'metavar': {int: 'N', float: 'X', str: 'NAME'}[type(value)], 'help': f'{what} (default: %(default)s)'}
        verb.add_argument(f'--{flag}', type=type(value), default=value, **more)
    verb.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
    verb.add_argument('--torch', action='store_true', help='torch and transformers by turns beside it (extra: dev)')


def run_bench(args):
  from mathqwen.bench.measure import measure as bench
  from mathqwen.model.config import ModelConfig

  given = vars(args)
  options = {flag.replace('-', '_'): given[flag.replace('-', '_')] for flag in BENCH[args.verb]}
  positions = args.seq_len if args.verb == 'train' else args.prompt + max(args.new_tokens, bench.GSM8K_TOKENS[-1])
  cfg = ModelConfig(
    **{flag.replace('-', '_'): given[flag.replace('-', '_')] for flag in BENCH_MODEL}, max_position_embeddings=positions
  )
  return bench.run(args.verb, cfg, dtype=args.dtype, torch=args.torch, turns=options.pop('steps'), **options)


def add_data(commands):
  verbs = _group(commands, 'data', 'prepare and inspect data sets', 'VERB')
  text = 'download (or read from --data-dir) and store for random access'
  prepare = _command(verbs, 'prepare', run_data_prepare, text)
  prepare.add_argument('names', nargs='+', metavar='NAME', help=', '.join(catalog.downloadable()))
  prepare.add_argument('--data-dir', metavar='DIR', help='a local copy; without it the public addresses are asked')
  text = "counts, packing efficiency, tokens per second and the first row of a config's data"
  inspect = _command(verbs, 'inspect', run_data_inspect, text)
  inspect.add_argument('config', metavar='CONFIG')
  inspect.add_argument(
    '--tokenizer', metavar='DIR', help='a directory with tokenizer files (default: the one in this package)'
  )
  inspect.add_argument('--data-dir', metavar='DIR')
  inspect.add_argument('--set', action='append', default=[], dest='settings', metavar='A.B=VALUE')


def run_data_prepare(args):
  from mathqwen.data import datasets

  done = [datasets.prepare(name, args.data_dir, download=args.data_dir is None) for name in args.names]
  for one in done:
    rows = ', '.join(f'{split} {rows:,}' for split, rows in one['splits'].items())
    print(f'{one["name"]}: {rows} rows in {one["path"]}')
  return {'prepared': done}


def run_data_inspect(args):
  from mathqwen.data.inspect import inspect_data

  return inspect_data(_experiment(args), args.tokenizer)


def add_table(commands):
  sub = _command(commands, 'table', run_table, 'Table 12: published rows beside measured ones')
  sub.add_argument('scores', nargs='+', metavar='SCORES', help='scores.json files, or directories that hold some')
  sub.add_argument('--out', metavar='DIR', help='also write Markdown, LaTeX, and a page with every problem there')
  sub.add_argument(
    '--metrics',
    action='append',
    default=[],
    metavar='FILE',
    help="a metrics.jsonl whose losses the page shows (default: those of the models' workdirs)",
  )


def run_table(args):
  from mathqwen.evals.report import table

  if args.metrics and args.out is None:
    raise UserError('--metrics is for the page: give --out DIR, where it goes')
  text = table.table(args.scores, args.out, args.metrics)
  print(text)
  return {'table': text}


def _set_malloc(keep: bool):
  """With `keep`, has glibc reuse large buffers, which it would return to the kernel after every step of a CPU run and
  fault in again, page by page; in one arena, because only the main one can grow beyond 64 MB. Without, has it return
  each at once: a conversion passes many through."""
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    libc.mallopt(mmap_threshold, 2**30 if keep else 2**20)
    if keep:
      libc.mallopt(trim_threshold, 2**31 - 1)
      libc.mallopt(arena_max, 1)


def program():
  """The console script."""
  status = main()
  if status == 130:  # XLA may be compiling, and crash when the interpreter ends under its threads: Python's come first
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.register(os._exit, status)
  sys.exit(status)


def main(argv=None) -> int:
  # TFDS, grain and orbax speak of their own affairs here, with a traceback for every error that they also raise.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='replace')  # where it takes ASCII only: ? for what it cannot show
  try:
    args = build_parser().parse_args(argv)
    empty = [name for name, value in vars(args).items() if value == '' or (isinstance(value, list) and '' in value)]
    if empty:  # a variable of a script that is not set
      raise UserError(f'{empty[0].replace("_", "-")} is empty; give a value')
    _set_malloc(keep=args.command != 'convert')
    result = args.run(args)
    if args.json:
      print(json.dumps(result))
    sys.stdout.flush()
    return 0
  except UserError as error:
    return _fail(str(error))
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - the reader left; nothing more may be written at exit
    return 0
  except Preempted as error:  # on all hosts at one step
    return _say(str(error), os.EX_TEMPFAIL)
  except OSError as error:
    if error.errno not in REMEDIES:
      raise
    return _fail(f'{error.filename or "disk"}: {error.strerror}; {REMEDIES[error.errno]}')


def _fail(message, status=2) -> int:
  _say(message, status)
  hosts.leave(status, message)
  return status


def _say(message, status) -> int:
  print(f'mathqwen: {" ".join(message.split())}', file=sys.stderr)
  return status
