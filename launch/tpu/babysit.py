"""From a job to its end: slices are asked for, set up and run, and asked for again when they are taken away.

The run goes on in the hosts' background: a launcher that is killed, or loses its connection, takes up the job where
the ledger and the cloud say that it is.
"""

import contextlib
import fcntl
import os
import time

from launch.tpu import follow, ledger
from launch.tpu.cloud import Cloud, Later, say
from mathqwen.errors import UserError

AGAIN = os.EX_TEMPFAIL  # 75: `mathqwen train` ends so after a save on SIGTERM, and where another host was lost
AWAY = ('lost', 'leaving', 'none')  # states of a slice that does not come back by itself
STATUS = {'done': 0, 'again': AGAIN, 'failed': 1}
KILLED = (None, 129, 137, 143, 255)  # by a host that goes down, and by ssh to one
CONNECTIONS = 10  # to hosts of a slice that is there, before they count as lost
QUESTIONS = 20  # to a cloud that does not answer
MOST = 600  # seconds between tries
SAVE_SECONDS = 900  # that a run has to save and end when a limit is reached
SETUPS = 3  # tries, on one slice


class Limit(Exception):
  """The job may not go on."""


def decide(statuses: dict[str, int | None]) -> str:
  """done, again or failed, from the exit status of every host; None where none was told."""
  values = set(statuses.values())
  if values == {0}:
    return 'done'
  return 'failed' if values - {0, AGAIN, *KILLED} else 'again'


