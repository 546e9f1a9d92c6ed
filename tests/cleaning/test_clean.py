"""`clean`, the whole way on Beam's direct runner, and what it refuses."""

import dataclasses
import errno
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from dirty_rows import REASONS, ROWS, TEST_QUESTION, row
from json_lines import write_lines

pytest.importorskip('apache_beam', reason='the extra `beam` is not installed')

from mathqwen.cleaning import card, job, pipeline, stages
from mathqwen.cleaning.clean import clean
from mathqwen.cleaning.settings import Cleaning, split
from mathqwen.data.sources import load
from mathqwen.data_config import DataConfig
from mathqwen.errors import UserError

README = pathlib.Path(pipeline.__file__).with_name('README.md')


@pytest.fixture
def mixture(tmp_path):
  """(a file of ROWS, {name: (source, split)} of a test set and of one that is not there)."""
  source = tmp_path / 'mine.jsonl'
  source.write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in ROWS))
  (tmp_path / 'asked.jsonl').write_text(json.dumps(row(TEST_QUESTION)) + '\n')
  return str(source), {'asked': (str(tmp_path / 'asked.jsonl'), 'test'), 'gone': (str(tmp_path / 'gone.jsonl'), 'test')}


def run(mixture, out, cleaning=Cleaning(), asked=None, beam=(), **data):  # noqa: B008 - it is frozen
  source, test_sets = mixture
  cfg = DataConfig(sources=(source,), **{'max_left_out': 1.0} | data)
  return clean(cfg, cleaning, str(out), test_sets, asked, beam, ['mathqwen', 'data', 'clean'])


def test_the_whole_way_and_after_a_full_disk(mixture, tmp_path, monkeypatch):
  """The disk is full in the second stage, and the same call continues without reading the sources again."""
  out = tmp_path / 'out'
  write_pairs = stages._write_pairs

  def full(path, *_):
    raise OSError(errno.ENOSPC, 'No space left on device', str(path))

  monkeypatch.setattr(stages, '_write_pairs', full)
  with pytest.raises(
    UserError, match=r'groups/\d+: No space left on device; free some space and run the same'
  ) as caught:
    run(mixture, out)
  assert '\n' not in str(caught.value)
  monkeypatch.setattr(stages, '_write_pairs', write_pairs)
  monkeypatch.setattr(stages, '_read_part', None)
  result = run(mixture, out)

  (entry,) = result['sources']
  assert (result['rows_read'], result['rows'], entry['folder']) == (len(ROWS), 4, '00-mine')
  assert entry['unread'] == ['level']
  assert {reason: found['count'] for reason, found in entry['left_out'].items()} == REASONS
  assert entry['left_out']['contaminated']['rows'][0] == ['mine.jsonl:5', 'exact of asked asked/0']
  assert entry['left_out']['duplicate']['rows'] == [
    ['mine.jsonl:2', f'same as {mixture[0]} mine.jsonl:1'],
  ]
  assert result['test_sets'] == {
    'asked': {
      'problems': 1,
      'exact': 1,
      'punctuation': 1,
      'template': 1,
      'ngrams_any': 1,
      'ngrams_half': 1,
    }
  }
  assert 'gone.jsonl' in result['test_sets_not_found']['gone']
  hits = {(hit['kind'], hit['rows']) for hit in result['contamination']}
  assert hits == {('exact', 1), ('punctuation', 1), ('template', 1), ('ngrams_half', 3), ('ngrams_any', 3)}

  # Training reads the folder, without the lists of what was left out.
  kept, report = load(str(out))
  assert [example.where for example in kept] == [f'train-00000-0000.jsonl:{n}' for n in range(1, 5)]
  assert [example.question for example in kept] == [ROWS[n]['question'] for n in (0, 3, 7, 8)]
  assert report.lines() == ['2 file_not_read: left_out.jsonl (not taken as train), report.json (not taken as train)']
  lines = [json.loads(line) for line in (out / 'left_out.jsonl').read_text().splitlines()]
  assert len(lines) == sum(REASONS.values()) - REASONS['malformed']
  (near,) = [line for line in lines if line['reason'] == 'near_duplicate']
  assert near['question'] == ROWS[2]['question'] and near['of_question'] == ROWS[0]['question']
  card = (out / 'README.md').read_text()
  assert '| duplicate | 1 |' in card and '**Not compared with**' in card and result['fingerprint'] in card
  assert not (out / '.work').exists()

  assert run(mixture, out)['rows'] == 4  # complete: nothing is done
  with pytest.raises(UserError, match='holds another cleaning .*: give another --out'):
    run(mixture, out, Cleaning(near_duplicates=0.0))


