"""Two and four real processes, joined by jax.distributed, against one."""

import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import optax
import pytest
import safetensors.numpy

import mathqwen
from mathqwen import compat, hf
from mathqwen.cli import main
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.evals import records
from mathqwen.hardware import hosts
from mathqwen.hardware.hosts import LOST, START
from mathqwen.hf import layouts

pytestmark = pytest.mark.timeout(400)
ROOT = pathlib.Path(__file__).parents[2]
STARTED = []


@pytest.fixture(autouse=True)
def none_is_left():
  yield
  while STARTED:
    STARTED.pop().kill()


def start(tiny, workdir, *settings, **kwargs):
  """The processes of a training run: by default two, each with two simulated devices."""
  command = ['train', tiny.config, '--workdir', str(workdir)]
  return start_command(tiny, *command, *set_all(*settings), **kwargs)


def set_all(*settings):
  return [word for setting in settings for word in ('--set', setting)]


def start_command(
  tiny, *command, hosts=2, devices=2, here=None, port=None, program=('-m', 'mathqwen'), stdout=None, **differing
):
  """here: which of them are started. differing: {'host1': {'args': words more, 'cwd': folder, 'env': variables}}."""
  env = os.environ | tiny.env
  env |= {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + f' --xla_force_host_platform_device_count={devices}',
  }
  port, processes = port or free_port(), []
  for i in here or range(hosts):
    own = {'args': [], 'cwd': None, 'env': {}} | differing.get(f'host{i}', {})
    path = os.pathsep.join([*own['env'].pop('PATHS', []), str(ROOT)])
    where = ['--distributed', f'127.0.0.1:{port},{hosts},{i}']
    process = subprocess.Popen(
      [sys.executable, *program, *command, *own['args'], *where],
      env=env | {'PYTHONPATH': path} | own['env'],
      cwd=own['cwd'],
      stdout=stdout,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    STARTED.append(process)
  return processes


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def ends(processes, timeout=200):
  """(exit statuses, what each said on standard error, in lines)"""
  said = [process.communicate(timeout=timeout)[1].splitlines() for process in processes]
  return [process.returncode for process in processes], said


def wait_for_steps(workdir, processes):
  deadline = time.monotonic() + 200
  while not (workdir / 'metrics.jsonl').exists() or not losses(workdir):
    assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
    time.sleep(0.2)


def losses(workdir):
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [(values['step'], values['loss']) for values in map(json.loads, lines) if 'loss' in values]


SETTINGS = (
  'data.batch_size=8',
  'model.num_key_value_heads=2',
  'train.log_every=1',
  'train.eval_every=20',
  'train.checkpoint_every=100',
)


@pytest.fixture(scope='module')
def one(tiny, tmp_path_factory):
  """The losses of all twenty steps on one device."""
  workdir = tmp_path_factory.mktemp('one')
  assert main(['train', tiny.config, '--workdir', str(workdir), *set_all(*SETTINGS)]) == 0
  return losses(workdir)


@pytest.mark.parametrize('hosts, devices, mesh', [(4, 2, ('fsdp=8',)), (2, 4, ('data=2', 'tensor=2'))])
def test_hosts_train_like_one_device(hosts, devices, mesh, one, tiny, tmp_path):
  status, said = ends(
    start(tiny, tmp_path / 'run', *SETTINGS, *(f'mesh.{size}' for size in mesh), hosts=hosts, devices=devices)
  )
  assert status == [0] * hosts, said
  on = f'CPU ({len(os.sched_getaffinity(0))} cores) on {hosts} hosts, {hosts * devices} devices'
  assert said[0][0] == on and not any(on in line for lines in said[1:] for line in lines)  # said once
  got = losses(tmp_path / 'run')
  assert [step for step, _ in got] == [step for step, _ in one] == list(range(1, 21))
  assert [loss for _, loss in got] == pytest.approx([loss for _, loss in one], rel=1e-5)


ENDLESS = ('train.steps=100000', 'train.checkpoint_every=100000', 'train.eval_every=100000')


def test_hosts_train_adapters_like_one_device_and_merge_them(tiny, trained, tmp_path):
  settings = 'data.batch_size=8', 'train.adapter.rank=4', 'train.steps=4', 'train.log_every=1', 'train.eval_every=4'
  base = tmp_path / 'base'
  convert_to_hf(str(trained), str(base), compare=False)
  command = ['train', tiny.config, '--init', str(base), *set_all(*settings, 'optim.warmup_steps=1')]
  assert main([*command, '--workdir', str(tmp_path / 'one')]) == 0
  processes = start_command(tiny, *command, '--workdir', str(tmp_path / 'two'), *set_all('mesh.data=2', 'mesh.fsdp=2'))
  statuses, said = ends(processes)
  assert statuses == [0, 0], said
  (_, one), (_, two) = (zip(*losses(tmp_path / name), strict=True) for name in ('one', 'two'))
  assert two == pytest.approx(one, rel=1e-5) and len(set(one)) == 4
  # Both hosts read the base, compare it, and write their shares of the merged model.
  processes = start_command(tiny, 'convert', 'to-hf', str(tmp_path / 'two'), str(tmp_path / 'out'), '--dtype=float32')
  statuses, said = ends(processes)
  assert statuses == [0, 0], said
  convert_to_hf(str(tmp_path / 'one'), str(tmp_path / 'alone'), dtype='float32', compare=False)
  ours, theirs = (hf.load_params(str(tmp_path / name)) for name in ('alone', 'out'))
  assert max(abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)) < 1e-4


