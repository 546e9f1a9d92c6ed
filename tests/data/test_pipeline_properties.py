"""Order, resharding, resumption and exactly-once of the batches, for sizes, hosts and stop points drawn at random."""

import collections
import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from train_batches import train_batches

from mathqwen.data import packing, pipeline
from mathqwen.data.encoded import Encoded

T = 24


@pytest.fixture(scope='module', autouse=True)
def small_windows():
  """A few batches then go through several windows, and are packed in no time."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline, 'WINDOW_ROWS', (2, 6))
    yield


@functools.cache
def source(size, which):
  """`size` examples of 3 to 20 ids, no two alike: the first id numbers them, the source is the second."""
  rng = np.random.default_rng([size, which])
  rendered = []
  for number in range(size):
    ids = np.array([number, which, *rng.integers(0, 50, rng.integers(1, 19))], np.int32)
    mask = np.zeros(len(ids), np.uint8)
    mask[rng.integers(1, len(ids)) :] = 1
    rendered.append((ids, mask))
  return Encoded.from_rendered(rendered, [f'{which}:{number}' for number in range(size)])


@st.composite
def pipelines(draw):
  """Arguments of `train_batches` without its shard."""
  sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
  weights = draw(
    st.sampled_from([(), tuple(draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes))))])
  )
  batch_size = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
  seed = draw(st.sampled_from([0, 1, 2**32 - 1]))
  return [source(size, which) for which, size in enumerate(sizes)], weights, batch_size, T, seed


@st.composite
def hosts_of(draw, batch_size):
  return draw(st.sampled_from([count for count in (1, 2, 3, 4) if batch_size % count == 0]))


class Hosts:
  """The batches of several hosts side by side: the rows of each global batch, and its digest."""

  def __init__(self, arguments, count, state=None):
    self.all = [train_batches(*arguments, shard=(host, count)) for host in range(count)]
    for batches in self.all if state else ():
      batches.set_state(state)

  def take(self, steps):
    """[(global batch, digest), ...] of the next steps."""
    taken = []
    for _ in range(steps):
      parts = [next(batches) for batches in self.all]
      (digest,) = {batches.digest for batches in self.all}
      taken.append(({name: np.concatenate([part[name] for part in parts]) for name in packing.FEATURES}, digest))
    return taken

  def stop(self):
    """The state, which is the same on every host, as a checkpoint holds it."""
    (state,) = {json.dumps(batches.get_state()) for batches in self.all}
    for batches in self.all:
      batches.close()
    return json.loads(state)


def assert_same(left, right):
  for (a, digest), (b, other) in zip(left, right, strict=True):
    assert digest == other
    for name in packing.FEATURES:
      np.testing.assert_array_equal(a[name], b[name])


def names_in(batch):
  """(source, number) of each example of a global batch, by its first two ids."""
  found = []
  for tokens, segments in zip(batch['tokens'], batch['segment_ids'], strict=True):
    for segment in range(1, segments.max() + 1):
      number, which = tokens[segments == segment][:2].tolist()
      found.append((which, number))
  return found


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_hosts_and_any_stops_give_the_same_batches(data):
  """Stopped some times, continued each time on another number of hosts: the batches of one host that never stopped."""
  arguments = data.draw(pipelines())
  parts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
  whole = Hosts(arguments, 1)
  expected = whole.take(sum(parts))
  last = whole.stop()

  state, found = None, []
  for steps in parts:
    hosts = Hosts(arguments, data.draw(hosts_of(arguments[2])), state)
    found += hosts.take(steps)
    state = hosts.stop()
  assert_same(found, expected)
  assert state == last


@settings(max_examples=12, deadline=None, derandomize=True)
@given(pipelines(), st.integers(1, 3))
def test_each_example_is_there_exactly_once_an_epoch(arguments, epochs):
  """Whole windows of batches, taken apart: a prefix of the stream, whose epochs each hold every example once."""
  sources, weights, _, _, seed = arguments
  rows = pipeline.packed_rows(sources, weights, T, seed)
  examples = sum(map(len, sources))
  windows = -(-epochs * examples // rows.window)
  count = sum(len(rows.pack(window)['tokens']) for window in range(windows))
  hosts = Hosts((sources, weights, 1, T, seed), 1)
  batches = [batch for batch, _ in hosts.take(count)]
  hosts.stop()

  drawn = [names_in(batch) for batch in batches]
  stream = [ids[:2].tolist() for ids, _ in rows.drawn(range(windows * rows.window))]
  stream = [(which, number) for number, which in stream]
  assert collections.Counter(itertools.chain.from_iterable(drawn)) == collections.Counter(stream)
  for which, own in enumerate(sources):
    in_order = [number for other, number in stream if other == which] if weights else None
    if in_order is None:  # without weights, an epoch is one pass over all sources together
      for epoch in range(epochs):
        part = stream[epoch * examples : (epoch + 1) * examples]
        assert sorted(number for other, number in part if other == which) == list(range(len(own)))
      continue
    for epoch in range(len(in_order) // len(own)):
      assert sorted(in_order[epoch * len(own) : (epoch + 1) * len(own)]) == list(range(len(own)))
  # What each row holds is what the report of a bad step would name.
  state, names = {'position': {'window': 0, 'row': 0}}, []
  batches = train_batches(sources, weights, min(count, 4), T, seed)
  for row in batches.examples(state):
    names.append([tuple(map(int, name.split(':'))) for name in row])
  batches.close()
  assert names == drawn[: len(names)]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(pipelines(), st.data())
def test_evaluation_sees_each_example_once_on_any_hosts(arguments, data):
  (examples, *_), _, batch_size, _, _ = arguments
  count = data.draw(hosts_of(batch_size))
  parts = [list(pipeline.eval_batches(examples, batch_size, T, shard=(host, count))) for host in range(count)]
  found = [name for part in parts for batch in part for name in names_in(batch)]
  assert sorted(found) == [(0, number) for number in range(len(examples))]
  assert sum(batch['loss_weights'].sum() for part in parts for batch in part) == examples.loss_tokens
