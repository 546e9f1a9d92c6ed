"""Downloads that `data prepare` makes of the public files, here from a server on this machine."""

import functools
import hashlib
import http.server
import io
import json
import random
import re
import tarfile
import threading
import urllib.request

import pytest
from json_lines import GSM8K, jsonl

from mathqwen import cli
from mathqwen.data import catalog, datasets, sources
from mathqwen.errors import UserError

pytestmark = pytest.mark.usefixtures('cache')
MATH23K = [
  {'id': str(n), 'original_text': f'{n}米加1米？', 'segmented_text': None, 'equation': f'x={n}+1', 'ans': str(n + 1)}
  for n in range(1, 6)
]


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


def archive_of_math():
  """MATH.tar, and a row of MATH-500."""

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
  return buffer.getvalue(), jsonl(problem(1) | {'answer': '1', 'unique_id': 'test/geometry/1.json'})


def test_math_is_never_downloaded_and_read_from_the_users_copy(tmp_path, cache, monkeypatch, capsys):
  def no_network(*args, **options):
    raise AssertionError('the network was asked')

  monkeypatch.setattr(urllib.request, 'urlopen', no_network)
  assert 'math' in catalog.prepared() and 'math' not in catalog.downloadable()
  line = (
    r'no math {} data here, and it cannot be downloaded: its text was withdrawn .* Art of Problem Solving; put a copy '
    r'of yours into DIR/math/{}.jsonl, gzip or not \(or math/MATH.tar\), and run `mathqwen data prepare math --data-dir'
  )
  with pytest.raises(UserError, match=line.format('train', 'train')):
    datasets.prepare('math', download=True)
  with pytest.raises(UserError, match=line.format('test500', 'test500')):
    sources.load('math500', 'test')
  for benchmark, split in (('math', 'test'), ('math500', 'test500')):
    words = ['openai:http://127.0.0.1:9/v1#m', '--benchmarks', benchmark, '--out', str(tmp_path / 'scores')]
    assert cli.main(['evaluate', *words]) == 2
    assert re.fullmatch(f'mathqwen: {line.format(split, split)}.*\n', capsys.readouterr().err)

  archive, row_of_500 = archive_of_math()
  own = tmp_path / 'own' / 'math'
  own.mkdir(parents=True)
  (own / 'MATH.tar').write_bytes(archive)
  for _ in range(2):
    assert datasets.prepare('math', str(own.parent))['splits'] == {'train': 2, 'test': 1}
  assert datasets.prepare('math', download=True)['splits'] == {'train': 2, 'test': 1}  # where it came from last time
  assert [(e.id, e.answer) for e in sources.load('math', 'train')[0]] == [
    ('train/algebra/0.json', '0'),
    ('train/algebra/10.json', '10'),
  ]
  assert sorted(path.name for path in own.iterdir()) == ['MATH.tar']  # the user's folder is never written to
  (own / 'test500.jsonl').write_bytes(row_of_500)
  assert datasets.prepare('math', str(own.parent))['splits'] == {'train': 2, 'test': 1, 'test500': 1}
  assert sources.load('math500', 'test')[0][0].id == 'test/geometry/1.json'


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
  assert sources.load('math23k', 'test')[0][0].solution == '算式：3+1\n3+1=4\n答案：4'


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


@pytest.mark.parametrize('content', [b'<html>log in</html>', half_an_archive()])
def test_a_copy_of_math_that_is_something_else(tmp_path, content):
  (tmp_path / 'math').mkdir()
  (tmp_path / 'math' / 'MATH.tar').write_bytes(content)
  with pytest.raises(UserError, match='math.*(not what is published|half-written or damaged)'):
    datasets.prepare('math', str(tmp_path))


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
