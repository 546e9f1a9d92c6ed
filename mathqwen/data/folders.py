r"""Which files a path means: itself, those of a folder or a pattern, as far as their names tell splits apart."""

import itertools
import json
import re

from mathqwen import files
from mathqwen.data import tfds_sets
from mathqwen.data.formats import COMPRESSION
from mathqwen.data.json_rows import SPLITS
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError, report

# What the name of a file with records ends in, where names decide: in a folder, and among the names of data sets.
SUFFIX = re.compile(r'\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)' + COMPRESSION, re.IGNORECASE)
# Files that describe a data set, in folders that other programs wrote.
_STATE = 'state.json'  # of `datasets.save_to_disk`: which files it wrote
_ABOUT = ('dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', _STATE)
_SHOWN = 5  # files that are named in a line


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
    found, others = _matching(folder, pattern, split)
    if not found and not others:
      raise UserError(f'{path}: no file matches; look at the folder {folder}')
  elif not path.is_dir():
    return [path]
  else:
    found, others = _in_folder(path, path, split)
    if not found and not others:
      there = sorted(file for file in path.rglob('*') if file.is_file())
      names = ', '.join(file.name for file in there[:_SHOWN]) or 'nothing'
      raise UserError(
        f'{path}: no file of records in this folder (.jsonl, .json, .csv, .tsv, .parquet, .arrow); it has {names}'
      )
  if not found:
    splits = [name for name in SPLITS if any(name in _splits_of(file, folder) for file in others)]
    raise UserError(
      f'{path}: its files are of the splits {", ".join(splits)}, none of {split}: name the files, as {path}/*.jsonl'
    )
  if others:
    names = [str(file.relative_to(folder)) for file in others]
    shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
    report(f'{path}: {len(found):,} of {len(found) + len(others):,} files read as {split}; not read: {shown}')
    if left_out is not None:
      for name in names:
        left_out.add('file_not_read', name, f'not taken as {split}')
  return found


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


def _matching(folder: files.AnyPath, pattern: str, split: str) -> tuple[list[files.AnyPath], list[files.AnyPath]]:
  """(files that match, and those of the split in folders that match; the other files in these folders)."""
  parts = [part if part == '**' else re.sub(r'\*+', '*', part) for part in pattern.split('/')]
  while parts and parts[-1] == '**':  # a folder is read with all that is below it
    parts.pop()
  takes_hidden = any(part.startswith('.') for part in parts)
  found: set[files.AnyPath] = set()
  others: set[files.AnyPath] = set()
  for match in folder.glob('/'.join(parts)) if parts else [folder]:
    if match.name in _ABOUT or _is_cache(match) or (_hidden(match, folder) and not takes_hidden):
      continue
    if match.is_file():
      found.add(match)
    elif match.is_dir():
      of_split, beside = _in_folder(match, folder, split)
      found.update(of_split)
      others.update(beside)
  return sorted(found), sorted(others - found)


def _in_folder(
  path: files.AnyPath, above: files.AnyPath, split: str
) -> tuple[list[files.AnyPath], list[files.AnyPath]]:
  """(the files of the split in a folder, its other files with records). Names below `above` tell splits apart."""
  if (path / 'dataset_dict.json').is_file():  # of the `datasets` library: a folder for each split
    if not (path / split).is_dir():
      names = json.loads((path / 'dataset_dict.json').read_bytes()).get('splits', [])
      raise UserError(f'{path} has the splits {", ".join(names)} and none called {split}: name one, as {path}/SPLIT')
    path = above = path / split
  if (path / 'features.json').is_file():  # of tensorflow-datasets
    return _prepared_by_tfds(path, split), []
  found: list[files.AnyPath] = []
  others: list[files.AnyPath] = []
  everything = (file for file in path.rglob('*') if file.is_file() and not _hidden(file, path))
  for folder, inside in itertools.groupby(sorted(everything, key=_by_folder), key=lambda file: file.parent):
    inside = list(inside)
    saved = _saved(folder) if any(file.name == _STATE for file in inside) else None
    for file in inside:
      if SUFFIX.search(file.name) and file.name not in _ABOUT and not _is_cache(file):
        (found if saved is None or file.name in saved else others).append(file)
  found, of_others = _of_split(found, above, split)
  return sorted(found), sorted(others + of_others)


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


def _splits_of(file: files.AnyPath, folder: files.AnyPath) -> list[str]:
  """The splits that the name of a file, or of a folder that it is in, says."""
  words = set(re.split(r'[^a-z]+', str(file.relative_to(folder)).lower()))
  return [name for name, spellings in SPLITS.items() if words & set(spellings)]


def _of_split(
  found: list[files.AnyPath], folder: files.AnyPath, split: str
) -> tuple[list[files.AnyPath], list[files.AnyPath]]:
  """(files whose name or folder says the split; where none does, those that name no split; the others)."""
  chosen = [file for file in found if split in _splits_of(file, folder)]
  chosen = chosen or [file for file in found if not _splits_of(file, folder)]
  taken = set(chosen)
  return chosen, [file for file in found if file not in taken]
