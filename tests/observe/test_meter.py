"""Windows and totals of the meter by literal numbers, on a clock set by hand."""

import pytest

from mathqwen.observe import meter as meter_lib
from mathqwen.observe.meter import Meter


@pytest.fixture
def clock(monkeypatch):
  """The clock of the meter, which a test moves. Steps end when their metrics say so."""
  times = [100.0]
  monkeypatch.setattr(meter_lib.time, 'monotonic', lambda: times[0])
  monkeypatch.setattr(meter_lib, 'wait_for_end', lambda metrics: metrics['ends'])
  return times


def metrics(ends, loss_sum=1.0, loss_tokens=5, tokens=10, grad_norm=1.0, learning_rate=1e-3, skipped=False):
  return {
    'loss_sum': loss_sum,
    'loss_tokens': loss_tokens,
    'tokens': tokens,
    'grad_norm': grad_norm,
    'learning_rate': learning_rate,
    'skipped': skipped,
    'ends': ends,
  }


def test_a_window(clock):
  with Meter(every=2, positions=100, peak_seconds=0.5) as meter:
    assert meter.add(0, metrics(103.0, 30.0, 10, 80)) == []
    assert meter.add(1, metrics(104.0, 10.0, 30, 60, grad_norm=0.5, learning_rate=2e-3)) == []
    (window,) = meter.add(2, metrics(109.0, 7.0, 7, 50))
  assert window == {
    'step': 2,
    'loss': 1.0,  # (30 + 10) / (10 + 30); the mean of the two means is 1.67
    'learning_rate': 2e-3,  # of the last step of the window, as the gradient norm
    'grad_norm': 0.5,
    'packing_efficiency': 0.7,  # (80 + 60) / 200
    'tokens_per_second': 35.0,  # 140 tokens in the 4 seconds until the second step ended, not until it was read
    'loss_tokens_per_second': 10.0,
    'step_seconds': 2.0,
    'input_seconds': 0.0,
    'tokens': 140,  # of the run
    'mfu': 0.25,
  }


