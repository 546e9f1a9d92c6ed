import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(1500)  # minutes of compiling, on a machine that may do other work
SCRIPT = pathlib.Path(__file__).parent / 'run_meshes.py'
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope='module')
def results():
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8',
    'PYTHONPATH': str(ROOT),
  }
  done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, timeout=1490)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def test_every_mesh_trains_like_one_device(results):
  one, *meshes = results['trained']
  assert one['name'] == 'one' and len(meshes) == 14
  assert len(one['losses']) == 20 and one['losses'][0] - one['losses'][4] > 0.1  # wrong updates would show
  for got in meshes:
    assert got['losses'] == pytest.approx(one['losses'], rel=1e-5), got['name']
    assert got['compiled'] == 1, got['name']


def test_a_vocabulary_that_the_mesh_does_not_divide_trains_like_one_device(results):
  one, *meshes = results['odd']
  assert len(meshes) == 3 and one['losses'][0] - one['losses'][4] > 0.1
  for got in meshes:
    assert got['losses'] == pytest.approx(one['losses'], rel=1e-5), got['name']


def test_adapters_learn_on_a_mesh_what_they_learn_on_one_device(results):
  one, *meshes = results['adapted']
  assert len(meshes) == 1 and one['losses'][0] - one['losses'][4] > 0.02
  for got in meshes:
    assert got['losses'] == pytest.approx(one['losses'], rel=1e-5), got['name']
    assert got['compiled'] == 1, got['name']


def test_adapters_on_a_base_in_4_bits_learn_on_a_mesh_what_they_learn_on_one_device(results):
  one, *meshes = results['on_nf4']
  assert len(meshes) == 1 and one['losses'][0] - one['losses'][4] > 0.02
  for got in meshes:
    assert got['losses'] == pytest.approx(one['losses'], rel=1e-5), got['name']
    assert got['compiled'] == 1, got['name']


def test_weights_in_int8_answer_on_a_mesh_as_on_one_device(results):
  (one, _), *meshes = results['in_int8']
  assert [answers for answers, _ in meshes] == [one] and one != results['answers'][0][0]


def test_a_mesh_learns_answers_with_one_question_like_rows_of_their_own_on_one_device(results):
  (alone, many), (losses, tokens) = results['shared']
  assert len(set(alone)) == 3 and losses == pytest.approx(alone, rel=1e-5)
  assert tokens < 0.8 * many


def test_a_mesh_learns_from_pairs_what_one_device_learns(results):
  one, *meshes = results['pairs']
  assert one[0] == pytest.approx(math.log(2), rel=1e-6) and one[6] < one[0]
  for got in meshes:
    assert got == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_splash_on_a_mesh_sees_answers_as_the_reference(results):
  assert max(results['splash']) < 1e-5


def test_mesh_answers_like_one_device(results):
  """In slots that are filled again, by as few programs (a jit counts the same one twice if its caller differs)."""
  (one, _), (mesh, programs) = results['answers'][:2]
  assert mesh == one and len({tuple(answer) for answer in one}) == 13
  assert max(programs) <= 2


def test_thinking_is_closed_on_a_mesh_as_on_one_device(results):
  (free, _), _, (one, _), (mesh, programs) = results['answers']
  assert mesh == one and max(programs) == 0  # the programs are those of answers without a budget
  cut = [i for i, (a, b) in enumerate(zip(free, one, strict=True)) if a != b]
  assert len(cut) >= 3 and all(i % 2 and one[i][:4] == [*free[i][:2], 7, 8] for i in cut)


def test_optimizer_state_is_split(results):
  for got in results['trained'] + results['odd']:
    sizes = got['mesh']
    assert got['smallest'] == 1 / (sizes['fsdp'] * sizes['context'] * sizes['tensor']), got['name']


def test_each_device_makes_its_share_of_the_logits(results):
  """4 groups of positions and 64 rows of the vocabulary, on 8 devices: each has 8 rows for all groups, none has 64."""
  assert ['4', '8'] in results['logits'] and '64' not in {rows for _, rows in results['logits']}
  # Where a device has the whole head, it takes its own group only.
  assert results['odd_logits'] == [['1', '66']]
