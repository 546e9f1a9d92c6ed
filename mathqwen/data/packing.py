"""Encoded examples to packed rows. Only here and in `shared_prompts` are targets shifted.

Two examples, S a A E n (mask 0 0 1 1 0) and S b B C E (mask 0 0 1 1 1), packed into one row of T = 10:

  tokens         S  a  A  E  S  b  B  C  .  .      an example of n ids takes n - 1 positions:
  targets        a  A  E  n  b  B  C  E  .  .        tokens = ids[:-1], targets = ids[1:], loss_weights = mask[1:]
  loss_weights   0  1  1  0  0  1  1  1  0  0      so a weight belongs to its target, and no target crosses a border
  segment_ids    1  1  1  1  2  2  2  2  0  0      0 is padding; attention stays inside a segment
  positions      0  1  2  3  0  1  2  3  0  0      restart in each segment

ids and mask come from `chat/chatml.py`. No example is cut: `encoding.encode` leaves out those longer than a row.
tokens, targets, segment_ids, positions are int32 [T], loss_weights float32 [T]; padding is 0 in all of them.

Grain's own packing data sets place examples in the order of arrival. That fills 96 to 97% of the positions for GSM8K
and MATH at T = 1,024. Here all examples of a window are known before the first is placed, which fills more than 99%.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mathqwen.data.encoded import Masked

FEATURES = {
  'tokens': np.int32,
  'targets': np.int32,
  'segment_ids': np.int32,
  'positions': np.int32,
  'loss_weights': np.float32,
}


def fill(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Rows as lists of indices into `lengths`; every index is in exactly one row.

  Each row takes the longest example left, then those of the others that fill the rest of the row best (minimum bin
  slack; Gupta and Ho 1999). Among equally good choices it takes long examples first: they are the hardest to place.

  lengths: positions of each example, from 1 to `capacity`. ValueError: when one is longer.
  """
  left: dict[int, list[int]] = {}  # length -> indices of the examples not placed yet; the longest length first
  for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i), reverse=True):
    left.setdefault(lengths[index], []).append(index)

  def take(length: int) -> int:
    index = left[length].pop()
    if not left[length]:
      del left[length]
    return index

  rows = []
  while left:
    longest = next(iter(left))
    room = capacity - longest
    row = [take(longest)]
    for length in best_lengths(left, room):
      row.append(take(length))
    rows.append(row)
  return rows


def best_lengths(left: Mapping[int, Sequence], room: int) -> list[int]:
  """The lengths, of those in `left`, whose sum comes closest to `room` without exceeding it.

  left: {length: everything of this length}, in the order of preference among equally good choices.

  A subset-sum search in which one integer holds a set of sums, bit s for the sum s. With 3 and 4 in hand it is
  0b10011001: the sums 0, 3, 4 and 7. Adding a length to all sums at once is one shift.
  """
  considered = []
  sums = [1]  # sums[i]: reachable with the first i lengths considered; 1 is the empty sum alone
  up_to_room = (2 << room) - 1
  for length, indices in left.items():
    for _ in range(min(len(indices), room // length)):
      considered.append(length)
      sums.append(sums[-1] | (sums[-1] << length & up_to_room))
      if sums[-1] >> room:  # the room can be filled exactly
        break
    if sums[-1] >> room:
      break

  # Walk back from the best sum: a length is part of it only where the sum was out of reach without that length.
  chosen = []
  total = sums[-1].bit_length() - 1
  for i in reversed(range(len(considered))):
    if not sums[i] >> total & 1:
      chosen.append(considered[i])
      total -= considered[i]
  return chosen


def plan(lengths: Sequence[int], seq_len: int, seed: int) -> list[list[int]]:
  """The rows of `fill` in an order drawn by `seed`: it puts the long examples into the first ones."""
  rows = fill(lengths, seq_len)
  np.random.default_rng(seed).shuffle(rows)
  return rows


def pack(examples: Sequence[Masked], seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
  """All examples in as few rows as `fill` finds: the features drawn above, each [rows, seq_len].

  examples: (ids, mask) each, both [n] with n from 2 to seq_len + 1. ValueError: when one is longer.
  seed: of the order of the rows.
  """
  return lay_out(examples, examples_by_row(examples, seq_len, seed), seq_len)


def examples_by_row(examples: Sequence[Masked], seq_len: int, seed: int) -> list[list[int]]:
  """Which examples each row of `pack` holds, by their index, in the order of its segments."""
  return plan([len(ids) - 1 for ids, _ in examples], seq_len, seed)


def lay_out(examples: Sequence[Masked], rows: Sequence[Sequence[int]], seq_len: int) -> dict[str, np.ndarray]:
  """Rows of indices into `examples` as the features drawn above, each [rows, seq_len]."""
  features = empty_rows(len(rows), seq_len)
  counting = np.arange(seq_len)
  for row, indices in enumerate(rows):
    start = 0
    for segment, index in enumerate(indices, start=1):
      ids, mask = examples[index]
      size = len(ids) - 1
      here = slice(start, start + size)
      features['tokens'][row, here] = ids[:-1]
      features['targets'][row, here] = ids[1:]
      features['loss_weights'][row, here] = mask[1:]
      features['segment_ids'][row, here] = segment
      features['positions'][row, here] = counting[:size]
      start += size
  return features


def digest(rows: Sequence[dict[str, np.ndarray]]) -> str:
  """16 hexadecimal digits that stand for the examples, masks and packing of these rows, in this order."""
  hashed = hashlib.blake2b(digest_size=8)
  for row in rows:
    for name in (*FEATURES, *sorted(row.keys() - FEATURES.keys())):
      hashed.update(np.ascontiguousarray(row[name], row[name].dtype.newbyteorder('<')))
  return hashed.hexdigest()


def empty_rows(count: int, seq_len: int, features: Mapping[str, type] = FEATURES) -> dict[str, np.ndarray]:
  """Rows of padding alone, [count, seq_len], for a batch that is not full. features: their names and dtypes."""
  return {name: np.zeros((count, seq_len), dtype) for name, dtype in features.items()}
