"""Objects on an emulator; and what a user reads when the store refuses or does not answer."""

import http.server
import json
import threading

import pytest

from mathqwen import files
from mathqwen.cli import main
from mathqwen.errors import Unreachable
from mathqwen.files import gcs_requests


def test_objects_and_folders(bucket):
  root = files.path(bucket)
  path = root / 'a/b.txt'
  assert not path.exists() and not path.is_file() and not root.is_dir()
  with pytest.raises(FileNotFoundError, match='no such object'):
    path.read_bytes()
  with pytest.raises(FileNotFoundError):
    path.stat()
  with pytest.raises(FileNotFoundError):
    path.unlink()
  path.unlink(missing_ok=True)

  data = bytes(range(256)) * 3
  files.write_atomically(path, data)
  (root / 'a-b').write_text('é')
  (root / 'a/c/d.txt').write_bytes(b'')
  assert path.read_bytes() == data and path.stat().st_size == len(data)
  assert (root / 'a-b').read_text() == 'é'
  assert path.is_file() and not path.is_dir() and path.exists()
  assert (root / 'a').is_dir() and not (root / 'a').is_file() and (root / 'a').exists()
  assert not (root / 'b').exists()
  assert [str(x.relative_to(root)) for x in root.iterdir()] == ['a', 'a-b']
  assert [str(x.relative_to(root)) for x in (root / 'a').iterdir()] == ['a/b.txt', 'a/c']
  assert [str(x) for x in root.glob('*/*.txt')] == [f'{bucket}/a/b.txt']
  assert [str(x) for x in root.glob('**/*.txt')] == [f'{bucket}/a/b.txt', f'{bucket}/a/c/d.txt']
  assert [str(x.relative_to(root)) for x in root.glob('**/c')] == ['a/c']
  assert [str(x) for x in root.rglob('*.txt')] == [f'{bucket}/a/b.txt', f'{bucket}/a/c/d.txt']

  files.replace_tree(root / 'a', root / 'new/a', last=('b.txt',))
  assert [str(x.relative_to(root)) for x in root.rglob('*')] == ['a-b', 'new/a/b.txt', 'new/a/c/d.txt']
  files.remove_tree(root / 'new')
  files.remove_tree(root / 'new')
  assert [x.name for x in root.rglob('*')] == ['a-b']


def test_what_another_process_wrote_is_seen(bucket):
  """Listings are not kept."""
  root = files.path(bucket)
  (root / 'a').write_bytes(b'1')
  assert len(list(root.iterdir())) == 1 and not (root / 'b').exists()
  gcs_requests.write(root.bucket, 'b', b'2')
  assert (root / 'b').exists() and len(list(root.iterdir())) == 2


def test_a_folder_with_more_objects_than_a_page(bucket, monkeypatch):
  monkeypatch.setattr(gcs_requests, '_PAGE', 2)
  for number in range(5):
    (files.path(bucket) / f'x/{number}').write_bytes(b'')
  assert len(list((files.path(bucket) / 'x').iterdir())) == 5


def test_conditions_on_the_generation(bucket):
  name = files.path(bucket).bucket
  first = gcs_requests.write(name, 'x', b'1', gcs_requests.NEW)
  for wrong in (gcs_requests.NEW, first + 1):
    with pytest.raises(FileExistsError):
      gcs_requests.write(name, 'x', b'2', wrong)
  second = gcs_requests.write(name, 'x', b'3', first)
  assert second != first and gcs_requests.read(name, 'x') == b'3'
  assert gcs_requests.find(name, 'x').generation == second


