"""OUT/NAME, where one benchmark of an evaluation is kept. Only one evaluation at a time writes there.

settings.json           two runs with the same settings are the same run; written first
records.jsonl           host 0's answers as they are completed; at the end, those of all hosts in the benchmark's order
records.1.jsonl, ...    the same of other hosts
unanswered.json         of a served model: which problems have no answer, and why; they are asked last
scores.json             written last: as long as it is missing, the evaluation is not finished
"""

import os
import re

from mathqwen import files
from mathqwen.errors import Unreachable, UserError
from mathqwen.evals import records
from mathqwen.hardware import hosts


class Folder:
  """What an evaluation keeps in one OUT/NAME. Host 0 must have it `locked`.

  stored: the records that an interrupted run with the same settings left there, of however many hosts.
  """

  def __init__(self, path: files.AnyPath, settings: dict, examples: list, lock: files.Lock | None = None):
    """Reads what is there. lock: of `path`, on host 0. UserError: when it belongs to another run, or is damaged."""
    self.path = path
    self._lock = lock or files.Lock()
    self._settings = settings
    self._total = len(examples)
    path.mkdir(parents=True, exist_ok=True)

    parts = self._parts()
    if any(files.has_lines(part) for part in parts):  # without any answer, the settings may still be changed
      check_settings(path, self._settings, parts[0])

    notes = []
    own_size = 0
    found: dict[str, dict] = {}
    for part in parts:
      read = records.read(part, complete=True)
      _check_stored_problems(part, read.records, examples)
      for record in read.records:
        found.setdefault(record['id'], record)  # host 0 comes first, and may have the records of the others too
      if read.note:
        notes.append(read.note)
      if part == self._own():
        own_size = read.size
    self.stored = records.StoredRecords(list(found.values()), '; '.join(notes) or None, own_size)

  def _own(self) -> files.AnyPath:
    """The records of this host."""
    host, _ = hosts.share()
    return self.path / (f'records.{host}.jsonl' if host else 'records.jsonl')

  def _parts(self) -> list[files.AnyPath]:
    """The records of all hosts that are there, host 0's first."""
    found = []
    for path in self.path.iterdir():
      if match := re.fullmatch(r'records(?:\.(\d+))?\.jsonl', path.name):
        found.append((int(match[1] or 0), path))
    return [path for _, path in sorted(found)]

  def writer(self) -> records.RecordWriter:
    """Appends this host's answers to those that are there."""
    if not self.stored.records:
      records.write_json(self.path / 'settings.json', self._settings)
    if len(self.stored.records) < self._total:  # `grade` may have scored the part that was there
      (self.path / 'scores.json').unlink(missing_ok=True)
    return records.RecordWriter(self._own(), self.stored.size, self._lock)

  def scores(self) -> dict | None:
    """The scores of a finished evaluation; None when it is not finished."""
    if is_unfinished(self.path / 'records.jsonl'):
      return None
    return _read_if_intact(self.path / 'scores.json')

  @property
  def unanswered(self) -> dict[str, str]:
    """{id: why} of the problems without an answer; those that the newest run asked come last."""
    return _read_if_intact(self.path / 'unanswered.json') or {}

  def note_unanswered(self, why: dict[str, str], missing: set[str]) -> None:
    """Adds `why` to unanswered.json. Of `missing`, all ids without an answer, those not asked now keep their reason."""
    before = {key: reason for key, reason in self.unanswered.items() if key in missing and key not in why}
    records.write_json(self.path / 'unanswered.json', before | why)

  def finish(self, ordered: list[dict], scores: dict) -> None:
    """Writes all records in order, and the scores."""
    self._lock.check()
    write(self.path, ordered, scores)
    (self.path / 'unanswered.json').unlink(missing_ok=True)


def check_settings(folder: files.AnyPath, now: dict, part: files.AnyPath) -> None:
  """UserError: when the records in `part`, a file of `folder`, are of a run with other settings."""
  file = folder / 'settings.json'
  if not file.exists():
    raise UserError(f'{part} is there without settings.json, so it cannot be continued; give another --out')
  before = records.read_json(file, 'what is there cannot be continued; give another --out')
  if 'template' not in before and now.get('template') in (None, 'chatml'):  # older versions had no other
    before |= {key: now.get(key) for key in ('template', 'template_sha256')}
  if before.get('limit') is not None and before.get('limit_seed') is None:
    before['limit_seed'] = 'the first problems'  # as older versions took them
  changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
  if changed:
    what = ', '.join(f'{key} {before.get(key)!r} there and {now.get(key)!r} now' for key in changed)
    raise UserError(f'{folder} holds another run ({what}); give another --out, or delete it')


def _read_if_intact(path: files.AnyPath) -> dict | None:
  """The content of a file that this program writes again anyway; None when it is missing or damaged."""
  try:
    return records.read_json(path)
  except Unreachable:  # what is there must not be taken for missing
    raise
  except UserError:
    return None


def _check_stored_problems(path: files.AnyPath, rows: list[dict], examples: list) -> None:
  """UserError: when a record is of another question or gold answer than the problem with its id."""
  asked = {example.id: example for example in examples}
  for record in rows:
    name = record['id']
    example = asked.get(name)
    if example is None or record['question'] != example.question:
      raise UserError(f'{path}: {name!r} is not a problem of this data; give another --out or the same data')
    if record['gold'] != example.answer:
      raise UserError(
        f'{path}: the gold answer to {name!r} is {record["gold"]!r} there and {example.answer!r} in this data; '
        'give another --out or the same data'
      )


def folder_of(out: str | os.PathLike, name: str) -> files.AnyPath:
  """OUT/NAME. UserError: when OUT is empty, as an unset variable of a script leaves it."""
  if not os.fspath(out):
    raise UserError('--out is empty; give a directory, or leave it out')
  return files.path(out) / name


def write(path: files.AnyPath, rows: list[dict], scores: dict) -> None:
  """Writes the records and scores that an evaluation or a grading ends with."""
  records.write_all(path / 'records.jsonl', rows)
  records.write_json(path / 'scores.json', scores)


def known_about(file: files.AnyPath) -> dict:
  """The settings of the run that made the records in `file`, and its scores if there are any."""
  settings = _read_if_intact(file.with_name('settings.json')) or {}
  scores = _read_if_intact(file.with_name('scores.json')) or {}
  known = settings | scores
  samples = known.get('samples', 1)
  if type(samples) is not int or samples < 1:
    raise UserError(f'{file.parent}: samples is {samples!r} in its scores or settings; evaluate again')
  return known


def is_unfinished(file: files.AnyPath) -> bool:
  """Whether the evaluation that the records in `file` are from has not finished."""
  scores = _read_if_intact(file.with_name('scores.json'))
  if scores:
    return bool(scores.get('unfinished'))  # set by `grade` when answers are still missing
  return file.with_name('settings.json').exists()
