"""What hosts say; tests/multidevice/test_processes.py starts some."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading

import jax
import jax._src
import pytest
from jax._src.lib import _jax

from mathqwen import cli, compat
from mathqwen.errors import UserError
from mathqwen.hardware import exchange, hosts, jax_internals

SAID = (
  'F1124 12:52:41 18160 client.h:80] Terminating process because the JAX distributed service detected fatal errors. '
)
REMEDY = f'{hosts.RUN_AGAIN}; the answers in scores are kept'
FULL_PLACE, NO_PLACE = jax_internals.Place(2, 2, '10.0.0.1:99'), jax_internals.Place(None, None, None)


def situation(joined, place=FULL_PLACE):
  return jax_internals.Situation(joined, place, 300, 305, 60, REMEDY)


@pytest.mark.parametrize('joined, text, status, line', [
  (False, 'DEADLINE_EXCEEDED: Barrier timed out.\n# of tasks that reached the barrier: 2/40.\nThe first task at the '
   'barrier: 0. Some timed out task names:\n3\n2\n3\n\n', 2,
   '2 of 40 hosts joined within 300 seconds, missing: among them host 2, 3; start the same'),
  (False, 'INVALID_ARGUMENT: Unexpected task registered with task=2\n', 2,
   'this is host 2 of 2, but host 0 was started for fewer hosts: '),
  (False, 'DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask', 2,
   'host 0 was not reached at 10.0.0.1:99 within 305 seconds: '),
  (True, 'UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n2\n7\nThe tasks', 75,
   f'host 2, 7 was lost (no heartbeat for 60 seconds): {REMEDY}'),
  (True, 'UNAVAILABLE: Failed to send RPC to coordination service.', 75,
   f'host 0 was lost, which coordinates the others: {REMEDY}'),
  (True, 'ABORTED: 1 unexpectedly tried to connect with a different incarnation.', 75,
   f'host 1 was started a second time while this run was going on: {REMEDY}'),
  (True, 'INTERNAL: something new', 1, 'the coordination service of JAX ended this process:  INTERNAL: something new'),
])  # fmt: skip
def test_one_line_for_what_the_coordination_service_says(joined, text, status, line):
  got = jax_internals.explain(f'{SAID}absl::Status: {text}', situation(joined))
  assert got[0] == status and got[1].startswith(line)


POLLED = 'E1128 06:04:14 251 coordination_service_agent.cc:332] Polled an error from coordination service (this can be'


def test_a_host_is_lost_with_a_jax_that_does_not_say_which():
  """JAX below 0.9: only host 0 sees the service's log. The others see whether host 0 still answers."""
  log = 'to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n'
  got = jax_internals.explain(f'{log}/job:jax_worker/replica:0/task:1\nThe tasks\n{POLLED}', situation(True))
  assert got == (75, f'host 1 was lost (no heartbeat for 60 seconds): {REMEDY}')
  with socket.create_server(('127.0.0.1', 0)) as host_0:
    place = jax_internals.Place(2, 3, f'127.0.0.1:{host_0.getsockname()[1]}')
    got = jax_internals.explain(POLLED, situation(True, place))
  assert got == (75, f'another host was lost (no heartbeat for 60 seconds): {REMEDY}')
  got = jax_internals.explain(POLLED, situation(True, place))
  assert got == (75, f'host 0 was lost, which coordinates the others: {REMEDY}')


@pytest.mark.parametrize('exits', [False, True])
def test_only_a_client_that_exits_is_made_to_abort(exits, monkeypatch):
  made, set_to = [], []
  functions = jax._src.distributed._jax
  monkeypatch.setattr(functions, 'get_distributed_runtime_client', lambda *args, **kwargs: made.append(kwargs))
  monkeypatch.setattr(jax_internals, '_set_terminate', lambda: set_to.append)
  monkeypatch.setattr(compat, 'client_exits', lambda: exits)
  original = functions.get_distributed_runtime_client
  with jax_internals.abort_on_fatal_error(made.append):
    functions.get_distributed_runtime_client('[::]:1', 0, heartbeat_timeout=9)
  assert functions.get_distributed_runtime_client is original
  assert made[0].keys() == {'heartbeat_timeout'} | ({'missed_heartbeat_callback'} if exits else set())
  assert len(set_to) == exits


@pytest.mark.parametrize('said, ends', [('std::bad_cast', True), ('another', False)])
def test_a_client_that_exits_says_why_it_could_not_connect(said, ends, monkeypatch):
  class Client:
    def shutdown(self):
      raise jax.errors.JaxRuntimeError('# of tasks that reached the barrier: 2/4.')

  monkeypatch.setattr(jax._src.distributed.global_state, 'client', Client())
  monkeypatch.setattr(jax_internals, '_set_terminate', lambda: lambda _: None)
  monkeypatch.setattr(compat, 'client_exits', lambda: True)
  ended = []
  raised = contextlib.nullcontext() if ends else pytest.raises(RuntimeError, match=said)
  with raised, jax_internals.abort_on_fatal_error(ended.append):
    raise RuntimeError(said)
  assert ended == ['# of tasks that reached the barrier: 2/4.'] * ends


