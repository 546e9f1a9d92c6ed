"""Runs gcloud: removes project ids and tokens from what is printed and stored, and knows which errors may pass."""

import functools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
from collections.abc import Callable

from launch.tpu import commands, redaction, refusals
from launch.tpu.job import ROOT, TpuJob
from mathqwen.errors import UserError, report

# Errors that may go away when the command is run again, in the words of gcloud and of the API.
LATER = re.compile(
  r'no more capacity|not enough (resources|capacity)|stockout|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|'
  r'(?-i:INTERNAL\b)|ABORTED|"code": (8|10|13|14)\b|HTTPError (429|5\d\d)|\'status\': \'?(429|5\d\d)|temporar|'
  r'timed? ?out|network connectivity issues|'
  r'connection (reset|refused|aborted)|unable to (connect|find the server)|could not be reached',
  re.IGNORECASE,
)
SETUP_SECONDS = 1800  # in which the hosts of a slice must install
STAGE_SECONDS = 4 * 3600  # in which the first of them must put data sets and model into the bucket
MISSING = re.compile(r'NOT_FOUND|not found|does not exist', re.IGNORECASE)


class Later(Exception):
  """gcloud failed, and the same command may succeed later."""


class Refused(UserError):
  """Google refused the slice, and the same request would be refused again in this zone."""


@functools.cache
def project() -> str:
  """The project gcloud is set to, which `redact` removes; '' when there is none, or no gcloud."""
  try:
    line = ['gcloud', 'config', 'get-value', 'project']
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''


def redact(text: str) -> str:
  """`text` without tokens, passwords and project ids."""
  return redaction.without_projects(redaction.without_secrets(text), project())


def say(text: str) -> None:
  """`report`, without secrets."""
  report(redact(text))


class Cloud:
  """The slices of one job."""

  def __init__(self, job: TpuJob):
    self.job = job

  def run(self, line: list[str], seconds: float = 600) -> str:
    """Runs a command and returns its standard output.

    UserError, or Later when trying again can help: with the command's own words. Later: after `seconds`.
    """
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
        if process.poll() is None:  # end it together with the ssh that it has started
          os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == 0:
      return out
    message = ' '.join(redact(err or out).split())[-600:]
    if LATER.search(message):
      raise Later(message)
    hint = 'run `gcloud auth login`: ' if 'gcloud auth' in message or 'UNAUTHENTICATED' in message else ''
    raise UserError(f'{hint}{shlex.join(line[:6])} ended with {process.returncode}: {message}')

  def create(self) -> None:
    """Requests the slices.

    Refused, or Later when trying again can help: with Google's reason and what to do. UserError: for any other failure.
    """
    try:
      self.run(commands.create(self.job))
    except (UserError, Later) as error:
      refusal = refusals.judge(str(error), job=self.job)
      if refusal.permanent is None:
        raise
      raise (Refused if refusal.permanent else Later)(refusal.text()) from None

  def failure(self) -> refusals.Refusal | None:
    """Why the queued request has failed; None where Google does not say."""
    text = self._describe(commands.queue_failure(self.job)) if self.job.queue else None
    state = (json.loads(text or 'null') or {}).get('state') or {}
    error = (state.get('failedData') or {}).get('error')
    return error and refusals.judge(error.get('message', ''), error.get('code'), self.job)

  def delete(self) -> None:
    """Deletes the slices with whatever runs on them. Does nothing when there are none."""
    try:
      self.run(commands.delete(self.job))
    except UserError as error:
      if not MISSING.search(str(error)):
        raise

  def state(self) -> str:
    """'none', 'waiting', 'ready', 'leaving', or 'lost' (taken away, failed or expired)."""
    states = []
    if self.job.queue:
      request = self._describe(commands.queue_state(self.job))
      if request is None:
        return 'none'
      states.append(request)
    # Until the request is granted, there are no nodes to look at.
    if states in ([], ['ACTIVE']):
      for node in self.job.nodes:
        state = self._describe(commands.node_state(self.job, node))
        if state is None and not self.job.queue:
          return 'none'
        states.append(state or 'TERMINATED')
    return combined(states)

  def _describe(self, line: list[str]) -> str | None:
    """The state that gcloud prints; None when there is no such thing."""
    try:
      return self.run(line).strip()
    except UserError as error:
      if not MISSING.search(str(error)):
        raise
      return None

  def source(self, folder: pathlib.Path) -> str:
    """Writes the newest commit as an archive into `folder`; returns its path."""
    file = str(folder / commands.SOURCE)
    self.run(commands.archive(file))
    if self.run(['git', '-C', str(ROOT), 'status', '--porcelain', '--untracked-files=no']).strip():
      say('uncommitted changes are left out: the hosts get the newest commit')
    return file

  def setup(self, folder: pathlib.Path, host_facts: Callable[[str], dict]) -> str:
    """Copies the checkout to every host and installs it; returns what the hosts print.

    folder: where the archive is written. host_facts: what the hosts of a node learn about the job.
    UserError: with the hosts' own words.
    """
    file = self.source(folder)
    printed = ''
    for node in self.job.nodes:
      self.run(commands.copy(self.job, node, file), SETUP_SECONDS)
      line = commands.ssh(self.job, node, commands.setup(self.job, host_facts(node)))
      printed += self.run(line, SETUP_SECONDS + (STAGE_SECONDS if node == self.job.nodes[0] else 0))
    return printed

  def on_all(
    self, verb: str, attempt: int, words: list[str] = (), host_facts: Callable[[str], dict] = lambda node: None
  ) -> str:
    """Runs worker.sh on every host of every slice; returns what they print. host_facts: as `setup` takes it."""
    printed = ''
    for node in self.job.nodes:
      command = commands.worker(self.job, verb, attempt, words, host_facts(node))
      printed += self.run(commands.ssh(self.job, node, command))
    return printed

  def follow(self, attempt: int) -> dict[str, subprocess.Popen]:
    """{node: a process whose standard output, in bytes, is that of the node's hosts}"""
    command = commands.worker(self.job, 'follow', attempt)
    processes = {}
    for node in self.job.nodes:
      line = commands.ssh(self.job, node, command)
      pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'stdin': subprocess.DEVNULL}
      processes[node] = subprocess.Popen(line, start_new_session=True, **pipes)
    return processes


def combined(states: list[str]) -> str:
  """One state of `Cloud.state` for the API's states of the queued resource and its TPU VMs."""
  if any(state in ('FAILED', 'SUSPENDING', 'SUSPENDED', 'PREEMPTED', 'TERMINATED', 'STOPPED') for state in states):
    return 'lost'
  if any(state in ('DELETING', 'STOPPING') for state in states):
    return 'leaving'
  return 'ready' if all(state in ('ACTIVE', 'READY') for state in states) else 'waiting'
