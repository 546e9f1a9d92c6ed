"""The guard and the parent of the command, as on a host: deadlines, notices, secrets, the removal of the slice."""

import ast
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SLOW = 'trap "echo saved; exit 75" TERM; echo begun; while :; do sleep 0.1; done'
STUBBORN = 'trap "" TERM; echo begun; for i in {1..600}; do sleep 0.1; done'
ON_HOSTS = ('bucket', 'host', 'masking', 'notices', 'stage')


@pytest.fixture
def metadata():
  """{path: what the metadata server answers}; .address is the server's."""

  class Answers(dict):
    pass

  answers = Answers()

  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
      pass

    def do_GET(self):
      text = answers.get(self.path.removeprefix('/computeMetadata/v1/').partition('?')[0])
      known = text is not None and self.headers['Metadata-Flavor'] == 'Google'
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write((text or '').encode() if known else b'')

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  answers.address = f'127.0.0.1:{server.server_port}'
  yield answers
  server.shutdown()


class Host:
  """A folder as HOME of host `number` of four, with worker.sh and the guard."""

  def __init__(self, folder, metadata, env):
    self.folder, self.runs = folder, folder / 'mathqwen-runs'
    self.env = os.environ | {'HOME': str(folder), 'SLURM_PROCID': '0', 'GCE_METADATA_HOST': metadata.address} | env
    self.facts = {
      'name': 'job', 'node': 'job', 'nodes': ['job'], 'hosts': 1, 'bucket': f'{folder}/bucket',
      'records': f'{folder}/bucket/launch/job', 'deadline': None, 'save': 60, 'linger': 0.5, 'stagger': 0.5,
      'poll': 0.1, 'grace': None, 'remove': ['touch', f'{folder}/removed'], 'env': {}, 'secrets': {}, 'data': [],
      'model': None,
    }  # fmt: skip

  def start(self, script, number=1, **facts):
    """Starts a script of bash as a run, with these facts."""
    told = {'MATHQWEN_JOB': json.dumps(self.facts | facts)}
    line = ['bash', 'launch/tpu/worker.sh', 'start', f'job/{number}', 'bash', '-c', script]
    done = subprocess.run(line, cwd=ROOT, env=self.env | told, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout

  def worker(self, *words):
    line = ['bash', 'launch/tpu/worker.sh', *words]
    return subprocess.run(line, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60)

  def log(self, number=1):
    file = self.runs / f'job/{number}/log'
    return file.read_text() if file.exists() else ''

  def guard_log(self):
    return (self.runs / 'guard.log').read_text()

  def ended(self, number=1):
    return (self.runs / f'job/{number}/status').exists()

  def record(self, name):
    return json.loads((self.folder / 'bucket/launch/job' / name).read_text())


@pytest.fixture
def host(tmp_path, metadata):
  """A Host; whatever it started ends with the test."""
  made = Host(tmp_path, metadata, {})
  yield made
  for file in [*made.runs.glob('guard.pid'), *made.runs.glob('job/*/pid')]:
    subprocess.run(['kill', '-KILL', file.read_text().strip()], stderr=subprocess.DEVNULL)


def wait_for(what, seconds=60):
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_at_the_deadline_the_run_saves_and_the_slice_is_removed(host):
  host.start(SLOW, deadline=time.time() + 5)
  wait_for(lambda: 'begun' in host.log())
  assert not host.ended()
  wait_for((host.folder / 'removed').exists)
  assert host.log() == 'begun\nsaved\n'
  assert host.record('start-1/job.0.json') | {'time': 0} == {'status': 75, 'why': 'limit', 'time': 0}
  assert (host.folder / 'bucket/launch/job/start-1/job.0.log').read_text() == host.log()
  removal = host.record('removed.json')
  assert (removal['why'], removal['start']) == ('limit', 1) and abs(removal['time'] - time.time()) < 60


def test_a_run_that_does_not_save_is_killed(host):
  host.start(STUBBORN, deadline=time.time() + 2, save=2)
  wait_for((host.folder / 'removed').exists)
  assert host.record('start-1/job.0.json')['status'] == 137 and 'killed' in host.guard_log()


def test_a_new_start_has_its_own_deadline(host):
  host.start(SLOW, deadline=time.time() + 1)
  wait_for(host.ended)
  host.start(SLOW, 2, deadline=time.time() + 3600)
  wait_for(lambda: 'begun' in host.log(2))
  time.sleep(2)
  assert not host.ended(2) and host.worker('status', 'job/2').stdout == 'running\n'


def test_a_run_that_ended_unwatched(host):
  """Its log is in the bucket first; the slice goes when no launcher was heard of for the time of grace."""
  host.start('echo done; exit 3', grace=4)
  wait_for(host.ended)
  begin = time.monotonic()
  wait_for((host.folder / 'bucket/launch/job/start-1/job.0.json').exists)
  assert not (host.folder / 'removed').exists()
  wait_for((host.folder / 'removed').exists)
  assert time.monotonic() - begin > 2 and host.record('removed.json')['why'] == 'ended'
  assert host.record('start-1/job.0.json')['status'] == 3


def test_a_launcher_that_comes_back_keeps_the_slice(host):
  host.start('echo done', grace=3)
  wait_for(host.ended)
  for _ in range(5):
    time.sleep(1)
    host.worker('stop', 'job/1')  # any word of a launcher
  assert not (host.folder / 'removed').exists()


def test_without_grace_it_stays(host):
  host.start('echo done', grace=None)
  wait_for((host.folder / 'bucket/launch/job/start-1/job.0.json').exists)
  time.sleep(1)
  assert not (host.folder / 'removed').exists()


def test_a_host_that_may_not_remove_the_slice_says_so(host):
  host.start('echo done', grace=0.1, remove=['bash', '-c', 'echo "PERMISSION_DENIED: tpu.nodes.delete" >&2; exit 1'])
  wait_for(lambda: 'COSTS MONEY' in host.guard_log())
  assert 'cannot remove it: PERMISSION_DENIED: tpu.nodes.delete' in host.guard_log()
  wait_for((host.folder / 'bucket/launch/job/guard-job.0.log').exists)
  assert not (host.folder / 'bucket/launch/job/removed.json').exists()  # a launcher must not believe it


def test_later_hosts_wait_for_the_first(host):
  """A first host that has died leaves the removal to the others."""
  host.env['SLURM_PROCID'] = '3'
  host.start('echo done', hosts=4, grace=0.1, stagger=1.5)
  wait_for(host.ended)
  begin = time.monotonic()
  wait_for((host.folder / 'removed').exists)
  assert time.monotonic() - begin > 3


NOTICES = [
  ({'instance/preempted': 'TRUE'}, 'preempted'),
  ({'instance/maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE'}, 'maintenance event TERMINATE_ON_HOST_MAINTENANCE'),
  ({'instance/upcoming-maintenance': {'maintenanceStatus': 'ONGOING', 'windowStartTime': 'x'}}, 'planned maintenance'),
  ({'instance/upcoming-maintenance': {'a': {'window_start_time': 300}}}, 'planned maintenance'),
]


@pytest.mark.parametrize('answers, why', NOTICES)
def test_notices_are_answered_with_a_save(host, metadata, answers, why):
  quiet = {'instance/preempted': 'FALSE', 'instance/maintenance-event': 'NONE'}
  metadata |= quiet | {'instance/upcoming-maintenance': '{"error": "no notifications have been received yet"}'}
  host.start(SLOW)
  wait_for(lambda: 'begun' in host.log())
  time.sleep(0.5)
  assert not host.ended()
  for path, value in answers.items():
    metadata[path] = value if isinstance(value, str) else json.dumps(value).replace('300', f'"{clock(300)}"')
  wait_for(host.ended)
  assert host.worker('status', 'job/1').stdout == '75\n'
  wait_for((host.folder / 'bucket/launch/job/start-1/job.0.json').exists)
  assert host.record('start-1/job.0.json')['why'].startswith(why)
  # The next start runs on: this notice was answered.
  host.start(SLOW, 2)
  wait_for(lambda: 'begun' in host.log(2))
  time.sleep(0.5)
  assert not host.ended(2)


def test_a_maintenance_days_ahead_is_left_alone(host, metadata):
  window = {'windowStartTime': clock(3 * 86400), 'maintenanceStatus': 'PENDING', 'canReschedule': True}
  metadata['instance/upcoming-maintenance'] = json.dumps(window)
  host.start(SLOW)
  wait_for(lambda: 'begun' in host.log())
  time.sleep(1)
  assert not host.ended()


def clock(seconds):
  """The time in so many seconds, as Google writes it, 8 hours west."""
  return time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time.time() + seconds - 8 * 3600)) + '-08:00'


