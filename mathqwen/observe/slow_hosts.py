"""Which host holds the others up, from the time that each host itself needs for a step."""

import contextlib
import statistics
import time
from collections.abc import Iterator

from mathqwen.hardware import hosts

_RATIO = 1.5  # to the median of the hosts, from which a host is slow
_SHARE = 0.1  # of a step, which it must cost more than the median host


class SlowHosts:
  """Measures this host's work for each step, and compares it with that of the other hosts once a window."""

  def __init__(self):
    self._seconds = 0.0
    self._steps = 0
    self._named: int | None = None

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """Surrounds what this host does for one step while the devices are busy: makes its rows and launches the step."""
    begin = time.monotonic()
    yield
    self._seconds += time.monotonic() - begin
    self._steps += 1

  def compare(self, step_seconds: float) -> tuple[dict[str, float], str]:
    """({}, '') or (values for the metrics, a line): which host is slow in this window. All hosts must call it.

    step_seconds: that a step took. The line is '' where the window before has named the same host.
    """
    if not hosts.has_store():  # over the devices the comparison would hold them up
      return {}, ''
    own = self._seconds / max(self._steps, 1)
    self._seconds, self._steps = 0.0, 0
    found = slowest(hosts.gather(own), step_seconds)
    news = found is not None and found[0] != self._named
    self._named = found and found[0]
    if found is None:
      return {}, ''
    host, seconds, median = found
    line = (
      f'host {host} is slow: it takes {seconds:.2g} seconds to make and launch a step, the median of the hosts '
      f'{median:.2g}; a step takes {step_seconds:.2g}'
    )
    return {'slow_host': host, 'slow_host_seconds': seconds}, line if news else ''


def slowest(seconds: list[float], step_seconds: float) -> tuple[int, float, float] | None:
  """(host, its seconds, the median) of the slowest of several hosts, where it holds the others up; else None.

  seconds: of each host, for a step.
  """
  host = max(range(len(seconds)), key=seconds.__getitem__)
  median = statistics.median_low(seconds)  # with two hosts: the faster one
  slow = seconds[host]
  matters = slow > _RATIO * median and slow - median > _SHARE * step_seconds
  return (host, slow, median) if matters else None
