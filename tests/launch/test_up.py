"""Whole jobs on a fake cloud, through the real gcloud where it is installed and through the stub.

A script that counts steps in the workdir stands for training; test_whole_job.py trains.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from stub_gcloud import FLAGS

from launch.tpu import babysit, cloud, ledger

ROOT = pathlib.Path(__file__).parents[2]
# Takes ten steps and saves each; a new start repeats the newest two. It waits at the step whose number is in the file
# `hold` of the workdir, as long as that exists; with a file `fail`, host 1 ends with status 1.
COUNTS = """#!/usr/bin/env bash
trap 'echo "stopped by SIGTERM" >&2; exit 75' TERM
workdir="$(sed -n 's/.*--workdir=\\([^ ]*\\).*/\\1/p' <<<"$*")"
mkdir -p "$workdir"
step="$(cat "$workdir/$SLURM_PROCID" 2>/dev/null || echo 0)"
step=$((step > 2 ? step - 2 : 0))
while ((step < 10)); do
  echo "train $step/10 loss 1.5" >&2
  sleep "${PAUSE:-0.2}"
  while [[ "$(cat "$workdir/hold" 2>/dev/null)" == "$step" ]]; do sleep 0.1; done
  step=$((step + 1))
  echo "$step" >"$workdir/$SLURM_PROCID"
  if [[ "$SLURM_PROCID" == 1 && "$step" == 9 && -e "$workdir/fail" ]]; then
    echo "a defect hf_0123456789abcdef" >&2
    exit 1
  fi
