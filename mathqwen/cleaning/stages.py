"""The three stages of a cleaning, each for one element: what the workers of a Beam pipeline call.

  read   a piece of the sources  ->  parts: rows that passed the filters, and their keys
  group  one column of all keys  ->  which rows are duplicates of earlier ones
  write  a part                  ->  its rows without the duplicates, in the output

WORK, a folder below the output, holds what passes between stages, so that only names go through the pipeline:

  parts/00003-0001.rows           a line for each row        .keys, .minhash   as `duplicates.keys` has them
                  .left_out       a line for each row that was left out
                  .hits           overlaps with test problems (`contamination.Found`)
                  .json           counts; written last, so a part that has it is whole
  pieces/00003.json               how many parts a piece has, and rows that cannot be read
  groups/00017                    duplicates, see `_write_pairs`
  written/00003-0001.json         counts and hash of a part of the output      .npz   its tokens, for shards

What is there is not made again, so a cleaning that was interrupted continues.
"""

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator

import numpy as np

from mathqwen import files
from mathqwen.cleaning import duplicates, filters, job
from mathqwen.cleaning.job import Job, Piece
from mathqwen.data import contamination, examples, sources
from mathqwen.data.compared_rows import Batch, Row, take, turns_of
from mathqwen.data.contamination import Found
from mathqwen.data.examples import Example
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError

PART_ROWS = 50_000
_PART_BYTES = 2**26  # of a part's rows; the next part begins when it has more
_BATCH = 500  # rows whose n-grams are looked up at once: more of them leave the processor's cache
_GROUP_ROWS = 1_000_000  # keys that are sorted at once: what decides the memory of `group`
_NAMED = 200  # duplicates of a part whose first copy is looked up, to be shown


# --- read ---


def read(work: str, number: int) -> str:
  """Reads a piece into parts. Returns its name. UserError: when it cannot be read."""
  folder = files.path(work)
  name = f'{number:05d}'
  done = folder / 'pieces' / f'{name}.json'
  if done.is_file():
    return name
  this, tests = job.load(work)
  report = Report()
  rows = _examples(this, this.pieces[number], report)
  count = 0
  while True:
    part = f'{name}-{count:04d}'
    summary = folder / 'parts' / f'{part}.json'
    if summary.is_file():
      rows_in = json.loads(summary.read_bytes())['rows_in']
      _skip(rows, rows_in)
    else:
      rows_in = _read_part(this, tests, rows, folder / 'parts' / part, this.pieces[number])
    if rows_in == 0:
      break
    count += 1
  result = {
    'parts': count,
    'report': report.to_dict(),
    'unread': sorted(report.unread),
    'columns': sorted(report.columns),
  }
  files.write_atomically(done, json.dumps(result).encode())
  return name


def _skip(rows: Iterator[Example], count: int) -> None:
  next(itertools.islice(rows, count, count), None)


def _examples(this: Job, piece: Piece, report: Report) -> Iterator[Example]:
  source = this.sources[piece.source]
  if piece.path is None:
    return sources.stream(source, report, 'train', this.data_dir, any_turns=this.any_turns)
  path = files.path(piece.path)
  columns = sources.parse_columns(this.columns)
  return examples.stream_files(
    [path], source, 'train', report, columns, this.any_turns, piece.lines, names=this.names[piece.source]
  )


def _read_part(this: Job, tests, rows: Iterator[Example], path: files.AnyPath, piece: Piece) -> int:
  """Writes the next part. Returns how many rows it read for it; 0 when there were none left."""
  part = _Part(this, tests, this.sources[piece.source])
  while part.rows_in < PART_ROWS and part.bytes < _PART_BYTES:
    batch = take(rows, min(_BATCH, PART_ROWS - part.rows_in), _characters)
    if not batch:
      break
    part.add(batch)
  if part.rows_in:
    part.write(path, piece.source)
  return part.rows_in


def _characters(example: Example) -> int:
  return sum(len(turn['content'] or '') for turn in turns_of(example))


