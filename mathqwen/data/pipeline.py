"""Examples to batches: tokenised once, shuffled anew in every epoch, mixed, packed, batched, sliced for each host.

  examples --encode--> Encoded --shuffle, repeat, mix--> windows of examples --pack--> rows --batch--> this host's rows

The order is a pure function of the seed and a position (window, row): window w holds the examples w*W ... (w+1)*W - 1
of the endless shuffled stream, packed together. Every host walks the same global stream and keeps its own slice of each
batch, so a saved position means the same on every host and on any number of hosts.
"""

import dataclasses
import hashlib
import time
import zlib
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from mathqwen.data import packing
from mathqwen.data.examples import Example, Report
from mathqwen.errors import UserError
from mathqwen.text import chatml

WINDOW_ROWS = (16, 256)  # least and most rows packed together: fewer waste space, more cost memory and time to resume
ENCODE_CHUNK = 4096  # conversations tokenised in one call


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Tokenised examples end to end: example i is ids[offsets[i]:offsets[i + 1]] and the same of mask.

  ids      S u s e r ... E n | S u s e r ... E n | ...     int32, as chatml.render gives them
  mask     0 0 0 0 0 ... 1 0 | 0 0 0 0 0 ... 1 0 | ...     uint8
  offsets  0                   57                  131     int64, one more than there are examples
  """

  ids: np.ndarray
  mask: np.ndarray
  offsets: np.ndarray

  @classmethod
  def of(cls, rendered: Sequence[tuple[Sequence[int], Sequence[int]]]) -> 'Encoded':
    lengths = [len(ids) for ids, _ in rendered]
    return cls(
      np.concatenate([np.zeros(0, np.int32), *(np.asarray(ids, np.int32) for ids, _ in rendered)]),
      np.concatenate([np.zeros(0, np.uint8), *(np.asarray(mask, np.uint8) for _, mask in rendered)]),
      np.cumsum([0, *lengths], dtype=np.int64),
    )

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    part = slice(self.offsets[index], self.offsets[index + 1])
    return self.ids[part], self.mask[part]

  def take(self, indices: Sequence[int]) -> 'Encoded':
    return Encoded.of([self[i] for i in indices])

  @property
  def positions(self) -> int:
    """Positions the examples take in packed rows: one less than its ids for each."""
    return len(self.ids) - len(self)

  @property
  def loss_tokens(self) -> int:
    return int(self.mask.sum())


def messages_of(example: Example, system_prompt: str = '') -> list[dict]:
  """The chat of an example: its own messages, or [system,] question, solution."""
  if example.messages is not None:
    return list(example.messages)
  system = [{'role': 'system', 'content': system_prompt}] if system_prompt else []
  return [*system, {'role': 'user', 'content': example.question}, {'role': 'assistant', 'content': example.solution}]


def encode(examples: Sequence[Example], tokenizer, seq_len: int, system_prompt: str = '') -> tuple[Encoded, Report]:
  """Tokenises every example once. Left out and reported by line: chats that cannot be rendered, exact duplicates, rows
  without a loss token, rows that need more than seq_len positions (they are never cut: the end holds the answer)."""
  report, parts, seen = Report(), [], {}
  for start in range(0, len(examples), ENCODE_CHUNK):
    usable = []
    for example in examples[start : start + ENCODE_CHUNK]:
      messages = messages_of(example, system_prompt)
      try:
        chatml.check(messages)
      except UserError as error:
        report.add('malformed', example.where, str(error))
      else:
        usable.append((example, messages))
    rendered = chatml.render_batch([messages for _, messages in usable], tokenizer)
    kept = []
    for (example, _), (ids, mask) in zip(usable, rendered, strict=True):
      row = np.asarray(ids, np.int32)
      key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
      if len(row) - 1 > seq_len:
        report.add('too_long', example.where, f'{len(row) - 1} positions, seq_len is {seq_len}')
      elif 1 not in mask:
        report.add('no_loss_token', example.where, 'no assistant turn')
      elif key in seen:
        report.add('duplicate', example.where, f'same as {seen[key]}')
      else:
        seen[key] = example.where
        kept.append((row, mask))
    parts.append(Encoded.of(kept))
  encoded = concatenate(parts)
  if not len(encoded):
    raise UserError(f'no example to train on: {"; ".join(report.lines()) or "the source is empty"}')
  return encoded, report


def concatenate(parts: Sequence[Encoded]) -> Encoded:
  return Encoded(
    np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
    np.concatenate([np.zeros(0, np.uint8), *(part.mask for part in parts)]),
    np.cumsum(
      [0, *np.concatenate([np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)])], dtype=np.int64
    ),
  )


def hold_out(sources: Sequence[Encoded], n: int, seed: int) -> tuple[list[Encoded], Encoded]:
  """(training part of each source, held out): n examples with different prompts, drawn by seed from all sources.

  No source keeps an example with one of these prompts, so other answers to a held-out question are in neither part. A
  prompt is all before the first loss token.
  """
  prompts: dict[bytes, list[tuple[int, int]]] = {}
  for which, source in enumerate(sources):
    for index in range(len(source)):
      ids, mask = source[index]
      prompts.setdefault(ids[: mask.argmax()].tobytes(), []).append((which, index))
  groups = list(prompts.values())
  held = set(np.random.default_rng(seed).permutation(len(groups))[:n].tolist())
  gone = {place for group in held for place in groups[group]}
  training = [
    source.take([i for i in range(len(source)) if (which, i) not in gone]) for which, source in enumerate(sources)
  ]
  if not all(map(len, training)):
    raise UserError(
      f'{n} held-out examples leave a source without any: the data has {len(groups)} different prompts; '
      'lower data.eval_examples'
    )
  first = [groups[group][0] for group in sorted(held)]
  return training, Encoded.of([sources[which][index] for which, index in first])


def split_eval(encoded: Encoded, n: int, seed: int) -> tuple[Encoded, Encoded]:
  """(training, held out) of one source, as `hold_out` does."""
  (training,), held = hold_out([encoded], n, seed)
  return training, held


def _stream(sources: Sequence[Encoded], weights: Sequence[float], seed: int) -> grain.MapDataset:
  """The endless stream of (ids, mask), random access by index."""
  if not weights:
    sources = [concatenate(sources)]
  seeds = np.random.SeedSequence(seed).generate_state(len(sources)).tolist()
  parts = [grain.MapDataset.source(source).shuffle(seed=s).repeat() for source, s in zip(sources, seeds, strict=True)]
  return grain.MapDataset.mix(parts, weights) if weights else parts[0]


class PackedRows(grain.IterDataset):
  """Rows of the windows 0, 1, 2, ... of a stream; the iterator's state is {'window': w, 'row': r}."""

  def __init__(self, stream, window: int, seq_len: int, seed: int):
    super().__init__()
    self.stream, self.window, self.seq_len, self.seed = stream, window, seq_len, seed

  def pack(self, window: int) -> dict[str, np.ndarray]:
    examples = [self.stream[i] for i in range(window * self.window, (window + 1) * self.window)]
    return packing.pack(examples, self.seq_len, seed=(self.seed + window) % 2**32)

  def __iter__(self) -> grain.DatasetIterator:
    return _PackedRowsIterator(self)