def test_files_without_rows_and_files_that_are_not_read(mixture, tmp_path):
  folder = tmp_path / 'parts'
  folder.mkdir()
  (folder / 'train-0.csv').write_text('question,answer\n')
  shutil.copy(mixture[0], folder / 'extra.jsonl')
  with pytest.raises(UserError, match='train-0.csv has no rows'):
    run((str(folder), mixture[1]), tmp_path / 'none')
  (folder / 'train-1.csv').write_text('question,answer\n')
  with pytest.raises(UserError, match='parts: none of its 2 files has rows'):
    run((str(folder), mixture[1]), tmp_path / 'no_rows')
  shutil.copy(mixture[0], folder / 'train-2.jsonl')
  (entry,) = run((str(folder), mixture[1]), tmp_path / 'out')['sources']
  assert entry['rows'] == 4
  assert entry['left_out']['file_not_read'] == {'count': 1, 'rows': [['extra.jsonl', 'not taken as train']]}
  assert sorted(entry['left_out']['empty_file']['rows']) == [['train-0.csv', 'no rows'], ['train-1.csv', 'no rows']]
  assert '| file_not_read | 1 | extra.jsonl: not taken as train |' in (tmp_path / 'out' / 'README.md').read_text()


def test_files_of_one_row_that_share_their_names(tmp_path, monkeypatch):
  """As the original MATH has them."""
  monkeypatch.setattr(pipeline, 'run', one_after_another)
  rows = {'algebra/1.json': '', 'geometry/1.json': 'Add 1 and 2.', 'geometry/2.json': 'Add 2 and 3.'}
  for name, problem in rows.items():
    write_lines(tmp_path / 'MATH' / name, {'problem': problem, 'solution': 'It is $\\boxed{5}$.'})
  (entry,) = run((str(tmp_path / 'MATH'), {}), tmp_path / 'out')['sources']
  assert entry['left_out']['malformed']['rows'] == [['algebra/1.json:1', 'field "problem" is empty']]
  kept, _ = load(str(tmp_path / 'out' / '00-MATH'))
  assert [example.question for example in kept] == ['Add 1 and 2.', 'Add 2 and 3.']
  written = [json.loads(line)['where'] for file in (tmp_path / 'out').rglob('train-*.jsonl') for line in file.open()]
  assert sorted(written) == ['2.json:1', 'geometry/1.json:1']
  for name in rows:
    write_lines(tmp_path / 'MATH' / name, {'problem': '', 'solution': '5'})
  with pytest.raises(UserError, match='MATH: none of its 3 rows can be read: 3 malformed: algebra/1.json:1'):
    run((str(tmp_path / 'MATH'), {}), tmp_path / 'none')


def test_columns_that_are_in_one_piece_or_in_none(tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, 'run', one_after_another)
  monkeypatch.setattr(job, 'PIECE_BYTES', 200)
  monkeypatch.setattr('mathqwen.data.line_ranges._READ', 100)
  rows = [{'q': f'What is one more than {number}?', 'a': number + 1} for number in range(20)]
  path = write_lines(tmp_path / 'mine.jsonl', *rows, {'q': 'And after 20?', 'a': 21, 'said': 'Count.'})
  columns = ('question=q', 'answer=a')
  assert run((str(path), {}), tmp_path / 'one', columns=(*columns, 'system=said'))['rows'] == 21
  assert len(list((tmp_path / 'one' / '00-mine').iterdir())) > 2
  with pytest.raises(UserError, match="mine.jsonl: no row has a column 'sad', which --map system=sad names"):
    run((str(path), {}), tmp_path / 'none', columns=(*columns, 'system=sad'))


