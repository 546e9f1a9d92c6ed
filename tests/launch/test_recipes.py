"""The job for other launchers: shellcheck and bash accept the scripts, each tool knows its flags."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml

from launch.tpu import job, recipes
from mathqwen.errors import UserError

# The flags of xpk 1.16.0.
XPK = {
  'cluster create': {
    '--cluster', '--tpu-type', '--num-slices', '--zone', '--spot', '--on-demand', '--flex', '--reservation',
  },
  'workload create': {
    '--workload', '--cluster', '--tpu-type', '--num-slices', '--zone', '--docker-image', '--max-restarts',
    '--restart-on-exit-codes', '--command',
  },
}  # fmt: skip
KINDS = [
  ['slice = "tpu7x-16"', 'provisioning = "on-demand"'],
  ['slice = "v6e-16"', 'provisioning = "spot"', 'data = ["gsm8k", "math401"]'],
  ['slice = "v5p-32"', 'provisioning = "flex-start"', 'max_run = "10h"'],
  ['slice = "v6e-16"', 'provisioning = "reserved"'],
]


def commands_of(text) -> list[list[str]]:
  """The words of each command in a script, with variables unexpanded."""
  lines = re.sub(r'\\\n', ' ', text).splitlines()
  return [shlex.split(line) for line in lines if re.match(r'(gcloud|xpk|docker) ', line)]


def flags_of(words) -> set[str]:
  return {word.partition('=')[0] for word in words if word.startswith('--')}


@pytest.mark.parametrize('lines', KINDS, ids=lambda lines: lines[0])
@pytest.mark.parametrize('name', ['gke', 'gce'])
def test_scripts(name, lines, job_file, tmp_path):
  text = recipes.RECIPES[name](job.read(job_file(*lines)))
  (tmp_path / 'recipe.sh').write_text(text)
  checked = subprocess.run([f'{sys.prefix}/bin/shellcheck', tmp_path / 'recipe.sh'], capture_output=True, text=True)
  assert checked.returncode == 0, checked.stdout
  # Without the variables that it needs, nothing is started.
  done = subprocess.run(['/bin/bash', tmp_path / 'recipe.sh'], env={'PATH': '/nowhere'}, capture_output=True, text=True)
  assert done.returncode and re.search(r'IMAGE(_FAMILY)?: (where the container goes|of the image)', done.stderr)


@pytest.mark.parametrize('lines', KINDS, ids=lambda lines: lines[0])
def test_gcloud_knows_the_flags(lines, job_file, gcloud_flags):
  text = recipes.gce(job.read(job_file(*lines)))
  for words in commands_of(text):
    command = words[
      1 : next(i for i, word in enumerate(words) if not re.fullmatch(r'[a-z-]+', word) or word == 'math-7b')
    ]
    assert flags_of(words) - gcloud_flags(' '.join(command)) - {'--format'} == set(), words


def test_gke(job_file):
  created, started = [words for words in commands_of(recipes.gke(job.read(job_file(*KINDS[1])))) if words[0] == 'xpk']
  assert flags_of(created) <= XPK['cluster create'] and flags_of(started) <= XPK['workload create']
  assert {'--spot', '--tpu-type=v6e-4x4', '--num-slices=1'} <= set(created)
  (command,) = [word.partition('=')[2] for word in started if word.startswith('--command=')]
  assert shlex.split(command)[:2] == ['bash', '-c']
  assert shlex.split(command)[2].startswith(
    'mathqwen data prepare gsm8k math401 && exec mathqwen train demo --workdir=gs://'
  )
  assert '--tpu-type=tpu7x-2x2x2' in recipes.gke(job.read(job_file(*KINDS[0])))
  assert '--num-slices=2' in recipes.gke(job.read(job_file('slice = "2xv5p-32"')))


def test_gce(job_file):
  text = recipes.gce(job.read(job_file(*KINDS[0])))
  assert '--machine-type=tpu7x-standard-4t' in text and '--accelerator-topology=2x2x2' in text and '--size=2' in text
  for line, message in (
    ('slice = "v5e-16"', 'Compute Engine has no v5e'),
    ('slice = "2xv6e-16"', 'writes one slice of hosts'),
  ):
    with pytest.raises(UserError, match=message):
      recipes.gce(job.read(job_file(line)))


def test_sky(job_file):
  found = job.read(job_file('set = ["data.system_prompt=a: b # {c} \'d\'"]', 'data = ["gsm8k"]', 'slice = "v6e-8"'))
  task = yaml.safe_load(recipes.sky(found))
  assert task['resources']['accelerators'] == 'tpu-v6e-8:1' and task['resources']['use_spot'] is True
  assert task['resources']['accelerator_args'] == {'runtime_version': 'v2-alpha-tpuv6e'}
  assert shlex.split(task['run'])[1:] == found.train()[1:]
  assert shlex.split(task['setup']) == ['bash', 'launch/tpu/worker.sh', 'setup', 'gsm8k']
  for line in ('slice = "tpu7x-16"', 'slice = "2xv6e-16"', 'provisioning = "reserved"'):
    with pytest.raises(UserError, match='recipe --to gke'):
      recipes.sky(job.read(job_file(line)))


@pytest.mark.parametrize('recipe', recipes.RECIPES)
def test_a_file_on_this_machine_is_refused(recipe, job_file):
  found = job.read(job_file('data = ["gsm8k", "mine.jsonl"]', 'slice = "v6e-16"'))
  with pytest.raises(UserError, match="data has 'mine.jsonl', a file on this machine"):
    recipes.RECIPES[recipe](found)


@pytest.mark.parametrize('name', ['mine', 'projects/p/locations/us-east5-a/reservations/mine'])
@pytest.mark.parametrize('recipe', ['gke', 'gce'])
def test_a_reservation_that_the_job_names(recipe, name, job_file):
  text = recipes.RECIPES[recipe](job.read(job_file('provisioning = "reserved"', f'reservation = "{name}"')))
  assert '--reservation=mine ' in text.replace('\n', ' ') and 'RESERVATION:?' not in text
