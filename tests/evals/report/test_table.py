import html.parser
import json
import pathlib
import re

import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals.report import table

SCORES = {
  'benchmark': 'gsm8k', 'n': 1319, 'correct': 824, 'accuracy': 824 / 1319, 'stderr': 0.01333, 'unextractable': 2,
  'truncated': 5, 'rule': 'number', 'prompt': 'chatml', 'model': 'my_model', 'dtype': 'bfloat16', 'version': '0.1',
  'commit': 'abc123', 'decoding': {'max_new_tokens': 512},
}  # fmt: skip


def write(folder, **change):
  scores = SCORES | change
  scores['correct'] = round(scores['n'] * scores['accuracy'])
  path = folder / scores['benchmark'] / 'scores.json'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(scores))
  return path


def rows(markdown):
  lines = [line for line in markdown.splitlines() if line.startswith('|')]
  return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]


def test_published_rows_alone():
  cells = rows(table.table([]))
  assert cells[0] == ['model', 'params', 'GSM8K', 'MATH', 'Math401', 'Math23K', 'source']
  assert len(cells) == 2 + 17
  assert cells[2] == ['GPT-4', '-', '92.0', '42.5', '83.5', '74.0', 'published']
  assert cells[4] == ['Minerva', '8B', '16.2', '14.1', '-', '-', 'published']
  assert cells[-2] == ['Math-Qwen-Chat', '7B', '62.5', '17.2', '80.8', '75.4', 'published']
  assert cells[-1] == ['Math-Qwen-Chat', '14B', '69.8', '24.2', '85.0', '78.4', 'published']


def test_published_rows_equal_the_recipe():
  recipe = pathlib.Path(__file__).parents[4] / 'shared' / 'recipe.md'
  if not recipe.exists():
    pytest.skip(f'the table of published figures, written down for comparison, is not here: {recipe}')
  wanted = re.findall(r'^\| (\S[^|]*) \| (-|\d+B)' + r' \| ([\d.-]+)' * 4 + r' \|$', recipe.read_text(), re.M)
  assert [tuple(row[:-1]) for row in rows(table.table([]))[2:]] == wanted


def test_measured_row(tmp_path):
  write(tmp_path)
  write(tmp_path, benchmark='math500', n=100, accuracy=0.25, stderr=0.0433, rule='math', commit=None)
  cells = rows(table.table([tmp_path]))
  assert ['my_model', '-', '62.5 ± 1.3', '25.0 ± 4.3 (n = 100)', '-', '-', 'measured'] in cells
  settings = ['bfloat16', 'greedy', '512', '0.1']
  wanted = ['1319', '1319', '62.5', '1.33', '59.8 to 65.0', '2', '5', 'chatml', 'number', *settings, 'abc123']
  assert ['my_model', 'GSM8K', *wanted] in cells
  wanted = ['100', '500', '25.0', '4.33', '17.5 to 34.3', '2', '5', 'chatml', 'math', *settings, '-']
  assert ['my_model', 'MATH', *wanted] in cells


def test_other_benchmarks_get_a_column_only_when_measured(tmp_path):
  groups = {'add': {'n': 2, 'correct': 1, 'accuracy': 0.5}}
  errors = {'relative_error': 2.5, 'non_number_ratio': 0.25}
  write(tmp_path, benchmark='arithmetic', n=4, accuracy=0.75, stderr=0.2167, by_group=groups, **errors)
  text = table.table(tmp_path)
  cells = rows(text)
  assert cells[0] == ['model', 'params', 'GSM8K', 'MATH', 'Math401', 'Math23K', 'Arithmetic', 'source']
  assert ['GPT-4', '-', '92.0', '42.5', '83.5', '74.0', '-', 'published'] in cells
  assert ['my_model', '-', '-', '-', '-', '-', '75.0 ± 21.7 (n = 4)', 'measured'] in cells
  assert ['group', 'my_model'] in cells and ['add', '50.0 (n = 2)'] in cells
  assert '2.500, 0.250' in text


@pytest.mark.parametrize(
  'decoding, message',
  [
    ({'temperature': 0.0, 'top_p': 1.0, 'top_k': 0, 'cache_dtype': None}, 'greedy'),
    ({'temperature': 0.0, 'top_p': 1.0, 'top_k': 0, 'cache_dtype': 'int8'}, 'greedy, int8 cache'),
    ({'temperature': 1.0, 'top_p': 0.9, 'top_k': 5}, 'temperature 1.0, top_p 0.9, top_k 5'),
    ({'temperature': 1.0, 'top_p': 1.0, 'top_k': 0}, 'temperature 1.0'),
    ({}, '-'),
  ],
)
def test_how_it_was_decoded_is_in_the_table(tmp_path, decoding, message):
  write(tmp_path, decoding=decoding)
  (row,) = [row for row in rows(table.table([tmp_path])) if row[:2] == ['my_model', 'GSM8K']]
  assert row[12] == message