def test_every_row_that_was_read_is_kept_or_left_out(tmp_path, monkeypatch):
  """Whatever the kind: a published set marks rows, an option leaves rows out, and some cannot be read."""
  numina = {'problem': '1 + 1 = ?', 'solution': 'It is 2.', 'answer': '2'}
  marks = [('Yes', 'Yes'), ('Yes', 'Yes'), ('Yes', 'No'), ('Incomplete', 'Yes'), ('No', 'No')]
  rows = [numina | {'problem_is_valid': problem, 'solution_is_valid': solution} for problem, solution in marks]
  marked = write_lines(tmp_path / 'marked.jsonl', *rows, 'not JSON')
  own = {'problem': 'Add 2 and 3.', 'solution': 'It is $\\boxed{5}$.', 'level': 'Level 1', 'type': 'Algebra'}
  (tmp_path / 'math').mkdir()
  write_lines(tmp_path / 'math' / 'train.jsonl', own, own | {'problem': '[asy]draw(A);[/asy] Add 3.'})
  monkeypatch.setattr(pipeline, 'run', one_after_another)
  cfg = DataConfig(sources=(str(marked), 'math?asy=drop'), data_dir=str(tmp_path), max_left_out=1.0)
  result = clean(cfg, Cleaning(), str(tmp_path / 'out'), {}, None)
  left_out = [{kind: found['count'] for kind, found in entry['left_out'].items()} for entry in result['sources']]
  assert left_out == [{'unverified': 3, 'malformed': 1, 'duplicate': 1}, {'not_wanted': 1}]
  assert [(entry['rows_read'], entry['rows']) for entry in result['sources']] == [(6, 1), (2, 1)]
  assert '2 of 8 rows, made by' in (tmp_path / 'out' / 'README.md').read_text()


def one_after_another(work, _):
  """`pipeline.run` without Beam."""
  for number in range(len(job.load(work)[0].pieces)):
    stages.read(work, number)
  for number in stages.group_numbers(work):
    stages.group(work, number)
  for index in range(len(stages.parts_of(work))):
    stages.write(work, index)


KILLED = """
import json, os, signal, sys
from mathqwen import files
from mathqwen.cleaning import stages
from mathqwen.cleaning.clean import clean
from mathqwen.cleaning.settings import Cleaning
from mathqwen.data_config import DataConfig

source, test_sets, out = sys.argv[1:]
write = files.write_atomically
written = []

def write_or_die(path, content):
  if path.parent.name == 'written':
    written.append(path.name)
    if sum(name.endswith('.json') for name in written) == 2:
      os.kill(os.getpid(), signal.SIGKILL)
  write(path, content)

files.write_atomically = write_or_die
stages.PART_ROWS = 2
clean(DataConfig(sources=(source,), max_left_out=1.0), Cleaning(), out, json.loads(test_sets), None)
"""


def test_after_a_kill_in_the_last_stage(mixture, tmp_path, monkeypatch, capsys):
  """Killed before the second part is complete: the same call writes it, and reads and groups nothing again."""
  out = tmp_path / 'out'
  command = [sys.executable, '-c', KILLED, mixture[0], json.dumps(mixture[1]), str(out)]
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
  assert len(list((out / '.work' / 'written').glob('*.json'))) == 1 and not (out / 'report.json').exists()
  for name in ('_read_part', '_write_pairs'):
    monkeypatch.setattr(stages, name, None)
  result = run(mixture, out)
  assert 'continuing the cleaning' in capsys.readouterr().err
  assert (result['rows_read'], result['rows']) == (len(ROWS), 4)
  assert {reason: found['count'] for reason, found in result['sources'][0]['left_out'].items()} == REASONS
  assert [example.question for example in load(str(out))[0]] == [ROWS[n]['question'] for n in (0, 3, 7, 8)]


