"""The data that tests read: samples of the published data sets, which every checkout has, and the full files."""

import collections
import json
import pathlib
import random
import shutil

import pytest

from mathqwen.data import arithmetic

SAMPLES = pathlib.Path(__file__).parents[1] / 'testdata' / 'data_sets'
PUBLISHED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'

DataDir = collections.namedtuple('DataDir', 'path is_full')


def need_published():
  if not PUBLISHED.is_dir():
    pytest.skip(f'the full data sets are not here: {PUBLISHED}')


@pytest.fixture(scope='session')
def samples(tmp_path_factory):
  """GSM8K and MATH from tests/testdata; Math401 and Math23K, which state no licence, as made-up rows of their form."""
  folder = tmp_path_factory.mktemp('samples')
  shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
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
def data_dir(request, samples):
  """A directory for --data-dir: (path, is_full)."""
  if request.param == 'published':
    need_published()
    return DataDir(PUBLISHED, True)
  return DataDir(samples, False)
