r"""Each benchmark's rows as its publisher writes them, with problems of our own: what is asked, and the gold answer."""

import gzip
import json

import pytest

from mathqwen.data import catalog, examples, sources
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, run
from mathqwen.evals.report import table12
from mathqwen.grading import grade

# benchmark: (a row, the question, the gold answer, what else graders and groups read)
ROWS = {
  'aime24': ({'problem': 'Add $2$ and $23$.', 'answer': '025', 'url': 'u'}, 'Add $2$ and $23$.', '025', {'url': 'u'}),
  'aime25': ({'id': 'aime25-0', 'problem': 'p', 'expected_answer': '7'}, 'p', '7', {}),
  'amc23': ({'id': 0, 'problem': 'p', 'answer': 27.0, 'url': None}, 'p', '27', {}),
  'olympiadbench': (
    {
      'id': 5, 'question': 'Which?', 'context': 'Let $a$ be.', 'final_answer': ['$69$,$84$'], 'subfield': 'Algebra',
      'answer_type': 'Numerical', 'unit': 'km', 'error': '1e-1',
    },
    'Let $a$ be.\nWhich?',
    '69,84',
    {'subject': 'Algebra', 'type': 'Numerical', 'unit': 'km', 'tolerance': '1e-1'},
  ),
  'minerva_math': (
    {'problem': 'p', 'solution': 'It is \\boxed{1.6} cm', 'type': 'Astronomy'},
    'p', '1.6', {'course': 'Astronomy', 'tolerance': '0.01%'},
  ),
  'svamp': (
    {'Body': 'There are 4 pens', 'Question': 'How many?', 'Answer': 4.0, 'Equation': '4', 'Type': 'Addition'},
    'There are 4 pens. How many?', '4', {'type': 'Addition'},
  ),
  'asdiv': (
    {'body': 'A has 2.', 'question': 'Who?', 'answer': 'Mrs. B. (name)', 'formula': 'x', 'solution_type': 'Sum'},
    'A has 2. Who?', '\\text{Mrs. B}', {'type': 'Sum'},
  ),
  'mawps': ({'input': 'q', 'target': 0.3333333333, 'type': 'singleop'}, 'q', '0.3333333333', {'type': 'singleop'}),
  'gsm_hard': ({'input': 'q', 'target': 3.5e-07, 'code': 'c'}, 'q', '0.00000035', {'tolerance': '0.000000003500'}),
  'gsm_plus': (
    {'question': 'q', 'solution': 's', 'answer': '3.2', 'perturbation_type': 'digit expansion', 'seed_answer': '3'},
    'q', '3.2', {'type': 'digit expansion'},
  ),
  'cmath': ({'grade': 1, 'input': '一加一？', 'golden': '2', 'num_digits': 1}, '一加一？', '2', {'grade': 1}),
  'cmath_test': ({'grade': 6, 'question': '一半？', 'golden': '50%'}, '一半？', '50%', {'grade': 6}),
  'gaokao2023en': ({'question': 'Choose.', 'answer': 'C', 'lang': 'en'}, 'Choose.', '\\text{C}', {}),
  'college_math': (
    {'question': 'q', 'answer': '$\\$ 3$ and $x$', 'license': 'Creative (CC BY 3.0)', 'data_topic': 'c.algebra'},
    'q', '\\$ 3 and x', {'topic': 'algebra', 'licence': 'Creative (CC BY 3.0)'},
  ),
}  # fmt: skip


def jsonl(*rows):
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()


def put(folder, name, content):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)


@pytest.mark.parametrize('name', ROWS)
def test_a_row_as_it_is_published(name, tmp_path):
  row, question, answer, extra = ROWS[name]
  data, split = catalog.find_split(name, 'test')
  for file in data.splits[split].files:  # by every name that it goes by, compressed or not
    for ending in ('', '.gz'):
      folder = tmp_path / f'{file}{ending}'.replace('/', '-')
      put(folder, f'{file}{ending}', jsonl(row))
      (example,), report = examples.parse_file(examples.find(name, 'test', folder), name, 'test')
      assert (example.question, example.answer, example.extra) == (question, answer, extra) and not report.counts
  right = grade.grade(f'\\boxed{{{answer}}}', answer, benchmarks.get(name).rule, extra.get('tolerance'))
  assert right.correct