def test_what_is_refused(mixture, tmp_path):
  with pytest.raises(UserError, match=r'gone\.jsonl'):
    run(mixture, tmp_path / 'a', asked=['asked', 'gone'])
  with pytest.raises(UserError, match='--beam job: Apache Beam has no such pipeline option'):
    run(mixture, tmp_path / 'b', beam=['job=x'])
  with pytest.raises(UserError, match='Apache Beam does not take one of these values'):
    run(mixture, tmp_path / 'b', beam=['direct_num_workers=many'])
  with pytest.raises(UserError, match='^--beam runner=Nothing: Unexpected pipeline runner'):
    run(mixture, tmp_path / 'b', beam=['runner=Nothing'])
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c' / 'notes.txt').write_text('mine')
  with pytest.raises(UserError, match=r'is not empty \(notes.txt\)'):
    run(mixture, tmp_path / 'c')
  for text, words in {
    'clean.near=1': 'there is no such setting; did you mean',
    'clean.contamination=exakt': "clean.contamination: 'exakt' is none of exact.*did you mean 'exact'",
    'clean.near_duplicates=2': 'clean.near_duplicates',
  }.items():
    with pytest.raises(UserError, match=words):
      split(['data.seq_len=8', text])


def test_a_share_limit_of_what_the_filters_leave_out(mixture, tmp_path):
  with pytest.raises(UserError, match=r'5 of 11 rows cannot be trained on, and data.max_left_out is 0.3: .*=0.46'):
    run(mixture, tmp_path / 'out', max_left_out=0.3)
  assert run(mixture, tmp_path / 'out', max_left_out=0.46)['rows'] == 4  # nothing is done again


def test_pieces_and_parts_give_the_same_rows(mixture, tmp_path, monkeypatch):
  """One file in several pieces, each in several parts; a duplicate in another piece is one."""
  whole = run(mixture, tmp_path / 'whole')
  monkeypatch.setattr(job, 'PIECE_BYTES', 900)
  monkeypatch.setattr('mathqwen.data.line_ranges._READ', 300)
  monkeypatch.setattr(stages, 'PART_ROWS', 2)
  monkeypatch.setattr(stages, '_GROUP_ROWS', 3)
  result = run(mixture, tmp_path / 'pieces')
  assert len(list((tmp_path / 'pieces' / '00-mine').iterdir())) > 2
  for name in ('rows', 'rows_read', 'test_sets'):
    assert result[name] == whole[name]
  assert result['sources'][0]['left_out'].keys() == whole['sources'][0]['left_out'].keys()
  kept = {split: [example.question for example in load(str(tmp_path / split))[0]] for split in ('whole', 'pieces')}
  assert kept['whole'] == kept['pieces']


def test_without_looking_for_duplicates_every_row_is_written(mixture, tmp_path):
  """Also into a folder that the same process has cleaned into before. A large report is read again."""
  out = tmp_path / 'out'
  assert 'duplicate' in run(mixture, out)['sources'][0]['left_out']
  shutil.rmtree(out)
  cleaning = Cleaning(duplicates=False, near_duplicates=0.0)
  result = run(mixture, out, cleaning)
  assert result['rows'] > 0 and 'duplicate' not in result['sources'][0]['left_out']
  (out / 'report.json').write_text((out / 'report.json').read_text() + ' ' * 2**24)
  assert run(mixture, out, cleaning) == result