done
echo "train 10/10 loss 1.5" >&2
echo '{"step": 10, "loss": 1.5, "tokens": 10240}'
"""


@pytest.fixture
def counting(tmp_path, monkeypatch):
  script = tmp_path / 'mathqwen'
  script.write_text(COUNTS)
  script.chmod(0o755)
  monkeypatch.setenv('FAKE_MATHQWEN', str(script))


@pytest.fixture
def hold(counting, tmp_path):
  """hold(step) -> a file: the hosts wait at that step as long as it exists."""

  def at(step):
    file = tmp_path / 'bucket/math-7b/hold'
    file.parent.mkdir(parents=True)
    file.write_text(str(step))
    return file

  return at


@pytest.fixture
def start(tmp_path):
  """start(job) -> `up` as a process, and its ledger. The process ends with the test."""
  started = []

  def begin(job, *words):
    logs = tmp_path / 'launches'
    line = [sys.executable, '-m', 'launch.tpu', 'up', job, '--yes', '--no-plan', '--logs', str(logs), '--pace', '0.3']
    process = subprocess.Popen([*line, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process, ledger.Ledger(logs / 'math-7b')

  yield begin
  for process in started:
    process.kill()


def wait_for(what, seconds=100):
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline
    time.sleep(0.1)


def log(book, start=1, host=0):
  file = book.folder / f'start-{start}' / f'math-7b.{host}.log'
  return file.read_text() if file.exists() else ''


def created(fake):
  return [body for method, path, body in fake.requests if method == 'POST' and 'queuedResourceId' in path]


def test_preempted_asked_again_resumed_deleted(fake_cloud, hold, start, job_file, tmp_path):
  """With the stub the job ends well. With gcloud, which takes seconds to answer, it fails in the end."""
  fails, held = fake_cloud.real, hold(2)
  job = job_file(f'bucket = "{tmp_path}/bucket"', 'price_per_chip_hour = 3600', 'data = ["gsm8k"]')
  process, book = start(job, '--pace', '1' if fails else '0.3')
  wait_for(lambda: 'train 2/10' in log(book))
  if fails:
    (tmp_path / 'bucket/math-7b/fail').touch()
  fake_cloud.preempt('math-7b', 2)
  wait_for(lambda: book.count('gone'))
  held.unlink()
  output = process.communicate(timeout=150)[1]
  assert process.returncode == (1 if fails else 0), output

  # The requests to the cloud
  first, second = created(fake_cloud)
  spec = first['tpu']['nodeSpec'][0]
  assert first == second and 'spot' in first and spec['nodeId'] == 'math-7b'
  assert spec['node']['acceleratorType'] == 'v5p-32' and spec['node']['runtimeVersion'] == 'v2-alpha-tpuv5'
  deleted = [path for method, path, _ in fake_cloud.requests if method == 'DELETE']
  assert len(deleted) == 2 and all('queuedResources/math-7b?' in path and 'force=' in path for path in deleted)
  assert not fake_cloud.nodes and not fake_cloud.queued

  # What the hosts ran, both times
  for home in sorted(tmp_path.glob('cloud/homes/*')):
    assert 'uv pip install --quiet --python .venv/bin/python -e .[tpu,hf,gcs]' in (home / 'uv.log').read_text()
  assert len(list(tmp_path.glob('cloud/homes/*/mathqwen/mathqwen/model/qwen.py'))) == 8

  # The ledger and the summary
  events = book.events()
  names = [event['event'] for event in events]
  once = ['asked', 'active', 'ready', 'started']
  assert names == ['up', *once, 'ended', 'gone', 'deleted', *once, 'step', 'ended', 'deleted']
  assert events[5]['statuses']['math-7b.2'] is None and events[5]['outcome'] == 'again'
  got = ledger.summary(events, 16, 3600, events[-1]['time'])
  assert (got.steps, got.tokens, got.starts, got.preemptions) == (10, 10240, 2, 1)
  assert events[-2]['statuses'] == {f'math-7b.{host}': int(fails and host == 1) for host in range(4)}
  time_of = lambda name, nth=0: [event['time'] for event in events if event['event'] == name][nth]
  seconds = time_of('gone') - time_of('active') + time_of('deleted', 1) - time_of('active', 1)
  assert got.cost == pytest.approx(seconds * 16)
  assert got.lost_hours * 3600 == pytest.approx(time_of('step') - events[5]['step_time'])
  end = f'{"failed" if fails else "done"}: 10 steps; 10,240 tokens; starts: 2; preemptions: 1'
  assert output.splitlines()[-1].startswith(end)

  # The complete logs of every host, without repetitions
  for host in range(4):
    lines = log(book, 2, host).splitlines()
    newest = 'a defect SECRET' if fails and host == 1 else 'train 10/10 loss 1.5'
    assert newest in lines and f'[math-7b.{host}] {newest}' in output and len(lines) == len(set(lines))
  written = ''.join(
    path.read_text(errors='replace') for path in book.folder.rglob('*') if path.suffix in ('.log', '.jsonl')
  )
  assert not re.search('secret-project-7|hf_0123456789abcdef', written + output)


def test_exit_75_on_a_slice_that_stays_starts_again_there(stub_cloud, hold, start, job_file, tmp_path):
  held = hold(3)
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"'))
  wait_for(lambda: 'train 3/10' in log(book))
  for host in range(4):
    stub_cloud.kill('math-7b', host, signal.SIGTERM)
  held.unlink()
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 0, output
  assert len(created(stub_cloud)) == 1 and book.count('started') == 2 and book.count('gone') == 0


def test_another_launcher_continues(stub_cloud, hold, start, job_file, tmp_path):
  held = hold(2)
  job = job_file(f'bucket = "{tmp_path}/bucket"')
  process, book = start(job)
  wait_for(lambda: 'train 2/10' in log(book))
  second = start(job)[0]
  assert second.communicate(timeout=30)[1] == 'launch: another launcher is already watching math-7b\n'
  process.kill()
  held.unlink()
  process, book = start(job)
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 0, output
  assert len(created(stub_cloud)) == 1 and book.count('started') == 1 and book.count('ready') == 1
  lines = log(book).splitlines()
  assert len(lines) == len(set(lines)) and 'train 2/10 loss 1.5' in lines and 'train 10/10 loss 1.5' in lines
  again = start(job)[0]
  assert 'math-7b is done' in again.communicate(timeout=30)[1] and again.returncode == 2


def test_stop_saves_and_deletes(stub_cloud, hold, start, launch, job_file, tmp_path):
  hold(2)
  job = job_file(f'bucket = "{tmp_path}/bucket"')
  process, book = start(job)
  wait_for(lambda: 'train 2/10' in log(book))
  status, printed, _ = launch('status', job)
  assert status == 0 and printed == 'v5p-32: ready\n' + 'running\n' * 4
  assert launch('logs', job)[0] == 0
  assert 'train 2/10 loss 1.5' in (book.folder / 'whole-1/math-7b/3.log').read_text()
  assert launch('stop', job)[0] == 0
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 75 and output.splitlines()[-1].startswith('stopped: '), output
  assert not stub_cloud.nodes and 'stopped by SIGTERM' in log(book)


@pytest.mark.parametrize('limit', ['max_cost = 0.02\nprice_per_chip_hour = 1', 'max_hours = 0.0012'])
def test_limits_stop_and_delete(stub_cloud, hold, start, job_file, tmp_path, limit):
  hold(1)
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"', *limit.split('\n')))
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 75 and not stub_cloud.nodes, output
  assert re.search(r'the (cost|hours of the slice) reached 0\.0\d, the limit is 0\.0\d: saving and stopping', output)
  assert 'stopped by SIGTERM' in log(book) and book.count('started') == 1


def test_tries_have_a_limit(stub_cloud, counting, start, job_file, tmp_path):
  stub_cloud.refusals = [
    (429, {'error': {'code': 429, 'status': 'RESOURCE_EXHAUSTED', 'message': 'no more capacity'}})
  ] * 9
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"', 'max_tries = 3'))
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 75 and book.count('asked') == 3, output
  asked = [event['time'] for event in book.events() if event['event'] == 'asked']
  assert asked[2] - asked[1] > 0.6 and asked[2] - asked[1] > asked[1] - asked[0]  # longer and longer
  assert '3 slices were requested (max_tries = 3)' in output and output.count('not available now: ') == 3


def test_a_permanent_error_is_reported_at_once(stub_cloud, counting, start, job_file, tmp_path):
  words = 'Permission tpu.nodes.create denied on projects/secret-project-7/locations/us-east5-a'
  stub_cloud.refusals = [(403, {'error': {'code': 403, 'status': 'PERMISSION_DENIED', 'message': words}})]
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"'))
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 2 and book.count('asked') == 1
  assert 'PERMISSION_DENIED: Permission tpu.nodes.create denied on projects/PROJECT/locations' in output


def test_delete_ends_the_launcher_that_is_watching(stub_cloud, hold, start, launch, job_file, tmp_path):
  hold(1)
  job = job_file(f'bucket = "{tmp_path}/bucket"')
  process, book = start(job)
  wait_for(lambda: 'train 0/10' in log(book))
  assert launch('delete', job)[0] == 0
  output = process.communicate(timeout=60)[1]
  assert process.returncode == 75 and len(created(stub_cloud)) == 1 and not stub_cloud.queued, output


def test_deleted_by_somebody_else(stub_cloud, hold, start, job_file, tmp_path):
  """While no launcher was watching: the next one requests a slice again and installs on it."""
  held = hold(1)
  job = job_file(f'bucket = "{tmp_path}/bucket"')
  process, book = start(job)
  wait_for(lambda: 'train 1/10' in log(book))
  process.kill()
  process.wait()
  stub_cloud.answer('DELETE', next(iter(stub_cloud.queued)).join(['/v2/', '?force=true']), {})
  held.unlink()
  output = start(job)[0].communicate(timeout=100)[1]
  assert output.splitlines()[-1].startswith('done: 10 steps'), output
  assert (book.count('gone'), book.count('active'), book.count('ready')) == (1, 2, 2)


def test_a_slice_that_would_be_forgotten(stub_cloud, counting, launch, job_file, tmp_path):
  """Edited files, the slice of another job, and a launcher that was killed between the end and the deletion."""
  job = job_file(f'bucket = "{tmp_path}/bucket"')
  assert launch('create', job, '--no-plan', '--yes')[0] == 0
  for line in ('zone = "us-central1-a"', 'slice = "v5p-64"', 'queue = false'):
    status, _, output = launch('up', job_file(line, name='edited.toml'), '--no-plan', '--yes')
    assert (
      status == 2 and 'launch: math-7b was requested with ' in output and 'in the file, then change it to' in output
    )
  status, _, output = launch('up', job, '--no-plan', '--yes', '--logs', str(tmp_path / 'another'))
  assert status == 2 and 'launch: math-7b exists already, and was not requested from ' in output
  book = ledger.Ledger(tmp_path / 'launches/math-7b')
  book.add('ended', outcome='done', step=10, step_time=0, tokens=1, statuses={})
  status, _, output = launch('up', job, '--no-plan', '--yes')
  assert status == 2 and 'math-7b is done' in output and not stub_cloud.queued


@pytest.mark.parametrize('fails', [1, 9])
def test_hosts_that_are_not_reached_at_first(stub_cloud, counting, start, job_file, tmp_path, monkeypatch, fails):
  monkeypatch.setenv('PAUSE', '0.05')
  scp = stub_cloud.bin / 'scp'
  refuse = f'echo >>{tmp_path}/n; (($(wc -l <{tmp_path}/n) <= {fails})) && echo "Connection refused" >&2 && exit 1'
  scp.write_text(scp.read_text().replace('address "$@"', f'address "$@"\nif ((host == 0)); then {refuse}; fi'))
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"'))
  output = process.communicate(timeout=60)[1]
  assert process.returncode == (0 if fails == 1 else 2) and not stub_cloud.queued, output
  assert output.count('the hosts could not be set up: ') == (1 if fails == 1 else 3)


def test_without_the_cloud_the_slice_stays_and_the_user_knows(stub_cloud, hold, start, job_file, tmp_path):
  hold(1)
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"'))
  wait_for(lambda: 'train 0/10' in log(book))
  (stub_cloud.bin / 'gcloud').write_text(
    '#!/bin/sh\necho "ERROR: UNAUTHENTICATED: run gcloud auth login" >&2\nexit 1\n'
  )
  output = process.communicate(timeout=60)[1].splitlines()[-1]
  assert process.returncode == 2 and output.startswith('launch: run `gcloud auth login`: gcloud compute tpus')
  assert output.endswith('the slice is still there and costs money: `up` continues, `delete` ends it')


def test_single_steps(stub_cloud, counting, launch, job_file, tmp_path, monkeypatch):
  job = job_file(f'bucket = "{tmp_path}/bucket"', 'slice = "2xv6e-16"')
  monkeypatch.setenv('PAUSE', '0.05')
  assert launch('create', job, '--no-plan', stdin=subprocess.DEVNULL)[::2] == (
    2,
    'launch: standard input is not a terminal, so nobody can confirm; --yes creates without asking\n',
  )
  assert launch('create', job, '--no-plan', input='n\n')[0] == 2 and not stub_cloud.queued
  assert launch('create', job, '--no-plan', '--yes')[0] == 0
  assert sorted(name.rpartition('/')[2] for name in stub_cloud.nodes) == ['math-7b-0', 'math-7b-1']
  assert [launch(verb, job, '--no-plan')[0] for verb in ('setup', 'start', 'follow')] == [0, 0, 0]
  logs = sorted(path.name for path in (tmp_path / 'launches/math-7b/start-1').iterdir())
  assert logs == [f'math-7b-{slice}.{host}.log' for slice in (0, 1) for host in range(4)]
  assert launch('delete', job)[0] == 0 and not stub_cloud.nodes and launch('delete', job)[0] == 0
  summary = json.loads(launch('summary', job)[1])
  assert summary['steps'] == 10 and summary['tokens'] == 10240 and summary['preemptions'] == 0


def test_tpu_vm_without_a_queue(stub_cloud, counting, start, job_file, tmp_path, monkeypatch):
  monkeypatch.setenv('PAUSE', '0.05')
  process, _ = start(job_file(f'bucket = "{tmp_path}/bucket"', 'queue = false', 'provisioning = "on-demand"'))
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 0 and not stub_cloud.nodes and not stub_cloud.queued, output
  (body,) = [body for method, path, body in stub_cloud.requests if method == 'POST']
  assert body == {'acceleratorType': 'v5p-32', 'runtimeVersion': 'v2-alpha-tpuv5'}


@pytest.mark.parametrize(
  'statuses, outcome',
  [
    ([0, 0], 'done'),
    ([75, 75], 'again'),
    ([None, 75], 'again'),
    ([137, 0], 'again'),
    ([255, None], 'again'),
    ([0, 75], 'again'),
    ([2, 2], 'failed'),
    ([1, 75], 'failed'),
    ([139, None], 'failed'),
  ],
)
def test_exit_statuses_decide(statuses, outcome):
  assert babysit.decide(dict(enumerate(statuses))) == outcome


@pytest.mark.parametrize(
  'states, combined',
  [
    (['ACTIVE', 'READY', 'READY'], 'ready'),
    (['ACTIVE', 'READY', 'PREEMPTED'], 'lost'),
    (['SUSPENDED'], 'lost'),
    (['FAILED'], 'lost'),
    (['DELETING'], 'leaving'),
    (['WAITING_FOR_RESOURCES'], 'waiting'),
    (['ACTIVE', 'CREATING'], 'waiting'),
    (['ACTIVE', 'TERMINATED'], 'lost'),
  ],
)
def test_states(states, combined):
  assert cloud.combined(states) == combined


def test_redact(monkeypatch):
  monkeypatch.setattr(cloud, 'project', lambda: 'my-project-1')
  text = 'projects/other-2/locations/x --project=other-2 a@b-3.iam.gserviceaccount.com my-project-1'
  assert (
    cloud.redact(text) == 'projects/PROJECT/locations/x --project=PROJECT a@PROJECT.iam.gserviceaccount.com PROJECT'
  )
  for secret in ('ya29.a0AfB_x-y', 'hf_abcdefghijklmnop', 'sk-proj-0123456789', 'ghp_0123456789abc', 'AIza' + 'x' * 35):
    assert cloud.redact(f'token {secret}.') in ('token SECRET.', 'token SECRET')
  assert cloud.redact('https://user:word@host/x') == 'https://SECRET@host/x'


@pytest.mark.parametrize('command', FLAGS)
def test_gcloud_knows_every_flag_of_the_stub(command, gcloud_flags):
  everywhere = {'--quiet', '--format', '--version'}  # missing in gcloud's list
  assert FLAGS[command] - everywhere - gcloud_flags(command) == set()
