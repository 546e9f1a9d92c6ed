"""`Encoded`: tokenised examples end to end."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Tokenised examples end to end: example i is ids[offsets[i]:offsets[i + 1]] and the same slice of mask.

  ids      S u s e r ... E n | S u s e r ... E n | ...     int32, as chatml.render gives them
  mask     0 0 0 0 0 ... 1 0 | 0 0 0 0 0 ... 1 0 | ...     uint8
  offsets  0                   57                  131     int64, one more than there are examples
  """

  ids: np.ndarray
  mask: np.ndarray
  offsets: np.ndarray
  where: tuple[str, ...]  # of each example: file and line, as `Example` has it

  @classmethod
  def from_rendered(
    cls, rendered: Sequence[tuple[Sequence[int], Sequence[int]]], where: Sequence[str] | None = None
  ) -> 'Encoded':
    """The (ids, mask) pairs of `chatml.render_batch` end to end. where: None numbers them."""
    ids = [np.asarray(ids, np.int32) for ids, _ in rendered]
    mask = [np.asarray(mask, np.uint8) for _, mask in rendered]
    lengths = [len(each) for each in ids]
    return cls(
      ids=np.concatenate([np.zeros(0, np.int32), *ids]),  # concatenate refuses an empty list
      mask=np.concatenate([np.zeros(0, np.uint8), *mask]),
      offsets=np.cumsum([0, *lengths], dtype=np.int64),
      where=tuple(where) if where is not None else tuple(map(str, range(len(rendered)))),
    )

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of one example, without copying."""
    part = slice(self.offsets[index], self.offsets[index + 1])
    return self.ids[part], self.mask[part]

  def take(self, indices: Sequence[int]) -> 'Encoded':
    """A copy of these examples, in this order."""
    return Encoded.from_rendered([self[i] for i in indices], [self.where[i] for i in indices])

  def prompt(self, index: int) -> bytes:
    """What comes before the first loss token of an example; equal for equal prompts."""
    ids, mask = self[index]
    return ids[: mask.argmax()].tobytes()

  @property
  def positions(self) -> int:
    """Positions that the examples take in packed rows: one less than its ids for each."""
    return len(self.ids) - len(self)

  @property
  def loss_tokens(self) -> int:
    """Tokens that are trained on."""
    return int(self.mask.sum())


def concatenate(parts: Sequence[Encoded]) -> Encoded:
  """The examples of all parts, in order."""
  lengths = [np.diff(part.offsets) for part in parts]
  return Encoded(
    ids=np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
    mask=np.concatenate([np.zeros(0, np.uint8), *(part.mask for part in parts)]),
    offsets=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
    where=tuple(where for part in parts for where in part.where),
  )
