"""Prompts by their hashes, in sorted order: which examples share one, and which are held out, without reading them.

The order of the prompts for a seed is that of (hash - start) modulo 2**64, where `start` comes from the seed: a prompt
and a seed decide it, whatever other examples there are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

BLOCK = 4096  # entries of an index that are read together
ENTRY = np.dtype([('prompt', '<u8'), ('example', '<u4')])  # the hash of a prompt, and an example that has it

WIDE = np.dtype([('prompt', '<u8'), ('example', '<i8')])  # the same for the examples of several indexes


def hash_of(prompt: bytes) -> int:
  """64 bits that stand for a prompt: two of five million collide once in a million data sets."""
  return int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), 'little')


def sorted_entries(hashes: Sequence[int]) -> np.ndarray:
  """The entries of examples 0, 1, 2, ... with these hashes, sorted by hash and example."""
  hashes = np.asarray(hashes, np.uint64)
  entries = np.empty(len(hashes), ENTRY)
  entries['example'] = np.argsort(hashes, kind='stable')
  entries['prompt'] = hashes[entries['example']]
  return entries


class Index(Protocol):
  """Sorted entries in blocks of BLOCK, in memory or in a file."""

  first: int  # what is added to the numbers of its examples

  def __len__(self) -> int:
    """How many entries there are."""
    ...

  def block(self, number: int) -> np.ndarray:
    """Entries number * BLOCK and the following, of dtype ENTRY."""
    ...


class InMemory:
  """An `Index` of entries in memory."""

  def __init__(self, entries: np.ndarray, first: int = 0):
    self._entries = entries
    self.first = first

  def __len__(self) -> int:
    return len(self._entries)

  def block(self, number: int) -> np.ndarray:
    """As `Index.block`."""
    return self._entries[number * BLOCK : (number + 1) * BLOCK]


def all_entries(indexes: Sequence[Index], first: int = 0) -> np.ndarray:
  """All entries of a source, sorted by hash and example. The numbers of its examples are int64 and begin at `first`."""
  blocks = [np.empty(0, WIDE)]
  for index in indexes:
    for number in range(-(-len(index) // BLOCK)):
      block = index.block(number).astype(WIDE)
      block['example'] += index.first + first
      blocks.append(block)
  entries = np.concatenate(blocks)
  return entries if len(indexes) == 1 else entries[np.argsort(entries['prompt'], kind='stable')]


def start_of(seed: int) -> int:
  """Where the order of a seed begins among the hashes."""
  return hash_of(b'held out, seed %d' % seed)


def first_prompts(indexes: Sequence[Index], start: int, count: int) -> list[int]:
  """The `count` different hashes that come first from `start` on, all of them where there are fewer."""
  found: set[int] = set()
  for index in indexes:
    own: set[int] = set()
    for entries in _from(index, start):
      own.update(np.unique(entries['prompt']).tolist())
      if len(own) >= count:
        break
    found |= own
  return sorted(found, key=lambda prompt: (prompt - start) % 2**64)[:count]


def examples_of(index: Index, start: int, first: Sequence[int]) -> dict[int, list[int]]:
  """{prompt: its examples, in order} of those prompts of `first_prompts` from `start` on that the index has."""
  found: dict[int, list[int]] = {}
  beyond = (first[-1] - start) % 2**64 if first else -1
  for entries in _from(index, start):
    for prompt, example in entries[np.isin(entries['prompt'], np.array(first, np.uint64))].tolist():
      found.setdefault(prompt, []).append(index.first + example)
    if (int(entries['prompt'][-1]) - start) % 2**64 > beyond:
      break
  return found


def count(indexes: Sequence[Index], enough: int) -> int:
  """How many different prompts there are; `enough` as soon as there are so many."""
  found: set[int] = set()
  for index in indexes:
    for number in range(-(-len(index) // BLOCK)):
      found.update(np.unique(index.block(number)['prompt']).tolist())
      if len(found) >= enough:
        return enough
  return len(found)


def _from(index: Index, start: int) -> Iterator[np.ndarray]:
  """The entries from the hash `start` on, those before it at the end, in parts none of which is empty."""
  blocks = -(-len(index) // BLOCK)
  low, high = 0, blocks  # the first block whose last hash is at least `start`
  while low < high:
    middle = (low + high) // 2
    if int(index.block(middle)['prompt'][-1]) < start:
      low = middle + 1
    else:
      high = middle
  for turn in range(blocks + 1):
    number = low + turn
    if not blocks:
      return
    entries = index.block(number % blocks)
    if turn == 0 and low < blocks:
      entries = entries[np.searchsorted(entries['prompt'], np.uint64(start)) :]
    elif turn == blocks and low < blocks:  # the first block again: what was before `start`
      entries = entries[: np.searchsorted(entries['prompt'], np.uint64(start))]
    elif turn == blocks:
      return
    if len(entries):
      yield entries
