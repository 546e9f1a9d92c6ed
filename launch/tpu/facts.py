"""What each host learns from the launcher about the job, and the launcher from the records that the hosts leave behind.

BUCKET/NAME               the workdir of training
BUCKET/launch/NAME        records: how each host's run ended, its log, why the hosts removed the slice, package versions
BUCKET/init, BUCKET/data  staged once, and shared by the jobs of the bucket
"""

import concurrent.futures
import hashlib
import json
import pathlib
from typing import Any

from launch.tpu import redaction
from launch.tpu.bucket import Bucket
from launch.tpu.job import ROOT, TpuJob, duration_seconds
from mathqwen import config
from mathqwen.errors import UserError
from mathqwen.files import hub

SAVE_SECONDS = 900  # in which a run must save and end once it is asked to


def facts(job: TpuJob, node: str, remove: list[str], pace: float, deadline: float | None) -> dict[str, Any]:
  """What a host of `node` learns, as JSON values. Secrets by name, never by value. deadline: seconds since 1970."""
  return {
    'name': job.name,
    'node': node,
    'nodes': job.nodes,
    'hosts': job.hosts,
    'bucket': job.bucket,
    'records': records(job),
    'deadline': deadline,
    'save': SAVE_SECONDS,  # seconds after the deadline until a run is killed
    'linger': 2 * pace,  # seconds after the deadline in which a launcher that is watching removes the slice itself
    'stagger': 2 * pace,  # seconds that each host leaves to the one before it to remove the slice
    'poll': min(5, pace),  # seconds between two looks
    'grace': duration_seconds(job.grace) if job.grace else None,  # seconds without a run and without a launcher
    'remove': remove,  # the command line that removes the slice
    'env': dict(job.env),
    'secrets': {name: secret_version(secret) for name, secret in job.secrets.items()},
    'data': [name for name in job.data if name not in job.files],
    'model': model(job),
  }


def records(job: TpuJob) -> str:
  """Where the hosts write down what happened."""
  return f'{job.bucket}/launch/{job.name}'


def secret_version(secret: str) -> tuple[str, str]:
  """(name, version) of 'NAME' or 'NAME/versions/VERSION'."""
  name, _, version = secret.partition('/versions/')
  return name, version or 'latest'


def experiment(job: TpuJob) -> config.Experiment:
  """What the job trains, as it resolves on this machine. UserError: when there is no such config or setting."""
  path = ROOT / job.config
  return config.resolve(str(path) if path.suffix else job.config, job.set, job.init or None)


def model(job: TpuJob) -> dict[str, str] | None:
  """{'source': a name on the hub, 'target': its place below the bucket}; None for a model that is elsewhere."""
  init = experiment(job).init
  name = hub.name_of(init) if init else None
  return {'source': name, 'target': 'init/' + name.replace('/', '--')} if name else None


def train(job: TpuJob, settings: dict | None = None) -> list[str]:
  """The words of the training command on Cloud TPUs: `job.train`, with what is staged in place of its sources.

  UserError: when a file of the user's is not there, or nothing would read it.
  """
  words = job.train(settings)
  staged = model(job)
  if staged:
    words = [word for word in words if not word.startswith('--init=')]
    words.append(f'--init={job.bucket}/{staged["target"]}')
  data = experiment(job).data
  own = files(job)
  for path in own:
    if path not in data.sources:
      raise UserError(f'data has {path!r}, which nothing reads: set = ["data.sources={path}"] trains on it')
  if own:
    words = [word for word in words if not word.startswith('--set=data.sources=')]
    words.append(f'--set=data.sources={",".join(own.get(source, source) for source in data.sources)}')
  if set(job.data) - set(own) and data.data_dir is None:
    words.append(f'--data-dir={job.bucket}/data')
  return words


def check(job: TpuJob) -> None:
  """UserError: for what `train` refuses, and for a value in `env` that looks like a key or a token."""
  for name, value in job.env.items():
    if redaction.without_secrets(value) != value:
      raise UserError(f'env has {name}, whose value looks like a key: use secrets = {{{name} = "its name there"}}')
  train(job)


def files(job: TpuJob) -> dict[str, str]:
  """{a file of the user's: its place in the bucket}; the content is part of the name. UserError: when there is none."""
  found = {}
  for path in job.files:
    try:
      digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:12]
    except OSError as error:
      raise UserError(f'data has {path!r}: {error.strerror}; name a data set, or a file on this machine') from None
    found[path] = f'{job.bucket}/data/files/{digest}/{pathlib.Path(path).name}'
  return found


def upload(job: TpuJob, bucket: Bucket) -> list[str]:
  """Copies the user's files into the bucket, each once for its content. Returns the addresses of the new ones."""
  new = []
  for path, address in files(job).items():
    name = address.removeprefix(f'{job.bucket}/')
    if bucket.read(f'{name}.staged') is None:
      bucket.upload(path, name)
      bucket.write(f'{name}.staged', json.dumps({'file': pathlib.Path(path).name}))
      new.append(address)
  return new


def removal(bucket: Bucket, since: float) -> dict | None:
  """{'time', 'why', 'start'}, when the hosts removed the slice that was requested at `since`. bucket: the records."""
  found = json.loads(bucket.read('removed.json') or 'null')
  return found if found and found['time'] > since else None


def ends(bucket: Bucket, start: int, hosts: list[str]) -> dict[str, dict]:
  """{host: {'status', 'why', 'time', 'log'}} of the hosts, NODE.NUMBER, that stored how a start ended."""

  def read(host: str) -> dict | None:
    text = bucket.read(f'start-{start}/{host}.json')
    return json.loads(text) | {'log': bucket.read(f'start-{start}/{host}.log') or ''} if text else None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:  # gcloud takes seconds for each
    found = zip(hosts, pool.map(read, hosts), strict=True)
    return {host: end for host, end in found if end}