def test_shards_are_what_training_reads(mixture, tmp_path, monkeypatch):
  """The batches of the cleaned shards are those of the cleaned text; a row that is too long is counted."""
  import numpy as np

  from mathqwen.data.training_data import TrainingData
  from mathqwen.text.loading import load_tokenizer

  settings = {'seq_len': 40, 'batch_size': 2, 'eval_examples': 0}
  run(mixture, tmp_path / 'text', **settings)
  source, test_sets = mixture
  cfg = DataConfig(sources=(source,), max_left_out=1.0, **settings)
  monkeypatch.setattr('mathqwen.data.left_out._KEPT', 1)  # rows that the report names
  result = clean(cfg, Cleaning(), str(tmp_path / 'out'), test_sets, None, tokenizer='arithmetic')
  kept = result['shards']['examples']
  assert result['rows'] == kept and result['sources'][0]['left_out']['too_long']['count'] == 4 - kept > 1
  assert (tmp_path / 'out' / 'left_out.jsonl').read_text().count('"too_long"') == 4 - kept
  assert (
    f'Train on its {result["shards"]["tokens"]:,} tokens, in shards' in (tmp_path / 'out' / 'README.md').read_text()
  )
  data = []
  for folder in ('out', 'text'):
    cfg = DataConfig(sources=(str(tmp_path / folder),), max_left_out=1.0, **settings)
    data.append(TrainingData(cfg, load_tokenizer()))
  (shards, text) = (next(one.train()) for one in data)
  assert all(np.array_equal(shards[name], text[name]) for name in text)
  assert data[0].sources[0].where[0].startswith('mine.jsonl:')

  # With epochs: a folder for each source, and the settings that mix them so.
  other = tmp_path / 'other.jsonl'
  other.write_text(json.dumps({'query': '11+11=', 'response': '22'}) + '\n')
  cfg = DataConfig(sources=(source, str(other)), epochs=(0.5, 3), max_left_out=1.0, **settings)
  result = clean(cfg, Cleaning(), str(tmp_path / 'mixed'), test_sets, None, tokenizer='arithmetic')
  words = card.mixed(result, str(tmp_path / 'mixed'))
  assert words.endswith(f'data.sources={tmp_path}/mixed/00-mine,{tmp_path}/mixed/01-other --set data.epochs=0.5,3')
  assert '| 3 times an epoch |' in (tmp_path / 'mixed' / 'README.md').read_text()
  folders = words.split()[1].partition('=')[2].split(',')
  data = TrainingData(dataclasses.replace(cfg, sources=tuple(folders)), load_tokenizer())
  assert [len(part) for part in data.sources] == [kept, 1] and result['shards']['examples'] == kept + 1
  assert ', 3 times an epoch of the mixture' in '\n'.join(data.describe())


def test_no_row_is_left_for_shards(mixture, tmp_path):
  """All are test problems. With epochs, which write a folder for each source, as well."""
  _, test_sets = mixture
  source, _ = test_sets['asked']
  for epochs in ((), (2.0,)):
    cfg = DataConfig(sources=(source,), seq_len=99, epochs=epochs)
    with pytest.raises(
      UserError, match=r'no row is left to write as shards \(1 contaminated: asked.jsonl:1 .*another --out'
    ):
      clean(cfg, Cleaning(), str(tmp_path / f'out{len(epochs)}'), test_sets, None, tokenizer='arithmetic')


def test_the_options_that_the_readme_shows_are_those_of_beam():
  """Each command with --beam is parsed by Beam's own classes, whose options have the values that the README gives."""
  text = README.read_text().partition('## On a cluster')[2].replace('\\\n', ' ')
  commands = [shlex.split(line) for line in text.splitlines() if line.startswith('    mathqwen data clean')]
  seen = []
  for words in commands:
    given = dict(words[i + 1].split('=', 1) for i, word in enumerate(words) if word == '--beam')
    parsed = pipeline.parse_options([f'{name}={value}' for name, value in given.items()], {}).get_all_options()
    assert {name: str(parsed[name]) for name in given} == given
    seen.append(given.get('runner'))
  assert seen == ['DataflowRunner', 'FlinkRunner', 'SparkRunner', None]
