"""Tokenised examples on disk, in shards of bounded size that are read at random: `Writer` and the card.

DIR/data-00000.array_record      a record for each example: its ids, its mask, its source and where it is from
DIR/prompts-00000.array_record   which of them share a prompt: the index of `prompts`, a block a record
DIR/data-00001.array_record ...
DIR/card.json                    what they are and what they were made with; written last, so that a folder without one
                                 is unfinished
DIR/unfinished.json              there before the first shard, and gone after the card

`shard_reader.Shards` reads them. A record is a header (`shard_card.HEADER`), then

  ids      int32, little-endian
  mask     a bit for each id
  where    UTF-8
"""

import array
import errno
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

import mathqwen
from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.data import prompts
from mathqwen.data.left_out import Report
from mathqwen.data.shard_card import CARD, FORMAT, HEADER, UNFINISHED, ends_of, made_with
from mathqwen.errors import UserError, report
from mathqwen.text.tokenizer import Tokenizer

SHARD_BYTES = 2**27  # of the records of a shard, before they are compressed: a host opens or fetches them one by one
# Records that are compressed together. More of them make smaller files and a smaller index in memory (8 bytes a group),
# and each record that is read costs more.
_GROUP = 32
_CHECK_EVERY = 1024  # records after which the writer asks whether the disk is full
_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


class Writer:
  """Writes shards into a folder, local or on gs://:

  with Writer('shards', tokenizer, chat, seq_len=1024) as writer:
    writer.add(ids, mask, 'train.jsonl:18', 'gsm8k')

  The folder is finished when the block ends without an error. `about` (licences, filters: any JSON) and `left_out`, a
  Report for each source, may be filled in until then.
  """

  def __init__(
    self,
    folder: str | files.AnyPath,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    seq_len: int,
    about: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
  ):
    """seq_len: positions that an example may have at most. shard_bytes: of records in a shard."""
    self.about = about or {}
    self.left_out: dict[str, Report] = {}
    self._folder = files.path(folder)
    self._seq_len = seq_len
    self._shard_bytes = shard_bytes
    self._made_with = made_with(tokenizer, chat)
    self._sources: dict[str, dict[str, int]] = {}  # name -> its counts
    self._longest = 0
    self._shards: list[dict] = []  # those that are complete, as the card has them
    self._shard: _Shard | None = None

  def __enter__(self) -> 'Writer':
    """Makes and locks the folder. UserError: when it holds finished shards, other files, or another process writes."""
    files.make_folder(self._folder)
    self._locked = files.locked(self._folder, 'writer of shards')
    self._locked.__enter__()
    try:
      self._begin()
    except BaseException as error:
      self._locked.__exit__(type(error), error, None)
      raise
    return self

  def _begin(self) -> None:
    there = [path for path in self._folder.iterdir() if not path.name.startswith('.lock')]
    if (self._folder / CARD).is_file():
      raise UserError(f'{self._folder} holds finished shards: remove them, or give another folder')
    if there and not (self._folder / UNFINISHED).is_file():
      raise UserError(f'{self._folder} holds {there[0].name} and no shards: give an empty folder')
    if there:
      report(f'{self._folder}: unfinished shards of an earlier attempt are removed, and written from the beginning')
    _write_json(self._folder / UNFINISHED, {'format': FORMAT})
    for path in there:
      if path.name != UNFINISHED:
        path.unlink()

  def add(self, ids: Sequence[int], mask: Sequence[int], where: str, source: str) -> None:
    """Adds an example: what `render_batch` of the template gives, from a place in a source.

    UserError: when it is longer than seq_len, or has no loss token: a caller leaves those out, and counts them.
    OSError: when the disk is full.
    """
    ids, mask = np.asarray(ids, '<i4'), np.asarray(mask, np.uint8)
    positions = len(ids) - 1
    loss_tokens = int(np.count_nonzero(mask))
    if not 0 < positions <= self._seq_len or len(mask) != len(ids) or not loss_tokens:
      raise UserError(
        f'{source}, {where}: {len(ids)} ids and {len(mask)} values of the mask with {loss_tokens} tokens with loss do '
        f'not make an example of at most {self._seq_len} positions: leave it out'
      )
    counts = self._sources.setdefault(source, {'examples': 0, 'tokens': 0, 'loss_tokens': 0})
    counts['examples'] += 1
    counts['tokens'] += positions
    counts['loss_tokens'] += loss_tokens
    self._longest = max(self._longest, positions)
    number = list(self._sources).index(source) if len(self._sources) > 1 else 0
    if self._shard is None:
      self._shard = _Shard(self._folder, len(self._shards))
    self._shard.add(ids, mask, number, where)
    if self._shard.bytes >= self._shard_bytes:
      self._shards.append(self._shard.close())
      self._shard = None

  def __exit__(self, kind, error, trace) -> None:
    """Writes the card, unless there was an error. UserError: when nothing was added."""
    try:
      if kind is None:
        self._finish()
      elif self._shard is not None:
        self._shard.abandon()
    finally:
      self._locked.__exit__(kind, error, trace)

  def _finish(self) -> None:
    if self._shard is not None:
      self._shards.append(self._shard.close())
    if not self._shards:
      raise UserError(f'{self._folder}: no example to write')
    totals = {name: sum(counts[name] for counts in self._sources.values()) for name in ('examples', 'tokens')}
    digests = ''.join(shard['digest'] for shard in self._shards)
    card = {
      'format': FORMAT,
      'version': mathqwen.__version__,
      **totals,
      'loss_tokens': sum(counts['loss_tokens'] for counts in self._sources.values()),
      'longest': self._longest,
      'seq_len': self._seq_len,
      'made_with': self._made_with,
      'sources': self._sources,
      'left_out': {source: report.to_dict() for source, report in self.left_out.items()},
      'about': self.about,
      'fingerprint': hashlib.sha256(digests.encode()).hexdigest()[:16],
      'shards': self._shards,
    }
    _write_json(self._folder / CARD, card)
    (self._folder / UNFINISHED).unlink()