SECRET = 'hf_a/secret value'


@pytest.fixture
def secret(host, tmp_path):
  """Puts gcloud's stub on PATH, which knows the secret `token`."""
  from fake_cloud import HERE

  (tmp_path / 'bin').mkdir()
  (tmp_path / 'bin/gcloud').write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "stub_gcloud.py"} "$@"\n')
  (tmp_path / 'bin/gcloud').chmod(0o755)
  for version in ('latest', '3'):
    (tmp_path / 'secrets/token').mkdir(parents=True, exist_ok=True)
    (tmp_path / 'secrets/token' / version).write_text(SECRET + version)
  host.env |= {'PATH': f'{tmp_path}/bin:{host.env["PATH"]}', 'FAKE_FOLDER': str(tmp_path), 'FAKE_PROJECT': 'p'}


def test_variables_and_secrets(host, secret):
  import base64
  import urllib.parse

  value = SECRET + '3'
  coded = base64.b64encode(value.encode()).decode(), urllib.parse.quote(value, safe='')
  script = 'test "$A" = "1 \'2" && test "$TOKEN" = "hf_a/secret value3" && echo it is here; printf "%s|" '
  script += f'"$TOKEN" {coded[0]} {coded[1]} hf_a/; sleep 0.3; printf "hf_a/sec"; sleep 0.3; echo "ret value3."'
  host.start(script, env={'A': "1 '2"}, secrets={'TOKEN': ['token', '3']})
  wait_for(host.ended)
  assert host.log() == 'it is here\nSECRET|SECRET|SECRET|hf_a/|SECRET.\n'
  wait_for((host.folder / 'bucket/launch/job/start-1/job.0.json').exists)
  found = subprocess.run(['grep', '-rlF', SECRET, host.runs, host.folder / 'bucket'], capture_output=True, text=True)
  assert found.stdout == ''


