"""Takes a job to its end: requests slices, sets them up, runs, and requests them again after preemptions.

The run continues in the background of the hosts. A launcher that was killed, or lost its connection, continues the job
from where the ledger and the cloud say that it is.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from launch.tpu import ledger
from launch.tpu.cloud import Cloud, Later, Refused, say
from launch.tpu.follow import Logs, RunReader, lines
from mathqwen.errors import UserError

AGAIN = os.EX_TEMPFAIL  # 75: how `mathqwen train` ends after saving on SIGTERM, or when another host was lost
GONE = ('lost', 'leaving', 'none')  # states of a slice that does not come back by itself
STATUS = {'done': 0, 'again': AGAIN, 'failed': 1}
KILLED = (None, 129, 137, 143, 255)  # of a process on a host that goes down (128 + signal), and of ssh to that host
CONNECTIONS = 10  # tries to reach the hosts of a slice that is there, before they count as lost
QUESTIONS = 20  # tries to ask a cloud that does not answer
MAX_PAUSE = 600  # seconds between tries
SAVE_SECONDS = 900  # in which a run must save and end when a limit is reached
SETUPS = 3  # tries to install on one slice


class Limit(Exception):
  """The job has reached one of its limits and must end."""


def decide(statuses: dict[str, int | None]) -> str:
  """'done', 'again' or 'failed', from the exit status of every host; None for a host that was lost without one.

  A killed host or a lost slice restarts the job with growing delays. Any other status is a failure.
  """
  values = set(statuses.values())
  if values == {0}:
    return 'done'
  if values <= {0, AGAIN, *KILLED}:
    return 'again'
  return 'failed'


class Babysitter:
  """Watches over one job."""

  def __init__(self, cloud: Cloud, book: ledger.Ledger, settings: dict, pace: float = 30):
    """settings: of training, as `plan` chose them. pace: seconds between questions to the cloud."""
    self.cloud = cloud
    self.job = cloud.job
    self.book = book
    self.settings = settings
    self.pace = pace

  def run(self) -> int:
    """The whole job. Returns 0 when it is done, 75 when `stop` or a limit ended it and `up` can continue, 1 otherwise.

    UserError: for what the user must fix; it says when a slice is left that costs money.
    """
    try:
      return self._run()
    except UserError as error:
      if self.book.here is None:
        raise
      is_there = self.book.newest('asked', 'active') == 'active'
      state = 'the slice is still there and costs money' if is_there else 'the slice is still requested'
      raise UserError(f'{error}; {state}: `up` continues, `delete` ends it') from None

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Locks the job, so that no other launcher can watch it. UserError: when one already does."""
    with open(self.book.folder / 'lock', 'w') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        raise UserError(f'another launcher is already watching {self.job.name}') from None
      yield

  def _run(self) -> int:
    """`run`, without what it adds to a UserError."""
    self.book.add('up')
    outcome = 'again'
    fruitless = 0  # attempts in a row that took no new step
    try:
      while outcome == 'again':
        self._check_limits()
        before = self.book.reached
        is_ready = self.have_slice() and self.set_up() and not self._stopped()
        outcome = self._attempt() if is_ready else 'again'
        fruitless = 0 if self.book.reached > before else fruitless + 1
        if outcome == 'again' and self._stopped():
          outcome = 'stopped'
        elif outcome == 'again' and fruitless:
          self._pause(min(self.pace * 2 ** min(fruitless - 1, 20), MAX_PAUSE))
    except Limit as limit:
      outcome = f'stopped: {limit}'
      say(f'{limit}: saving and stopping')
      if self.book.under_way:
        self.on_all('stop')
        self.follow(patience=SAVE_SECONDS)
    self.delete()
    say(f'{outcome}: {self.summary().text()}; logs in {self.book.folder}')
    return STATUS.get(outcome, AGAIN)

  def summary(self) -> ledger.Summary:
    """What the job came to so far."""
    return ledger.summary(self.book.events(), self.job.where.chips, self.job.price_per_chip_hour, time.time())

  # The slice

  def have_slice(self) -> bool:
    """Requests the slice if there is none, and waits for it. Returns whether it is ready."""
    reported = None
    state = self._insist(self.cloud.state)
    if state == 'none' and self.book.newest('active', 'gone', 'deleted') == 'active':
      self.book.add('gone')  # deleted by somebody else
    if state == 'none' and not self._stopped():
      self._ask()
      state = self._insist(self.cloud.state)
    while state in ('waiting', 'leaving') and not self._stopped():
      if state != reported:
        say({'waiting': 'waiting in the queue', 'leaving': 'an earlier slice is being deleted'}[state])
      reported = state
      self._check_limits()
      time.sleep(self.pace)
      state = self._insist(self.cloud.state)
    if state == 'lost':
      self._lost()
    if state != 'ready':
      return False
    if self.book.newest('active', 'gone', 'deleted') != 'active':
      self.book.add('active')
      say(f'{self.job.slice} is ready')
    return True

  def _ask(self):
    """Requests the slice. Limit: after `max_tries` requests."""
    if (asked := self.book.count('asked')) >= self.job.max_tries:
      raise Limit(f'{asked} slices were requested (max_tries = {self.job.max_tries})')
    self.book.add('asked', slice=self.job.slice, zone=self.job.zone, queue=self.job.queue)
    say(f'requesting {self.job.slice} in {self.job.zone}, {self.job.provisioning}')
    try:
      self.cloud.create()
    except (UserError, Later) as error:
      # ALREADY_EXISTS: an earlier `create` succeeded, but its answer was lost.
      if isinstance(error, UserError) and 'ALREADY_EXISTS' not in str(error):
        self.book.add('deleted')
        raise
      say(f'not available now: {error}')

  def set_up(self) -> bool:
    """Installs on every host, once for each slice. Returns False when the slice is lost in the meantime.

    UserError: when it fails `SETUPS` times; the slice is deleted then.
    """
    if self.book.newest('active', 'ready') == 'ready':
      return True
    for tried in range(SETUPS):
      say('installing on every host')
      try:
        self.cloud.setup(self.book.folder)
        self.book.add('ready')
        return True
      except (UserError, Later) as error:
        say(f'the hosts could not be set up: {error}')
      if self._insist(self.cloud.state) != 'ready' or self._stopped():
        return False
      self._pause(self.pace * 2**tried)
    self.delete()
    raise UserError('the hosts could not be set up; the slice was deleted, and nothing has run')

  def _lost(self):
    """Deletes what is left of a slice that was taken away, so that it can be requested again.

    Refused: when the request has failed for a reason that stays.
    """
    refusal = None
    if self.book.newest('active', 'gone', 'deleted') == 'active':
      self.book.add('gone')
      say('the slice was taken away')
    else:
      refusal = self._insist(self.cloud.failure)
      say(f'the request has failed: {refusal.text()}' if refusal else 'the request has failed or expired')
    self.delete()
    if refusal and refusal.permanent:
      raise Refused(refusal.text())

  def delete(self) -> None:
    """Deletes the slice, or its request."""
    self._insist(self.cloud.delete)
    self.book.add('deleted')

  # The run

  def _attempt(self) -> str:
    """Starts the run or continues to follow it, until it ends. Returns its outcome."""
    self.start()
    outcome = self.follow()
    deadline = time.monotonic() + 4 * self.pace  # by then the state of a slice that is being taken away shows it
    while outcome == 'again' and not self._stopped() and time.monotonic() < deadline:
      if self._insist(self.cloud.state) in GONE:
        self._lost()
        break
      self._pause(self.pace)
    return outcome

  def start(self) -> bool:
    """Starts the run on every host where it is not running yet. Returns whether every host was reached."""
    if not self.book.under_way:
      if (starts := self.book.count('started')) >= self.job.max_tries:
        raise Limit(f'started {starts} times (max_tries = {self.job.max_tries})')
      self.book.add('started')
      say(f'start {starts + 1}: {" ".join(self.job.train(self.settings))}')
    return self.on_all('start', self.job.train(self.settings))

  def on_all(self, verb: str, words: list[str] = ()) -> bool:
    """Calls worker.sh on every host. Returns whether every host was reached."""
    try:
      self.cloud.on_all(verb, self.book.count('started'), words)
      return True
    except (UserError, Later) as error:
      say(f'{verb}: not every host was reached: {error}')
      return False

  def follow(self, patience: float | None = None) -> str:
    """Prints and stores what the hosts say until all have ended or the slice is lost; then 'done', 'again' or 'failed'.

    A broken connection is made again. patience: seconds after which to give up; None follows until a limit of the job.
    """
    deadline = None if patience is None else time.monotonic() + patience

    def may_continue() -> bool:
      if deadline is None:
        self._check_limits()
      elif time.monotonic() > deadline:
        return False
      return self._insist(self.cloud.state) not in GONE

    number = self.book.count('started')
    hosts = [f'{node}.{i}' for node in self.job.nodes for i in range(self.job.hosts)]
    logs = Logs(self.book.folder / f'start-{number}')
    reader = RunReader(logs, hosts[0], self._catch_up())
    is_there = True
    for _ in range(CONNECTIONS):
      logs.begin()
      for node, line in lines(self.cloud.follow(number), self.pace, may_continue):
        reader.read(node, line)
      if len(reader.statuses) >= len(hosts):
        break
      is_there = may_continue()
      if not is_there:
        break
      time.sleep(self.pace)
    return self._note_end(number, dict.fromkeys(hosts) | reader.statuses, reader, is_there)

  def _catch_up(self) -> Callable[[int], None]:
    """The `on_step` of `RunReader`: notes in the ledger when this attempt has come as far as the one before."""
    behind = self.book.behind

    def on_step(step: int) -> None:
      nonlocal behind
      if behind is not None and step >= behind:
        self.book.add('step', step=step)
        behind = None

    return on_step

  def _note_end(self, number: int, statuses: dict[str, int | None], reader: RunReader, is_there: bool) -> str:
    """Decides the outcome of an attempt and writes it down. is_there: whether the slice was, a moment ago."""
    outcome = decide(statuses)
    if outcome == 'failed' and is_there:
      time.sleep(self.pace)  # the state of a slice that is being taken away may show it a moment later
      is_there = self._insist(self.cloud.state) not in GONE
    if outcome == 'failed' and not is_there:
      outcome = 'again'  # while a slice goes down, processes die with all sorts of statuses

    self.book.add(
      'ended',
      outcome=outcome,
      statuses=statuses,
      step=max(reader.step, reader.result.get('step') or 0),
      step_time=reader.step_time,
      tokens=reader.result.get('tokens'),
    )
    listed = ', '.join(f'{host} {"lost" if status is None else status}' for host, status in sorted(statuses.items()))
    slice_too = '' if is_there else ', and its slice is gone'
    say(f'start {number} ended{slice_too}: {outcome} (exit status: {listed})')
    return outcome

  # Limits

  def _check_limits(self):
    """Limit: when the job has cost or run as much as it may."""
    so_far = self.summary()
    hours = so_far.chip_hours / self.job.where.chips
    for what, spent, limit in (
      ('the cost', so_far.cost or 0, self.job.max_cost),
      ('the hours of the slice', hours, self.job.max_hours),
    ):
      if limit and spent >= limit:
        raise Limit(f'{what} reached {spent:,.2f}, the limit is {limit:,.2f}')

  def _pause(self, seconds: float):
    """Sleeps, and checks the limits and `stop` in the meantime."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not self._stopped():
      self._check_limits()
      time.sleep(min(left, self.pace))

  def _stopped(self) -> bool:
    return self.book.newest('up', 'stop') == 'stop'

  def _insist(self, ask: Callable[[], Any]) -> Any:
    """What `ask()` returns, from a cloud that may need several tries. UserError: when it does not answer at all."""
    for tried in range(QUESTIONS):
      try:
        return ask()
      except Later as error:
        failure = error
        time.sleep(min(self.pace * 2**tried, MAX_PAUSE))
    raise UserError(f'the cloud does not answer: {failure}; the same command continues the job')
