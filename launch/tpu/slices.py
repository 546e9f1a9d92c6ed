"""The slice of a job: requested in one zone after the other, watched, and removed, within the limits of the job."""

import time
from collections.abc import Callable
from typing import Any

from launch.tpu import facts, ledger
from launch.tpu.bucket import Bucket
from launch.tpu.cloud import Cloud, Later, Refused, say
from launch.tpu.job import duration_seconds
from mathqwen.errors import UserError

QUESTIONS = 20  # tries to ask a cloud that does not answer
MAX_PAUSE = 600  # seconds between tries
REMOVALS = {
  'limit': 'a limit of the job was reached',
  'ended': 'the run had ended, and no launcher came',
  'idle': 'nothing ran there, and no launcher came',
}


class Limit(Exception):
  """The job has reached one of its limits and must end."""


class Keeper:
  """Has one job's slice."""

  def __init__(self, cloud: Cloud, book: ledger.Ledger, pace: float):
    """pace: seconds between questions to the cloud."""
    self.cloud = cloud
    self.job = cloud.job
    self.book = book
    self.pace = pace
    self._refused: set[str] = set()  # zones that will not give the slice
    self._round_ended = True  # whether every zone was asked since the newest pause
    if book.here and book.here['zone'] in self.job.all_zones:
      self._use(book.here['zone'])

  # Limits

  def summary(self) -> ledger.Summary:
    """What the job came to so far."""
    return ledger.summary(self.book.events(), self.job.where.chips, self.job.price_per_chip_hour, time.time())

  def deadline(self) -> float | None:
    """When the job reaches its next limit, in seconds since 1970; None when it has none."""
    so_far = self.summary()
    left = []  # hours
    if self.job.max_hours:
      left.append(self.job.max_hours - so_far.chip_hours / self.job.where.chips)
    if self.job.max_cost:
      left.append((self.job.max_cost - so_far.cost) / self.job.price_per_chip_hour / self.job.where.chips)
    return time.time() + min(left) * 3600 if left else None

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

  # The slice

  def have_slice(self) -> bool:
    """Requests the slice if there is none, and waits for it. Returns whether it is ready."""
    reported = None
    state = self._insist(self.cloud.state)
    if state == 'none' and self.book.newest('active', 'gone', 'deleted') == 'active':
      self.note_absence()
    if state == 'none' and not self._stopped():
      self._ask()
      state = self._insist(self.cloud.state)
      if state == 'none' and self.book.here:  # the request was not taken
        self.book.add('deleted')
        self._move_on()
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
      self._round_ended = True
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
    except Later as error:
      say(f'not available now: {error}')
    except Refused as error:
      self.book.add('deleted')
      self._refuse(error)
    except UserError as error:
      # ALREADY_EXISTS: an earlier `create` succeeded, but its answer was lost.
      if 'ALREADY_EXISTS' not in str(error):
        self.book.add('deleted')
        raise

  def _lost(self):
    """Deletes what is left of a slice that was taken away or not given, so that it can be requested again.

    Refused: when the request has failed for a reason that stays, and there is no other zone.
    """
    was_there = self.book.newest('active', 'gone', 'deleted') == 'active'
    if was_there:
      self.note_absence()
      refusal = None
    else:
      refusal = self._insist(self.cloud.failure)
      say(f'the request has failed: {refusal.text()}' if refusal else 'the request has failed or expired')
    if self.book.here:
      self.delete()
    if refusal and refusal.permanent:
      self._refuse(Refused(refusal.text()))
    elif not was_there:
      self._move_on()

  def _refuse(self, refusal: Refused):
    """Leaves out the zone from now on. Raises `refusal` when no other one is left."""
    self._refused.add(self.job.zone)
    if set(self.job.all_zones) <= self._refused:
      raise refusal
    say(f'{self.job.zone} will not give {self.job.slice}: {refusal}')
    self._move_on()

  def _move_on(self):
    """Takes the next zone for the next request."""
    zones = [zone for zone in self.job.all_zones if zone not in self._refused or zone == self.job.zone]
    place = zones.index(self.job.zone) + 1
    self._round_ended = place >= len(zones)
    following = [zone for zone in zones[place:] + zones[:place] if zone not in self._refused]
    self._use(following[0])

  def _use(self, zone: str):
    self.job = self.cloud.job = self.job.in_zone(zone)

  def delete(self) -> None:
    """Deletes the slice, or its request."""
    self._insist(self.cloud.delete)
    self.book.add('deleted')

  # What its hosts wrote down

  @property
  def bucket(self) -> Bucket:
    """What the hosts wrote down about the job."""
    return Bucket(facts.records(self.job), self.cloud.run)

  def note_absence(self):
    """Writes down that the slice is gone; where its hosts removed it, since when, and why."""
    removal = self._from_bucket(lambda: facts.removal(self.bucket, since=self.book.last('asked')['time']))
    if removal:
      self.book.add('deleted', time=removal['time'], why=removal['why'])
      say(f'the hosts have removed the slice: {REMOVALS[removal["why"]]}')
    else:
      self.book.add('gone')
      say('the slice was taken away')

  def _from_bucket(self, read: Callable[[], Any]) -> Any:
    """What `read()` returns; None, and a line, when this machine may not read the bucket."""
    try:
      return self._insist(read)
    except (UserError, OSError) as error:  # OSError: of a directory that this machine does not have, or may not read
      say(f"the hosts' records in the bucket cannot be read here: {error}")
      return None

  # Waiting

  def _longest_pause(self) -> float:
    """Seconds; the hosts must hear of the launcher before they remove the slice."""
    grace = duration_seconds(self.job.grace) if self.job.grace else 2 * MAX_PAUSE
    return min(MAX_PAUSE, grace / 2)

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
