"""The data that tests read: samples of the data sets, which every checkout has, and the full files."""

import collections
import gzip
import json
import pathlib
import random
import shutil

import own_math_problems
import pytest

from mathqwen.data import arithmetic

SAMPLES = pathlib.Path(__file__).parents[1] / 'testdata' / 'data_sets'
PUBLISHED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'

DataDir = collections.namedtuple('DataDir', 'path is_full')


@pytest.fixture(scope='session')
def published():
  """The directory with the full data sets, for --data-dir; skips the test where it is missing."""
  if not PUBLISHED.is_dir():
    pytest.skip(f'the full data sets are not here: there is no directory {PUBLISHED}')
  return PUBLISHED


@pytest.fixture(scope='session')
def samples(tmp_path_factory):
  """GSM8K from tests/testdata; MATH, Math401 and Math23K, which we may not distribute, as rows of our own."""
  folder = tmp_path_factory.mktemp('samples')
  shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
  (folder / 'math').mkdir()
  for split in ('train', 'test'):
    _write_gzip(folder / 'math' / f'{split}.jsonl.gz', _json_lines(own_math_problems.rows(split)))
    _write_gzip(folder / 'math' / f'{split}_paths.txt.gz', '\n'.join(own_math_problems.paths(split)) + '\n')
  _write_gzip(folder / 'math' / 'test500.jsonl.gz', _json_lines(own_math_problems.test500_rows()))
  (folder / 'math401').mkdir()
  (folder / 'math401' / 'test.jsonl').write_text(_json_lines(math401_rows()))
  train, test = math23k_rows(12), math23k_rows(5, first=100)
  for row, equation in ((train[3], 'x=80千米/小时'), (train[7], 'x=(15+25)/10')):  # no formula; another value
    row['equation'] = equation
  (folder / 'math23k').mkdir()
  (folder / 'math23k' / 'train.jsonl').write_text(_json_lines(train))
  (folder / 'math23k' / 'test.jsonl').write_text(_json_lines(test))
  upstream = '\n'.join(json.dumps(row, indent=4, ensure_ascii=False) for row in test)
  (folder / 'math23k' / 'test_upstream.json').write_text(upstream)
  return folder


def _json_lines(rows):
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


def _write_gzip(path, text):
  path.write_bytes(gzip.compress(text.encode('utf-8'), mtime=0))


def math401_rows():
  """Euler's identity and 25 generated rows of each group; as in Math401, 8 of the 401 ask a query again."""
  rng = random.Random(0)
  rows = [{'query': 'e^(iπ)+1=', 'response': '0'}]
  for number, group in enumerate(arithmetic.GROUPS):
    queries = {row['query'] for row in rows}
    count = 24 if number < 8 else 25
    drawn = []
    while len(drawn) < count:
      row = arithmetic.problem(group, rng)
      if row['query'] not in queries:
        queries.add(row['query'])
        drawn.append({'query': row['query'], 'response': row['response']})
    rows += drawn + drawn[: 25 - count]
  return rows


def math23k_rows(count, first=0):
  rows = []
  for n in range(first, first + count):
    question = f'果园里有{n}棵桃树，又种了3棵，一共有多少棵？'
    rows.append(
      {'id': str(n), 'original_text': question, 'segmented_text': None, 'equation': f'x={n}+3', 'ans': str(n + 3)}
    )
  return rows


@pytest.fixture(params=['samples', 'published'])
def data_dir(request):
  """A directory for --data-dir: (path, is_full)."""
  return DataDir(request.getfixturevalue(request.param), request.param == 'published')


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty directory in which `sources.load` and `datasets.prepare` keep what they prepared."""
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'
