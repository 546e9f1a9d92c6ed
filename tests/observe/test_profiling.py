"""`train --profile`: the trace as xprof's own reader finds it."""

import json
import shutil

import jax
import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.observe import profiling


def events(path):
  """(name, statistics) of all events of a trace."""
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        yield event.name, dict(event.stats)


def test_the_trace_of_a_run(tiny, tmp_path, capsys):
  workdir = tmp_path / 'run'
  words = ['train', tiny.config, '--workdir', str(workdir), '--set', 'train.steps=6', '--profile', '2', '--json']
  assert cli.main(words) == 0
  said = capsys.readouterr()
  (trace,) = (workdir / 'profile' / 'plugins' / 'profile' / 'steps_3_to_4').glob('*.xplane.pb')
  found = list(events(trace))
  assert [stats['step_num'] for name, stats in found if name == 'train'] == [3, 4]
  assert any('train_step' in str(value) for _, stats in found for value in stats.values())
  lines = [line for line in said.err.splitlines() if 'xprof' in line]
  assert lines == [f'trace of steps 3 to 4: pip install xprof && xprof --logdir={workdir}/profile']
  summary = json.loads(said.out.splitlines()[-1])
  assert summary['profile'] == f'{workdir}/profile' and summary['profile_seconds'] > 0


def test_runs_that_are_too_short(tiny, trained, tmp_path, capsys):
  def fails(workdir, *options):
    assert cli.main(['train', tiny.config, '--workdir', str(workdir), *options]) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix('mathqwen: ')

  assert fails(tmp_path / 'run', '--profile', '0') == '--profile 0: give the number of steps to trace, 1 or more'
  assert fails(tmp_path / 'run', '--profile', '19').startswith('--profile 19 needs 21 steps, as the first 2 are not')
  assert not (tmp_path / 'run' / 'checkpoints').exists()
  shutil.copytree(trained, tmp_path / 'done')
  assert 'this run has 0 to go' in fails(tmp_path / 'done', '--profile')
  assert fails(tmp_path / 'run', '--profile', '--dry-run').startswith('--dry-run takes no step that --profile')
  profiling.check(18, 20)
  with pytest.raises(UserError, match='needs 21'):
    profiling.check(19, 20)


def test_a_run_that_stops_within(tmp_path):
  with pytest.raises(KeyboardInterrupt), profiling.Profile(str(tmp_path), 1, 0) as profile:
    profile.begin()
    raise KeyboardInterrupt
  with profiling.Profile(str(tmp_path), 1, 0) as profile:
    profile.begin()
    profile.end()
  assert list(tmp_path.glob('profile/plugins/profile/steps_3_to_3/*.xplane.pb'))