def test_two_runs_of_one_model_are_two_rows(tmp_path):
  paths = [write(tmp_path / 'a'), write(tmp_path / 'b', accuracy=0.5)]
  measured = [row for row in rows(table.table(paths)) if row[-1] == 'measured']
  assert [(row[0], row[2]) for row in measured] == [
    (f'my_model ({tmp_path}/a)', '62.5 ± 1.3'),
    (f'my_model ({tmp_path}/b)', '50.0 ± 1.3'),
  ]


def test_after_part_of_a_benchmark_the_published_rows_are_left_out(tmp_path):
  write(tmp_path, n=16, accuracy=0.5, stderr=0.129)
  text = table.after_evaluation(tmp_path)
  assert rows(text) == [
    ['run', 'benchmark', 'n', 'of', 'accuracy', '95% interval', 'no answer', 'truncated'],
    ['--------', '---------', '---', '----', '--------', '------------', '---------', '---------'],
    ['my_model', 'GSM8K', '16', '1319', '50.0', '28.0 to 72.0', '2', '5'],
  ]
  assert text.splitlines()[-1] == (
    'The published rows of Table 12 are of whole benchmarks (gsm8k: 16 of 1,319 problems) and are left out; '
    '`mathqwen table DIR` shows them.'
  )
  assert len(rows(table.table(tmp_path))) > 17  # who asks for the table gets all of it


def test_after_a_whole_benchmark_the_published_rows_follow(tmp_path):
  write(tmp_path, benchmark='math500', n=16, accuracy=0.25, stderr=0.1, rule='math')
  write(tmp_path)
  text = table.after_evaluation([tmp_path / 'gsm8k', tmp_path / 'math500'])
  measured, comparison = text.split('\n\n**Accuracy in %')
  assert [row[:3] for row in rows(measured)[2:]] == [['my_model', 'GSM8K', '1319'], ['my_model', 'MATH', '16']]
  wanted = [row for row in rows(table.table(tmp_path)) if row[-1] in ('source', 'published', 'measured')]
  assert [row for row in rows(comparison) if row[-1] in ('source', 'published', 'measured')] == wanted
  assert len(wanted) == 1 + 17 + 1 and 'left out' not in text


def test_several_answers_to_each_problem_make_a_whole_benchmark(tmp_path):
  sampled = {'samples': 4, 'problems': 500, 'pass_at_k': {'1': 0.25}, 'maj_at_k': {'4': 0.25}}
  write(tmp_path / 'whole', benchmark='math500', n=2000, accuracy=0.25, stderr=0.01, rule='math', **sampled)
  assert 'GPT-4' in table.after_evaluation(tmp_path / 'whole')
  sampled['problems'] = 499
  write(tmp_path / 'part', benchmark='math500', n=1996, accuracy=0.25, stderr=0.01, rule='math', **sampled)
  text = table.after_evaluation(tmp_path / 'part')
  assert 'GPT-4' not in text and '(math500: 499 of 500 problems)' in text and 'pass@1' in text


def test_after_a_benchmark_that_is_not_in_table_12(tmp_path):
  groups = {'add': {'n': 2, 'correct': 1, 'accuracy': 0.5}}
  write(tmp_path, benchmark='arithmetic', n=4, accuracy=0.75, stderr=0.2167, by_group=groups)
  text = table.after_evaluation(tmp_path)
  assert 'The published rows of Table 12 are of other benchmarks and are left out' in text
  assert ['my_model', 'Arithmetic', '4', '-', '75.0'] in [row[:5] for row in rows(text)]
  assert ['add', '50.0 (n = 2)'] in rows(text)


def test_evaluate_prints_it_at_its_end(tmp_path, monkeypatch, capsys):
  path = write(tmp_path, n=16, accuracy=0.5, stderr=0.129)
  scores = json.loads(path.read_text())
  monkeypatch.setattr('mathqwen.commands.evaluate._ask_model', lambda args, chosen: {'benchmarks': {'gsm8k': scores}})
  assert cli.main(['evaluate', 'model', '--benchmarks', 'gsm8k', '--out', str(tmp_path)]) == 0
  printed = capsys.readouterr().out
  assert printed.endswith(table.after_evaluation(tmp_path) + '\n') and 'GPT-4' not in printed
  assert cli.main(['table', str(tmp_path)]) == 0
  assert 'GPT-4' in capsys.readouterr().out


