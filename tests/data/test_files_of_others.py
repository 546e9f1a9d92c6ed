"""Files and folders as other people keep them: what is read of them, and what is refused by what it is."""

import datetime
import json
import lzma
import time

import numpy as np
import pytest
from json_lines import write_lines

from mathqwen.data import sources
from mathqwen.data.formats import records
from mathqwen.errors import UserError

pyarrow = pytest.importorskip('pyarrow')


# --- values of Parquet and Arrow ---


def write_table(path, columns):
  """path, after writing a table as its suffix says."""
  from pyarrow import parquet

  table = pyarrow.table(columns)
  if path.suffix == '.parquet':
    parquet.write_table(table, path, version='2.6')
  else:
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
      writer.write_table(table)
  return path


def value_in(path, column):
  """The only value of a table's column, as records have it."""
  write_table(path, {'question': ['1+1='], 'answer': ['2'], 'x': column})
  assert len(sources.load(str(path))[0]) == 1
  ((_, record),) = records(path)
  return record['x']


SECOND = 1_700_000_000
NANOSECONDS = pyarrow.array([SECOND * 10**9 + 123_456_789])
STAMP = '2023-11-14 22:13:20'


@pytest.mark.parametrize('suffix', ['parquet', 'arrow'])
@pytest.mark.parametrize(
  ('column', 'text'),
  [
    (NANOSECONDS.cast(pyarrow.timestamp('ns')), f'{STAMP}.123456789'),
    (NANOSECONDS.cast(pyarrow.timestamp('ns')).dictionary_encode(), f'{STAMP}.123456789'),
    (pyarrow.array([datetime.datetime(2024, 1, 2)]), '2024-01-02 00:00:00'),
    (pyarrow.array([SECOND], pyarrow.timestamp('us', tz='UTC')), '1970-01-01 00:28:20Z'),
    (pyarrow.array([datetime.date(2024, 5, 6)]), '2024-05-06'),
    (pyarrow.array([1_234_567_891], pyarrow.time64('ns')), '00:00:01.234567891'),
    (pyarrow.array([1_500_000_000], pyarrow.duration('ns')), '1.5 s'),
    (pyarrow.array([10**15]).cast(pyarrow.timestamp('s')), '<value out of range: 1000000000000000>'),
    (pyarrow.array([10**8], pyarrow.int32()).cast(pyarrow.date32()), '<value out of range: 100000000>'),
    (
      pyarrow.array([[{'at': SECOND * 10**9 + 1}]], pyarrow.list_(pyarrow.struct([('at', pyarrow.timestamp('ns'))]))),
      [{'at': f'{STAMP}.000000001'}],
    ),
    (pyarrow.array([[('a', 1)]], pyarrow.map_(pyarrow.string(), pyarrow.duration('s'))), [['a', '1.0 s']]),
    (pyarrow.array([None], pyarrow.timestamp('ns')), None),
  ],
)
def test_times_are_text(column, text, suffix, tmp_path):
  """Also those that Python cannot hold, in a column that nothing reads."""
  if suffix == 'parquet' and pyarrow.types.is_timestamp(column.type) and column.type.unit == 's':
    pytest.skip('Parquet has no such type')
  assert value_in(tmp_path / f'a.{suffix}', column) == text


@pytest.mark.parametrize('kind', [pyarrow.float32(), pyarrow.float16()])
def test_short_floats_are_their_shortest_decimals(kind, tmp_path):
  columns = {
    'plain': (pyarrow.array([0.1], kind), 0.1),
    'list': (pyarrow.array([[0.1, None, 65504]], pyarrow.list_(kind)), [0.1, None, 65504]),
    'struct': (
      pyarrow.array([{'a': 0.1, 'b': 'x'}], pyarrow.struct([('a', kind), ('b', pyarrow.string())])),
      {
        'a': 0.1,
        'b': 'x',
      },
    ),
    'fixed': (pyarrow.array([[0.7]], pyarrow.list_(kind, 1)), [0.7]),
    'infinite': (pyarrow.array([np.inf], kind), 'inf'),
    'none': (pyarrow.array([np.nan], kind), None),
  }
  for name, (column, value) in columns.items():
    assert value_in(tmp_path / 'a.arrow', column) == value, name
  whole = 2.0**30 if kind == pyarrow.float32() else 65504.0
  assert value_in(tmp_path / 'a.arrow', pyarrow.array([whole], kind)) == whole
  path = write_table(tmp_path / 'a.arrow', {'question': ['a', 'b'], 'answer': pyarrow.array([0.1, 38.1], kind)})
  kept, _ = sources.load(str(path))
  assert [example.answer for example in kept] == ['0.1', '38.1']


