"""Builders: what comes out is what the parser reads, prepared once, never stale, never half, and no TensorFlow."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from mathqwen.data import catalog, datasets, examples, sources
from mathqwen.errors import UserError

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / 'shared' / 'data'
GSM8K = [
  {'question': f'Janet’s {n} ducks?', 'answer': f'{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}'} for n in range(5)
]
MATH23K = [
  {'id': str(n), 'original_text': f'{n}米加1米？', 'segmented_text': None, 'equation': f'x={n}+1', 'ans': str(n + 1)}
  for n in range(1, 6)
]


def jsonl(*records):
  return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


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
  with pytest.raises(UserError, match='run `mathqwen data prepare math`'):
    sources.load('math500', 'test')
  with pytest.raises(UserError, match='run `mathqwen data prepare math23k`'):
    datasets.prepare('math23k')
  with pytest.raises(UserError, match="unknown data set 'svamp': the names are gsm8k, math"):
    datasets.prepare('svamp')


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
  shutil.rmtree(data)
  datasets_before = datasets.prepare('gsm8k')
  assert datasets_before['splits'] == {'train': 5} and len(sources.load('gsm8k', 'train')[0]) == 5  # its copy


# --- downloading, from a server on this machine ---


@pytest.fixture
def server(tmp_path):
  (tmp_path / 'www').mkdir()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(tmp_path / 'www')))
  thread = threading.Thread(target=httpd.serve_forever)
  thread.start()

  def put(name, content, sha256=None):
    (tmp_path / 'www' / name).write_bytes(content)
    return f'http://127.0.0.1:{httpd.server_port}/{name}', sha256 or hashlib.sha256(content).hexdigest()

  yield put
  httpd.shutdown()
  thread.join()
  httpd.server_close()


def publish(monkeypatch, name, files):
  """Replaces every public address of a data set by one of the local server: {file: (address, SHA-256)}."""
  downloads = catalog.get(name).downloads
  assert files.keys() == downloads.keys()
  for file, source in files.items():
    monkeypatch.setitem(downloads, file, catalog.Download(*source))


def test_download_gsm8k(server, cache, monkeypatch):
  train, test = jsonl(*GSM8K), jsonl(*GSM8K[:2])
  publish(
    monkeypatch,
    'gsm8k',
    {'gsm8k/train.jsonl': server('train.jsonl', train), 'gsm8k/test.jsonl': server('test.jsonl', test)},
  )
  assert datasets.prepare('gsm8k', download=True)['splits'] == {'train': 5, 'test': 2}
  assert (cache / 'downloads' / 'gsm8k' / 'train.jsonl').read_bytes() == train
  assert [e.id for e in sources.load('gsm8k', 'test')[0]] == ['gsm8k/test/0', 'gsm8k/test/1']
  server('train.jsonl', b'')  # nothing is fetched twice
  assert datasets.prepare('gsm8k', download=True)['splits'] == {'train': 5, 'test': 2}


def test_download_math_unpacks_the_archive(server, monkeypatch):
  def problem(n):
    return {'problem': f'p{n}', 'level': 'Level 2', 'type': 'Algebra', 'solution': rf'$\boxed{{{n}}}$'}

  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    for path in (
      'MATH/train/algebra/10.json',
      'MATH/train/algebra/0.json',
      'MATH/test/geometry/1.json',
      'MATH/README',
      'MATH/../../train/algebra/5.json',
    ):
      content = json.dumps(problem(int(''.join(filter(str.isdigit, path)) or 0)), indent=4).encode()
      member = tarfile.TarInfo(path)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  publish(
    monkeypatch,
    'math',
    {
      'math/MATH.tar': server('MATH.tar', buffer.getvalue()),
      'math/test500.jsonl': server(
        'test.jsonl', jsonl(problem(1) | {'answer': '1', 'unique_id': 'test/geometry/1.json'})
      ),
    },
  )
  assert datasets.prepare('math', download=True)['splits'] == {'train': 2, 'test': 1, 'test500': 1}
  assert [(e.id, e.answer) for e in sources.load('math', 'train')[0]] == [
    ('train/algebra/0.json', '0'),
    ('train/algebra/10.json', '10'),
  ]
  assert sources.load('math500', 'test')[0][0].id == sources.load('math', 'test')[0][0].id == 'test/geometry/1.json'


@pytest.mark.parametrize('aligned', [True, False])
def test_download_math23k_joins_questions_and_answers(aligned, server, monkeypatch):
  sheet = [{row['id']: {'answer': row['ans'], 'equation': row['equation'][2:]}} for row in MATH23K]
  questions = [row['original_text'] for row in MATH23K]
  if not aligned:
    questions.insert(0, '多一行？')
    sheet.append({'6': sheet[-1]['5']})
  publish(
    monkeypatch,
    'math23k',
    {
      'math23k/math23k_test.json': server('test.json', json.dumps(MATH23K[2], indent=4, ensure_ascii=False).encode()),
      'math23k/question_CH.txt': server('q.txt', '\n'.join(questions + ['']).encode()),
      'math23k/answersheet.json': server('a.json', json.dumps(sheet).encode()),
    },
  )
  if not aligned:
    with pytest.raises(UserError, match='question 3 differs'):
      datasets.prepare('math23k', download=True)
    return
  assert datasets.prepare('math23k', download=True)['splits'] == {'train': 4, 'test': 1}
  assert [e.id for e in sources.load('math23k', 'train')[0]] == [f'math23k/train/{n}' for n in (1, 2, 4, 5)]
  assert sources.load('math23k', 'test')[0][0].solution == '算式：3+1\n答案：4'


def half_an_archive():
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    member = tarfile.TarInfo('MATH/train/algebra/0.json')
    member.size = 50_000
    archive.addfile(member, io.BytesIO(random.Random(0).randbytes(member.size)))
  return buffer.getvalue()[:30_000]


@pytest.mark.parametrize(
  'name, files',
  [
    ('math', {'MATH.tar': b'<html>log in</html>', 'test500.jsonl': b'{}'}),
    ('math', {'MATH.tar': half_an_archive(), 'test500.jsonl': b'{}'}),
    ('math23k', {'math23k_test.json': b'{"id": "1"}', 'question_CH.txt': b'q', 'answersheet.json': b'<html>log in'}),
    ('math23k', {'math23k_test.json': b'{"id": "1"}', 'question_CH.txt': b'q', 'answersheet.json': b'[{"1": 5}]'}),
    ('math23k', {'math23k_test.json': b'{}', 'question_CH.txt': b'\xff', 'answersheet.json': b'[]'}),
  ],
)
def test_downloads_that_are_something_else(server, cache, monkeypatch, name, files):
  publish(monkeypatch, name, {f'{name}/{file}': server(file, files[file]) for file in files})
  with pytest.raises(
    UserError, match=f'(?s)the files in {cache}/downloads/{name} are not what is published .*; delete'
  ):
    datasets.prepare(name, download=True)


def test_downloads_that_fail(server, cache, monkeypatch):
  address, _ = server('there', b'other bytes')
  port = address.split(':')[2].split('/')[0]
  for url, sha256, words in (
    (address, '0' * 64, 'sent 11 bytes with SHA-256'),
    (address.replace('there', 'absent'), None, '404'),
    (address.replace(port, '1'), None, 'refused'),
  ):
    publish(monkeypatch, 'math401', {'math401/math401.json': (url, sha256)})
    with pytest.raises(UserError, match=words) as caught:
      datasets.prepare('math401', download=True)
    assert url in str(caught.value) and '--data-dir DIR with math401/math401.json' in str(caught.value)
    assert '\n' not in str(caught.value) and not list(cache.rglob('math401.json'))


def test_addresses_are_pinned():
  for name in catalog.downloadable():
    for source in catalog.get(name).downloads.values():
      commit = [part for part in source.address.split('/') if len(part) == 40]
      assert source.address.startswith('https://') and (commit or source.sha256)


# --- the published files, and samples of them ---


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


def test_published_files_have_the_checksums_of_the_downloads():
  """Files that the data folder keeps as they were published."""
  if not PUBLISHED.is_dir():
    pytest.skip(f'the full data sets are not here: {PUBLISHED}')
  for stored, name, target in (
    ('gsm8k/train.jsonl', 'gsm8k', 'gsm8k/train.jsonl'),
    ('gsm8k/test.jsonl', 'gsm8k', 'gsm8k/test.jsonl'),
    ('math/test500.jsonl', 'math', 'math/test500.jsonl'),
    ('math401/test.jsonl', 'math401', 'math401/math401.json'),
    ('math23k/test_upstream.json', 'math23k', 'math23k/math23k_test.json'),
  ):
    content = gzip.decompress((PUBLISHED / f'{stored}.gz').read_bytes())
    assert hashlib.sha256(content).hexdigest() == catalog.get(name).downloads[target].sha256, stored
