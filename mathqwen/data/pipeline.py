"""Examples to batches: tokenised once, shuffled in every epoch, mixed, packed, batched, sliced for each host.

  examples --encode--> Encoded --shuffle, repeat, mix--> windows of examples --pack--> rows --batch--> this host's rows

The order is a pure function of the seed and a position (window, row). Window w holds the examples w*W ... (w+1)*W - 1
of the endless shuffled stream, packed together. Every host walks the same global stream and keeps its own slice of each
batch, so a saved position means the same on every host and for any number of hosts.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from mathqwen.data import packing, shared_prompts
from mathqwen.data import pairs as pairs_lib
from mathqwen.data.encoded import Encoded, Examples, Joined, Masked
from mathqwen.errors import UserError

# Fewest and most rows packed together. Small windows waste positions; large ones cost memory, and time on resuming.
WINDOW_ROWS = (16, 256)


# --- training: the endless stream, its rows, its batches ---


def _order(counts: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
  """The endless order of the numbers of examples, with random access by index. Each epoch shuffles each source again.

  counts: examples of each source; those of the first source have the numbers from 0 on, then come the next one's.
  """
  streams = _shuffled(counts, np.random.SeedSequence(seed).generate_state(len(counts)).tolist())
  return grain.MapDataset.mix(streams, weights) if weights else streams[0]


def _shuffled(counts: Sequence[int], seeds: Sequence[int]) -> list[grain.MapDataset]:
  """The endless order of the numbers of each source: arguments as in `_order`, with a seed for each source."""
  firsts = itertools.accumulate(counts, initial=0)
  return [
    grain.MapDataset.source(range(first, first + count)).shuffle(seed=seed).repeat()
    for first, count, seed in zip(firsts, counts, seeds, strict=False)
  ]


class _Passes:
  """The endless order in which each pass has a quota of every source, all of them shuffled together.

  A source is shuffled as a whole and goes on where the last pass left it: with half of its examples in a pass, two
  passes show each of them once.
  """

  def __init__(self, counts: Sequence[int], epochs: Sequence[float], seed: int):
    """counts: as in `_order`. epochs: how often a pass has the examples of each source."""
    self._quotas = [max(1, round(count * times)) for count, times in zip(counts, epochs, strict=True)]
    self._ends = list(itertools.accumulate(self._quotas))
    seeds = np.random.SeedSequence(seed).generate_state(len(counts) + 1).tolist()
    self._slots = grain.MapDataset.source(range(len(self))).shuffle(seed=seeds.pop()).repeat()
    self._streams = _shuffled(counts, seeds)

  def __len__(self) -> int:
    """Of a pass."""
    return self._ends[-1]

  def __getitem__(self, place: int) -> int:
    slot = self._slots[place]
    which = bisect.bisect_right(self._ends, slot)
    quota = self._quotas[which]
    return self._streams[which][place // len(self) * quota + slot - (self._ends[which] - quota)]


class PackedRows(grain.IterDataset):
  """Rows of the windows 0, 1, 2, ... of a stream. The iterator's state is {'window': w, 'row': r}."""

  def __init__(
    self,
    examples: Joined,
    order: grain.MapDataset | _Passes,
    window: int,
    seq_len: int,
    seed: int,
    layout: ModuleType = packing,
    groups: shared_prompts.Questions | pairs_lib.Pairs | None = None,
  ):
    """layout: makes the rows: `packing`, `shared_prompts` or `pairs`. groups: the examples that are drawn together.

    order: of the numbers of the examples, or of `groups`. window: how many are packed together.
    """
    super().__init__()
    self.examples = examples
    self.layout = layout
    self.groups = groups
    self.features = layout.FEATURES
    self.order = order
    self.window = window
    self.seq_len = seq_len
    self.seed = seed

  def pack(self, window: int) -> dict[str, np.ndarray]:
    """All rows of one window: features [rows, seq_len]."""
    return self.layout.pack(self.drawn(self._places(window)), self.seq_len, seed=self._window_seed(window))

  def drawn(self, places: Sequence[int]) -> list[Masked]:
    """The examples at these places of the endless order."""
    return self.examples.read(self._numbers(places))

  def examples_in(self, window: int) -> int:
    """How many examples a window holds."""
    return len(self._numbers(self._places(window)))

  @property
  def epoch(self) -> int:
    """How many elements the order has before it begins again."""
    if isinstance(self.order, _Passes):
      return len(self.order)
    return len(self.examples) if self.groups is None else len(self.groups)

  def _numbers(self, places: Sequence[int]) -> list[int]:
    """Those of the examples at these places."""
    drawn = [self.order[place] for place in places]
    return drawn if self.groups is None else [number for which in drawn for number in self.groups[which]]

  def tokens_kept(self) -> float:
    """Positions without padding that the first window takes, by those that its examples take in rows of their own."""
    alone = sum(len(ids) - 1 for ids, _ in self.drawn(self._places(0)))
    return int(np.count_nonzero(self.pack(0)['segment_ids'])) / alone

  def names_by_row(self, window: int) -> list[list[str]]:
    """Which examples each row of `pack` holds, in the order of its segments."""
    places = self._places(window)
    drawn = self.drawn(places)
    names = self.examples.names(self._numbers(places))
    rows = self.layout.examples_by_row(drawn, self.seq_len, self._window_seed(window))
    return [[names[index] for index in row] for row in rows]

  def _places(self, window: int) -> range:
    return range(window * self.window, (window + 1) * self.window)

  def _window_seed(self, window: int) -> int:
    return (self.seed + window) % 2**32

  def __iter__(self) -> grain.DatasetIterator:
    return _PackedRowsIterator(self)


