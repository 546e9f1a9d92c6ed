"""A benchmark is one file: a new one is found, listed, evaluated and shown without any other change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mathqwen.config import DataConfig
from mathqwen.data import catalog, datasets, sources
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, run
from mathqwen.text.loading import load_tokenizer

ROOT = Path(__file__).parents[2]

TASK = """
from mathqwen.data.catalog import DataSet, Download, Split
from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark, PromptSettings


def parse(record):
  answer = text_field(record, 'target')
  return {'question': text_field(record, 'asked'), 'solution': answer, 'answer': answer, 'extra': {'kind': 'sum'}}


DATA = DataSet(
  name='sums',
  about='Two sums.',
  licence='CC0',
  splits={'test': Split(('sums/test.jsonl',))},
  parse=parse,
  fields=('asked', 'target'),
)

BENCHMARK = Benchmark(
  'sums',
  title='Sums',
  source='sums',
  rule='number',
  max_new_tokens=40,
  size=2,
  by_prompt={'abel': PromptSettings('abel', max_new_tokens=30)},
  groups=(('kind',),),
  table12={('GPT-4', '-'): 100.0, ('Somebody', '3B'): 12.5},
)
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  """add(text) writes the task file sums.py into a folder that $MATHQWEN_TASKS names, and finds it."""
  folder = tmp_path / 'tasks'
  folder.mkdir()

  def add(text):
    (folder / 'sums.py').write_text(text)
    monkeypatch.setenv('MATHQWEN_TASKS', str(folder))
    catalog._load_all.cache_clear()
    for name, benchmark in benchmarks._collect().items():
      monkeypatch.setitem(benchmarks.BENCHMARKS, name, benchmark)

  yield add
  catalog._load_all.cache_clear()


