"""OUT/NAME, where one benchmark of an evaluation is kept; nobody else writes there meanwhile.

settings.json           what makes two runs the same run; written first
records.jsonl           host 0's answers as they end; at the end all answers, in the benchmark's order
records.1.jsonl, ...    the same of other hosts
unanswered.json         of a served model: which problems stayed without an answer, and why; they are asked last
scores.json             written last: without it the evaluation is not finished
"""

import contextlib
import fcntl
import os
import pathlib
import re

from mathqwen.errors import UserError
from mathqwen.evals import records
from mathqwen.hardware import hosts


class Folder:
  """`stored`: the records that an earlier, interrupted run of the same settings left there, of however many hosts."""

  def __init__(self, path: pathlib.Path, settings: dict, examples: list):
    """UserError where another run's records are. Host 0 has the directory `locked`."""
    self.path, self._settings, self._wanted = path, settings, len(examples)
    path.mkdir(parents=True, exist_ok=True)
    parts = self._parts()
    if any(part.stat().st_size for part in parts):  # else nothing was answered, and settings may be mended
      self._check_settings(parts[0])
    stored, found = {part: records.read(part, whole=True) for part in parts}, {}
    for part, read in stored.items():
      _check_problems(part, read.records, examples)
      found = {record['id']: record for record in read.records} | found  # host 0 writes what others have as well
    notes = [read.note for read in stored.values() if read.note]
    own = stored.get(self._own())
    self.stored = records.Stored(list(found.values()), '; '.join(notes) or None, own.size if own else 0)

  def _check_settings(self, part: pathlib.Path):
    file, now = self.path / 'settings.json', self._settings
    if not file.exists():
      raise UserError(f'{part} is there without settings.json, so it cannot be continued; give another --out')
    before = records.read_json(file, 'what is there cannot be continued; give another --out')
    changed = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    if changed:
      what = ', '.join(f'{key} {before.get(key)!r} there and {now.get(key)!r} now' for key in sorted(changed))
      raise UserError(f'{self.path} holds another run ({what}); give another --out, or delete it')

  def _own(self) -> pathlib.Path:
    host, _ = hosts.share()
    return self.path / (f'records.{host}.jsonl' if host else 'records.jsonl')

  def _parts(self) -> list[pathlib.Path]:
    """The records of all hosts, host 0's first."""
    found = [(re.fullmatch(r'records(?:\.(\d+))?\.jsonl', path.name), path) for path in self.path.iterdir()]
    return [path for _, path in sorted((int(name[1] or 0), path) for name, path in found if name)]

  def writer(self) -> records.Writer:
    """Of this host's answers, after those that are there."""
    if not self.stored.records:
      records.write_json(self.path / 'settings.json', self._settings)
    if len(self.stored.records) < self._wanted:  # `grade` may have scored what was there
      (self.path / 'scores.json').unlink(missing_ok=True)
    return records.Writer(self._own(), self.stored.size)

  def scores(self) -> dict | None:
    """Of a finished evaluation."""
    return None if is_unfinished(self.path / 'records.jsonl') else _whole(self.path / 'scores.json')

  @property
  def unanswered(self) -> dict:
    """{id: why}, those of the newest run last."""
    return _whole(self.path / 'unanswered.json') or {}

  def note_unanswered(self, why: dict[str, str], missing: set[str]):
    """missing: all problems without an answer; those that were not asked this time keep their reason."""
    before = {key: value for key, value in self.unanswered.items() if key in missing and key not in why}
    records.write_json(self.path / 'unanswered.json', before | why)

  def finish(self, ordered: list[dict], scores: dict):
    write(self.path, ordered, scores)
    (self.path / 'unanswered.json').unlink(missing_ok=True)


def _whole(path: pathlib.Path) -> dict | None:
  """What is in a file that is written anew in any case."""
  try:
    return records.read_json(path)
  except UserError:  # it is not there, or spoilt
    return None


def _check_problems(path: pathlib.Path, rows: list[dict], examples: list):
  asked = {example.id: example for example in examples}
  for record in rows:
    name, example = record['id'], asked.get(record['id'])
    if example is None or record['question'] != example.question:
      raise UserError(f'{path}: {name!r} is no problem of this data; give another --out or the same data')
    if record['gold'] != example.answer:
      raise UserError(
        f'{path}: the gold answer to {name!r} is {record["gold"]!r} there and {example.answer!r} in this data; '
        'give another --out or the same data'
      )


def place(out: str | os.PathLike, name: str) -> pathlib.Path:
  if not os.fspath(out):
    raise UserError('--out is empty; give a directory, or leave it out')
  return pathlib.Path(out) / name


def write(path: pathlib.Path, rows: list[dict], scores: dict):
  """What an evaluation or a grading ends with."""
  records.write_all(path / 'records.jsonl', rows)
  records.write_json(path / 'scores.json', scores)


@contextlib.contextmanager
def locked(path: pathlib.Path):
  """A directory, made where it is not there, that nobody else has locked; UserError if somebody has."""
  path.mkdir(parents=True, exist_ok=True)
  handle = os.open(path, os.O_RDONLY)
  try:
    _lock(handle, path)
    yield
  finally:
    os.close(handle)


def _lock(handle: int, path: pathlib.Path):
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(f'{path}: another evaluation is writing here; wait for it, or give another --out') from None
  except OSError:
    return  # a file system without locks


def about(file: pathlib.Path) -> dict:
  """What is known of the run that made the records in `file`: its settings, and its scores if there are any."""
  known = (_whole(file.with_name('settings.json')) or {}) | (_whole(file.with_name('scores.json')) or {})
  if type(known.get('samples', 1)) is not int or known.get('samples', 1) < 1:
    raise UserError(f'{file.parent}: samples is {known["samples"]!r} in its scores or settings; evaluate again')
  return known


def is_unfinished(file: pathlib.Path) -> bool:
  """Whether the records in `file` are those of an evaluation that has not come to its end. Those of `grade` say so."""
  scores = _whole(file.with_name('scores.json'))
  return bool(scores.get('unfinished')) if scores else file.with_name('settings.json').exists()
