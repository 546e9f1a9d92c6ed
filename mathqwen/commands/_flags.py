"""The parser of the command line, and flags that several commands share."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hardware import devices

DTYPES = ('bfloat16', 'float32')
WEIGHTS = ('int8',)


class Parser(argparse.ArgumentParser):
  """Raises `UserError` with one line, where argparse would print its usage and exit.

  intermixed: whether flags may stand among words such as MODEL and the questions; argparse does not allow it for a
  command that has verbs. Without it, a list of words after a flag is not recognized.
  """

  intermixed = False

  def parse_known_args(self, args=None, namespace=None):
    """As in argparse, which also calls this for the parser of each command."""
    if not self.intermixed:
      return super().parse_known_args(args, namespace)
    self.intermixed = False  # below Python 3.12, parsing intermixed arguments calls this again
    try:
      return self.parse_known_intermixed_args(args, namespace)
    finally:
      self.intermixed = True

  def error(self, message: str) -> NoReturn:
    """UserError: with `message`, and the --help that explains it."""
    hint = ''
    if message.startswith('unrecognized arguments: -'):
      hint = '; write -- before a question that begins with -'
    raise UserError(f'{message} (see {self.prog} --help{hint})')


def path(text: str) -> str:
  """The type of a flag that names a file or folder, local or on gs://: `text`, once its scheme is checked."""
  try:
    files.check_scheme(text)
  except UserError as error:
    raise argparse.ArgumentTypeError(str(error)) from None
  return text


def model_path(text: str) -> str:
  """The type of a flag that names a MODEL: as `path`; or hf://ORGANISATION/NAME."""
  return text if text.startswith(files.HUB) else path(text)


def flag(name: str) -> str:
  """The flag of an argument: '--batch-size' of 'batch_size'."""
  return f'--{name.replace("_", "-")}'


def add_command(parsers: argparse._SubParsersAction, name: str, text: str, run: Callable | None = None) -> Parser:
  """Adds the command or verb `name` to `parsers`, which `add_subparsers` returned.

  text: its help. run: called with the parsed arguments; None when the verbs of the command have functions of their own.
  """
  parser = parsers.add_parser(name, help=text, description=text)
  # Without a default of its own: a verb's default would overwrite the --json that stands before the verb.
  parser.add_argument(
    '--json',
    action='store_true',
    default=argparse.SUPPRESS,
    help='print the result as one JSON object on the last line of standard output',
  )
  if run is not None:
    parser.set_defaults(run=run)
    parser.intermixed = True
  return parser


def add_verbs(parser: Parser, metavar: str) -> argparse._SubParsersAction:
  """Makes `parser` a command with verbs; `add_command` adds each of them to what this returns."""
  parser.intermixed = False
  return parser.add_subparsers(dest='verb', required=True, metavar=metavar, parser_class=Parser)


def add_config(parser: Parser, optional: bool = False) -> None:
  """Adds CONFIG, as `config.load` takes it. optional: another flag may stand for it."""
  parser.add_argument(
    'config',
    nargs='?' if optional else None,
    type=path,
    metavar='CONFIG',
    help='a name in configs/ (see `mathqwen configs`), or the path of a Python file that defines `config`',
  )


def add_setting(parser: Parser, flag: str, name: str, metavar: str) -> None:
  """Adds the flag that sets the setting `name`; the setting's declaration has the help."""
  from mathqwen.config import SETTINGS

  declaration = SETTINGS[name]
  kind = {'path': path, 'model': model_path, '': None}[declaration.path]
  parser.add_argument(flag, type=kind, metavar=metavar, help=f'setting {name}: {declaration.help}')


def add_map(parser: Parser) -> None:
  """Adds --map, a short form of --set data.columns=..."""
  from mathqwen.config import SETTINGS

  parser.add_argument(
    '--map',
    action='append',
    default=[],
    dest='settings',
    type='data.columns={}'.format,
    metavar='FIELD=COLUMN,...',
    help=f'setting data.columns: {SETTINGS["data.columns"].help}',
  )


def add_settings(parser: Parser, more: str = '') -> None:
  """Adds --set. more: what else its help says."""
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    dest='settings',
    metavar='A.B=VALUE',
    help='change a setting, for example train.steps=100; may be repeated. `mathqwen configs CONFIG` lists all settings '
    f'with their values, help and bounds{more}',
  )


def add_model(parser: Parser, more: str = '') -> None:
  """Adds MODEL, as `storage.source.open_source` takes it. more: what else its help says."""
  parser.add_argument(
    'model',
    type=model_path,
    metavar='MODEL',
    help=f"a Hugging Face directory, a model on its hub, or a run's --workdir{more}",
  )


def add_chat(parser: Parser) -> None:
  """Adds --template and --system, as `ChatFormat.changed` takes them."""
  parser.add_argument(
    '--template',
    type=path,
    metavar='NAME',
    help='how turns become text: chatml, own (the chat template of MODEL), or a Jinja file (default: what a run or its '
    'export was trained with; own for a published chat model, chatml for a base model)',
  )
  parser.add_argument(
    '--system', metavar='TEXT', help="the system turn before each question (default: the model's, if it has one)"
  )


def add_platform(parser: Parser) -> None:
  """Adds --platform, as `devices.choose` takes it. Every command that computes has it."""
  parser.add_argument(
    '--platform',
    choices=devices.PLATFORMS,
    help='what to compute on. auto (default) takes what JAX_PLATFORMS names, else the TPU or GPU of this machine, and '
    'ends with the reason when that cannot be used',
  )


def add_distributed(parser: Parser, what: str) -> None:
  """Adds --distributed, as `hosts.join` takes it, and --slice. what: what several hosts do together, for the help."""
  parser.add_argument(
    '--distributed',
    nargs='?',
    const='auto',
    metavar='HOST:PORT,N,I',
    help=f'{what}: give this flag on each of them. A TPU pod slice needs no value; elsewhere name the address of host '
    '0, the number of processes, and the number of this one, from 0',
  )
  parser.add_argument(
    '--slice', metavar='SLICE', help='the TPU slice that this must run on, such as v5p-32 or 2xv5p-32: no chip less'
  )


def add_dtype(parser: Parser) -> None:
  """Adds --dtype, without a default: the platform decides; and --weights."""
  parser.add_argument(
    '--dtype', choices=DTYPES, help='of weights and activations (default: bfloat16; float32 on a CPU)'
  )
  add_weights(parser)


def add_weights(parser: argparse._ActionsContainer) -> None:
  """Adds --weights."""
  parser.add_argument(
    '--weights',
    choices=WEIGHTS,
    help='hold the matrices, the embedding and the head in int8 with a scale for each row (default: in --dtype)',
  )
