r"""Which files a path means: itself, those of a folder or a pattern, as far as their names tell splits apart."""

import collections
import dataclasses
import fnmatch
import itertools
import json
import re
from collections.abc import Iterable, Iterator

from mathqwen import files
from mathqwen.data import dataset_cards, tfds_sets
from mathqwen.data.formats import COMPRESSION
from mathqwen.data.json_rows import SPLITS
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError, report

# What the name of a file with records ends in, where names decide: in a folder, and among the names of data sets.
SUFFIX = re.compile(r'\.(jsonl|jsonlines|ndjson|json|csv|tsv|parquet|pq|arrow|feather)' + COMPRESSION, re.IGNORECASE)
# Files that describe a data set, in folders that other programs wrote.
_STATE = 'state.json'  # of `datasets.save_to_disk`: which files it wrote
_ABOUT = ('dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', _STATE)
# Files beside data, without a SUFFIX, that nobody takes for data: descriptions, checksums, programs, pictures.
_BESIDE_DATA = re.compile(
  r'(readme|licen[cs]e|notice|citation|changelog|copying|authors|_success|_(common_)?metadata|(md5|sha\d+)(sums?)?)(\..*)?'
  r'|.*\.(md|rst|py|pyc|sh|ipynb|lock|log|md5|sha\d+|crc|png|jpe?g|gif|svg|pdf)',
  re.IGNORECASE,
)
_WORDS = {
  split: {spelling + end for spelling in spellings for end in ('', 'set', 'sets', 'data', 'split')}
  for split, spellings in SPLITS.items()
}
_PART = re.compile(r'-(\d{5})-of-(\d{5})(?!\d)')  # in the name of a file that is one of several
_SHOWN = 5  # files that are named in a line


@dataclasses.dataclass
class _Found:
  """Files below a folder, or of a pattern."""

  of_split: set[files.AnyPath] = dataclasses.field(default_factory=set)
  others: set[files.AnyPath] = dataclasses.field(default_factory=set)  # with records, and not of the split
  no_records: set[files.AnyPath] = dataclasses.field(default_factory=set)  # as far as their names say

  def add(self, other: '_Found') -> None:
    self.of_split |= other.of_split
    self.others |= other.others
    self.no_records |= other.no_records


def data_files(path: files.AnyPath, split: str, left_out: Report | None = None) -> list[files.AnyPath]:
  """The files with records that a path means: itself, those of a folder, or those that match a pattern.

  A pattern has '*', '?' or '[...]' in any of its parts, and '**' for folders at any depth. Folders that match are read
  as folders, below the first part that has one of these.
  split: of a folder, as far as names of files and folders tell splits apart. left_out: files beside those of the split
  are added to it; they are reported, too.
  UserError: when a folder has no such file, or nothing matches.
  """
  folder, pattern = _split_pattern(path)
  if pattern:
    found = _matching(folder, pattern, split)
    if not found.of_split and not found.others:
      raise UserError(f'{path}: no file matches; look at the folder {folder}')
  elif not path.is_dir():
    return [path]
  else:
    found = _in_folder(path, path, split)
    if not found.of_split and not found.others:
      there = sorted(file for file in path.rglob('*') if file.is_file())
      names = ', '.join(file.name for file in there[:_SHOWN]) or 'nothing'
      raise UserError(
        f'{path}: no file of records in this folder (.jsonl, .json, .csv, .tsv, .parquet, .arrow); it has {names}'
      )
  if not found.of_split:
    named = set().union(*_splits_of(found.others, folder).values())
    splits = [name for name in SPLITS if name in named]
    raise UserError(
      f'{path}: its files are of the splits {", ".join(splits)}, none of {split}: name the files, as {path}/*.jsonl'
    )
  check_parts(found.of_split, pattern)
  _report_others(path, folder, found, split, left_out)
  return sorted(found.of_split)


