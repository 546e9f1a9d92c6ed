"""A case: a run, what happens to it, and the comparison with a run to which nothing happens."""

import dataclasses
import functools
import os
import pathlib
import random
import shutil
import signal
from collections.abc import Sequence

from faults import checks, runs
from faults.runs import LAYOUTS, Run, Trap

TRIES = 5  # of the same command, after the fault


@dataclasses.dataclass
class Case:
  """One run with one fault. The fields below `folder` are set by the fault."""

  number: int
  seed: int
  scratch: pathlib.Path
  folder: pathlib.Path
  kind: str = ''
  what: str = ''  # the fault in words
  layout: str = 'one'
  then: str = ''  # the layout after the fault; '' for the same
  settings: tuple[str, ...] = ()
  words: tuple[str, ...] = ()
  poison: tuple[str, int, int] | None = None
  damaged: pathlib.Path | None = None  # what the fault has changed, within the workdir
  refused: str = ''  # when the run rightly ends with status 2 for good: a part of its line
  wrong: list[str] = dataclasses.field(default_factory=list)
  statuses: list[int] = dataclasses.field(default_factory=list)
  said: str = ''

  def __post_init__(self):
    self.random = random.Random(f'{self.seed} {self.number}')
    self.disk = self.folder / 'disk'  # a disk of its own for those faults that fill it
    self.workdir = self.disk / 'run'
    self.folder.mkdir(parents=True)

  @property
  def exact(self) -> bool:
    """Whether the run must be equal to an undisturbed one to the bit: the mesh was the same all the time."""
    return self.then in ('', self.layout)

  def start(self, layout: str = '', traps: dict[int, Sequence[Trap]] | None = None, fresh: bool = False) -> list[Run]:
    """Starts the processes of the run."""
    prepare = runs.poison(*self.poison) if self.poison else None
    return runs.start(
      self.folder,
      self.workdir,
      LAYOUTS[layout or self.layout],
      (*self.settings, f'data.sources={self.scratch}/train.jsonl'),
      traps,
      prepare,
      fresh,
      self.words,
    )

  def end(self, started: list[Run]) -> list[int]:
    """Waits for the processes to end. Returns their statuses."""
    if not runs.wait(started):
      self.wrong.append(f'still running after {runs.SECONDS} seconds')
    statuses = [run.status if run.poll(5) is None else run.status for run in started]
    self.statuses += statuses
    self.said += ''.join(run.said for run in started)
    self.wrong += checks.read_ends(statuses, ''.join(run.said for run in started))
    return statuses

  def hit(self, *traps: Trap, host: int = 0) -> list[int]:
    """Runs once, with these traps on one host."""
    return self.end(self.start(traps={host: traps}))

  def finish(self):
    """Runs the same command until it ends with 0, and compares the result with that of an undisturbed run."""
    for _ in range(TRIES):
      statuses = self.end(self.start(self.then or self.layout))
      if set(statuses) == {0}:
        break
    if self.refused:
      if set(statuses) != {2} or self.refused not in self.said:
        self.wrong.append(f'statuses {statuses}, but it should refuse: {self.refused}')
      elif (self.workdir / 'checkpoints').exists():
        run_inspection(self.workdir, self.folder / 'found')
        self.wrong += checks.check_whole(self.folder / 'found')
    elif set(statuses) != {0}:
      last = self.said.rstrip().splitlines()[-1:]
      self.wrong.append(f'the same command ends with {statuses} every time: {last}')
    else:
      self._compare()
    self.wrong += checks.strays(self.folder)

  def _compare(self):
    truth = reference(self)
    found = self.folder / 'found'
    run_inspection(self.workdir, found)
    name = str(self.damaged.relative_to(self.workdir)) if self.damaged else ''
    parts = name.split('/')
    step = parts[1] if parts[0] == 'checkpoints' and len(parts) > 1 else None
    continued = checks.resumed_at(self.said)
    since = {parts[0]: continued[-1] if continued else 0} if name.endswith('.jsonl') else {}
    self.wrong += checks.compare_checkpoints(found, truth / 'found', self.exact, step)
    self.wrong += checks.compare_lines(self.workdir, truth / 'disk/run', self.exact, since)
    self.wrong += checks.compare_files(self.workdir, truth / 'disk/run')

  def close(self):
    """Removes the files of a case in which nothing was wrong."""
    if self.disk.is_mount() and self.wrong:
      shutil.copytree(self.disk, self.folder / 'disk-kept')
    if self.disk.is_mount():
      os.system(f'umount -l {self.disk}')
    if not self.wrong:
      shutil.rmtree(self.folder)

  @property
  def outcome(self) -> str:
    """A few words for the table."""
    if self.wrong:
      return 'WRONG'
    if self.refused:
      return 'refused'
    if 'damaged' in self.said:
      return 'repeated steps'
    return 'equal' if self.exact else 'equal to rounding'


def run_inspection(workdir: pathlib.Path, out: pathlib.Path):
  """`checks.inspect` in a process of its own. RuntimeError: when it fails."""
  pid = runs.fork(functools.partial(_inspect, workdir, out))
  _, code = os.waitpid(pid, 0)
  if code:
    raise RuntimeError(f'{workdir} cannot be inspected')


def _inspect(workdir, out):
  log = os.open(out.with_suffix('.log'), os.O_CREAT | os.O_WRONLY)
  os.dup2(log, 1)
  os.dup2(log, 2)
  os.environ['XLA_FLAGS'] = f'{runs.xla_flags()} --xla_force_host_platform_device_count=1'
  checks.inspect(workdir, out)


def reference(case: Case, until: int | None = None) -> pathlib.Path:
  """The folder of the undisturbed run with the same settings, which is made once; with a checkpoint of each step.

  until: instead a run that was stopped by SIGTERM after this step, with the checkpoints that a run has then.
  """
  name = '-'.join(map(str, (case.layout, *case.settings, *case.words[:1], *(case.poison or ()))))
  folder = case.scratch / 'references' / f'{name}-{until}'.replace('/', '_').replace(' ', '_')
  with runs.one_at_a_time(case.scratch / 'references.lock'):
    if (folder / 'found').exists():
      return folder
    shutil.rmtree(folder, ignore_errors=True)
    settings = case.settings if until else (*case.settings, 'train.checkpoint_every=1', 'train.keep_checkpoints=99')
    run = dataclasses.replace(case, folder=folder, settings=settings, wrong=[], statuses=[], said='')
    traps = {0: [Trap('a step', until, 0, runs.send(signal.SIGTERM))]} if until else {}
    statuses = run.end(run.start(traps=traps))
    if set(statuses) != {75 if until else 0} or run.wrong:
      raise RuntimeError(f'the undisturbed run in {folder} failed: {statuses}, {run.wrong}: {run.said[-1000:]}')
    run_inspection(run.workdir, folder / 'found')
  return folder


def stopped(case: Case, until: int):
  """Makes the workdir of the case that of a run which was stopped after this step; 12: that of a whole run."""
  source = reference(case, until) / 'disk/run'
  shutil.copytree(source, case.workdir)
