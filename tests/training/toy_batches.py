"""Small random batches, and the settings of a step on them."""

import numpy as np

from mathqwen.config import TrainConfig
from mathqwen.data import packing


def examples_of(count, vocab_size=97, longest=12, seed=0):
  """(ids, mask) with unequal lengths and unequal numbers of loss tokens."""
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    ids = rng.integers(0, vocab_size, rng.integers(4, longest + 1)).astype(np.int32)
    mask = np.zeros(len(ids), np.uint8)
    mask[rng.integers(1, len(ids)) :] = 1
    found.append((ids, mask))
  return found


def one_per_row(examples, seq_len):
  rows = [packing.pack([example], seq_len) for example in examples]
  return {name: np.concatenate([row[name] for row in rows]) for name in packing.FEATURES}


def train_config(**changes):
  return TrainConfig(**{'dropout': 0.0, 'compute_dtype': 'float32', 'remat': 'none', 'loss_chunk': 6} | changes)
