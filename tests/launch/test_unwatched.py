"""What the hosts do when no launcher watches them, on a fake cloud, and what is said of it before."""

import json
import subprocess
import time

import pytest
from counting_job import created, log, wait_for

from launch.tpu import commands
from launch.tpu.job import read


def tell(folder, **changes):
  """Changes what the four hosts were told; returns that. On a busy machine a host gives the others time."""
  told = []
  for path in folder.glob('cloud/homes/1.*/mathqwen-runs/facts.json'):
    told.append(json.loads(path.read_text()))
    (folder / 'part').write_text(json.dumps(told[-1] | {'stagger': 120} | changes))
    (folder / 'part').rename(path)
  assert len(told) == 4
  return told


def without_launcher(fake, book, process):
  """Ends the launcher as a closed laptop does, and waits until the hosts have removed the slice."""
  process.kill()
  process.wait()
  wait_for(lambda: not fake.nodes)
  # The last host was killed with its slice while gcloud was still answering it.
  assert not fake.queued and book.newest('active', 'gone', 'deleted') == 'active'


def test_a_run_that_ended_unwatched(stub_cloud, hold, start, launch, job_file, tmp_path):
  """The hosts store the logs and remove the slice; `up` understands that the job is done."""
  held = hold(2)
  job = job_file(f'bucket = "{tmp_path}/bucket"', 'price_per_chip_hour = 3600', 'grace = "3s"')
  process, book = start(job)
  wait_for(lambda: 'train 2/10' in log(book))
  process.kill()
  tell(tmp_path)
  held.unlink()
  without_launcher(stub_cloud, book, process)
  removal = json.loads((tmp_path / 'bucket/launch/math-7b/removed.json').read_text())
  assert removal['why'] == 'ended'
  again = start(job)[0]
  output = again.communicate(timeout=60)[1]
  assert again.returncode == 0, output
  assert output.splitlines()[-1].startswith('done: 10 steps; 10,240 tokens; starts: 1; preemptions: 0, 0.00 hours lost')
  assert 'the hosts have removed the slice: the run had ended, and no launcher came' in output
  assert len(created(stub_cloud)) == 1 and all('train 10/10 loss 1.5' in log(book, 1, host) for host in range(4))
  # The slice cost money until the hosts removed it, and not until the launcher came back.
  deleted, active = book.last('deleted'), book.last('active')
  assert deleted['time'] == removal['time'] and deleted['why'] == 'ended'
  cost = (removal['time'] - active['time']) * 16
  assert json.loads(launch('summary', job)[1])['cost'] == pytest.approx(cost)


@pytest.mark.parametrize('fails', [False, True])
def test_a_limit_that_was_reached_unwatched(stub_cloud, hold, start, job_file, tmp_path, fails):
  """The launcher tells the hosts the deadline; here it comes at once. A run that failed before it has failed."""
  held = hold(2)
  job = job_file(f'bucket = "{tmp_path}/bucket"', 'max_hours = 1')
  process, book = start(job)
  wait_for(lambda: 'train 2/10' in log(book))
  process.kill()
  if fails:
    (tmp_path / 'bucket/math-7b/fail').touch()
    held.unlink()
    wait_for(lambda: len(list(tmp_path.glob('cloud/homes/1.*/mathqwen-runs/math-7b/1/status'))) == 4)
  for told in tell(tmp_path, deadline=time.time()):
    assert abs(told['deadline'] - book.last('active')['time'] - 3600) < 1
  without_launcher(stub_cloud, book, process)
  earlier = [{'time': time.time() - 3600, 'event': 'active'}, {'time': time.time(), 'event': 'deleted'}]
  file = book.folder / 'ledger.jsonl'
  file.write_text(''.join(json.dumps(event) + '\n' for event in earlier) + file.read_text())
  again = start(job)[0]
  output = again.communicate(timeout=60)[1]
  assert (again.returncode, len(created(stub_cloud))) == (1 if fails else 75, 1), output
  last = 'failed: 10 steps' if fails else 'stopped: the hours of the slice reached 1.0'
  assert output.splitlines()[-1].startswith(last)
  assert 'the hosts have removed the slice: a limit of the job was reached' in output
  assert book.last('ended')['statuses'] == {f'math-7b.{i}': int(i == 1) if fails else 75 for i in range(4)}


@pytest.mark.parametrize(
  'lines, roles, said',
  [
    ([], ['roles/viewer', 'roles/tpu.admin'], 'and 15m after a run has ended (PROJECT-compute@developer'),
    (['service_account = "a@b.c"'], ['roles/viewer'], 'NOBODY REMOVES THE SLICE when no launcher watches: the hosts'),
    (
      ['grace = ""'],
      ['projects/p/roles/mine'],
      'but not after a run has ended (grace = ""), IF projects/',
    ),
  ],
)
def test_who_removes_the_slice_is_said_before_it_is_made(stub_cloud, launch, job_file, lines, roles, said):
  from fake_cloud import ACCOUNT

  account = 'a@b.c' if len(roles) == 1 and lines[0].startswith('service') else ACCOUNT
  stub_cloud.policy = [{'role': role, 'members': [f'serviceAccount:{account}', 'user:me@b.c']} for role in roles]
  status, _, output = launch('create', job_file(*lines), '--no-plan', '--yes')
  assert status == 0 and said in output.partition('requesting')[0]


def test_the_real_gcloud_looks_up_roles_and_removes_slices(fake_cloud, launch, job_file):
  """What the hosts run, and what is said before."""
  job = job_file()
  status, _, output = launch('create', job, '--no-plan', '--yes')
  assert status == 0 and 'roles/tpu.admin)' in output and fake_cloud.nodes
  done = subprocess.run(commands.remove(read(job)), capture_output=True, text=True)
  assert done.returncode == 0 and not fake_cloud.nodes and not fake_cloud.queued, done.stderr
