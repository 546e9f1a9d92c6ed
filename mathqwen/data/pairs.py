"""Pairs of a chosen and a rejected answer to one question, for `training/dpo.py`: two segments of one row.

The pair S a b C E (mask 0 0 0 1 1) and S a b D (mask 0 0 0 1), in a row of T = 9:

  tokens         S  a  b  C  S  a  b  .  .
  targets        a  b  C  E  a  b  D  .  .
  loss_weights   0  0  1  1  0  0  1  0  0
  segment_ids    1  1  1  1  2  2  2  0  0
  positions      0  1  2  3  0  1  2  0  0
  pair_ids       1  1  1  1 -1 -1 -1  0  0     the number of the pair in its row: above 0 chosen, below 0 rejected

Tokenised, a pair is two examples one after the other: those with the numbers 2 i and 2 i + 1 are pair i of a source.
Both have the same ids before their first loss token, so that what is held out by prompts is held out in pairs.
"""

from collections.abc import Sequence

import numpy as np

from mathqwen.data import packing
from mathqwen.data.encoded import Examples, Masked

FEATURES = packing.FEATURES | {'pair_ids': np.int32}


class Pairs:
  """Which examples are drawn together, for `pipeline.PackedRows`: element i is the list of the numbers of a pair."""

  def __init__(self, sources: Sequence[Examples]):
    """The examples of the first source have the numbers from 0 on, then come the next one's."""
    self.counts = [len(source) // 2 for source in sources]

  def __len__(self) -> int:
    return sum(self.counts)

  def __getitem__(self, index: int) -> list[int]:
    return [2 * index, 2 * index + 1]


def examples_by_row(examples: Sequence[Masked], seq_len: int, seed: int) -> list[list[int]]:
  """Which examples each row of `pack` holds, by their index: two and two are a pair."""
  sizes = [len(ids) - 1 for ids, _ in examples]
  rows = packing.plan(
    [chosen + rejected for chosen, rejected in zip(sizes[::2], sizes[1::2], strict=True)], seq_len, seed
  )
  return [[number for pair in row for number in (2 * pair, 2 * pair + 1)] for row in rows]


def pack(examples: Sequence[Masked], seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
  """As `packing.pack`, but the examples 2 i and 2 i + 1 are in one row: the features drawn above."""
  features = packing.lay_out(examples, examples_by_row(examples, seq_len, seed), seq_len)
  segments = features['segment_ids']
  features['pair_ids'] = np.where(segments % 2 == 1, segments + 1, -segments) // 2
  return features


def place(pair_id: int) -> str:
  """', chosen of pair 1': what a segment with this pair id is, in words; '' for 0."""
  return f', {"chosen" if pair_id > 0 else "rejected"} of pair {abs(pair_id)}' if pair_id else ''
