"""What an evaluation leaves on disk: `records.jsonl`, one line per problem, and `scores.json`, computed from it.

    {"id": "gsm8k/test/0", "benchmark": "gsm8k", "question": ..., "prompt": ..., "response": ..., "extracted": "18",
     "gold": "18", "correct": true, "reason": "equal text", "tokens": 117, "truncated": false, "extra": {...}}

Records are appended and flushed as answers end, so a killed run loses no finished answer; scores are written
atomically.
"""

import collections
import dataclasses
import gzip
import json
import math
import os
import re
import zlib

from mathqwen import files
from mathqwen.data.arithmetic import GROUPS
from mathqwen.errors import UserError
from mathqwen.evals import lengths
from mathqwen.evals import samples as samples_lib
from mathqwen.evals.benchmarks import BENCHMARKS
from mathqwen.evals.tasks import Benchmark
from mathqwen.grading.grade import relative_error
from mathqwen.grading.rule import VERDICTS

FIELDS = (
  'id', 'benchmark', 'question', 'prompt', 'response', 'extracted', 'gold', 'correct', 'reason', 'tokens', 'truncated',
)  # fmt: skip
_NEEDED = ('response', 'gold')  # to be graded
_TYPES = {
  'response': str,
  'gold': str,
  'id': str | int | None,
  'benchmark': str | None,
  'truncated': bool | None,
  'extra': dict | None,
}
_SHOWN = 5  # bad lines that an error names


# --- records ---


@dataclasses.dataclass(frozen=True)
class StoredRecords:
  """What a file of records holds."""

  records: list[dict]
  note: str | None  # what was left out, as a line to print
  size: int  # bytes up to the end of the last complete line


def read(path: str | os.PathLike, complete: bool = False) -> StoredRecords:
  """The records of a file (`.gz` too). A half-written last line, which a killed run leaves, is left out with a note.

  complete: each record must have all FIELDS, as an evaluation writes them. UserError: counts and names the lines that
  are not records, or repeat an earlier id.
  """
  path = files.path(path)
  lines = _bytes_of(path).split(b'\n')
  records = []
  line_of_id: dict = {}
  bad: list[str] = []
  note = None
  size = 0
  for number, line in enumerate(lines, 1):
    is_last = number == len(lines)  # what follows the last newline: nothing, in a complete file
    if line.strip():
      try:
        record = json.loads(line.decode('utf-8'))
      except (ValueError, RecursionError) as error:
        if is_last:
          note = f'{path}:{number}: half-written last line dropped'
          break
        problem = f'not JSON ({error})'
      else:
        problem = _fault_of_record(record, line_of_id, complete)
      if problem is None:
        records.append(record)
        line_of_id[record.get('id')] = number
      else:
        bad.append(f'line {number}: {problem}' if bad else f'{path}:{number}: {problem}')
    size += len(line) + (0 if is_last else 1)  # 1: the newline
  if bad:
    count = f'; {len(bad)} bad lines in all, correct or delete them' if len(bad) > 1 else '; correct or delete the line'
    raise UserError('; '.join(bad[:_SHOWN]) + count)
  return StoredRecords(records, note, size)


def _bytes_of(path: files.AnyPath) -> bytes:
  """The content of a file, uncompressed. UserError: when it cannot be read."""
  try:
    if path.is_dir():
      raise UserError(f'{path} is a directory; give the records.jsonl inside it')
    data = files.read_journal(path)
    return gzip.decompress(data) if path.suffix == '.gz' else data
  except FileNotFoundError:
    raise UserError(f'{path}: no such file; give a records.jsonl') from None
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(f'{path}: cannot be read ({error}); copy it again') from None


def _fault_of_record(record: object, line_of_id: dict, complete: bool) -> str | None:
  """Why this is not a record; None when it is one."""
  if not isinstance(record, dict):
    return f'a record is a JSON object, not {type(record).__name__}'
  missing = [field for field in (FIELDS if complete else _NEEDED) if field not in record]
  if missing:
    return f'field {missing[0]!r} is missing'
  types = _TYPES | {'tokens': int | None} if complete else _TYPES
  for field, wanted in types.items():
    if not isinstance(record.get(field), wanted):
      remedy = '; it must be text' if wanted is str else ''
      return f'field {field!r} is {type(record[field]).__name__}{remedy}'
  if not record['gold'].strip():
    return "field 'gold' is empty"
  name = record.get('id')
  if name is None and not isinstance(record.get('question'), str):
    return "field 'id' or 'question' is needed to say which problem this is"
  if name is not None and name in line_of_id:
    return f'id {name!r} is already in line {line_of_id[name]}; ids must be unique'
  return None


def line(record: dict) -> bytes:
  """A record as one line: the fields of FIELDS first and in that order, then all others."""
  ordered = {field: record[field] for field in FIELDS if field in record} | record
  # A lone surrogate becomes its JSON escape instead of an encoding error.
  return json.dumps(ordered, ensure_ascii=False).encode('utf-8', 'backslashreplace') + b'\n'