def test_a_secret_that_is_not_given(host, secret):
  host.start('echo never', secrets={'HF_TOKEN': ['another', 'latest']})
  followed = host.worker('follow', 'job/1')
  assert followed.returncode == 2
  first = followed.stdout.splitlines()[0]
  assert first.startswith('[0] worker.sh: secret another (for HF_TOKEN) was not given to this host: ERROR: (gcloud.')
  assert 'secretmanager.versions.access' in first and 'never' not in followed.stdout


def test_a_rehearsal_takes_the_devices_that_are_there(host, monkeypatch):
  line = ['bash', 'launch/tpu/worker.sh', 'start', 'job/1', 'echo', '--platform=tpu', '--slice=v5p-32', '--set=a=1']
  subprocess.run(line, cwd=ROOT, env=host.env | {'MATHQWEN_REHEARSAL': '1'}, capture_output=True, check=True)
  line[3] = 'job/2'
  subprocess.run(line, cwd=ROOT, env=host.env, capture_output=True, check=True)
  wait_for(lambda: host.ended(1) and host.ended(2))
  assert (host.log(1), host.log(2)) == ('--set=a=1\n', '--platform=tpu --slice=v5p-32 --set=a=1\n')


def test_stopped_before_it_began(host):
  (host.runs / 'job/1').mkdir(parents=True)
  (host.runs / 'job/1/why').write_text('stop')
  line = [sys.executable, '-m', 'launch.tpu.host', 'watch', str(host.runs / 'job/1'), 'echo', 'never']
  assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout == ''
  assert (host.runs / 'job/1/status').read_text() == '75\n'


@pytest.mark.parametrize('name', ON_HOSTS)
def test_the_python_of_old_images(name):
  """Ubuntu 20.04 has Python 3.8. Only its standard library, and each other."""
  tree = ast.parse((ROOT / f'launch/tpu/{name}.py').read_text(), feature_version=(3, 8))
  for node in ast.walk(tree):
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
      modules = [f'launch.tpu.{alias.name}' for alias in node.names] if node.module == 'launch.tpu' else [node.module]
    for module in modules:
      ours = module.removeprefix('launch.tpu.')
      assert ours in ON_HOSTS if module.startswith('launch.') else module.partition('.')[0] in sys.stdlib_module_names