def _report_others(
  path: files.AnyPath, folder: files.AnyPath, found: _Found, split: str, left_out: Report | None
) -> None:
  """Names the files that are not read, in a line and in the report."""
  names = {str(file.relative_to(folder)): f'not taken as {split}' for file in found.others - found.of_split}
  for file in found.no_records - found.of_split:
    names[str(file.relative_to(folder))] = 'its name is none of a file of records'
  if not names:
    return
  shown = ', '.join(sorted(names)[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
  count = len(found.of_split)
  report(f'{path}: {count:,} of {count + len(names):,} files read as {split}; not read: {shown}')
  if left_out is not None:
    for name in sorted(names):
      left_out.add('file_not_read', name, names[name])


def check_parts(found: Iterable[files.AnyPath], pattern: str = '') -> None:
  """UserError: when files are parts of a whole, as train-00000-of-00003.parquet, and another part is not there.

  pattern: by which they were found; parts that it leaves out are not missing.
  """
  parts = collections.defaultdict(dict)
  for file in found:
    if match := _PART.search(file.name):
      before, after = file.name[: match.start()], file.name[match.end() :]
      # The hub wrote a hash behind the numbers, another one for each part.
      parts[file.parent, before, match[2]][int(match[1])] = after
  for (folder, before, total), after in sorted(parts.items(), key=str):
    count = int(total)
    first = 1 if count in after else 0
    end = next(iter(after.values()))
    names = {number: f'{before}-{number:05d}-of-{total}{end}' for number in range(first, first + count)}
    is_meant = re.compile(fnmatch.translate(pattern.rpartition('/')[2] or '*')).match
    missing = next((name for number, name in names.items() if number not in after and is_meant(name)), None)
    if missing is not None:
      name = missing if len(set(after.values())) == 1 else missing.removesuffix(end) + '*'
      raise UserError(
        f'{folder / name} is missing, and {len(after):,} of the {count:,} parts are there: fetch it, or name each '
        'file that is to be read, with commas between'
      )


def _split_pattern(path: files.AnyPath) -> tuple[files.AnyPath, str]:
  """(the folder above the first part that is a pattern, and no name that is there; the pattern, '' for none)."""
  if path == path.parent:
    return path, ''
  folder, pattern = _split_pattern(path.parent)
  if pattern:
    return folder, f'{pattern}/{path.name}'
  if re.search(r'[*?\[]', path.name) and not path.exists():
    return folder, path.name
  return path, ''


def _matching(folder: files.AnyPath, pattern: str, split: str) -> _Found:
  """The files that match, and what is in folders that match."""
  parts = [part if part == '**' else re.sub(r'\*+', '*', part) for part in pattern.split('/')]
  while parts and parts[-1] == '**':  # a folder is read with all that is below it
    parts.pop()
  takes_hidden = any(part.startswith('.') for part in parts)
  found = _Found()
  for match in folder.glob('/'.join(parts)) if parts else [folder]:
    if match.name in _ABOUT or _is_cache(match) or (_hidden(match, folder) and not takes_hidden):
      continue
    if match.is_file():
      found.of_split.add(match)
    elif match.is_dir():
      found.add(_in_folder(match, folder, split))
  return found


def may_hold_records(file: files.AnyPath) -> bool:
  """Whether the name of a file that a pattern means says nothing against it."""
  return not file.name.startswith('.') and file.name not in _ABOUT and not _beside_data(file)


def _beside_data(file: files.AnyPath) -> bool:
  return not SUFFIX.search(file.name) and _BESIDE_DATA.fullmatch(file.name) is not None


def _in_folder(path: files.AnyPath, above: files.AnyPath, split: str) -> _Found:
  """The files below a folder. Names below `above` tell splits apart."""
  if (path / 'dataset_dict.json').is_file():  # of the `datasets` library: a folder for each split
    if not (path / split).is_dir():
      names = json.loads((path / 'dataset_dict.json').read_bytes()).get('splits', [])
      raise UserError(f'{path} has the splits {", ".join(names)} and none called {split}: name one, as {path}/SPLIT')
    path = above = path / split
  if (path / 'features.json').is_file():  # of tensorflow-datasets
    return _Found(set(_prepared_by_tfds(path, split)))
  found = _Found()
  everything = (file for file in path.rglob('*') if file.is_file() and not _hidden(file, path))
  for folder, inside in itertools.groupby(sorted(everything, key=_by_folder), key=lambda file: file.parent):
    inside = [file for file in inside if not _is_cache(file)]
    saved = _saved(folder) if any(file.name == _STATE for file in inside) else None
    for file in inside:
      if not SUFFIX.search(file.name):
        found.no_records |= set() if _beside_data(file) else {file}
      elif file.name in _ABOUT:
        continue
      elif saved is None or file.name in saved:
        found.of_split.add(file)
      else:
        found.others.add(file)
  of_card = _by_card(path, split)
  of_split = _of_split(found.of_split, above, split) if of_card is None else of_card
  found.others |= found.of_split - of_split
  return dataclasses.replace(found, of_split=of_split)


def _by_card(folder: files.AnyPath, split: str) -> set[files.AnyPath] | None:
  """The files that the README of a data set, copied from the hub, names for a split; None where it names none.

  UserError: when it has several configurations, and none is the default, or no such split.
  """
  if not dataset_cards.names_configurations(folder):
    return None
  try:
    front = dataset_cards.front_matter(folder)
    named = dataset_cards.configurations(front, folder)
  except UserError as error:  # no card of the hub, or no PyYAML
    report(f'{error}; {folder} is read without it')
    return None
  there = {}  # configurations of which something was copied
  for name, splits in named.items():
    found = {split: dataset_cards.files_of(folder, patterns, may_hold_records) for split, patterns in splits.items()}
    if any(found.values()):
      there[name] = found
  if not there:
    return None
  chosen = dataset_cards.default_of(front, there)
  if chosen is None:
    splits = {name: patterns for name, patterns in named[next(iter(there))].items() if patterns}
    pattern = splits.get(split, next(iter(splits.values())))[0]
    raise UserError(
      f'{folder} has the configurations {", ".join(there)}, as its README.md says: name the files of one, as '
      f"'{folder / pattern}'"
    )
  found = there[chosen]
  if not found.get(split):
    splits = [name for name, paths in found.items() if paths]
    raise UserError(
      f'{folder}: its README.md names files for {", ".join(splits)}, and none for {split} that is there: name those '
      f'that are to be read as {split}'
    )
  return set(found[split])


def _by_folder(file: files.AnyPath) -> tuple[str, str]:
  return str(file.parent), file.name


def _saved(folder: files.AnyPath) -> set[str] | None:
  """The names of the files that `datasets.save_to_disk` wrote into a folder; None where its state names none.

  UserError: when one of them is not there.
  """
  listed = files.read_json_object(folder / _STATE).get('_data_files')
  if not isinstance(listed, list):
    return None
  names = [entry['filename'] for entry in listed if isinstance(entry, dict) and 'filename' in entry]
  for name in names:
    if not (folder / name).is_file():
      raise UserError(f'{folder / _STATE} names {name}, which is not there: copy the whole folder again')
  return set(names)


def _is_cache(file: files.AnyPath) -> bool:
  """Whether `.map` or `.filter` of `datasets` left this beside a data set: its rows again, or numbers of rows."""
  is_named_so = re.fullmatch(r'cache-.*\.arrow', file.name)
  return bool(is_named_so) and any((file.parent / name).is_file() for name in ('dataset_info.json', _STATE))


def _prepared_by_tfds(folder: files.AnyPath, split: str) -> list[files.AnyPath]:
  """NAME-SPLIT.array_record-00000-of-00001, ..."""
  by_split: dict[str, list[files.AnyPath]] = {}
  for file in sorted(folder.iterdir()):
    if tfds_sets.FILE.search(file.name):
      by_split.setdefault(file.name.partition('.')[0].rpartition('-')[2], []).append(file)
  if split not in by_split:
    raise UserError(f'{folder} has the splits {", ".join(by_split)} and none called {split}')
  return by_split[split]


def _hidden(file: files.AnyPath, folder: files.AnyPath) -> bool:
  return any(part.startswith('.') for part in file.relative_to(folder).parts)


def _splits_of(found: Iterable[files.AnyPath], folder: files.AnyPath) -> dict[files.AnyPath, set[str]]:
  """{file: the splits that its name, or that of a folder that it is in, says}. Names begin below `folder`.

  train-0.jsonl, testSet.jsonl, dev/0.jsonl       as a word, which may end in "set"
  gsm8ktrain.jsonl and gsm8ktest.jsonl            by a name that differs in this alone, wherever it is
  """
  parts = {file: file.relative_to(folder).parts for file in found}
  alike = collections.defaultdict(set)  # a name without the split that it says -> those splits
  for name in set(itertools.chain.from_iterable(parts.values())):
    for split, without in _without_split(name):
      alike[without].add(split)
  splits = {}
  for file, names in parts.items():
    text = re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', '/'.join(names))
    words = set(re.findall('[a-z]+', text.lower()))
    splits[file] = {split for split, spellings in _WORDS.items() if words & spellings}
    splits[file] |= {split for name in names for split, without in _without_split(name) if len(alike[without]) > 1}
  return splits


def _without_split(name: str) -> Iterator[tuple[str, str]]:
  """(split, the name with '*' in place of it) for each spelling of a split that is part of a name."""
  name = name.lower()
  for split, spellings in SPLITS.items():
    for spelling in spellings:
      if spelling in name:
        yield split, name.replace(spelling, '*')


def _of_split(found: set[files.AnyPath], folder: files.AnyPath, split: str) -> set[files.AnyPath]:
  """The files that say the split; where none does, those that say no split."""
  splits = _splits_of(found, folder)
  return {file for file in found if split in splits[file]} or {file for file in found if not splits[file]}