class Babysitter:
  def __init__(self, cloud: Cloud, book: ledger.Ledger, settings: dict, pace: float = 30):
    """settings: of training, as `plan` chose them. pace: seconds between questions to the cloud."""
    self.cloud, self.job, self.book, self.settings, self.pace = cloud, cloud.job, book, settings, pace

  def run(self) -> int:
    """Exit status: 0 done; 75 where `stop` or a limit ended it, and `up` may go on; 1 where it failed."""
    try:
      return self._run()
    except UserError as error:
      if self.book.here is None:
        raise
      what = (
        'the slice is still there, and costs' if self.book.newest('asked', 'active') == 'active' else 'it is asked for'
      )
      raise UserError(f'{error}; {what}: `up` takes it up, `delete` ends it') from None

  @contextlib.contextmanager
  def alone(self):
    """UserError where another launcher watches this job."""
    with open(self.book.folder / 'lock', 'w') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        raise UserError(f'another launcher watches {self.job.name} already') from None
      yield

  def _run(self) -> int:
    self.book.add('up')
    outcome, fruitless = 'again', 0  # tries in a row without a new step
    try:
      while outcome == 'again':
        self._check_limits()
        before = self.book.reached
        there = self.have_slice() and self.set_up() and not self._stopped()
        outcome = self._attempt() if there else 'again'
        fruitless = 0 if self.book.reached > before else fruitless + 1
        if outcome == 'again' and self._stopped():
          outcome = 'stopped'
        elif outcome == 'again' and fruitless:
          self._pause(min(self.pace * 2 ** min(fruitless - 1, 20), MOST))
    except Limit as limit:
      outcome = f'stopped: {limit}'
      say(f'{limit}: saving and ending')
      if self.book.under_way:
        self.on_all('stop')
        self.follow(patience=SAVE_SECONDS)
    self.delete()
    say(f'{outcome}: {self.summary().text()}; logs in {self.book.folder}')
    return STATUS.get(outcome, AGAIN)

  def summary(self) -> ledger.Summary:
    return ledger.summary(self.book.events(), self.job.where.chips, self.job.price_per_chip_hour, time.time())

  # The slice

  def have_slice(self) -> bool:
    """Asks for it where there is none, and waits for it. False where it is lost on the way."""
    said, state = None, self._insist(self.cloud.state)
    if state == 'none' and self.book.newest('active', 'gone', 'deleted') == 'active':
      self.book.add('gone')  # deleted by somebody else
    if state == 'none' and not self._stopped():
      self._ask()
      state = self._insist(self.cloud.state)
    while state in ('waiting', 'leaving') and not self._stopped():
      if state != said:
        say({'waiting': 'waiting in the queue', 'leaving': 'an earlier slice is being deleted'}[state])
      said = state
      self._check_limits()
      time.sleep(self.pace)
      state = self._insist(self.cloud.state)
    if state == 'lost':
      self._lost()
    if state != 'ready':
      return False
    if self.book.newest('active', 'gone', 'deleted') != 'active':
      self.book.add('active')
      say(f'{self.job.slice} is there')
    return True

  def _ask(self):
    if (asked := self.book.count('asked')) >= self.job.max_tries:
      raise Limit(f'{asked} slices were asked for (max_tries = {self.job.max_tries})')
    self.book.add('asked', slice=self.job.slice, zone=self.job.zone, queue=self.job.queue)
    say(f'asking for {self.job.slice} in {self.job.zone}, {self.job.provisioning}')
    try:
      self.cloud.create()
    except (UserError, Later) as error:
      if isinstance(error, UserError) and 'ALREADY_EXISTS' not in str(error):  # of a create whose answer was lost
        self.book.add('deleted')
        raise
      say(f'not now: {error}')

  def set_up(self) -> bool:
    """Installs on every host, once on each slice. False where the slice is lost meanwhile."""
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
    raise UserError('the slice is deleted; nothing was run')

  def _lost(self):
    """Taken away: what is left of it is deleted, so that it can be asked for again."""
    if self.book.newest('active', 'gone', 'deleted') == 'active':
      self.book.add('gone')
      say('the slice was taken away')
    else:
      say('the request came to nothing: it failed, or its time is over')
    self.delete()

  def delete(self):
    self._insist(self.cloud.delete)
    self.book.add('deleted')

  # The run

  def _attempt(self) -> str:
    """Starts the run, or takes up the one under way; follows it to its end, and the slice to its own."""
    self.start()
    outcome = self.follow()
    deadline = time.monotonic() + 4 * self.pace  # by then a slice that is being taken away says so
    while outcome == 'again' and not self._stopped() and time.monotonic() < deadline:
      if self._insist(self.cloud.state) in AWAY:
        self._lost()
        break
      self._pause(self.pace)
    return outcome

  def start(self) -> bool:
    """On every host; one on which it goes on already leaves it at that."""
    if not self.book.under_way:
      if (starts := self.book.count('started')) >= self.job.max_tries:
        raise Limit(f'started {starts} times (max_tries = {self.job.max_tries})')
      self.book.add('started')
      say(f'start {starts + 1}: {" ".join(self.job.train(self.settings))}')
    return self.on_all('start', self.job.train(self.settings))

  def on_all(self, verb: str, words: list[str] = ()) -> bool:
    """Whether every host was reached."""
    try:
      self.cloud.on_all(verb, self.book.count('started'), words)
      return True
    except (UserError, Later) as error:
      say(f'{verb}, not on every host: {error}')
      return False

  def follow(self, patience: float | None = None) -> str:
    """done, again or failed, when all hosts have ended or the slice is lost. A broken connection is made again.

    patience: seconds after which it is left; without, the job's limits hold.
    """
    until = time.monotonic() + (patience or 0)
    number, behind = self.book.count('started'), self.book.behind
    logs = follow.Logs(self.book.folder / f'start-{number}')

    def caught_up(step):
      nonlocal behind
      if behind is not None and step >= behind:
        self.book.add('step', step=step)
        behind = None

    def go_on():
      if patience is None:
        self._check_limits()
      elif time.monotonic() > until:
        return False
      return self._insist(self.cloud.state) not in AWAY

    hosts = [f'{node}.{i}' for node in self.job.nodes for i in range(self.job.hosts)]
    reader, there = follow.Reader(logs, hosts[0], caught_up), True
    for _ in range(CONNECTIONS):
      logs.begin()
      for node, line in follow.lines(self.cloud.follow(number), self.pace, go_on):
        reader.read(node, line)
      if len(reader.statuses) >= len(hosts) or not (there := go_on()):
        break
      time.sleep(self.pace)
    statuses = dict.fromkeys(hosts) | reader.statuses
    outcome = decide(statuses)
    if outcome == 'failed' and there:
      time.sleep(self.pace)  # a slice that is being taken away may say so a moment later
      there = self._insist(self.cloud.state) not in AWAY
    if outcome == 'failed' and not there:
      outcome = 'again'  # processes die of all sorts of things then
    step = max(reader.step, reader.result.get('step') or 0)
    tokens = reader.result.get('tokens')
    self.book.add('ended', outcome=outcome, statuses=statuses, step=step, step_time=reader.step_time, tokens=tokens)
    told = ', '.join(f'{host} {"lost" if status is None else status}' for host, status in sorted(statuses.items()))
    say(f'start {number} ended{"" if there else ", its slice too"}: {outcome} (exit status: {told})')
    return outcome

  # Limits

  def _check_limits(self):
    so_far = self.summary()
    for what, spent, most in (
      ('the cost', so_far.cost or 0, self.job.max_cost),
      ('the hours of the slice', so_far.chip_hours / self.job.where.chips, self.job.max_hours),
    ):
      if most and spent >= most:
        raise Limit(f'{what} came to {spent:,.2f}, of {most:,.2f} at most')

  def _pause(self, seconds: float):
    """Sleeps, and looks at limits and `stop` meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not self._stopped():
      self._check_limits()
      time.sleep(min(left, self.pace))

  def _stopped(self) -> bool:
    return self.book.newest('up', 'stop') == 'stop'

  def _insist(self, ask):
    """Its answer, from a cloud that may not answer at once."""
    for tried in range(QUESTIONS):
      try:
        return ask()
      except Later as error:
        failure = error
        time.sleep(min(self.pace * 2**tried, MOST))
    raise UserError(f'the cloud does not answer: {failure}; the same command takes up the job')
