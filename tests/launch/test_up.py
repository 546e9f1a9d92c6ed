"""Whole jobs on a fake cloud, through the real gcloud where it is installed and through the stub.

A script that counts steps in the workdir stands for training; test_whole_job.py trains.
"""

import json
import re
import signal
import subprocess
import time

import pytest
from counting_job import created, log, wait_for
from stub_gcloud import FLAGS

from launch.tpu import babysit, cloud, ledger


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

  # What the hosts ran, both times: the versions of the first, and data sets once
  (locked,) = (tmp_path / 'bucket/launch/math-7b').glob('requirements-*.txt')
  assert (tmp_path / 'cloud/staged').read_text() == 'data prepare gsm8k\n'
  assert (tmp_path / 'bucket/data/gsm8k/train').read_text() == 'rows\n'
  for home in sorted(tmp_path.glob('cloud/homes/*')):
    ran = (home / 'uv.log').read_text()
    assert f'--requirements {home}/mathqwen-runs/requirements.txt' in ran and '--no-deps -e .' in ran
    assert (home / 'mathqwen-runs/requirements.txt').read_text() == locked.read_text()
    assert ('uv pip compile' in ran) == home.name.endswith('1.0')  # the first host of the first slice
  assert len(list(tmp_path.glob('cloud/homes/*/mathqwen/mathqwen/model/qwen.py'))) == 8

  # The ledger and the summary
  events = book.events()
  names = [event['event'] for event in events]
  once = ['asked', 'active', 'ready', 'started']
  assert names == ['up', *once, 'ended', 'gone', 'deleted', *once, 'step', 'ended', 'deleted']
  # The preempted host is silent, or says in its last moment that its process was killed.
  assert events[5]['statuses']['math-7b.2'] in (None, 137) and events[5]['outcome'] == 'again'
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


def test_stop_saves_and_deletes_and_a_smaller_slice_continues(
  stub_cloud, hold, start, launch, job_file, tmp_path, monkeypatch
):
  held = hold(5)
  job = job_file(f'bucket = "{tmp_path}/bucket"')
  process, book = start(job)
  wait_for(lambda: 'train 5/10' in log(book))
  status, printed, _ = launch('status', job)
  assert status == 0 and printed == 'v5p-32: ready\n' + 'running\n' * 4
  assert launch('logs', job)[0] == 0
  assert 'train 5/10 loss 1.5' in (book.folder / 'whole-1/math-7b/3.log').read_text()
  assert launch('stop', job)[0] == 0
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 75 and output.splitlines()[-1].startswith('stopped: '), output
  assert not stub_cloud.nodes and 'stopped by SIGTERM' in log(book)

  held.unlink()
  stub_cloud.hosts = 2
  monkeypatch.setenv('FAKE_HOSTS', '2')
  output = start(job_file(f'bucket = "{tmp_path}/bucket"', 'slice = "v5p-16"'))[0].communicate(timeout=100)[1]
  assert 'requesting v5p-16 in' in output and 'v5p-16 is ready' in output, output
  types = [request['tpu']['nodeSpec'][0]['node']['acceleratorType'] for request in created(stub_cloud)]
  assert types == ['v5p-32', 'v5p-16']
  assert 'train 3/10' in log(book, 2, 1) and 'train 2/10' not in log(book, 2, 1)
  assert output.splitlines()[-1].startswith('done: 10 steps;'), output


@pytest.mark.parametrize('limit', ['max_cost = 16\nprice_per_chip_hour = 1', 'max_hours = 1'])
def test_limits_stop_and_delete(stub_cloud, hold, start, job_file, tmp_path, limit):
  hold(1)
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"', *limit.split('\n')))
  wait_for(lambda: 'train 1/10' in log(book))
  # An hour of an earlier slice, as if it had passed in the meantime.
  file, now = book.folder / 'ledger.jsonl', time.time()
  earlier = [{'time': now - 3600, 'event': 'active'}, {'time': now, 'event': 'deleted'}]
  (tmp_path / 'ledger').write_text(''.join(json.dumps(event) + '\n' for event in earlier) + file.read_text())
  (tmp_path / 'ledger').rename(file)
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 75 and not stub_cloud.nodes, output
  assert re.search(r'the (cost|hours of the slice) reached 1(6\.\d\d|\.0\d), the limit is 16?\.00: saving and', output)
  assert 'stopped by SIGTERM' in log(book) and book.count('started') == 1


def test_what_a_host_refuses_ends_the_job(stub_cloud, counting, start, job_file, tmp_path):
  """A secret that the service account may not read: one line, status 2, and no slice left."""
  lines = ['init = "Qwen/Qwen2.5-0.5B"', 'secrets = {HF_TOKEN = "hf-token"}']
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"', *lines))
  output = process.communicate(timeout=60)[1]
  assert process.returncode == 2 and not stub_cloud.nodes and not book.count('started'), output
  last = output.splitlines()[-1]
  assert last.startswith('launch: worker.sh: secret hf-token (for HF_TOKEN) was not given to this host: ERROR: (gcloud')
  assert output.count('installing on every host') == 1


def test_hosts_that_end_with_2_tell_why(stub_cloud, counting, start, job_file, tmp_path):
  (tmp_path / 'mathqwen').write_text('#!/bin/sh\necho "mathqwen: no such setting; correct it" >&2\nexit 2\n')
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"'))
  output = process.communicate(timeout=60)[1].splitlines()
  assert process.returncode == 2 and not stub_cloud.nodes
  assert output[-1] == 'launch: host math-7b.0: no such setting; correct it' and output[-2].startswith('failed: ')


NO_CAPACITY = (8, 'There is no more capacity in the zone "us-east5-a"; you can try in another zone')
NO_QUOTA = (8, "Quota 'TPUS_PER_PROJECT' exhausted. Limit 0 in zone us-east5-a")


def test_zones_in_turn(stub_cloud, counting, start, job_file, tmp_path, monkeypatch):
  """The first has no chips now and the second no quota; the third gives the slice."""
  monkeypatch.setenv('PAUSE', '0.05')
  stub_cloud.failures = [NO_CAPACITY, NO_QUOTA]
  zones = ['us-east5-a', 'us-east5-b', 'us-central1-a']
  process, book = start(job_file(f'bucket = "{tmp_path}/bucket"', f'zones = {json.dumps(zones)}'))
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 0 and not stub_cloud.queued, output
  assert [event['zone'] for event in book.events() if event['event'] == 'asked'] == zones
  assert 'us-east5-b will not give v5p-32: Quota' in output


def test_no_zone_gives_the_slice(stub_cloud, counting, start, job_file, tmp_path):
  stub_cloud.failures = [NO_QUOTA, NO_CAPACITY, NO_QUOTA]
  lines = [f'bucket = "{tmp_path}/bucket"', 'zones = ["us-east5-a", "us-east5-b"]']
  process, book = start(job_file(*lines))
  output = process.communicate(timeout=100)[1]
  assert process.returncode == 2 and not stub_cloud.queued, output
  asked = [event['zone'] for event in book.events() if event['event'] == 'asked']
  assert asked == ['us-east5-a', 'us-east5-b', 'us-east5-b'] and "launch: Quota 'TPUS_PER_PROJECT'" in output


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
  (body,) = [body for method, path, body in stub_cloud.requests if method == 'POST' and 'nodeId' in path]
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