class _PackedRowsIterator(grain.DatasetIterator):
  """One row at a time. A window is packed when its first row is asked for, also after `set_state`."""

  def __init__(self, dataset: PackedRows):
    super().__init__()
    self._dataset = dataset
    self.set_state({'window': 0, 'row': 0})

  def __next__(self) -> dict[str, np.ndarray]:
    if self._rows is None:
      self._rows = self._dataset.pack(self._window)
    row = {name: values[self._row] for name, values in self._rows.items()}
    self._row += 1
    if self._row == len(self._rows['tokens']):
      self.set_state({'window': self._window + 1, 'row': 0})
    return row

  def get_state(self) -> dict[str, int]:
    return {'window': self._window, 'row': self._row}

  def set_state(self, state: dict[str, int]) -> None:
    self._window = state['window']
    self._row = state['row']
    self._rows = None


def packed_rows(
  sources: Sequence[Examples],
  weights: Sequence[float],
  seq_len: int,
  seed: int,
  share_prompts: bool = False,
  epochs: Sequence[float] = (),
  pairs: bool = False,
) -> PackedRows:
  """The endless rows of the sources. A window is about an epoch, within the bounds of WINDOW_ROWS.

  weights: the share of examples drawn from each source. epochs: how often a pass over the mixture has the examples of
  each source. Neither: each example once. A config has one number above 0 for each source, or none.
  share_prompts: draw questions with their answers, not examples, and pack them as in `shared_prompts`. With weights or
  epochs, only answers in the same source are drawn together. pairs: the examples are pairs, as in `pairs`.
  UserError: when an example needs more than `seq_len` positions.
  """
  longest = max(source.longest for source in sources)
  if longest > seq_len:
    raise UserError(f'an example needs {longest} positions, seq_len is {seq_len}; encode with this seq_len')
  joined = Joined(sources)
  positions = sum(source.positions for source in sources)
  fewest, most = WINDOW_ROWS
  rows = min(max(positions / seq_len, fewest), most)
  apart = bool(weights or epochs)
  counts = [len(source) for source in sources] if apart else [len(joined)]
  layout, groups = packing, None
  if share_prompts:
    layout, groups = shared_prompts, shared_prompts.Questions(sources, apart=apart)
  elif pairs:
    layout, groups = pairs_lib, pairs_lib.Pairs(sources if apart else [joined])
  if groups is not None:
    if weights:  # they are shares of examples
      weights = [weight * own / count for weight, own, count in zip(weights, groups.counts, counts, strict=True)]
    counts = groups.counts
  window = round(rows * seq_len * sum(counts) / positions)  # a question with several answers takes fewer rows than this
  order = _Passes(counts, epochs, seed) if epochs else _order(counts, weights, seed)
  return PackedRows(joined, order, window, seq_len, seed, layout, groups)


