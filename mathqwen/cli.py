"""The command line: finds the commands in `mathqwen/commands`, runs one, and turns errors into exit statuses.

0 done; 2 an error the user can fix, in one line; 75 interrupted in a way that running it again continues, for `train`
also by Ctrl-C; 130 Ctrl-C; 1, with a traceback, a defect of ours.
"""

import atexit
import importlib
import importlib.metadata
import io
import logging
import os
import signal
import sys

import mathqwen
from mathqwen import commands, strict_json
from mathqwen.commands import _flags, _malloc
from mathqwen.errors import Preempted, UserError, explain_os_error, report
from mathqwen.hardware import hosts

_LONGEST = 10_000  # characters of an error


def build_parser() -> _flags.Parser:
  """The parser of the whole command line, with every command in `mathqwen/commands`."""
  parser = _flags.Parser(prog='mathqwen', description='Math models of the Qwen family with JAX and Flax on TPU pods.')
  # Read from JAX's metadata: importing JAX would take a second, for every command.
  version = f'mathqwen {mathqwen.__version__}, jax {importlib.metadata.version("jax")}'
  parser.add_argument('--version', action='version', version=version, help='print the versions of mathqwen and JAX')
  parser.set_defaults(json=False)
  parsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=_flags.Parser)
  for name in commands.names():
    module = importlib.import_module(f'{commands.__name__}.{name}')
    module.add_flags(_flags.add_command(parsers, name, module.HELP, getattr(module, 'run', None)))
  return parser


def main(argv: list[str] | None = None) -> int:
  """Runs one command. Returns its exit status; raises only for a defect of ours.

  argv: the words after `mathqwen`; None takes those of this process.
  """
  # TFDS, grain and orbax log here, with a traceback for every error that they also raise; asyncio for every part of a
  # checkpoint whose writing failed, after the first.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='replace')  # a terminal that takes only ASCII gets ? for the rest
  try:
    args = build_parser().parse_args(argv)
    _refuse_empty(args)
    _malloc.tune(keep=args.command != 'convert')
    result = args.run(args)
    if args.json:
      print(strict_json.dumps(result))
    sys.stdout.flush()
    return 0
  except UserError as error:
    return _fail(str(error))
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:
    # Whoever read our output has left, for example `head`: nothing more can be written, not even at exit.
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    return 0
  except SystemExit as end:  # of --help, and of a conversion that SIGTERM has ended
    hosts.leave(end.code or 0, 'stopped by SIGTERM')
    raise
  except Preempted as error:  # raised on all hosts, so none needs to tell the others
    return _print_error(str(error), os.EX_TEMPFAIL)
  except OSError as error:
    message = explain_os_error(error)
    if message is None:
      raise
    return _fail(message)


def program() -> None:
  """The console script: `main`, and the end of the process."""
  hosts.own_process()
  status = main()
  if status == 130:
    # XLA may be compiling in threads of its own and crash when the interpreter ends under them. `atexit` runs after
    # Python's own threads, such as those that save checkpoints, have ended.
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.register(os._exit, status)
  else:
    # The command has ended: Ctrl-C would only stop what other packages clean up, with a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
  sys.exit(status)


def _refuse_empty(args):
  """An empty argument is most likely a shell variable that is not set."""
  for name, value in vars(args).items():
    if value == '' or (isinstance(value, list) and '' in value):
      raise UserError(f'{name.replace("_", "-")} is empty; give a value')


def _fail(message: str, status: int = 2) -> int:
  _print_error(message, status)
  hosts.leave(status, message)  # when this is one of several hosts, the others end too
  return status


def _print_error(message: str, status: int) -> int:
  line = ' '.join(message.split())[:_LONGEST]
  # A name from a damaged file may hold anything, such as sequences that clear a terminal.
  report('mathqwen: ' + ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
  return status
