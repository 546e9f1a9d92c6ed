"""What runs on each host beside the training: the parent of its command, and a guard that outlives the launcher.

  python3 -m launch.tpu.host watch RUN_FOLDER COMMAND ...   fetches secrets, runs the command, writes down how it ends
  python3 -m launch.tpu.host guard                          enforces the deadline, reads notices, removes the slice

Both read facts.json, which the launcher sends with `setup` and `start` (launch/tpu/facts.py says what is in it). Only
the standard library of Python 3.8: this is the Python of the TPU VM's image.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from launch.tpu import masking, notices
from launch.tpu.bucket import Bucket, Failed, run

RUNS = pathlib.Path.home() / 'mathqwen-runs'
REHEARSAL = 'MATHQWEN_REHEARSAL'  # on machines that are not TPU VMs: the command may use whatever devices there are
AGAIN = os.EX_TEMPFAIL  # how `mathqwen train` ends after saving
RETRY = 300  # seconds between tries to remove it


def say(text: str) -> None:
  """Prints a line with the time, into the guard's log."""
  print(time.strftime('%Y-%m-%d %H:%M:%S'), text, flush=True)


def read_facts(path: pathlib.Path) -> dict:
  """The launcher's facts; {} without any."""
  return json.loads(path.read_text()) if path.exists() else {}


def write(path: pathlib.Path, text: str) -> None:
  """Writes a file as a whole."""
  part = path.with_name(path.name + '.part')
  part.write_text(text)
  part.replace(path)


# The parent of the command


def watch(folder: pathlib.Path, command: list[str]) -> None:
  """Runs the command with the job's variables and secrets, its output on ours without the secrets' values.

  Writes `pid` and, at the end, `status` into the folder.
  """
  # A host that shuts down sends SIGTERM to every process; the command saves first, and this waits for it. A handler
  # instead of SIG_IGN, which the command would inherit.
  signal.signal(signal.SIGTERM, lambda *_: None)
  facts = read_facts(folder / 'facts.json')
  try:
    values = secrets(facts)
    status = _run_command(folder, command, facts, values)
  except Failed as error:
    print(f'worker.sh: {error}', flush=True)
    status = 2
  write(folder / 'status', f'{status}\n')


def secrets(facts: dict) -> dict[str, str]:
  """{variable: value}, from Secret Manager with the service account of this host. Failed: when one is not given."""
  values = {}
  for name, (secret, version) in sorted(facts.get('secrets', {}).items()):
    try:
      values[name] = run(['gcloud', 'secrets', 'versions', 'access', version, f'--secret={secret}'], 120)
    except Failed as error:
      raise Failed(
        f'secret {secret} (for {name}) was not given to this host: {error}; let the service account read it: '
        'launch/README.md'
      ) from None
  return values