class _Shard:
  """One shard that is being written: its two files."""

  def __init__(self, folder: files.AnyPath, number: int):
    self._folder = folder
    self._number = number
    self.bytes = 0
    self._prompts = array.array('Q')
    self._digest = hashlib.sha256()
    self._data = _RecordFile(folder / f'data-{number:05}.array_record')

  def add(self, ids: np.ndarray, mask: np.ndarray, source: int, where: str) -> None:
    name = where.encode()[: 2**16 - 1]
    record = HEADER.pack(len(ids), source, len(name)) + ids.tobytes() + np.packbits(mask != 0).tobytes() + name
    self._data.write(record)
    self._digest.update(record)
    self._prompts.append(prompts.hash_of(ids[: mask.argmax()].tobytes()))
    self.bytes += len(record)

  def close(self) -> dict:
    """Completes both files. Returns what the card says about them."""
    data = self._data.close()
    entries = prompts.sorted_entries(self._prompts)
    index = _RecordFile(self._folder / f'prompts-{self._number:05}.array_record')
    for start in range(0, len(entries), prompts.BLOCK):
      index.write(entries[start : start + prompts.BLOCK].tobytes())
    return {
      'examples': len(entries),
      'digest': self._digest.hexdigest()[:16],
      'data': data,
      'prompts': index.close(),
    }

  def abandon(self) -> None:
    """Ends the thread that writes."""
    self._data.abandon()


class _RecordFile:
  """An array_record file; one for gs:// is written on this machine and copied there."""

  def __init__(self, path: files.AnyPath):
    self._path = path
    self._temporary: tempfile.TemporaryDirectory | None = None
    self._local = path
    if files.is_remote(path):
      self._temporary = tempfile.TemporaryDirectory()
      self._local = pathlib.Path(self._temporary.name) / path.name
    self._records = 0
    group = 1 if path.name.startswith('prompts') else _GROUP
    with _explained(self._local):
      self._writer = ArrayRecordWriter(str(self._local), f'group_size:{group}')

  def write(self, record: bytes) -> None:
    """Appends a record. OSError: when an earlier one could not be written."""
    with _explained(self._local):
      self._writer.write(record)
      self._records += 1
      if self._records % _CHECK_EVERY == 0 and not self._writer.ok():
        self._writer.close()  # raises what went wrong

  def close(self) -> dict:
    """Completes the file. Returns its name, its size and its hash, as the card has them. OSError: as `write`."""
    with _explained(self._local):
      self._writer.close()
    with files.named(self._local), open(self._local, 'rb') as file:
      os.fsync(file.fileno())
    found = {
      'file': self._path.name,
      'records': self._records,
      'bytes': self._local.stat().st_size,
      'ends': ends_of(self._local),
    }
    if self._temporary is not None:
      with files.open_new(self._path) as target, open(self._local, 'rb') as file:
        while piece := file.read(2**24):
          target.write(piece)
      self._temporary.cleanup()
    return found

  def abandon(self) -> None:
    """Closes the file as it is."""
    try:
      self._writer.close()
    except (RuntimeError, ValueError):
      return
    finally:
      if self._temporary is not None:
        self._temporary.cleanup()


class _explained:  # noqa: N801 - used as a function
  """Turns what the library raises for an error of the operating system into an OSError, which names the file."""

  def __init__(self, path: files.AnyPath):
    self._path = path

  def __enter__(self) -> None:
    return None

  def __exit__(self, kind, error, trace) -> None:
    for code in _ERRORS:
      if isinstance(error, RuntimeError | ValueError) and os.strerror(code) in str(error):
        raise OSError(code, os.strerror(code), str(self._path)) from error


def _write_json(path: files.AnyPath, value: dict) -> None:
  files.write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + '\n').encode())
