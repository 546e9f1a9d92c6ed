"""Small functions around checkpoints, on directories that hold no weights."""

import collections
import shutil

import numpy as np
import pytest

from mathqwen.errors import UserError
from mathqwen.storage import checkpoint, reading, workdir


def test_step_path(tmp_path):
  """Directory of step 14, for each path that may name it."""
  for path in ('run', 'run/checkpoints', 'run/checkpoints/14', 'run/checkpoints/'):
    assert str(workdir.step_path(path, 14)) == 'run/checkpoints/14'


def test_is_converted(tmp_path):
  """A run's step 0 has an optimizer state, and a run without it has later steps only."""
  assert not workdir.is_converted(tmp_path)
  (tmp_path / 'checkpoints' / '0' / 'params').mkdir(parents=True)
  assert workdir.is_converted(tmp_path)
  (tmp_path / 'checkpoints' / '0' / 'opt_state').mkdir()
  assert not workdir.is_converted(tmp_path)


@pytest.mark.parametrize('free, fits', [(3999, False), (4000, True)])
def test_space_for_the_checkpoints_kept_and_the_next(free, fits, tmp_path, monkeypatch):
  """Two kept and one being written, of 1,600 bytes each, less the 800 that are there already: 4,000 are needed."""
  params, opt_state = {'w': np.zeros(200, np.float32)}, {'m': np.zeros(100, np.float64)}
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / 'old').write_bytes(b'x' * 800)
  (tmp_path / 'data.jsonl').write_bytes(b'x' * 5000)  # no checkpoint will take its room
  usage = collections.namedtuple('Usage', 'total used free')(10**6, 0, free)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  if fits:
    checkpoint.check_space(str(tmp_path), params, opt_state, {'train.keep_checkpoints': 2})
  else:
    with pytest.raises(UserError, match='3 checkpoints of .* free some space, use another --workdir, or set train'):
      checkpoint.check_space(str(tmp_path), params, opt_state, {'train.keep_checkpoints': 2})
  checkpoint.check_space(
    'gs://bucket/run', params, opt_state, {'train.keep_checkpoints': 2}
  )  # an object store has no limit


@pytest.mark.parametrize(
  'keep, remedy',
  [
    (
      {'train.keep_checkpoints': 2, 'train.keep_every': 50},
      '53 .*50 by train.keep_every, .*, or raise train.keep_every',
    ),
    (
      {'train.keep_checkpoints': 1, 'train.keep_best': 3},
      '5 .*3 by train.keep_best, .*, or lower train.keep_best',
    ),
    ({'train.keep_checkpoints': 1, 'train.keep_every': 0}, 'free some space, use another --workdir$'),
  ],
)
def test_the_setting_that_needs_the_space_is_named(keep, remedy, tmp_path, monkeypatch):
  usage = collections.namedtuple('Usage', 'total used free')(0, 0, 0)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(UserError, match=remedy):
    checkpoint.check_space(str(tmp_path), {'w': np.zeros(1)}, {}, keep)


def test_the_remedy_names_the_newest_step_before(tmp_path):
  for step in (3, 7, 20, 30):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  damaged = tmp_path / 'checkpoints' / '20'
  for error in (ValueError('x'), KeyError('x'), OSError('x'), TypeError('x'), Exception('x'), reading.Damage('x')):
    message = f'20 is damaged .*to continue from step 7, delete {damaged}'
    with pytest.raises(UserError, match=message), reading.explain_damage(damaged):
      raise error
  for error in (RuntimeError('a defect'), KeyboardInterrupt()):
    with pytest.raises(type(error)), reading.explain_damage(damaged):
      raise error
  first = tmp_path / 'checkpoints' / '3'
  assert reading.damage_text(first, 'x').endswith('there is no earlier one')
  assert reading.damage_text(damaged, 'x', damaged=[20, 7]).endswith(f'to continue from step 3, delete {damaged}')
  assert reading.damage_text(damaged, 'x', damaged=[20, 7, 3]).endswith('there is no earlier one')


def test_a_plain_file_is_no_step(tmp_path):
  """A copy through an object store may leave one where a folder was."""
  folder = tmp_path / 'checkpoints'
  for name in ('14', '009', 'x'):
    (folder / name).mkdir(parents=True)
  (folder / '20').write_text('')
  assert reading.finished_steps(folder) == [14]


def test_the_list_that_makes_a_run_new_is_the_one_that_is_restored(tmp_path, monkeypatch):
  """Orbax sees step 7. Here it is a step that only this package does not count."""
  (tmp_path / 'checkpoints' / '7').mkdir(parents=True)
  checkpoints = checkpoint.Checkpoints(str(tmp_path), checkpoint.Keep(1))
  assert checkpoints.latest == 7
  monkeypatch.setattr(reading, 'finished_steps', lambda _: [])
  assert checkpoints.restore_newest({}, {}) is None
  checkpoints.close()
