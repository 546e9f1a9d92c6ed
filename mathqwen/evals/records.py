"""What an evaluation leaves on disk: `records.jsonl`, one line per problem, and `scores.json`, computed from it.

    {"id": "gsm8k/test/0", "benchmark": "gsm8k", "question": ..., "prompt": ..., "response": ..., "extracted": "18",
     "gold": "18", "correct": true, "reason": "equal text", "tokens": 117, "truncated": false, "extra": {...}}

Records are appended and flushed as answers end, so a killed run loses no finished answer; scores are
written atomically.
"""

import dataclasses
import gzip
import json
import math
import os
import pathlib
import re
import zlib

from mathqwen.data.arithmetic import GROUPS
from mathqwen.errors import UserError
from mathqwen.evals import samples as samples_lib
from mathqwen.evals.tasks import Benchmark
from mathqwen.files import named, write_atomically
from mathqwen.grading.grade import relative_error

FIELDS = (
  'id', 'benchmark', 'question', 'prompt', 'response', 'extracted', 'gold', 'correct', 'reason', 'tokens', 'truncated',
)  # fmt: skip
_TYPES = {
  'response': str, 'gold': str, 'id': str | int | None, 'benchmark': str | None, 'truncated': bool | None,
  'extra': dict | None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stored:
  records: list[dict]
  note: str | None  # what was left out, for people
  size: int  # bytes up to the end of the last whole line


def read(path: str | os.PathLike, whole: bool = False) -> Stored:
  """The records of a file (`.gz` too). A half-written last line, which a killed run leaves, is left out with a note.

  `whole`: each must have all FIELDS, as an evaluation writes them. UserError that counts and names the lines that are
  no records, or have an id that an earlier one has.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise UserError(f'{path} is a directory; give the records.jsonl inside it')
  try:
    data = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
  except FileNotFoundError:
    raise UserError(f'{path}: no such file; give a records.jsonl') from None
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(f'{path}: cannot be read ({error}); copy it again') from None
  records, seen, bad, note, size = [], {}, [], None, 0
  lines = data.split(b'\n')
  for number, line in enumerate(lines, 1):
    last = number == len(lines)  # what stands after the last newline; empty in a whole file
    if line.strip():
      try:
        record = json.loads(line.decode('utf-8'))
      except (ValueError, RecursionError) as error:
        if last:
          note = f'{path}:{number}: half-written last line dropped'
          break
        problem = f'not JSON ({error})'
      else:
        problem = _problem(record, seen, whole)
      if problem:
        bad.append(f'line {number}: {problem}' if bad else f'{path}:{number}: {problem}')
      else:
        records.append(record)
        seen[record.get('id')] = number
    size += len(line) + (not last)
  if bad:
    count = f'; {len(bad)} bad lines in all, mend or delete them' if len(bad) > 1 else '; mend or delete the line'
    raise UserError('; '.join(bad[:5]) + count)
  return Stored(records, note, size)


def _problem(record, seen: dict, whole: bool) -> str | None:
  if not isinstance(record, dict):
    return f'a record is a JSON object, not {type(record).__name__}'
  if missing := [field for field in (FIELDS if whole else ('response', 'gold')) if field not in record]:
    return f'field {missing[0]!r} is missing'
  for field, wanted in (_TYPES | ({'tokens': int | None} if whole else {})).items():
    if not isinstance(record.get(field), wanted):
      return f'field {field!r} is {type(record[field]).__name__}' + '; it must be text' * (wanted is str)
  if not record['gold'].strip():
    return "field 'gold' is empty"
  name = record.get('id')
  if name is None and not isinstance(record.get('question'), str):
    return "field 'id' or 'question' is needed to say which problem this is"
  if name is not None and name in seen:
    return f'id {name!r} is already in line {seen[name]}; ids must be unique'
  return None


def line(record: dict) -> bytes:
  """One line: the fields of FIELDS first and in that order, then all others."""
  ordered = {field: record[field] for field in FIELDS if field in record} | record
  # A lone surrogate becomes its JSON escape instead of an encoding error.
  return json.dumps(ordered, ensure_ascii=False).encode('utf-8', 'backslashreplace') + b'\n'


class Writer:
  """Appends records; each is on disk, whole, when `write` returns."""

  def __init__(self, path: pathlib.Path, size: int = 0):
    """`size`: bytes to keep of what is there, `Stored.size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path, self._file = path, open(path, 'a+b')  # noqa: SIM115 - closed by __exit__
    self._file.truncate(size)
    if size:
      self._file.seek(size - 1)
      if self._file.read(1) != b'\n':
        self._file.write(b'\n')

  def write(self, record: dict):
    with named(self._path):
      self._file.write(line(record))
      self._file.flush()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with named(self._path):
      self._file.close()


def write_all(path: pathlib.Path, records: list[dict]):
  write_atomically(path, b''.join(line(record) for record in records))


def write_json(path: pathlib.Path, value: dict):
  write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode())


def read_json(path: pathlib.Path, remedy: str = 'evaluate or grade again to write it') -> dict:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{path}: no such file') from None
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON ({error}); {remedy}') from None
  if not isinstance(value, dict):
    raise UserError(f'{path}: holds {type(value).__name__}, wants one JSON object; {remedy}')
  return value


def summarise(records: list[dict], benchmark: Benchmark, rule: str, samples: int = 1) -> dict:
  """Counts and accuracies of graded records. `truncated` is None where the records do not say it.

  With several `samples` of each problem, `samples.summarise` besides, and its standard error in place of the binomial.
  """
  n, correct = len(records), sum(record['correct'] for record in records)
  scores = {
    'benchmark': benchmark.name,
    'n': n,
    'published_n': benchmark.size,
    **_accuracy(n, correct),
    'stderr': math.sqrt(correct * (n - correct) / n**3) if n else None,  # binomial: sqrt(p (1 - p) / n)
    'unextractable': sum(record['extracted'] is None for record in records),
    'truncated': sum(r['truncated'] for r in records) if all(r.get('truncated') is not None for r in records) else None,
    'rule': rule,
  }
  if rule == 'math401' and n:
    scores['relative_error'] = math.fsum(relative_error(r['extracted'], r['gold']) for r in records) / n
    scores['non_number_ratio'] = scores['unextractable'] / n
  groups = {}
  for record in records:
    for group in benchmark.groups_of(record):
      groups.setdefault(group, []).append(record)
  if groups:
    scores['by_group'] = {name: _group(rows, samples) for name, rows in sorted(groups.items(), key=_natural)}
  return scores | (samples_lib.summarise(records, samples) if samples > 1 else {})


def _group(rows: list[dict], samples: int) -> dict:
  counts = {'n': len(rows), **_accuracy(len(rows), sum(row['correct'] for row in rows))}
  return counts | (samples_lib.clustered(rows, samples) if samples > 1 else {})


def _accuracy(n: int, correct: int) -> dict:
  return {'correct': correct, 'accuracy': correct / n if n else None}


def _natural(item):
  """'Level 2' before 'Level 10'; the groups of Math401 in its own order."""
  name = item[0]
  place = GROUPS.index(name) if name in GROUPS else -1
  head, _, tail = name.rpartition(' ')
  return (place, head, int(tail)) if re.fullmatch('[0-9]{1,9}', tail) else (place, name, -1)
