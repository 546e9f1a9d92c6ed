"""What the hosts of a run say: shown, kept in a file for each host, and read for steps and exit statuses."""

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
  """A file for each host. A connection that is made again repeats everything from the first line on."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    folder.mkdir(exist_ok=True)
    self._kept = collections.Counter({file.stem: file.read_bytes().count(b'\n') for file in folder.glob('*.log')})
    self.begin()

  def begin(self):
    self._come = collections.Counter()

  def keep(self, host: str, text: str) -> bool:
    """Whether it is new."""
    self._come[host] += 1
    if self._come[host] <= self._kept[host]:
      return False
    self._kept[host] += 1
    with open(self._folder / f'{host}.log', 'a') as file:
      file.write(redact(text) + '\n')
    return True


class Reader:
  """Collects what one attempt at a run tells."""

  def __init__(self, logs: Logs, first: str, on_step: Callable[[int], None]):
    """first: the host that speaks for the run."""
    self.statuses: dict[str, int] = {}  # of 'NODE.HOST'
    self.step, self.step_time, self.result = 0, time.time(), {}
    self._logs, self._first, self._on_step = logs, first, on_step

  def read(self, node: str, line: str):
    if ended := HOST_END.fullmatch(line):
      self.statuses[f'{node}.{ended[1]}'] = int(ended[2])
      return
    spoken = HOST_LINE.fullmatch(line)
    if not line:
      return
    if not spoken:
      say(f'[{node}] {line}')  # gcloud's own words
      return
    host, text = f'{node}.{spoken[1]}', spoken[2]
    new = self._logs.keep(host, text)
    if new:
      say(f'[{host}] {text}')
    if host != self._first:
      return
    if text.startswith('{"step":'):  # what `train --json` prints at its end
      with contextlib.suppress(ValueError):  # lines of two hosts may have run into each other
        self.result = json.loads(text)
    step = STEP.match(text)
    if step and int(step[1]) > self.step:
      self.step, self.step_time = int(step[1]), time.time()
      self._on_step(self.step)


def lines(processes: dict[str, subprocess.Popen], pace: float, go_on: Callable[[], bool]) -> Iterator[tuple[str, str]]:
  """(node, line) as they come, until all outputs have ended or `go_on`, asked every `pace` seconds, says no.

  processes: each started with `start_new_session=True`, for those that go on are ended with all that they started.
  """
  come = queue.Queue()

  def pump(node, process):
    for line in process.stdout:  # bytes: a lone \r is no end of a line
      come.put((node, line.decode(errors='replace').rstrip('\r\n').replace('\r', ' ')))
    come.put((node, None))

  for node, process in processes.items():
    threading.Thread(target=pump, args=(node, process), daemon=True).start()
  running, asked = set(processes), time.monotonic()
  try:
    while running:
      if time.monotonic() - asked > pace:
        if not go_on():
          return
        asked = time.monotonic()
      try:
        node, line = come.get(timeout=min(pace, 1))
      except queue.Empty:
        continue
      if line is None:
        running.discard(node)
      else:
        yield node, line
  finally:
    for process in processes.values():
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # ssh may wait for ever for a host that is gone
      process.wait()
