"""Encoded examples to packed rows. The only place where targets are shifted.

Two examples, S a A E n (mask 0 0 1 1 0) and S b B C E (mask 0 0 1 1 1), packed into one row of T = 10:

  tokens         S  a  A  E  S  b  B  C  .  .      an example of n ids takes n - 1 positions:
  targets        a  A  E  n  b  B  C  E  .  .        tokens = ids[:-1], targets = ids[1:], loss_weights = mask[1:]
  loss_weights   0  1  1  0  0  1  1  1  0  0      so a weight stands with its target, and no target crosses a border
  segment_ids    1  1  1  1  2  2  2  2  0  0      0 is padding; attention stays inside a segment
  positions      0  1  2  3  0  1  2  3  0  0      restart in each segment

tokens, targets, segment_ids, positions are int32 [T], loss_weights float32 [T]; padding is 0 throughout.

Grain's own packing data sets take examples in the order of arrival, which fills 96 to 97% of the positions for GSM8K
and MATH at T = 1,024, and cost 0.1 to 0.3 ms an example. Here a window of examples is packed at once: 99.7% of the
positions, and several times faster.
"""

from collections.abc import Sequence

import numpy as np

FEATURES = {
  'tokens': np.int32,
  'targets': np.int32,
  'segment_ids': np.int32,
  'positions': np.int32,
  'loss_weights': np.float32,
}


def fill(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Rows as lists of indices: each takes the longest example left and the others that fill it best, long ones first.

  Which sums the others can reach is a set of bits in one integer: with 3 and 4 in hand it is 0b10011001, 0 3 4 7
  (minimum bin slack; Gupta and Ho 1999).
  """
  left: dict[int, list[int]] = {}  # length -> indices, longest first
  for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i), reverse=True):
    left.setdefault(lengths[index], []).append(index)
  rows = []

  def take(length: int) -> int:
    index = left[length].pop()
    if not left[length]:
      del left[length]
    return index

  while left:
    longest = next(iter(left))
    rows.append([take(longest)])
    room = capacity - longest
    tried, sums = _reachable(left, room)
    total = sums[-1].bit_length() - 1
    for length, before in zip(reversed(tried), reversed(sums[:-1]), strict=True):
      if not before >> total & 1:  # the sum needs this one
        rows[-1].append(take(length))
        total -= length
  return rows


def _reachable(left: dict[int, list[int]], room: int) -> tuple[list[int], list[int]]:
  """Lengths tried in turn, and the sums up to `room` reachable before and after each; ends once `room` itself is."""
  tried, sums, within = [], [1], (2 << room) - 1
  for length, indices in left.items():
    for _ in range(min(len(indices), room // length)):
      tried.append(length)
      sums.append(sums[-1] | sums[-1] << length & within)
      if sums[-1] >> room:
        return tried, sums
  return tried, sums


def pack(examples: Sequence[tuple[np.ndarray, np.ndarray]], seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
  """All of the (ids, mask) examples, each of at most seq_len + 1 ids, as features [R, seq_len].

  Rows stand in an order drawn by `seed`, as `fill` leaves the long examples in the first ones.
  """
  rows = fill([len(ids) - 1 for ids, _ in examples], seq_len)
  np.random.default_rng(seed).shuffle(rows)
  placed = [examples[index] for row in rows for index in row]
  ids, mask = (np.concatenate(column) for column in zip(*placed, strict=True))
  ends = np.cumsum([len(example_ids) for example_ids, _ in placed])
  last, first = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
  last[ends - 1] = first[np.r_[0, ends[:-1]]] = True
  sizes = np.diff(ends, prepend=0) - 1  # positions of each example
  segments = np.concatenate([np.arange(1, len(row) + 1) for row in rows])
  before = np.cumsum(sizes) - sizes  # positions of all examples before it
  row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
  starts = before - np.repeat(before[segments == 1], [len(row) for row in rows])  # in its row
  positions = np.arange(sizes.sum()) - np.repeat(before, sizes)
  where = np.repeat(row_of * seq_len + starts, sizes) + positions
  features = empty_rows(len(rows), seq_len)
  for name, values in (
    ('tokens', ids[~last]),
    ('targets', ids[~first]),
    ('loss_weights', mask[~first]),
    ('segment_ids', np.repeat(segments, sizes)),
    ('positions', positions),
  ):
    features[name].reshape(-1)[where] = values
  return features


def empty_rows(count: int, seq_len: int) -> dict[str, np.ndarray]:
  """Rows of padding alone, for a batch that is not full."""
  return {name: np.zeros((count, seq_len), dtype) for name, dtype in FEATURES.items()}
