"""The output of a run's hosts: printed, stored in a file for each host, and read for steps and exit statuses."""

import collections
import contextlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from launch.tpu.cloud import redact, say

HOST_LINE = re.compile(r'\[(\d+)\] (.*)')  # as worker.sh writes them
HOST_END = re.compile(r'\[(\d+)\]= (\d+)')
STEP = re.compile(r'train (\d+)/\d+ (?!compiling)')


class Logs:
  """A file for each host. A new connection repeats the output from its first line; no line is stored twice."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    folder.mkdir(exist_ok=True)
    # {host: lines}
    self._stored = collections.Counter({file.stem: file.read_bytes().count(b'\n') for file in folder.glob('*.log')})
    self.begin()

  def begin(self) -> None:
    """A new connection: every host's output starts from its first line."""
    self._received = collections.Counter()

  def keep(self, host: str, text: str) -> bool:
    """Stores a line of a host. Returns whether it is new."""
    self._received[host] += 1
    if self._received[host] <= self._stored[host]:
      return False
    self._stored[host] += 1
    with open(self._folder / f'{host}.log', 'a') as file:
      file.write(redact(text) + '\n')
    return True


class RunReader:
  """Collects what the hosts print during one attempt at a run."""

  def __init__(self, logs: Logs, main_host: str, on_step: Callable[[int], None]):
    """main_host: 'NODE.HOST' whose steps and result are those of the run. on_step: called with each new step."""
    self.statuses: dict[str, int] = {}  # {'NODE.HOST': exit status}
    self.step = 0
    self.step_time = time.time()
    self.result = {}  # the JSON of `train --json`
    self._last_lines: dict[str, str] = {}  # {'NODE.HOST': the newest line}
    self._logs = logs
    self._main_host = main_host
    self._on_step = on_step

  def read(self, node: str, line: str) -> None:
    """Takes one line that a node has printed."""
    if ended := HOST_END.fullmatch(line):
      self.statuses[f'{node}.{ended[1]}'] = int(ended[2])
      return
    if not line:
      return
    from_host = HOST_LINE.fullmatch(line)
    if not from_host:
      say(f'[{node}] {line}')  # from gcloud itself
      return
    host, text = f'{node}.{from_host[1]}', from_host[2]
    self._take(host, text)

  def read_log(self, host: str, text: str, ended: float) -> None:
    """Takes the whole log of a host, from the bucket. ended: when that host did, in seconds since 1970."""
    for line in text.split('\n')[: -1 if text.endswith('\n') else None]:
      self._take(host, line.rstrip('\r').replace('\r', ' '))
    if host == self._main_host:
      self.step_time = min(self.step_time, ended)

  def reason(self, statuses: dict[str, int | None]) -> str:
    """The last line of a host that ended with 2, an error that the user can fix; '' when another one failed."""
    if not set(statuses.values()) <= {0, 2, 75, None}:
      return ''
    return next((f'host {host}: {self._last_lines.get(host, "")}' for host, got in statuses.items() if got == 2), '')

  def _take(self, host: str, text: str):
    if self._logs.keep(host, text):
      say(f'[{host}] {text}')
    if text.strip():
      self._last_lines[host] = text.removeprefix('mathqwen: ').removeprefix('worker.sh: ')
    if host == self._main_host:
      self._read_progress(text)

  def _read_progress(self, text: str):
    if text.startswith('{"step":'):  # the last line of `train --json`
      with contextlib.suppress(ValueError):  # the lines of two hosts may be mixed up
        self.result = json.loads(text)
    step = STEP.match(text)
    if step and int(step[1]) > self.step:
      self.step = int(step[1])
      self.step_time = time.time()
      self._on_step(self.step)


def lines(processes: dict[str, subprocess.Popen], pace: float, go_on: Callable[[], bool]) -> Iterator[tuple[str, str]]:
  """(node, line) as they arrive, until all outputs have ended or `go_on()` returns False; asked every `pace` seconds.

  processes: each started with `start_new_session=True`, because those that still run are ended with their children.
  """
  arrived = queue.Queue()

  def pump(node: str, process: subprocess.Popen):
    for line in process.stdout:  # bytes, because a lone \r must not end a line
      arrived.put((node, line.decode(errors='replace').rstrip('\r\n').replace('\r', ' ')))
    arrived.put((node, None))

  for node, process in processes.items():
    threading.Thread(target=pump, args=(node, process), daemon=True).start()
  running = set(processes)
  asked = time.monotonic()
  try:
    while running:
      if time.monotonic() - asked > pace:
        if not go_on():
          return
        asked = time.monotonic()
      try:
        node, line = arrived.get(timeout=min(pace, 1))
      except queue.Empty:
        continue
      if line is None:
        running.discard(node)
      else:
        yield node, line
  finally:
    for process in processes.values():
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # ssh may wait forever for a host that is gone
      process.wait()