@pytest.mark.parametrize('number, name', [(signal.SIGTERM, 'SIGTERM'), (signal.SIGINT, 'Ctrl-C')])
def test_a_signal_to_one_host_stops_both_at_one_step(tiny, tmp_path, number, name):
  """Meanwhile a second run of two hosts is refused."""
  workdir = tmp_path / 'two'
  run = start(tiny, workdir, *ENDLESS)
  wait_for_steps(workdir, run)
  if number == signal.SIGINT:
    status, said = ends(start(tiny, workdir, *ENDLESS))
    line = f'{workdir}: another training run is writing here (process {run[0].pid} on '
    assert status == [2, 2] and said[0][-1].startswith(f'mathqwen: {line}')
    assert said[1][-1].startswith(f'mathqwen: host 0 ended, and this one with it: {line}')
  run[1].send_signal(number)
  status, said = ends(run)
  assert status == [75, 75]
  assert said[0][-1] == said[1][-1] and said[0][-1].startswith(f'mathqwen: stopped by {name} at step ')
  (saved,) = (path.name for path in (workdir / 'checkpoints').iterdir())
  assert f'at step {saved},' in said[0][-1]
  assert not (workdir / '.lock').exists()


# Host 1 is in C for good when it should compile; its watchdog has a second for that.
STUCK = """
import ctypes
import jax
from mathqwen import cli
from mathqwen.training import loop

def stuck(self):
  if jax.process_index() == 1:
    self._guard.watchdog._state = ('compiling the step', 1 / 60)
    print('stuck', flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
      ctypes.CDLL(None).pthread_mutex_lock(mutex)
  compile(self)

compile, loop.TrainingLoop.compile = loop.TrainingLoop.compile, stuck
cli.program()
"""


def test_a_host_that_compiles_for_good(tiny, tmp_path):
  """It is stopped by a signal, which ends both; or by the watchdog, which says where both hosts stood."""
  begin = functools.partial(start_command, tiny, 'train', tiny.config, program=('-c', STUCK), devices=1)
  stopped = begin(
    *set_all('train.hang_minutes=0', 'train.compile_minutes=0'),
    '--workdir',
    str(tmp_path / 'stopped'),
    stdout=subprocess.PIPE,
  )
  while stopped[1].stdout.readline() != 'stuck\n':  # after what gloo says
    assert stopped[1].poll() is None
  stopped[1].send_signal(signal.SIGINT)
  hung = begin(*set_all('train.hang_minutes=0.1'), '--workdir', str(tmp_path / 'hung'))
  status, said = ends([*stopped, *hung], timeout=100)
  assert status == [75] * 4, said
  line = 'mathqwen: stopped by Ctrl-C before its first step, so there was nothing to save: run the same command to'
  assert said[0][-1].startswith(line) or said[0][-1].startswith('mathqwen: stopped by Ctrl-C at step 0'), said
  assert said[1][-1].startswith(line)
  line = 'mathqwen: host 1: compiling the step: nothing has moved for 0.0166667 minutes; where each host stood is in '
  assert said[2][-1] == said[3][-1] and said[2][-1].startswith(f'{line}{tmp_path}/hung/hang: run the same command')
  stacks = {path.name: path.read_text() for path in (tmp_path / 'hung' / 'hang').iterdir()}
  assert set(stacks) == {'step-0-host-0.txt', 'step-0-host-1.txt'}
  assert 'in stuck' in stacks['step-0-host-1.txt'] and 'MainThread' in stacks['step-0-host-0.txt']


