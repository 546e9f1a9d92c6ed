"""Batches of packed rows: their order, shares, restarts and hosts."""

import dataclasses
import gzip
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from encoded_sums import T, encode, sums
from train_batches import train_batches

from mathqwen.config import DataConfig
from mathqwen.data import packing, pipeline
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer

TOKEN_COUNTS = Path(__file__).parents[1] / 'testdata' / 'data_sets' / 'token_counts'


def take(batches, count):
  return [next(batches) for _ in range(count)]


def assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert set(a) == set(b) == set(packing.FEATURES)
    for name in a:
      assert a[name].dtype == b[name].dtype == packing.FEATURES[name]
      np.testing.assert_array_equal(a[name], b[name])


def segments(batches):
  """(tokens of a segment), one for each example in the batches."""
  return [
    tuple(row[ids == segment].tolist())
    for batch in batches
    for row, ids in zip(batch['tokens'], batch['segment_ids'], strict=True)
    for segment in range(1, ids.max() + 1)
  ]


# --- training batches ---


def test_an_epoch_holds_each_example_and_each_loss_token_once():
  encoded = encode(sums(300))
  rows = pipeline.packed_rows([encoded], (), T, seed=0)
  examples = rows.drawn(range(600))
  order = [ids.tobytes() for ids, _ in examples]
  assert len(set(order[:300])) == len(set(order[300:])) == 300
  assert order[:300] != order[300:]
  packed = packing.pack(examples[:300], T)
  assert packed['loss_weights'].sum() == encoded.loss_tokens == encoded.mask.sum()
  assert np.count_nonzero(packed['segment_ids']) == encoded.positions


def test_without_weights_an_epoch_holds_every_source():
  sources = [encode(sums(30)), encode(sums(20, start=60))]
  rows = pipeline.packed_rows(sources, (), T, seed=0)
  for epoch in range(2):
    drawn = sorted(ids.tobytes() for ids, _ in rows.drawn(range(epoch * 50, (epoch + 1) * 50)))
    assert drawn == sorted(source[i][0].tobytes() for source in sources for i in range(len(source)))


def test_the_seed_and_the_source_decide_the_order():
  def order(seed):
    """Indices in the order of the stream, for two sources of one length that take turns."""
    sources = [encode(sums(40)), encode(sums(40, start=100))]
    place = {source[i][0].tobytes(): (which, i) for which, source in enumerate(sources) for i in range(40)}
    rows = pipeline.packed_rows(sources, (1, 1), T, seed)
    drawn = [place[ids.tobytes()] for ids, _ in rows.drawn(range(80))]
    return [[i for which, i in drawn if which == source] for source in (0, 1)]

  first, second = order(0)
  assert sorted(first) == sorted(second) == list(range(40))
  assert first != second
  assert order(1)[0] not in (first, second)


def test_a_window_is_an_epoch_within_bounds():
  def window_of(count):
    """(epochs, full rows) that a window of the data is worth."""
    encoded = encode(sums(count))
    window = pipeline.packed_rows([encoded], (), T, seed=0).window
    return window / count, window * encoded.positions / count / T

  fewest, most = 16, 256
  epochs, rows = window_of(5)
  assert epochs > 1 and rows == pytest.approx(fewest, rel=0.05)
  epochs, rows = window_of(100)
  assert epochs == 1 and fewest < rows < most
  epochs, rows = window_of(1500)
  assert epochs < 1 and rows == pytest.approx(most, rel=0.05)


def test_rows_are_shuffled_by_the_seed_and_the_window(monkeypatch):
  """`fill` puts the long examples first, so the same shuffle in each window would always place them alike."""
  monkeypatch.setattr(packing, 'pack', lambda examples, seq_len, seed: seed)
  encoded = encode(sums(50))
  drawn = []
  for seed in (0, 7, 2**32 - 1):
    rows = pipeline.packed_rows([encoded], (), T, seed)
    drawn.append([rows.pack(window) for window in range(3)])
  assert all(len(set(seeds)) == 3 for seeds in drawn)  # of one run
  assert all(len(set(seeds)) == 3 for seeds in zip(*drawn, strict=True))  # of one window
  assert all(0 <= seed < 2**32 for seeds in drawn for seed in seeds)  # what NumPy takes


def test_windows_follow_each_other_without_loss():
  encoded = encode(sums(150))
  rows = pipeline.packed_rows([encoded], (), T, seed=0)
  batches = train_batches([encoded], (), 1, T, seed=0)
  windows = [rows.pack(window) for window in range(3)]
  expected = {name: np.concatenate([window[name] for window in windows]) for name in packing.FEATURES}
  taken = take(batches, len(expected['tokens']))
  assert_equal([{name: np.concatenate([batch[name] for batch in taken]) for name in packing.FEATURES}], [expected])
  assert sorted(segments(taken)) == sorted(tuple(ids[:-1].tolist()) for ids, _ in rows.drawn(range(3 * rows.window)))
  batches.close()