@pytest.fixture
def sums(tmp_path):
  """A data directory with the rows of TASK's data set."""
  (tmp_path / 'data' / 'sums').mkdir(parents=True)
  rows = [{'asked': '1+1=', 'target': '2'}, {'asked': '2*3=', 'target': '6'}]
  (tmp_path / 'data' / 'sums' / 'test.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(tmp_path / 'data')


def test_one_file_adds_a_benchmark(tasks, sums, reciting, tmp_path):
  tasks(TASK)
  assert list(benchmarks.BENCHMARKS)[-1] == 'sums' and catalog.names()[-1] == 'sums'
  result = run.evaluate(reciting(), 'sums', run.Ask(sums), out=tmp_path / 'out', progress=False)
  scores = result['benchmarks']['sums']
  assert (scores['n'], scores['correct'], scores['published_n'], scores['rule']) == (2, 2, 2, 'number')
  assert scores['by_group'] == {'sum': {'n': 2, 'correct': 2, 'accuracy': 1.0}}
  records = (tmp_path / 'out' / 'sums' / 'records.jsonl').read_text()
  assert [json.loads(line)['id'] for line in records.splitlines()] == ['sums/test/0', 'sums/test/1']
  with run.prepare(reciting(), 'sums', run.Ask(sums, prompt='abel')) as [(prepared, _)]:
    assert (prepared.settings['rule'], prepared.settings['max_new_tokens']) == ('abel', 30)


def command(*words):
  """What `mathqwen WORDS` prints in a process of its own."""
  done = subprocess.run(
    [sys.executable, '-m', 'mathqwen', *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_every_command_finds_it(tasks, sums, reciting, tmp_path):
  tasks(TASK)
  run.evaluate(reciting(), 'sums', run.Ask(sums), out=tmp_path / 'out', progress=False)
  header, _, *rows = [line for line in command('table', tmp_path / 'out').splitlines() if line.startswith('|')]
  assert 'Sums' in header
  assert any('GPT-4' in row and '100.0' in row and '92.0' in row for row in rows)
  assert any('Somebody' in row and '12.5' in row for row in rows)
  assert any('100.0 ± 0.0' in row for row in rows)
  assert command('grade', tmp_path / 'out' / 'sums' / 'records.jsonl', '--benchmark', 'sums').startswith('sums: 2 of 2')
  assert 'college_math, arithmetic, sums' in ' '.join(command('evaluate', '--help').split())


def test_a_benchmark_is_chosen_once_by_name_and_as_an_object():
  found = benchmarks.choose(['math500', benchmarks.get('gsm8k'), 'math500', 'gsm8k'])
  assert [benchmark.name for benchmark in found] == ['math500', 'gsm8k']


def test_a_data_set_of_the_users_needs_its_directory(tasks):
  tasks(TASK)
  with pytest.raises(UserError, match='sums cannot be downloaded: pass --data-dir DIR with sums/test.jsonl'):
    sources.load('sums', 'test')


def test_a_file_without_a_data_set_asks_the_rows_of_a_path(tasks, reciting, tmp_path):
  (tmp_path / 'mine.jsonl').write_text('{"question": "1+1=", "answer": "2"}\n')
  tasks(
    'from mathqwen.evals.tasks import Benchmark\n'
    f"BENCHMARK = Benchmark('mine', title='My own', source={str(tmp_path / 'mine.jsonl')!r}, rule='number', "
    'max_new_tokens=40)\n'
  )
  scores = run.evaluate(reciting(), 'mine', progress=False)['benchmarks']['mine']
  assert (scores['n'], scores['correct']) == (1, 1)


def test_a_download_of_the_users_is_prepared(tasks, sums, tmp_path, monkeypatch):
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  download = "  downloads={'sums/test.jsonl': Download('https://example.org/1/test.jsonl', '0' * 64)},\n"
  tasks(TASK.replace("  fields=('asked', 'target'),\n", f"  fields=('asked', 'target'),\n{download}"))
  assert catalog.downloadable()[-1] == 'sums'
  assert datasets.prepare('sums', sums)['splits'] == {'test': 2}
  assert [example.answer for example in sources.load('sums', 'test')[0]] == ['2', '6']


@pytest.mark.parametrize(
  'text, message',
  [
    ('import nothing_of_this_name\n', r'sums.py:1: ModuleNotFoundError: .*; correct the task file'),
    ('x = 1\ny = (\n', r'sums.py:2: SyntaxError: '),
    ('x = 1\nx.y\n', r'sums.py:2: AttributeError: '),
    ('x = 1\n', r'sums.py does not define `BENCHMARK = Benchmark\(...\)`'),
    (TASK.replace("Benchmark(\n  'sums'", "Benchmark(\n  'gsm8k'"), r"sums.py: a benchmark 'gsm8k' exists already"),
    (TASK.replace("name='sums'", "name='math'"), r"sums.py: a data set 'math' exists already"),
    (TASK.replace('  size=2,\n', ''), r'sums.py:\d+: ValueError: sums has published figures and no size'),
    (f"{TASK}\nDATA = 'sums.jsonl'\n", 'sums.py: DATA must be a DataSet, not str'),
  ],
)
def test_a_bad_file_is_named(tasks, text, message):
  with pytest.raises(UserError, match=message):
    tasks(text)
    catalog.names()


def test_a_folder_that_does_not_exist_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv('MATHQWEN_TASKS', str(tmp_path / 'none'))
  with pytest.raises(UserError, match='MATHQWEN_TASKS names .*none, which is not a directory'):
    catalog.names()


def test_task_files_import_nothing_above_data():
  code = (
    'import importlib, sys; from mathqwen.data import catalog; catalog.task_files(); '
    'print(sorted(m for m in sys.modules if m.startswith("mathqwen.") and not m.startswith("mathqwen.evals.tasks"))); '
    'print([m for m in ("jax", "numpy", "tensorflow_datasets") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
  rooms, heavy = done.stdout.splitlines()
  assert heavy == '[]', done.stderr
  assert {name for name in json.loads(rooms.replace("'", '"')) if name.startswith('mathqwen.evals')} == {
    'mathqwen.evals'
  }


def test_a_data_set_of_the_users_can_be_trained_on(tasks, sums, tmp_path):
  tasks(TASK.replace("splits={'test'", "splits={'train': Split(('sums/train.jsonl',)), 'test'"))
  (tmp_path / 'data' / 'sums' / 'train.jsonl').write_text('{"asked": "3+4=", "target": "7"}\n')
  config = DataConfig(sources=('sums',), data_dir=sums, eval_examples=0)
  data = TrainingData(config, load_tokenizer())
  assert data.describe()[0].startswith('sums: 1 examples, ')
