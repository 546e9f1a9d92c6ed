"""A folder that one process at a time writes into: on a disk, on a file system without locks, and in a bucket."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.files import locks


@pytest.fixture(params=['disk', 'without locks', 'bucket'])
def folder(request, tmp_path, monkeypatch):
  monkeypatch.setattr(locks, '_POLL_SECONDS', 0.05)
  monkeypatch.setattr(locks, '_SETTLE_SECONDS', 0.05)
  if request.param == 'bucket':
    return files.path(request.getfixturevalue('bucket')) / 'scores'
  if request.param == 'without locks':
    without_locks(monkeypatch)
  return tmp_path / 'scores'


def without_locks(monkeypatch):
  def none(*_):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(locks.fcntl, 'flock', none)


def written_by(folder, **changes):
  """The lock of another process, as it stands in the folder."""
  folder.mkdir(exist_ok=True)
  owner = {'host': 'elsewhere', 'machine': 'another', 'pid': 7, 'started': '1', 'token': 'abc', **changes}
  (folder / '.lock').write_text(json.dumps(owner))


def test_one_at_a_time(folder):
  with files.locked(folder) as lock:
    lock.check()
    message = f'another evaluation is writing here .process {os.getpid()} on .*, last heartbeat [01] seconds ago.; wait'
    with pytest.raises(UserError, match=message), files.locked(folder):
      pass
    with files.locked(folder / 'other'):
      pass
    lock.note('saving here before it ends')
    message = 'another run is saving here before it ends .process .*; wait for it, or give another --workdir'
    with pytest.raises(UserError, match=message), files.locked(folder, 'run', 'another --workdir'):
      pass
  assert [path for path in folder.iterdir() if path.name != 'other'] == []
  with files.locked(folder):
    pass


LOCK_AND_DIE = """
import os, sys
from mathqwen import files

lock = files.locked(files.path(sys.argv[1]))
lock.__enter__()
os._exit(9)
"""


def test_a_process_of_this_machine_that_was_killed(folder, request, capsys):
  env = os.environ | (request.getfixturevalue('store').env if files.is_remote(folder) else {})
  done = subprocess.run([sys.executable, '-c', LOCK_AND_DIE, str(folder)], env=env, capture_output=True)
  assert done.returncode == 9 and (folder / '.lock').exists(), done.stderr
  with files.locked(folder):
    pass
  said = capsys.readouterr().err  # at once, without waiting
  assert said.startswith(f'{folder}: taken over from process ') and said.endswith(', which has ended\n')


@pytest.mark.parametrize('locks_work', [True, False])
def test_a_folder_that_was_copied_while_its_owner_runs(tmp_path, monkeypatch, locks_work, capsys):
  if not locks_work:
    without_locks(monkeypatch)
    monkeypatch.setattr(locks, '_SETTLE_SECONDS', 0)
  copy = tmp_path / 'copy'
  with files.locked(tmp_path / 'scores') as lock:
    shutil.copytree(tmp_path / 'scores', copy)
    if not locks_work:  # only the heartbeats, which do not come, tell that it is a copy
      with pytest.raises(UserError, match=f'process {os.getpid()} on'), files.locked(copy):
        pass
      os.utime(copy / '.lock', (0, time.time() - locks.STALE_SECONDS - 1))
    with files.locked(copy):
      lock.check()
  assert 'taken over from process' in capsys.readouterr().err


def test_a_lock_that_a_person_removes_is_written_again(tmp_path, monkeypatch):
  with files.locked(tmp_path) as lock:
    (tmp_path / '.lock').unlink()
    lock.note('saving')
    with pytest.raises(UserError, match='another evaluation is saving'), files.locked(tmp_path):
      pass
  assert not list(tmp_path.iterdir())


def test_the_end_of_a_process_releases_what_it_has_locked(tmp_path):
  lock = files.locked(tmp_path)
  lock.__enter__()
  locks.release_all()
  assert not list(tmp_path.iterdir())
  with files.locked(tmp_path):
    lock.__exit__(None, None, None)  # removes nothing that is another's
    assert (tmp_path / '.lock').exists()


def test_an_id_that_another_process_has_now(folder, capsys):
  """The machine and the id are ours, the time of the start is not: it is taken over at once."""
  here = locks._this_process()
  written_by(folder, **here | {'started': '1'})
  with files.locked(folder):
    assert json.loads((folder / '.lock').read_text())['started'] == here['started']
  assert 'waiting' not in capsys.readouterr().err


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
  if files.is_remote(folder):
    find = locks.gcs_requests.find
    old = lambda found: found and dataclasses.replace(found, age=61.0)
    monkeypatch.setattr(locks.gcs_requests, 'find', lambda bucket, key: old(find(bucket, key)))
  else:
    os.utime(folder / '.lock', (0, time.time() - 61))
  with files.locked(folder):
    pass
  said = f'{folder}: taken over from process 7 on elsewhere, which gave no sign of life for 61 seconds\n'
  assert capsys.readouterr().err == said


def test_a_lock_is_kept_and_its_loss_is_noticed(folder, monkeypatch):
  monkeypatch.setattr(locks, 'BEAT_SECONDS', 0.05)

  def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
      assert time.monotonic() < end
      time.sleep(0.02)

  with files.locked(folder) as lock:
    first = lock._record.find().version
    wait_for(lambda: lock._record.find().version != first)
    lock.check()
    written_by(folder)  # another process has taken it

    def lost():
      try:
        lock.check()
      except UserError as error:
        return 'another evaluation has taken over' in str(error)
      return False

    wait_for(lost)
  assert json.loads((folder / '.lock').read_text())['token'] == 'abc'  # not ours to remove


def test_a_process_that_was_suspended_looks_before_it_writes(folder, monkeypatch):
  """Its thread has not run yet since another process took the lock over."""
  with files.locked(folder) as lock:
    written_by(folder)
    lock.check()  # it has seen the lock a moment ago
    monkeypatch.setattr(lock, '_renewed', time.monotonic() - 61)
    with pytest.raises(UserError, match='no sign of life for more than 60 seconds, and another evaluation has taken'):
      lock.check()
