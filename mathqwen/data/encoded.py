"""Tokenised examples: `Encoded` in memory, `Joined` and `Without` of any others, and what they have in common."""

import bisect
import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mathqwen.data import prompts

Masked = tuple[np.ndarray, np.ndarray]  # ids int32 [n] and mask uint8 [n] of an example


class Examples(Protocol):
  """Tokenised examples, wherever they are: `Encoded`, `shard_reader.Shards`, `Without`."""

  where: Sequence[str]  # of each example: file and line, as `Example` has it
  positions: int  # that the examples take in packed rows: one less than its ids for each
  loss_tokens: int  # that are trained on
  longest: int  # positions of the longest example
  checksum: int | str  # of ids and masks, for the fingerprint of a run's data

  def __len__(self) -> int:
    """How many there are."""
    ...

  def __getitem__(self, index: int) -> Masked:
    """One example."""
    ...

  def read(self, indices: Sequence[int]) -> list[Masked]:
    """These examples, in this order."""
    ...

  def prompt_indexes(self) -> list[prompts.Index]:
    """Which of them share a prompt."""
    ...


class Names(Sequence):
  """Where each example is from, read when it is asked for."""

  def __init__(self, count: int, read: Callable[[Sequence[int]], Sequence[str]]):
    self._count = count
    self._read = read

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index):
    if isinstance(index, slice):
      return tuple(self._read(range(*index.indices(self._count))))
    return self._read([index])[0]


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Tokenised examples end to end: example i is ids[offsets[i]:offsets[i + 1]] and the same slice of mask.

  ids      S u s e r ... E n | S u s e r ... E n | ...     int32, as chatml.render gives them
  mask     0 0 0 0 0 ... 1 0 | 0 0 0 0 0 ... 1 0 | ...     uint8
  offsets  0                   57                  131     int64, one more than there are examples
  """

  ids: np.ndarray
  mask: np.ndarray
  offsets: np.ndarray
  where: tuple[str, ...]  # of each example: file and line, as `Example` has it

  @classmethod
  def from_rendered(
    cls, rendered: Sequence[tuple[Sequence[int], Sequence[int]]], where: Sequence[str] | None = None
  ) -> 'Encoded':
    """The (ids, mask) pairs of `chatml.render_batch` end to end. where: None numbers them."""
    ids = [np.asarray(ids, np.int32) for ids, _ in rendered]
    mask = [np.asarray(mask, np.uint8) for _, mask in rendered]
    lengths = [len(each) for each in ids]
    return cls(
      ids=np.concatenate([np.zeros(0, np.int32), *ids]),  # concatenate refuses an empty list
      mask=np.concatenate([np.zeros(0, np.uint8), *mask]),
      offsets=np.cumsum([0, *lengths], dtype=np.int64),
      where=tuple(where) if where is not None else tuple(map(str, range(len(rendered)))),
    )

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> Masked:
    """(ids, mask) of one example, without copying."""
    part = slice(self.offsets[index], self.offsets[index + 1])
    return self.ids[part], self.mask[part]

  def read(self, indices: Sequence[int]) -> list[Masked]:
    """These examples, in this order, without copying."""
    return [self[index] for index in indices]

  def without(self, removed: np.ndarray) -> 'Encoded':
    """A copy of the examples that are not `removed`, bool [examples], in their order."""
    lengths = np.diff(self.offsets)
    kept = np.repeat(~removed, lengths)
    return Encoded(
      ids=self.ids[kept],
      mask=self.mask[kept],
      offsets=np.concatenate([[0], np.cumsum(lengths[~removed], dtype=np.int64)]),
      where=tuple(itertools.compress(self.where, ~removed)),
    )

  def prompt(self, index: int) -> bytes:
    """What comes before the first loss token of an example; equal for equal prompts."""
    ids, mask = self[index]
    return ids[: mask.argmax()].tobytes()

  @property
  def positions(self) -> int:
    """Positions that the examples take in packed rows: one less than its ids for each."""
    return len(self.ids) - len(self)

  @property
  def loss_tokens(self) -> int:
    """Tokens that are trained on."""
    return int(self.mask.sum())

  @property
  def longest(self) -> int:
    """Positions of the longest example."""
    return int(np.diff(self.offsets).max(initial=0)) - 1

  @property
  def checksum(self) -> int:
    """CRC-32 of all ids, then of all masks."""
    return zlib.crc32(self.mask, zlib.crc32(self.ids))

  def prompt_indexes(self) -> list[prompts.Index]:
    """Which examples share a prompt."""
    hashes = [prompts.hash_of(self.prompt(index)) for index in range(len(self))]
    return [prompts.InMemory(prompts.sorted_entries(hashes))]


def concatenate(parts: Sequence[Encoded]) -> Encoded:
  """The examples of all parts, in order."""
  lengths = [np.diff(part.offsets) for part in parts]
  return Encoded(
    ids=np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
    mask=np.concatenate([np.zeros(0, np.uint8), *(part.mask for part in parts)]),
    offsets=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
    where=tuple(where for part in parts for where in part.where),
  )


class Joined:
  """The examples of several sources one after another, without copying them: what the order of an epoch is drawn of."""

  def __init__(self, parts: Sequence[Examples]):
    self._parts = parts
    self._starts = [0, *itertools.accumulate(map(len, parts))]

  def __len__(self) -> int:
    return self._starts[-1]

  def start(self, which: int) -> int:
    """The index of the first example of a source."""
    return self._starts[which]

  def _place(self, index: int) -> tuple[int, int]:
    """(which source, index in it) of an example."""
    which = bisect.bisect_right(self._starts, index) - 1
    return which, index - self._starts[which]

  def read(self, indices: Sequence[int]) -> list[Masked]:
    """These examples, in this order; each source is asked once."""
    places = [self._place(index) for index in indices]
    found: dict[tuple[int, int], Masked] = {}
    for which, part in enumerate(self._parts):
      wanted = [place for place in dict.fromkeys(places) if place[0] == which]
      found |= zip(wanted, part.read([inside for _, inside in wanted]), strict=True)
    return [found[place] for place in places]

  def names(self, indices: Sequence[int]) -> list[str]:
    """Where these examples are from."""
    return [self._parts[which].where[inside] for which, inside in map(self._place, indices)]


class Without:
  """The examples of a source without some of them."""

  def __init__(self, source: Examples, removed: Sequence[int]):
    """removed: different indices into `source`."""
    self._source = source
    self._removed = removed = np.sort(np.asarray(removed, np.int64))
    self._count = len(source) - len(removed)
    self._before = removed - np.arange(len(removed))  # how many examples that are kept stand before each
    self.where: Sequence[str] = Names(self._count, self._names)
    lost = source.read(removed.tolist())
    self.positions = source.positions - sum(len(ids) - 1 for ids, _ in lost)
    self.loss_tokens = source.loss_tokens - sum(int(np.count_nonzero(mask)) for _, mask in lost)
    self.longest = source.longest
    self.checksum = source.checksum  # what is removed follows from it, the seed and data.eval_examples

  def __len__(self) -> int:
    return self._count

  def _places(self, indices: Sequence[int]) -> list[int]:
    """The indices into the source."""
    indices = np.asarray(indices, np.int64)
    return (indices + np.searchsorted(self._before, indices, side='right')).tolist()

  def __getitem__(self, index: int) -> Masked:
    """One example."""
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> list[Masked]:
    """These examples, in this order."""
    return self._source.read(self._places(indices))

  def prompt_indexes(self) -> list[prompts.Index]:
    """Which of them share a prompt. Reads the indexes of the source whole."""
    entries = prompts.all_entries(self._source.prompt_indexes())
    entries = entries[~np.isin(entries['example'], self._removed)]
    entries['example'] -= np.searchsorted(self._removed, entries['example'])
    return [prompts.InMemory(entries.astype(prompts.ENTRY))]

  def _names(self, indices: Sequence[int]) -> list[str]:
    return [self._source.where[place] for place in self._places(indices)]