def test_files(tmp_path):
  write(tmp_path / 'run', model='a_b & <c> | 100%')
  markdown = table.table([tmp_path / 'run'], out=tmp_path / 'out')
  assert (tmp_path / 'out' / 'table.md').read_text() == markdown
  assert 'a_b & <c> \\| 100%' in markdown
  latex = (tmp_path / 'out' / 'table.tex').read_text()
  assert r'a\_b \& <c> | 100\% & - & 62.5 $\pm$ 1.3 & - & - & - & measured \\' in latex
  assert latex.count(r'\begin{tabular}') == latex.count(r'\end{tabular}') == 2
  page = (tmp_path / 'out' / 'table.html').read_text().replace('<wbr>', '')
  assert '<th scope="row">a_b &amp; &lt;c&gt; | 100%</th>' in page
  assert 'no records.jsonl beside' in page and '<script' not in page
  tags = []

  class Parser(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
      tags.append(tag)

  Parser().feed(page)
  assert tags.count('table') == 2 and tags.count('tr') == 1 + 18 + 1 + 1


def test_bad_scores(tmp_path):
  with pytest.raises(UserError, match='no scores.json below it'):
    table.table([tmp_path])
  with pytest.raises(UserError, match='no such file'):
    table.table([tmp_path / 'none.json'])
  path = write(tmp_path, benchmark='gsm9k')
  with pytest.raises(UserError, match="unknown benchmark 'gsm9k'"):
    table.table([path])
  path.write_text('{"benchmark": "gsm8k"}')
  with pytest.raises(UserError, match="field 'n' is missing"):
    table.table([path])


GROUP = {'n': 2, 'correct': 1, 'accuracy': 0.5}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'n': '1319'}, "field 'n' is str"),
    ({'accuracy': [0.5]}, "field 'accuracy' is list"),
    ({'stderr': '0.1'}, "field 'stderr' is str"),
    ({'rule': None}, "field 'rule' is NoneType"),
    ({'decoding': 'greedy'}, "field 'decoding' is str"),
    ({'relative_error': None, 'non_number_ratio': 0.1}, "field 'relative_error' is NoneType"),
    ({'by_group': [GROUP]}, "field 'by_group' is list"),
    ({'by_group': {'add': 1}}, "group 'add': int in place of counts"),
    ({'by_group': {'add': {}}}, "group 'add': field 'n' is missing"),
    ({'by_group': {'add': GROUP | {'accuracy': '1'}}}, "group 'add': field 'accuracy' is str"),
    ({'by_group': {'add': GROUP | {'accuracy': 62.5}}}, "group 'add': accuracy 62.5 of 2 answers"),
    ({'by_group': {'add': GROUP | {'stderr': '0.1'}}}, "group 'add': field 'stderr' is str"),
    ({'by_group': {'add': {'n': 0, 'correct': 0, 'accuracy': None}}}, "group 'add': it is empty"),
    ({'accuracy': 62.5}, 'accuracy 62.5 of 1319 answers'),
    ({'accuracy': None}, 'accuracy None of 1319 answers'),
    ({'accuracy': float('nan')}, 'accuracy nan of 1319 answers'),
    ({'n': True}, "field 'n' is bool"),
    ({'n': 10**400}, 'accuracy 0.62.* of 10*0 answers'),
    ({'n': -1}, 'accuracy 0.62.* of -1 answers'),
    ({'samples': 0}, "field 'problems' is missing"),
    ({'samples': 0, 'problems': 1, 'pass_at_k': {}, 'maj_at_k': {}}, "field 'samples' is 0"),
    ({'pass_at_k': []}, "field 'pass_at_k' is list"),
    ({'relative_error': 0.1}, "field 'non_number_ratio' is missing"),
    ({'samples': 2}, "field 'problems' is missing"),
    ({'samples': '2'}, "field 'samples' is str"),
    ({'samples': 2, 'problems': 1, 'pass_at_k': {}}, "field 'maj_at_k' is missing"),
    ({'samples': 2, 'problems': 1, 'pass_at_k': {'one': 1}, 'maj_at_k': {}}, "field 'pass_at_k' holds 'one': 1"),
    ({'samples': 2, 'problems': 1, 'pass_at_k': {'1': 'all'}, 'maj_at_k': {}}, "field 'pass_at_k' holds '1': 'all'"),
  ],
)
def test_scores_of_another_kind_are_named(tmp_path, change, message):
  path = write(tmp_path)
  path.write_text(json.dumps(SCORES | change))
  with pytest.raises(UserError, match=f'scores.json: {message}; evaluate or grade again to write it'):
    table.table([tmp_path], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_half_a_surrogate_pair(tmp_path):
  write(tmp_path / 'a', model='half \ud800')
  table.table([tmp_path / 'a'], tmp_path / 'out')
  assert 'half \\ud800' in (tmp_path / 'out' / 'table.html').read_text()


def test_scores_nested_without_end(tmp_path):
  write(tmp_path).write_text('[' * 100_000)
  with pytest.raises(UserError, match='scores.json: not JSON'):
    table.table([tmp_path])


def test_what_is_not_finished_is_named(tmp_path, capsys):
  write(tmp_path)
  (tmp_path / 'math500').mkdir()
  (tmp_path / 'math500' / 'settings.json').write_text('{}')
  (tmp_path / 'math500' / 'records.jsonl').write_text('')
  (tmp_path / '.vscode').mkdir()
  (tmp_path / '.vscode' / 'settings.json').write_text('{}')  # of something else
  table.table([tmp_path], tmp_path / 'out')
  message = f'{tmp_path}/math500: not finished, and not in the table'
  err = capsys.readouterr().err
  assert message in err and message in (tmp_path / 'out' / 'table.html').read_text() and '.vscode' not in err
  with pytest.raises(UserError, match=message):
    table.table([tmp_path / 'math500'])
  assert '| my_model' in table.table([tmp_path / 'gsm8k', tmp_path / 'math500']) and message in capsys.readouterr().err