def test_hosts_read_the_same_shards(tiny, tmp_path):
  """Two hosts, then one that continues, have the batches of one host that never stopped, and of the file."""
  folder = str(tmp_path / 'shards')
  pytest.importorskip('apache_beam', reason='the extra `beam` is not installed')
  keep_all = [
    f'--set=clean.{name}' for name in ('answer=any', 'duplicates=false', 'near_duplicates=0', 'contamination=')
  ]
  assert main(['data', 'clean', tiny.config, '--out', folder, '--tokenizer', 'arithmetic', *keep_all]) == 0
  settings = [*SETTINGS, 'data.eval_examples=0', 'optim.schedule=constant', 'optim.warmup_steps=0']
  settings.remove('train.eval_every=20')
  status, said = ends(start(tiny, tmp_path / 'two', *settings, f'data.sources={folder}', 'train.steps=3'))
  assert status == [0, 0], said
  for workdir, source in (('two', folder), ('one', folder), ('file', tiny.train)):
    words = set_all(*settings, f'data.sources={source}', 'train.steps=5')
    assert main(['train', tiny.config, '--workdir', str(tmp_path / workdir), *words]) == 0
  ledgers = [(tmp_path / workdir / 'ledger.jsonl').read_text() for workdir in ('two', 'one', 'file')]
  assert ledgers[0].count('batch') == 5 and len(set(ledgers)) == 1
  assert main(['data', 'verify', str(tmp_path / 'two')]) == 0


