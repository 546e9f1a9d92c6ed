"""`Shards`: the examples that `shards.Writer` wrote, read at random. What is read at the start does not grow with them.

Of a folder on gs://, each host copies a shard to $MATHQWEN_CACHE/shards when an example of it is first needed: the
library reads local files alone, and examples are drawn from all shards. Where the disk is too small for that, mount
the bucket (gcsfuse) and give the path.
"""

import bisect
import collections
import hashlib
import itertools
import pathlib
import secrets
import threading
from collections.abc import Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.data import prompts
from mathqwen.data.cache import cache_dir
from mathqwen.data.encoded import Masked, Names
from mathqwen.data.left_out import Report
from mathqwen.data.shard_card import HEADER, ends_of, made_with, read_card
from mathqwen.errors import UserError, report
from mathqwen.text.tokenizer import Tokenizer

_AT_RANDOM = 'readahead_buffer_size:0,max_parallelism:0'
_OPEN = 256  # files at the same time, each with its index of 8 bytes for 32 examples
_PIECE = 2**26  # bytes copied at once


class Shards:
  """The examples of a folder of shards, in the order in which they were added. To the pipeline it is an `Encoded`."""

  def __init__(self, folder: str | files.AnyPath):
    """UserError: when the shards are unfinished, missing, damaged or mixed."""
    self.folder = files.path(folder)
    self.card = read_card(self.folder)
    self._starts = [0, *itertools.accumulate(shard['examples'] for shard in self.card['shards'])]
    self._files = _Files(self.folder, self.card)
    self.where: Sequence[str] = Names(len(self), self.names)

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> Masked:
    """(ids, mask) of one example."""
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> list[Masked]:
    """(ids, mask) of these examples. UserError: when a shard is damaged."""
    return [_decode(record)[:2] for record in self._records(indices)]

  def names(self, indices: Sequence[int]) -> list[str]:
    """Where these examples are from."""
    return [_decode(record)[2] for record in self._records(indices)]

  def _records(self, indices: Sequence[int]) -> list[bytes]:
    """The records of examples, in the order asked for; each shard is asked once."""
    by_shard: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)  # shard -> (index in it, place)
    for place, index in enumerate(indices):
      if not 0 <= index < len(self):
        raise IndexError(index)
      shard = bisect.bisect_right(self._starts, index) - 1
      by_shard[shard].append((index - self._starts[shard], place))
    found: list[bytes] = [b''] * len(indices)
    for shard, wanted in sorted(by_shard.items()):
      wanted.sort()
      records = self._files.read(self.card['shards'][shard]['data'], [index for index, _ in wanted])
      for (_, place), record in zip(wanted, records, strict=True):
        found[place] = record
    return found

  @property
  def positions(self) -> int:
    """As `Encoded.positions`."""
    return self.card['tokens']

  @property
  def loss_tokens(self) -> int:
    """As `Encoded.loss_tokens`."""
    return self.card['loss_tokens']

  @property
  def longest(self) -> int:
    """As `Encoded.longest`."""
    return self.card['longest']

  @property
  def checksum(self) -> str:
    """As `Encoded.checksum`, of the folder."""
    return self.card['fingerprint']

  def prompt_indexes(self) -> list[prompts.Index]:
    """As `Encoded.prompt_indexes`."""
    indexes: list[prompts.Index] = []
    for start, shard in zip(self._starts, self.card['shards'], strict=False):
      indexes.append(_StoredIndex(self._files, shard['prompts'], shard['examples'], start))
    return indexes

  @property
  def left_out(self) -> Report:
    """What was left out when the shards were made, of all their sources."""
    found = Report()
    for counts in self.card['left_out'].values():
      found.merge(Report.from_dict(counts))
    if licences := self.card['about'].get('licences'):
      found.origin = {'fingerprint': self.checksum, 'licence': ', '.join(sorted(set(licences.values())))}
    return found

  def check(self, tokenizer: Tokenizer, chat: ChatFormat, seq_len: int) -> None:
    """UserError: when a run with this tokenizer, template, system turn and length of rows cannot train on them."""
    was, now = self.card['made_with'], made_with(tokenizer, chat)
    again = 'make the shards again with those of this run'
    if was['probe'] != now['probe'] or was['template_sha256'] != now['template_sha256']:
      if was['tokenizer']['probe'] != now['tokenizer']['probe']:
        raise UserError(f'{self.folder}: its shards were made with another tokenizer than that of this run: {again}')
      if was['system_prompt'] != now['system_prompt']:
        raise UserError(
          f'{self.folder}: its shards were made with data.system_prompt={was["system_prompt"]!r}, and this run has '
          f'{now["system_prompt"]!r}: set it to the same, or {again}'
        )
      raise UserError(
        f'{self.folder}: its shards were made with the template {was["template"]}, and this run has another, '
        f'{now["template"]}: set data.template to the same, or {again}'
      )
    if self.longest > seq_len:
      raise UserError(
        f'{self.folder}: its longest example needs {self.longest} positions and data.seq_len is {seq_len}: set '
        f'data.seq_len={self.longest} or more, or {again}'
      )


