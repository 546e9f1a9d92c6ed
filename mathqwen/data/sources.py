"""`load`: the examples of a data set by its name, of files by their path, or of a data set on the hub."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.config import DataConfig
from mathqwen.data import catalog, examples, folders, hub_sets, origins, published, shapes, shard_card, tfds_sets
from mathqwen.data.examples import Example
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError

_NAMED = 5  # bad records that an error names


def load(
  source: str,
  split: str = 'train',
  data_dir: str | None = None,
  strict: bool = False,
  columns: Sequence[str] = (),
  any_turns: bool = False,
  pairs: bool = False,
) -> tuple[list[Example], Report]:
  """(examples of a data set, of a file, folder or pattern of files, or of hf://ORGANISATION/NAME; what was left out).

  split: of a data set or a folder; ignored for a file. data_dir: a local copy; None takes what `mathqwen data prepare`
  made. columns: `data.columns`, FIELD=COLUMN each; named data sets have their own. any_turns: keep turns and tools that
  ChatML does not have, for a chat template. pairs: read a chosen and a rejected answer, which no named data set has.

  Malformed records and duplicates are left out, and a repeated id is renamed; all of these are reported. With `strict`,
  for evaluation, nothing may be missing: duplicates stay (Math401 asks eight queries twice), and a malformed record, a
  record without an answer or a repeated id is a UserError.
  UserError: also when there is no such data.
  """
  if pairs:
    _refuse_without_pairs(source)
  if catalog.of_source(source) and (made := examples.generated(source, split)):
    report = Report()
    report.origin = origins.of(source)
    return list(made), report
  found, report, paths = _read_examples(source, split, data_dir, parse_columns(columns), any_turns, pairs)
  if strict:
    _refuse_bad(found, report, paths)
  kept = _without_duplicates(found, report)  # reports the duplicates in either case
  return found if strict else kept, report


def stream(
  source: str,
  report: Report,
  split: str = 'train',
  data_dir: str | None = None,
  columns: Sequence[str] = (),
  any_turns: bool = False,
  pairs: bool = False,
) -> Iterator[Example]:
  """The examples of a source, duplicates too, one after another: files of any size, in bounded memory.

  report: what cannot be read is added to it. Other arguments: as `load`. An id may repeat; `where` never does, within a
  file.
  UserError: when there is no such data, or a file is damaged, also after its first examples.
  """
  if pairs:
    _refuse_without_pairs(source)
  data = catalog.of_source(source)
  if data is not None and (made := examples.generated(source, split)):
    report.origin = origins.of(source)
    yield from made
  elif data is not None and data.is_prepared:
    found, read_report, _ = _read_examples(source, split, data_dir, {}, any_turns, pairs)
    report.merge(read_report)
    yield from found
  else:
    paths = find_files(source, split, data_dir, report)
    report.origin = origins.of(source, paths)
    yield from examples.stream_files(paths, source, split, report, parse_columns(columns), any_turns, pairs=pairs)


def _refuse_without_pairs(source: str) -> None:
  """UserError: when a source holds single answers, whatever is in it."""
  if catalog.of_source(source) is not None:
    raise UserError(
      f'{source} holds one answer to a question, and train.objective=dpo needs pairs: `mathqwen data augment {source} '
      '--pairs 1 --model MODEL --out DIR` makes them of the answers of a model, for data.sources=DIR/pairs.jsonl'
    )


def load_training(source: str, cfg: DataConfig, chat: ChatFormat, pairs: bool = False) -> tuple[list[Example], Report]:
  """`load` of one source of a config."""
  return load(source, 'train', cfg.data_dir, columns=cfg.columns, any_turns=chat.has_own_turns, pairs=pairs)


def stream_training(
  source: str, cfg: DataConfig, chat: ChatFormat, report: Report, pairs: bool = False
) -> Iterator[Example]:
  """`stream` of one source of a config."""
  return stream(source, report, 'train', cfg.data_dir, cfg.columns, chat.has_own_turns, pairs)


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
  """{'question': 'prob'} of ('question=prob',). UserError: when one is no FIELD=COLUMN, or they make no example."""
  found = {}
  for text in columns:
    field, _, column = text.partition('=')
    if not column:
      raise UserError(f'data.columns: {text!r} is not FIELD=COLUMN, as question=problem')
    if field not in shapes.COLUMNS:
      raise UserError(f'data.columns: there is no field {field!r}: use {", ".join(shapes.COLUMNS)}')
    if field in found:
      raise UserError(f'data.columns names {field} twice: leave one of them')
    found[field] = column
  is_example = 'messages' in found or ('question' in found and ('solution' in found or 'answer' in found))
  is_pair = 'chosen' in found and 'rejected' in found
  if found and not is_example and not is_pair:
    raise UserError(
      'data.columns needs question and solution (or answer), or messages, to make examples; to make pairs it needs '
      'chosen and rejected'
    )
  return found


def check_data_dir(cfg: DataConfig, data_dir: str | None, settings: Iterable[str]) -> None:
  """UserError: when the command line gives a data directory that nothing reads, because all sources are paths.

  data_dir, settings: of the command line. settings: texts 'a.b=value', or names.
  """
  given = data_dir is not None or any(text.partition('=')[0] == 'data.data_dir' for text in settings)
  if given and cfg.data_dir is not None and all(catalog.of_source(source) is None for source in cfg.sources):
    raise UserError(
      f'data.data_dir is {cfg.data_dir}: nothing reads it, because data.sources are paths of files '
      f"({', '.join(cfg.sources)}); the nearest setting that is read is 'data.sources'"
    )


def _read_examples(
  source: str, split: str, data_dir: str | None, columns: Mapping[str, str], any_turns: bool, pairs: bool
) -> tuple[list[Example], Report, dict[str, files.AnyPath]]:
  """(all readable examples, report, {the name of a file in `Example.where`: its path})."""
  data = catalog.of_source(source)
  if data is not None and data.is_prepared:
    from mathqwen.data import datasets  # imports TFDS, which takes seconds

    found, report, path = datasets.read(source, split, data_dir)
    report.origin = origins.of(source)
    return found, report, {path.name: path}

  report = Report()
  paths = find_files(source, split, data_dir, report)
  found, of_rows = examples.parse_files(paths, source, split, columns, any_turns, pairs)
  report.merge(of_rows)
  report.origin = origins.of(source, paths)
  return found, report, {name: path for path, name in examples.names_of(paths).items()}


def find_files(
  source: str, split: str, data_dir: str | None = None, left_out: Report | None = None
) -> list[files.AnyPath]:
  """The files that a source is read from, when it is not a data set that `mathqwen data prepare` keeps.

  left_out: files of a folder that are not read are added to it.
  UserError: when there are none.
  """
  data = catalog.of_source(source)
  if data is not None:
    return [_find_local(data, source, split, data_dir)]
  if hub_sets.is_hub(source):
    return hub_sets.data_files(source, split, left_out)
  if source.startswith(tfds_sets.PREFIX):
    return tfds_sets.data_files(source, split)
  return _paths_of_user(source, split, left_out)


def _paths_of_user(source: str, split: str, left_out: Report | None) -> list[files.AnyPath]:
  path = files.path(source)
  if not path.exists() and '/' not in source and '.' not in path.name and not set('*?[') & set(source):
    names = ', '.join([*catalog.names(), *published.names()])
    raise UserError(
      f'unknown data set {source!r}: the names are {names}, or give a file, a folder, {files.HUB}ORGANISATION/NAME or '
      f'{tfds_sets.PREFIX}NAME'
    )
  if shard_card.is_source(source):
    raise UserError(f'{source} holds shards, examples without their text: give the sources that they were made of')
  return folders.data_files(path, split, left_out)


def _find_local(data: catalog.DataSet, source: str, split: str, data_dir: str | None) -> files.AnyPath:
  """The file of a data set that cannot be downloaded. Its paths may be absolute, in a user's own task file."""
  _, own_split = catalog.find_split(source, split)
  first = data.splits[own_split].files[0]
  if data_dir is None and not _is_absolute(first):
    raise UserError(data.missing or f'{source} cannot be downloaded: pass --data-dir DIR with {first}')
  return examples.find(source, split, data_dir or '')


def _is_absolute(path: str) -> bool:
  return files.is_remote(path) or files.path(path).is_absolute()


def _refuse_bad(found: list[Example], report: Report, paths: Mapping[str, files.AnyPath]) -> None:
  """UserError: when a record is malformed, has no answer, or repeats an id. paths: as `_read_examples` has them."""
  for example in found:
    if not example.answer:
      report.add('malformed', example.where, 'no gold answer')
  bad = report.rows['malformed'] + report.rows['repeated_id']
  count = report.counts['malformed'] + report.counts['repeated_id']
  if bad:
    named = '; '.join(f'{_with_path(where, paths)}: {detail}' for where, detail in bad[:_NAMED])
    more = f'; {count:,} bad records in all' if count > 1 else ''
    raise UserError(f'{named}{more}; an evaluation needs every record, once: repair or replace the file')


def _with_path(where: str, paths: Mapping[str, files.AnyPath]) -> str:
  """`Example.where` with the path of its file."""
  name, _, line = where.rpartition(':')
  return f'{paths.get(name, name)}:{line}'


def _without_duplicates(found: list[Example], report: Report) -> list[Example]:
  """The first of each set of equal examples; the others are reported."""
  kept = []
  seen: dict[tuple, str] = {}  # content -> where it was first
  for example in found:
    key = (example.question, example.solution, json.dumps([example.messages, example.tools, example.rejected]))
    if key in seen:
      report.add('duplicate', example.where, f'same as {seen[key]}')
    else:
      seen[key] = example.where
      kept.append(example)
  return kept