def not_utf8(count):
  """A column of texts whose last one is not UTF-8."""
  ends = np.arange(1, count + 1, dtype=np.int32)
  return pyarrow.Array.from_buffers(
    pyarrow.string(),
    count,
    [None, pyarrow.py_buffer(np.append(0, ends).astype(np.int32)), pyarrow.py_buffer(b'a' * (count - 1) + b'\xff')],
  )


@pytest.mark.parametrize('suffix', ['parquet', 'arrow'])
def test_a_column_that_is_not_utf8_is_named(suffix, tmp_path):
  rows = 1500  # more than are read at once
  texts = [str(n) for n in range(rows)]
  path = write_table(tmp_path / f'a.{suffix}', {'question': texts, 'answer': texts, 'note': not_utf8(rows)})
  with pytest.raises(UserError, match=f"a.{suffix}: row {rows}: column 'note' is not UTF-8; write it again"):
    sources.load(str(path))


# --- what holds no records ---


ROW = '{"question": "1+1=", "answer": "2"}'
NO_RECORDS = {
  'rows.txt': ('question,answer\n1+1=,2', 'looks like CSV: name it rows.csv'),
  'rows': ('id,"the question",answer\n1,1+1=,2\n', 'looks like CSV: name it rows.csv'),
  'quoted.csv.txt': ('"question","answer"\n"1+1=","2"\n', 'looks like CSV: name it quoted.csv'),
  'tabs.txt': ('question\tanswer\n1+1=\t2\n', 'looks like TSV: name it tabs.tsv'),
  'rows.yaml': ('- question: 1+1\n  answer: 2\n', 'is YAML'),
  'named.yaml': ('question: 1+1\nanswer: 2\n', 'is YAML, or plain text'),
  'rows.tex': ('% a comment\n\\begin{problem} $1+1$ \\end{problem}', 'is LaTeX'),
  'rows.js': ('var rows = [{"question": "1+1=", "answer": "2"}];', 'is a program'),
  'rows.xml': ('<ProblemSet>\n<Problem ID="1">', 'is XML'),
  'rows.toml': ('[a]\nx=1\n[b]\nx=2\n', 'is TOML'),
  'python.json': ("[{'question': '1+1=', 'answer': '2'}]", 'is a Python literal: write it with json.dumps'),
  'python.jsonl': ("{'question': '1+1='}\n{'question': '1+2='}\n", 'is a Python literal'),
  'comments.json': (f'// exported\n[{ROW}]', 'is JSON with comments: remove them'),
  'inside.json': (f'[\n  // first\n{ROW}]', 'is JSON with comments: remove them'),
  'old.jsonl': (f'{ROW}\r{ROW}\r', 'its lines end in CR alone.*: save it with line ends LF'),
  'plain.txt': ('Solve 1+1\n2', r"is text and no JSON \('Solve 1\+1"),
  'narrow.jsonl': (ROW.encode('utf-16-le'), 'is UTF-16 text: save it as UTF-8'),
  'wide.csv': ('question,answer\n'.encode('utf-32-be'), 'is UTF-32 text'),
  'marked.jsonl': (ROW.encode('utf-32'), 'is UTF-32 text'),
  'nul.jsonl': ('{"question": "a\0b"}', 'is binary'),
  'empty.zip': (b'PK\x05\x06' + bytes(18), 'is an empty zip archive'),
  'rows.pkl': (b'\x80\x03}q\0', 'is a pickle'),
}


