"""A folder in a bucket that one process at a time writes into."""

import json
import os
import subprocess
import sys

import pytest

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.files import locks


@pytest.fixture
def folder(bucket, monkeypatch):
  monkeypatch.setattr(locks, '_POLL_SECONDS', 0.05)
  return files.path(bucket) / 'scores'


def written_by(folder, **changes):
  """The lock of another process, as it stands in the bucket."""
  owner = {'host': 'elsewhere', 'machine': 'another', 'pid': 7, 'started': '1', 'token': 'abc', **changes}
  (folder / '.lock').write_text(json.dumps(owner))


def test_one_at_a_time(folder):
  with files.locked(folder) as lock:
    lock.check()
    message = 'another evaluation is writing here .process .* wait for it, or give another --out'
    with pytest.raises(UserError, match=message), files.locked(folder):
      pass
    with files.locked(folder / 'other'):
      pass
  assert list(folder.iterdir()) == []
  with files.locked(folder):
    pass


def test_a_process_of_this_machine_that_was_killed(folder, store, capsys):
  code = 'import os, sys; from mathqwen import files; files.locked(files.path(sys.argv[1])).__enter__(); os._exit(9)'
  code = code.replace('os._exit', 'print("locked"); os._exit').replace('files.locked', 'x = files.locked')
  code = code.replace('.__enter__()', '; x.__enter__()')
  done = subprocess.run([sys.executable, '-c', code, str(folder)], env=os.environ | store.env, capture_output=True)
  assert done.returncode == 9 and (folder / '.lock').exists(), done.stderr
  with files.locked(folder):
    pass
  assert capsys.readouterr().err == ''  # at once, without waiting


def test_an_id_that_another_process_has_now(folder, capsys):
  """The machine and the id are ours, the time of the start is not: it is taken over at once."""
  here = locks._this_process()
  written_by(folder, **here | {'started': '1'})
  with files.locked(folder):
    assert json.loads((folder / '.lock').read_text())['started'] == here['started']
  assert capsys.readouterr().err == ''


def test_another_machine_that_gives_no_sign_of_life(folder, monkeypatch, capsys):
  monkeypatch.setattr(locks, 'STALE_SECONDS', 0.3)
  written_by(folder)
  with files.locked(folder):
    assert json.loads((folder / '.lock').read_text())['pid'] == os.getpid()
  assert 'locked by process 7 on elsewhere; waiting up to' in capsys.readouterr().err


def test_another_machine_that_gives_one(folder, monkeypatch):
  written_by(folder)
  monkeypatch.setattr(locks.time, 'sleep', lambda _: written_by(folder))
  with pytest.raises(UserError, match='process 7 on elsewhere'), files.locked(folder):
    pass


def test_an_old_lock_is_taken_over_at_once(folder, monkeypatch, capsys):
  written_by(folder)
  find = locks.gcs_requests.find

  def old(bucket, key):
    import dataclasses

    found = find(bucket, key)
    return found and dataclasses.replace(found, age=61.0)

  monkeypatch.setattr(locks.gcs_requests, 'find', old)
  with files.locked(folder):
    pass
  assert capsys.readouterr().err == ''


def test_a_lock_is_kept_and_its_loss_is_noticed(folder, monkeypatch):
  monkeypatch.setattr(locks, 'BEAT_SECONDS', 0.05)
  name = folder / '.lock'

  def wait_for(condition):
    import time

    end = time.monotonic() + 20
    while not condition():
      assert time.monotonic() < end
      time.sleep(0.02)

  with files.locked(folder) as lock:
    first = locks.gcs_requests.find(name.bucket, name.key).generation
    wait_for(lambda: locks.gcs_requests.find(name.bucket, name.key).generation != first)
    lock.check()
    written_by(folder)  # another process has taken it

    def lost():
      try:
        lock.check()
      except UserError as error:
        return 'another evaluation has taken over' in str(error)
      return False

    wait_for(lost)
  assert json.loads(name.read_text())['token'] == 'abc'  # not ours to remove
