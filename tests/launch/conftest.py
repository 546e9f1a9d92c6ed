"""launch/ is not part of the installed package: it runs from the checkout."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]

JOB = """
config = "demo"
name = "math-7b"
slice = "v5p-32"
zone = "us-east5-a"
bucket = "gs://bucket/runs"
"""


@pytest.fixture
def job_file(tmp_path):
  """job_file('slice = "v6e-16"', ...) -> path of a job file: JOB with these lines replaced or added."""

  def write(*lines, name='job.toml'):
    names = {line.split()[0] for line in lines}
    kept = [line for line in JOB.splitlines() if line and line.split()[0] not in names]
    (tmp_path / name).write_text('\n'.join([*kept, *lines]) + '\n')
    return str(tmp_path / name)

  return write


@pytest.fixture(scope='session')
def gcloud_flags():
  """gcloud_flags('compute tpus tpu-vm create') -> the flags that the installed gcloud knows for it."""
  import os
  import runpy

  if shutil.which('gcloud') is None:
    pytest.skip('gcloud is not installed, so its flags cannot be looked up')
  folder = pathlib.Path(os.path.realpath(shutil.which('gcloud'))).parents[1]
  tree = runpy.run_path(str(folder / 'data/cli/gcloud_completions.py'))['STATIC_COMPLETION_CLI_TREE']

  def flags(command):
    here = tree
    for word in command.split():
      here = here['commands'][word]
    return set(here['flags'])

  return flags


@pytest.fixture(params=['gcloud', 'stub'])
def fake_cloud(request, tmp_path, monkeypatch):
  """A FakeCloud, once for the real gcloud to talk to and once for the stub."""
  from fake_cloud import FakeCloud

  if request.param == 'gcloud' and shutil.which('gcloud') is None:
    pytest.skip('gcloud is not installed: only the stub is tested')
  cloud = FakeCloud(tmp_path / 'cloud')
  for name, value in cloud.environment(gcloud=request.param == 'gcloud').items():
    monkeypatch.setenv(name, value)
  cloud.real = request.param == 'gcloud'
  yield cloud
  cloud.stop()


@pytest.fixture
def stub_cloud(tmp_path, monkeypatch):
  """A FakeCloud that only the stub talks to."""
  from fake_cloud import FakeCloud

  fake = FakeCloud(tmp_path / 'cloud')
  for name, value in fake.environment(gcloud=False).items():
    monkeypatch.setenv(name, value)
  yield fake
  fake.stop()


@pytest.fixture
def launch(tmp_path):
  """launch('up', job, '--yes') -> (exit status, standard output, standard error)"""

  def run(*words, **kwargs):
    line = [sys.executable, '-m', 'launch.tpu', '--logs', str(tmp_path / 'launches'), '--pace', '0.3', *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=250, **kwargs)
    return done.returncode, done.stdout, done.stderr

  return run


@pytest.fixture
def counting(tmp_path, monkeypatch):
  """Training is the script in counting_job.py."""
  from counting_job import COUNTS

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
  from launch.tpu import ledger

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
