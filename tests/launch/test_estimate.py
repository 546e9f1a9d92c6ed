"""What the launcher shows before any money is spent: the row of `mathqwen plan`, and the costs."""

import json
import subprocess
import types

import pytest

from launch.tpu import estimate, job
from mathqwen.errors import UserError

ROW = {
  'topology': 'v5p-32',
  'fits': True,
  'days': 0.5,
  'peak_bytes_per_chip': 30 * 2**30,
  'hbm_capacity_bytes': 95 * 2**30,
  'settings': {'mesh.fsdp': 16, 'train.remat': 'dots'},
}


@pytest.fixture
def planned(monkeypatch):
  """The command lines of `mathqwen plan` that were run, and the row that it answers with."""
  real, state = subprocess.run, types.SimpleNamespace(lines=[], row=ROW)

  def run(line, **kwargs):
    if 'plan' not in line:
      return real(line, **kwargs)
    state.lines.append(line)
    return types.SimpleNamespace(returncode=0, stdout='a table\n' + json.dumps({'topologies': [state.row]}) + '\n')

  monkeypatch.setattr(estimate.subprocess, 'run', run)
  return state


def test_days_chip_hours_and_price(planned, job_file, tmp_path):
  found = job.read(job_file('price_per_chip_hour = 2', 'set = ["train.steps=100"]'))
  got = estimate.estimate(found, tmp_path / 'logs')
  assert (got.days, got.chip_hours, got.cost) == (0.5, 0.5 * 24 * 16, 0.5 * 24 * 16 * 2)
  text = got.text(found)
  assert 'demo on v5p-32 (16 chips): 30.0 of 95.0 GiB a chip; at least 0.5 days, 192.0 chip-hours, 384.00 at 2' in text
  assert planned.lines[0][-2:] == ['--json', '--set=train.steps=100']
  assert found.train(got.settings)[-2:] == ['--set=mesh.fsdp=16', '--set=train.remat=dots']
  assert estimate.estimate(found, tmp_path / 'logs') == got and len(planned.lines) == 1  # kept
  estimate.estimate(job.read(job_file('slice = "v5p-64"')), tmp_path / 'logs')
  assert len(planned.lines) == 2  # another job


def test_a_step_that_does_not_fit_is_refused(planned, job_file, tmp_path):
  planned.row = ROW | {'fits': False}
  with pytest.raises(UserError, match='demo does not fit v5p-32: take more chips'):
    estimate.estimate(job.read(job_file()), tmp_path / 'logs')


def test_the_memory_of_a_host(planned, job_file, tmp_path):
  found = job.read(job_file())
  host = {'host_bytes_while_saving': 300 * 2**30, 'host_memory_bytes': 448 * 2**30, 'host_machine': 'ct5p-hightpu-4t'}
  planned.row = ROW | host | {'host_fits': True}
  text = estimate.estimate(found, tmp_path / 'logs').text(found)
  assert '; saving takes 300.0 of 448.0 GiB of a host; with mesh.fsdp=16' in text
  planned.row = ROW | host | {'host_bytes_while_saving': 500 * 2**30, 'host_fits': False}
  with pytest.raises(UserError, match=r'a host has 448.0 GiB \(ct5p-hightpu-4t\), and saving demo takes 500.0:'):
    estimate.estimate(found, tmp_path / 'other')


def test_the_error_of_plan_reaches_the_user(launch, job_file):
  """Without a compiler, or such a config: one line, before anything is created."""
  status, _, message = launch('up', job_file('config = "dmeo"'), '--yes')
  assert status == 2 and "launch: no config 'dmeo'" in message and message.endswith('(--no-plan skips this)\n')
