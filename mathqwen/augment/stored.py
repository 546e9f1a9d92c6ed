"""`StoredAnswers`: what a model answered, in a file that grows by lines; on disk and not in memory.

DIR/samples.jsonl       {"id": "gsm8k/train/0#3", "response": ..., ...}    host 0's, one line an answer
DIR/samples.1.jsonl     those of host 1, ...

Only where each line begins is kept in memory, so that a hundred answers to each of a million questions fit. What is on
an object store is copied to a local file without a name, and so is each line that is added.
"""

import json
import re
import tempfile
from collections.abc import Collection
from typing import BinaryIO

from mathqwen import files
from mathqwen.errors import UserError, report
from mathqwen.evals import records
from mathqwen.hardware import hosts


class StoredAnswers:
  """The answers in NAME.jsonl, by question and number. To be used with `with`, which closes the files."""

  def __init__(
    self,
    folder: files.AnyPath,
    name: str,
    ids: list[str],
    samples: int,
    lock: files.Lock,
    passed_over: Collection[str] = (),
  ):
    """ids: of the questions. samples: answers that each may have. lock: of `folder`.

    passed_over: ids of questions that an earlier run may have asked and this one does not; their answers are not read.
    UserError: when a line is damaged, or answers none of all these questions.
    """
    host, _ = hosts.share()
    self._path = folder / (f'{name}.{host}.jsonl' if host else f'{name}.jsonl')
    self._lock = lock
    self._index = {question: i for i, question in enumerate(ids)}
    self._samples = samples
    self._passed_over = frozenset(passed_over)
    self._places: dict[int, dict[int, tuple[BinaryIO, int]]] = {}  # question -> number of the answer -> (file, offset)
    self._files: list[BinaryIO] = []
    self._journal: files.Journal | None = None  # of this host, once there is something to add
    self._own: BinaryIO | None = None  # where its lines are read from
    self._size = 0  # bytes of its whole lines
    self._lacks_newline = False  # of the last of them
    for path in parts(folder, name):
      if path == self._path or host == 0:
        self._scan(path)

  def _open(self, path: files.AnyPath) -> BinaryIO:
    """A file to read the lines of `path` from."""
    if files.is_remote(path):
      file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
      file.write(files.read_journal(path))
      file.seek(0)
    else:
      file = open(path, 'rb')  # noqa: SIM115 - closed by __exit__
    self._files.append(file)
    return file

  def _scan(self, path: files.AnyPath) -> None:
    file = self._open(path)
    size = 0
    is_ended = True
    for number, line in enumerate(file, 1):
      try:
        key = self._key_of(json.loads(line))
      except (ValueError, RecursionError) as error:
        if not line.endswith(b'\n'):
          report(f'{path}:{number}: half-written last line dropped')
          break
        raise UserError(f'{path}:{number}: not an answer of this run ({error}); delete the line') from None
      if key is not None:
        question, sample = key
        self._places.setdefault(question, {}).setdefault(sample, (file, size))
      size += len(line)
      is_ended = line.endswith(b'\n')
    if path == self._path:
      self._own, self._size, self._lacks_newline = file, size, not is_ended

  def _key_of(self, record: object) -> tuple[int, int] | None:
    """(question, number of the answer); None: it is passed over. ValueError: it is no record of such an answer."""
    if not isinstance(record, dict) or not isinstance(record.get('response'), str):
      raise ValueError('no response in it')
    question, _, number = str(record.get('id')).rpartition('#')
    if question in self._passed_over:
      return None
    if question not in self._index or not re.fullmatch('[0-9]{1,9}', number) or int(number) >= self._samples:
      raise ValueError(f'{record.get("id")!r} is not asked')
    return self._index[question], int(number)

  def numbers(self, question: int) -> set[int]:
    """Of the answers to that question that are here."""
    return set(self._places.get(question, ()))

  def read(self, question: int) -> list[dict]:
    """The answers to a question, in the order of their numbers."""
    found = []
    for _, (file, offset) in sorted(self._places.get(question, {}).items()):
      file.seek(offset)
      found.append(json.loads(file.readline()))
    return found

  def add(self, record: dict) -> None:
    """Appends an answer. When this returns, it is on disk (gs://: see `files.Journal`)."""
    self._lock.check()
    key = self._key_of(record)
    if key is None:
      raise ValueError(f'{record["id"]} is passed over')
    question, number = key
    if self._journal is None:
      self._begin()
    line = records.line(record)
    self._journal.write(line)
    if files.is_remote(self._path):
      self._own.seek(self._size)
      self._own.write(line)
    self._places.setdefault(question, {})[number] = (self._own, self._size)
    self._size += len(line)

  def _begin(self) -> None:
    """Opens the journal, which cuts off a half-written line and ends the last whole one."""
    self._journal = files.Journal(self._path, self._size)
    if self._own is None:
      self._own = self._open(self._path)
    if self._lacks_newline:
      if files.is_remote(self._path):
        self._own.seek(self._size)
        self._own.write(b'\n')
      self._size += 1

  def end(self) -> None:
    """Closes the journal. The answers can still be read."""
    if self._journal is not None:
      journal, self._journal = self._journal, None
      journal.__exit__(None, None, None)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    try:
      if self._journal is not None:
        self._journal.__exit__(*error)
    finally:
      for file in self._files:
        file.close()


def parts(folder: files.AnyPath, name: str) -> list[files.AnyPath]:
  """The files of all hosts that are there, host 0's first."""
  found = []
  for path in folder.iterdir():
    if match := re.fullmatch(rf'{name}(?:\.(\d+))?\.jsonl', path.name):
      found.append((int(match[1] or 0), path))
  return [path for _, path in sorted(found)]
