"""Takes a job to its end: requests slices, sets them up, runs, and requests them again after preemptions.

The run continues in the background of the hosts, which end it at its limits and remove the slice (host.py). A launcher
that was killed, or lost its connection, continues the job from where the ledger, the cloud and the hosts' records in
the bucket say that it is.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from launch.tpu import commands, facts, ledger
from launch.tpu.cloud import Cloud, Later, say
from launch.tpu.follow import Logs, RunReader, lines
from launch.tpu.slices import Keeper, Limit
from mathqwen.errors import UserError

AGAIN = os.EX_TEMPFAIL  # 75: how `mathqwen train` ends after saving on SIGTERM, or when another host was lost
GONE = ('lost', 'leaving', 'none')  # states of a slice that does not come back by itself
STATUS = {'done': 0, 'again': AGAIN, 'failed': 1}
KILLED = (None, 129, 137, 143, 255)  # of a process on a host that goes down (128 + signal), and of ssh to that host
CONNECTIONS = 10  # tries to reach the hosts of a slice that is there, before they count as lost
SETUPS = 3  # tries to install on one slice
WORKER = 'worker.sh: '  # how a line of a host begins that the user must read


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


class Babysitter(Keeper):
  """Watches over one job."""

  def __init__(self, cloud: Cloud, book: ledger.Ledger, settings: dict, pace: float = 30):
    """settings: of training, as `plan` chose them. pace: seconds between questions to the cloud."""
    super().__init__(cloud, book, pace)
    self.settings = settings
    self.outcome = 'again'  # of a run that ended while no launcher was watching, after `catch_up`
    self.reason = ''  # why the hosts ended with status 2, in their own words

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
    self.catch_up()
    outcome = self.outcome
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
        elif outcome == 'again' and fruitless and self._round_ended:
          self._pause(min(self.pace * 2 ** min(fruitless - 1, 20), self._longest_pause()))
    except Limit as limit:
      outcome = f'stopped: {limit}'
      say(f'{limit}: saving and stopping')
      if self.book.under_way:
        self.on_all('stop')
        self.follow(patience=facts.SAVE_SECONDS)
    if self.book.here:
      self.delete()
    say(f'{outcome}: {self.summary().text()}; logs in {self.book.folder}')
    if outcome == 'failed' and self.reason:
      raise UserError(self.reason)
    return STATUS.get(outcome, AGAIN)

  # The hosts

  def set_up(self) -> bool:
    """Installs on every host, once for each slice. Returns False when the slice is lost in the meantime.

    UserError: when it fails `SETUPS` times; the slice is deleted then.
    """
    if self.book.newest('active', 'ready') == 'ready':
      return True
    for tried in range(SETUPS):
      say('installing on every host')
      try:
        printed = self.cloud.setup(self.book.folder, self.host_facts)
        for line in sorted(set(printed.splitlines())):
          if line.startswith(WORKER):
            say(line)
        self.book.add('ready')
        return True
      except (UserError, Later) as error:
        say(f'the hosts could not be set up: {error}')
        if WORKER in str(error):  # what a host itself refuses, it refuses again
          self.delete()
          raise UserError(f'{WORKER}{str(error).rpartition(WORKER)[2]}; the slice was deleted') from None
      if self._insist(self.cloud.state) != 'ready' or self._stopped():
        return False
      self._pause(self.pace * 2**tried)
    self.delete()
    raise UserError('the hosts could not be set up; the slice was deleted, and nothing has run')

  def host_facts(self, node: str) -> dict:
    """What the hosts of a node learn about the job, with the limits that are left now."""
    return commands.facts_of(self.job, node, self.pace, self.deadline())

  @property
  def hosts(self) -> list[str]:
    """NODE.NUMBER of every host."""
    return [f'{node}.{i}' for node in self.job.nodes for i in range(self.job.hosts)]

  # The run

  def catch_up(self):
    """Reads how a run ended whose slice the hosts have removed since: `outcome` is 'done', 'again' or 'failed' then."""
    if not self.book.under_way or self._insist(self.cloud.state) in ('ready', 'waiting'):
      return
    number = self.book.count('started')
    reader = RunReader(Logs(self.book.folder / f'start-{number}'), self.hosts[0], self._catch_up())
    self.outcome = self._note_end(number, dict.fromkeys(self.hosts), reader, is_there=False)
    self.note_absence()

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
      say(f'start {starts + 1}: {" ".join(facts.train(self.job, self.settings))}')
    return self.on_all('start', facts.train(self.job, self.settings))

  def on_all(self, verb: str, words: list[str] = ()) -> bool:
    """Calls worker.sh on every host. Returns whether every host was reached."""
    options = {'host_facts': self.host_facts} if verb == 'start' else {}
    try:
      self.cloud.on_all(verb, self.book.count('started'), words, **options)
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
    hosts = self.hosts
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
    ended = time.time()
    if not is_there and None in statuses.values():
      ended = self._read_ends(number, statuses, reader) or ended
    stored = None not in statuses.values()  # every host wrote down its own end: it was not cut off
    outcome = decide(statuses)
    if outcome == 'failed' and is_there:
      time.sleep(self.pace)  # the state of a slice that is being taken away may show it a moment later
      is_there = self._insist(self.cloud.state) not in GONE
      stored = stored and is_there
    if outcome == 'failed' and not is_there and not stored:
      outcome = 'again'  # while a slice goes down, processes die with all sorts of statuses
    if outcome == 'failed':
      self.reason = reader.reason(statuses)

    self.book.add(
      'ended',
      time=ended,
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

  def _read_ends(self, number: int, statuses: dict[str, int | None], reader: RunReader) -> float | None:
    """Fills in what the hosts stored in the bucket about the end of an attempt. Returns when the last one ended."""
    missing = [host for host, status in statuses.items() if status is None]
    ends = self._from_bucket(lambda: facts.ends(self.bucket, number, missing)) or {}
    for host, end in ends.items():
      statuses[host] = end['status']
      reader.read_log(host, end['log'], end['time'])
    return max((end['time'] for end in ends.values()), default=None)
