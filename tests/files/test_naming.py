"""What a path may look like, and what is refused before anything is made."""

import pathlib

import pytest
from etils import epath

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.files import naming

REFUSED = {
  's3://bucket/x': 's3: is not a scheme',
  'gcs://bucket/x': 'write gs://BUCKET/FOLDER, at the beginning and with two slashes',
  'GS://bucket/x': 'with two slashes',
  'gs:/bucket/x': 'with two slashes',
  'gs:bucket': 'with two slashes',
  'runs/gs://bucket/x': 'at the beginning',
  ' gs:/bucket': 'at the beginning',
  'file:///tmp/x': 'write the path itself, without file:',
  'https://host/x': 'https: is not a scheme',
  'mine://host/x': 'mine: is not a scheme',
  'hf://ORGANISATION/NAME': 'hf: is not a scheme',
  'gs://': "'' is not the name of a bucket",
  'gs:///x': "'' is not the name of a bucket",
  'gs://Bucket/x': "'Bucket' is not the name of a bucket",
  'gs://ab/x': "'ab' is not the name of a bucket",
  'gs://bucket/a/../b': 'no ".."',
  'gs://bucket/a\nb': 'no line breaks',
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name):
  with pytest.raises(UserError, match=REFUSED[name]):
    files.path(name)
  if name.startswith('gs://'):
    files.check_scheme(name)  # the bucket matters where it is read
  else:
    with pytest.raises(UserError, match=REFUSED[name]):
      files.check_scheme(name)


@pytest.mark.parametrize('name', ['run', '/data/run', 'run:1/x', './a b', '/gs/bucket/x', 'C:x', '-', '~/x'])
def test_local_names(name):
  assert files.path(name) == pathlib.Path(name) and not files.is_remote(name)


def test_only_a_model_may_be_on_the_hub():
  files.check_scheme('hf://Qwen/Qwen2.5-0.5B', may_be_on_hub=True)
  with pytest.raises(UserError):
    files.check_scheme('s3://Qwen/Qwen2.5-0.5B', may_be_on_hub=True)


def test_a_url_that_pathlib_has_folded():
  with pytest.raises(UserError, match='with two slashes'):
    files.path(pathlib.Path('gs://bucket/x'))


def test_without_gcsfs(monkeypatch):
  monkeypatch.setattr(naming.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"gs://bucket/x: .* needs gcsfs: pip install 'mathqwen\[gcs\]'$"):
    files.path('gs://bucket/x')
  files.check_scheme('gs://bucket/x')  # of a run that is only planned here
  assert files.path('x') == pathlib.Path('x')


def test_names_of_objects():
  pytest.importorskip('gcsfs')
  path = files.path('gs://bucket//a/./b.jsonl.gz/')
  assert str(path) == 'gs://bucket/a/b.jsonl.gz'
  assert (path.name, path.stem, path.suffix) == ('b.jsonl.gz', 'b.jsonl', '.gz')
  assert str(path.parent) == 'gs://bucket/a' and str(path.parent.parent) == 'gs://bucket'
  assert path.parent.parent.parent == path.parent.parent
  assert path.with_name('c') == files.path('gs://bucket/a') / 'c' == files.path('gs://bucket') / 'a/c'
  assert path.relative_to(files.path('gs://bucket')) == pathlib.PurePosixPath('a/b.jsonl.gz')
  assert not files.path('gs://bucket/ab').is_relative_to(files.path('gs://bucket/a'))
  assert sorted([path, path.parent]) == [path.parent, path] and len({path, files.path(str(path))}) == 1
  assert files.join('gs://bucket/a', 'b', 'c') == files.absolute_text('gs://bucket/a/b/c') == 'gs://bucket/a/b/c'
  assert files.path(epath.Path('gs://bucket/x')) == files.path('gs://bucket/x')
  for name in ('/x', '../x', 'a/../../x'):
    with pytest.raises(ValueError, match='is not below gs://bucket/a'):
      files.path('gs://bucket/a') / name


def test_it_cannot_be_taken_for_a_local_path(tmp_path, monkeypatch):
  pytest.importorskip('gcsfs')
  monkeypatch.chdir(tmp_path)
  path = files.path('gs://bucket/x')
  for use in (open, pathlib.Path, lambda place: tmp_path / place):
    with pytest.raises(TypeError):
      use(path)
  assert list(tmp_path.iterdir()) == []
