"""What the hosts do once for a job: resolve the versions of its packages, download its data sets, convert its model.

  python3 -m launch.tpu.stage lock FACTS FILE   writes the versions to install into FILE
  python3 -m launch.tpu.stage all FACTS NUMBER  on the first host: puts data sets and model into the bucket

What is complete has a marker in the bucket, and is not done again; what was left half done is. Only the standard
library of Python 3.8: see host.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from launch.tpu import host, masking
from launch.tpu.bucket import Bucket, Failed

EXTRAS = ('tpu', 'hf', 'gcs')
BEAT = 60  # seconds between two signs of life of a host that converts a model
LOCK_SECONDS = 900  # in which the first host resolves the versions


def lock(facts: dict, number: int, target: str) -> None:
  """Writes the versions that every host of every start installs. Failed: when the first host does not resolve them."""
  records = Bucket(facts['records'])
  # Another setup.py needs other packages: a new commit of the user's.
  name = f'requirements-{hashlib.sha256(pathlib.Path("setup.py").read_bytes()).hexdigest()[:12]}.txt'
  found = records.read(name)
  until = time.time() + LOCK_SECONDS
  if found is None and _is_first(facts, number):
    line = ['uv', 'pip', 'compile', '--quiet', '--python', '.venv/bin/python', 'setup.py', '--output-file', target]
    _run(line + [f'--extra={extra}' for extra in EXTRAS], {})
    found = pathlib.Path(target).read_text()
    records.write(name, found)
    print(f'versions resolved: {records.address(name)}', flush=True)
  while found is None:
    if time.time() > until:
      raise Failed(f'the first host did not write {records.address(name)} within {LOCK_SECONDS} seconds')
    time.sleep(facts['poll'])
    found = records.read(name)
  pathlib.Path(target).write_text(found)


def all_of(facts: dict, number: int) -> None:
  """Data sets and model of the job, on the first host. Failed: when a command fails; its own words are printed."""
  if not _is_first(facts, number):
    return
  values = host.secrets(facts)
  stage_data(facts, values)
  stage_model(facts, values)


def stage_data(facts: dict, values: dict[str, str]) -> None:
  """Downloads each data set that has no marker yet, and puts its files into the bucket, in the layout of --data-dir."""
  bucket = Bucket(facts['bucket'])
  for name in facts.get('data', ()):
    if bucket.read(f'data/{name}.staged') is not None:
      continue
    with tempfile.TemporaryDirectory() as cache:
      _mathqwen(facts, ['data', 'prepare', name], values, {'MATHQWEN_CACHE': cache})
      bucket.upload(f'{cache}/downloads', 'data')
    bucket.write(f'data/{name}.staged', json.dumps({'time': time.time(), 'job': facts['name']}))
    print(f'{name}: its files are in {bucket.address("data")}', flush=True)


def stage_model(facts: dict, values: dict[str, str]) -> None:
  """Downloads the model and converts it into the bucket, unless its marker is there. Waits for a job that does it."""
  model = facts.get('model')
  if not model:
    return
  bucket = Bucket(facts['bucket'])
  marker, sign = f'{model["target"]}.staged', f'{model["target"]}.staging'
  while bucket.read(marker) is None:
    other = json.loads(bucket.read(sign) or '{}')
    # The sign of this job itself is that of a host that was taken away.
    if other and other['job'] != facts['name'] and time.time() - other['time'] < 3 * BEAT:
      time.sleep(facts['poll'])
      continue
    with _signs_of_life(bucket, sign, facts['name']):
      bucket.remove(model['target'])  # what was left half done
      target = bucket.address(model['target'])
      # On the CPU: the chips of one host alone do not start on a slice of several.
      _mathqwen(facts, ['convert', 'from-hf', model['source'], target, '--no-check'], values, {'JAX_PLATFORMS': 'cpu'})
      bucket.write(marker, json.dumps({'time': time.time(), 'job': facts['name'], 'source': model['source']}))
      print(f'{model["source"]}: converted to {target}', flush=True)


@contextlib.contextmanager
def _signs_of_life(bucket: Bucket, name: str, job: str) -> Iterator[None]:
  """Writes the time into a file of the bucket as long as this goes on."""
  ended = threading.Event()

  def write():
    bucket.write(name, json.dumps({'job': job, 'time': time.time()}))

  def beat():
    while not ended.wait(BEAT):
      with contextlib.suppress(Failed, OSError):
        write()

  write()
  thread = threading.Thread(target=beat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    bucket.remove(name)


def _is_first(facts: dict, number: int) -> bool:
  return number == 0 and facts['node'] == facts['nodes'][0]


def _mathqwen(facts: dict, words: list[str], values: dict[str, str], more: dict[str, str]) -> None:
  print('mathqwen', *words, flush=True)
  _run(['.venv/bin/mathqwen', *words], {**facts.get('env', {}), **values, **more}, values)


def _run(line: list[str], env: dict[str, str], values: dict[str, str] | None = None) -> None:
  """Runs a command, with its output on ours, without secrets. Failed: when it ends with a status other than 0."""
  process = subprocess.Popen(line, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  masking.copy(process.stdout.fileno(), sys.stdout.fileno(), (values or {}).values())
  if process.wait():
    raise Failed(f'{" ".join(line[:4])} ended with {process.returncode}')


if __name__ == '__main__':
  try:
    given = json.loads(pathlib.Path(sys.argv[2]).read_text())
    if sys.argv[1] == 'lock':
      lock(given, int(sys.argv[3]), sys.argv[4])
    else:
      all_of(given, int(sys.argv[3]))
  except (Failed, OSError) as error:
    print(f'worker.sh: {error}', file=sys.stderr, flush=True)
    sys.exit(2)
