"""The kinds of faults. Each function hits a run at a random moment; `Case.finish` then runs it to its end."""

import dataclasses
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Sequence

from faults import runs
from faults.cases import Case, reference, stopped
from faults.runs import LAYOUTS, Trap

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL

# --- signals ---


def moment(case: Case, places: Sequence[str]) -> tuple[str, int, float]:
  """(place, call, delay) at random."""
  place = case.random.choice(places)
  calls = {'a step': 12, 'saving': 4, 'the end of a save': 5, 'evaluating': 3}.get(place, 1)
  delay = case.random.choice((0.0, case.random.uniform(0, 0.02), case.random.uniform(0, 0.3)))
  return place, case.random.randint(1, calls), round(delay, 3)


PLACES = ('reading the data', 'compiling', 'a step', 'evaluating', 'saving', 'saving', 'the end of a save', 'closing')


def one_signal(case: Case, *numbers: int):
  """The signals, some milliseconds apart, at one moment of a run on one host; perhaps another one when it resumes."""
  case.layout = case.random.choice(('one', 'one', 'fsdp', 'data and tensor', 'context'))
  gap = round(case.random.choice((0.0, 0.01, 0.2)), 3)
  place, nth, delay = moment(case, PLACES)
  case.what = f'at call {nth} of {place} + {delay} s, gap {gap} s, on {case.layout}'
  case.hit(Trap(place, nth, delay, runs.send(*numbers, gap=gap)))
  if case.random.random() < 0.3:
    place, nth, delay = moment(case, ('reading the data', 'compiling', 'restoring', 'a step', 'saving'))
    case.what += f'; again at call {nth} of {place} + {delay} s'
    case.hit(Trap(place, nth, delay, runs.send(*numbers, gap=gap)))


def while_starting(case: Case):
  """A signal while Python imports, or whatever it does by then."""
  number = case.random.choice((INT, TERM, KILL))
  delay = round(case.random.uniform(0.1, 5), 2)
  case.what = f'{signal.Signals(number).name} {delay} s after the start'
  started = case.start(fresh=True)
  started[0].poll(delay)
  started[0].send(number)
  case.end(started)


def from_a_model(case: Case):
  """A signal before the first step of a run that starts from a model: it must not go on from random weights."""
  number = case.random.choice((INT, TERM, KILL))
  model = dataclasses.replace(case, settings=('train.seed=1',), folder=case.folder / 'model')
  case.words = ('--init', str(reference(model) / 'disk/run'))
  place, nth, delay = moment(case, ('reading the data', 'compiling', 'compiling', 'a step', 'saving'))
  case.what = f'{signal.Signals(number).name} at call {min(nth, 2)} of {place} + {delay} s'
  case.hit(Trap(place, min(nth, 2), delay, runs.send(number)))


# --- disks ---


def file_limit(case: Case):
  """Files cannot grow beyond some size from a save on, for a while or until the process ends."""
  place, nth, delay = moment(case, ('saving', 'the end of a save', 'a step'))
  size = case.random.choice((4096, 20_000, 60_000))
  seconds = case.random.choice((None, 0.3, 1.0))
  case.what = f'{size} bytes from call {nth} of {place} + {delay} s on, for {seconds or "ever"} s'
  case.hit(Trap(place, nth, delay, runs.limit_files(size, seconds)))


def full_disk(case: Case):
  """The disk is full from a save on, for a while or until the process ends."""
  if not runs.mount(case.disk, '8m'):
    case.what = 'not tried: this user may not mount a small disk; the limit of file sizes instead'
    case.disk.rmdir()
    file_limit(case)
    return
  place, nth, delay = moment(case, ('saving', 'the end of a save', 'a step'))
  left = case.random.choice((0, 4096, 50_000, 300_000))
  seconds = case.random.choice((None, 0.3, 1.0))
  case.what = f'{left} bytes left from call {nth} of {place} + {delay} s on, for {seconds or "ever"} s'
  case.hit(Trap(place, nth, delay, runs.fill_disk(case.disk, left, seconds)))
  (case.disk / 'filler').unlink(missing_ok=True)


