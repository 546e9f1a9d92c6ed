"""`data.share_prompts`: several answers to one question in one segment, which holds the question once.

Two answers to the question S a b, S a b A E n (mask 0 0 0 1 1 0) and S a b C D E (mask 0 0 0 1 1 1), in a row of T = 9:

  tokens         S  a  b  A  E  b  C  D  .
  targets        a  b  A  E  n  C  D  E  .
  loss_weights   0  0  1  1  0  1  1  1  0
  segment_ids    1  1  1  1  1  1  1  1  0
  positions      0  1  2  3  4  2  3  4  0      of each token in its own example
  answer_ids     0  0  1  1  1  2  2  2  0      0: question, or an example that shares with none

A token sees the tokens of its segment before it whose answer id is 0 or its own. The second A sees S a b A, and D sees
S a b C D: what they see in rows of their own. b, the last token before the first loss, predicts another token in each
answer, so each answer begins with its own copy of it.

So n answers of k positions to a question of q take q + n * k positions, not n * (q + k). An answer that is alone with
its question in a row has answer id 0, and is packed as in `packing`.

Examples have the same question when their ids before the first loss token are equal. `Questions` draws them together,
so that they come into one window; of a window, `plan` puts into one row what fits.
"""

from collections.abc import Sequence

import numpy as np

from mathqwen.data import packing, prompts
from mathqwen.data.encoded import Examples, Masked

FEATURES = packing.FEATURES | {'answer_ids': np.int32}

# Positions that the answers of a segment may take together. `model.splash` numbers them with 10 bits; beyond, little of
# a segment is the question.
MOST_ANSWERED = 1024
_TOGETHER = 64  # most answers to a question that are drawn together: a window holds few rows


class Questions:
  """Which examples have the same question, by the hashes of their prompts: element i is a list of their numbers.

  Takes 16 bytes for each example. More than _TOGETHER answers to a question are several elements.
  """

  def __init__(self, sources: Sequence[Examples], apart: bool):
    """The examples of the first source have the numbers from 0 on, then come the next one's.

    apart: answers of different sources are different elements; those of the first source come first.
    """
    parts = []
    first = 0
    for source in sources:
      parts.append(prompts.all_entries(source.prompt_indexes(), first))
      first += len(source)
    if not apart:
      together = np.concatenate(parts)
      parts = [together[np.argsort(together['prompt'], kind='stable')]]
    starts = [_starts(part['prompt']) for part in parts]
    sizes = [len(part) for part in parts]
    before = np.cumsum([0, *sizes[:-1]])
    self.counts = [len(each) for each in starts]  # elements of each source; with `apart` False, of all
    self._numbers = np.concatenate([part['example'] for part in parts])
    self._starts = np.concatenate([*(each + shift for each, shift in zip(starts, before, strict=True)), [sum(sizes)]])

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int) -> list[int]:
    return self._numbers[self._starts[index] : self._starts[index + 1]].tolist()


def _starts(hashes: np.ndarray) -> np.ndarray:
  """Where among sorted hashes an element of `Questions` begins."""
  places = np.arange(len(hashes))
  is_new = np.ones(len(hashes), bool)
  is_new[1:] = hashes[1:] != hashes[:-1]
  in_group = places - np.maximum.accumulate(np.where(is_new, places, 0))
  return np.flatnonzero(in_group % _TOGETHER == 0)


def _shared(example: Masked) -> int:
  """How many tokens an example shares with others of its question: those before the first loss, without the last."""
  _, mask = example
  return max(int(mask.argmax()) - 1, 0)


def _by_question(examples: Sequence[Masked], seq_len: int) -> list[list[int]]:
  """The indices of the examples by question, each list so short that it fits into a segment."""
  groups: dict[bytes, list[int]] = {}
  for index, (ids, mask) in enumerate(examples):
    groups.setdefault(ids[: mask.argmax()].tobytes(), []).append(index)

  found = []
  for group in groups.values():
    shared = _shared(examples[group[0]])
    room = min(seq_len - shared, MOST_ANSWERED)
    sizes = {index: len(examples[index][0]) - 1 - shared for index in group}
    found += [[index] for index in group if sizes[index] > room]
    others = [index for index in group if sizes[index] <= room]
    found += [[others[i] for i in part] for part in packing.fill([sizes[index] for index in others], room)]
  return found