class RecordWriter:
  """Appends records. When `write` returns, the record is on disk as a whole line (gs://: see `files.Journal`)."""

  def __init__(self, path: files.AnyPath, size: int = 0, lock: files.Lock | None = None):
    """size: how many bytes of the existing file to keep, `StoredRecords.size`. lock: of the folder of `path`."""
    self._journal = files.Journal(path, size)
    self._lock = lock or files.Lock()

  def write(self, record: dict) -> None:
    """Appends one record. OSError: names the file, when the disk is full. UserError: when the lock is lost."""
    self._lock.check()
    self._journal.write(line(record))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._journal.__exit__(*error)


def write_all(path: files.AnyPath, records: list[dict]) -> None:
  """Replaces the file by these records, atomically."""
  files.replace_journal(path, b''.join(line(record) for record in records))


# --- JSON files ---


def write_json(path: files.AnyPath, value: dict) -> None:
  """Replaces the file by one JSON object, atomically."""
  files.write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode())


def read_json(path: files.AnyPath, remedy: str = 'evaluate or grade again to write it') -> dict:
  """The JSON object in a file. UserError: with the `remedy`, when there is none."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{path}: no such file') from None
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON ({error}); {remedy}') from None
  if not isinstance(value, dict):
    raise UserError(f'{path}: holds {type(value).__name__}, not one JSON object; {remedy}')
  return value


# --- scores ---


def summarise(records: list[dict], benchmark: Benchmark, rule: str, samples: int = 1) -> dict:
  """Counts and accuracies of graded records. `truncated` is None where the records do not say it.

  With several `samples` of each problem, the scores of `samples.summarise` are added, and its standard error replaces
  the binomial one.
  """
  n = len(records)
  correct = sum(record['correct'] for record in records)
  found = collections.Counter(map(_verdict, records))
  truncated = [record.get('truncated') for record in records]
  scores = {
    'benchmark': benchmark.name,
    'n': n,
    'published_n': benchmark.size,
    **({} if benchmark.name in BENCHMARKS else {'source': benchmark.source}),
    **_accuracy(n, correct),
    'stderr': _binomial(n, correct),
    'unextractable': sum(record['extracted'] is None for record in records),
    'verdicts': {name: found[name] for name in VERDICTS},
    'truncated': None if None in truncated else sum(truncated),
    'rule': rule,
  }
  if rule == 'math401' and n:  # the two further metrics of its authors
    errors = [relative_error(record['extracted'], record['gold']) for record in records]
    scores['relative_error'] = math.fsum(errors) / n
    scores['non_number_ratio'] = scores['unextractable'] / n

  if found_lengths := lengths.summarise(records):
    scores['lengths'] = found_lengths
  if any('thinking_cut' in record for record in records):
    scores['thinking_cut'] = sum(bool(record.get('thinking_cut')) for record in records)

  groups: dict[str, list[dict]] = {}
  for record in records:
    for group in benchmark.groups_of(record):
      groups.setdefault(group, []).append(record)
  if groups:
    scores['by_group'] = {name: _group(groups[name], samples) for name in sorted(groups, key=_natural_order)}
  if records and all('against' in record for record in records):
    scores['against'] = _against(records, samples)
  return scores | (samples_lib.summarise(records, samples) if samples > 1 else {})


def _against(records: list[dict], samples: int) -> dict:
  """The score without the problems that training data hold, see `against.py`, and how many those are, by kind."""
  marked = [record for record in records if record['against']['marked']]
  kinds = collections.Counter(kind for record in records for kind in record['against']['kinds'])
  return {
    'data': records[0]['against']['data'],
    'marked': len(marked) // samples,
    'kinds': {kind: count // samples for kind, count in kinds.items()},
    'only': _part(marked, samples),
    'without': _part([record for record in records if not record['against']['marked']], samples),
  }


def _part(records: list[dict], samples: int) -> dict:
  """Counts, accuracy and standard error of some of the records."""
  n = len(records)
  correct = sum(record['correct'] for record in records)
  if not n:
    return {'n': 0, **_accuracy(0, 0), 'stderr': None}
  return {'n': n, **_accuracy(n, correct), 'stderr': _binomial(n, correct)} | (
    samples_lib.clustered(records, samples) if samples > 1 else {}
  )


def _binomial(n: int, correct: int) -> float | None:
  """The standard error sqrt(p (1 - p) / n) of a share."""
  return math.sqrt(correct * (n - correct) / n**3) if n else None


def _verdict(record: dict) -> str:
  """The verdict of a record; of one that an earlier version graded, what its other fields say."""
  if record['correct']:
    return 'right'
  return record.get('verdict') or ('no answer' if record['extracted'] is None else 'wrong')


def _group(records: list[dict], samples: int) -> dict:
  counts = {'n': len(records), **_accuracy(len(records), sum(record['correct'] for record in records))}
  return counts | (samples_lib.clustered(records, samples) if samples > 1 else {})


def _accuracy(n: int, correct: int) -> dict:
  return {'correct': correct, 'accuracy': correct / n if n else None}


def _natural_order(name: str) -> tuple:
  """'Level 2' before 'Level 10'; the groups of Math401 in its own order, after all others."""
  place = GROUPS.index(name) if name in GROUPS else -1
  head, _, tail = name.rpartition(' ')
  return (place, head, int(tail)) if re.fullmatch('[0-9]{1,9}', tail) else (place, name, -1)