class _Part:
  """The rows of a part, while it is read."""

  def __init__(self, this: Job, tests: contamination.TestSets, source: str):
    self._job = this
    self._tests = tests
    self._source = source
    self._found = Found()
    self._lines: list[bytes] = []
    self._left_out: list[bytes] = []
    self._keys: list[np.ndarray] = []
    self._signatures: list[np.ndarray] = []
    self._report = Report()
    self.rows_in = 0
    self.bytes = 0

  def add(self, batch: list[Example]) -> None:
    """Filters rows, and adds those that pass."""
    cleaning = self._job.cleaning
    self.rows_in += len(batch)
    passed = []
    for example in batch:
      row = Row.of(example, self._source)
      if found := filters.reason_to_leave_out(row, cleaning):
        self._leave_out(row, *found)
      else:
        passed.append(row)
    rows = Batch(passed)
    kept = []
    for row, hits in zip(passed, self._tests.check(rows, self._found), strict=True):
      kind = next((kind for kind in cleaning.contamination if kind in hits), None)
      if kind is None:
        kept.append(row)
      else:
        problem = self._tests.problems[hits[kind][0]]
        self._leave_out(row, 'contaminated', f'{kind} of {problem.test_set} {problem.id}')
    rows = rows if len(kept) == len(passed) else Batch(kept)
    keys, signatures = duplicates.keys(rows, cleaning.near_duplicates > 0)
    self._keys.append(keys)
    self._signatures.append(signatures)
    for row in kept:
      line = f'{row.record}\n'.encode()
      self._lines.append(line)
      self.bytes += len(line)

  def _leave_out(self, row: Row, reason: str, detail: str) -> None:
    self._report.add(reason, row.where, detail)
    self._left_out.append(_left_out_line(self._source, row.where, reason, detail))

  def write(self, path: files.AnyPath, source: int) -> None:
    """Writes the part's files. OSError: names the file, when the disk is full."""
    sizes = [len(line) for line in self._lines]
    contents = {
      'rows': b''.join(self._lines),
      'offsets': np.cumsum([0, *sizes], dtype=np.int64).tobytes(),
      'keys': np.concatenate(self._keys, axis=1).tobytes(),
      'minhash': np.concatenate(self._signatures).tobytes(),
      'left_out': b''.join(self._left_out),
      'hits': self._found.to_json().encode(),
    }
    for suffix, content in contents.items():
      files.write_atomically(path.with_name(f'{path.name}.{suffix}'), content)
    summary = {
      'source': source,
      'rows_in': self.rows_in,
      'rows': len(self._lines),
      'report': self._report.to_dict(),
    }
    files.write_atomically(path.with_name(f'{path.name}.json'), json.dumps(summary).encode())


def _left_out_line(source: str, where: str, reason: str, detail: str, **more: object) -> bytes:
  value = {'source': source, 'where': where, 'reason': reason, 'detail': detail, **more}
  return f'{json.dumps(value, ensure_ascii=False)}\n'.encode('utf-8', 'replace')


# --- group ---


@functools.lru_cache(maxsize=1)
def parts_of(work: str) -> list[tuple[str, dict]]:
  """(name, summary) of all parts in the order of the sources. Only once all pieces are read."""
  folder = files.path(work)
  found = []
  for number in range(len(job.load(work)[0].pieces)):
    count = json.loads((folder / 'pieces' / f'{number:05d}.json').read_bytes())['parts']
    for part in range(count):
      name = f'{number:05d}-{part:04d}'
      found.append((name, json.loads((folder / 'parts' / f'{name}.json').read_bytes())))
  return found


def group_numbers(work: str) -> list[int]:
  """The elements of `group`: a number for each column of the keys and each range of their values."""
  cleaning = job.load(work)[0].cleaning
  columns = [0] if cleaning.duplicates else []
  if cleaning.near_duplicates > 0:
    columns += range(1, duplicates.COLUMNS)
  ranges = _ranges(work)
  return [column * ranges + part for column in columns for part in range(ranges)]