def test_host_0_whose_service_names_nobody():
  text = f'{SAID}absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: RegisterTask'
  got = jax_internals.explain(text, situation(False, jax_internals.Place(0, 4, '10.0.0.1:99')))
  assert got == (
    2,
    'not all of 4 hosts joined within 305 seconds; start the same command on every host, each with its own number',
  )


@pytest.mark.parametrize(
  'words, after_loss',
  [
    ('train gsm8k_small --workdir w', 'training continues from its newest checkpoint'),
    ('evaluate m --benchmarks gsm8k --out o', 'the answers in o are kept'),
    ('evaluate m --benchmarks gsm8k', 'without --out, no answers were kept'),
    ('convert to-hf m o', 'the export starts from the beginning'),
  ],
)
def test_each_command_says_what_it_does_after_a_loss(words, after_loss, monkeypatch, capsys):
  def join(where, after_loss):
    raise UserError(f'{where}: {after_loss}')

  monkeypatch.setattr(hosts, 'join', join)
  assert cli.main([*words.split(), '--distributed', 'here']) == 2
  assert capsys.readouterr().err == f'mathqwen: here: {after_loss}\n'


@pytest.fixture
def exchanges():
  """Those of two hosts, in one process, over a real coordination service."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  service = _jax.get_distributed_runtime_service(address, 2, shutdown_timeout=10)
  both = [_jax.get_distributed_runtime_client(address, i, shutdown_timeout=10) for i in (0, 1)]
  in_threads(*(client.connect for client in both))
  yield [exchange.KeyValueExchange(jax_internals.CoordinationClient(both[i]), i, 2) for i in (0, 1)]
  in_threads(*(client.shutdown for client in both))
  service.shutdown()


def in_threads(*calls):
  """What each returned or raised."""
  results = {}

  def run(i, call):
    try:
      results[i] = call()
    except UserError as error:
      results[i] = str(error)

  threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [results[i] for i in range(len(calls))]


def test_hosts_that_agree_and_do_not(exchanges):
  def agree(what, *values):
    return in_threads(*(lambda i=i: hosts._compare_hosts(exchanges[i], what, values[i], 20) for i in (0, 1)))

  assert agree('a', {'x': (1, 2)}, {'x': [1, 2]}) == [None, None]
  said = 'the hosts differ in their b: x is 1 on host 0 and None on host 1 (1 more differ): give every host the same'
  got = agree('b', {'x': 1}, {'y': 1})
  assert got[0] == got[1] and got[0].startswith(said)


class Answers:
  """Stands for an exchange: the hosts' values are those given."""

  def __init__(self, *values):
    self.values, self.count = values, len(values)

  def gather(self, name, text, seconds=None):
    return [json.dumps(value) for value in self.values]


def test_the_first_of_several_hosts_that_differ():
  with pytest.raises(UserError) as error:
    hosts._compare_hosts(Answers({'x': 1}, {'x': 1}, {'x': 2}, {'x': 3}), 'devices', {'x': 1}, 1)
  assert str(error.value) == (
    'the hosts differ in their devices: x is 1 on host 0 and 2 on host 2; host 3 differs from host 0 too: '
    'give every host the same number and kind'
  )


def test_values_of_all_hosts_in_pieces(exchanges, monkeypatch):
  monkeypatch.setattr(exchange, 'PART_CHARACTERS', 7)
  values = [{'text': 'ä\ud83d' * 40, 'none': None}, [1, 2.5]]
  for call in range(3):
    got = in_threads(*(lambda i=i, call=call: hosts._gather(exchanges[i], call, [call, values[i]]) for i in (0, 1)))
    assert got[0] == got[1] == [[call, value] for value in values]
  stored = exchanges[0]._client._client.key_value_dir_get('mathqwen/values/')
  assert {key.split('/')[2] for key, _ in stored} == {'gather-2'}  # what every host has read is gone


def test_a_host_that_says_nothing(exchanges):
  (got,) = in_threads(lambda: hosts._compare_hosts(exchanges[0], 'settings', {'x': 1}, 1))
  assert got.startswith('1 of 2 hosts came within 1 seconds to compare their settings, missing: host 1; ')


def test_ends_reach_the_other_hosts(exchanges):
  assert exchanges[0].ends() == {}
  exchanges[1].announce_end(2, 'a reason')
  assert exchanges[0].ends() == {1: (2, 'a reason')} and exchanges[1].ends() == {}
  exchanges[1].announce_end(75, 'another')
  assert exchanges[0].ends() == {1: (75, 'another')}


@pytest.fixture
def without_internals(monkeypatch):
  monkeypatch.delattr(jax._src, 'distributed')
  monkeypatch.setitem(sys.modules, 'jax._src.distributed', None)


