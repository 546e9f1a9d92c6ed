"""Builders: what comes out is what the parser reads, prepared once, never stale, never half, and no TensorFlow."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from json_lines import GSM8K, jsonl

from mathqwen.data import catalog, datasets, examples, sources
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('cache')


@pytest.fixture
def data(tmp_path):
  (tmp_path / 'data' / 'gsm8k').mkdir(parents=True)
  (tmp_path / 'data' / 'gsm8k' / 'train.jsonl').write_bytes(jsonl(*GSM8K))
  return tmp_path / 'data'


def python(code, **environ):
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=os.environ | environ, timeout=60
  )


def files_below(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


# --- reading ---


def test_rows_in_order_as_the_parser_reads_them(data):
  parsed, _ = examples.parse_file(data / 'gsm8k' / 'train.jsonl', 'gsm8k', 'train')
  before = files_below(data)
  for _ in range(2):  # prepared, then read again
    loaded, report = sources.load('gsm8k', 'train', str(data))
    assert loaded == parsed and not report.counts
  assert files_below(data) == before


@pytest.mark.parametrize('source', ['gsm8k', 'arithmetic?count=20'])
def test_the_licence_is_known_however_a_data_set_is_read(source, data):
  streamed = Report()
  assert list(sources.stream(source, streamed, 'train', str(data)))
  _, loaded = sources.load(source, 'train', str(data))
  assert streamed.origin == loaded.origin == {'licence': catalog.of_source(source).licence}


def test_no_tensorflow(data):
  done = python(
    'import sys; from mathqwen.data import sources; '
    f'print(len(sources.load("gsm8k", "train", {str(data)!r})[0])); '
    'print([m for m in sys.modules if m.split(".")[0] in ("tensorflow", "jax", "torch")])'
  )
  assert done.stdout.splitlines() == ['5', '[]'], done.stderr  # and nothing else on standard output


def test_the_builder_is_a_tfds_builder(data, tmp_path):
  builder = datasets.builder_class('gsm8k')(source=str(data), data_dir=str(tmp_path / 'tfds'))
  builder.download_and_prepare()
  source = builder.as_data_source(split='train')
  assert len(source) == 5 and source[3]['answer'] == b'4' and source[3]['question'].decode() == 'Janet’s 3 ducks?'
  assert builder.info.splits['train'].num_examples == 5
  assert list((tmp_path / 'tfds' / 'gsm8k' / '1.0.0').glob('*.array_record-*'))


def test_the_report_outlives_the_preparation(data):
  text = jsonl(GSM8K[0], {'question': 'q', 'answer': 'no mark'}, GSM8K[1], GSM8K[0]) + b'{"question": \n'
  (data / 'gsm8k' / 'train.jsonl').write_bytes(text)
  for _ in range(2):
    loaded, report = sources.load('gsm8k', 'train', str(data))
    assert len(loaded) == 2 and report.counts == {'malformed': 2, 'duplicate': 1}
    assert report.lines()[0].startswith(
      '2 malformed: train.jsonl:2 (field "answer" does not end with "#### ANSWER"), train.jsonl:5 (not JSON'
    )
    with pytest.raises(UserError, match=f'{data}/gsm8k/train.jsonl:2: field "answer"'):
      sources.load('gsm8k', 'train', str(data), strict=True)


def test_changed_data_is_read_again(data):
  path = data / 'gsm8k' / 'train.jsonl'
  assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5
  stamp = path.stat()
  path.write_bytes(path.read_bytes().replace(b'#### 1', b'#### 7', 1))
  os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same time, other content
  assert sources.load('gsm8k', 'train', str(data))[0][0].answer == '7'
  (data / 'math').mkdir()
  (data / 'math' / 'train.jsonl').write_bytes(jsonl({'problem': 'p', 'solution': r'\boxed{1}'}))
  assert sources.load('math', 'train', str(data))[0][0].id == 'math/train/0'
  (data / 'math' / 'train_paths.txt').write_text('train/algebra/0.json\n')  # a file beside counts too
  assert sources.load('math', 'train', str(data))[0][0].id == 'train/algebra/0.json'


def test_a_split_needs_its_own_file_only(data):
  (data / 'gsm8k' / 'test.jsonl').write_bytes(b'{"question": "half')
  assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5
  with pytest.raises(UserError, match='gsm8k/test.jsonl:1: the last line is half-written'):
    sources.load('gsm8k', 'test', str(data))
  with pytest.raises(UserError, match='tried math/test500.jsonl, math/test500.jsonl.gz'):
    sources.load('math500', 'test', str(data))
  with pytest.raises(UserError, match="math500 has no split 'train'"):
    sources.load('math500', 'train', str(data))


def test_a_split_that_is_known_by_another_name_has_the_options_of_its_data_set(data):
  (data / 'math').mkdir()
  rows = [{'problem': 'What is 1 + 1?', 'solution': r'\boxed{2}', 'answer': '2'}]
  rows.append({'problem': 'How long? [asy]draw((0,0));[/asy]', 'solution': r'\boxed{3}', 'answer': '3'})
  (data / 'math' / 'test500.jsonl').write_bytes(jsonl(*rows))

  def questions(source):
    return [example.question for example in sources.load(source, 'test', str(data))[0]]

  assert questions('math500') == questions('math500?asy=keep') == [row['problem'] for row in rows]
  assert questions('math500?asy=strip') == ['What is 1 + 1?', 'How long?']
  assert questions('math500?asy=drop') == ['What is 1 + 1?']


def test_a_killed_preparation_leaves_nothing_that_is_read(data, cache):
  code = """