class TrainBatches:
  """Endless iterator over this host's part of each global batch: features [batch_size / hosts, seq_len].

  `get_state` gives a small dict for JSON, equal on every host; `set_state` continues from it, on any number of hosts.
  `digest` is `packing.digest` of the last batch that was returned: of all its rows, whichever of them this host has.
  """

  def __init__(
    self,
    rows: PackedRows,
    batch_size: int,
    shard: tuple[int, int],
    fingerprint: dict,
    filled_to: int | None = None,
  ):
    """batch_size: rows of a global batch. shard: (this host, hosts).

    fingerprint: what must be equal for a saved state to be continued.
    filled_to: with empty rows at its end, as many as make it so many rows; None: none.
    UserError: when the batch cannot be split over the hosts.
    """
    filled_to = filled_to or batch_size
    mine = _rows_of_host(filled_to, shard)
    empty = {name: values[0] for name, values in packing.empty_rows(1, rows.seq_len, rows.features).items()}

    def stack(batch: Sequence[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], str]:
      filled = [*batch, *[empty] * (filled_to - batch_size)]
      features = {name: np.stack([row[name] for row in filled[mine]]) for name in rows.features}
      return features, packing.digest(batch)

    self.fingerprint = fingerprint
    self.digest: str | None = None  # before the first batch
    self._rows = rows
    self._batch_size = batch_size
    self._batches = iter(ThreadPrefetchIterDataset(rows.batch(batch_size, batch_fn=stack), prefetch_buffer_size=2))

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """UserError: when a shard turns out to be damaged."""
    try:
      features, self.digest = next(self._batches)
    except UserError as error:
      raise UserError(str(error).splitlines()[0]) from None  # Grain adds lines about its tracebacks
    return features

  def get_state(self) -> dict:
    """The position after the last batch returned, and the fingerprint of the data."""
    return {'data': self.fingerprint, 'position': self._batches.get_state()}

  def set_state(self, state: dict) -> None:
    """Continues at a position from `get_state`. UserError: when it was taken with other data or settings."""
    for name in differing(self.fingerprint, state['data']):
      raise UserError(
        f'the data differs from what the checkpoint was trained on: {name} was {state["data"].get(name)}, is '
        f'{self.fingerprint[name]}; restore the data settings and files, or start a new --workdir'
      )
    self._batches.set_state(state['position'])

  def examples(self, state: dict) -> list[list[str]]:
    """Which examples the global batch after a state from `get_state` holds, row by row: their files and lines."""
    window, row = state['position']['window'], state['position']['row']
    rows: list[list[str]] = []
    while len(rows) < self._batch_size:
      rows += self._rows.names_by_row(window)[row:]
      window, row = window + 1, 0
    return rows[: self._batch_size]

  def close(self) -> None:
    """Ends the prefetch thread."""
    self._batches.close()
    self._batches = iter(())


def _rows_of_host(batch_size: int, shard: tuple[int, int]) -> slice:
  """Which rows of a global batch belong to this host. UserError: when they cannot be split evenly."""
  index, count = shard
  if batch_size % count:
    raise UserError(
      f'a batch of {batch_size} rows cannot be split over {count} hosts; set data.batch_size to a multiple of {count}'
    )
  rows = batch_size // count
  return slice(index * rows, (index + 1) * rows)


def fingerprint(
  sources: Sequence[Examples],
  weights: Sequence[float],
  seq_len: int,
  seed: int,
  share_prompts: bool = False,
  epochs: Sequence[float] = (),
  pairs: bool = False,
) -> dict:
  """What decides the batches of a run, for JSON."""
  found = {
    'examples': [len(source) for source in sources],
    'crc32': [source.checksum for source in sources],
    'weights': [float(weight) for weight in weights],
    'seq_len': seq_len,
    'seed': seed,
  }
  # As it was before there were these settings, where they are not used.
  added = {'share_prompts': share_prompts, 'epochs': list(epochs), 'pairs': pairs}
  return found | {name: value for name, value in added.items() if value}


HELD_OUT = 'held_out'  # the checksum of the held-out part, in a fingerprint: another part gives other losses


def differing(fingerprint: dict, saved: dict) -> list[str]:
  """The names in which a saved fingerprint differs. Those of earlier versions say nothing about the held-out part."""
  names = [name for name in fingerprint if name != HELD_OUT or name in saved]
  return [name for name in names if saved.get(name) != fingerprint[name]]


# --- evaluation ---


def eval_batches(
  encoded: Encoded, batch_size: int, seq_len: int, shard: tuple[int, int] = (0, 1), pairs: bool = False
) -> Iterator[dict[str, np.ndarray]]:
  """One pass over this host's part of each batch, each example once: features [batch_size / hosts, seq_len].

  pairs: the examples are pairs. The last batch is filled with empty rows, whose loss weights are 0.
  UserError: when the batch cannot be split over the hosts.
  """
  mine = _rows_of_host(batch_size, shard)
  layout = pairs_lib if pairs else packing
  rows = layout.pack([encoded[i] for i in range(len(encoded))], seq_len)
  filler = packing.empty_rows(-len(rows['tokens']) % batch_size, seq_len, layout.FEATURES)
  rows = {name: np.concatenate([values, filler[name]]) for name, values in rows.items()}
  for start in range(0, len(rows['tokens']), batch_size):
    yield {name: values[start : start + batch_size][mine] for name, values in rows.items()}