def test_weights_are_shares_of_examples():
  first, second = encode(sums(40)), encode(sums(40, start=100))
  batches = train_batches([first, second], (3, 1), 8, T, seed=0)
  seen = segments(take(batches, 40))
  mine = {tuple(first[i][0][:-1].tolist()) for i in range(40)}
  assert 0.73 < np.mean([row in mine for row in seen]) < 0.77
  batches.close()


def test_epochs_are_passes_over_each_source():
  """A pass of the mixture has the first source twice, half of the second, which goes on in the next pass, the third."""
  sources = [encode(sums(count, start=start)) for count, start in ((10, 0), (12, 40), (5, 80))]
  rows = pipeline.packed_rows(sources, (), T, seed=0, epochs=(2, 0.5, 1))
  assert rows.epoch == 20 + 6 + 5
  passes = [[rows.order[n * 31 + place] for place in range(31)] for n in range(4)]
  for one in passes:
    assert sorted(n for n in one if n < 10) == sorted([*range(10)] * 2)
    assert sorted(n for n in one if n >= 22) == [*range(22, 27)]
  for left, right in (passes[:2], passes[2:]):
    assert sorted(n for n in left + right if 10 <= n < 22) == [*range(10, 22)]
  assert len({tuple(one) for one in passes}) == 4
  assert max(n for n in passes[0][:12]) >= 10 > min(n for n in passes[0][-12:])  # mixed, not one after another
  again = pipeline.packed_rows(sources, (), T, seed=0, epochs=(2, 0.5, 1))
  assert [again.order[place] for place in reversed(range(124))] == [n for one in passes for n in one][::-1]
  other = pipeline.packed_rows(sources, (), T, seed=1, epochs=(2, 0.5, 1))
  assert [other.order[place] for place in range(31)] != passes[0]


@pytest.mark.parametrize('weights', [(), (0.7, 0.3)])
@pytest.mark.parametrize(('hosts', 'filled_to'), [(2, None), (4, 8), (3, 12)])
def test_hosts_share_the_batches_of_one_host(hosts, filled_to, weights):
  sources = [encode(sums(50)), encode(sums(30, start=60))]
  one_host = train_batches(sources, weights, 8, T, seed=5)
  parts = [train_batches(sources, weights, 8, T, 5, (i, hosts), filled_to) for i in range(hosts)]
  empty = packing.empty_rows((filled_to or 8) - 8, T)
  for _ in range(6):
    shares = [next(part) for part in parts]
    assert {share['tokens'].shape for share in shares} == {((filled_to or 8) // hosts, T)}
    joined = {name: np.concatenate([share[name] for share in shares]) for name in packing.FEATURES}
    whole = {name: np.concatenate([values, empty[name]]) for name, values in next(one_host).items()}
    assert_equal([whole], [joined])
    assert {part.digest for part in parts} == {one_host.digest}
    states = [json.dumps(part.get_state()) for part in parts]
    assert set(states) == {json.dumps(one_host.get_state())}
  for batches in (one_host, *parts):
    batches.close()


@pytest.mark.parametrize('mixed', [{'weights': ()}, {'weights': (1, 2)}, {'weights': (), 'epochs': (0.5, 3)}])
@pytest.mark.parametrize('stop', [0, 7, 10, 23])
def test_a_restored_run_continues_with_the_same_batches(stop, mixed):
  """A window is 10 batches: stops at its start, in its middle, at its end, and behind two of them. Without weights it
  is an epoch too; with them the epochs of the two sources end in the middle of windows."""
  sources = [encode(sums(50)), encode(sums(30, start=60))]
  batches = train_batches(sources, batch_size=4, seq_len=T, seed=2, **mixed)
  take(batches, stop)
  state = json.loads(json.dumps(batches.get_state()))
  expected = take(batches, 6)
  fresh = train_batches(sources, batch_size=4, seq_len=T, seed=2, **mixed)
  take(fresh, 2)
  fresh.set_state(state)
  assert_equal(take(fresh, 6), expected)
  halves = [train_batches(sources, batch_size=4, seq_len=T, seed=2, **mixed, shard=(i, 2)) for i in range(2)]
  for half in halves:
    half.set_state(state)
  joined = [
    {name: np.concatenate([a[name], b[name]]) for name in a}
    for a, b in zip(*(take(half, 6) for half in halves), strict=True)
  ]
  assert_equal(joined, expected)
  for each in (batches, fresh, *halves):
    each.close()


def test_seeds_give_other_orders():
  encoded = encode(sums(50))
  orders = []
  for seed in (0, 0, 1):
    batches = train_batches([encoded], (), 4, T, seed=seed)
    orders.append(segments(take(batches, 3)))
    batches.close()
  assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'sources': [encode(sums(51))]}, 'examples was'),
    ({'sources': [encode(sums(50, start=1))]}, 'crc32 was'),
    ({'sources': [dataclasses.replace(encode(sums(50)), mask=1 - encode(sums(50)).mask)]}, 'crc32 was'),
    ({'seed': 1}, 'seed was 0, is 1'),
    ({'seq_len': T + 1}, f'seq_len was {T}, is {T + 1}'),
    ({'weights': (2,)}, r'weights was \[\], is \[2.0\]'),
    ({'epochs': (2,)}, r'epochs was None, is \[2\]'),
  ],
)
def test_state_of_other_data_is_refused(changed, message):
  settings = {'sources': [encode(sums(50))], 'weights': (), 'batch_size': 4, 'seq_len': T, 'seed': 0}
  batches = train_batches(**settings)
  other = train_batches(**settings | changed)
  with pytest.raises(UserError, match=message):
    other.set_state(batches.get_state())
  batches.close()
  other.close()


