"""Cuts and closes thinking that reaches its budget; the answer continues from there."""

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass
class Budget:
  """The budget of the answers of one call of `generate`.

  The decoding loop looks at answers only every few tokens, so an answer may exceed the budget: the excess is dropped.
  The tokens up to the budget are the model's own, and the ids of `close` follow.
  """

  tokens: int  # of an answer from its first one, at which its thinking is closed; 1 or more
  close: Callable[[int, list[int]], list[int] | None]  # (index, ids so far) -> ids to go on with; None: leave it
  on_cut: Callable[[int], None] | None = None  # called with the index of each answer that is cut
  _asked: set[int] = dataclasses.field(default_factory=set)

  def cut(self, index: int, answer: list[int], limit: int, stop_ids: Sequence[int]) -> list[int] | None:
    """The answer up to the budget with its thinking closed; None when it is left as it is. limit: of its tokens."""
    if len(answer) < self.tokens or index in self._asked:
      return None
    self._asked.add(index)
    own = answer[: self.tokens]
    more = None if own[-1] in stop_ids else self.close(index, own)
    if not more or len(own) + len(more) >= limit:
      return None
    if self.on_cut is not None:
      self.on_cut(index)
    return own + more
