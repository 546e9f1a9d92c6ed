r"""`Example`: a math problem, in the same form whatever file it comes from.

gsm8k/train.jsonl.gz:1   {"question": "Natalia sold ...", "answer": "... <<48/2=24>>24 clips ...\n#### 72"}
Example                  id 'gsm8k/train/0', solution '... 24 clips ...\n#### 72', answer '72'

The rows of a named data set are read by its file in `mathqwen/evals/tasks/`; all others have one of `shapes.SHAPES`.
"""

import collections
import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from mathqwen import files
from mathqwen.data import catalog, formats, line_ranges, pair_shapes, published, shapes
from mathqwen.data.left_out import Report
from mathqwen.data.line_ranges import LineRange
from mathqwen.data.malformed import Malformed, check_text
from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem, as text."""

  id: str  # unique among the examples of a file
  question: str
  solution: str  # what the assistant should say
  answer: str  # the gold answer as graders compare it; '' where the source has none
  extra: dict  # further fields of the source, for grouping scores
  where: str  # file name, as `names_of` has it, and line, counted from 1: 'train.jsonl:18'
  messages: tuple[dict, ...] | None = None  # the conversation, where the source is one
  # Of a pair: what the assistant should not say, in place of `solution`; a conversation in place of `messages`.
  rejected: str | tuple[dict, ...] | None = None
  tools: tuple[dict, ...] | None = None  # that the conversation may call


# --- files ---


def find(source: str, split: str, data_dir: str | files.AnyPath) -> files.AnyPath:
  """The file of one split in a directory that has the layout of its `Split.files`.

  UserError: when none of those files is there (the message has the paths tried), or the data set has no such split.
  """
  data, own_split = catalog.find_split(source, split)
  folder = files.path(data_dir)
  tried = []
  for name in data.splits[own_split].files:
    tried += [folder / name, folder / f'{name}.gz']
  for path in tried:
    if path.is_file():
      return path
  names = ', '.join(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for path in tried)
  raise UserError(f'no {source} {split} data in {data_dir}: tried {names}; put one there or pass another --data-dir')


def companion(path: files.AnyPath, data: catalog.DataSet | None) -> files.AnyPath | None:
  """The file with the ids of the rows of `path`: math/train_paths.txt[.gz] beside math/train.jsonl[.gz]."""
  if data is None or not data.ids_beside:
    return None
  name = data.ids_beside.format(stem=path.name.split('.')[0])
  for beside in (path.with_name(name), path.with_name(f'{name}.gz')):
    if beside.is_file():
      return beside
  return None


# --- from records to examples ---


def names_of(paths: Sequence[files.AnyPath]) -> dict[files.AnyPath, str]:
  """{path: what the files of one source are called where their rows are named}.

  The name of the file; of files that share it, as MATH/algebra/1.json and MATH/geometry/1.json do, the path below the
  folder that all of them are in: algebra/1.json.
  """
  counts = collections.Counter(path.name for path in set(paths))
  names = {path: path.name for path in paths}
  shared = [path for path in names if counts[path.name] > 1]
  if shared:
    above = shared[0].parent
    while not all(path.is_relative_to(above) for path in names):
      above = above.parent
    names |= {path: str(path.relative_to(above)) for path in shared}
  return names


def parse_files(
  paths: Sequence[files.AnyPath],
  source: str,
  split: str,
  columns: Mapping[str, str] | None = None,
  any_turns: bool = False,
  pairs: bool = False,
) -> tuple[list[Example], Report]:
  """`parse_file` of several files, as if they were one. Other arguments: as `stream_files`."""
  report = Report()
  found = stream_files(paths, source, split, report, columns, any_turns, pairs=pairs)
  return list(_with_unique_ids(found, report)), report


def parse_file(path: files.AnyPath, source: str, split: str) -> tuple[list[Example], Report]:
  """(the readable records of a file, duplicates too; a report of the malformed ones and of repeated ids).

  source: the name of a data set, whose parser is used; any other text stands for a file in one of `shapes.SHAPES`.
  UserError: when no record is readable.
  """
  return parse_files([path], source, split)


def stream_files(
  paths: Sequence[files.AnyPath],
  source: str,
  split: str,
  report: Report,
  columns: Mapping[str, str] | None = None,
  any_turns: bool = False,
  part: LineRange | None = None,
  pairs: bool = False,
  names: Mapping[files.AnyPath, str] | None = None,
) -> Iterator[Example]:
  """The readable records of files, one after another; the others are added to `report`. Ids may repeat.

  columns, any_turns: as in `shapes.read`. part: of a user's file; None reads all of it. pairs: read a user's file in
  one of `pair_shapes.SHAPES`. A user's file is read as a stream, that of a named data set as a whole.
  names: `names_of` all files of the source, where `paths` are some of them; None: they are all.
  UserError: when none of the files has rows, or readable ones, or a column that the user names; or when one has several
  rows and none of them is readable, which is a file in another form. One that is a single row, as in MATH, is a row
  like others: it may be malformed.
  """
  data = catalog.of_source(source)
  names = names or names_of(paths)
  are_all = len(names) == len(set(paths)) and part is None
  has_rows = has_readable = False
  first_refusal = ''
  for path in paths:
    if data is not None:
      prefix = f'{catalog.name_of(source)}/{split}'
      rows, refusal = yield from _rows_of_data_set(path, names[path], data, prefix, report)
    else:
      of = pair_shapes if pairs else shapes
      rows, refusal = yield from _rows_of_user(path, names[path], columns or {}, any_turns, report, part, of)
    if refusal and (rows > 1 or len(names) == 1):
      raise UserError(refusal)
    has_rows |= rows > 0
    has_readable |= rows > 0 and not refusal
    first_refusal = first_refusal or refusal
  if are_all and paths and not has_rows:
    of_many = f'{paths[0]}: none of the {len(paths):,} files has rows; fetch or write them again'
    raise UserError(f'{paths[0]} has no rows; fetch or write it again' if len(paths) == 1 else of_many)
  if are_all and first_refusal and not has_readable:
    raise UserError(first_refusal)
  if are_all and data is None:
    report.check_columns(str(paths[0]) if len(paths) == 1 else source, columns or {})


class _Outcome(NamedTuple):
  """What became of a file."""

  rows: int
  refusal: str  # what is wrong with its rows, when that is the same with all; otherwise ''


def _rows_of_data_set(
  path: files.AnyPath, name: str, data: catalog.DataSet, prefix: str, report: Report
) -> Generator[Example, None, _Outcome]:
  """As `_read_rows`."""
  rows = list(formats.records(path, data.header))
  file_ids = _ids_beside(path, data, len(rows))
  more = data.more_fields(rows, report) if data.more_fields else None

  def fields_of(row: int, record: object, where: str) -> dict:
    fields = data.parse(_object(record, more[row] if more else {}))
    if file_ids:
      fields['id'] = file_ids[row]
    elif data.numbered and fields.get('id') is not None:
      fields['id'] = f'{prefix}/{fields["id"]}'
    return fields

  return (yield from _read_rows(path, name, rows, fields_of, prefix, lambda _: ', '.join(data.fields), report))


def _rows_of_user(
  path: files.AnyPath,
  name: str,
  columns: Mapping[str, str],
  any_turns: bool,
  report: Report,
  part: LineRange | None,
  of: ModuleType,
) -> Generator[Example, None, _Outcome]:
  """As `_read_rows`. of: has the shapes of the records, `shapes` or `pair_shapes`."""
  absent = set(columns.values()) - report.columns

  def fields_of(row: int, record: object, where: str) -> dict:
    record = _object(record)
    if absent:
      found = absent & record.keys()
      absent.difference_update(found)
      report.columns.update(found)
    fields, shape, unread = shapes.read(record, columns, any_turns, of.SHAPES)
    report.shapes[str(shape)] += 1
    for name in unread:
      report.unread.setdefault(name, where)
    return fields

  prefix = re.sub(r'(\.jsonl)?(\.gz)?$', '', name)
  rows = formats.records(path) if part is None else line_ranges.records(path, part)
  if not columns and of is shapes:  # otherwise a row is what these say
    rows = published.expanded(rows)
  first_row = 0 if part is None else part.first - 1
  return (yield from _read_rows(path, name, rows, fields_of, prefix, of.expected, report, first_row))


def _read_rows(
  path: files.AnyPath,
  name: str,
  rows: Iterable[formats.Record],
  fields_of: Callable,
  prefix: str,
  expected: Callable[[dict | None], str],
  report: Report,
  first_row: int = 0,
) -> Generator[Example, None, _Outcome]:
  """An example of each readable row. A file without rows is added to the report.

  name: of the file, in `where`. fields_of: (row, record, where) -> fields, or raises Malformed. expected: the first
  object -> what it should have.
  """
  row = first_row - 1
  readable = False
  first_object = first_trouble = None
  for row, (line, record) in enumerate(rows, first_row):
    where = f'{name}:{line}'
    if first_object is None and isinstance(record, dict):
      first_object = record
    try:
      fields = fields_of(row, record, where)
    except Malformed as error:
      report.add(error.kind, where, str(error))
      readable = readable or error.kind != Malformed.kind
      first_trouble = first_trouble or f'{where} ({error})'
      continue
    readable = True
    example_id = fields.pop('id', None)
    yield Example(id=f'{prefix}/{row}' if example_id is None else example_id, where=where, **fields)

  if row < first_row:
    report.add('empty_file', name, 'no rows')
    return _Outcome(0, '')
  rows_read = row + 1 - first_row
  if readable:
    return _Outcome(rows_read, '')
  found = '' if first_object is None else f'fields found: {shapes.names_of(first_object)}; '
  trouble = f'{path}: no usable record among {rows_read}: {first_trouble}; {found}expected: '
  return _Outcome(rows_read, trouble + expected(first_object))


def _with_unique_ids(examples: Iterable[Example], report: Report) -> Iterator[Example]:
  """The examples; a repeated id gets a new name and is reported."""
  ids = _UniqueIds(report)
  for example in examples:
    unique = ids.add(example.id, example.where)
    yield example if unique == example.id else dataclasses.replace(example, id=unique)


def generated(source: str, split: str) -> Iterator[Example] | None:
  """The examples of a split that is made rather than read, one after another; None when it has files.

  UserError: when its options make no sense; from the iterator, when there are not as many examples as it asks for.
  """
  data, own_split = catalog.find_split(source, split)
  make = data.splits[own_split].generate
  if make is None:
    return None
  rows = enumerate(make())
  return (
    Example(id=f'{data.name}/{split}/{row}', where=f'{source}:{row + 1}', **data.parse(record)) for row, record in rows
  )


class _UniqueIds:
  """Gives a repeated id a new name, 'ID#2', 'ID#3', ..., and reports it."""

  def __init__(self, report: Report):
    self._report = report
    self._used: dict[str, str] = {}  # id -> where it was first
    self._last: dict[str, int] = {}  # id -> the last number given to a repetition, so that the next search is short

  def add(self, example_id: str, where: str) -> str:
    """The id to use."""
    if example_id in self._used:
      self._report.add('repeated_id', where, f'id {example_id!r} is already in {self._used[example_id]}')
      example_id = self._free_name(example_id)
    self._used[example_id] = where
    return example_id

  def _free_name(self, example_id: str) -> str:
    number = self._last.get(example_id, 1)
    while (name := f'{example_id}#{number + 1}') in self._used:
      number += 1
    self._last[example_id] = number
    return name


def _ids_beside(path: files.AnyPath, data: catalog.DataSet, count: int) -> list[str] | None:
  """The ids in the file's companion; None when there is none, or it does not fit `count` rows."""
  beside = companion(path, data)
  if beside is None:
    return None
  ids = formats.read_text(beside).split()
  fits = len(ids) == count and len(set(ids)) == count
  return ids if fits else None


def _object(record: object, more: Mapping = {}) -> dict:  # noqa: B006 - it is only read
  """The record, with the fields of `more` that it lacks. Malformed: when it is no object, or holds no text."""
  if isinstance(record, Malformed):
    raise record
  if isinstance(record, str) and record.lstrip().startswith('{'):  # JSON that was encoded twice
    with contextlib.suppress(ValueError, RecursionError):
      record = json.loads(record)
  if not isinstance(record, dict):
    raise Malformed('not a JSON object')
  check_text(record)
  return {**more, **record}