def _run_command(folder: pathlib.Path, command: list[str], facts: dict, values: dict[str, str]) -> int:
  if os.environ.get(REHEARSAL):
    command = [word for word in command if not word.startswith(('--platform=', '--slice='))]
  if (folder / 'why').exists():  # it was stopped before it began
    return AGAIN
  process = subprocess.Popen(
    command,
    env={**os.environ, **facts.get('env', {}), **values},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  write(folder / 'pid', str(process.pid))
  if (folder / 'why').exists():  # stopped in this very moment, before there was a pid
    process.terminate()
  masking.copy(process.stdout.fileno(), sys.stdout.fileno(), values.values())
  status = process.wait()
  return status if status >= 0 else 128 - status


# The guard


class Run:
  """The newest run on this host, as worker.sh and `watch` write it down."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.status = self._number('status')

  def _number(self, name: str) -> int | None:
    path = self.folder / name
    return int(path.read_text()) if path.exists() else None

  @property
  def is_running(self) -> bool:
    """Whether its watcher is alive."""
    return self.status is None and is_alive(self.folder / 'watcher')

  @property
  def ended_at(self) -> float:
    """In seconds since 1970; for a run that was killed with its watcher, when it printed its last line."""
    name = 'status' if self.status is not None else 'log'
    return (self.folder / name).stat().st_mtime

  def ask_to_end(self, why: str) -> bool:
    """Sends SIGTERM, once for a run: training saves and ends. Returns whether it was this call that did."""
    try:
      with open(self.folder / 'why', 'x') as file:
        file.write(why)
    except FileExistsError:
      return False
    self.kill(signal.SIGTERM)
    return True

  def kill(self, how: int) -> None:
    """Sends a signal to the command."""
    if is_alive(self.folder / 'pid'):
      os.kill(self._number('pid'), how)

  @property
  def why(self) -> str:
    """Why it was asked to end; '' when it was not."""
    path = self.folder / 'why'
    return path.read_text() if path.exists() else ''


def is_alive(path: pathlib.Path) -> bool:
  """Whether the process whose number is in a file is there. Numbers from before the machine's last start are reused."""
  facts = pathlib.Path('/proc/stat').read_text().splitlines()
  started = next(int(line.split()[1]) for line in facts if line.startswith('btime'))
  try:
    return path.stat().st_mtime >= started and os.path.exists(f'/proc/{int(path.read_text())}')
  except (FileNotFoundError, ValueError):
    return False


def newest_run(name: str) -> Run | None:
  """The newest run of a job on this host."""
  folders = [path for path in (RUNS / name).glob('*') if path.name.isdecimal()]
  return Run(max(folders, key=lambda path: int(path.name))) if folders else None


class Guard:
  """Looks at one host every few seconds. It needs no launcher."""

  def __init__(self, number: int):
    """number: of this host in its slice."""
    self.number = number
    self.noticed = ''  # the notice that the run has answered
    self.stored = None  # the folder of the run whose end is in the bucket
    self.not_before = 0.0  # when to try again to remove the slice

  def look(self, facts: dict, now: float) -> None:
    """One look: may end the run, store how it ended, and remove the slice."""
    found = newest_run(facts['name'])
    if found and found.is_running:
      self.end_run(found, facts, now)
    elif found and self.stored != found.folder:
      self.store(found, facts)
    why = self.reason_to_remove(found, facts, now)
    if why and now >= self.not_before:
      self.remove(found, facts, why)

  def end_run(self, found: Run, facts: dict, now: float) -> None:
    """Ends a run at the deadline, and when the machine is about to go."""
    deadline = facts.get('deadline')
    if deadline and now >= deadline + facts['save']:
      say(f'{found.folder.name}: it has not ended {facts["save"]:.0f} seconds after the deadline: killed')
      found.kill(signal.SIGKILL)
    elif deadline and now >= deadline:
      if found.ask_to_end('limit'):
        say(f'{found.folder.name}: the deadline has come: SIGTERM, it saves and ends')
    else:
      notice = notices.read(now)
      if notice and notice != self.noticed and found.ask_to_end(notice):
        say(f'{found.folder.name}: {notice}: SIGTERM, it saves and ends')
      self.noticed = notice

  def store(self, found: Run, facts: dict) -> None:
    """Puts the run's log and its exit status into the bucket."""
    status = 137 if found.status is None else found.status
    end = {'status': status, 'why': found.why, 'time': found.ended_at}
    place = f'start-{found.folder.name}/{facts["node"]}.{self.number}'
    bucket = Bucket(facts['records'])
    try:
      bucket.upload(str(found.folder / 'log'), f'{place}.log')
      bucket.write(f'{place}.json', json.dumps(end))
    except (Failed, OSError) as error:
      say(f'the log is not in the bucket yet: {error}')
      return
    self.stored = found.folder
    say(f'{found.folder.name}: ended with {status}; its log is in {bucket.address(place)}.log')

  def reason_to_remove(self, found: Run | None, facts: dict, now: float) -> str:
    """'limit', 'ended', 'idle', or '' while the slice stays."""
    wait = facts['stagger'] * (facts['nodes'].index(facts['node']) * facts['hosts'] + self.number)
    is_running = found is not None and found.is_running
    deadline, grace = facts.get('deadline'), facts.get('grace')
    if deadline and now >= deadline + wait + facts['linger'] and not is_running:
      return 'limit'
    if is_running or is_alive(RUNS / 'setup.pid') or grace is None:
      return ''
    quiet_since = max((RUNS / 'heard').stat().st_mtime, found.ended_at if found else 0)
    if now >= quiet_since + grace + wait:
      return 'ended' if found else 'idle'
    return ''

  def remove(self, found: Run | None, facts: dict, why: str) -> None:
    """Removes the slice, after writing down why. Where that is refused, it says so and tries again later."""
    bucket = Bucket(facts['records'])
    words = {'limit': 'a limit of the job was reached', 'ended': 'the run has ended', 'idle': 'nothing runs here'}[why]
    say(f'{words}, and no launcher has removed the slice: removing it')
    self.not_before = time.time() + RETRY
    try:
      if found and self.stored == found.folder:
        self._wait_for_others(found, facts, bucket)
      start = int(found.folder.name) if found else 0
      bucket.write('removed.json', json.dumps({'time': time.time(), 'why': why, 'start': start}))
    except (Failed, OSError) as error:
      say(f'the reason is not in the bucket: {error}')
    try:
      run(facts['remove'])
      say('the slice is being removed')
    except Failed as error:
      say(f'THE SLICE STAYS AND COSTS MONEY: this host cannot remove it: {error}; delete it with `delete`')
      try:
        bucket.remove('removed.json')
        bucket.upload(str(RUNS / 'guard.log'), f'guard-{facts["node"]}.{self.number}.log')
      except (Failed, OSError) as problem:
        say(f'and the bucket does not answer: {problem}')

  def _wait_for_others(self, found: Run, facts: dict, bucket: Bucket) -> None:
    """Until the logs of all hosts are in the bucket, for `stagger` seconds at most: one of them may be gone."""
    until = time.time() + facts['stagger']
    names = [f'start-{found.folder.name}/{node}.{i}.json' for node in facts['nodes'] for i in range(facts['hosts'])]
    while names and time.time() < until:
      names = [name for name in names if bucket.read(name) is None]
      time.sleep(1 if names else 0)


def guard(number: int) -> None:
  """Looks every few seconds for as long as this machine runs. There is one on each host."""
  lock = open(RUNS / 'guard.lock', 'w')  # noqa: SIM115 - held until this process ends
  for _ in range(15):
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      break
    except OSError:  # another guard is at work; or worker.sh looks for a moment whether one is
      time.sleep(0.2)
  else:
    return
  write(RUNS / 'guard.pid', str(os.getpid()))
  watcher = Guard(number)
  while (RUNS / 'facts.json').exists():
    facts = read_facts(RUNS / 'facts.json')
    try:
      watcher.look(facts, time.time())
    except Exception as error:  # whatever happens, a guard goes on
      say(f'{type(error).__name__}: {error}')
    time.sleep(facts.get('poll', 5))


if __name__ == '__main__':
  if sys.argv[1] == 'watch':
    watch(pathlib.Path(sys.argv[2]), sys.argv[3:])
  else:
    guard(int(sys.argv[2]))
