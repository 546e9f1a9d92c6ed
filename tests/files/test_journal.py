"""A file of lines on an object store, which cannot append."""

import pytest

from mathqwen import files
from mathqwen.errors import Unreachable
from mathqwen.files import gcs_requests


@pytest.fixture(params=['local', 'gs'])
def place(request, tmp_path):
  if request.param == 'local':
    return tmp_path
  return files.path(request.getfixturevalue('bucket'))


def test_lines_are_there_after_the_block_and_continued(place):
  path = place / 'out' / 'lines'
  with files.Journal(path) as journal:
    for number in range(50):
      journal.write(b'%d\n' % number)
  lines = b''.join(b'%d\n' % number for number in range(50))
  assert files.read_journal(path) == lines and files.has_lines(path)
  with files.Journal(path, 4) as journal:  # keeps 0\n1\n
    journal.write(b'x\n')
  assert files.read_journal(path) == b'0\n1\nx\n'
  with files.Journal(path, 5) as journal:  # its last line lacks the newline
    journal.write(b'y\n')
  assert files.read_journal(path) == b'0\n1\nx\ny\n'
  files.replace_journal(path, b'all\n')
  assert files.read_journal(path) == b'all\n' == path.read_bytes()
  assert [file.name for file in path.parent.iterdir()] == ['lines']
  with files.Journal(path) as journal:
    assert not files.has_lines(path)


def test_lines_outlive_a_process_that_ends_at_once(bucket):
  path = files.path(bucket) / 'lines'
  journal = files.Journal(path)
  for number in range(3):
    journal.write(b'%d\n' % number)
  _wait_for(lambda: files.read_journal(path) == b'0\n1\n2\n')  # nobody has closed it
  folder = files.path(bucket) / 'lines.parts'
  assert path.read_bytes() == b'' and 1 <= len(list(folder.iterdir())) <= 3

  # A killed process whose upload arrives late: the next one has begun, and its lines do not count.
  with files.Journal(path, 4) as later:
    later.write(b'next\n')
    journal.write(b'late\n')
    journal.__exit__(None, None, None)
  assert files.read_journal(path) == b'0\n1\nnext\n'


def test_a_failed_upload_is_an_error_of_the_next_line_or_of_the_end(bucket, monkeypatch):
  path = files.path(bucket) / 'lines'
  written = gcs_requests.write

  def fail(bucket, key, data, generation=None):
    if '.parts/' in key:
      raise Unreachable('gone')
    return written(bucket, key, data, generation)

  monkeypatch.setattr(gcs_requests, 'write', fail)
  with pytest.raises(Unreachable, match='gone'), files.Journal(path) as journal:
    journal.write(b'1\n')
  journal = files.Journal(path)
  journal.write(b'1\n')

  def next_line_fails():
    try:
      journal.write(b'2\n')
    except Unreachable:
      return True
    return False

  _wait_for(next_line_fails)
  with pytest.raises(KeyError), files.Journal(path) as journal:  # an error of the block says more
    journal.write(b'1\n')
    raise KeyError


def test_reading_while_it_is_replaced(bucket, monkeypatch):
  """Object and parts are of one generation, or are read again."""
  path = files.path(bucket) / 'lines'
  with files.Journal(path) as journal:
    journal.write(b'1\n')
  found = gcs_requests.find
  times = []

  def replace_meanwhile(bucket, key):
    result = found(bucket, key)
    if not times:
      times.append(1)
      files.replace_journal(path, b'all\n')
    return result

  monkeypatch.setattr(gcs_requests, 'find', replace_meanwhile)
  assert files.read_journal(path) == b'all\n' and times


def _wait_for(condition, seconds=20):
  import time

  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)
