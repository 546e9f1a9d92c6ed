"""A packed row taken apart again, for people to read."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mathqwen.chat.chat_format import text_with_specials
from mathqwen.data import pairs
from mathqwen.text.tokenizer import Tokenizer


class Part(NamedTuple):
  """A segment; with shared prompts its question, or one of the answers."""

  segment: int
  answer: int  # 0: the question, or a segment without shared prompts
  ids: list[int]  # one more than it has positions
  has_loss: list[bool]  # of each id
  place: str  # which side of which pair it is, as `pairs.place` says it


def parts(row: Mapping[str, np.ndarray]) -> list[Part]:
  """The parts of one packed row (features of shape [T]), in its order."""
  segment_ids = row['segment_ids']
  answer_ids, pair_ids = (row.get(name, np.zeros_like(segment_ids)) for name in ('answer_ids', 'pair_ids'))
  found = []
  # A shared question of one token is no part: each answer repeats it.
  for segment, answer in sorted({(int(s), int(a)) for s, a in zip(segment_ids, answer_ids, strict=True) if s}):
    here = (segment_ids == segment) & (answer_ids == answer)
    # The targets are the ids shifted by one, so the first token and the targets are all the ids. The answers to a
    # shared question begin with a copy of its last token.
    ids = [int(row['tokens'][here][0]), *row['targets'][here].tolist()]
    has_loss = [False, *(row['loss_weights'][here] > 0).tolist()]
    found.append(Part(segment, answer, ids, has_loss, pairs.place(int(pair_ids[here][0]))))
  return found


def runs(ids: Sequence[int], has_loss: Sequence[bool], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
  """(text, whether it has loss) of each run of ids that have it, or have it not. Special tokens are text, too."""
  for with_loss, run in itertools.groupby(zip(ids, has_loss, strict=True), key=lambda pair: pair[1]):
    yield text_with_specials([token_id for token_id, _ in run], tokenizer), with_loss
