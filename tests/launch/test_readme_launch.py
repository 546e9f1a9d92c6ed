"""launch/README.md: what it shows is what the code prints, and what it names is there."""

import dataclasses
import pathlib
import re
import shlex

import pytest

from launch.tpu import __main__ as launcher
from launch.tpu import commands, job, recipes
from mathqwen.config import MeshConfig
from mathqwen.hardware import hosts, jax_internals

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'launch' / 'README.md').read_text()


@pytest.fixture
def example(tmp_path):
  text = (ROOT / 'launch/tpu/example.toml').read_text().replace('BUCKET', 'my-math-runs')
  (tmp_path / 'math-7b.toml').write_text(text)
  return str(tmp_path / 'math-7b.toml')


def test_the_dry_run(example, capsys):
  command, shown = re.search(r'```\n\$ python -m launch.tpu (.*)\n((?:.+\n)+)```', README).groups()
  words = [example if word == 'math-7b.toml' else word for word in shlex.split(command)]
  assert launcher.main(words) == 0
  assert capsys.readouterr().out == shown


def test_lines_of_hosts():
  """tests/multidevice/test_processes.py has real hosts print them."""
  missing = jax_internals.missing_hosts(2, 4, [1, 3], f'joined within {hosts.DEFAULTS[hosts.START]} seconds')
  first, second = {'train.steps': 20}, {'train.steps': 30}
  differing = hosts._difference('settings', first, [second], {1: ['train.steps']})
  remedy = f'{hosts.RUN_AGAIN}; training continues from its newest checkpoint'
  place = jax_internals.Place(0, 2, 'host:1')
  situation = jax_internals.Situation(True, place, 300, 305, hosts.DEFAULTS[hosts.LOST], remedy)
  _, lost = jax_internals.explain('UNAVAILABLE: (stopped sending heartbeats):\n1\nThe', situation)
  shown = re.search(r'```\n((?:mathqwen: .+\n)+)```', README)[1]
  assert shown.splitlines() == [f'mathqwen: {line}' for line in (missing, differing, lost)]


def test_names(example):
  """Fields of a job file, verbs, recipes, mesh axes and variables: all of them, and no others."""
  fields = set(re.findall(r'`(\w+)`', section('The job file').partition('| fields |')[2].partition('\n\n')[0]))
  values = {'BUCKET', 'NAME', 'spot', 'reserved'}
  assert fields - values == {field.name for field in dataclasses.fields(job.TpuJob)}
  table = section('Other verbs, and what the exit status means').partition('| verb |')[2].partition('\n\n')[0]
  verbs = {verb for line in table.splitlines() for verb in re.findall(r'`(\w+)`', line.partition(' | ')[0])}
  assert verbs == {*launcher.ACTIONS, 'plan', 'recipe'} - {'up'}
  assert set(re.findall(r'--to (\w+)', README)) == set(recipes.RECIPES)
  assert re.findall(r'^\| `(\w+)` \|', section('The mesh'), re.M) == [f.name for f in dataclasses.fields(MeshConfig)]
  assert {f'`{name}` ({value})' for name, value in hosts.DEFAULTS.items()} <= set(re.findall(r'`\w+` \(\d+\)', README))
  assert commands.create(job.read(example))[0] == 'gcloud'


def section(heading: str) -> str:
  return re.split(r'\n#+ ', README.split(f'# {heading}\n')[1])[0]


def test_paths_and_links():
  for path in re.findall(r'(?:bash |-file |`)(launch/[\w/.]+|tests/[\w/.]+)', README):
    assert (ROOT / path).exists(), path
  for path in re.findall(r'^\| `(\w+/)` \|', README, re.M):
    assert (ROOT / 'launch' / path).is_dir(), path
  anchors = {re.sub(r'[^\w -]', '', line.lower()).replace(' ', '-') for line in re.findall(r'^#+ (.*)', README, re.M)}
  assert set(re.findall(r'\]\(#([\w-]+)\)', README)) <= anchors


def test_gcloud_knows_the_commands(gcloud_flags):
  lines = [shlex.split(line, comments=True) for line in re.findall(r'^gcloud (.*)$', README, re.M)]
  assert len(lines) > 6
  for words in lines:
    words = words[: words.index('&&')] if '&&' in words else words
    flags = {word.partition('=')[0] for word in words if word.startswith('--')}
    for length in range(len(words), 0, -1):  # the words that are arguments come after those of the command
      try:
        known = gcloud_flags(' '.join(words[:length]))
        break
      except KeyError:
        continue
    assert flags <= known | {'--quiet'}, words
