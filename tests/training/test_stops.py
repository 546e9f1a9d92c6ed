"""SIGTERM and Ctrl-C, at every place of a run: one save, one line, status 75; twice: at once."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import mathqwen
from mathqwen import cli
from mathqwen.commands import _devices
from mathqwen.data.pipeline import TrainBatches
from mathqwen.errors import Preempted
from mathqwen.storage import checkpoint, converted
from mathqwen.storage import workdir as workdirs
from mathqwen.training import loop, stops
from mathqwen.training.prepare import TrainingRun

ROOT = pathlib.Path(__file__).parents[2]
NAMES = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}
# {place: the function that runs there}
BEFORE_THE_FIRST_STEP = {
  'starting the devices': (_devices, 'start'),
  'opening the model': (TrainingRun, 'prepare'),
  'reading the data': (TrainingRun, 'data'),
  'compiling': (loop.TrainingLoop, 'compile'),
}
LATER = {
  'the first batch': (TrainBatches, '__next__'),
  'the evaluation': (loop, 'mean_loss'),
  'saving': (checkpoint.Checkpoints, 'save'),
}
PLACES = BEFORE_THE_FIRST_STEP | LATER


@pytest.fixture(autouse=True)
def interruptible():
  """Ctrl-C as it is at a terminal: it is ignored in what a shell starts in the background, and these tests may be."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def stop_in(monkeypatch, place, number):
  """Sends this process the signal, once, in the function of a place."""
  function = getattr(*place)
  sent = []

  def stopping(*args, **kwargs):
    if not sent:
      sent.append(number)
      os.kill(os.getpid(), number)
    return function(*args, **kwargs)

  monkeypatch.setattr(*place, stopping)
  return sent


@pytest.fixture(scope='module')
def stopped(tiny, tmp_path_factory):
  """A run that a signal has stopped at each place in turn, and the command that continues it."""
  workdir = tmp_path_factory.mktemp('stopped') / 'run'
  return workdir, ['train', tiny.config, '--workdir', str(workdir), '--set', 'train.eval_every=1']


@pytest.mark.parametrize('place, number', list(zip(PLACES, itertools.cycle(NAMES), strict=False)))
def test_one_signal(stopped, place, number, monkeypatch, capsys):
  workdir, command = stopped
  handlers = {number: signal.getsignal(number) for number in NAMES}
  sent = stop_in(monkeypatch, PLACES[place], number)
  status = cli.main(command)
  line = capsys.readouterr().err.splitlines()[-1].removeprefix(f'mathqwen: stopped by {NAMES[number]} ')
  assert (status, sent) == (75, [number])
  if place in BEFORE_THE_FIRST_STEP:
    assert line == 'before its first step, so there was nothing to save: run the same command to continue'
    assert not list(workdir.glob('checkpoints/[0-9]*'))
  else:
    step = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert line == f'at step {step}, saved in {workdir}/checkpoints/{step}: run the same command to continue'
    assert 0 < step < 20
  assert not (workdir / '.lock').exists()
  assert {number: signal.getsignal(number) for number in NAMES} == handlers


def test_the_stopped_run_ends_like_an_undisturbed_one(stopped, trained):
  workdir, command = stopped
  assert cli.main(command) == 0
  ledgers = [(folder / 'ledger.jsonl').read_text() for folder in (workdir, trained)]
  assert ledgers[0] == ledgers[1] and ledgers[0].count('\n') == 20
  weights = []
  for folder in (workdir, trained):
    _, experiment, step = workdirs.find_checkpoint(str(folder))
    read = converted.StepWeights(str(folder), step, experiment.model)
    weights.append([read.read(path).tobytes() for path in read.paths()])
    read.close()
  assert weights[0] == weights[1]


# A run whose main thread is in C for good, in a method of the loop, at a step.
STUCK = """
import ctypes
import sys
from mathqwen import cli
from mathqwen.training import loop

name, step = sys.argv[1], int(sys.argv[2])
method = getattr(loop.TrainingLoop, name)

def stuck(self, *args):
  if self.step == step:
    print('stuck', flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
      ctypes.CDLL(None).pthread_mutex_lock(mutex)
  return method(self, *args)

setattr(loop.TrainingLoop, name, stuck)
sys.argv[1:] = sys.argv[3:]
cli.program()
"""


def start_stuck(tiny, workdir, method, step):
  command = [sys.executable, '-c', STUCK, method, str(step), 'train', tiny.config, '--workdir', str(workdir)]
  process = subprocess.Popen(
    command, env=os.environ | tiny.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'stuck\n', process.communicate()
  return process


def end(process):
  begin = time.monotonic()
  said = process.communicate(timeout=60)[1].splitlines()
  return process.returncode, said[-1].removeprefix('mathqwen: '), time.monotonic() - begin


def test_a_signal_while_the_main_thread_compiles(tiny, tmp_path):
  process = start_stuck(tiny, tmp_path / 'run', 'compile', 0)
  process.send_signal(signal.SIGINT)
  status, line, seconds = end(process)
  assert (status, line.partition(' before its first step')[0]) == (75, 'stopped by Ctrl-C') and seconds < 5
  assert not (tmp_path / 'run' / '.lock').exists()


def test_a_second_signal_and_a_second_run(tiny, tmp_path, fails):
  """While one run hangs in its tenth step."""
  workdir = tmp_path / 'run'
  process = start_stuck(tiny, workdir, 'take_step', 9)
  before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
  line = fails('train', tiny.config, '--workdir', workdir, '--set', 'train.seed=1')
  assert line.startswith(f'{workdir}: another training run is writing here (process {process.pid} on ')
  assert line.endswith(' seconds ago); wait for it, or give another --workdir')
  assert {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before
  process.send_signal(signal.SIGTERM)
  time.sleep(1)
  assert process.poll() is None  # it would save after this step
  process.send_signal(signal.SIGINT)
  status, line, seconds = end(process)
  assert status == 130 and line.startswith('ended at once by a second signal (Ctrl-C): ') and seconds < 5
  assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['7'] and not (workdir / '.lock').exists()


def test_from_python(tiny, tmp_path, monkeypatch):
  """`mathqwen.train` raises; in a thread that is not the main one, it leaves signals alone."""
  monkeypatch.setattr(TrainingRun, 'train', lambda *_: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
  with pytest.raises(Preempted, match='stopped by Ctrl-C before its first step'):
    mathqwen.train(tiny.config, tmp_path / 'run')
  handlers = []
  monkeypatch.setattr(TrainingRun, 'train', lambda *_: handlers.append(signal.getsignal(signal.SIGINT)))
  thread = threading.Thread(target=mathqwen.train, args=(tiny.config, tmp_path / 'run'))
  thread.start()
  thread.join()
  assert handlers == [signal.default_int_handler]


def test_a_second_interrupt_of_a_notebook():
  with pytest.raises(KeyboardInterrupt), stops.watching() as stop:
    assert not stop.asked(3)
    os.kill(os.getpid(), signal.SIGINT)
    end = time.monotonic() + 5
    while not stop.asked(3):
      assert time.monotonic() < end
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def test_a_stop_that_the_end_of_the_run_overtakes_is_no_error(monkeypatch):
  """One host asks the others when to stop; they have made their last step, and the store ends with the run."""
  from jax.errors import JaxRuntimeError

  def ended(value, once):
    raise JaxRuntimeError('CANCELLED: CANCELLED')

  monkeypatch.setattr(stops.hosts, 'gather', ended)
  monkeypatch.setattr(stops.hosts, 'has_store', lambda: True)
  stop = stops.Stops()
  assert not stop.asked(12)
  stop._agree()
  assert not stop.asked(12)