def plan(examples: Sequence[Masked], seq_len: int, seed: int) -> list[list[list[int]]]:
  """Rows of segments of indices into `examples`; every index is in exactly one segment.

  Several indices in a segment are answers to one question. The rows are in an order drawn by `seed`.
  """
  segments = _by_question(examples, seq_len)
  sizes = []  # of each segment: positions of its question, then those of each answer
  for segment in segments:
    shared = _shared(examples[segment[0]])
    sizes.append([shared, *(len(examples[index][0]) - 1 - shared for index in segment)])
  rows = []
  for row in fill(sizes, seq_len):
    rows.append([[segments[number][answer] for answer in answers] for number, answers in row])
  np.random.default_rng(seed).shuffle(rows)
  return rows


# A part of a segment: its number, and the numbers of its answers.
Part = tuple[int, tuple[int, ...]]


def fill(sizes: Sequence[Sequence[int]], capacity: int) -> list[list[Part]]:
  """Rows of parts; each answer of each segment is in exactly one part.

  As `packing.fill` places examples, this places whole segments. Then the segment whose answers fill what is left of the
  row best is split, and its other answers wait for a later row with a question of their own.

  sizes: of each segment: positions of its question, then those of each answer. Their sum is at most `capacity`.
  """
  left: dict[int, list[Part]] = {}  # positions -> parts not placed yet, the largest first

  def positions(part: Part) -> int:
    number, answers = part
    return sizes[number][0] + sum(sizes[number][1 + answer] for answer in answers)

  def put_back(parts: Sequence[Part]) -> None:
    for part in parts:
      left.setdefault(positions(part), []).append(part)
    by_size = sorted(left.items(), reverse=True)
    left.clear()
    left.update(by_size)

  def take(size: int) -> Part:
    part = left[size].pop()
    if not left[size]:
      del left[size]
    return part

  put_back([(number, tuple(range(len(own) - 1))) for number, own in enumerate(sizes)])
  rows = []
  while left:
    row = [take(next(iter(left)))]
    room = capacity - positions(row[0])
    for size in packing.best_lengths(left, room):
      row.append(take(size))
      room -= size
    chosen = _best_answers(left, sizes, room)
    if chosen is not None:
      size, (number, answers) = chosen
      _, whole = take(size)
      row.append((number, answers))
      put_back([(number, tuple(answer for answer in whole if answer not in answers))])
    rows.append(row)
  return rows


def _best_answers(left: dict[int, list[Part]], sizes: Sequence[Sequence[int]], room: int) -> tuple[int, Part] | None:
  """(size of a part in `left`, its answers that fill `room` best beside their question). None when none fits.

  Of several parts of one size, that which `take` in `fill` returns.
  """
  best = None
  most = 0
  for size, parts in left.items():
    number, answers = parts[-1]
    shared, *own = sizes[number]
    if room - shared <= most:
      continue
    by_length: dict[int, list[int]] = {}
    for answer in answers:
      by_length.setdefault(own[answer], []).append(answer)
    lengths = packing.best_lengths(by_length, room - shared)
    if sum(lengths) > most:
      most = sum(lengths)
      best = size, (number, tuple(by_length[length].pop() for length in lengths))
  return best


def examples_by_row(examples: Sequence[Masked], seq_len: int, seed: int) -> list[list[int]]:
  """Which examples each row of `pack` holds, by their index, in the order of its segments and their answers."""
  return [[index for segment in row for index in segment] for row in plan(examples, seq_len, seed)]


def pack(examples: Sequence[Masked], seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
  """All examples in the rows of `plan`: the features drawn above, each [rows, seq_len]."""
  rows = plan(examples, seq_len, seed)
  features = packing.empty_rows(len(rows), seq_len, FEATURES)
  for row, segments in enumerate(rows):
    start = 0
    for number, segment in enumerate(segments, start=1):
      here = {name: values[row, start:] for name, values in features.items()}
      start += _lay_out(here, [examples[index] for index in segment], number)
  return features


def _lay_out(features: dict[str, np.ndarray], examples: Sequence[Masked], segment: int) -> int:
  """Writes answers to one question into `features`, from their begin on. Returns the positions that they take."""
  shared = _shared(examples[0]) if len(examples) > 1 else 0
  # (answer id, which tokens of an example, the example): the question, then each answer.
  parts = [(0, slice(0, shared), examples[0])]
  for answer, example in enumerate(examples, start=int(len(examples) > 1)):
    parts.append((answer, slice(shared, len(example[0]) - 1), example))
  start = 0
  for answer, part, (ids, mask) in parts:
    here = slice(start, start + part.stop - part.start)
    features['tokens'][here] = ids[part]
    features['targets'][here] = ids[1:][part]
    features['loss_weights'][here] = mask[1:][part]
    features['segment_ids'][here] = segment
    features['positions'][here] = np.arange(part.start, part.stop)
    features['answer_ids'][here] = answer
    start = here.stop
  return start
