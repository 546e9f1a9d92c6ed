"""`--against`: which problems training data hold, in records, scores, lines and tables."""

import json

import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals import against, run
from mathqwen.evals.report import table

LONG = 'A farmer has 12 cows and buys 30 more of them at the market on Monday for 5 coins each, how many coins?'
OTHER = 'In a town of 900 people every third one rides a bicycle to work when the sun is out, so how many ride?'
SHORT = 'What is half of 18 apples?'
CHINESE = '小明有十二个苹果，他又买了三十个苹果，然后分给五个朋友，每个朋友得到几个？'
SUM = '65+82='


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  return str(path)


def found(tmp_path, *rows):
  """{question: its kinds} with these rows as training data."""
  overlap = against.compare([LONG, OTHER, SHORT, CHINESE, SUM], [write(tmp_path / 'train.jsonl', *rows)])
  return {question: list(kinds) for question, kinds in overlap.kinds.items()}


def test_the_kinds_of_overlap(tmp_path):
  assert found(tmp_path, {'question': 'Something else entirely, of no interest here.', 'answer': '1'}) == {}
  assert found(tmp_path, {'text': f' {SHORT} '}) == {SHORT: ['exact', 'punctuation', 'template']}
  assert found(tmp_path, {'text': SHORT.replace('?', ' .').replace(' ', '  ')}) == {SHORT: ['punctuation', 'template']}
  assert found(tmp_path, {'text': SHORT.replace('18', '44')}) == {SHORT: ['template']}
  half = ' '.join(LONG.split()[:19])
  assert found(tmp_path, {'text': f'Lesson 4. {half} and so on.'}) == {LONG: ['ngrams_half', 'ngrams_any']}
  phrase = ' '.join(LONG.split()[:13])
  assert found(tmp_path, {'text': f'{phrase} in spring.'}) == {LONG: ['ngrams_any']}
  assert found(tmp_path, {'text': f'题目：{CHINESE[:30]}'}) == {CHINESE: ['ngrams_half', 'ngrams_any']}
  assert found(tmp_path, {'text': f'Question: {SHORT}\nAnswer:'}) == {SHORT: ['exact', 'punctuation', 'template']}
  assert found(tmp_path, {'text': f'First\n{SUM}\n147'}) == {}  # a line, as of a worked answer
  # Every text of a record counts, at any depth. Bare arithmetic is the same but for its numbers everywhere.
  turns = [{'role': 'user', 'content': OTHER}, {'role': 'assistant', 'content': '300'}]
  assert list(found(tmp_path, {'messages': turns, 'meta': {'also': [SUM, '1+1=']}})) == [OTHER, SUM]
  assert found(tmp_path, {'text': '1+1='}) == {}


def test_what_was_found_is_written_down(tmp_path, capsys):
  path = write(tmp_path / 'a.jsonl', {'q': 'x'}, {'q': LONG, 'a': 'y'}, {'q': LONG})
  with open(path, 'a') as file:
    file.write('{"half": \n{"q": "z"}\n')
  overlap = against.compare([LONG, SHORT], [path])
  assert overlap.kinds[LONG]['exact'] == {'texts': 2, 'share': 1.0, 'where': 'a.jsonl:2', 'text': LONG}
  marked = overlap.mark([{'question': LONG}, {'question': SHORT}])
  assert [record['against']['marked'] for record in marked] == [True, False]
  assert marked[1]['against'] == {'data': [path], 'marked': False, 'kinds': {}}
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == f'compared with {path}: 4 records, 5 texts'
  assert lines[1].startswith(f'{path}: not compared: 1 malformed: a.jsonl:4 (')


