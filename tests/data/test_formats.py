"""Files of every format that people keep records in, and what is said about those that hold none."""

import bz2
import datetime
import gzip
import json
import lzma
import os

import numpy as np
import pytest
from json_lines import write_lines

from mathqwen.data import arrow_tables, formats
from mathqwen.data.left_out import Report
from mathqwen.data.sources import load, stream
from mathqwen.errors import UserError

pyarrow = pytest.importorskip('pyarrow')

ROWS = [{'question': f'{n}+1=\n"x, y"', 'answer': f'{n} + 1 = {n + 1}\n#### {n + 1}'} for n in range(5)]
EXPECTED = [(row['question'], row['answer']) for row in ROWS]


def lines_of(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def csv_of(rows, separator=','):
  import csv
  import io

  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
  writer.writeheader()
  writer.writerows(rows)
  return b'\xef\xbb\xbf' + text.getvalue().encode()


def _as_table(rows):
  return rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)


def parquet_of(rows):
  from pyarrow import parquet

  sink = pyarrow.BufferOutputStream()
  parquet.write_table(_as_table(rows), sink, compression='zstd')
  return sink.getvalue().to_pybytes()


def arrow_of(rows, new=pyarrow.ipc.new_stream):
  sink = pyarrow.BufferOutputStream()
  table = _as_table(rows)
  with new(sink, table.schema) as writer:
    writer.write_table(table)
  return sink.getvalue().to_pybytes()


FILES = {
  'a.jsonl': lines_of(ROWS),
  'no_suffix': lines_of(ROWS),
  'a.jsonl.bz2': bz2.compress(lines_of(ROWS)),
  'a.jsonl.xz': lzma.compress(lines_of(ROWS)),
  'a.jsonl.zst': pyarrow.compress(lines_of(ROWS), 'zstd').to_pybytes(),
  'a.json': json.dumps(ROWS, indent=1).encode(),
  'array.jsonl': json.dumps(ROWS).encode(),
  'inner.json': json.dumps({'version': '1.0', 'data': ROWS}).encode(),
  'objects.json': '\n'.join(json.dumps(row, indent=1) for row in ROWS).encode(),
  'a.csv': csv_of(ROWS),
  'a.tsv.gz': gzip.compress(csv_of(ROWS, '\t')),
  'semicolons.csv': csv_of(ROWS, ';'),
  'blanks.csv': b'\n' + csv_of(ROWS)[3:].replace(b'question,', b'question, '),
  'spread.jsonl': '\n'.join(json.dumps(row, indent=1) for row in ROWS).encode(),
  'commas.jsonl': lines_of(ROWS).replace(b'}\n', b'},\n'),
  'comma.json': json.dumps(ROWS).encode()[:-1] + b',\n]',
  'tabs.json': json.dumps(ROWS).replace('+1=\\n', '+1=\n').encode(),
  'twice.jsonl': lines_of(json.dumps(row) for row in ROWS),
  'numbered.json': json.dumps({str(n): row for n, row in enumerate(ROWS)}).encode(),
  'columns.json': json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
  'pandas.json': json.dumps({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}).encode(),
  'a.parquet': parquet_of(ROWS),
  'named_wrongly.jsonl': parquet_of(ROWS),
  'a.arrow': arrow_of(ROWS),
  'file.arrow': arrow_of(ROWS, pyarrow.ipc.new_file),
}


@pytest.mark.parametrize('name', FILES)
def test_the_same_records_in_every_format(name, tmp_path):
  (tmp_path / name).write_bytes(FILES[name])
  kept, report = load(str(tmp_path / name))
  assert [(example.question, example.solution) for example in kept] == EXPECTED
  assert report.lines() == [] and report.shapes == {'{question, answer}': len(ROWS)}
  assert kept[2].answer == '3' and kept[2].where.startswith(f'{name}:')


@pytest.mark.parametrize(
  'content, words',
  [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'a pointer of Git LFS.*git lfs pull'),
    (b'<!DOCTYPE html>\n<html></html>', 'a web page'),
    (b'PK\x03\x04rest', 'a zip archive'),
    (b'\x80\x04\x95rest', 'a pickle, which may run code'),
    (parquet_of(ROWS)[:-9], 'a.jsonl: half-written or damaged after row 0'),
    (arrow_of(ROWS)[:-400], 'half-written or damaged'),
    (b'[{"question": "1=", "ans', 'half-written or not a JSON array'),
    (b'[{"question": "1=", "answer": "1"},', 'half-written or not a JSON array'),
    (b'\x10\0\0\0\0\0\0\0{"weight": {}}', 'is binary'),  # as safetensors begin
    (b'[]', 'a.jsonl has no rows'),
    ('question,answer\n1,2\n'.encode('utf-16'), 'UTF-16 text: save it as UTF-8'),
    (gzip.compress(bytes(257) + b'ustar\x00'), 'a tar archive: unpack it'),
    (
      b'{\n"train": [{"question": "1=", "answer": "1"}],\n"test": []}',
      r'several splits \(train, test\): write the rows',
    ),
    (lines_of([{'Question': 'q', 'Said': 'a'}]), '--map question=Question,answer=COLUMN names others'),
    (bz2.compress(lines_of(ROWS))[:-5], 'half-written or damaged'),
  ],
)
def test_what_holds_no_records_is_named(content, words, tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(content)
  with pytest.raises(UserError, match=words) as caught:
    load(str(tmp_path / 'a.jsonl'))
  assert '\n' not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'a.jsonl')
  with pytest.raises(UserError, match='a.jsonl is a pipe'):
    load(str(tmp_path / 'a.jsonl'))