@pytest.mark.parametrize('name', NO_RECORDS)
def test_what_holds_no_records_is_named_by_what_it_is(name, tmp_path):
  content, words = NO_RECORDS[name]
  (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
  with pytest.raises(UserError, match=words) as caught:
    sources.load(str(tmp_path / name))
  assert str(caught.value).startswith(str(tmp_path / name)) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('rows.csv', f'{ROW}\n'),
    ('rows.tsv', f'[\n{ROW}]'),
    ('spread.csv', json.dumps(json.loads(ROW), indent=1)),
    ('rows.jsonl.lzma', lzma.compress(ROW.encode(), format=lzma.FORMAT_ALONE)),
    ('twice.jsonl', f'{json.dumps(ROW)}\n'),
    ('old_ends.json', f'[\r{ROW}\r]\r'),
  ],
)
def test_json_is_read_whatever_its_name(name, content, tmp_path):
  (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
  ((example,), report) = sources.load(str(tmp_path / name))
  assert (example.question, example.answer) == ('1+1=', '2') and not report.counts


@pytest.mark.parametrize('first', ['# exported', 'question,answer', "{'question': '1+1='}", 'null', '{"question": "1'])
def test_a_line_that_is_no_json_among_others_is_malformed(first, tmp_path):
  (tmp_path / 'rows.jsonl').write_text(f'{first}\n{ROW}\n')
  kept, report = sources.load(str(tmp_path / 'rows.jsonl'))
  assert len(kept) == 1 and report.counts == {'malformed': 1}


def test_a_long_beginning_is_looked_at_in_linear_time(tmp_path):
  for begins in ('% ' * 5000, '# ' * 5000, '[ ' * 5000, ' a ,' * 5000 + '!'):
    (tmp_path / 'rows.txt').write_text(f'{begins}\n{begins}\n')
    begin = time.process_time()
    with pytest.raises(UserError):
      sources.load(str(tmp_path / 'rows.txt'))
    assert time.process_time() - begin < 5


# --- folders ---


def make(folder, *names, **contents):
  """The folder, after writing files into it: a row that asks for the file's name, or a given content."""
  for name in names:
    row = {'question': name, 'answer': '1'}
    if name.endswith(('.parquet', '.pq', '.arrow')):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      write_table(folder / name, {key: [value] for key, value in row.items()})
    else:
      write_lines(folder / name, row)
  for name, content in contents.items():
    (folder / name).write_text(content)
  return folder


def names_read(source, **options):
  """The files of `make` that a source is read from."""
  return [example.question for example in sources.load(str(source), **options)[0]]


def test_files_of_a_folder_that_hold_no_records_by_their_names_are_named(tmp_path, capsys):
  read = ['part-0.jsonl', 'part-1.jsonlines', 'part-2.pq', 'part-3.ndjson']
  others = ['part-4.jsonl.lz4', 'part-5.zip', 'part-6.txt']
  beside = ['README.md', 'LICENSE', '.gitattributes', 'SHA256SUMS', 'part-0.jsonl.md5', '_SUCCESS', '.cache/x.bin']
  make(tmp_path, *read, *others, *beside, 'dataset_info.json', 'load.py')
  kept, report = sources.load(str(tmp_path))
  assert [example.question for example in kept] == read
  assert f'{tmp_path}: 4 of 7 files read as train; not read: {", ".join(others)}\n' in capsys.readouterr().err
  assert report.rows['file_not_read'] == [(name, 'its name is none of a file of records') for name in others]
  with pytest.raises(UserError, match='no file of records in this folder'):
    sources.load(str(make(tmp_path / 'other', 'a.txt', 'b.zip')))


PARTS = [f'data/train-{number:05d}-of-00003.parquet' for number in range(3)]


@pytest.mark.parametrize('suffix', ['.parquet', '.jsonl', '.jsonl.gz'])
@pytest.mark.parametrize('source', ['', 'data', 'data/*', '**/train-*'])
def test_a_missing_part_is_named(source, suffix, tmp_path):
  names = [name.replace('.parquet', suffix) for name in PARTS]
  make(tmp_path, *names)
  assert len(names_read(tmp_path / source)) == 3
  (tmp_path / names[1]).unlink()
  with pytest.raises(UserError, match=f'{names[1]} is missing, and 2 of the 3 parts are there: fetch it, or name each'):
    sources.load(str(tmp_path / source))
  assert names_read(tmp_path / names[2]) == names[2:]  # by its own name


def test_parts_may_have_a_hash_each(tmp_path):
  """As `push_to_hub` wrote them."""
  names = [f'data/train-0000{number}-of-00003-{hash_}.parquet' for number, hash_ in enumerate(('a3ec', '0a18', 'ee46'))]
  make(tmp_path, *names)
  assert names_read(tmp_path) == names_read(tmp_path / 'data/train-*') == names
  (tmp_path / names[1]).unlink()
  with pytest.raises(UserError, match=r'data/train-00001-of-00003\* is missing'):
    sources.load(str(tmp_path))


def test_parts_that_a_pattern_leaves_out_are_not_missing(tmp_path):
  make(tmp_path, *PARTS[:2])
  assert names_read(tmp_path / 'data/train-0000[01]-*') == PARTS[:2]
  with pytest.raises(UserError, match=f'{PARTS[2]} is missing'):
    sources.load(str(tmp_path / 'data/train-*'))


def test_what_a_file_is_called_beside_its_suffix_does_not_matter(tmp_path):
  names = ['authors.jsonl', 'citation.csv.jsonl', 'notice.jsonl', 'readme.jsonl']
  make(tmp_path, *names, **{'README.md': 'text', 'LICENSE': 'text', 'SHA256SUMS': 'text'})
  assert names_read(tmp_path) == names


def test_parts_are_counted_from_1_as_well(tmp_path):
  make(tmp_path, 'a-00001-of-00002.jsonl', 'a-00002-of-00002.jsonl', 'b-00000-of-00001.jsonl')
  assert len(names_read(tmp_path)) == 3
  (tmp_path / 'a-00001-of-00002.jsonl').unlink()
  with pytest.raises(UserError, match='a-00001-of-00002.jsonl is missing'):
    sources.load(str(tmp_path))


@pytest.mark.parametrize(
  ('train', 'others'),
  [
    (['trainset.jsonl'], ['testset.jsonl']),
    (['trainSet.jsonl'], ['testSet.jsonl']),
    (['GSM8KTrain.jsonl'], ['GSM8KTest.jsonl']),
    (['gsm8ktrain.jsonl'], ['gsm8ktest.jsonl', 'gsm8kval.jsonl']),
    (['a/mathtrain.jsonl', 'b/mathtrain.jsonl'], ['a/mathtest.jsonl']),
    (['data.jsonl'], ['eval.jsonl', 'evaluation-2.jsonl', 'testset.jsonl', 'holdout.jsonl']),
    (['training_set.jsonl'], ['testing_set.jsonl']),
    (['contest.jsonl', 'developed.jsonl', 'interval.jsonl', 'latest.jsonl', 'medieval.jsonl'], []),  # none is a split
  ],
)
def test_names_that_say_a_split(train, others, tmp_path):
  make(tmp_path, *train, *others)
  kept, report = sources.load(str(tmp_path))
  assert sorted(example.question for example in kept) == sorted(train)
  assert sorted(name for name, _ in report.rows['file_not_read']) == sorted(others)


MATH = ['train/algebra/1.json', 'train/geometry/1.json', 'train/geometry/2.json']


def test_files_of_one_name_are_told_apart(tmp_path):
  make(tmp_path, *MATH)
  kept, report = sources.load(str(tmp_path))
  assert [example.where for example in kept] == ['algebra/1.json:1', 'geometry/1.json:1', '2.json:1']
  assert [example.id for example in kept] == ['algebra/1.json/0', 'geometry/1.json/0', '2.json/0']
  assert not report.counts
  (tmp_path / MATH[0]).write_text('{"question": "x"}')
  with pytest.raises(UserError, match=f'^{tmp_path / MATH[0]}:1: fields question: expected') as error:
    sources.load(str(tmp_path), strict=True)
  assert '\n' not in str(error.value)


def test_a_row_of_its_own_file_may_be_malformed(tmp_path):
  """As the original MATH has them. What a config allows of malformed rows decides."""
  make(tmp_path, *MATH)
  (tmp_path / MATH[1]).write_text(json.dumps({'question': '', 'answer': '1'}))
  kept, report = sources.load(str(tmp_path))
  assert len(kept) == 2
  assert report.lines() == ['1 malformed: geometry/1.json:1 (field "question" is empty)']
  with pytest.raises(UserError, match='1 of 3 rows cannot be trained on'):
    report.check(str(tmp_path), len(kept), 0.01)
  for name in MATH:
    (tmp_path / name).write_text(json.dumps({'question': '', 'answer': '1'}))
  with pytest.raises(UserError, match='train/algebra/1.json: no usable record among 1'):
    sources.load(str(tmp_path))
  with pytest.raises(UserError, match='train/algebra/1.json: no usable record among 1'):
    sources.load(str(tmp_path / MATH[0]))


def test_a_file_in_another_form_is_refused_among_others(tmp_path):
  make(tmp_path, 'a.jsonl', 'c.jsonl')
  write_lines(tmp_path / 'b.jsonl', {'text': 'x'}, {'text': 'y'})
  with pytest.raises(UserError, match='b.jsonl: no usable record among 2'):
    sources.load(str(tmp_path))


def card(**configurations):
  """A README as the hub has it: configuration -> {split: pattern}."""
  entries = [
    {'config_name': name, 'data_files': [{'split': split, 'path': path} for split, path in splits.items()]}
    for name, splits in configurations.items()
  ]
  return f'---\nlicense: mit\nconfigs: {json.dumps(entries)}\n---\n# Rows\n'


def test_a_copy_of_a_data_set_with_several_configurations(tmp_path):
  names = ['main/train-0.jsonl', 'main/test-0.jsonl', 'socratic/train-0.jsonl']
  both = {name: {'train': f'{name}/train-*', 'test': f'{name}/test-*'} for name in ('main', 'socratic')}
  make(tmp_path, *names, **{'README.md': card(**both)})
  with pytest.raises(UserError, match=f"main, socratic, as its README.md says: .*as '{tmp_path}/main/train-[*]'"):
    sources.load(str(tmp_path))
  assert names_read(tmp_path / 'socratic') == names_read(tmp_path / 'socratic/train-*') == names[2:]
  (tmp_path / 'README.md').write_text(card(default={'train': 'main/train-*'}, socratic=both['socratic']))
  kept, report = sources.load(str(tmp_path))
  assert [example.question for example in kept] == names[:1]
  assert [name for name, _ in report.rows['file_not_read']] == ['main/test-0.jsonl', 'socratic/train-0.jsonl']
  with pytest.raises(UserError, match='names files for train, and none for test that is there'):
    sources.load(str(tmp_path), 'test')


@pytest.mark.parametrize('pattern', ['data/train/**', 'data/train', 'data/train/*', './data/train/'])
def test_the_files_that_a_card_means(pattern, tmp_path):
  make(
    tmp_path,
    'data/train/0.jsonl',
    'data/test/0.jsonl',
    **{'README.md': card(a={'train': pattern, 'test': 'data/test/*'})},
  )
  assert names_read(tmp_path) == ['data/train/0.jsonl']


@pytest.mark.parametrize('pattern', ['*', './', '**/*'])
def test_a_card_does_not_mean_itself(pattern, tmp_path):
  make(tmp_path, 'a.jsonl', **{'README.md': card(a={'train': pattern}), 'LICENSE': 'text', '.hidden': 'text'})
  assert names_read(tmp_path) == ['a.jsonl']


def test_a_card_may_say_which_configuration_is_the_default(tmp_path):
  text = card(main={'train': 'main/*'}, other={'train': 'other/*'})
  make(tmp_path, 'main/0.jsonl', 'other/0.jsonl', **{'README.md': text.replace('"main",', '"main", "default": true,')})
  assert names_read(tmp_path) == ['main/0.jsonl']


@pytest.mark.parametrize(
  'head', ['configs:\n- base.yaml', 'configs:\n- data_files: x', 'title: a\n---\nconfigs:\n---', 'configs: [']
)
def test_a_readme_that_is_no_card(head, tmp_path):
  make(tmp_path, 'a.jsonl', **{'README.md': f'---\n{head}\n---\n'})
  assert names_read(tmp_path) == ['a.jsonl']


def test_a_copy_of_one_configuration(tmp_path):
  names = ['data/cot-0.jsonl', 'data/tir-0.jsonl']
  make(tmp_path, *names, **{'README.md': card(default={'cot': 'data/cot-*'}, other={'train': 'gone/*'})})
  with pytest.raises(UserError, match='names files for cot, and none for train .*: name those that are to be read as'):
    sources.load(str(tmp_path))
  assert names_read(tmp_path / 'data/cot-*') == names[:1]
  (tmp_path / 'README.md').write_text(card(other={'train': 'gone/*'}))  # of files that are not there: as without it
  assert names_read(tmp_path) == names
  (tmp_path / 'README.md').write_text('---\nlicense: [\n---\n')
  assert names_read(tmp_path) == names
  (tmp_path / 'README.md').write_text('---\nconfigs: [\n---\n')
  assert names_read(tmp_path) == names


# --- JSON that is a table, and rows that are conversations ---


COLUMNS = ['question', 'answer']


def read_json(tmp_path, value, name='rows.json'):
  """([(question, answer)], report) of a file with a value."""
  (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
  kept, report = sources.load(str(tmp_path / name))
  return [(example.question, example.answer) for example in kept], report


@pytest.mark.parametrize('more', [{}, {'index': [0, 1, 2]}])
def test_a_table_that_pandas_split(more, tmp_path):
  data = [['1+1=', '2'], ['1+2='], ['1+3=', '4']]
  found, report = read_json(tmp_path, {'columns': COLUMNS, **more, 'data': data})
  assert found == [('1+1=', '2'), ('1+3=', '4')]
  assert report.rows['malformed'] == [('rows.json:2', '1 values for 2 columns')]
  with pytest.raises(UserError, match="2 columns are called 'answer'"):
    read_json(tmp_path, {'columns': ['answer', 'answer'], 'data': data})


def test_an_answer_of_the_hub(tmp_path):
  rows = [{'row_idx': n, 'row': {'question': f'{n}+1=', 'answer': f'{n + 1}'}, 'truncated_cells': []} for n in range(2)]
  cut = {'row_idx': 2, 'row': {'question': '2+1', 'answer': '3'}, 'truncated_cells': ['question']}
  found, report = read_json(tmp_path, {'features': [{'name': 'question'}], 'rows': [*rows, cut], 'num_rows_total': 3})
  assert found == [('0+1=', '1'), ('1+1=', '2')]
  assert report.rows['malformed'] == [('rows.json:3', 'cut off by the hub: question')]


def test_a_part_of_a_data_set_that_the_hub_answered_with_is_named(tmp_path, capsys):
  rows = [{'row_idx': 0, 'row': {'question': 'q', 'answer': '1'}, 'truncated_cells': []}]
  (tmp_path / 'a.json').write_text(json.dumps({'features': [], 'rows': rows, 'num_rows_total': 100}))
  assert len(sources.load(str(tmp_path / 'a.json'))[0]) == 1
  assert 'holds 1 of 100 rows' in capsys.readouterr().err


def test_other_rows_beside_features(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps({'features': {}, 'rows': [{'question': 'q', 'answer': '1'}]}))
  assert len(sources.load(str(tmp_path / 'a.json'))[0]) == 1


@pytest.mark.parametrize('column', ['role', 'from'])
def test_rows_may_have_a_column_that_turns_have(column, tmp_path):
  rows = [{'question': f'{number}+1', 'answer': str(number + 1), column: 'math'} for number in range(2)]
  (tmp_path / 'a.json').write_text(json.dumps(rows))
  assert [row.question for row in sources.load(str(tmp_path / 'a.json'))[0]] == ['0+1', '1+1']


def test_values_without_names_are_refused_by_what_they_are(tmp_path):
  with pytest.raises(UserError, match='a list: name its values, as pandas does with orient="records"'):
    read_json(tmp_path, [['1+1=', '2'], ['1+2=', '3']])


@pytest.mark.parametrize('names', [('role', 'content', 'user', 'assistant'), ('from', 'value', 'human', 'gpt')])
@pytest.mark.parametrize('form', ['lines', 'one line', 'array'])
def test_rows_that_are_lists_of_turns(names, form, tmp_path):
  role, content, asks, answers = names
  rows = [[{role: asks, content: f'{n}+1='}, {role: answers, content: f'\\boxed{{{n}}}'}] for n in range(2)]
  if form == 'array':
    found, report = read_json(tmp_path, rows)
  else:
    rows = rows[:1] if form == 'one line' else rows
    found, report = read_json(tmp_path, ''.join(f'{json.dumps(row)}\n' for row in rows), 'rows.jsonl')
  assert found == [(f'{n}+1=', str(n)) for n in range(len(rows))] and report.shapes == {'{messages}': len(rows)}
