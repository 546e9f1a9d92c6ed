"""`Report`: which rows of a source are not trained on and why, and how many of them are too many."""

import collections
import math
from collections.abc import Mapping, Sequence

from mathqwen.errors import UserError

FILES = ('file_not_read', 'empty_file')  # kinds that count files, not rows
_KEPT = 100  # rows that a report names for each kind
# Kinds of rows that are lost. A duplicate is none: its first copy is trained on. Nor is what an option leaves out.
LOST = ('malformed', 'too_long', 'no_loss_token')
_NO_ROWS = (*FILES, 'repeated_id')  # kinds that leave out no rows; one with a repeated id stays, under another id


class Report:
  """What was left out of a data set, and where, by kind.

  Kinds are 'malformed', 'duplicate', 'repeated_id', 'no_loss_token', 'too_long', 'unverified' for what a published data
  set marks as wrong, 'not_wanted' for what an option of a source leaves out, and FILES. All are counted;
  the first _KEPT of each kind are named. `unread` has the fields of rows that are kept but that nothing reads.
  """

  def __init__(self, named: int | None = None):
    """named: how many rows of each kind are named; None takes _KEPT."""
    self._named = _KEPT if named is None else named
    self.counts: collections.Counter[str] = collections.Counter()
    self.rows: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)  # kind -> (where, detail) of each row
    self.unread: dict[str, str] = {}  # field -> where it was first
    self.columns: set[str] = set()  # those that the user names and that rows have
    self.origin: dict[str, str] = {}  # of the source, as `origins.of` has it
    self.shapes: collections.Counter[str] = collections.Counter()  # of the rows of a user's file: '{query, response}'

  def add(self, kind: str, where: str, detail: str = '') -> None:
    """Counts one row. detail: what is wrong with it."""
    self.counts[kind] += 1
    if len(self.rows[kind]) < self._named:
      self.rows[kind].append((where, detail))

  def rows_left_out(self) -> dict[str, int]:
    """How many rows were left out, by kind."""
    return {kind: count for kind, count in self.counts.items() if kind not in _NO_ROWS}

  def lines(self, limit: int = 5, kinds: Sequence[str] | None = None) -> list[str]:
    """A line to print for each kind, or each of `kinds`, naming up to `limit` rows.

    '3 malformed: train.jsonl:18 (no field "answer"), train.jsonl:99 (not JSON), ...'
    """
    result = []
    for kind, count in self.counts.items():
      if kinds is not None and kind not in kinds:
        continue
      named = [f'{where} ({detail})' if detail else where for where, detail in self.rows[kind][:limit]]
      if count > len(named):
        named.append('...')
      result.append(f'{count:,} {kind}: {", ".join(named)}')
    return result

  def merge(self, other: 'Report') -> None:
    """Adds what another report counted."""
    for kind, count in other.counts.items():
      self.counts[kind] += count
      self.rows[kind] += other.rows[kind][: self._named - len(self.rows[kind])]
    self.unread = other.unread | self.unread
    self.columns |= other.columns
    self.origin = self.origin or other.origin
    self.shapes += other.shapes

  def check_columns(self, source: str, columns: Mapping[str, str]) -> None:
    """UserError: when a column that the user names, {'system': COLUMN}, is in no row."""
    for field, column in columns.items():
      if column not in self.columns:
        raise UserError(f'{source}: no row has a column {column!r}, which --map {field}={column} names: correct it')

  def check(self, source: str, kept: int, limit: float, kinds: Sequence[str] = LOST) -> None:
    """UserError: when more than the share `limit` of the source's rows are lost. kept: rows that are trained on.

    kinds: of rows that count as lost.
    """
    lost = sum(self.counts[kind] for kind in kinds)
    rows = kept + self.counts['duplicate'] + self.counts['not_wanted'] + lost
    share = lost / max(rows, 1)
    if share > limit:
      reasons = '; '.join(self.lines(3, kinds))
      longer = ' (for too_long: raise data.seq_len)' if self.counts['too_long'] else ''
      raise UserError(
        f'{source}: {lost:,} of {rows:,} rows cannot be trained on, and data.max_left_out is {limit:g}: {reasons}: '
        f'correct them{longer}, or set data.max_left_out={math.ceil(share * 100) / 100:g} to train without them'
      )

  def to_dict(self) -> dict:
    """For JSON: {'malformed': {'count': 3, 'rows': [['train.jsonl:18', 'no field "answer"'], ...]}, ...}."""
    result = {}
    for kind, count in self.counts.items():
      result[kind] = {'count': count, 'rows': [list(row) for row in self.rows[kind]]}
    return result

  @classmethod
  def from_dict(cls, value: dict) -> 'Report':
    """The report that `to_dict` made a dict of."""
    report = cls()
    for kind, entry in value.items():
      report.counts[kind] = entry['count']
      report.rows[kind] = [(where, detail) for where, detail in entry['rows']]
    return report
