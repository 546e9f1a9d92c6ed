"""`mathqwen configs`, and configs/README.md, which `python -m mathqwen.commands.configs > configs/README.md` writes."""

import argparse
import textwrap

from mathqwen import config_files
from mathqwen.commands import _flags

HELP = 'the experiments in configs/; with a name, all settings of one'


def add_flags(parser: _flags.Parser) -> None:
  """Adds the optional NAME."""
  parser.add_argument(
    'config',
    nargs='?',
    type=_flags.path,
    metavar='NAME',
    help='a name in configs/, or the path of a Python file that defines `config` (default: lists the names)',
  )


def run(args: argparse.Namespace) -> dict:
  """Lists the experiments, or shows one. The JSON: `configs`, or `name`, `summary` and `settings`."""
  return _list() if args.config is None else _show(args.config)


def _list() -> dict:
  found = [{'name': name, 'summary': config_files.summary(name)} for name in config_files.names()]
  width = max(len(entry['name']) for entry in found)
  for entry in found:
    print(f'{entry["name"]:{width}}  {entry["summary"]}')
  return {'configs': found}


def _show(name: str) -> dict:
  """Prints the settings of one experiment, by section. Returns the JSON of the command."""
  from mathqwen import config
  from mathqwen.settings import to_flat

  values = to_flat(config.load(name))
  settings = []
  print(config_files.summary(name))
  for title, names in _sections().items():
    print(f'\n{title}')
    for setting_name in names:
      entry = _entry(setting_name, config.SETTINGS[setting_name]) | {'value': values[setting_name]}
      settings.append(entry)
      _print_setting(entry)
  return {'name': name, 'summary': config_files.summary(name), 'settings': settings}


def _sections() -> dict[str, list[str]]:
  """{title: names of its settings}: a section for each dataclass of an Experiment, with its docstring as title."""
  import typing

  from mathqwen import config

  found = {'Where it starts': [name for name in config.SETTINGS if '.' not in name]}
  for field, cls in typing.get_type_hints(config.Experiment).items():
    names = [name for name in config.SETTINGS if name.startswith(f'{field}.')]
    if names:
      title = ' '.join(cls.__doc__.split()).removesuffix('.')
      found[title] = names
  return found


def _entry(name: str, declaration) -> dict:
  """What is known about a setting, as JSON."""
  from mathqwen import settings

  return {
    'name': name,
    'default': declaration.default,
    'required': declaration.required,
    'help': declaration.help,
    'type': settings.type_name(declaration.kind),
    'allowed': declaration.allowed(),
    'may_change_on_resume': declaration.resume(),
    'changes_weights': declaration.changes_weights,
  }


def _print_setting(entry: dict):
  text = '; '.join(part for part in (entry['help'], entry['allowed']) if part)
  if entry['may_change_on_resume'] != 'no':
    text += f' [may change on resume{entry["may_change_on_resume"].removeprefix("yes")}]'
  print(f'  {entry["name"]} = {_value_text(entry["value"])}')
  print(textwrap.fill(text, 110, initial_indent=' ' * 6, subsequent_indent=' ' * 6))


def _value_text(value) -> str:
  """A value as `--set` takes it."""
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


README = """# Experiments

Each Python file here defines one experiment, `config = Experiment(...)`. The first line of its docstring says what it
is; the commands below that line run it. `mathqwen configs` lists them, `mathqwen configs NAME` shows the value of every
setting. `--set train.steps=100` changes a setting of one run. An experiment of your own is a file like these, anywhere,
given by its path.

{experiments}

## Settings

*On resume* says whether a run that continues in its `--workdir` may have another value; a change that it may not have
is refused. Settings with "yes" give the same weights with any value, up to rounding{exceptions}. The help says
where that has a condition.

To add a setting, declare it with `setting(...)` in `mathqwen/config.py` (or `mathqwen/model/config.py`) and read it
where it acts: its checks, `--set`, the help and this page follow from the declaration.

This page is generated: `python -m mathqwen.commands.configs > configs/README.md` writes it again.
"""


def readme() -> str:
  """The text of configs/README.md: the experiments, and every setting as its field declares it."""
  from mathqwen import config

  experiments = '\n'.join(f'- `{name}`: {config_files.summary(name)}' for name in config_files.names())
  free = [name for name, d in config.SETTINGS.items() if d.resume() == 'yes' and d.changes_weights]
  exceptions = f', except `{"`, `".join(free)}`' if free else ''
  page = [README.format(experiments=experiments, exceptions=exceptions)]
  for title, names in _sections().items():
    page.append(f'### {title}\n')
    page.append('| setting | default | value | on resume | help |')
    page.append('|---|---|---|---|---|')
    page += [_readme_row(_entry(name, config.SETTINGS[name])) for name in names]
    page.append('')
  return '\n'.join([*page, *_options_of_sources()])


def _options_of_sources() -> list[str]:
  """The lines about what a name in `data.sources` may carry."""
  from mathqwen import settings
  from mathqwen.data import catalog

  lines = [
    '### Options of named data sets',
    '',
    'They follow the name in `data.sources`: `gsm8k?marks=keep`, `arithmetic?count=200000&seed=1&groups=div+log`.',
    '',
    '| option | default | value | help |',
    '|---|---|---|---|',
  ]
  for source, options in catalog.options().items():
    for name, option in settings.declared(options).items():
      value = ', '.join(part for part in (settings.type_name(option.kind), option.allowed()) if part)
      default = f'`{option.default}`' if option.default != '' else 'empty'
      lines.append(f'| `{source}?{name}` | {default} | {value} | {option.help} |')
  return [*lines, '']


def _readme_row(entry: dict) -> str:
  if entry['required']:
    default = 'none: must be given'
  else:
    default = f'`{_value_text(entry["default"])}`' if _value_text(entry['default']) else 'empty'
  value = ', '.join(part for part in (entry['type'], entry['allowed']) if part)
  return f'| `{entry["name"]}` | {default} | {value} | {entry["may_change_on_resume"]} | {entry["help"]} |'


if __name__ == '__main__':
  print(readme(), end='')