def _ranges(work: str) -> int:
  return 1 + sum(summary['rows'] for _, summary in parts_of(work)) // _GROUP_ROWS


def group(work: str, number: int) -> int:
  """Writes the duplicates among one range of one column of the keys. Returns `number`."""
  folder = files.path(work)
  path = folder / 'groups' / f'{number:05d}'
  if path.is_file():
    return number
  parts = parts_of(work)
  ranges = _ranges(work)
  column, which = divmod(number, ranges)
  keys = []
  rows = []
  for index, (name, summary) in enumerate(parts):
    count = summary['rows']
    values = _read_array(folder / 'parts' / f'{name}.keys', np.uint64, column * count, count)
    chosen = np.flatnonzero((values != 0) & ((values >> np.uint64(40)) % np.uint64(ranges) == np.uint64(which)))
    keys.append(values[chosen])
    rows.append(chosen.astype(np.uint64) | np.uint64(index << 32))
  all_keys = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
  all_rows = np.concatenate(rows) if rows else np.zeros(0, np.uint64)
  if column == 0:
    found = duplicates.groups(all_keys)
    pairs = [(group[1:], np.full(len(group) - 1, group[0]), np.ones(len(group) - 1)) for group in found]
  else:
    pairs = list(_near_pairs(work, all_keys, all_rows))
  _write_pairs(path, pairs, all_rows, len(parts))
  return number


