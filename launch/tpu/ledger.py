"""What happened to a job, one event a line with its time, and a summary of it. Another launcher can continue from it.

up, stop               a launcher began; `stop` was called
asked, active, ready   a slice: requested, there, set up
gone, deleted          a slice: taken away, deleted (with `why`: by its hosts)
started, ended         the run, on all hosts
step                   the run has come as far as the attempt before it
"""

import dataclasses
import json
import pathlib
import time


class Ledger:
  """An append-only file of events, {'time': seconds since 1970, 'event': name, ...}."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._path = folder / 'ledger.jsonl'
    folder.mkdir(parents=True, exist_ok=True)

  def add(self, event: str, **values: object) -> None:
    """Appends an event with the time of now, unless `values` has another `time`."""
    with open(self._path, 'a') as file:
      file.write(json.dumps({'time': time.time(), 'event': event, **values}) + '\n')

  def events(self) -> list[dict]:
    """In their order, without the half line of a launcher that was killed while it wrote."""
    text = self._path.read_text() if self._path.exists() else ''
    return [json.loads(line) for line in text.split('\n')[:-1] if line.endswith('}')]

  def last(self, name: str) -> dict | None:
    """The newest event of this name."""
    return next((event for event in reversed(self.events()) if event['event'] == name), None)

  def newest(self, *names: str) -> str | None:
    """Which of these events happened last; None when none did."""
    return next((event['event'] for event in reversed(self.events()) if event['event'] in names), None)

  def count(self, name: str) -> int:
    """How many events of this name there are."""
    return sum(event['event'] == name for event in self.events())

  @property
  def here(self) -> dict | None:
    """The newest request, unless it was deleted since: a slice may be there, or come from the queue, and cost money."""
    asked = [event for event in self.events() if event['event'] in ('asked', 'deleted')][-1:]
    return asked[0] if asked and asked[0]['event'] == 'asked' else None

  @property
  def under_way(self) -> bool:
    """Whether the run was started on a slice that is still there, and has not ended."""
    return self.newest('started', 'ended', 'gone', 'deleted') == 'started'

  @property
  def reached(self) -> int:
    """The furthest step of the attempts that ended."""
    return max((event['step'] for event in self.events() if event['event'] == 'ended'), default=0)

  @property
  def finished(self) -> bool:
    """Whether the job is done."""
    return any(event['event'] == 'ended' and event['outcome'] == 'done' for event in self.events())

  @property
  def behind(self) -> int | None:
    """The step that earlier attempts had reached, as long as this one has not; else None."""
    return self.reached if self.newest('ended', 'step') == 'ended' else None


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a job came to."""

  steps: int
  tokens: int | None  # None when no attempt was completed
  starts: int
  preemptions: int  # slices that were taken away
  hours: float  # from the first event to the last
  chip_hours: float  # of active slices
  lost_hours: float  # from the last step before an interruption until that step is reached again
  cost: float | None  # None when no price is given

  def text(self) -> str:
    """One line for people."""
    parts = [
      f'{self.steps:,} steps',
      f'{self.tokens:,} tokens' if self.tokens else '',
      f'starts: {self.starts}',
      f'preemptions: {self.preemptions}, {self.lost_hours:.2f} hours lost to interruptions',
      f'{self.chip_hours:,.2f} chip-hours in {self.hours:.2f} hours',
      f'cost {self.cost:,.2f}' if self.cost is not None else '',
    ]
    return '; '.join(part for part in parts if part)


def summary(events: list[dict], chips: int, price_per_chip_hour: float, now: float) -> Summary:
  """Adds up the events of a ledger.

  chips: of all slices together. now: the end of slices that are still there and of losses that are not made up yet.
  """
  active = None  # since when a slice is there
  behind = None  # since when the run is behind the step that it had reached
  paid = lost = 0.0  # seconds
  for event in events:
    name, at = event['event'], event['time']
    if name == 'active':
      active = at
    elif name in ('gone', 'deleted') and active is not None:
      paid += at - active
      active = None
    elif name == 'ended' and event['outcome'] == 'again' and behind is None:
      behind = event['step_time']
    elif name == 'step' and behind is not None:
      lost += at - behind
      behind = None
  paid += 0 if active is None else now - active
  lost += 0 if behind is None else now - behind
  ended = [event for event in events if event['event'] == 'ended']
  chip_hours = paid * chips / 3600
  return Summary(
    steps=max((event['step'] for event in ended), default=0),
    tokens=next((event['tokens'] for event in reversed(ended) if event['tokens']), None),
    starts=sum(event['event'] == 'started' for event in events),
    preemptions=sum(event['event'] == 'gone' for event in events),
    hours=(now - events[0]['time']) / 3600 if events else 0.0,
    chip_hours=chip_hours,
    lost_hours=lost / 3600,
    cost=chip_hours * price_per_chip_hour if price_per_chip_hour else None,
  )