def test_an_evaluation_gives_the_score_with_and_without(reciting, data_dir, tmp_path, capsys):
  train = write(tmp_path / 'train.jsonl', {'question': '1+1=', 'answer': '2'}, {'text': '1-5='})
  ask = run.Ask(data_dir, against=(train,))
  scores = run.evaluate(reciting(), 'arithmetic', ask, out=tmp_path / 'out', progress=False)['benchmarks']['arithmetic']
  about = scores['against']
  assert (scores['n'], scores['correct'], about['marked'], about['data']) == (4, 3, 2, [train])
  assert about['without'] == {'n': 2, 'correct': 2, 'accuracy': 1.0, 'stderr': 0.0}
  assert (about['only']['n'], about['only']['correct'], about['kinds']['exact']) == (2, 1, 2)
  records = tmp_path / 'out' / 'arithmetic' / 'records.jsonl'
  stored = [json.loads(line) for line in records.read_text().splitlines()]
  assert [record['question'] for record in stored if record['against']['marked']] == ['1+1=', '1-5=']
  shown = table.after_evaluation(tmp_path / 'out')
  cells = [[cell.strip() for cell in line.split('|')] for line in shown.splitlines()]
  assert [train, '2', '75.0', '100.0 ± 0.0', '50.0'] in [row[3:8] for row in cells]

  # Of a finished evaluation, the marks alone are made again. Grading keeps them, or makes them.
  again = run.evaluate(reciting(stops_after=0), 'arithmetic', ask, out=tmp_path / 'out', progress=False)
  assert again['benchmarks']['arithmetic']['against'] == about
  assert run.grade_records(records, 'arithmetic')['benchmarks']['arithmetic']['against'] == about
  other = write(tmp_path / 'b' / 'other.jsonl', {'text': '1+1='})
  capsys.readouterr()
  assert cli.main(['grade', str(records), '--benchmark', 'arithmetic', '--against', other]) == 0
  line = capsys.readouterr().out.splitlines()[1]
  assert line.startswith(f'arithmetic: 1 of 4 problems are in {other} (exact 1, punctuation 1); without them 2 of 3')
  write(tmp_path / 'sets' / 'gsm8k' / 'train.jsonl', {'question': '1-5=', 'answer': '#### 4'})
  named = ['--against', 'gsm8k', '--data-dir', str(tmp_path / 'sets')]
  assert cli.main(['grade', str(records), '--benchmark', 'arithmetic', *named]) == 0
  assert 'arithmetic: 1 of 4 problems are in gsm8k (exact 1, ' in capsys.readouterr().out


def test_several_answers_to_each_problem(reciting, data_dir, tmp_path):
  train = write(tmp_path / 'train.jsonl', {'text': '1+1='})
  drawn = run.Decoding(samples=2, temperature=1.0)
  result = run.evaluate(reciting(), 'arithmetic', run.Ask(data_dir, decoding=drawn, against=(train,)), progress=False)
  about = result['benchmarks']['arithmetic']['against']
  assert (about['marked'], about['without']['n'], about['without']['problems'], about['only']['problems']) == (
    1,
    6,
    3,
    1,
  )
  nothing = write(tmp_path / 'nothing.jsonl', {'text': 'x'})
  result = run.evaluate(reciting(), 'arithmetic', run.Ask(data_dir, decoding=drawn, against=(nothing,)), progress=False)
  about = result['benchmarks']['arithmetic']['against']
  assert about['marked'] == 0 and about['only'] == {'n': 0, 'correct': 0, 'accuracy': None, 'stderr': None}


@pytest.mark.parametrize(
  'data, message',
  [
    ('nothing_there.jsonl', 'nothing_there.jsonl'),
    ('gsm9k', "unknown data set 'gsm9k'"),
    ('s3://bucket/x', 's3'),
  ],
)
def test_data_that_is_not_there_is_one_line_before_anything_is_asked(data_dir, tmp_path, capsys, data, message):
  words = ['evaluate', 'openai:http://127.0.0.1:9/v1#m', '--benchmarks', 'arithmetic', '--data-dir', data_dir]
  try:
    status = cli.main([*words, '--out', str(tmp_path / 'out'), '--against', data])
  except SystemExit as stopped:
    status = stopped.code
  assert status == 2 and message in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_records_without_questions_and_data_without_texts(tmp_path):
  path = write(tmp_path / 'r.jsonl', {'id': 'a', 'response': '1', 'gold': '1'})
  with pytest.raises(UserError, match='a record has no question, which --against compares'):
    run.grade_records(path, 'gsm8k', against=[path])
  with pytest.raises(UserError, match='numbers.jsonl: no text in it'):
    against.compare(['q'], [write(tmp_path / 'numbers.jsonl', {'a': 1})])