class _PackedRowsIterator(grain.DatasetIterator):
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
    self._window, self._row, self._rows = state['window'], state['row'], None


def packed_rows(sources: Sequence[Encoded], weights: Sequence[float], seq_len: int, seed: int) -> PackedRows:
  """The endless rows of the sources. A window is about an epoch, within the bounds of WINDOW_ROWS."""
  longest = max(int(np.diff(source.offsets).max(initial=0)) - 1 for source in sources)
  if longest > seq_len:
    raise UserError(f'an example needs {longest} positions, seq_len is {seq_len}; encode with this seq_len')
  examples, positions = sum(map(len, sources)), sum(source.positions for source in sources)
  rows = min(max(positions / seq_len, WINDOW_ROWS[0]), WINDOW_ROWS[1])
  window = max(1, round(rows * seq_len * examples / positions))
  return PackedRows(_stream(sources, weights, seed), window, seq_len, seed)


class TrainBatches:
  """Endless iterator of this host's part of each global batch: features [batch_size / hosts, seq_len].

  get_state() is a small JSON-able dict, equal on every host; set_state() continues from it, on any number of hosts.
  """

  def __init__(self, rows: PackedRows, batch_size: int, shard: tuple[int, int], fingerprint: dict):
    index, count = shard
    if batch_size % count:
      raise UserError(
        f'a batch of {batch_size} rows cannot be split over {count} hosts; set data.batch_size to a multiple of {count}'
      )
    mine = slice(index * batch_size // count, (index + 1) * batch_size // count)

    def stack(batch: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
      return {name: np.stack([row[name] for row in batch[mine]]) for name in packing.FEATURES}

    self.fingerprint = fingerprint
    self._batches = iter(ThreadPrefetchIterDataset(rows.batch(batch_size, batch_fn=stack), prefetch_buffer_size=2))

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._batches)

  def get_state(self) -> dict:
    return {'data': self.fingerprint, 'position': self._batches.get_state()}

  def set_state(self, state: dict) -> None:
    differs = [name for name, value in self.fingerprint.items() if state['data'].get(name) != value]
    if differs:
      name = differs[0]
      raise UserError(
        f'the data differs from what the checkpoint was trained on: {name} was '
        f'{state["data"].get(name)}, is {self.fingerprint[name]}; restore the data settings and files, '
        'or start a new --workdir'
      )
    self._batches.set_state(state['position'])

  def close(self) -> None:
    """Ends the prefetch thread."""
    self._batches.close()
    self._batches = iter(())


def train_batches(
  sources: Sequence[Encoded],
  weights: Sequence[float],
  batch_size: int,
  seq_len: int,
  seed: int,
  shard: tuple[int, int] = (0, 1),
) -> TrainBatches:
  """Batches without end. weights: the share of examples drawn from each source; (): each example once an epoch.
  shard: (this host, hosts)."""
  if weights and (len(weights) != len(sources) or min(weights) <= 0):
    raise UserError(f'data.weights {list(weights)}: give one number above 0 for each of the {len(sources)} sources')
  fingerprint = {
    'examples': [len(source) for source in sources],
    'crc32': [zlib.crc32(source.mask, zlib.crc32(source.ids)) for source in sources],
    'weights': [float(weight) for weight in weights],
    'seq_len': seq_len,
    'seed': seed,
  }
  return TrainBatches(packed_rows(sources, weights, seq_len, seed), batch_size, shard, fingerprint)


def eval_batches(
  encoded: Encoded, batch_size: int, seq_len: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, np.ndarray]]:
  """One pass, each example exactly once; the last batch is filled with empty rows, whose weights are 0."""
  rows = packing.pack([encoded[i] for i in range(len(encoded))], seq_len)
  index, count = shard
  if batch_size % count:
    raise UserError(
      f'a batch of {batch_size} rows cannot be split over {count} hosts; set data.batch_size to a multiple of {count}'
    )
  filler = packing.empty_rows(-len(rows['tokens']) % batch_size, seq_len)
  rows = {name: np.concatenate([values, filler[name]]) for name, values in rows.items()}
  for start in range(0, len(rows['tokens']), batch_size):
    mine = slice(start + index * batch_size // count, start + (index + 1) * batch_size // count)
    yield {name: values[mine] for name, values in rows.items()}


def statistics(examples: Sequence[Example], tokenizer, seq_len: int, system_prompt: str = '') -> dict:
  """Counts of the encoded examples, and rates measured on this machine: tokens are positions that enter the model,
  cpu is seconds of all threads, packing_efficiency the share of a packed epoch's positions that hold a token."""
  clocks = [(time.process_time(), time.perf_counter())]
  encoded, report = encode(examples, tokenizer, seq_len, system_prompt)
  clocks.append((time.process_time(), time.perf_counter()))
  rows = packed_rows([encoded], (), seq_len, seed=0)
  packed = filled = 0
  for window in range(max(1, len(encoded) // rows.window)):
    segment_ids = rows.pack(window)['segment_ids']
    packed += segment_ids.size
    filled += int(np.count_nonzero(segment_ids))
  clocks.append((time.process_time(), time.perf_counter()))
  (encode_cpu, encode_wall), (pack_cpu, pack_wall) = np.diff(clocks, axis=0).tolist()
  tokens = encoded.positions
  return {
    'rows': len(encoded),
    'tokens': tokens,
    'loss_tokens': encoded.loss_tokens,
    'left_out': dict(report.counts),
    'packing_efficiency': filled / packed,
    'encode_tokens_per_cpu_second': tokens / encode_cpu,
    'encode_tokens_per_second': tokens / encode_wall,
    'pack_tokens_per_cpu_second': filled / pack_cpu,
    'pack_tokens_per_second': filled / pack_wall,
    'tokens_per_cpu_second': 1 / (encode_cpu / tokens + pack_cpu / filled),
  }
