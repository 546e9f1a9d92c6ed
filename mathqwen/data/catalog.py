"""The data sets that have a name: their files, where those come from, and how one row is read.

Each data set is described in a file of `mathqwen/evals/tasks/`, next to the benchmark that is made from it. Such a file
is loaded by its path, as `config.load` loads the files in configs/, so nothing in data/ imports evals/. Files in the
folders that $MATHQWEN_TASKS names (separated by ':') are found in the same way.

    get('gsm8k').downloads              {'gsm8k/train.jsonl': Download('https://...', '17f347dc...'), ...}
    find_split('math500', 'test')       (the data set `math`, 'test500')

Users call a data set by its name, with options where it declares some: 'gsm8k', 'gsm8k?marks=keep', 'math500'.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from mathqwen import files
from mathqwen.errors import UserError, line_of
from mathqwen.settings import check_fields, declared, did_you_mean, type_name

TASKS = pathlib.Path(__file__).parents[1] / 'evals' / 'tasks'
FOLDERS = 'MATHQWEN_TASKS'
_LAST = 100  # the ORDER of a task file that does not have one


@dataclasses.dataclass(frozen=True)
class Download:
  """One public file."""

  address: str
  sha256: str | None  # None: no checksum is on record, so the address has to name a commit


@dataclasses.dataclass(frozen=True)
class Split:
  """Where the rows of one split are."""

  # Paths below the data directory. The first one that exists is read; each may also end in .gz.
  files: tuple[str, ...] = ()
  # The (data set, split) that users know this split by, if it is not this data set's name and this split's own.
  known_as: tuple[str, str] | None = None
  # Makes the rows of a split without files: a value of `DataSet.options` -> JSON objects
  generate: Callable[[Any], Iterable[dict]] | None = None


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A named data set. Without `downloads` and `withdrawn` it is only read from a directory that the user gives."""

  name: str
  about: str
  licence: str
  splits: Mapping[str, Split]
  # A JSON object -> fields of examples.Example; raises Malformed. With `options` and files, it takes a value of
  # `options` as second argument, and `of_source` and `find_split` give it only the first to be called with.
  parse: Callable[..., dict]
  fields: tuple[str, ...]  # what a row has, for error messages
  header: tuple[str, ...] = ()  # names of the columns, where the published table has no line with them
  homepage: str = ''
  options: type | None = None  # a dataclass of `settings.setting` fields, each with a default: NAME?FIELD=VALUE&...
  downloads: Mapping[str, Download] = dataclasses.field(default_factory=dict)  # path below the data directory -> source
  withdrawn: str = ''  # why nothing can be downloaded, for messages: `data prepare` then takes the user's own copy
  # Published files that are not those of `splits`: (folder with them, folder to write to) -> makes those of `splits`.
  unpack: Callable[[files.AnyPath, pathlib.Path], None] | None = None
  packed: tuple[str, ...] = ()  # what `unpack` reads, where it is not `downloads`
  ids_beside: str = ''  # name of a file with one id per row: '{stem}_paths.txt' beside train.jsonl is train_paths.txt
  numbered: bool = False  # rows have ids that are unique within a split only, so NAME/SPLIT/ is put before them
  # Fields that rows lack and that follow from their position: one dict for each row, or None. Problems are reported.
  more_fields: Callable[[list, object], list[dict] | None] | None = None
  missing: str = ''  # what to do when no data directory is given and there is nothing to download

  @property
  def is_prepared(self) -> bool:
    """Whether `mathqwen data prepare` takes it."""
    return bool(self.downloads or self.withdrawn)


def names() -> list[str]:
  """Every name that `find_split` knows, in the order of lists and tables."""
  found = []
  for data in _data_sets().values():
    others = [split.known_as[0] for split in data.splits.values() if split.known_as]
    found += [data.name, *others]
  return found


def downloadable() -> list[str]:
  """The names of the data sets that can be downloaded."""
  return [data.name for data in _data_sets().values() if data.downloads]


def prepared() -> list[str]:
  """The names of the data sets that `mathqwen data prepare` takes."""
  return [data.name for data in _data_sets().values() if data.is_prepared]


def options() -> dict[str, type]:
  """The options of each data set that has some: the dataclass that declares them."""
  return {data.name: data.options for data in _data_sets().values() if data.options}


def get(name: str) -> DataSet:
  """The data set of that name. UserError: when there is none that `mathqwen data prepare` takes."""
  data = _data_sets().get(name)
  if data is None or not data.is_prepared:
    raise UserError(f'unknown data set {name!r}: the names are {", ".join(prepared())}')
  return data