def test_a_table_without_a_header(tmp_path):
  put(tmp_path, 'mgsm_zh/mgsm_zh.tsv', '鸭子每天下 16 颗蛋，"三颗", 几颗？\t1,600\n第二题\t-5\n'.encode())
  found, _ = examples.parse_file(examples.find('mgsm_zh', 'test', tmp_path), 'mgsm_zh', 'test')
  assert [(e.question, e.answer) for e in found] == [('鸭子每天下 16 颗蛋，"三颗", 几颗？', '1600'), ('第二题', '-5')]
  put(tmp_path, 'mgsm_zh/test.jsonl', jsonl({'question': 'q', 'answer': None, 'answer_number': 18}))
  (example,), _ = examples.parse_file(examples.find('mgsm_zh', 'test', tmp_path), 'mgsm_zh', 'test')
  assert example.answer == '18'


def test_rows_that_nobody_can_be_asked_are_counted_and_named(tmp_path):
  rows = ROWS['gsm_plus'][0], ROWS['gsm_plus'][0] | {'answer': 'None'}
  put(tmp_path, 'gsm_plus.jsonl', jsonl(*rows))
  _, report = examples.parse_file(examples.find('gsm_plus', 'test', tmp_path), 'gsm_plus', 'test')
  assert report.lines() == ['1 no_answer: gsm_plus.jsonl:2 (the problem lacks a premise)']
  other = ROWS['college_math'][0] | {'license': 'Creative Commons (CC BY-NC-SA 3.0)'}
  put(tmp_path, 'college_math/test.jsonl', jsonl(ROWS['college_math'][0], other))
  _, report = examples.parse_file(examples.find('college_math', 'test', tmp_path), 'college_math', 'test')
  assert report.lines() == ['1 other_licence: test.jsonl:2 (Creative Commons (CC BY-NC-SA 3.0))']


def test_asked_from_a_flat_folder(tmp_path, monkeypatch, reciting, capsys):
  """Through the prepared copy, with the rows left out reported, and the error that a problem allows in the verdict."""
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  number = ROWS['olympiadbench'][0] | {'final_answer': ['4.2'], 'unit': None}
  put(tmp_path, 'data/olympiadbench.jsonl.gz', jsonl(number, number | {'id': 6, 'question': 'Where?'}))
  model = reciting()
  model.answers |= {'Let $a$ be.\nWhich?': '\\boxed{4.25}', 'Let $a$ be.\nWhere?': '\\boxed{4.31}'}
  scores = run.evaluate(model, 'olympiadbench', run.Ask(str(tmp_path / 'data')), progress=False)
  found = scores['benchmarks']['olympiadbench']
  assert (found['n'], found['correct'], found['published_n']) == (2, 1, 675)
  assert list(found['by_group']) == ['Algebra', 'Numerical']


def test_a_row_that_is_not_as_published_is_named(tmp_path):
  put(tmp_path, 'olympiadbench/test.jsonl', jsonl({'question': 'q', 'final_answer': '5'}))
  with pytest.raises(UserError, match='test.jsonl:1 .field "final_answer" is not a list of answers'):
    examples.parse_file(examples.find('olympiadbench', 'test', tmp_path), 'olympiadbench', 'test')


def test_published_figures_are_rows_once_the_benchmark_is_measured():
  assert 'aime24' not in table12.published_columns() and 'aime24' in table12.published_columns(['aime24'])
  rows = {(model, size): found for model, size, found in table12.published_rows(['aime24', 'cmath'])}
  assert rows['Qwen2.5-Math-Instruct', '7B'] == {'aime24': 16.7, 'cmath': 91.8}
  assert 'arXiv 2409.12122' in table12.sources(['aime24']) and '2409' not in table12.sources()
  for benchmark in benchmarks.BENCHMARKS.values():
    assert bool(benchmark.published) == bool(benchmark.published_in)


def test_every_file_is_fetched_from_a_pinned_address():
  for name in (*ROWS, 'mgsm_zh'):
    data, split = catalog.find_split(name, 'test')
    published = [file for file in data.splits[split].files if file in data.downloads]
    assert len(published) == 1 and data.licence, name
  with pytest.raises(UserError, match='run `mathqwen data prepare svamp` .it downloads from https://raw.*--data-dir'):
    sources.load('svamp', 'test')
