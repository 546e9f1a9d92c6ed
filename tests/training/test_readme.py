"""mathqwen/training/README.md names what a run writes, no more and no less."""

import json
import pathlib
import re

from mathqwen import cli
from mathqwen.model import stack

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'mathqwen' / 'training' / 'README.md').read_text()


def first_column(heading):
  """The names in backquotes in the first column of the tables under a heading."""
  section = TEXT.split(f'## {heading}\n')[1].split('\n## ')[0]
  rows = [line.split('|')[1] for line in section.splitlines() if line.startswith('| `')]
  return [name for row in rows for name in re.findall(r'`(\w+)`', row)]


def test_the_metrics(trained):
  lines = (trained / 'metrics.jsonl').read_text().splitlines()
  written = {name for line in lines for name in json.loads(line)}
  assert written | {'mfu'} == set(first_column('Metrics'))  # a CPU has no published peak


def test_the_json(trained, tiny, capsys):
  assert cli.main(['train', tiny.config, '--workdir', str(trained), '--json']) == 0
  summary = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert set(summary) == set(first_column('Metrics')) | set(first_column('The JSON of a run'))


def test_the_values_of_remat():
  assert first_column('Memory') == list(stack.REMAT)


def test_paths_exist():
  links = re.findall(r'\]\(([^)]+)\)', TEXT)
  assert links
  for link in links:
    assert (ROOT / 'mathqwen' / 'training' / link).exists(), link