def test_values_that_json_lacks_are_text(tmp_path):
  """Bytes that are UTF-8 are a text, as writers without text columns store them."""
  row = {'question': b'1+1=', 'answer': '2', 'made': datetime.date(2024, 5, 6), 'raw': b'\xff'}
  (tmp_path / 'a.parquet').write_bytes(parquet_of([row]))
  ((example,), _) = load(str(tmp_path / 'a.parquet'))
  assert example.question == '1+1=' and example.extra == {'made': '2024-05-06', 'raw': "b'\\xff'"}


def test_csv_in_another_encoding_is_named(tmp_path):
  (tmp_path / 'a.csv').write_bytes('question,answer\n1+1=,2\nà,2\n'.encode('latin-1'))
  with pytest.raises(UserError, match='a.csv:[123]: not UTF-8, there or below'):
    load(str(tmp_path / 'a.csv'))


def test_numbers_that_are_none_are_missing(tmp_path):
  values = ('"1", "answer": NaN', 'NaN', 'Infinity')
  (tmp_path / 'a.jsonl').write_text(''.join(f'{{"query": "1=", "response": {value}}}\n' for value in values))
  (tmp_path / 'a.parquet').write_bytes(
    parquet_of([{'query': '1=', 'response': 1.5}, {'query': '2=', 'response': np.nan}])
  )
  for name, wanted in (('a.jsonl', [('1', '1'), ('inf', 'inf')]), ('a.parquet', [('1.5', '1.5')])):
    kept, report = load(str(tmp_path / name))
    assert [(e.solution, e.answer) for e in kept] == wanted and report.counts == {'malformed': 1}


def test_rows_of_a_table_with_other_numbers_of_cells_are_malformed(tmp_path):
  (tmp_path / 'a.csv').write_text('question,answer\n1+1=,2\n2+2=\n3+3=,6,7\n4+4=,8\n')
  kept, report = load(str(tmp_path / 'a.csv'))
  assert [example.answer for example in kept] == ['2', '8']
  assert report.lines() == [
    '2 malformed: a.csv:3 (fewer cells than the first line names columns), '
    'a.csv:4 (more cells than the first line names columns)'
  ]
  (tmp_path / 'b.csv').write_text('question,answer\n"1+1\n=",2\n3=\n')  # a cell of two lines
  kept, report = load(str(tmp_path / 'b.csv'))
  assert [example.where for example in kept] == ['b.csv:2'] and 'b.csv:4 (fewer cells' in report.lines()[0]


@pytest.mark.parametrize('name', ['a.csv', 'a.parquet', 'a.arrow'])
def test_two_columns_of_one_name_are_refused(name, tmp_path):
  from pyarrow import parquet

  (tmp_path / 'a.csv').write_text('question,answer, answer\n1+1=,2,3\n')
  table = pyarrow.table([pyarrow.array([text]) for text in ('1+1=', '2', '3')], names=['question', 'answer', 'answer'])
  parquet.write_table(table, tmp_path / 'a.parquet')
  with pyarrow.ipc.new_stream(str(tmp_path / 'a.arrow'), table.schema) as writer:
    writer.write_table(table)
  with pytest.raises(UserError, match=f"{name}: 2 columns are called 'answer': give each a name of its own"):
    load(str(tmp_path / name))


@pytest.mark.parametrize('name', ['a.parquet', 'a.arrow'])
def test_two_fields_of_one_name_inside_a_column_are_refused(name, tmp_path):
  from pyarrow import parquet

  turn = pyarrow.StructArray.from_arrays([pyarrow.array([text]) for text in ('user', '1+1=', '2')], ['role', 'a', 'a'])
  table = pyarrow.table([pyarrow.ListArray.from_arrays([0, 1], turn)], names=['messages'])
  parquet.write_table(table, tmp_path / 'a.parquet')
  with pyarrow.ipc.new_stream(str(tmp_path / 'a.arrow'), table.schema) as writer:
    writer.write_table(table)
  with pytest.raises(UserError, match=f"{name}: 2 columns are called 'a': give each a name of its own"):
    load(str(tmp_path / name))


@pytest.mark.parametrize('name, format', [('a.parquet', 'Parquet'), ('a.arrow', 'Arrow')])
def test_bytes_that_are_not_what_the_name_says(name, format, tmp_path):
  (tmp_path / name).write_bytes(b'\x9c\xe1\x07' * 40)
  with pytest.raises(UserError, match=f'{name} does not begin as {format} does, nor as JSON: fetch it again'):
    load(str(tmp_path / name))


