"""Models in a bucket: converted in both directions, all or nothing."""

import pytest

from mathqwen import files
from mathqwen.cli import main
from mathqwen.hf import tensor_files


@pytest.fixture
def exported(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp('exported') / 'hf'
  assert main(['convert', 'to-hf', str(trained), str(folder)]) == 0
  return folder


def test_the_same_files_as_on_a_disk(exported, trained, bucket, tmp_path, upload, download):
  assert main(['convert', 'to-hf', str(trained), f'{bucket}/hf']) == 0
  copied = download(f'{bucket}/hf', tmp_path / 'copied')
  assert sorted(path.name for path in copied.iterdir()) == sorted(path.name for path in exported.iterdir())
  for path in exported.iterdir():
    assert (copied / path.name).read_bytes() == path.read_bytes(), path.name
  assert main(['convert', 'from-hf', f'{bucket}/hf', f'{bucket}/ours']) == 0
  assert main(['convert', 'check', f'{bucket}/ours', str(exported), '--tolerance', '0']) == 0
  assert [path.name for path in files.path(bucket).iterdir()] == ['hf', 'ours']

  # A converted model that somebody copies there.
  assert main(['convert', 'from-hf', str(exported), str(tmp_path / 'ours'), '--no-check']) == 0
  upload(tmp_path / 'ours', f'{bucket}/uploaded')
  assert main(['convert', 'check', f'{bucket}/uploaded', str(exported), '--tolerance', '0']) == 0


@pytest.mark.parametrize('way', ['to-hf', 'from-hf'])
def test_a_check_that_fails_leaves_nothing(way, exported, trained, bucket, fails, monkeypatch):
  from mathqwen.conversion import check

  compared = check.compare_sources
  monkeypatch.setattr(check, 'compare_sources', lambda *args: compared(*args) | {'max_logit_difference': 1.0})
  source = trained if way == 'to-hf' else exported
  assert 'nothing is kept' in fails('convert', way, source, f'{bucket}/out')
  assert list(files.path(bucket).rglob('*')) == []


def test_a_target_that_is_not_new(trained, bucket, fails):
  (files.path(bucket) / 'out/x').write_text('x')
  assert 'is not empty: name a new directory' in fails('convert', 'to-hf', trained, f'{bucket}/out')
  assert 'is a file: name a new directory' in fails('convert', 'to-hf', trained, f'{bucket}/out/x')
  assert 'is not the name of a new directory' in fails('convert', 'to-hf', trained, bucket)


def test_leftovers_of_a_killed_conversion_go(trained, bucket):
  (files.path(bucket) / '.out.unfinished/out/config.json').write_text('old')
  assert main(['convert', 'to-hf', str(trained), f'{bucket}/out']) == 0
  assert [path.name for path in files.path(bucket).iterdir()] == ['out']


def test_a_damaged_file_in_a_bucket(exported, bucket, upload, fails):
  upload(exported, f'{bucket}/hf')
  path = files.path(bucket) / 'hf/model.safetensors'
  path.write_bytes(path.read_bytes()[:-5])
  assert 'model.safetensors cannot be read as safetensors' in fails('generate', f'{bucket}/hf', '1+1=')
  path.unlink()
  assert 'model.safetensors is missing' in fails('generate', f'{bucket}/hf', '1+1=')
  assert tensor_files.SafetensorsReader(exported / 'model.safetensors').tensors
