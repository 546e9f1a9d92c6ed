"""What a resumed run keeps of metrics.jsonl, and what a store without append gets."""

import json

from mathqwen.observe.metrics import Appended, Writer


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
  monkeypatch.setattr('mathqwen.observe.metrics.time.monotonic', lambda: seconds[0])
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
