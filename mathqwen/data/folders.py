r"""Which files a path means: itself, those of a folder or a pattern, as far as their names tell splits apart."""

import json
import re

from mathqwen import files
from mathqwen.data import tfds_sets
from mathqwen.data.formats import COMPRESSION
from mathqwen.data.json_rows import SPLITS
from mathqwen.errors import UserError

# What the name of a file with records ends in, where names decide: in a folder, and among the names of data sets.
SUFFIX = re.compile(r'\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)' + COMPRESSION, re.IGNORECASE)
# Files that describe a data set, in folders that other programs wrote.
_ABOUT = ('dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json')


def data_files(path: files.AnyPath, split: str) -> list[files.AnyPath]:
  """The files with records that a path means: itself, those of a folder, or those that match a pattern ('*', '?').

  split: of a folder, as far as names of files and folders tell splits apart.
  UserError: when a folder has no such file, or nothing matches.
  """
  if re.search(r'[*?\[]', path.name) and not path.exists():
    found = sorted(file for file in path.parent.glob(path.name) if file.is_file())
    if not found:
      raise UserError(f'{path}: no file matches; look at the folder {path.parent}')
    return found
  if not path.is_dir():
    return [path]
  if (path / 'dataset_dict.json').is_file():  # of the `datasets` library: a folder for each split
    if not (path / split).is_dir():
      names = json.loads((path / 'dataset_dict.json').read_bytes()).get('splits', [])
      raise UserError(f'{path} has the splits {", ".join(names)} and none called {split}: name one, as {path}/SPLIT')
    path = path / split
  if (path / 'features.json').is_file():  # of tensorflow-datasets
    return _prepared_by_tfds(path, split)
  everything = [file for file in sorted(path.rglob('*')) if file.is_file()]
  found = [
    file for file in everything if SUFFIX.search(file.name) and file.name not in _ABOUT and not _hidden(file, path)
  ]
  if not found:
    names = ', '.join(file.name for file in everything[:5]) or 'nothing'
    raise UserError(
      f'{path}: no file of records in this folder (.jsonl, .json, .csv, .tsv, .parquet, .arrow); it has {names}'
    )
  return _of_split(found, path, split)


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


def _of_split(found: list[files.AnyPath], folder: files.AnyPath, split: str) -> list[files.AnyPath]:
  """Those of a split: files whose name or folder says so; where none does, those that name no other split."""
  named = {name: [] for name in SPLITS}
  unnamed = []
  for file in found:
    words = set(re.split(r'[^a-z]+', str(file.relative_to(folder)).lower()))
    names = [name for name, spellings in SPLITS.items() if words & set(spellings)]
    for name in names:
      named[name].append(file)
    if not names:
      unnamed.append(file)
  chosen = named.get(split) or unnamed
  if not chosen:
    others = ', '.join(name for name, of_it in named.items() if of_it)
    raise UserError(
      f'{folder}: its files are of the splits {others}, none of {split}: name the files, as {folder}/*.jsonl'
    )
  return chosen
