"""What hosts say; tests/multidevice/test_processes.py starts some."""

import socket
import threading
import types

import pytest
from jax._src.lib import _jax

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.hardware import hosts

HOST_2 = types.SimpleNamespace(process_id=2, num_processes=2, coordinator_address='10.0.0.1:99')
SAID = (
  'F1124 12:52:41 18160 client.h:80] Terminating process because the JAX distributed service detected fatal errors. '
)


REMEDY = f'{hosts.AGAIN}; the answers in scores are kept'


@pytest.mark.parametrize('joined, text, status, line', [
  (False, 'DEADLINE_EXCEEDED: Barrier timed out.\n# of tasks that reached the barrier: 2/40.\nThe first task at the '
   'barrier: 0. Some timed out task names:\n3\n2\n\n', 2,
   '2 of 40 hosts came within 300 seconds, missing: among them host 2, 3; start the same'),
  (False, 'INVALID_ARGUMENT: Unexpected task registered with task=2\n', 2,
   'this is host 2 of 2, and host 0 was told that there are fewer: '),
  (False, 'DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask', 2,
   'host 0 was not reached at 10.0.0.1:99 within 305 seconds: '),
  (True, 'UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n2\n7\nThe tasks', 75,
   f'host 2, 7 was lost (no sign of life for 60 seconds): {REMEDY}'),
  (True, 'UNAVAILABLE: Failed to send RPC to coordination service.', 75,
   f'host 0 was lost, which holds the others together: {REMEDY}'),
  (True, 'ABORTED: 1 unexpectedly tried to connect with a different incarnation.', 75,
   f'host 1 was started a second time while this run was going on: {REMEDY}'),
  (True, 'INTERNAL: something new', 1, 'the coordination service of JAX ended this process:  INTERNAL: something new'),
])  # fmt: skip
def test_what_the_coordination_service_says_in_a_line(joined, text, status, line):
  got = hosts.explain(f'{SAID}absl::Status: {text}', joined, HOST_2, REMEDY)
  assert got[0] == status and got[1].startswith(line)


@pytest.mark.parametrize(
  'words, then',
  [
    ('train gsm8k_small --workdir w', 'training continues from its newest checkpoint'),
    ('evaluate m --benchmarks gsm8k --out o', 'the answers in o are kept'),
    ('evaluate m --benchmarks gsm8k', 'without --out, no answers were kept'),
    ('convert to-hf m o', 'the export starts from the beginning'),
  ],
)
def test_each_command_says_what_it_does_after_a_loss(words, then, monkeypatch, capsys):
  def join(where, then):
    raise UserError(f'{where}: {then}')

  monkeypatch.setattr(hosts, 'join', join)
  assert cli.main([*words.split(), '--distributed', 'here']) == 2
  assert capsys.readouterr().err == f'mathqwen: here: {then}\n'


@pytest.fixture
def clients():
  """Two clients of a coordination service, in one process."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  service = _jax.get_distributed_runtime_service(address, 2, shutdown_timeout=10)
  both = [_jax.get_distributed_runtime_client(address, i, shutdown_timeout=10) for i in (0, 1)]
  in_threads(*(client.connect for client in both))
  yield both
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


def test_hosts_that_agree_and_do_not(clients):
  def agree(what, *values):
    return in_threads(*(lambda i=i: hosts._agree(clients[i], i, 2, what, values[i], 20) for i in (0, 1)))

  assert agree('a', {'x': (1, 2)}, {'x': [1, 2]}) == [None, None]
  said = 'the hosts differ in their b: x is 1 on host 0 and None on host 1 (1 more differ): give every host the same'
  got = agree('b', {'x': 1}, {'y': 1})
  assert got[0] == got[1] and got[0].startswith(said)


def test_values_of_all_hosts_in_pieces(clients, monkeypatch):
  monkeypatch.setattr(hosts, 'PART', 7)
  values = [{'text': 'ä\ud83d' * 40, 'none': None}, [1, 2.5]]
  stored = lambda: {key.split('/')[2] for key, _ in clients[0].key_value_dir_get(f'{hosts.GATHERED}/')}
  for call in range(3):
    got = in_threads(*(lambda i=i, call=call: hosts._gather(clients[i], i, 2, call, [call, values[i]]) for i in (0, 1)))
    assert got[0] == got[1] == [[call, value] for value in values]
  assert stored() == {'2'}  # what every host has read is gone


def test_a_host_that_says_nothing(clients):
  (got,) = in_threads(lambda: hosts._agree(clients[0], 0, 2, 'settings', {'x': 1}, 1))
  assert got.startswith('1 of 2 hosts came within 1 seconds to compare their settings, missing: host 1; ')
