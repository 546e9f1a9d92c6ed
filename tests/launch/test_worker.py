"""worker.sh, run as on a host."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob('launch/**/*.sh'))
SLOW = 'trap "echo saved; exit 75" TERM; for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.3; done; exit 3'


@pytest.fixture
def worker(tmp_path):
  """worker('start', ...) -> the finished process; with wait=False the running one."""
  env = os.environ | {'HOME': str(tmp_path), 'SLURM_PROCID': '2'}

  def run(*words, wait=True):
    line = ['bash', 'launch/tpu/worker.sh', *words]
    if not wait:
      return subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

  return run


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
  shellcheck = pathlib.Path(sys.prefix, 'bin', 'shellcheck')
  done = subprocess.run([shellcheck, script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_a_run_that_ends_by_itself(worker):
  assert worker('status', 'job/1').stdout == 'none\n'
  assert worker('start', 'job/1', 'bash', '-c', 'echo one two; echo three >&2; exit 3').stdout == 'host 2: started\n'
  followed = worker('follow', 'job/1')
  assert (followed.returncode, followed.stdout) == (3, '[2] one two\n[2] three\n\n[2]= 3\n')
  assert worker('start', 'job/1', 'echo', 'again').stdout == 'host 2: goes on\n'
  assert worker('follow', 'job/1').stdout == followed.stdout  # from the first line on, every time
  assert worker('log', 'job/1').stdout == 'one two\nthree\n' and worker('status', 'job/1').stdout == '3\n'


def test_stop_lets_it_save(worker):
  worker('start', 'job/1', 'bash', '-c', SLOW)
  follow = worker('follow', 'job/1', wait=False)
  assert follow.stdout.readline() == '[2] line 1\n'
  assert worker('status', 'job/1').stdout == 'running\n'
  worker('stop', 'job/1')
  output = follow.communicate(timeout=30)[0]
  assert follow.returncode == 75 and output.endswith('[2] saved\n\n[2]= 75\n') and 'line 9' not in output


def test_a_lost_connection_leaves_it_running(worker):
  worker('start', 'job/1', 'bash', '-c', SLOW)
  follow = worker('follow', 'job/1', wait=False)
  assert follow.stdout.readline() == '[2] line 1\n'
  follow.kill()
  assert worker('follow', 'job/1').stdout.splitlines()[-3:] == ['[2] line 9', '', '[2]= 3']


def test_killed_together_with_its_watcher(worker, tmp_path):
  worker('start', 'job/1', 'bash', '-c', SLOW)
  while not (tmp_path / 'mathqwen-runs/job/1/pid').exists():
    time.sleep(0.05)
  pid = int((tmp_path / 'mathqwen-runs/job/1/pid').read_text())
  parent = int(re.search(r'PPid:\s*(\d+)', pathlib.Path(f'/proc/{pid}/status').read_text())[1])
  os.kill(parent, signal.SIGKILL)
  os.kill(pid, signal.SIGKILL)
  assert worker('follow', 'job/1').stdout.endswith('[2]= 137\n')


def test_a_last_line_without_a_newline(worker):
  worker('start', 'job/1', 'printf', 'last words')
  assert worker('follow', 'job/1').stdout == '[2] last words\n[2]= 0\n'


def test_never_two_at_the_same_time(worker):
  worker('start', 'job/1', 'bash', '-c', SLOW)
  while worker('status', 'job/1').stdout != 'running\n' or 'line 1' not in worker('log', 'job/1').stdout:
    time.sleep(0.05)
  worker('start', 'job/2', 'echo', 'second')
  assert worker('status', 'job/1').stdout == '75\n' and worker('log', 'job/1').stdout.endswith('saved\n')
  assert worker('follow', 'job/2').returncode == 0


def test_an_unknown_verb(worker):
  done = worker('begin', 'job/1')
  assert (done.returncode, done.stderr) == (2, 'worker.sh: no verb begin\n')
