"""Progress and its time left; what a resumed run keeps of metrics.jsonl; files on a store that cannot append."""

import json

import pytest

from mathqwen.observe.ledger import Ledger
from mathqwen.observe.metrics import AppendedFile, MetricsWriter, Progress


@pytest.fixture
def clock(monkeypatch):
  """The clock of metrics.py and of rich; a test moves it."""
  times = [1000.0]
  monkeypatch.setattr('time.monotonic', lambda: times[0])
  monkeypatch.setattr('rich.console.monotonic', lambda: times[0])
  return times


def test_time_left_does_not_count_compiling(clock, capsys):
  progress = Progress('train', total=110, start=10)
  progress.update(10, 'compiling')
  clock[0] += 300
  progress.update(11, 'loss 2')  # the first step is launched
  clock[0] += 4
  progress.update(13, 'not printed: 4 seconds after the line before')
  clock[0] += 16
  progress.update(21, 'loss 1')  # 10 steps in 20 seconds; 89 are left
  assert capsys.readouterr().err.splitlines() == [
    'train 10/110 compiling',
    'train 11/110 loss 2',
    'train 21/110 loss 1 2:58 left',
  ]


def test_the_last_step_is_always_shown(clock, capsys):
  progress = Progress('train', total=3)
  progress.update(1, 'a')
  clock[0] += 1
  progress.update(2, 'b')
  clock[0] += 1
  progress.update(3, 'c')
  assert capsys.readouterr().err.splitlines() == ['train 1/3 a', 'train 3/3 c 0:00 left']


def test_long_times_have_hours(clock, capsys):
  progress = Progress('train', total=8000)
  progress.update(1, '')
  clock[0] += 10
  progress.update(11, '')
  assert capsys.readouterr().err.splitlines()[-1] == 'train 11/8000 2:13:09 left'