def find_split(source: str, split: str) -> tuple[DataSet, str]:
  """The data set and its split that users call `source` and `split`, with the options of `source`.

  UserError: when it has no such split, or `source` has an option that it cannot have.
  """
  name = name_of(source)
  known = {}
  for data in _data_sets().values():
    for own, found in data.splits.items():
      known[found.known_as or (data.name, own)] = (data, own)
  if (name, split) not in known:
    splits = [known_split for other, known_split in known if other == name]
    raise UserError(f'{name} has no split {split!r}: it has {", ".join(splits)}')
  data, own = known[name, split]
  return _with_options(data, source), own


def of_source(source: str) -> DataSet | None:
  """The data set that holds the splits of `source`, with its options; None when no data set has that name.

  UserError: when it cannot have one of the options.
  """
  name = name_of(source)
  for data in _data_sets().values():
    if name == data.name or any(split.known_as and split.known_as[0] == name for split in data.splits.values()):
      return _with_options(data, source)
  return None


def name_of(source: str) -> str:
  """The part before the options: 'gsm8k' of 'gsm8k?marks=keep'."""
  return source.partition('?')[0]


def options_of(data: DataSet, source: str) -> str:
  """The options of a source that differ from their defaults, in one spelling: 'marks=keep', or ''.

  data: what `find_split` or `of_source` returned for that source.
  """
  options = _parse_options(data, source)
  if options is None:
    return ''
  changed = [name for name, option in declared(data.options).items() if getattr(options, name) != option.default]
  return '&'.join(f'{name}={getattr(options, name)}' for name in changed)


def _with_options(data: DataSet, source: str) -> DataSet:
  """The data set whose functions have the options of `source`."""
  options = _parse_options(data, source)
  if options is None:
    return data
  splits = {}
  for name, split in data.splits.items():
    make = split.generate and functools.partial(split.generate, options)
    splits[name] = dataclasses.replace(split, generate=make)
  generated = any(split.generate for split in splits.values())
  parse = data.parse if generated else functools.partial(data.parse, options=options)
  return dataclasses.replace(data, splits=splits, parse=parse)


def _parse_options(data: DataSet, source: str) -> Any:
  """The value of `data.options` that the text after '?' describes; None when the data set has no options."""
  name, mark, text = source.partition('?')
  known = declared(data.options) if data.options else {}
  found = {}
  for part in text.split('&') if mark else ():
    field, separator, value = part.partition('=')
    if not separator:
      raise UserError(f'{source}: {part!r} is not OPTION=VALUE; a pattern of file names begins with ./')
    if field not in known:
      hint = did_you_mean(field, known) if known else '; it has none'
      raise UserError(f'{source}: {name} has no option {field!r}{hint}')
    if field in found:
      raise UserError(f'{source} names the option {field} twice: leave one of them')
    try:
      found[field] = known[field].parse(field, value)
    except UserError:
      raise UserError(f'{source}: {field} must be {type_name(known[field].kind)}') from None
  if data.options is None:
    return None
  options = data.options(**found)
  check_fields(options, f'{name}?')
  return options


def known_name(data: DataSet, split: str) -> tuple[str, str]:
  """(source, split) as users call it: ('math500', 'test') for the split 'test500' of MATH."""
  return data.splits[split].known_as or (data.name, split)


# --- the task files ---


def task_files() -> list[ModuleType]:
  """The modules of all task files, by their ORDER and then by name. UserError: when one cannot be loaded."""
  return _load_all(os.environ.get(FOLDERS, ''))


@functools.cache
def _load_all(folders: str) -> list[ModuleType]:
  """The task files of this package, then those of `folders` (separated by os.pathsep), by their ORDER."""
  modules = []
  for path in sorted(TASKS.glob('*.py')):
    if not path.name.startswith('_'):
      modules.append(importlib.import_module(f'mathqwen.evals.tasks.{path.stem}'))
  for folder in filter(None, folders.split(os.pathsep)):
    if not pathlib.Path(folder).is_dir():
      raise UserError(f'{FOLDERS} names {folder}, which is not a directory; give folders with task files')
    modules += [_load_file(path) for path in sorted(pathlib.Path(folder).glob('*.py'))]
  return sorted(modules, key=lambda module: getattr(module, 'ORDER', _LAST))


def _load_file(path: pathlib.Path) -> ModuleType:
  """A user's own task file, as a module with a name that no other module has."""
  name = f'mathqwen_task_{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look up the module of a class there
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # whatever a user's own file may raise
    raise UserError(f'{path}:{line_of(error, path)}: {type(error).__name__}: {error}; correct the task file') from error
  return module


def _data_sets() -> dict[str, DataSet]:
  """Every DATA of the task files by its name. A file without one has a benchmark on another file's data."""
  found: dict[str, DataSet] = {}
  for module in task_files():
    data = getattr(module, 'DATA', None)
    if data is None:
      continue
    if not isinstance(data, DataSet):
      raise UserError(f'{module.__file__}: DATA must be a DataSet, not {type(data).__name__}')
    if found.setdefault(data.name, data) is not data:
      raise UserError(f'{module.__file__}: a data set {data.name!r} exists already; choose another name')
  return found
