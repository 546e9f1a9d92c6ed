"""A run that hangs says where, and ends."""

import pathlib
import threading
import time

import pytest

from mathqwen.hardware import hosts
from mathqwen.observe import watchdog
from mathqwen.observe.watchdog import Watchdog

SHORT = 0.5 / 60


@pytest.fixture
def ended(monkeypatch):
  monkeypatch.setattr(hosts, 'may_end', lambda: True)
  return []


def hang_here(seconds):
  time.sleep(seconds)


def test_nothing_moves(tmp_path, ended):
  with Watchdog(tmp_path, SHORT, 0, end=lambda *what: ended.append(what)) as watched:
    watched.beat('reading the data', slow=True)  # without a limit
    hang_here(0.7)
    for step in range(4):
      watched.step = step
      watched.beat(f'step {step + 1}')
      hang_here(0.25)
    assert not ended
    hang_here(1)
  assert ended == [
    (75, f'step 4: nothing has moved for {SHORT:g} minutes; where each host stood is in {tmp_path}/hang: '
     'run the same command to continue')
  ]  # fmt: skip
  (file,) = (tmp_path / 'hang').iterdir()
  content = file.read_text()
  assert file.name == 'step-3-host-0.txt' and content.startswith('step 4: nothing has moved')
  assert 'in hang_here' in content and f'0x{threading.main_thread().ident:016x} is MainThread' in content


def test_a_slow_phase_has_its_own_limit(tmp_path, ended):
  with Watchdog(tmp_path, 0, SHORT, end=lambda *what: ended.append(what)) as watched:
    watched.beat('step 1')
    hang_here(0.7)
    assert not ended
    with watched.slowly('compiling'):
      hang_here(1)
  assert [line.partition(':')[0] for _, line in ended] == ['compiling']


def test_a_save_may_take_long_while_its_files_grow(tmp_path, ended):
  (tmp_path / 'save').write_bytes(b'')
  size = lambda: (tmp_path / 'save').stat().st_size
  watched = Watchdog(tmp_path, SHORT, 0, end=lambda *what: ended.append(what))
  with watched, watched.growing('saving step 5', size):
    for number in range(5):
      (tmp_path / 'save').write_bytes(b'x' * number)
      hang_here(0.25)
    assert not ended
    hang_here(1)  # nothing grows
  assert [line.partition(':')[0] for _, line in ended] == ['saving step 5']


def test_a_notebook_is_not_ended(tmp_path, capsys):
  with Watchdog(tmp_path, SHORT, 0, end=lambda *_: pytest.fail('it would end the kernel')) as watched:
    watched.beat('step 1')
    hang_here(1)
  assert 'mathqwen: step 1: nothing has moved' in capsys.readouterr().err


def test_a_disk_that_hangs_too(tmp_path, ended, monkeypatch, capsys):
  monkeypatch.setattr(watchdog, '_WRITE_SECONDS', 0.1)
  works_again, mkdir = threading.Event(), pathlib.Path.mkdir
  monkeypatch.setattr(pathlib.Path, 'mkdir', lambda *args, **kwargs: works_again.wait() and mkdir(*args, **kwargs))
  with Watchdog(tmp_path, SHORT, 0, end=lambda *what: ended.append(what)) as watched:
    watched.beat('step 1')
    hang_here(1)
  assert len(ended) == 1 and 'in hang_here' in capsys.readouterr().err
  works_again.set()
  while not list(tmp_path.glob('hang/*')):
    hang_here(0.01)


def test_it_can_be_off(tmp_path):
  with Watchdog(tmp_path, 0, 0) as watched:
    watched.beat('step 1')
    watched._thread.join(5)
    assert not watched._thread.is_alive()