class _StoredIndex:
  """A `prompts.Index` in a file."""

  def __init__(self, stored: '_Files', entry: dict, examples: int, first: int):
    self._files = stored
    self._entry = entry
    self._examples = examples
    self.first = first

  def __len__(self) -> int:
    return self._examples

  def block(self, number: int) -> np.ndarray:
    """As `Index.block`."""
    return np.frombuffer(self._files.read(self._entry, [number])[0], prompts.ENTRY)


def _decode(record: bytes) -> tuple[np.ndarray, np.ndarray, str]:
  """(ids int32, mask uint8, where) of a record."""
  count, _, size = HEADER.unpack_from(record)
  ids = np.frombuffer(record, '<i4', count, HEADER.size).astype(np.int32, copy=False)
  bits = np.frombuffer(record, np.uint8, -(-count // 8), HEADER.size + 4 * count)
  return ids, np.unpackbits(bits, count=count), record[len(record) - size :].decode(errors='replace')


class _Files:
  """The files of a folder of shards, opened when they are first read."""

  def __init__(self, folder: files.AnyPath, card: dict):
    """UserError: when a file is missing or of another size or other content, or there is one more."""
    self._folder = folder
    self._lock = threading.Lock()  # a reader is used by the thread that fetches batches, and by the one that names them
    self._open: collections.OrderedDict[str, ArrayRecordReader] = collections.OrderedDict()
    entries = [shard[part] for shard in card['shards'] for part in ('data', 'prompts')]
    there = {path.name for path in folder.iterdir() if path.name.endswith('.array_record')}
    if missing := [entry['file'] for entry in entries if entry['file'] not in there]:
      raise UserError(f'{folder} lacks {missing[0]}, one of {len(missing)} missing shards: copy the folder again')
    if more := sorted(there - {entry['file'] for entry in entries}):
      raise UserError(f'{folder} is mixed: its card does not list {more[0]}; remove what is not of these shards')
    self._local = folder
    if files.is_remote(folder):
      self._local = cache_dir() / 'shards' / hashlib.sha256(f'{folder} {card["fingerprint"]}'.encode()).hexdigest()[:20]
      _check_room(folder, self._local, entries)
    else:
      for entry in entries:
        _check_file(folder / entry['file'], entry)

  def read(self, entry: dict, numbers: list[int]) -> list[bytes]:
    """Records of a file. entry: of the card."""
    with self._lock:
      reader = self._reader(entry)
      try:
        found = reader.read(numbers)
      except (RuntimeError, ValueError, IndexError) as error:
        raise _damaged(self._folder / entry['file'], str(error)) from error
    if len(found) != len(numbers):
      raise _damaged(self._folder / entry['file'], 'records are missing')
    return found

  def _reader(self, entry: dict) -> ArrayRecordReader:
    name = entry['file']
    if name in self._open:
      self._open.move_to_end(name)
      return self._open[name]
    path = self._local / name
    if self._local != self._folder:
      _fetch(self._folder / name, path, entry)
    try:
      reader = ArrayRecordReader(str(path), _AT_RANDOM)
      if reader.num_records() != entry['records']:
        raise ValueError(f'{reader.num_records():,} records instead of {entry["records"]:,}')
    except (RuntimeError, ValueError) as error:
      raise _damaged(self._folder / name, str(error)) from error
    self._open[name] = reader
    if len(self._open) > _OPEN:
      self._open.popitem(last=False)[1].close()
    return reader


def _damaged(path: files.AnyPath, why: str) -> UserError:
  first = (why.splitlines() or [''])[0][:200]
  return UserError(f'{path} is damaged ({first}): copy it again, or make the shards again')


def _check_file(path: files.AnyPath, entry: dict) -> None:
  """UserError: when a file is not the one that the card lists."""
  size = path.stat().st_size
  if size != entry['bytes']:
    raise _damaged(path, f'{size:,} bytes instead of {entry["bytes"]:,}')
  if ends_of(path) != entry['ends']:
    raise _damaged(path, 'it is not the file that the card lists')


def _check_room(folder: files.AnyPath, local: pathlib.Path, entries: list[dict]) -> None:
  """UserError: when this machine has no room for a copy of what it does not have yet."""
  local.mkdir(parents=True, exist_ok=True)
  needed = sum(entry['bytes'] for entry in entries if not _is_there(local / entry['file'], entry))
  free = files.free_bytes(local)
  if free is not None and needed > free:
    raise UserError(
      f'{folder} needs {files.size_text(needed)} on this machine and {local} has {files.size_text(free)} free: set '
      'MATHQWEN_CACHE to a larger disk, or mount the bucket and give its path'
    )


def _is_there(path: pathlib.Path, entry: dict) -> bool:
  return path.is_file() and path.stat().st_size == entry['bytes'] and ends_of(path) == entry['ends']


def _fetch(source: files.AnyPath, target: pathlib.Path, entry: dict) -> None:
  """Copies a file to this machine, unless it is there."""
  if not _is_there(target, entry):
    report(f'fetching {source} ({files.size_text(entry["bytes"])})')
    part = target.with_name(f'{target.name}.{secrets.token_hex(4)}.part')
    file = files.open_ranges(source)
    try:
      with files.named(target), open(part, 'wb') as copy:
        for start in range(0, file.size, _PIECE):
          copy.write(file.read(start, _PIECE))
      part.replace(target)
    finally:
      file.close()
      part.unlink(missing_ok=True)
  _check_file(target, entry)
