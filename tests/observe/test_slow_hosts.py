"""Which host holds the others up."""

import pytest

from mathqwen.hardware import hosts
from mathqwen.observe import slow_hosts
from mathqwen.observe.slow_hosts import SlowHosts


@pytest.mark.parametrize('seconds, step, found', [
  ([0.1, 0.9, 0.1, 0.1], 1.0, (1, 0.9, 0.1)),
  ([0.1, 0.9], 1.0, (1, 0.9, 0.1)),
  ([0.5, 0.6, 0.5], 1.0, None),  # not much slower than the others
  ([0.001, 0.009, 0.001], 1.0, None),  # it costs next to nothing of a step
  ([0.4, 0.4, 0.4, 0.4], 0.4, None),
])  # fmt: skip
def test_the_slowest(seconds, step, found):
  assert slow_hosts.slowest(seconds, step) == found


def test_a_slow_host_is_named_once(monkeypatch):
  gathered = []
  monkeypatch.setattr(hosts, 'gather', lambda own: gathered.append(own) or [own, 0.9])
  measured = SlowHosts()
  assert measured.compare(1.0) == ({}, '') and not gathered  # one host has none to compare with
  monkeypatch.setattr(hosts, 'has_store', lambda: True)
  lines = []
  for _ in range(2):
    with measured.step():
      pass
    values, line = measured.compare(1.0)
    assert values == {'slow_host': 1, 'slow_host_seconds': 0.9}
    lines.append(line)
  assert lines[0].startswith('host 1 is slow: it takes 0.9 seconds to make and launch a step') and not lines[1]
  assert all(0 < own < 0.5 for own in gathered)
