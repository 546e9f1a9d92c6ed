"""Exact and near duplicates, by compact keys: a hash of each row, and the bands of its MinHash.

Rows of the same key in one of the columns are candidates. A near duplicate also has the same numbers, operators
and answer, which are part of its keys, and a MinHash of enough similarity.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from mathqwen.data import compared_text as texts
from mathqwen.data.compared_rows import Batch

PERMUTATIONS = 128
BANDS = 16  # of 8 values each: of two rows with a similarity of 0.8, 95% share a band, at 0.9 all do
COLUMNS = 1 + BANDS  # of `keys`: the hash of the row, then its bands
_SHINGLE = 3  # words
_LEAST_WORDS = 12  # of a row; shorter ones have only exact duplicates
_SEED = 20
_LEADERS = 64  # rows of one key that later ones are compared with
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def keys(batch: Batch, near: bool) -> tuple[np.ndarray, np.ndarray]:
  """(keys [COLUMNS, rows] uint64, 0 for none; MinHash [rows, PERMUTATIONS] uint8).

  near: whether to look for near duplicates. The MinHash keeps a byte of each value: two that differ are equal in one
  of 256 cases, which adds at most 0.004 to a similarity.
  """
  rows = batch.rows
  found = np.zeros((COLUMNS, len(rows)), np.uint64)
  found[0] = [texts.hash64(row.identity) for row in rows]
  signatures = np.zeros((len(rows), PERMUTATIONS), np.uint8)
  eligible = np.flatnonzero(np.diff(batch.words_before) >= _LEAST_WORDS) if near else []
  if not len(eligible):
    return found, signatures
  key_of_formulas = _formulas(batch)[eligible]
  values = _minhash(batch)[eligible]
  signatures[eligible] = (values & np.uint64(255)).astype(np.uint8)
  bands = key_of_formulas[:, None] + np.arange(BANDS, dtype=np.uint64)
  for column in np.moveaxis(values.reshape(len(values), BANDS, -1), 2, 0):
    bands = bands * _MULTIPLIER + column
    bands ^= bands >> np.uint64(32)
  found[1:, eligible] = np.maximum(bands, np.uint64(1)).T
  return found, signatures


def _formulas(batch: Batch) -> np.ndarray:
  """A hash of what near duplicates have in common: numbers and operators of all turns, in order, and the answer."""
  of_turns = texts.formula_hashes([turn.plain for turn in batch.turns])
  of_rows = texts.hash_slices(of_turns, batch.turns_before)
  golds = np.array([texts.hash64(row.gold) for row in batch.rows], np.uint64)
  return of_rows * _MULTIPLIER + golds


def _minhash(batch: Batch) -> np.ndarray:
  """MinHash values of the shingles of each row: [rows, PERMUTATIONS]."""
  from rensa import RMinHash

  shingles, owner = texts.ngrams(batch.words.hashes, batch.words_before, _SHINGLE)
  offsets = np.searchsorted(owner, np.arange(len(batch.rows) + 1)).astype(np.uint64)
  matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, PERMUTATIONS, _SEED)
  values = itertools.chain.from_iterable(matrix.to_rows())
  return np.fromiter(values, np.uint64, len(batch.rows) * PERMUTATIONS).reshape(-1, PERMUTATIONS)


def similarity(first: np.ndarray, others: np.ndarray) -> np.ndarray:
  """The estimated Jaccard similarity of one MinHash with each of several."""
  return (first == others).mean(axis=-1)


def groups(column: np.ndarray) -> Iterator[np.ndarray]:
  """The indices of rows that share a key, in order; keys of 0 are none. column: [rows] uint64"""
  order = np.argsort(column, kind='stable')
  ordered = column[order]
  starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, int)
  sizes = np.diff(np.append(starts, len(ordered)))
  several = (sizes > 1) & (ordered[starts] != 0) if len(starts) else np.zeros(0, bool)
  for start, size in zip(starts[several].tolist(), sizes[several].tolist(), strict=True):
    yield order[start : start + size]


def near(signatures: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
  """(row, earlier row that it is near, similarity) of the rows of a group, in order. signatures: [rows, PERMUTATIONS]

  The first row leads those that are near to it; the first of the others the next ones, and so on, up to _LEADERS.
  """
  left = np.arange(len(signatures))
  found = []
  for _ in range(_LEADERS):
    if len(left) < 2:
      break
    leader, others = left[0], left[1:]
    similar = similarity(signatures[leader], signatures[others])
    is_near = similar >= threshold
    found += [
      (int(row), int(leader), float(value)) for row, value in zip(others[is_near], similar[is_near], strict=True)
    ]
    left = others[~is_near]
  return found