def _near_pairs(work: str, keys: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(rows, the earlier rows that they are near, similarities) of each group of candidates; rows by their index."""
  threshold = job.load(work)[0].cleaning.near_duplicates
  found = list(duplicates.groups(keys))
  if not found:
    return
  needed = np.sort(np.concatenate(found))
  signatures = _signatures(work, rows[needed])
  for group in found:
    near = duplicates.near(signatures[np.searchsorted(needed, group)], threshold)
    if near:
      members, leaders, similar = map(np.array, zip(*near, strict=True))
      yield group[members], group[leaders], similar


def _signatures(work: str, rows: np.ndarray) -> np.ndarray:
  """The MinHash of rows, which must be sorted."""
  folder = files.path(work)
  result = np.zeros((len(rows), duplicates.PERMUTATIONS), np.uint8)
  part_of = (rows >> np.uint64(32)).astype(np.int64)
  for index in np.unique(part_of).tolist():
    name, summary = parts_of(work)[index]
    stored = _read_array(
      folder / 'parts' / f'{name}.minhash', np.uint8, 0, summary['rows'] * duplicates.PERMUTATIONS
    ).reshape(-1, duplicates.PERMUTATIONS)
    here = part_of == index
    result[here] = stored[(rows[here] & np.uint64(2**32 - 1)).astype(np.int64)]
  return result


def _read_array(path: files.AnyPath, dtype: type, start: int, count: int) -> np.ndarray:
  size = np.dtype(dtype).itemsize
  with contextlib.closing(files.open_ranges(path)) as file:
    return np.frombuffer(file.read(start * size, count * size), dtype)


_PAIR = np.dtype([('row', np.uint64), ('first', np.uint64), ('similarity', np.float64)])


def _write_pairs(path: files.AnyPath, pairs: list[tuple], rows: np.ndarray, parts: int) -> None:
  """Writes pairs sorted by row: parts + 1 offsets (int64), then the pairs of each part."""
  size = sum(len(members) for members, _, _ in pairs)
  table = np.zeros(size, _PAIR)
  if pairs:
    for field, column in zip(_PAIR.names, zip(*pairs, strict=True), strict=True):
      values = np.concatenate(column)
      table[field] = values if field == 'similarity' else rows[values]
  table.sort(order='row')
  starts = np.searchsorted(table['row'] >> np.uint64(32), np.arange(parts + 1, dtype=np.uint64))
  files.write_atomically(path, starts.astype(np.int64).tobytes() + table.tobytes())


def _read_pairs(path: files.AnyPath, part: int, parts: int) -> np.ndarray:
  start, stop = _read_array(path, np.int64, part, 2).tolist()
  with contextlib.closing(files.open_ranges(path)) as file:
    offset = 8 * (parts + 1)
    return np.frombuffer(file.read(offset + start * _PAIR.itemsize, (stop - start) * _PAIR.itemsize), _PAIR)


# --- write ---


def write(work: str, index: int) -> str:
  """Writes a part of the output. Returns its name."""
  folder = files.path(work)
  name, summary = parts_of(work)[index]
  done = folder / 'written' / f'{name}.json'
  if done.is_file():
    return name
  this, _ = job.load(work)
  source = this.sources[summary['source']]
  dropped = _dropped(work, index)
  path = folder / 'parts' / f'{name}.rows'
  with contextlib.closing(files.open_ranges(path)) as file:
    content = file.read(0, file.size)
  lines = content.splitlines(keepends=True)
  report = Report()
  left_out = []
  for row, (reason, first, similarity) in dropped.items():
    record = json.loads(lines[row])
    more = _shown(work, first, record) if len(left_out) < _NAMED else {}
    detail = f'same as {more.get("of", "an earlier row")}' if reason == 'duplicate' else f'similarity {similarity:.2f}'
    report.add(reason, record['where'], detail)
    left_out.append(_left_out_line(source, record['where'], reason, detail, **more))
  kept = [line for row, line in enumerate(lines) if row not in dropped]
  count = len(kept)
  content = b''.join(kept)
  if this.tokens is not None:
    from mathqwen.cleaning import tokens  # imports Grain, which text does not need

    content, untokenised = tokens.encode(kept, this.tokens)
    files.write_atomically(folder / 'written' / f'{name}.npz', content)
    report.merge(untokenised)
    count -= sum(untokenised.counts.values())
    for reason, rows in untokenised.rows.items():
      left_out += [_left_out_line(source, where, reason, detail) for where, detail in rows]
  elif kept:
    target = folder.parent / this.folder(summary['source']) / f'train-{name}.jsonl'
    files.write_atomically(target, content)
  files.write_atomically(folder / 'written' / f'{name}.left_out', b''.join(left_out))
  result = {
    'rows': count,
    'sha256': hashlib.sha256(content).hexdigest(),
    'report': report.to_dict(),
  }
  files.write_atomically(done, json.dumps(result).encode())
  return name


def _dropped(work: str, index: int) -> dict[int, tuple[str, int, float]]:
  """Row of a part -> (reason, first copy, similarity); rows in order."""
  folder = files.path(work)
  found: dict[int, tuple[str, int, float]] = {}
  ranges = _ranges(work)
  for number in group_numbers(work):
    reason = 'near_duplicate' if number >= ranges else 'duplicate'
    for row, first, similarity in _read_pairs(folder / 'groups' / f'{number:05d}', index, len(parts_of(work))).tolist():
      found.setdefault(row & (2**32 - 1), (reason, first, similarity))
  return dict(sorted(found.items()))


def _shown(work: str, row: int, record: dict) -> dict[str, object]:
  """What is said about the first copy of a duplicate, with both questions."""
  folder = files.path(work)
  name, _ = parts_of(work)[row >> 32]
  start, stop = _read_array(folder / 'parts' / f'{name}.offsets', np.int64, row & (2**32 - 1), 2).tolist()
  with contextlib.closing(files.open_ranges(folder / 'parts' / f'{name}.rows')) as file:
    first = json.loads(file.read(start, stop - start))
  question = lambda value: value.get('question') or next(t['content'] for t in value['messages'] if t['role'] == 'user')
  return {
    'of': f'{first["source"]} {first["where"]}',
    'question': question(record),
    'of_question': question(first),
  }


def check_folder(work: str) -> None:
  """UserError: when the parts of a run are not whole, because someone removed files."""
  folder = files.path(work)
  for name, _ in parts_of(work):
    if not (folder / 'written' / f'{name}.json').is_file():
      raise UserError(f'{folder}: part {name} is not there; run the same command again')
