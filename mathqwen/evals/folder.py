"""OUT/NAME, where one benchmark of an evaluation is kept; nobody else writes there meanwhile.

settings.json           what makes two runs the same run; written first
records.jsonl           host 0's answers as they end; at the end all answers, in the benchmark's order
records.1.jsonl, ...    the same of other hosts
scores.json             written last: without it the evaluation is not finished
"""

import contextlib
import fcntl
import os
import pathlib
import re

from mathqwen import hosts
from mathqwen.errors import UserError
from mathqwen.evals import records


class Folder:
  """Locked until it is closed. `stored`: the records that an earlier, interrupted run of the same settings left there,
  of however many hosts."""

  def __init__(self, path: pathlib.Path, settings: dict, examples: list):
    """UserError where another evaluation is writing, or where another run's records are."""
    self.path = path
    with contextlib.ExitStack() as stack:
      if hosts.share()[0] == 0:
        stack.enter_context(locked(path))
      path.mkdir(parents=True, exist_ok=True)
      self._new, self.stored = self._read(settings, examples)
      self._settings, self.close = settings, stack.pop_all().close

  def _read(self, settings: dict, examples: list) -> tuple[bool, records.Stored]:
    file, paths = self.path / 'settings.json', self._parts()
    if not file.exists():
      if paths:
        raise UserError(f'{paths[0]} is there without settings.json, so it cannot be continued; give another --out')
      return True, records.Stored([], None, 0)
    before = records.read_json(file, 'what is there cannot be continued; give another --out')
    changed = [key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key)]
    if changed:
      what = ', '.join(f'{key} {before.get(key)!r} there and {settings.get(key)!r} now' for key in sorted(changed))
      raise UserError(f'{self.path} holds another run ({what}); give another --out, or delete it')
    stored, found = {path: records.read(path, whole=True) for path in paths}, {}
    asked = {example.id: example for example in examples}
    for path, part in stored.items():
      for record in part.records:
        name, example = record['id'], asked.get(record['id'])
        if example is None or record['question'] != example.question:
          raise UserError(f'{path}: {name!r} is no problem of this data; give another --out or the same data')
        if record['gold'] != example.answer:
          raise UserError(
            f'{path}: the gold answer to {name!r} is {record["gold"]!r} there and {example.answer!r} in this data; '
            'give another --out or the same data'
          )
        found.setdefault(name, record)  # host 0 writes what others have as well
    notes = [part.note for part in stored.values() if part.note]
    own = stored.get(self._own())
    return False, records.Stored(list(found.values()), '; '.join(notes) or None, own.size if own else 0)

  def _own(self) -> pathlib.Path:
    host, _ = hosts.share()
    return self.path / (f'records.{host}.jsonl' if host else 'records.jsonl')

  def _parts(self) -> list[pathlib.Path]:
    """The records of all hosts, host 0's first."""
    found = [(re.fullmatch(r'records(?:\.(\d+))?\.jsonl', path.name), path) for path in self.path.iterdir()]
    return [path for _, path in sorted((int(name[1] or 0), path) for name, path in found if name)]

  def writer(self) -> records.Writer:
    """Of this host's answers, after those that are there."""
    if self._new:
      records.write_json(self.path / 'settings.json', self._settings)
    return records.Writer(self._own(), self.stored.size)

  def scores(self) -> dict | None:
    """Of a finished evaluation."""
    path = self.path / 'scores.json'
    return records.read_json(path) if path.exists() else None


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
  """A directory, made where it is not there, that no other evaluation writes to; one that stays empty is removed."""
  made = [folder for folder in (path, *path.parents) if not folder.exists()]
  path.mkdir(parents=True, exist_ok=True)
  handle = os.open(path, os.O_RDONLY)
  try:
    _lock(handle, path)
    yield
  finally:
    os.close(handle)
    with contextlib.suppress(OSError):  # not empty
      for folder in made:
        folder.rmdir()


def _lock(handle: int, path: pathlib.Path):
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(f'{path}: another evaluation is writing here; wait for it, or give another --out') from None
  except OSError:
    return  # a file system without locks


def about(file: pathlib.Path) -> dict:
  """What is known of the run that made the records in `file`: its scores or, before there are any, its settings."""
  for path in (file.with_name('scores.json'), file.with_name('settings.json')):
    if path.exists():
      known = records.read_json(path)
      if not isinstance(known.get('samples', 1), int):
        raise UserError(f'{path}: samples is {known["samples"]!r}; evaluate again to write it')
      return known
  return {}


def is_unfinished(file: pathlib.Path) -> bool:
  """Whether the records in `file` are those of an evaluation that has not come to its end."""
  return file.with_name('settings.json').exists() and not file.with_name('scores.json').exists()