def test_a_large_file_is_written_in_pieces_and_read_by_ranges(bucket, monkeypatch):
  from mathqwen.files import large

  monkeypatch.setattr(gcs_requests, '_UPLOAD_BLOCK', 2**18)
  monkeypatch.setattr(large, '_WRITE', 2**18)
  monkeypatch.setattr(large, '_REMOTE_READ', 100_000)
  data = bytes(range(251)) * 4000
  path = files.path(bucket) / 'large'
  with files.open_new(path) as file:
    file.write(data[:10])
    file.write(memoryview(data)[10:])
    assert not path.exists()
  opened = files.open_ranges(path)
  assert opened.size == len(data)
  for start, stop in ((0, 8), (7, 700_007), (len(data) - 5, len(data)), (len(data), len(data))):
    assert opened.read(start, stop - start) == data[start:stop]
    buffer = bytearray(stop - start)
    assert opened.read_into(start, memoryview(buffer)) == stop - start and buffer == data[start:stop]
  assert opened.read(len(data) - 2, 9) == data[-2:]  # fewer at the end
  opened.close()

  with pytest.raises(RuntimeError), files.open_new(files.path(bucket) / 'half') as file:
    file.write(data)
    raise RuntimeError
  assert not (files.path(bucket) / 'half').exists()


# --- refusals ---


class Refusing(http.server.BaseHTTPRequestHandler):
  """Answers every request with the status that the server holds."""

  def answer(self):
    self.rfile.read(int(self.headers.get('Content-Length', 0)))
    body = json.dumps({'error': {'code': self.server.status, 'message': self.server.message}}).encode()
    self.send_response(self.server.status)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)
    self.server.requests += 1

  do_GET = do_POST = do_DELETE = answer

  def log_message(self, *_):
    pass


@pytest.fixture
def refusing(monkeypatch):
  """refusing(403, 'message'): from then on the store answers so. Gives the server, which counts requests."""
  pytest.importorskip('gcsfs')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Refusing)
  threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}')

  async def at_once(*_):
    pass

  def answer(status, message):
    import gcsfs.retry

    monkeypatch.setattr(gcsfs.retry, 'asyncio', type('Asyncio', (), {'sleep': staticmethod(at_once)}))
    server.status, server.message, server.requests = status, message, 0
    return server

  yield answer
  server.shutdown()
  server.server_close()


USES = {
  'exists': lambda path: path.exists(),
  'read': lambda path: path.read_bytes(),
  'write': lambda path: path.write_bytes(b'x'),
  'list': lambda path: list(path.iterdir()),
  'remove': lambda path: path.unlink(),
  'lock': lambda path: files.locked(path).__enter__(),
}


@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize(
  'status, message, what, remedy',
  [
    (401, 'Anonymous caller does not have storage.objects.get access', 'does not accept who asks', 'gcloud auth'),
    (403, 'me does not have storage.objects.get access', 'no permission to', 'ask for roles/storage.object'),
    (404, 'The specified bucket does not exist.', 'there is no bucket bucket', 'check the name, or make it with'),
    (503, 'Backend Error', 'refuses to', 'run the same command again'),
  ],
)
def test_one_line_for_each_refusal(refusing, use, status, message, what, remedy):
  server = refusing(status, message)
  gcs_requests._known_buckets().clear()
  with pytest.raises(Unreachable, match=what) as caught:
    USES[use](files.path('gs://bucket/folder/x'))
  line = str(caught.value)
  assert line.startswith('gs://bucket/folder/x') and remedy in line and '\n' not in line
  assert server.requests <= 8  # no endless retries


def test_no_answer(monkeypatch):
  pytest.importorskip('gcsfs')

  async def at_once(*_):
    pass

  import gcsfs.retry

  monkeypatch.setattr(gcsfs.retry, 'asyncio', type('Asyncio', (), {'sleep': staticmethod(at_once)}))
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
  with pytest.raises(Unreachable, match='Google Cloud Storage does not answer .*check the network'):
    files.path('gs://bucket/x').exists()


def test_errors_of_other_libraries_are_recognised():
  line = gcs_requests.explain(ValueError('PERMISSION_DENIED: Error writing "gs://b/x"'), 'gs://bucket/x')
  assert line.startswith('gs://bucket/x: no permission')
  assert gcs_requests.explain(TimeoutError(), 'gs://bucket/x').startswith('gs://bucket/x: Google Cloud Storage does')
  assert gcs_requests.explain(ValueError('a defect'), 'gs://bucket/x') is None


def test_a_command_ends_with_one_line(refusing, fails, nowhere):
  refusing(403, 'no')
  line = fails('generate', 'gs://bucket/model', '1+1=')
  assert line.startswith('gs://bucket/model: no permission to list')
  assert main(['compare', 'gs://bucket/a', 'gs://bucket/b']) == 2
