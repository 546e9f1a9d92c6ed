"""Spikes: steps whose loss or gradient norm is far above what it was in the steps before."""

import collections
import math
import statistics

WINDOW = 100  # steps that a median is taken over
FEWEST = 10  # steps without which there is no median yet
# A step is launched before the one ahead of it has been read. What it is compared with ends two steps before it in any
# case, even where the loop has read more: so a resumed run compares with the same.
LAG = 2


class Spikes:
  """The median loss and gradient norm of the last steps, and what is too far above them."""

  def __init__(self, factor: float = math.inf):
    """factor: how many times the median a spike is; inf finds none."""
    self.factor = factor
    self._recent: collections.deque[tuple[int, float, float]] = collections.deque(maxlen=WINDOW + LAG)

  def medians(self, step: int) -> tuple[float, float] | None:
    """The median loss and gradient norm that `step` is compared with; None while too few steps are known."""
    known = [each for each in self._recent if each[0] <= step - LAG][-WINDOW:]
    if len(known) < FEWEST:
      return None
    return statistics.median(loss for _, loss, _ in known), statistics.median(norm for *_, norm in known)

  def limits(self, step: int) -> tuple[float, float]:
    """The loss and the gradient norm above which `step` is a spike."""
    medians = self.medians(step)
    if medians is None:
      return math.inf, math.inf
    # A median of 0 says nothing: any loss would be above it.
    loss, norm = (median * self.factor if median > 0 else math.inf for median in medians)
    return loss, norm

  def add(self, step: int, loss: float, norm: float) -> bool:
    """Takes a step that was read. Returns whether it is a spike. Numbers that are not finite are another matter."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
      return False
    most_loss, most_norm = self.limits(step)
    self._recent.append((step, loss, norm))
    return loss > most_loss or norm > most_norm

  def get_state(self) -> list[list]:
    """The last steps, for JSON: a run that continues from them finds the same spikes."""
    return [list(each) for each in self._recent]

  def set_state(self, state: list[list]) -> None:
    """Continues from what `get_state` gave."""
    self._recent.clear()
    self._recent.extend((int(step), float(loss), float(norm)) for step, loss, norm in state)