def test_hosts_choose_the_same_whole_checkpoint(tiny, trained, tmp_path):
  """The newest has a changed byte; host 0 alone moves it."""
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  path = max((workdir / 'checkpoints' / '20' / 'params').rglob('*'), key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  status, said = ends(start(tiny, workdir))
  assert status == [0, 0], said
  assert all(f'continuing {workdir} at step 14' in lines for lines in said)
  assert [sum('is damaged' in line for line in lines) for lines in said] == [1, 0]
  assert [path.name for path in (workdir / 'damaged').iterdir()] == ['20']
  assert dict(losses(workdir)) == pytest.approx(dict(losses(trained)), rel=1e-5)


def test_a_host_without_the_devices_ends_all(tiny, tmp_path):
  run = start(tiny, tmp_path / 'run', host1={'env': {'JAX_PLATFORMS': 'tpu'}})
  status, said = ends(run)
  assert status == [2, 2]
  assert said[1][-1].startswith('mathqwen: the TPU (JAX_PLATFORMS=tpu) cannot be used: ')
  assert said[0][-1] == f'mathqwen: host 1 ended, and this one with it: {said[1][-1].removeprefix("mathqwen: ")}'
  assert not (tmp_path / 'run').exists()


def test_a_killed_host_ends_the_others(tiny, tmp_path, monkeypatch):
  """Whichever it is: host 0 holds the coordination service."""
  monkeypatch.setenv(LOST, '10')
  runs = [start(tiny, tmp_path / f'without-{killed}', *ENDLESS, devices=1) for killed in (0, 1)]
  for killed, run in enumerate(runs):
    wait_for_steps(tmp_path / f'without-{killed}', run)
    run[killed].kill()
  killed_at = time.monotonic()
  for killed, run in enumerate(runs):
    status, said = ends(run, timeout=60)
    assert status == ([-signal.SIGKILL, 75] if killed == 0 else [75, -signal.SIGKILL]), said
    lines = said[1 - killed]
    assert lines[-1].startswith(f'mathqwen: host {killed} was lost') and 'run the same command again' in lines[-1]
    assert not any('Traceback' in line or 'check failure' in line.lower() or '.cc:' in line for line in lines), lines
  assert time.monotonic() - killed_at < 40


def test_hosts_that_do_not_come(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv(START, '3')
  with socket.socket(socket.AF_INET6) as taken:
    taken.bind(('::', 0))
    taken.listen()
    two_of_four = start(tiny, tmp_path, hosts=4, here=[0, 2])
    without_0 = start(tiny, tmp_path, here=[1], port=(nobody := free_port()))
    port_taken = start(tiny, tmp_path, here=[0], port=(taken_port := taken.getsockname()[1]))
    status, said = ends([*two_of_four, *without_0, *port_taken], timeout=100)
  assert status == [2] * 4 and all(len(lines) == 1 for lines in said), said
  came = 'mathqwen: 2 of 4 hosts joined within 3 seconds, missing: host 1, 3; start the same command on every host'
  assert said[0] == said[1] and said[0][0].startswith(came)
  assert said[2][0].startswith(f'mathqwen: host 0 was not reached at 127.0.0.1:{nobody} within 8 seconds: ')
  assert said[3][0].startswith(f'mathqwen: host 0 cannot listen at port {taken_port} (Address already in use)')
  assert not list(tmp_path.iterdir())


def test_hosts_that_differ(tiny, tmp_path):
  other = tmp_path / 'packages' / 'optax-0.0.1.dist-info'
  other.mkdir(parents=True)
  (other / 'METADATA').write_text('Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n')
  versions = start(tiny, tmp_path / 'run', host1={'env': {'PATHS': [str(other.parent)]}})
  settings = start(tiny, tmp_path / 'run', host1={'args': set_all('train.steps=30', 'train.dropout=0')})
  status, said = ends([*versions, *settings], timeout=100)
  assert said[2].pop(0).startswith('CPU (')  # the devices of the run, which the hosts have agreed on by then
  assert status == [2] * 4 and all(len(lines) == 1 for lines in said), said
  assert said[0] == said[1] and said[2] == said[3]
  assert said[0][0] == (
    f"mathqwen: the hosts differ in their software: optax is '{optax.__version__}' on host 0 and '0.0.1' on host 1: "
    'install the same on every host'
  )
  assert said[2][0] == (
    'mathqwen: the hosts differ in their settings: train.steps is 20 on host 0 and 30 on host 1 (1 more differ): '
    'give every host the same command, config and files'
  )
  assert not (tmp_path / 'run').exists()


def test_what_ends_one_host_ends_the_other(tiny, tmp_path):
  """A path that leads to a file on host 0 only; a defect of ours, which keeps its traceback."""
  here, there = pathlib.Path(tiny.train).parent, tmp_path / 'elsewhere'
  there.mkdir()
  lacking = start(tiny, tmp_path / 'a', 'data.sources=train.jsonl', host0={'cwd': here}, host1={'cwd': there})
  broken = (
    'from mathqwen import cli\n'
    'from mathqwen.training.prepare import TrainingRun\n'
    'TrainingRun.train = lambda *_: 1 / 0\n'
    'cli.main()'
  )
  port = free_port()
  defect = start(tiny, tmp_path / 'b', here=[0], port=port)
  defect += start(tiny, tmp_path / 'b', here=[1], port=port, program=('-c', broken))
  status, said = ends([*lacking, *defect], timeout=100)
  assert status == [2, 2, 1, 1], said
  assert said[1] == ['mathqwen: cannot read train.jsonl: No such file or directory; check the path']
  assert said[0][-1] == said[1][0].replace('mathqwen: ', 'mathqwen: host 1 ended, and this one with it: ')
  own = [line for line in said[3] if 'Grain multiprocess' not in line]  # a warning of Grain about an older jaxlib
  assert own[0].startswith('Traceback') and own[-1] == 'ZeroDivisionError: division by zero'
  assert said[2][-1] == 'mathqwen: host 1 ended, and this one with it: ZeroDivisionError, see its traceback there'


# As where `jax._src.distributed` is missing. JAX itself needs it here, so tests/hardware/test_hosts.py hides it.
WITHOUT_INTERNALS = """
import json, sys, time
from mathqwen.errors import UserError
from mathqwen.hardware import hosts, jax_internals

jax_internals._distributed = lambda: None
what, where = sys.argv[1], sys.argv[-1]
try:
  hosts.join(where, 'nothing is kept')
  index, count = hosts.share()
  values = hosts.gather({'host': index, 'text': 'x\\u00e4' * (1 + 1000 * index)})
  assert [value['host'] for value in values] == [0, 1] and len(values[1]['text']) == 2002
  print(json.dumps([index, count]), file=sys.stderr, flush=True)
  if what == 'differ':
    hosts.agree('settings', {'train.steps': 20 + 10 * index, 'train.dropout': index, 'train.seed': 0})
  if what == 'wait':
    time.sleep(600)
except UserError as error:
  print(error, file=sys.stderr)
  hosts.leave(2, str(error))
"""


def test_hosts_of_a_jax_without_those_internals(tiny, monkeypatch):
  """They meet, agree, gather and end. Only the reasons are worse: a host that stays away is not named."""
  monkeypatch.setenv(START, '15')
  monkeypatch.setenv(LOST, '10')
  begin = lambda *words, **kwargs: start_command(tiny, *words, program=('-c', WITHOUT_INTERNALS), devices=1, **kwargs)
  done, differing, waiting, alone = begin('end'), begin('differ'), begin('wait'), begin('end', here=[0])
  assert json.loads(waiting[0].stderr.readline()) == [0, 2]
  waiting[1].kill()
  status, said = ends([*done, *differing, *waiting, *alone], timeout=100)
  # JAX below 0.9 exits by itself, before the reason can be read: see `jax_internals.abort_on_fatal_error`.
  lost_host, no_host = (1, 1) if compat.client_exits() else (75, 2)
  assert status == [0, 0, 2, 2, lost_host, -signal.SIGKILL, no_host], said
  assert said[:2] == [['[0, 2]'], ['[1, 2]']]
  assert (
    said[2][1:]
    == said[3][1:]
    == [
      'the hosts differ in their settings: train.steps is 20 on host 0 and 30 on host 1 (1 more differ): '
      'give every host the same command, config and files'
    ]
  )
  lost = 'mathqwen: host 1 was lost (no heartbeat for 10 seconds): run the same command again on every host; nothing is'
  came = 'mathqwen: not all of 2 hosts joined within 20 seconds; start the same command on every host'
  if not compat.client_exits():
    assert len(said[4]) == 1 and said[4][0].startswith(lost)
    assert len(said[6]) == 1 and said[6][0].startswith(came)


def test_each_host_answers_its_share_of_the_problems(tiny, trained, tmp_path):
  words = ['--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--max-new-tokens', '8']
  one, two = (str(tmp_path / name) for name in ('one', 'two'))
  assert main(['evaluate', str(trained), *words, '--out', one]) == 0
  status, said = ends(start_command(tiny, 'evaluate', str(trained), *words, '--out', two))
  assert status == [0, 0], said
  read = lambda out: [json.loads(line) for line in (pathlib.Path(out) / 'arithmetic/records.jsonl').open()]
  assert len(read(one)) == 8 and read(one) == read(two)
  rest = [json.loads(line)['id'] for line in (pathlib.Path(two) / 'arithmetic/records.1.jsonl').open()]
  assert sorted(rest) == [record['id'] for record in read(one)][1::2]  # what host 1 answered


def test_sigterm_to_one_host_ends_the_evaluation_of_both(tiny, trained, tmp_path):
  words = ['--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--max-new-tokens', '64', '--out', str(tmp_path)]
  words += ['--samples', '10000', '--temperature', '1', '--batch-size', '1']
  run = start_command(tiny, 'evaluate', str(trained), *words)
  record, deadline = tmp_path / 'arithmetic' / 'records.jsonl', time.monotonic() + 200
  while not record.exists() or not record.stat().st_size:
    assert time.monotonic() < deadline and all(process.poll() is None for process in run)
    time.sleep(0.2)
  run[1].send_signal(signal.SIGTERM)
  status, said = ends(run, timeout=60)
  assert status == [75, 75], said
  line = f'stopped by SIGTERM; the answers in {tmp_path} are kept, and the same command on every host continues'
  assert said[1][-1] == f'mathqwen: {line}' and said[0][-1].endswith(line)
  assert records.read(record).records


ANSWER = """
import json, sys
import mathqwen
from mathqwen.config import MeshConfig
from mathqwen.hardware import hosts, sharding

hosts.join(sys.argv[-1], 'nothing')
model = mathqwen.load(sys.argv[1], sharding.make_mesh(MeshConfig(data=2, fsdp=2)), 'float32')
answers = model.generate_ids(json.loads(sys.argv[2]), 40, temperature=1.0, batch_size=4, stop_texts=('7',))
open(f'{sys.argv[3]}.{hosts.share()[0]}', 'w').write(json.dumps(answers))
"""


def test_a_model_split_over_hosts_answers_like_one_device(tiny, trained, tmp_path):
  """Its rows are on both hosts, and each host gets all answers."""
  prompts = [[5, 0, 9], [1] * 11, [300], [3, 2, 1, 0, 4], [60, 61], [70] * 20]
  words = [str(trained), json.dumps(prompts), str(tmp_path / 'answers')]
  status, said = ends(start_command(tiny, *words, program=('-c', ANSWER)))
  assert status == [0, 0], said
  one = mathqwen.load(str(trained), dtype='float32').generate_ids(prompts, 40, temperature=1.0, stop_texts=('7',))
  assert len({len(ids) for ids in one}) > 1  # some end at the text
  for host in (0, 1):
    assert json.loads((tmp_path / f'answers.{host}').read_text()) == one


def test_answers_of_any_number_of_hosts_are_kept(tiny, trained, tmp_path):
  """Host 0 kept two answers, hosts 1 and 2 one each, one of which host 0 has too; now two hosts go on."""
  words = ['--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--max-new-tokens', '8']
  folder, out = tmp_path / 'arithmetic', str(tmp_path)
  assert main(['evaluate', str(trained), *words, '--out', out]) == 0
  whole = (folder / 'records.jsonl').read_bytes()
  rows = whole.splitlines(keepends=True)
  marked = lambda row, by: row.replace(b'"extra": {', b'"extra": {"by": %d, ' % by)
  (folder / 'records.jsonl').write_bytes(marked(rows[0], 0) + marked(rows[4], 0))
  (folder / 'records.1.jsonl').write_bytes(marked(rows[5], 1) + rows[6][:30])
  (folder / 'records.2.jsonl').write_bytes(marked(rows[7], 2) + marked(rows[4], 2))
  (folder / 'records.old.jsonl').write_bytes(b'not one of these')
  status, said = ends(start_command(tiny, 'evaluate', str(trained), *words, '--out', out))
  assert status == [0, 0], said
  assert all('arithmetic: 4 of 8 answers are there, 4 to go' in lines for lines in said)
  got = [json.loads(line) for line in (folder / 'records.jsonl').open()]
  assert [record['extra'].pop('by', None) for record in got] == [0, None, None, None, 0, 1, None, 2]
  assert got == [json.loads(row) for row in rows]
  scores = json.loads((folder / 'scores.json').read_text())
  assert scores['resumed'] == 4
  new = [json.loads(line)['id'] for line in (folder / 'records.1.jsonl').open()][1:]
  assert sorted(new) == [got[i]['id'] for i in (2, 6)]  # every second of what was missing


def test_each_host_writes_its_share_of_an_export(tiny, trained, tmp_path):
  status, said = ends(start_command(tiny, 'convert', 'to-hf', str(trained), str(tmp_path / 'two')))
  assert status == [0, 0], said
  assert [path.name for path in tmp_path.iterdir()] == ['two']
  shards = sorted(path.name for path in (tmp_path / 'two').glob('*.safetensors'))
  assert len(shards) >= 2 and shards[0] == f'model-00001-of-{len(shards):05}.safetensors'
  convert_to_hf(str(trained), str(tmp_path / 'one'), compare=False)
  one, two = (hf.load_params(str(tmp_path / name)) for name in ('one', 'two'))
  assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and (a == b).all(), one, two))
  same = {path.name for path in (tmp_path / 'one').iterdir()} - {'model.safetensors'}
  assert same == {path.name for path in (tmp_path / 'two').iterdir()} - {*shards, 'model.safetensors.index.json'}
  for name in same:
    assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


def test_what_fails_on_one_host_fails_on_all(tiny, trained, tmp_path):
  convert_to_hf(str(trained), str(tmp_path / 'hf'), dtype='float32', compare=False)
  tensors = safetensors.numpy.load_file(tmp_path / 'hf' / 'model.safetensors')
  last = layouts.file_tensors(hf.read_config(str(tmp_path / 'hf')), 'qwen2')[-1].name
  tensors[last][0, 0] = float('nan')
  safetensors.numpy.save_file(tensors, tmp_path / 'hf' / 'model.safetensors')
  status, said = ends(start_command(tiny, 'convert', 'to-hf', str(tmp_path / 'hf'), str(tmp_path / 'two')), timeout=120)
  assert status == [2, 2], said
  assert all('holds NaN or infinity' in lines[-1] for lines in said)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


@pytest.mark.parametrize('where', ['127.0.0.1', '127.0.0.1:1,2', '127.0.0.1:1,two,0', '127.0.0.1:1,2,2'])
def test_bad_addresses(where):
  with pytest.raises(UserError, match='--distributed'):
    hosts.join(where, 'nothing')