def test_other_held_out_answers_are_refused(tmp_path):
  """The training part is the same. An earlier version wrote down nothing of the other one."""
  path = tmp_path / 'sums.jsonl'
  rows = [{'query': f'{a}+1=', 'response': str(a + 1)} for a in range(20)]

  def read():
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    cfg = DataConfig(sources=(str(path),), seq_len=64, batch_size=2, eval_examples=2)
    return TrainingData(cfg, load_tokenizer())

  before = read()
  rows[int(before.held_out.where[0].rpartition(':')[2]) - 1]['response'] = '7777'
  batches, after = before.train(), read().train()
  saved = batches.get_state()
  assert saved['data']['crc32'] == after.fingerprint['crc32']
  with pytest.raises(UserError, match='held_out was'):
    after.set_state(saved)
  del saved['data'][pipeline.HELD_OUT]
  after.set_state(saved)
  batches.close()
  after.close()


def test_closed_batches_end():
  threads = set(threading.enumerate())
  batches = train_batches([encode(sums(50))], (), 4, T, seed=0)
  next(batches)
  prefetch = set(threading.enumerate()) - threads
  assert prefetch
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)
  for thread in prefetch:
    thread.join(timeout=60)
  assert not any(thread.is_alive() for thread in prefetch)


def test_impossible_settings_are_refused():
  encoded = encode(sums(20))
  with pytest.raises(UserError, match='6 rows cannot be split over 4 hosts'):
    train_batches([encoded], (), 6, T, 0, shard=(0, 4))
  longest = max(len(encoded[i][0]) for i in range(20)) - 1
  with pytest.raises(UserError, match=f'an example needs {longest} positions, seq_len is {longest - 1}'):
    pipeline.packed_rows([encoded], (), longest - 1, 0)
  assert pipeline.packed_rows([encoded], (), longest, 0).pack(0)['tokens'].shape[1] == longest


# --- evaluation batches ---


@pytest.mark.parametrize('hosts', [1, 2])
def test_evaluation_sees_each_example_once(hosts):
  encoded = encode(sums(50))
  parts = [list(pipeline.eval_batches(encoded, 4, T, shard=(i, hosts))) for i in range(hosts)]
  assert len({len(part) for part in parts}) == 1
  assert all(batch['tokens'].shape == (4 // hosts, T) for part in parts for batch in part)
  batches = [batch for part in parts for batch in part]
  assert sorted(segments(batches)) == sorted(tuple(encoded[i][0][:-1].tolist()) for i in range(50))
  assert sum(batch['loss_weights'].sum() for batch in batches) == encoded.loss_tokens


# --- the real data ---


@pytest.mark.parametrize('name', ['gsm8k', 'math'])
def test_packing_fills_rows_of_the_lengths_of_real_data(name):
  """Ids of the first 4,000 training rows, as the packaged tokenizer makes them."""
  counts = json.loads(gzip.decompress((TOKEN_COUNTS / f'{name}.json.gz').read_bytes()))
  mask = np.ones(1025, np.uint8)
  encoded = pipeline.Encoded.from_rendered([(np.full(count, i), mask[:count]) for i, count in enumerate(counts)])
  rows = pipeline.packed_rows([encoded], (), 1024, seed=0)
  windows = [rows.pack(window) for window in range(len(encoded) // rows.window)]
  filled = sum(np.count_nonzero(window['segment_ids']) for window in windows)
  assert filled / sum(window['segment_ids'].size for window in windows) >= 0.99


@pytest.mark.parametrize('weights', [(), (1.0, 3.0)])
@pytest.mark.parametrize('shard', [(0, 1), (1, 2)])
def test_the_examples_of_a_batch_have_names(weights, shard):
  sources = []
  for name, start in (('a', 0), ('b', 100)):
    source = encode(sums(15, start))
    sources.append(dataclasses.replace(source, where=tuple(f'{name}:{i}' for i in range(len(source)))))
  by_name = {where: source[i][0] for source in sources for i, where in enumerate(source.where)}
  batches = train_batches(sources, weights, 4, T, 0, shard)
  index, count = shard
  for _ in range(12):  # three windows
    names = batches.examples(batches.get_state())
    batch = next(batches)
    assert len(names) == 4
    for row, names_of_row in enumerate(names[index * 4 // count : (index + 1) * 4 // count]):
      segments = batch['segment_ids'][row]
      assert segments.max() == len(names_of_row)
      for segment, name in enumerate(names_of_row, start=1):
        assert (batch['tokens'][row][segments == segment] == by_name[name][:-1]).all()
  batches.close()
