"""Versions, data sets and models that the hosts of a job put into the bucket once; buckets as folders and as gs://."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from launch.tpu import commands, facts, job
from launch.tpu.bucket import Bucket
from mathqwen.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
# `data prepare` and `convert from-hf`, which fails as long as there is a file `fail`.
MATHQWEN = """#!/usr/bin/env bash
echo "$* ${HF_TOKEN:-no token} ${JAX_PLATFORMS:-}" >>calls
[[ ! -e fail ]] || { echo "${HF_TOKEN:-}"; exit 1; }
if [[ "$1" == data ]]; then
  mkdir -p "$MATHQWEN_CACHE/downloads/$3"
  echo rows >"$MATHQWEN_CACHE/downloads/$3/train.jsonl"
else
  echo weights >weights && gcloud storage cp weights "$4/weights"
fi
"""


@pytest.fixture(params=['folder', 'gs'])
def stage(request, tmp_path, monkeypatch):
  """stage('lock' or 'all', number, **facts) -> the finished process on a host; .bucket is the Bucket."""
  from fake_cloud import HERE, STUBS

  for name in ('bin', '.venv/bin', 'secrets/token'):
    (tmp_path / name).mkdir(parents=True)
  gcloud = f'#!/bin/sh\nexec {sys.executable} {HERE / "stub_gcloud.py"} "$@"\n'
  convert = MATHQWEN
  if request.param == 'folder':
    convert = convert.replace('gcloud storage cp weights', 'mkdir -p "$4" && cp weights')
  for name, text in {'bin/gcloud': gcloud, 'bin/uv': STUBS['uv'], '.venv/bin/mathqwen': convert}.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'secrets/token/latest').write_text('hf_value')
  (tmp_path / 'setup.py').write_text('setup()')
  env = {'FAKE_FOLDER': str(tmp_path), 'FAKE_PROJECT': 'p', 'HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}
  env['PATH'] = f'{tmp_path}/bin:{os.environ["PATH"]}'
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  address = 'gs://bucket/runs' if request.param == 'gs' else f'{tmp_path}/bucket'
  told = {
    'name': 'job', 'node': 'job', 'nodes': ['job'], 'hosts': 4, 'bucket': address, 'poll': 0.1, 'data': ['gsm8k'],
    'records': f'{address}/launch/job', 'secrets': {'HF_TOKEN': ['token', 'latest']}, 'env': {},
    'model': {'source': 'Org/Model', 'target': 'init/Org--Model'},
  }  # fmt: skip

  def run(verb, number=0, *words, **changes):
    file = tmp_path / f'facts-{number}.json'
    file.write_text(json.dumps(told | changes))
    line = [sys.executable, '-m', 'launch.tpu.stage', verb, str(file), str(number), *words]
    return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)

  run.bucket, run.folder = Bucket(address), tmp_path
  run.calls = lambda: (tmp_path / 'calls').read_text().splitlines()
  return run


def test_data_and_model_are_staged_once(stage):
  assert stage('all', 0).returncode == 0
  target = stage.bucket.address('init/Org--Model')
  calls = ['data prepare gsm8k hf_value ', f'convert from-hf Org/Model {target} --no-check hf_value cpu']
  assert stage.calls() == calls
  assert stage.bucket.read('data/gsm8k/train.jsonl') == 'rows\n'
  assert stage.bucket.read('init/Org--Model/weights') == 'weights\n'
  # Again after a preemption, on another host, in another job of the same bucket: nothing is done twice.
  assert [stage('all', 0, **changes).returncode for changes in ({}, {'name': 'another'})] == [0, 0]
  assert stage('all', 1, data=['math23k']).returncode == 0 and stage.calls() == calls
  assert stage('all', 0, data=['gsm8k', 'math23k']).returncode == 0
  assert stage.calls()[2:] == ['data prepare math23k hf_value ']


def test_a_half_staging_is_done_again(stage):
  (stage.folder / 'fail').touch()
  failed = stage('all', 0, data=[])
  assert failed.returncode == 2 and failed.stderr.startswith('worker.sh: .venv/bin/mathqwen convert from-hf Org/Model')
  assert 'hf_value' not in failed.stdout + failed.stderr and 'SECRET' in failed.stdout
  stage.bucket.write('init/Org--Model/half', 'of the weights')
  # What a host that was taken away leaves behind: a sign of life that ages.
  stage.bucket.write('init/Org--Model.staging', json.dumps({'job': 'job', 'time': time.time()}))
  (stage.folder / 'fail').unlink()
  assert stage('all', 0, data=[]).returncode == 0
  assert stage.bucket.read('init/Org--Model/half') is None and stage.bucket.read('init/Org--Model.staging') is None
  assert stage.bucket.read('init/Org--Model/weights') == 'weights\n'


def test_two_jobs_stage_one_model(stage):
  """The second waits as long as the first gives signs of life."""
  stage.bucket.write('init/Org--Model.staging', json.dumps({'job': 'another', 'time': time.time() - 178}))
  begin = time.monotonic()
  assert stage('all', 0, data=[]).returncode == 0 and time.monotonic() - begin > 1
  stage.bucket.remove('init/Org--Model.staged')
  stage.bucket.write('init/Org--Model.staging', json.dumps({'job': 'another', 'time': time.time() + 999}))
  with pytest.raises(subprocess.TimeoutExpired):
    line = [sys.executable, '-m', 'launch.tpu.stage', 'all', str(stage.folder / 'facts-0.json'), '0']
    subprocess.run(line, cwd=stage.folder, timeout=3)


def test_versions_are_those_of_the_first_start(stage):
  other = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(1)']
  )  # the first host is later than the others
  first = stage('lock', 0, str(stage.folder / 'one'))
  assert first.returncode == 0 and 'versions resolved: ' in first.stdout
  assert stage('lock', 3, str(stage.folder / 'two')).returncode == 0
  assert stage('lock', 0, str(stage.folder / 'three')).returncode == 0
  texts = {(stage.folder / name).read_text() for name in ('one', 'two', 'three')}
  assert len(texts) == 1 and texts.pop().startswith('jax==0.')
  compiled = [line for line in (stage.folder / 'uv.log').read_text().splitlines() if line.startswith('uv pip compile')]
  assert len(compiled) == 1 and compiled[0].endswith('--extra=tpu --extra=hf --extra=gcs')
  # Other requirements have other versions.
  (stage.folder / 'setup.py').write_text('setup(2)')
  assert stage('lock', 0, str(stage.folder / 'four')).returncode == 0
  assert len((stage.folder / 'uv.log').read_text().splitlines()) == 2
  other.wait()


def test_a_host_waits_for_the_first(stage):
  line = [sys.executable, '-m', 'launch.tpu.stage', 'lock', str(stage.folder / 'facts-1.json'), '1']
  stage('all', 1)  # writes the facts
  waiting = subprocess.Popen([*line, str(stage.folder / 'waited')], cwd=stage.folder)
  time.sleep(1)
  assert waiting.poll() is None
  assert stage('lock', 0, str(stage.folder / 'first')).returncode == 0
  assert waiting.wait(30) == 0 and (stage.folder / 'waited').read_text() == (stage.folder / 'first').read_text()


def test_a_secret_that_is_not_given(stage):
  done = stage('all', 0, secrets={'HF_TOKEN': ['another', '3']})
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith('worker.sh: secret another (for HF_TOKEN) was not given to this host: ')


# The launcher's side


def test_training_reads_what_was_staged(job_file, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = job.read(job_file('init = "Qwen/Qwen2.5-0.5B"', 'data = ["gsm8k"]'))
  assert facts.train(found)[-2:] == [
    '--init=gs://bucket/runs/init/Qwen--Qwen2.5-0.5B',
    '--data-dir=gs://bucket/runs/data',
  ]
  assert facts.model(found) == {'source': 'Qwen/Qwen2.5-0.5B', 'target': 'init/Qwen--Qwen2.5-0.5B'}
  own = job.read(job_file('config = "qwen2_5_7b"'))  # the config's own model
  assert facts.train(own)[-1] == '--init=gs://bucket/runs/init/Qwen--Qwen2.5-7B'
  for init in ('gs://other/model', '/mnt/model', 'random'):
    kept = job.read(job_file(f'init = "{init}"'))
    assert facts.model(kept) is None and f'--init={init}' in facts.train(kept)
  placed = job.read(job_file('data = ["gsm8k"]', 'set = ["data.data_dir=gs://mine"]'))
  assert not [word for word in facts.train(placed) if word.startswith('--data-dir')]


@pytest.mark.parametrize('remote', [False, True])
def test_own_files_are_uploaded_once(job_file, tmp_path, monkeypatch, remote):
  from fake_cloud import HERE

  (tmp_path / 'gcloud').write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "stub_gcloud.py"} "$@"\n')
  (tmp_path / 'gcloud').chmod(0o755)
  for name, value in {'FAKE_FOLDER': str(tmp_path), 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}.items():
    monkeypatch.setenv(name, value)
  mine, base = tmp_path / 'mine.jsonl', 'gs://bucket/runs' if remote else f'{tmp_path}/bucket'
  mine.write_text('{"question": "1+1", "answer": "2"}\n')
  lines = [f'bucket = "{base}"', f'data = ["gsm8k", "{mine}"]']
  found = job.read(job_file(*lines, f'set = ["data.sources=gsm8k, {mine}", "data.weights="]'))
  bucket = Bucket(base)
  (address,) = facts.upload(found, bucket)
  assert address.startswith(f'{base}/data/files/') and address.endswith('/mine.jsonl')
  assert bucket.read(address.removeprefix(f'{base}/')) == mine.read_text() and facts.upload(found, bucket) == []
  words = facts.train(found)
  assert f'--set=data.sources=gsm8k,{address}' in words and not any(str(mine) in word for word in words)
  assert facts.facts(found, 'math-7b', [], 30, None)['data'] == ['gsm8k']
  mine.write_text('{"question": "1+2", "answer": "3"}\n')
  assert facts.upload(found, bucket) != [address]
  unread = job.read(job_file(*lines))
  with pytest.raises(UserError, match='which nothing reads: set = '):
    facts.train(unread)
  with pytest.raises(UserError, match='env has MINE, whose value looks like a key: use secrets'):
    facts.check(job.read(job_file('env = {MINE = "hf_0123456789abcdefghij"}')))
  mine.unlink()
  with pytest.raises(UserError, match='No such file'):
    facts.train(found)


def test_what_hosts_are_told(job_file):
  found = job.read(job_file('secrets = {A = "one", B = "two/versions/3"}', 'env = {C = "c d"}', 'slice = "2xv5p-32"'))
  told = commands.facts_of(found, 'math-7b-1', 30, 123.5)
  assert told['secrets'] == {'A': ('one', 'latest'), 'B': ('two', '3')} and told['env'] == {'C': 'c d'}
  assert (told['node'], told['nodes'], told['hosts']) == ('math-7b-1', ['math-7b-0', 'math-7b-1'], 4)
  assert (told['deadline'], told['grace']) == (123.5, 900) and told['records'] == 'gs://bucket/runs/launch/math-7b'
  assert told['remove'] == [*commands.delete(found), '--async']
  assert commands.facts_of(job.read(job_file('grace = ""')), 'math-7b')['grace'] is None
