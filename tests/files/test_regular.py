"""Files that never end, never answer or do not fit into memory are refused before they are read."""

import os
import socket

import pytest

from mathqwen import files
from mathqwen.errors import UserError


def pipe(path):
  os.mkfifo(path)


def a_socket(path):
  with socket.socket(socket.AF_UNIX) as opened:
    opened.bind(str(path))


def sparse(path):
  with open(path, 'wb') as file:
    file.truncate(2**40)


KINDS = {
  'device': (lambda path: path.symlink_to('/dev/zero'), 'is a device, and a file is needed'),
  'pipe': (pipe, 'is a pipe, and a file is needed'),
  'socket': (a_socket, 'is a socket, and a file is needed'),
  'directory': (lambda path: path.mkdir(), 'is a directory, and a file is needed'),
  'dangling': (lambda path: path.symlink_to('nowhere'), 'is a link to a file that is not there'),
  'larger than memory': (sparse, 'has more than 16.0 MiB, as no such file has'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_no_file_is_not_opened(kind, tmp_path, monkeypatch):
  make, message = KINDS[kind]
  monkeypatch.chdir(tmp_path)  # a socket's name has at most 107 bytes
  path = files.path('x.json')
  make(path)
  assert files.is_there(path)
  with pytest.raises(UserError, match=message):
    files.read_json_object(path)
  if kind != 'larger than memory':  # which is what ranges are for
    with pytest.raises(UserError, match=message):
      files.open_ranges(path)


def test_a_file_with_more_bytes_than_it_says():
  """Those of /proc have none by their size."""
  status = files.path('/proc/self/status')
  assert os.stat(status).st_size == 0 and b'VmRSS' in files.read_bytes(status)
  with pytest.raises(UserError, match='has more than'):
    files.read_bytes(status, most=50)


def test_links_as_in_the_cache_of_the_hub(tmp_path):
  (tmp_path / 'blobs').mkdir()
  (tmp_path / 'blobs' / 'abc').write_text('{"a": 1}')
  (tmp_path / 'config.json').symlink_to('blobs/abc')
  assert files.read_json_object(tmp_path / 'config.json') == {'a': 1}
  assert not files.is_there(tmp_path / 'config.json' / 'x') and not files.is_there(tmp_path / 'no')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_byte_order_marks(encoding):
  assert files.parse_json('{"é": 1}'.encode(encoding)) == {'é': 1}


@pytest.mark.parametrize(
  'content, message',
  [
    (b'[' * 100_000, 'nested too deeply'),
    (b'[' + b'1,' * 2_000_000 + b'1]', '2,000,001 values'),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice, with different values"),
    (b'{"a": ' + b'9' * 5000 + b'}', 'integer string conversion'),
    (b'{"a": "\xff"}', 'utf-8'),
    (b'', 'Expecting value'),
    (b'{"a": 1', 'Expecting'),
  ],
)
def test_json_that_is_refused(content, message):
  with pytest.raises(ValueError, match=message):
    files.parse_json(content)


def test_a_key_twice_with_one_value():
  assert files.parse_json(b'{"a": [1], "b": 2, "a": [1]}') == {'a': [1], 'b': 2}