# --- damage ---


def damage(case: Case, change: Callable[[Case, pathlib.Path], str], newest: bool = False):
  """Changes a file of the workdir, or of its newest checkpoint, of a run that was stopped, and runs it again."""
  case.layout = case.random.choice(('one', 'fsdp'))
  until = case.random.choice((5, 8, 8, 11))
  stopped(case, until)
  place = case.workdir / 'checkpoints' / str(until) if newest else case.workdir
  files = sorted(path for path in place.rglob('*') if path.is_file())
  if case.random.random() < 0.5:
    file = case.random.choice(files)
  else:  # each byte alike, so that arrays are hit
    file = case.random.choices(files, [path.stat().st_size for path in files])[0]
  case.damaged = file
  case.what = f'{file.relative_to(case.workdir)} after step {until}, on {case.layout}: {change(case, file)}'


def flip_bits(case: Case, file: pathlib.Path) -> str:
  """One or a few bits."""
  data = bytearray(file.read_bytes())
  places = [case.random.randrange(8 * len(data)) for _ in range(case.random.choice((1, 1, 3)))] if data else []
  for place in places:
    data[place // 8] ^= 1 << place % 8
  file.write_bytes(data)
  return f'bits {places}'


def truncate(case: Case, file: pathlib.Path) -> str:
  size = case.random.randrange(max(1, file.stat().st_size))
  os.truncate(file, size)
  return f'cut to {size} bytes'


def empty(case: Case, file: pathlib.Path) -> str:
  os.truncate(file, 0)
  return 'emptied'


def delete(case: Case, file: pathlib.Path) -> str:
  """The file, or one of the folders that hold it."""
  within = [file, *(folder for folder in file.parents if case.workdir in folder.parents)]
  if case.workdir / 'checkpoints' in within:
    within.remove(case.workdir / 'checkpoints')
  victim = case.random.choice(within)
  case.damaged = victim
  if victim.is_dir():
    shutil.rmtree(victim)
  else:
    victim.unlink()
  return f'{victim.relative_to(case.workdir)} deleted'


def lose_config(case: Case):
  """experiment.json is gone, and the command has another learning rate: another run, which must be refused."""
  stopped(case, 8)
  (case.workdir / 'experiment.json').unlink()
  case.what = 'experiment.json deleted, optim.learning_rate changed'
  case.settings = ('optim.learning_rate=0.5',)
  case.refused = 'optim.learning_rate'


# --- two runs in one workdir ---


def two_at_once(case: Case):
  """The same command twice, up to three seconds apart; or again while the first process is only suspended."""
  if case.random.random() < 0.3:
    place, nth, _ = moment(case, ('compiling', 'a step', 'saving'))
    case.what = f'again while the first is suspended at call {nth} of {place}'
    first = case.start(traps={0: [Trap(place, nth, 0, runs.send(signal.SIGSTOP))]})
    first[0].wait_until_suspended()
    second = case.start()
    runs.wait(second)
    first[0].send(signal.SIGCONT)
  else:
    delay = round(case.random.uniform(0, 3), 2)
    case.what = f'again after {delay} s'
    first = case.start()
    first[0].poll(delay)
    second = case.start()
  statuses = case.end(first + second)
  lines = [line.split() for line in (case.folder / 'steps').read_text().splitlines()]
  if len({pid for pid, _ in lines}) > 1 or len({step for _, step in lines}) < len(lines):
    case.wrong.append(f'both processes trained: {lines}')
  if 0 not in statuses:
    case.wrong.append(f'neither of the two runs went on: {statuses}')


# --- several hosts ---


def lost_host(case: Case, *numbers: int):
  """A host of two or four is killed, also while it saves. Then the same number of hosts goes on, or another one."""
  case.layout = case.random.choice(('two hosts', 'four hosts'))
  host = case.random.randrange(LAYOUTS[case.layout].hosts)
  place, nth, delay = moment(case, ('compiling', 'a step', 'saving', 'saving', 'evaluating', 'the end of a save'))
  case.then = case.random.choice(('', 'one', 'two hosts'))
  case.what = f'host {host} of {case.layout} at call {nth} of {place} + {delay} s; then {case.then or "the same"}'
  case.hit(Trap(place, nth, delay, runs.send(*numbers)), host=host)


def another(case: Case, pairs: Sequence[tuple[str, str]]):
  """Killed or stopped, then continued with another layout."""
  case.layout, case.then = case.random.choice(pairs)
  number = case.random.choice((KILL, TERM))
  place, nth, delay = moment(case, ('a step', 'saving', 'compiling'))
  name = signal.Signals(number).name
  case.what = f'{name} on {case.layout} at call {nth} of {place} + {delay} s, then {case.then}'
  case.hit(Trap(place, nth, delay, runs.send(number)))


# --- numbers ---


def not_finite(case: Case):
  """NaN in the loss or the gradients of one step, and a kill at a random moment."""
  step = case.random.choice((2, 3, 12))
  case.poison = (case.random.choice(('loss', 'gradients')), step, step)
  number = case.random.choice((KILL, TERM))
  place, nth, delay = moment(case, ('a step', 'saving', 'the end of a save'))
  name = signal.Signals(number).name
  case.what = f'{case.poison[0]} of step {step}; {name} at call {nth} of {place} + {delay} s'
  case.hit(Trap(place, nth, delay, runs.send(number)))
  if not (case.workdir / 'skipped' / f'{step}.json').exists() and step <= 2 < nth and place == 'a step':
    case.wrong.append(f'skipped/{step}.json is missing')


def never_finite(case: Case):
  """NaN from a step on, without end: the run must end with status 2, and name its last good checkpoint."""
  case.poison = (case.random.choice(('loss', 'gradients')), case.random.choice((1, 5, 8)), 99)
  case.settings = ('train.max_skipped=2',)
  case.what = f'{case.poison[0]} from step {case.poison[1]} on'
  case.refused = 'not finite in 3 steps in a row'
  case.hit()
  if case.statuses != [2]:
    case.wrong.append(f'statuses {case.statuses}')


PROCESSES = (('two hosts', 'one'), ('one', 'two hosts'), ('four hosts', 'three hosts'), ('four hosts', 'two hosts'))
MESHES = (('one', 'fsdp'), ('fsdp', 'one'), ('fsdp', 'data and tensor'), ('data and tensor', 'context'))
MICRO_BATCHES = (('one', 'two micro-batches'), ('two micro-batches', 'one'))

KINDS: dict[str, Callable[[Case], None]] = {
  'SIGKILL': lambda case: one_signal(case, KILL),
  'bit flip in the newest checkpoint': lambda case: damage(case, flip_bits, newest=True),
  'SIGTERM': lambda case: one_signal(case, TERM),
  'file cut short': lambda case: damage(case, truncate),
  'Ctrl-C': lambda case: one_signal(case, INT),
  'NaN': not_finite,
  'limit of file sizes': file_limit,
  'two runs at once': two_at_once,
  'file emptied': lambda case: damage(case, empty),
  'file or folder deleted': lambda case: damage(case, delete),
  'another mesh': lambda case: another(case, MESHES),
  'Ctrl-C twice': lambda case: one_signal(case, INT, INT),
  'SIGTERM, then SIGKILL': lambda case: one_signal(case, TERM, KILL),
  'full disk': full_disk,
  'another number of micro-batches': lambda case: another(case, MICRO_BATCHES),
  'NaN without end': never_finite,
  'signal while starting': while_starting,
  'signal before step 1 of --init': from_a_model,
  'no experiment.json, other settings': lose_config,
  'bit flip in any file': lambda case: damage(case, flip_bits),
  'file of the newest checkpoint deleted': lambda case: damage(case, delete, newest=True),
  'killed host': lambda case: lost_host(case, KILL),
  'SIGTERM to one host': lambda case: lost_host(case, TERM),
  'Ctrl-C on one host': lambda case: lost_host(case, INT),
  'another number of hosts': lambda case: another(case, PROCESSES),
}
