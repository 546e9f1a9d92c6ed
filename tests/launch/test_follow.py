"""What the launcher reads from the output of the hosts."""

import subprocess
import time

from launch.tpu import follow


def started(*words):
  return subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)


def read(tmp_path, text: bytes):
  (tmp_path / 'output').write_bytes(text)
  process = started('cat', tmp_path / 'output')
  reader = follow.RunReader(follow.Logs(tmp_path / 'logs'), 'n.0', on_step=lambda step: None)
  for node, line in follow.lines({'n': process}, 1, lambda: True):
    reader.read(node, line)
  return reader


def test_a_status_has_a_line_of_its_own(tmp_path):
  text = b'[0] 50%\r[0]= 0\n[0] [1]= 0\n[1] \xff\x00 binary\n[1] ' + b'x' * 300_000 + b'\n\n[1]= 3\n'
  reader = read(tmp_path, text)
  assert reader.statuses == {'n.1': 3}
  assert (tmp_path / 'logs/n.0.log').read_text() == '50% [0]= 0\n[1]= 0\n'


def test_lines_are_stored_once(tmp_path):
  """A new connection repeats everything. Separators other than newlines do not end a line."""
  first = b'[0] a\x0cb\xc2\x85c\n[0] a\x0cb\xc2\x85c\n'
  read(tmp_path, first)
  read(tmp_path, first + b'[0] train 7/9 loss 1\n[0] {"step": 9, "tokens": 5}\n[0] {"step": broken}\n')
  reader = read(tmp_path, first + b'[0] train 7/9 loss 1\n')
  assert (tmp_path / 'logs/n.0.log').read_bytes().count(b'\n') == 5 and reader.step == 7


def test_running_processes_are_ended():
  """A process that has closed its output, and one whose host prints nothing more, each with its children."""
  closed = started('sh', '-c', 'echo a; exec >&-; sleep 60; :')
  silent = started('sh', '-c', 'echo b; sleep 60; :')
  start, received = time.monotonic(), []
  for pair in follow.lines({'n': closed, 'm': silent}, 0.1, lambda: len(received) < 2):
    received.append(pair)
  assert sorted(received) == [('m', 'b'), ('n', 'a')] and closed.returncode == silent.returncode == -15
  assert silent.stdout.read() == b'' and time.monotonic() - start < 30  # `sleep` holds it open
