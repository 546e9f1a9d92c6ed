"""Summaries of events written by hand."""

import json

import pytest

from launch.tpu import ledger

EVENTS = [
  (0, 'up', {}),
  (10, 'asked', {}),
  (100, 'active', {}),
  (150, 'started', {}),
  (500, 'ended', {'outcome': 'again', 'step': 40, 'step_time': 460, 'tokens': None}),
  (520, 'gone', {}),
  (521, 'deleted', {}),
  (600, 'asked', {}),
  (700, 'active', {}),
  (760, 'started', {}),
  # Interrupted again before it reached step 40: still the same loss.
  (800, 'ended', {'outcome': 'again', 'step': 35, 'step_time': 790, 'tokens': None}),
  (810, 'started', {}),
  (900, 'step', {'step': 40}),
  (1300, 'ended', {'outcome': 'done', 'step': 90, 'step_time': 1290, 'tokens': 7000}),
  (1310, 'deleted', {}),
]


def events(until=2000):
  return [{'time': at, 'event': name, **values} for at, name, values in EVENTS if at <= until]


def test_summary():
  got = ledger.summary(events(), chips=16, price_per_chip_hour=2.0, now=1310)
  seconds = (520 - 100) + (1310 - 700)  # of slices that were there
  assert (got.steps, got.tokens, got.starts, got.preemptions) == (90, 7000, 3, 1)
  assert got.chip_hours == pytest.approx(seconds * 16 / 3600)
  assert got.cost == pytest.approx(seconds * 16 / 3600 * 2)
  assert got.lost_hours == pytest.approx((900 - 460) / 3600)
  assert got.hours == pytest.approx(1310 / 3600)


def test_summary_of_a_job_under_way():
  """A slice that is there costs money until now; time is lost until now while the old step is not reached again."""
  got = ledger.summary(events(until=800), chips=4, price_per_chip_hour=0, now=1000)
  assert got.chip_hours == pytest.approx((420 + 300) * 4 / 3600) and got.cost is None
  assert got.lost_hours == pytest.approx((1000 - 460) / 3600) and got.tokens is None
  assert ledger.summary([], 4, 1.0, now=5).cost == 0


def test_properties_of_the_ledger(tmp_path):
  book = ledger.Ledger(tmp_path / 'job')
  path = tmp_path / 'job' / 'ledger.jsonl'
  write = lambda until: path.write_text(''.join(json.dumps(event) + '\n' for event in events(until)))
  for until, under_way, behind, reached, finished in [
    (100, False, None, 0, False),
    (150, True, None, 0, False),
    (500, False, 40, 40, False),
    (760, True, 40, 40, False),
    (800, False, 40, 40, False),
    (900, True, None, 40, False),
    (1310, False, 90, 90, True),
  ]:
    write(until)
    assert (book.under_way, book.behind, book.reached, book.finished) == (under_way, behind, reached, finished), until
  with open(path, 'a') as file:
    file.write('{"time": 1, "eve')  # of a launcher that was killed
  assert len(book.events()) == len(EVENTS)