def test_a_jax_without_those_internals(without_internals):
  """tests/multidevice/test_processes.py runs two hosts of such a JAX."""
  assert jax_internals.coordination_client() is None and jax_internals.place() is None
  with jax_internals.registration_limit(5, print) as is_set:
    assert not is_set


def test_internals_that_have_changed(monkeypatch):
  """A module of the same name without what is used."""
  monkeypatch.setattr(jax._src.distributed, 'global_state', object())
  monkeypatch.setattr(jax._src.distributed, '_jax', object())
  assert jax_internals.coordination_client() is None and jax_internals.place() is None
  with jax_internals.registration_limit(5, print) as is_set:
    assert not is_set


def test_the_service_is_made_with_the_limit(monkeypatch):
  made, checked = [], []
  functions = jax._src.distributed._jax
  monkeypatch.setattr(functions, 'get_distributed_runtime_service', lambda *args, **kwargs: made.append((args, kwargs)))
  original = functions.get_distributed_runtime_service
  with jax_internals.registration_limit(5, checked.append) as is_set:
    functions.get_distributed_runtime_service('[::]:1', 2, recoverable=False)
  assert is_set and checked == ['[::]:1'] and functions.get_distributed_runtime_service is original
  assert made == [(('[::]:1', 2), {'recoverable': False, 'cluster_register_timeout': 5})]


ABORT = """
import ctypes, os, sys, time
from mathqwen.hardware import jax_internals

abort = ctypes.CDLL(None).abort  # without the interpreter's lock, as in a C++ thread
if 'missing' in sys.argv:
  ctypes.CDLL = lambda _: None

def end(text):
  if 'slow' in sys.argv:
    time.sleep(8)  # longer than abort() waits for a text of which nothing is known
  os.write(sys.stderr.fileno(), b'explained: ' + text.encode())
  os._exit(7)

print(jax_internals.on_fatal_error(end))
sys.stdout.flush()
os.write(2, b'I1124 12:52:41.1 18160 coordination_service.cc:1] of no interest\\nnor this\\n')
os.write(2, b'W1124 12:52:41.1 18160 other.cc:1] kept\\nand this\\n')
os.write(2, b'F1124 client.h:80] JAX distributed service detected fatal errors. a\\n')
os.write(2, b'b\\n*** Check failure stack trace: ***')
time.sleep(1)  # as long as C++ looks for the names of the trace
abort()
"""


@pytest.mark.parametrize('how', ['quick', 'slow', 'missing'])
def test_an_abort_is_explained_where_libc_allows_it(how):
  done = subprocess.run([sys.executable, '-c', ABORT, how], capture_output=True, text=True, timeout=60)
  if how == 'missing':
    assert (done.returncode, done.stdout) == (-6, 'False\n') and 'of no interest' in done.stderr
    return
  assert (done.returncode, done.stdout) == (7, 'True\n'), done.stderr
  assert done.stderr == (
    'W1124 12:52:41.1 18160 other.cc:1] kept\nand this\n'
    'explained: F1124 client.h:80] JAX distributed service detected fatal errors. a\nb\n'
  )


JOIN = """
from mathqwen.hardware import hosts, jax_internals
hosts.join('auto', '')
print(jax_internals.place().address)
"""


@pytest.mark.parametrize('given, port', [(None, '8476'), ('8479', '8479')])
def test_the_hosts_of_a_tpu_meet_at_a_port_that_google_opens(given, port):
  """One process that takes itself for the only host of a slice on GKE; it computes on the CPU."""
  # Answers for every question that JAX would ask the metadata server of a TPU VM.
  slices = {'MEGASCALE_COORDINATOR_ADDRESS': '', 'MEGASCALE_NUM_SLICES': '', 'MEGASCALE_SLICE_ID': ''}
  pod = {'TPU_WORKER_HOSTNAMES': '127.0.0.1', 'TPU_WORKER_ID': '0', 'TPU_SKIP_MDS_QUERY': '1'}
  environment = os.environ | slices | pod | {'JAX_FORCE_TPU_INIT': '1', 'JAX_PLATFORMS': 'cpu'}
  if given and compat.release(jax.__version__) < (0, 8, 1):
    pytest.skip('JAX before 0.8.1 has no JAX_COORDINATOR_PORT')
  environment |= {'JAX_COORDINATOR_PORT': given} if given else {}
  done = subprocess.run([sys.executable, '-c', JOIN], capture_output=True, text=True, env=environment, timeout=100)
  assert done.stdout == f'127.0.0.1:{port}\n', done.stderr


def test_which_errors_may_be_of_a_lost_host():
  gloo = (
    'Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:19344'
  )
  may_be = lambda error: hosts._is_from_collective(type(error), error)
  assert may_be(ValueError(f'UNKNOWN: {gloo}')) and may_be(jax.errors.JaxRuntimeError(f'INTERNAL: {gloo}'))
  assert not may_be(jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'))
  assert not may_be(ValueError('unknown')) and not may_be(RuntimeError(f'UNKNOWN: {gloo}'))