def test_columns_without_a_name_are_none(tmp_path):
  """Spreadsheets write separators behind the last column."""
  (tmp_path / 'a.csv').write_text('question,answer,,\n1+1=,2,,\n')
  ((example,), _) = load(str(tmp_path / 'a.csv'))
  assert (example.question, example.answer) == ('1+1=', '2')


def test_a_folder_is_its_files_of_the_split(tmp_path):
  (tmp_path / 'data').mkdir()
  (tmp_path / '.cache').mkdir()
  parts = {
    'data/train-00000-of-00002.parquet': ROWS[:2],
    'data/train-00001-of-00002.parquet': ROWS[2:],
    'data/test-00000-of-00001.parquet': [{'question': 'never', 'answer': '1'}],
    '.cache/train.parquet': [{'question': 'never', 'answer': '1'}],
  }
  for name, rows in parts.items():
    (tmp_path / name).write_bytes(parquet_of(rows))
  (tmp_path / 'README.md').write_text('# Rows\n')
  (tmp_path / 'dataset_infos.json').write_text('{}')
  kept, _ = load(str(tmp_path))
  assert [(example.question, example.solution) for example in kept] == EXPECTED
  assert len({example.id for example in kept}) == len(kept)
  kept, _ = load(str(tmp_path / 'data' / '*-0000[01]-of-00002.parquet'))
  assert [example.question for example in kept] == [row['question'] for row in ROWS]
  with pytest.raises(UserError, match='no file matches'):
    load(str(tmp_path / '*.csv'))
  with pytest.raises(UserError, match='of the splits train, test, none of validation'):
    load(str(tmp_path), 'validation')


def test_endings_of_names_in_capitals(tmp_path):
  for name in ('a.jsonl', 'B.JSONL', 'C.Json.GZ'):
    (tmp_path / name).write_text(f'{{"question": "{name}", "answer": "1"}}\n')
  kept, _ = load(str(tmp_path))
  assert sorted(example.question for example in kept) == ['B.JSONL', 'C.Json.GZ', 'a.jsonl']