import os, signal
from mathqwen.data import datasets
Gsm8k = datasets.builder_class('gsm8k')
original = Gsm8k._generate_examples
def killed(self, parsed):
  for index, row in original(self, parsed):
    if index == 3:
      os.kill(os.getpid(), signal.SIGKILL)
    yield index, row
Gsm8k._generate_examples = killed
datasets.read('gsm8k', 'train', os.environ['DATA'])
"""
  assert python(code, DATA=str(data)).returncode == -signal.SIGKILL
  assert [p for p in cache.rglob('*') if 'incomplete' in p.name] and not list(cache.rglob('dataset_info.json'))
  assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5


def test_two_processes_prepare_at_once(data, monkeypatch):
  """The other one finishes first: its directory is there when ours is renamed."""
  builder = datasets.builder_class('gsm8k')
  original = builder.download_and_prepare

  def overtaken(self, **kwargs):
    monkeypatch.setattr(builder, 'download_and_prepare', original)
    write = self._generate_examples

    def generate(parsed):
      yield from write(parsed)
      assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5

    self._generate_examples = generate
    return original(self, **kwargs)

  monkeypatch.setattr(builder, 'download_and_prepare', overtaken)
  assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5


def test_a_damaged_copy_is_named(data, cache):
  sources.load('gsm8k', 'train', str(data))
  (record,) = cache.rglob('*.array_record-*')
  record.write_bytes(record.read_bytes()[:-100])
  with pytest.raises(UserError, match='damaged') as caught:
    sources.load('gsm8k', 'train', str(data))
  record.unlink()
  with pytest.raises(UserError, match='damaged'):
    sources.load('gsm8k', 'train', str(data))
  shutil.rmtree(str(caught.value).split('the prepared copy in ')[1].split(' is damaged')[0])  # the remedy
  assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5


@pytest.mark.parametrize('name', ['dataset_info.json', 'metadata.json'])
@pytest.mark.parametrize('text', [None, '', '{', '[]', '{"a": 1}'])
def test_a_damaged_description_is_named(data, cache, name, text):
  sources.load('gsm8k', 'train', str(data))
  (path,) = cache.rglob(name)
  path.unlink() if text is None else path.write_text(text)
  with pytest.raises(UserError, match=f'the prepared copy in {cache}.* is damaged .*; delete that directory'):
    sources.load('gsm8k', 'train', str(data))


def test_a_damaged_choice_is_named(data, cache):
  datasets.prepare('gsm8k', str(data))
  for text in ('{', '[]', '{"train": 5}', '{"train": {"root": 1, "file": "x"}}', '{"train": {}}'):
    (cache / 'prepared' / 'gsm8k.json').write_text(text)
    with pytest.raises(UserError, match='gsm8k.json is damaged .*: run `mathqwen data prepare gsm8k` again'):
      sources.load('gsm8k', 'train')


def test_a_cache_on_a_full_disk(data, cache):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # room for what describes the rows, and not for them
  try:
    with pytest.raises(UserError, match='cannot write the prepared gsm8k under .*File too large.*; set MATHQWEN_CACHE'):
      sources.load('gsm8k', 'train', str(data))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(sources.load('gsm8k', 'train', str(data))[0]) == 5


def test_a_cache_that_cannot_be_written(data, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'file'))
  with pytest.raises(UserError, match='MATHQWEN_CACHE'):
    sources.load('gsm8k', 'train', str(data))


# --- preparing ---


def test_without_data_the_remedy_is_named():
  with pytest.raises(UserError, match='run `mathqwen data prepare gsm8k` .*https://raw.*or pass --data-dir'):
    sources.load('gsm8k', 'test')
  with pytest.raises(UserError, match='run `mathqwen data prepare math23k`'):
    datasets.prepare('math23k')
  with pytest.raises(UserError, match="unknown data set 'svmp': the names are gsm8k, math"):
    datasets.prepare('svmp')


def test_prepare_makes_it_the_default(data, cache):
  with pytest.raises(UserError, match='tried math401/test.jsonl'):
    datasets.prepare('math401', str(data))
  result = datasets.prepare('gsm8k', str(data))
  assert result == {
    'name': 'gsm8k',
    'source': str(data),
    'path': str(cache / 'prepared'),
    'splits': {'train': 5},
    'report': {'train': {}},
  }
  assert len(sources.load('gsm8k', 'train')[0]) == 5
  with pytest.raises(UserError, match='no gsm8k test data here'):
    sources.load('gsm8k', 'test')
  (data / 'gsm8k' / 'train.jsonl').write_bytes(jsonl(*GSM8K[:2]))
  assert len(sources.load('gsm8k', 'train')[0]) == 2  # the source changed: not stale
  plain, marked = ([row.solution for row in sources.load(name)[0]] for name in ('gsm8k', 'gsm8k?marks=keep'))
  assert marked == [row['answer'] for row in GSM8K[:2]] != plain == [row.solution for row in sources.load('gsm8k')[0]]
  shutil.rmtree(data)
  datasets_before = datasets.prepare('gsm8k')
  assert datasets_before['splits'] == {'train': 5} and len(sources.load('gsm8k', 'train')[0]) == 5  # its copy
  with pytest.raises(UserError, match='train.jsonl is gone, and its copy has other options'):
    sources.load('gsm8k?marks=keep')


def test_the_copy_depends_on_the_code_that_task_files_share(data, tmp_path, monkeypatch):
  catalog.get('gsm8k')  # the task files are read once
  monkeypatch.setattr(catalog, 'TASKS', tmp_path)
  digests = set()
  for code in ('first', 'second'):
    (tmp_path / '_published.py').write_text(code)
    digests.add(datasets._digest('gsm8k', 'train', data / 'gsm8k' / 'train.jsonl', ''))
  assert len(digests) == 2
