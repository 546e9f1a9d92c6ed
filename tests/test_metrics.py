"""Windows of the meter by literal numbers on a clock set by hand; what a resumed run keeps of metrics.jsonl."""

import json

import pytest

from mathqwen import train
from mathqwen.metrics import Appended, Writer


@pytest.fixture
def clock(monkeypatch):
  """The clock of the meter, which a test moves."""
  times = [100.0]
  monkeypatch.setattr(train.time, 'monotonic', lambda: times[0])
  return times


class Number(float):
  """What the devices compute; `ready` when the step has ended."""

  ready = False

  def is_ready(self):
    return self.ready


class Ready(Number):
  ready = True


def step_metrics(loss_sum, loss_tokens, tokens, grad_norm=1.0, number=Number):
  return {'loss_sum': number(loss_sum), 'loss_tokens': loss_tokens, 'tokens': tokens, 'grad_norm': grad_norm}


def test_a_window(clock):
  meter = train.Meter(every=2, positions=100)
  assert meter.add(0, step_metrics(30.0, 10, 80), 1e-3) == []
  clock[0] = 160.0  # the first step took a minute: it was compiled
  assert meter.add(1, step_metrics(10.0, 30, 60, grad_norm=0.5), 2e-3) == []
  clock[0] = 162.0
  (window,) = meter.add(2, step_metrics(7.0, 7, 50), 3e-3)
  assert window == {
    'step': 2,
    'loss': 1.0,  # (30 + 10) / (10 + 30); the mean of the two means is 1.67
    'learning_rate': 2e-3,  # of the last step of the window, as the gradient norm
    'grad_norm': 0.5,
    'packing_efficiency': 0.7,  # (80 + 60) / 200
    'tokens_per_second': 35.0,  # 70 tokens a step, and 2 seconds from the end of the first step to that of the second
    'loss_tokens_per_second': 10.0,
    'step_seconds': 2.0,
  }


@pytest.mark.parametrize('number', [Number, Ready])
def test_rates_where_the_host_waits_for_each_step_and_where_it_does_not(clock, number):
  """Steps of 2 seconds. A `Ready` step has ended when it is handed in, another one when the next is."""
  meter, windows = train.Meter(every=3, positions=10), []
  for step in range(8):
    clock[0] += 2
    windows += meter.add(step, step_metrics(1.0, 5, 10, number=number), 1e-3)
  clock[0] += 0 if number is Ready else 2
  windows += meter.drain(flush=True)
  assert [window['step'] for window in windows] == [3, 6, 8]
  assert {window.get('step_seconds', 2.0) for window in windows} == {2.0}
  assert {window.get('tokens_per_second', 5.0) for window in windows} == {5.0}
  assert 'step_seconds' in windows[1] and 'step_seconds' in windows[2]


def test_flush_ends_a_window_early_and_empties_it(clock):
  meter = train.Meter(every=10, positions=10)
  meter.add(0, step_metrics(4.0, 2, 10), 1e-3)
  (window,) = meter.drain(flush=True)
  assert (window['step'], window['loss'], window['packing_efficiency']) == (1, 2.0, 1.0)
  assert 'tokens_per_second' not in window and 'step_seconds' not in window  # only the compiled step is in it
  assert meter.drain(flush=True) == []
  clock[0] += 4
  meter.add(1, step_metrics(9.0, 3, 8), 1e-3)
  (window,) = meter.drain(flush=True)
  assert (window['step'], window['loss'], window['packing_efficiency']) == (2, 3.0, 0.8)
  assert (window['tokens_per_second'], window['step_seconds']) == (2.0, 4.0)


def test_a_pause_is_in_no_step(clock):
  meter = train.Meter(every=2, positions=10)
  meter.add(0, step_metrics(1.0, 1, 10), 1e-3)
  meter.drain()
  with meter.pause():
    clock[0] += 50
  meter.add(1, step_metrics(1.0, 1, 10), 1e-3)
  clock[0] += 5
  (window,) = meter.drain()
  assert window['step_seconds'] == 5.0


def test_a_step_without_loss_tokens(clock):
  meter = train.Meter(every=1, positions=10)
  meter.add(0, step_metrics(0.0, 0, 0), 1e-3)
  (window,) = meter.drain()
  assert window['loss'] == 0.0


def rows(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_the_writer_continues_after_its_checkpoint(tmp_path):
  first = Writer(str(tmp_path), resume_step=0)
  for step in (5, 10, 15):
    first.write(step, {'loss': 1.0 / step})
  first.write(10, {'eval_loss': 0.25})
  first.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 16, "lo')  # the process was killed here
  second = Writer(str(tmp_path), resume_step=10)
  assert second.last == {'step': 10, 'loss': 0.1, 'eval_loss': 0.25}
  second.write(15, {'loss': 0.5})
  second.close()
  assert rows(tmp_path) == [
    {'step': 5, 'loss': 0.2},
    {'step': 10, 'loss': 0.1},
    {'step': 10, 'eval_loss': 0.25},
    {'step': 15, 'loss': 0.5},
  ]


def test_a_new_run_starts_an_empty_file(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 5, "loss": 1.0}\nnull\n[]\n')
  Writer(str(tmp_path), resume_step=0).close()
  assert rows(tmp_path) == []
  assert list((tmp_path / 'tensorboard').iterdir())


def test_each_line_is_on_disk_when_written(tmp_path):
  writer = Writer(str(tmp_path), resume_step=0)
  writer.write(3, {'loss': 2.0})
  assert rows(tmp_path) == [{'step': 3, 'loss': 2.0}]
  writer.close()


def test_other_hosts_write_nothing(tmp_path):
  writer = Writer(str(tmp_path), resume_step=0, primary=False)
  writer.write(3, {'loss': 2.0})
  writer.close()
  assert not list(tmp_path.iterdir())


def test_a_store_without_append_gets_the_whole_file(tmp_path, monkeypatch):
  """Once a minute, and whenever it is asked to: at every checkpoint and at the end."""
  seconds = [0.0]
  monkeypatch.setattr('mathqwen.metrics.time.monotonic', lambda: seconds[0])
  path = tmp_path / 'file'
  path.write_text('old')
  file = Appended(path, b'start,', remote=True)
  assert path.read_text() == 'start,'
  file.append(b'a,')
  assert path.read_text() == 'start,'
  seconds[0] = 61.0
  file.append(b'b,')
  assert path.read_text() == 'start,a,b,'
  file.append(b'c')
  file.sync()
  assert path.read_text() == 'start,a,b,c'