def test_a_folder_that_datasets_saved(tmp_path):
  """The layout of `DatasetDict.save_to_disk`."""
  for split, rows in {'train': ROWS, 'test': ROWS[:1]}.items():
    (tmp_path / split).mkdir()
    (tmp_path / split / 'data-00000-of-00001.arrow').write_bytes(arrow_of(rows))
    (tmp_path / split / 'state.json').write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (tmp_path / split / 'dataset_info.json').write_text('{}')
  (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')
  with pytest.raises(UserError, match='has the splits train, test and none called validation: name one'):
    load(str(tmp_path), 'validation')
  assert len(load(str(tmp_path))[0]) == len(ROWS) and len(load(str(tmp_path), 'test')[0]) == 1
  assert len(load(str(tmp_path / 'train'))[0]) == len(ROWS)


@pytest.mark.parametrize('state', ['state.json', 'dataset_info.json'])
def test_what_map_and_filter_leave_beside_a_saved_folder_is_not_read(state, tmp_path):
  """Rows again, and the numbers of the rows that a filter keeps."""
  saved = tmp_path / 'saved'
  saved.mkdir()
  (saved / state).write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
  (saved / 'data-00000-of-00001.arrow').write_bytes(arrow_of(ROWS))
  (saved / 'cache-0123.arrow').write_bytes(arrow_of([{'question': 'mapped', 'answer': '1'}]))
  (saved / 'cache-4567.arrow').write_bytes(arrow_of([{'indices': 3}]))
  for source in (saved, tmp_path / '*', saved / '*.arrow'):
    kept, report = load(str(source))
    assert [(e.question, e.solution) for e in kept] == EXPECTED and not report.counts
  assert len(load(str(saved / 'cache-0123.arrow'))[0]) == 1  # by its own name


def test_a_saved_folder_is_what_its_state_names(tmp_path):
  (tmp_path / 'state.json').write_text('{"_data_files": [{"filename": "a.arrow"}, {"filename": "b.arrow"}]}')
  for name in ('a', 'c'):
    (tmp_path / f'{name}.arrow').write_bytes(arrow_of(ROWS))
  with pytest.raises(UserError, match='state.json names b.arrow, which is not there'):
    load(str(tmp_path))
  (tmp_path / 'b.arrow').write_bytes(arrow_of([{'question': '9=', 'answer': '9'}]))
  kept, report = load(str(tmp_path))
  assert len(kept) == len(ROWS) + 1 and report.lines() == ['1 file_not_read: c.arrow (not taken as train)']


@pytest.mark.parametrize(
  'names, read, not_read',
  [
    (['train.jsonl', 'extra.jsonl'], 'train.jsonl', 'extra.jsonl'),
    (['algebra.jsonl', 'mental-test.jsonl'], 'algebra.jsonl', 'mental-test.jsonl'),
  ],
)
def test_files_of_a_folder_that_are_not_read_are_named(names, read, not_read, tmp_path, capsys):
  for name in names:
    write_lines(tmp_path / name, {'question': name, 'answer': '1'})
  ((example,), report) = load(str(tmp_path))
  assert example.question == read
  assert f'{tmp_path}: 1 of 2 files read as train; not read: {not_read}\n' in capsys.readouterr().err
  assert report.lines() == [f'1 file_not_read: {not_read} (not taken as train)']
  assert len(list(stream(str(tmp_path), streamed := Report()))) == 1 and streamed.lines() == report.lines()


def test_patterns_in_any_part_of_a_path(tmp_path, capsys):
  for name in ('a/train.jsonl', 'a/test.jsonl', 'b/train.jsonl', 'b/c/rows.jsonl', 'd[1]/rows.jsonl', '.e/train.jsonl'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write_lines(tmp_path / name, {'question': name, 'answer': '1'})
  (tmp_path / 'logs').mkdir()

  def read(pattern):
    return [example.question for example in load(f'{tmp_path}/{pattern}')[0]]

  assert read('*/train.jsonl') == ['a/train.jsonl', 'b/train.jsonl']
  everything = ['a/test.jsonl', 'a/train.jsonl', 'b/c/rows.jsonl', 'b/train.jsonl', 'd[1]/rows.jsonl']
  assert read('**/*.jsonl') == read('**/**.jsonl') == everything
  assert read('b/**/*.jsonl') == read('[b]/*/*.jsonl') + ['b/train.jsonl'] == ['b/c/rows.jsonl', 'b/train.jsonl']
  assert read('d[1]/*.jsonl') == ['d[1]/rows.jsonl']  # a name that is there
  assert read('.*/*.jsonl') == ['.e/train.jsonl']
  capsys.readouterr()
  assert read('*') == ['a/train.jsonl', 'b/train.jsonl', 'd[1]/rows.jsonl']  # folders, as if named one by one
  assert 'read as train; not read: a/test.jsonl, b/c/rows.jsonl\n' in capsys.readouterr().err
  assert read('**') == ['a/train.jsonl', 'b/train.jsonl']
  with pytest.raises(UserError, match='no file matches; look at the folder'):
    read('*/*/*/x.jsonl')
  (tmp_path / 'a' / 'train.jsonl').unlink()
  with pytest.raises(UserError, match='of the splits test, none of train: name the files'):
    read('a*')


@pytest.mark.parametrize('kind', ['parquet', 'arrow', 'csv'])
def test_a_part_without_rows_is_named(kind, tmp_path):
  """Spark writes a file for each partition, also for those that have no rows."""
  content = {'parquet': parquet_of, 'arrow': arrow_of, 'csv': csv_of}[kind]
  empty = b'question,answer\n'
  if kind != 'csv':
    schema = pyarrow.schema([('question', pyarrow.string()), ('answer', pyarrow.string())])
    empty = content(schema.empty_table())
  for number in (0, 2):
    (tmp_path / f'part-{number}.{kind}').write_bytes(empty)
  with pytest.raises(UserError, match='part-0.*: none of the 2 files has rows'):
    load(str(tmp_path))
  (tmp_path / f'part-1.{kind}').write_bytes(content(ROWS))
  kept, report = load(str(tmp_path))
  assert [(e.question, e.solution) for e in kept] == EXPECTED
  assert report.lines() == [f'2 empty_file: part-0.{kind} (no rows), part-2.{kind} (no rows)']


def turns(*contents, keys=('role', 'content'), roles=('user', 'assistant')):
  role, content = keys
  return [{role: roles[i % len(roles)], content: text} for i, text in enumerate(contents)]


CHAT = [('user', 'q'), ('assistant', 'a #### 1')]
SYSTEM = ('system', 'Be brief.')
PARTS = [{'role': 'user', 'content': [{'type': 'text', 'text': 'q'}]}, {'role': 'assistant', 'content': 'a #### 1'}]


@pytest.mark.parametrize(
  'row, expected',
  [
    ({'conversations': turns('q', 'a #### 1', keys=('from', 'value'), roles=('human', 'gpt'))}, CHAT),
    ({'conversations': turns('q', 'a #### 1')}, CHAT),
    ({'messages': PARTS, 'problem': 'p', 'solution': 's'}, CHAT),
    ({'messages': turns('q', 'a #### 1'), 'system': 'Be brief.'}, [SYSTEM, *CHAT]),
    ({'instruction': 'q', 'input': '', 'output': 'a #### 1'}, None),
    (
      {'instruction': 'q', 'input': 'x', 'output': 'a', 'system': 'Be brief.'},
      [SYSTEM, ('user', 'q\nx'), ('assistant', 'a')],
    ),
    (
      {'instruction': 'q2', 'output': 'a2', 'history': [['q', 'a #### 1']]},
      [*CHAT, ('user', 'q2'), ('assistant', 'a2')],
    ),
    ({'prompt': 'q', 'completion': 'a #### 1'}, None),
    ({'prompt': turns('q'), 'completion': [{'role': 'assistant', 'content': 'a #### 1'}]}, CHAT),
    ({'query': 'q', 'response': 'a #### 1', 'system_prompt': 'Be brief.'}, [SYSTEM, *CHAT]),
    ({'messages': json.dumps(turns('q', 'a #### 1')), 'tools': '[]'}, CHAT),  # JSON as a text
    ({'prompt': turns('q'), 'solution': 'a #### 1'}, CHAT),
    ({'input': turns('q'), 'output': 'a #### 1', 'system_prompt': ''}, CHAT),
    ({'instruction': 'q', 'context': 'x', 'response': 'a'}, [('user', 'q\nx'), ('assistant', 'a')]),  # Dolly
    ({'message_1': 'q', 'message_2': 'a #### 1', 'role_1': 'Mathematician'}, None),  # CAMEL-AI
    *[
      ({question: 'q', answer: 'a #### 1'}, None)
      for question, answer in (
        ('prompt', 'response'),
        ('prompt', 'answer'),
        ('prompt', 'output'),
        ('input', 'output'),
        ('input', 'target'),
        ('instruction', 'response'),
        ('question', 'response'),
        ('problem', 'answer'),
        ('query', 'answer'),
        ('problem', 'expected_answer'),
        ('question', 'final_answer'),
        ('problem', 'gold'),
      )
    ],
    *[({'question': 'q', 'solution': 'a #### 1', gold: [1]}, None) for gold in ('expected_answer', 'final_answer')],
    ({'question': 'q', 'solution': ['a #### 1'], 'gold': 1, 'final_answer': None}, None),  # as in OlympiadBench
  ],
)
def test_shapes(row, expected, tmp_path):
  ((example,), report) = load(str(write_lines(tmp_path / 'a.jsonl', row)))
  assert not {'gold', 'expected_answer', 'final_answer'} & report.unread.keys()
  if expected is None:
    assert (example.question, example.solution, example.answer, example.messages) == ('q', 'a #### 1', '1', None)
  else:
    found = example.messages or [{'role': 'user', 'content': example.question}, {'role': 'assistant', 'content': 'a'}]
    assert [(turn['role'], turn['content']) for turn in found] == expected


@pytest.mark.parametrize(
  'row, question, unread',
  [
    ({'question': '1+1='}, 'Solve it.\n1+1=', ()),
    ({'query': '1+1=', 'context': 'Sums.'}, 'Solve it.\n1+1=\nSums.', ()),
    ({'problem': '1+1=', 'question': '', 'input': ''}, 'Solve it.\n1+1=', ('question',)),
    ({'question': 'Solve it.'}, 'Solve it.', ()),
    ({'question': 'Solve it. 1+1='}, 'Solve it. 1+1=', ()),  # as a whole
    ({'prompt': '### Solve it. ### 2'}, 'Solve it.', ('prompt',)),  # the row in a template, with its answer
  ],
)
def test_what_is_asked_beside_an_instruction(row, question, unread, tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', {'instruction': 'Solve it.', 'answer': '2'} | row)
  ((example,), report) = load(str(path))
  assert (example.question, example.solution, example.answer) == (question, '2', '2')
  assert tuple(report.unread) == unread


def text_parts(*texts):
  return [{'type': 'text', 'text': text} for text in texts]


@pytest.mark.parametrize(
  'content, expected',
  [
    (text_parts(None, 'x', '', 5), 'x5'),
    ([None, *text_parts('x')], 'x'),
    (text_parts(None), 'turn 2: no text in field "content"'),
    ([], 'turn 2: no text in field "content"'),
    ([*text_parts('x'), {'type': 'text', 'content': 'four'}], 'turn 2: .* has a part without "text", with content'),
    (text_parts('x', True), 'turn 2: .* has a part whose "text" is no text .bool'),
    (text_parts('x', ['y']), 'turn 2: .* has a part whose "text" is no text .list'),
  ],
)
def test_the_text_of_parts(content, expected, tmp_path):
  row = {'messages': [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': content}]}
  path = str(write_lines(tmp_path / 'a.jsonl', row))
  if expected.startswith('turn'):
    with pytest.raises(UserError, match=expected):
      load(path)
  else:
    assert load(path)[0][0].solution == expected


@pytest.mark.parametrize('empty', ['', ' ', None, [], text_parts(None, '')])
@pytest.mark.parametrize('names', [('messages', 'role', 'content'), ('conversations', 'from', 'value')])
def test_an_empty_system_turn_says_nothing(names, empty, tmp_path):
  field, *keys = names
  rows = [
    {field: turns(*said, keys=keys, roles=('system', 'user', 'assistant'))} | more
    for said, more in (
      ((empty, 'q', 'a'), {}),
      ((empty, 'q2', 'a'), {'system': 'Be brief.'}),
      (('Be brief.', empty, 'a'), {}),
    )
  ]
  kept, report = load(str(write_lines(tmp_path / 'a.jsonl', *rows)))
  assert [[turn['content'] for turn in e.messages] for e in kept] == [['q', 'a'], ['Be brief.', 'q2', 'a']]
  assert report.lines() == ['1 malformed: a.jsonl:3 (turn 2: no text in field "content")']


@pytest.mark.parametrize('any_turns', [False, True])
@pytest.mark.parametrize('role', [{}, {'role': None}, {'role': ['user']}])
def test_a_turn_without_a_role_is_malformed(role, any_turns, tmp_path):
  """With any chat template, too: it takes other roles, and not none."""
  answer = {'role': 'assistant', 'content': '2'}
  rows = [{'messages': [first | {'content': '1+1='}, answer]} for first in (role, {'role': 'user'})]
  kept, report = load(str(write_lines(tmp_path / 'a.jsonl', *rows)), any_turns=any_turns)
  assert len(kept) == 1 and 'a.jsonl:1 (role ' in report.lines()[0]


def test_a_system_turn_with_its_text_elsewhere_is_malformed(tmp_path):
  first = {'from': 'system', 'text': 'Be brief.'}
  row = {'conversations': [first, *turns('q', 'a', keys=('from', 'value'))]}
  with pytest.raises(UserError, match='turn 1: no text in field "content"'):
    load(str(write_lines(tmp_path / 'a.jsonl', row)))


def test_only_the_completion_of_a_conversation_is_trained_on(tmp_path):
  row = {'prompt': turns('q', 'a', 'q2'), 'completion': [{'role': 'assistant', 'content': 'a2'}]}
  ((example,), _) = load(str(write_lines(tmp_path / 'a.jsonl', row)))
  assert [turn.get('weight') for turn in example.messages] == [None, 0, None, None]


@pytest.mark.parametrize(
  'row, words',
  [
    ({'conversations': [{'from': 'tool', 'value': 'x'}]}, 'turn 1: "from" is \'tool\', none of human'),
    ({'messages': [{'role': 'user', 'content': [{'type': 'image'}]}]}, 'a part that is no text (image)'),
    (
      {'messages': turns('q', 'a') and [{'role': 'system', 'content': 's'}, *turns('q', 'a')], 'system': 't'},
      'beside another system turn',
    ),
    ({'instruction': 'q', 'output': 'a', 'history': ['q']}, '"history" is not a list of [question, answer]'),
    ({'conversations': 'q'}, 'field "conversations" is not a list of turns'),
    ({'question': 'q', 'context': 'x', 'answer': 'a'}, 'field "context" is not read'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}, 'expected a question and its answer'),
  ],
)
def test_rows_of_a_shape_that_cannot_be_read(row, words, tmp_path):
  good = {'query': '1=', 'response': '1'}
  _, report = load(str(write_lines(tmp_path / 'a.jsonl', row, good)))
  assert words in report.lines()[0] and report.counts == {'malformed': 1}


def test_numbers_are_text(tmp_path):
  rows = [{'question': '1+1=', 'answer': 2}, {'question': 3, 'answer': 0.5}, {'question': True, 'answer': 1}]
  kept, report = load(str(write_lines(tmp_path / 'a.jsonl', *rows)))
  assert [(e.question, e.solution, e.answer) for e in kept] == [('1+1=', '2', '2'), ('3', '0.5', '0.5')]
  assert report.counts == {'malformed': 1}


def test_a_gold_answer_of_its_own(tmp_path):
  rows = [{'problem': 'p', 'solution': f's{i}', 'final_answer': gold} for i, gold in enumerate(('3', ['4'], ['1', 5]))]
  kept, _ = load(str(write_lines(tmp_path / 'a.jsonl', *rows)))
  assert [(e.solution, e.answer) for e in kept] == [('s0', '3'), ('s1', '4'), ('s2', '1, 5')]


def test_an_empty_answer_is_none(tmp_path):
  """As null is: the gold answer is another field's, or what the solution ends with."""
  row = {'question': 'q', 'solution': 'So \\boxed{5}'}
  rows = [row | {'answer': empty} for empty in ('', ' ', None, [''])]
  kept = [load(str(write_lines(tmp_path / 'a.jsonl', one)))[0][0] for one in (*rows, rows[0] | {'gold': 6})]
  assert [example.answer for example in kept] == ['5', '5', '5', '5', '6']


def test_an_empty_cell_is_a_missing_field(tmp_path):
  """CSV cannot write null."""
  path = tmp_path / 'a.csv'
  path.write_text('messages,question,solution,answer\n,q,,2\n,q2,a #### 3,\n,q3,,\n,,a,4\n')
  kept, report = load(str(path))
  assert [(e.question, e.solution, e.answer) for e in kept] == [('q', '2', '2'), ('q2', 'a #### 3', '3')]
  assert report.counts == {'malformed': 2}  # each names the field that is empty
  assert [why for _, why in report.rows['malformed']] == [
    f'field "{name}" is empty' for name in ('solution', 'question')
  ]
  # The user has named the solution, so the answer alone does not do.
  kept, report = load(str(path), columns=('question=question', 'solution=solution', 'answer=answer'))
  assert [e.question for e in kept] == ['q2'] and report.lines()[0].count('nothing in column solution') == 2


def test_a_weight_in_a_cell_is_a_number(tmp_path):
  (tmp_path / 'a.csv').write_text('question,answer,weight\n1+1=,2,1\n2+2=,4,1.0\n3+3=,6,\n4+4=,8,0\n5+5=,10,high\n')
  kept, report = load(str(tmp_path / 'a.csv'))
  assert [e.answer for e in kept] == ['2', '4', '6'] and report.counts == {'malformed': 2}
  assert report.lines()[0].count('field "weight" of a row is not read') == 2


def test_names_of_fields_in_another_case(tmp_path):
  (tmp_path / 'a.csv').write_text('ID, Question ,ANSWER,Note\nr1,1+1=,2,x\n')
  ((example,), report) = load(str(tmp_path / 'a.csv'))
  assert (example.id, example.question, example.answer, example.extra) == ('r1', '1+1=', '2', {'Note': 'x'})
  both = write_lines(tmp_path / 'b.jsonl', {'Question': 'other', 'question': '1+1=', 'answer': '2'})
  assert load(str(both))[0][0].question == '1+1='  # the plain name comes first
  masked = write_lines(tmp_path / 'c.jsonl', {'question': '1+1=', 'answer': '2', 'Loss_Mask': [0]})
  with pytest.raises(UserError, match='field "loss_mask" is not read'):
    load(str(masked))


def test_columns_of_the_user(tmp_path):
  rows = [{'prob': f'{n}+1=', 'sol': f'It is {n + 1}.', 'gold': n + 1, 'question': 'another'} for n in range(2)]
  path = str(write_lines(tmp_path / 'a.jsonl', *rows))
  kept, report = load(path, columns=('question=prob', 'solution=sol', 'answer=gold'))
  assert [(e.question, e.solution, e.answer) for e in kept] == [('0+1=', 'It is 1.', '1'), ('1+1=', 'It is 2.', '2')]
  assert report.unread == {'question': 'a.jsonl:1'}  # the columns are read, in place of it
  with pytest.raises(UserError, match='no column other: it has prob, sol, gold'):
    load(path, columns=('question=prob', 'answer=other'))
  for columns, words in {
    ('question',): 'is not FIELD=COLUMN',
    ('questoin=prob', 'answer=gold'): "no field 'questoin'.*question",
    ('question=prob',): 'needs question and solution',
    ('question=prob', 'question=sol', 'answer=gold'): 'names question twice',
  }.items():
    with pytest.raises(UserError, match=words):
      load(path, columns=columns)


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
  """A data set as the hub has it; the names that were asked for."""
  huggingface_hub = pytest.importorskip('huggingface_hub')
  asked = []

  def snapshot(name, allow_patterns, **options):
    asked.append((name, options))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
  for configuration in ('main', 'socratic'):
    (tmp_path / configuration).mkdir()
    for split in ('train', 'test'):
      rows = [{'question': f'{configuration} {split}', 'answer': '#### 1'}]
      (tmp_path / configuration / f'{split}-00000-of-00001.parquet').write_bytes(parquet_of(rows))
  return tmp_path, asked


def test_a_data_set_on_the_hub(hub_folder):
  folder, asked = hub_folder
  configs = [
    {'config_name': name, 'data_files': [{'split': part, 'path': f'{name}/{part}-*'} for part in ('train', 'test')]}
    for name in ('main', 'socratic')
  ]
  (folder / 'README.md').write_text(f'---\n{json.dumps({"license": "mit", "configs": configs})}\n---\n# Rows\n')
  ((example,), _) = load('hf://openai/rows/socratic@v1', 'test')
  assert example.question == 'socratic test'
  assert asked == [('openai/rows', {'repo_type': 'dataset', 'revision': 'v1'})]
  with pytest.raises(UserError, match='has the configurations main, socratic: name one, as hf://openai/rows/main'):
    load('hf://openai/rows')
  with pytest.raises(UserError, match='write hf://ORGANISATION/NAME'):
    load('hf://rows')


def test_a_data_set_on_the_hub_without_a_readme(hub_folder):
  ((example,), _) = load('hf://openai/rows/main', 'train')
  assert example.question == 'main train'


def test_a_small_file_trains_as_it_is(tmp_path):
  from mathqwen.config import DataConfig
  from mathqwen.data.training_data import TrainingData
  from mathqwen.text.loading import load_tokenizer

  held_out = {}
  for rows in (1, 2, 200):
    path = write_lines(tmp_path / f'{rows}.jsonl', *({'query': f'{n}+1=', 'response': str(n + 1)} for n in range(rows)))
    data = TrainingData(DataConfig(sources=(str(path),), seq_len=64, batch_size=2), load_tokenizer())
    held_out[rows] = (len(data.sources[0]), data.held_out and len(data.held_out))
    assert np.count_nonzero(next(data.train())['loss_weights'])
  assert held_out == {1: (1, None), 2: (1, 1), 200: (180, 20)}

  # In each family of shapes, with the holdout that is the default.
  pairs = [(f'{n}+1=', f'It is {n + 1}.') for n in range(200)]
  chats = [{'conversations': turns(*pair, keys=('from', 'value'), roles=('human', 'gpt'))} for pair in pairs]
  families = {
    'messages.jsonl': lines_of({'messages': turns(*pair)} for pair in pairs),
    'sharegpt.json': json.dumps(chats).encode(),
    'alpaca.json': json.dumps([{'instruction': q, 'input': '', 'output': a} for q, a in pairs]).encode(),
    'completions.jsonl': lines_of({'prompt': q, 'completion': a} for q, a in pairs),
    'table.csv': csv_of([{'question': q, 'answer': a} for q, a in pairs], ';'),
    'rows.parquet': parquet_of([{'problem': q, 'solution': a} for q, a in pairs]),
  }
  for name, content in families.items():
    (tmp_path / name).write_bytes(content)
    data = TrainingData(DataConfig(sources=(str(tmp_path / name),), seq_len=64, batch_size=2), load_tokenizer())
    assert (len(data.sources[0]), len(data.held_out)) == (180, 20), name


# Writes what ChatML has no place for.
TEMPLATE = (
  "{% for tool in tools or [] %}[{{ tool['name'] }}]{% endfor %}{% for message in messages %}"
  "<|im_start|>{{ message['role'] }}:{{ message['reasoning_content'] or '' }}"
  "{% for call in message['tool_calls'] or [] %}({{ call['name'] }}){% endfor %}{{ message['content'] }}<|im_end|>"
  '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}'
)


def test_turns_that_a_template_takes(tmp_path):
  from mathqwen.chat.chat_format import text_with_specials
  from mathqwen.config import DataConfig
  from mathqwen.data.training_data import TrainingData
  from mathqwen.text.loading import load_tokenizer

  (tmp_path / 'own.jinja').write_text(TEMPLATE)
  called = [{'role': 'assistant', 'content': None, 'tool_calls': [{'name': 'add'}]}, {'role': 'tool', 'content': '2'}]
  thought = {'role': 'assistant', 'reasoning_content': 'as asked', 'content': '2'}
  row = {'messages': [{'role': 'developer', 'content': 'Add.'}, *turns('1+1='), *called, thought]}
  path = write_lines(tmp_path / 'a.jsonl', row | {'tools': [{'name': 'add'}]}, row | {'tools': '[{"name": "sum"}]'})
  tokenizer = load_tokenizer()
  cfg = DataConfig(
    sources=(str(path),), template=str(tmp_path / 'own.jinja'), seq_len=96, batch_size=2, eval_examples=0
  )
  data = TrainingData(cfg, tokenizer)
  (rendered,) = {text_with_specials(data.sources[0][i][0], tokenizer)[5:] for i in range(2)}
  assert rendered == (
    '<|im_start|>developer:Add.<|im_end|><|im_start|>user:1+1=<|im_end|><|im_start|>assistant:(add)<|im_end|>'
    '<|im_start|>tool:2<|im_end|><|im_start|>assistant:as asked2<|im_end|>'
  )
  assert data.reports[str(path)].lines() == []
  # ChatML has no place for them.
  with pytest.raises(UserError, match='no usable record.*field "tools" is not read'):
    load(str(path))


@pytest.mark.parametrize('name', ['a.json', 'array.jsonl', 'a.jsonl', 'a.csv', 'a.parquet', 'a.jsonl.zst'])
def test_files_are_read_as_a_stream(name, tmp_path, monkeypatch):
  """In pieces that end inside of records and characters; what comes before the damage is there."""
  monkeypatch.setattr(formats, '_CHUNK', 37)
  monkeypatch.setattr(arrow_tables, '_BATCH', 2)
  rows = [{'question': f'{n}+1= é 一', 'answer': str(n + 1)} for n in range(9)]
  content = {
    'a.json': json.dumps(rows, ensure_ascii=False, indent=1).encode(),
    'array.jsonl': json.dumps(rows, ensure_ascii=False).encode(),
    'a.csv': csv_of(rows),
    'a.parquet': parquet_of(rows),
    'a.jsonl.zst': pyarrow.compress(lines_of(rows), 'zstd').to_pybytes(),
    'a.jsonl': lines_of(rows),
  }[name]
  (tmp_path / name).write_bytes(content)
  report = Report()
  found = [(example.question, example.answer) for example in stream(str(tmp_path / name), report)]
  assert found == [(row['question'], row['answer']) for row in rows] and not report.counts
  assert report.shapes == {'{question, answer}': 9}
  if name in ('a.json', 'array.jsonl', 'a.jsonl'):
    for damaged in (content[:-9], content + b'x'):
      (tmp_path / name).write_bytes(damaged)
      read = stream(str(tmp_path / name), Report())
      assert [next(read).answer for _ in range(8)] == [row['answer'] for row in rows[:8]]
      with pytest.raises(UserError, match='half-written|more follows the array'):
        list(read)


def test_lists_on_lines_are_rows_that_are_no_objects(tmp_path):
  (tmp_path / 'a.jsonl').write_text('["a"]\n["b"]\n{"query": "1=", "response": "1"}\n')
  kept, report = load(str(tmp_path / 'a.jsonl'))
  assert len(kept) == 1 and report.counts == {'malformed': 2}
