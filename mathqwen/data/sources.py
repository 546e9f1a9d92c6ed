"""The examples of a data set by its name, or of a file by its path."""

import json
from pathlib import Path

from mathqwen.data import catalog, examples
from mathqwen.data.examples import Example, Report
from mathqwen.errors import UserError

_NAMED = 5  # bad records


def load(
  source: str, split: str = 'train', data_dir: str | None = None, strict: bool = False
) -> tuple[list[Example], Report]:
  """Examples of a data set or of a .jsonl[.gz] file (whose split is ignored), and what was left out.

  strict: for evaluation, where a benchmark must be whole. Malformed records, those without an answer and those with the
  id of an earlier one are a UserError, and duplicates stay (Math401 asks eight queries twice). Otherwise malformed
  records and duplicates are left out, and those with the id of another are renamed. All are reported by line.
  """
  found, report, folder = _read(source, split, data_dir)
  if strict:
    _refuse_bad(found, report, folder)
  kept = _without_duplicates(found, report)
  return found if strict else kept, report


def _read(source: str, split: str, data_dir: str | None) -> tuple[list[Example], Report, Path]:
  data = catalog.of_source(source)
  if data is None:
    path = Path(source)
    if not path.exists() and '.json' not in path.name:
      names = ', '.join(catalog.names())
      raise UserError(f'unknown data set {source!r}: the names are {names}, or give the path of a .jsonl file')
  elif data.downloads:
    from mathqwen.data import datasets  # which brings TFDS with it

    return datasets.read(source, split, data_dir)
  else:
    path = _find_local(data, source, split, data_dir)
  return *examples.parse_file(path, source, split), path.parent


def _find_local(data: catalog.DataSet, source: str, split: str, data_dir: str | None) -> Path:
  """The file of a data set that cannot be downloaded. Its paths may be absolute, in a user's own task file."""
  _, own = catalog.find_split(source, split)
  first = data.splits[own].files[0]
  if data_dir is None and not Path(first).is_absolute():
    raise UserError(data.missing or f'{source} cannot be downloaded: pass --data-dir DIR with {first}')
  return examples.find(source, split, data_dir or '')


def _refuse_bad(found: list[Example], report: Report, folder: Path):
  for example in found:
    if not example.answer:
      report.add('malformed', example.where, 'no gold answer')
  kinds = ('malformed', 'repeated_id')
  bad, count = [row for kind in kinds for row in report.rows[kind]], sum(report.counts[kind] for kind in kinds)
  if bad:
    named = '; '.join(f'{folder / where}: {detail}' for where, detail in bad[:_NAMED])
    more = f'; {count:,} bad records in all' if count > 1 else ''
    raise UserError(f'{named}{more}; an evaluation needs every record, once: repair or replace the file')


def _without_duplicates(found: list[Example], report: Report) -> list[Example]:
  kept, seen = [], {}
  for example in found:
    key = (example.question, example.solution, json.dumps(example.messages))
    if key in seen:
      report.add('duplicate', example.where, f'same as {seen[key]}')
    else:
      seen[key] = example.where
      kept.append(example)
  return kept