def test_the_bar_does_not_count_compiling_either(clock, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')  # rich then takes standard error for a terminal
  with Progress('train', total=110, start=10) as progress:
    progress.update(10, 'compiling')
    clock[0] += 300
    progress.update(11, 'loss 2')
    clock[0] += 20
    progress.update(21, 'loss 1')
    (task,) = progress._bar.tasks
    assert (task.completed, task.time_remaining) == (21, 178)


def rows(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_the_writer_continues_after_its_checkpoint(tmp_path):
  first = MetricsWriter(str(tmp_path), resume_step=0)
  for step in (5, 10, 15):
    first.write(step, {'loss': 1.0 / step})
  first.write(10, {'eval_loss': 0.25})
  first.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 16, "lo')  # the process was killed here
  second = MetricsWriter(str(tmp_path), resume_step=10)
  assert second.last == {'step': 10, 'loss': 0.1, 'eval_loss': 0.25}
  second.write(15, {'loss': 0.5})
  second.close()
  assert rows(tmp_path) == [
    {'step': 5, 'loss': 0.2},
    {'step': 10, 'loss': 0.1},
    {'step': 10, 'eval_loss': 0.25},
    {'step': 15, 'loss': 0.5},
  ]


DAMAGED = [b'\xff\xfe\x00', b'{"loss": 1.0}', b'[]', b'null', b'{"step": "3"}', b'{"step": true}', b'{"step": 9, "lo']


def test_a_damaged_file_keeps_its_whole_lines(tmp_path, capsys):
  """Lines of an earlier version too: they had bare words for numbers that are not finite."""
  old = b'{"step": 4, "loss": NaN, "tokens": 70, "note": "x", "flag": true}'
  content = b'\n'.join([b'{"step": 2, "loss": 0.5}', *DAMAGED[:-1], old, b'', DAMAGED[-1]])
  (tmp_path / 'metrics.jsonl').write_bytes(content)
  writer = MetricsWriter(str(tmp_path), resume_step=7)
  writer.close()
  assert capsys.readouterr().err.splitlines() == [
    f'{tmp_path}/metrics.jsonl: left out 7 damaged lines (2, 3, 4, 5, 6, ...); the others are kept',
    f'{tmp_path}/metrics.jsonl: the lines of steps 5 to 7 are missing, and the checkpoint is of step 7',
  ]
  assert writer.last == {'step': 4, 'loss': None, 'tokens': 70}  # nothing that the loop would trip over
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text == '{"step": 2, "loss": 0.5}\n{"step": 4, "loss": null, "tokens": 70, "note": "x", "flag": true}\n'


def test_a_damaged_ledger_keeps_its_whole_lines(tmp_path, capsys):
  whole = [b'{"step": 1, "batch": "a"}', b'{"step": 3, "batch": "c"}']
  (tmp_path / 'ledger.jsonl').write_bytes(b'\n'.join([whole[0], *DAMAGED, b'{"step": 2, "batch": 5}', whole[1], b'']))
  Ledger(str(tmp_path), resume_step=7).close()
  assert (tmp_path / 'ledger.jsonl').read_bytes() == b'\n'.join([*whole, b''])
  assert 'left out 8 damaged lines' in capsys.readouterr().err


@pytest.mark.parametrize('steps, missing', [((1, 2), '3 to 4'), ((), '1 to 4'), ((1, 4), None), ((4, 5), None)])
def test_missing_lines_are_reported(tmp_path, capsys, steps, missing):
  for name, value in (('metrics', {'loss': 0.5}), ('ledger', {'batch': 'a'})):
    lines = [json.dumps({'step': step, **value}) + '\n' for step in steps]
    (tmp_path / f'{name}.jsonl').write_text(''.join(lines))
  MetricsWriter(str(tmp_path), resume_step=4).close()
  Ledger(str(tmp_path), resume_step=4).close()
  said = capsys.readouterr().err.splitlines()
  assert [line.partition(' are missing')[0] for line in said] == [
    f'{tmp_path}/{name}.jsonl: the lines of steps {missing}' for name in ('metrics', 'ledger') if missing
  ]


def test_each_process_has_its_own_later_file_of_events(tmp_path):
  """Within one second, and where an earlier file is from the future, half a record at its end."""
  folder = tmp_path / 'tensorboard'
  folder.mkdir()
  (folder / 'events.out.tfevents.9000000000.host.1').write_bytes(b'half a rec')
  for _ in range(2):
    MetricsWriter(str(tmp_path), resume_step=0).close()
  times = sorted(int(file.name.split('.')[3]) for file in folder.iterdir())
  assert times == [9_000_000_000, 9_000_000_001, 9_000_000_002]


def test_a_new_run_starts_an_empty_file(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 5, "loss": 1.0}\nnull\n[]\n')
  MetricsWriter(str(tmp_path), resume_step=0).close()
  assert rows(tmp_path) == []
  assert list((tmp_path / 'tensorboard').iterdir())


def test_each_line_is_on_disk_when_written(tmp_path):
  writer = MetricsWriter(str(tmp_path), resume_step=0)
  writer.write(3, {'loss': 2.0})
  assert rows(tmp_path) == [{'step': 3, 'loss': 2.0}]
  writer.close()


def test_other_hosts_write_nothing(tmp_path):
  writer = MetricsWriter(str(tmp_path), resume_step=0, primary=False)
  writer.write(3, {'loss': 2.0})
  writer.close()
  assert not list(tmp_path.iterdir())


def test_a_store_without_append_gets_the_whole_file(tmp_path, clock):
  """Once a minute, and at every `sync`, which the loop calls at each checkpoint and at the end."""
  path = tmp_path / 'file'
  path.write_text('old')
  file = AppendedFile(path, b'start,', remote=True)
  assert path.read_text() == 'start,'
  file.append(b'a,')
  assert path.read_text() == 'start,'
  clock[0] += 61
  file.append(b'b,')
  assert path.read_text() == 'start,a,b,'
  file.append(b'c')
  file.sync()
  assert path.read_text() == 'start,a,b,c'
