"""The data sets row by row: the published files where they are, and the samples that every checkout has."""

import collections
import gzip
import hashlib
import re

import pytest

from mathqwen.data import catalog, examples, sources
from mathqwen.data.arithmetic import GROUPS
from mathqwen.data.examples import parse_file
from mathqwen.data.expressions import evaluate
from mathqwen.data.field_texts import last_boxed

pytestmark = pytest.mark.usefixtures('cache')

ROWS = {  # (source, split): (rows, different questions) in the full data, in the samples
  ('gsm8k', 'train'): ((7473, 7473), (60, 60)),
  ('gsm8k', 'test'): ((1319, 1319), (30, 30)),
  ('math', 'train'): ((7500, 7500), (40, 40)),
  ('math', 'test'): ((5000, 5000), (40, 40)),
  ('math500', 'test'): ((500, 500), (20, 20)),
  ('math401', 'test'): ((401, 393), (401, 393)),
  ('math23k', 'train'): ((22162, 22148), (12, 12)),
  ('math23k', 'test'): ((1000, 1000), (5, 5)),
}
EMPTY_BOXES = {  # in MATH's training rows: those of the full data, and ours
  True: ['train/number_theory/7115.json', 'train/number_theory/7117.json'],
  False: ['train/number_theory/140.json', 'train/number_theory/141.json'],
}
BAD_EQUATIONS = {True: ['4303', '9718', '9761', '10431', '12495', '17520', '22085'], False: ['3', '7']}


@pytest.mark.parametrize('source, split', ROWS)
def test_published_rows(source, split, data_dir):
  def parsed_file(source, split):
    return parse_file(examples.find(source, split, data_dir.path), source, split)

  parsed, report = parsed_file(source, split)
  rows, distinct = ROWS[source, split][0 if data_dir.is_full else 1]
  assert not report.counts and len(parsed) == rows == len({example.id for example in parsed})
  assert len({example.question for example in parsed}) == distinct
  assert all('<<' not in example.solution for example in parsed if source == 'gsm8k')
  unanswered = [example.id for example in parsed if not example.answer]
  assert unanswered == (EMPTY_BOXES[data_dir.is_full] if (source, split) == ('math', 'train') else [])
  if source == 'math401':
    counts = collections.Counter(example.extra['group'] for example in parsed)
    assert counts == {'Euler': 1} | {group: 25 for group in GROUPS}
  if source == 'math500':  # the box and the answer field agree
    assert all(last_boxed(example.solution) == example.answer for example in parsed)
    assert {example.id for example in parsed} < {example.id for example in parsed_file('math', 'test')[0]}
  if (source, split) == ('math23k', 'train'):
    bad = [example.id.rsplit('/', 1)[1] for example in parsed if not example.solution.startswith('算式')]
    assert bad == BAD_EQUATIONS[data_dir.is_full]
    for example in parsed[:: 10 if data_dir.is_full else 1]:
      *lines, answer = example.solution.split('\n')
      assert answer == f'答案：{example.answer}'
      for line in lines[1:]:
        left, right = line.split('=')
        assert left != right and evaluate(left) == evaluate(right), (example.id, line)
      if lines:
        assert evaluate(lines[0].removeprefix('算式：')) == evaluate(example.answer)
  if (source, split) == ('math23k', 'test'):
    name = 'test_upstream.json.gz' if data_dir.is_full else 'test_upstream.json'
    upstream, _ = parse_file(data_dir.path / 'math23k' / name, source, split)
    assert [example.solution for example in upstream] == [example.solution for example in parsed]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_sampled_rows_of_gsm8k_are_published_rows(split, samples, published):
  fields = []
  for folder in (samples, published):
    rows, _ = parse_file(examples.find('gsm8k', split, folder), 'gsm8k', split)
    fields.append({(row.question, row.solution, row.answer, str(row.extra)) for row in rows})
  assert fields[0] < fields[1]


def test_our_rows_of_math_are_not_published_rows(samples, published):
  """MATH may not be distributed."""
  problems, solutions = [], []
  for folder in (samples, published):
    found = []
    for split in ('train', 'test'):
      rows, _ = parse_file(examples.find('math', split, folder), 'math', split)
      found += rows
    problems.append({row.question for row in found})
    solutions.append({row.solution for row in found})
  assert not problems[0] & problems[1] and not solutions[0] & solutions[1]


QUIRKS = (
  r'\\boxed \d',
  r'\\boxed\{\}',
  r'\\fbox',
  r'\\boxed\{\\d?frac\{',
  r'\\boxed.*\\boxed',
  r'\[asy\]',
  r'\.  [A-Z]',
)


def test_our_rows_of_math_have_its_quirks(samples):
  rows = {split: parse_file(examples.find('math', split, samples), 'math', split)[0] for split in ('train', 'test')}
  solutions = [example.solution for example in rows['train'] + rows['test']]
  for quirk in QUIRKS:
    assert any(re.search(quirk, solution) for solution in solutions), quirk
  assert any('[asy]' in example.question for example in rows['test'])
  assert [example.id for example in rows['train'] if example.extra['level'] is None] == [
    'train/geometry/80.json',
    'train/geometry/81.json',
  ]


@pytest.mark.parametrize(
  'source, split, rows, sampled',
  [
    ('gsm8k', 'test', 1319, 30),
    ('math500', 'test', 500, 20),
    ('math401', 'test', 401, 401),
    ('math23k', 'test', 1000, 5),
  ],
)
def test_published_benchmarks(source, split, rows, sampled, data_dir):
  loaded, report = sources.load(source, split, str(data_dir.path), strict=True)
  assert len(loaded) == (rows if data_dir.is_full else sampled)
  assert report.counts == ({'duplicate': 8} if source == 'math401' else {})
  assert loaded == examples.parse_file(examples.find(source, split, data_dir.path), source, split)[0]


def test_published_files_have_the_checksums_of_the_downloads(published):
  """Files that the data folder keeps as they were published."""
  for stored, name, target in (
    ('gsm8k/train.jsonl', 'gsm8k', 'gsm8k/train.jsonl'),
    ('gsm8k/test.jsonl', 'gsm8k', 'gsm8k/test.jsonl'),
    ('math401/test.jsonl', 'math401', 'math401/math401.json'),
    ('math23k/test_upstream.json', 'math23k', 'math23k/math23k_test.json'),
  ):
    content = gzip.decompress((published / f'{stored}.gz').read_bytes())
    assert hashlib.sha256(content).hexdigest() == catalog.get(name).downloads[target].sha256, stored