@pytest.mark.parametrize('ahead', [True, False], ids=['the host runs ahead', 'the host waits'])
def test_every_step_is_timed_from_the_first_on(clock, ahead):
  """Steps of 1, 2, 3, ... seconds, handed in when they begin or when they have ended."""
  windows, end = [], 100.0
  with Meter(every=1, positions=10) as meter:
    for step in range(4):
      begin, end = end, end + step + 1
      clock[0] = begin if ahead else end
      windows += meter.add(step, metrics(end))
    windows += meter.drain(flush=True)
  assert [(window['step'], window['step_seconds']) for window in windows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
  assert not any('mfu' in window for window in windows)  # no peak is known


def test_a_run_of_one_step(clock):
  with Meter(every=10, positions=10) as meter:
    meter.add(0, metrics(104.0, 4.0, 2))
    (window,) = meter.drain(flush=True)
    assert (window['step'], window['loss'], window['packing_efficiency']) == (1, 2.0, 1.0)
    assert (window['step_seconds'], window['tokens_per_second']) == (4.0, 2.5)
    assert meter.drain(flush=True) == []


def test_only_the_wait_of_idle_devices_is_lost(clock):
  """Steps of 4 seconds; the rows of the next are asked for as soon as a step is handed in."""
  windows = []
  with Meter(every=1, positions=10) as meter:
    for step, (rows_take, end) in enumerate([(3, 107.0), (2, 111.0), (9, 120.0), (4, 124.0)]):
      with meter.input():
        clock[0] += rows_take
      windows += meter.add(step, metrics(end))
    windows += meter.drain()
  # 3 seconds before the first step; the second's rows came at 105, before the first had ended at 107; the third's at
  # 114, 3 seconds after the second had ended; the fourth's at 118, with the third under way.
  assert [window['input_seconds'] for window in windows] == [3.0, 0.0, 3.0, 0.0]
  assert [window['step_seconds'] for window in windows] == [7.0, 4.0, 9.0, 4.0]


def test_time_before_the_rows_are_asked_for_is_not_input(clock):
  """The host does something else for 3 seconds after the first step; the second one's rows take 2."""
  with Meter(every=1, positions=10) as meter:
    meter.add(0, metrics(107.0))
    meter.drain()
    clock[0] = 110.0
    with meter.input():
      clock[0] = 112.0
    meter.add(1, metrics(116.0))
    (window,) = meter.drain()
  assert (window['input_seconds'], window['step_seconds']) == (2.0, 9.0)


def test_the_text_has_the_loss_of_the_newest_step_and_the_speed_of_the_window(clock):
  with Meter(every=10, positions=10) as meter:
    meter.add(0, metrics(101.0, loss_sum=9.0, loss_tokens=2, tokens=8000))
    meter.add(1, metrics(104.0, loss_sum=5.0, loss_tokens=4, tokens=2000))
    meter.drain()
  assert meter.text == 'loss 1.2500  2,500 tokens/s'


def test_a_pause_is_in_no_step(clock):
  with Meter(every=2, positions=10) as meter:
    meter.add(0, metrics(101.0))
    meter.drain()
    clock[0] = 101.0
    with meter.pause('eval_seconds') as spent:
      clock[0] += 50
    assert spent == {'eval_seconds': 50.0}
    with meter.input():
      clock[0] += 2
    meter.add(1, metrics(156.0))
    (window,) = meter.drain()
  assert (window['step_seconds'], window['input_seconds']) == (3.0, 2.0)  # (1 + 5) / 2


def test_totals(clock):
  meter = Meter(every=2, positions=10)
  clock[0] += 4  # the state is made
  with meter:
    with meter.pause('compile_seconds'):
      clock[0] += 20
    with meter.input():
      clock[0] += 1
    meter.add(0, metrics(135.0))
    meter.drain()
    clock[0] = 135.0
    with meter.pause('checkpoint_seconds'):
      clock[0] += 5
    with meter.pause('checkpoint_seconds'):
      clock[0] += 10
  assert meter.totals() == {
    'compile_seconds': 20.0,
    'input_seconds': 1.0,
    'checkpoint_seconds': 15.0,
    'eval_seconds': 0.0,
    'total_seconds': 50.0,
    'goodput': 0.2,  # 11 seconds of a step, 1 of them without rows, of 50
  }


def test_a_step_without_loss_tokens(clock):
  with Meter(every=1, positions=10) as meter:
    meter.add(0, metrics(101.0, 0.0, 0, 0))
    (window,) = meter.drain()
  assert window['loss'] == 0.0


def test_a_skipped_step_is_counted_and_leaves_the_mean_loss(clock):
  nan = float('nan')
  with Meter(every=2, positions=100) as meter:
    meter.add(0, metrics(101.0, 30.0, 10, 80))
    meter.add(1, metrics(102.0, nan, 10, 60, grad_norm=nan, skipped=True))
    (window,) = meter.add(2, metrics(103.0, nan, 7, 50, skipped=True))
    assert (window['loss'], window['skipped'], window['tokens']) == (3.0, 1, 140)
    assert meter.skipped == 1 and meter.newest['step'] == 2
    (window,) = meter.add(3, metrics(104.0, nan, 7, 50, skipped=True)) or meter.drain()
    assert (window['loss'], window['skipped'], meter.skipped) == (None, 2, 3)
    meter.add(4, metrics(105.0))
    meter.drain()
    assert meter.skipped == 0


def test_a_spike_is_counted_and_stays_in_the_mean_loss(clock):
  with Meter(every=12, positions=100, spike_factor=5.0) as meter:
    for step in range(12):
      meter.add(step, metrics(101.0 + step, loss_sum=1.0, loss_tokens=1, grad_norm=5.1 if step == 11 else 1.0))
      if step == 5:
        assert (meter.newest['step'], meter.newest['spike']) == (5, False)
    (window,) = meter.drain()
    assert (window['spike'], window['loss']) == (1, 1.0) and 'skipped' not in window
    assert meter.newest['spike'] and meter.newest['loss'] == 1.0 and meter.spikes.medians(12) == (1.0, 1.0)
    meter.add(12, metrics(113.0, loss_sum=9.0, loss_tokens=1, skipped=True))  # skipped inside the step
    meter.drain()
    assert meter.newest['spike'] and meter.skipped == 1
