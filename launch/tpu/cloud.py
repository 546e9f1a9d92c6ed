"""Runs gcloud: what it says is shown and kept without project ids and tokens, and its failures are told apart."""

import functools
import os
import re
import shlex
import signal
import subprocess
import sys

from launch.tpu import commands
from launch.tpu.job import ROOT, Job
from mathqwen.errors import UserError

# Keys and tokens of Google, Hugging Face, OpenAI and GitHub; what stands before the @ of an address.
SECRET = re.compile(
  r'ya29\.[\w.-]+|AIza[\w-]{30,}|\bhf_\w{10,}|\bsk-[\w-]{10,}|\bgh[pousr]_\w{10,}|(?<=://)[^/\s@]+:[^/\s@]+(?=@)'
)
PROJECT = re.compile(
  r'(?<=projects/)[a-z0-9.:-]+|(?<=@)[a-z0-9.:-]+(?=\.iam\.gserviceaccount\.com)|(?<=--project[= ])\S+'
)
# What may go away when one asks again later, in the words of gcloud and of the API.
LATER = re.compile(
  r'no more capacity|not enough (resources|capacity)|stockout|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|'
  r'(?-i:INTERNAL\b)|ABORTED|"code": (8|10|13|14)\b|HTTPError (429|5\d\d)|\'status\': \'?(429|5\d\d)|temporar|'
  r'timed? ?out|network connectivity issues|'
  r'connection (reset|refused|aborted)|unable to (connect|find the server)|could not be reached',
  re.IGNORECASE,
)
SETUP_SECONDS = 1800  # for the hosts of a slice to install
MISSING = re.compile(r'NOT_FOUND|not found|does not exist', re.IGNORECASE)


class Later(Exception):
  """gcloud failed by what may go away."""


@functools.cache
def project() -> str:
  """gcloud's own, only so that it can be left out of what is said; '' where there is none, or no gcloud."""
  try:
    line = ['gcloud', 'config', 'get-value', 'project']
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''


def redact(text: str) -> str:
  text = PROJECT.sub('PROJECT', SECRET.sub('SECRET', text))
  return text.replace(project(), 'PROJECT') if project() else text


def say(text: str):
  print(redact(text), file=sys.stderr, flush=True)


class Cloud:
  """One job's slices."""

  def __init__(self, job: Job):
    self.job = job

  def run(self, line: list[str], seconds: float = 600) -> str:
    """What it prints on standard output. UserError, or Later, in its own words; Later as well after `seconds`."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'stdin': subprocess.DEVNULL}
    try:
      process = subprocess.Popen(line, text=True, errors='replace', start_new_session=True, **pipes)
    except FileNotFoundError:
      raise UserError(f'{line[0]} is not installed: cloud.google.com/sdk/docs/install') from None
    with process:
      try:
        out, err = process.communicate(timeout=seconds)
      except subprocess.TimeoutExpired:
        raise Later(f'{shlex.join(line[:6])} did not answer within {seconds:,.0f} seconds') from None
      finally:
        if process.poll() is None:  # with the ssh that it started
          os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == 0:
      return out
    said = ' '.join(redact(err or out).split())[-600:]
    if LATER.search(said):
      raise Later(said)
    hint = 'run `gcloud auth login`: ' if 'gcloud auth' in said or 'UNAUTHENTICATED' in said else ''
    raise UserError(f'{hint}{shlex.join(line[:6])} ended with {process.returncode}: {said}')

  def create(self):
    self.run(commands.create(self.job))

  def delete(self):
    """Also where there is nothing."""
    try:
      self.run(commands.delete(self.job))
    except UserError as error:
      if not MISSING.search(str(error)):
        raise

  def state(self) -> str:
    """none, lost (taken away, failed, its time over), leaving, waiting or ready."""
    try:
      states = [self.run(commands.queue_state(self.job)).strip()] if self.job.queue else []
    except UserError as error:
      if MISSING.search(str(error)):
        return 'none'
      raise
    if states in ([], ['ACTIVE']):
      for node in self.job.nodes:
        try:
          states.append(self.run(commands.node_state(self.job, node)).strip())
        except UserError as error:
          if not MISSING.search(str(error)):
            raise
          if not self.job.queue:
            return 'none'
          states.append('TERMINATED')
    return combined(states)

  def source(self, folder) -> str:
    """The commit that is checked out, as an archive in `folder`."""
    file = str(folder / commands.SOURCE)
    self.run(commands.archive(file))
    if self.run(['git', '-C', str(ROOT), 'status', '--porcelain', '--untracked-files=no']).strip():
      say('changes that are not committed stay here: the hosts get the newest commit')
    return file

  def setup(self, folder):
    """Sends the checkout to every host and installs it. UserError with the hosts' words."""
    file = self.source(folder)
    for node in self.job.nodes:
      self.run(commands.copy(self.job, node, file), SETUP_SECONDS)
      self.run(commands.ssh(self.job, node, commands.setup(self.job)), SETUP_SECONDS)

  def on_all(self, verb: str, attempt: int, words: list[str] = ()) -> str:
    """worker.sh on every host of every slice; what they say."""
    command = commands.worker(self.job, verb, attempt, words)
    return ''.join(self.run(commands.ssh(self.job, node, command)) for node in self.job.nodes)

  def follow(self, attempt: int) -> dict[str, subprocess.Popen]:
    """A process for each node, whose standard output, in bytes, is that of its hosts."""
    command, processes = commands.worker(self.job, 'follow', attempt), {}
    for node in self.job.nodes:
      line = commands.ssh(self.job, node, command)
      pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'stdin': subprocess.DEVNULL}
      processes[node] = subprocess.Popen(line, start_new_session=True, **pipes)
    return processes


def combined(states: list[str]) -> str:
  """Of the queued resource and its TPU VMs, in the words of the API."""
  if any(state in ('FAILED', 'SUSPENDING', 'SUSPENDED', 'PREEMPTED', 'TERMINATED', 'STOPPED') for state in states):
    return 'lost'
  if any(state in ('DELETING', 'STOPPING') for state in states):
    return 'leaving'
  return 'ready' if all(state in ('ACTIVE', 'READY') for state in states) else 'waiting'
