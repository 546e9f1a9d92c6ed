"""From a job to gcloud's command lines: pure functions, and the only place that knows gcloud's flags.

The Cloud TPU API has v4 to v6e. tests/launch checks every flag here against gcloud 528 where that is installed.
"""

import json
import shlex

from launch.tpu import facts
from launch.tpu.job import ROOT, RUNTIMES, TpuJob

TPUS = ['gcloud', 'compute', 'tpus']
ALPHA = ['gcloud', 'alpha', 'compute', 'tpus']  # for what gcloud 528 has not in its stable commands yet
HOME = 'mathqwen'  # the checkout, in the home directory of every host
SOURCE = 'mathqwen.tar.gz'
# Verbs that have command lines.
VERBS = ('up', 'create', 'setup', 'start', 'follow', 'status', 'stop', 'logs', 'delete')


def create(job: TpuJob) -> list[str]:
  """Requests the slice, or slices."""
  runtime = job.runtime_version or RUNTIMES[job.chip.name]
  flags = [f'--zone={job.zone}', f'--accelerator-type={job.accelerator_type}', f'--labels=mathqwen={job.name}']
  flags += {
    'spot': ['--spot'],
    'on-demand': [],
    'reserved': ['--reserved'],
    'flex-start': ['--provisioning-model=flex-start', f'--max-run-duration={job.max_run}'],
  }[job.provisioning]
  optional = {
    '--valid-until-duration': job.wait,
    '--network': job.network,
    '--subnetwork': job.subnetwork,
    '--service-account': job.service_account,
    '--reservation': job.reservation,
  }
  flags += [f'{flag}={value}' for flag, value in optional.items() if value]
  flags += [f'--data-disk={disk}' for disk in job.data_disks]
  if job.internal_ips:
    flags.append('--internal-ips')
  start = ALPHA if job.reservation or job.provisioning == 'flex-start' else TPUS
  if not job.queue:
    return [*start, 'tpu-vm', 'create', job.name, f'--version={runtime}', *flags]
  nodes = [f'--node-id={job.name}']
  if job.slices > 1:
    nodes = [f'--node-count={job.slices}', f'--node-prefix={job.name}']
  return [*start, 'queued-resources', 'create', job.name, *nodes, f'--runtime-version={runtime}', *flags]


def queue_state(job: TpuJob) -> list[str]:
  """Prints the state of the queued resource."""
  return [*TPUS, 'queued-resources', 'describe', job.name, f'--zone={job.zone}', '--format=value(state.state)']


def queue_failure(job: TpuJob) -> list[str]:
  """Prints the state of the queued resource as JSON, with the error of one that failed."""
  return [*TPUS, 'queued-resources', 'describe', job.name, f'--zone={job.zone}', '--format=json(state)']


def node_state(job: TpuJob, node: str) -> list[str]:
  """Prints the state of one TPU VM."""
  return [*TPUS, 'tpu-vm', 'describe', node, f'--zone={job.zone}', '--format=value(state)']


def bucket_location(bucket: str) -> list[str]:
  """Prints as JSON where a bucket's data are."""
  return ['gcloud', 'storage', 'buckets', 'describe', bucket, '--format=json(location,location_type,data_locations)']


def delete(job: TpuJob) -> list[str]:
  """Deletes the slices with whatever runs on them. Deleting a queued resource deletes its TPU VMs."""
  if job.queue:
    return [*TPUS, 'queued-resources', 'delete', job.name, f'--zone={job.zone}', '--force', '--quiet']
  return [*TPUS, 'tpu-vm', 'delete', job.name, f'--zone={job.zone}', '--quiet']


def remove(job: TpuJob) -> list[str]:
  """`delete` as a host says it, which goes down with the slice and cannot wait for the end."""
  return [*delete(job), '--async']


def roles(project: str) -> list[str]:
  """Prints who may do what in a project, as JSON."""
  return ['gcloud', 'projects', 'get-iam-policy', project, '--format=json']


def project_number(project: str) -> list[str]:
  """Prints the number of a project, which is part of the name of its default service account."""
  return ['gcloud', 'projects', 'describe', project, '--format=value(projectNumber)']


def ssh(job: TpuJob, node: str, command: str, folder: str | None = None) -> list[str]:
  """Runs `command` on all hosts of a node. folder: where the output of each host goes into a file."""
  line = [*_reach(job), 'ssh', node, *_way(job), f'--command={command}']
  if folder:
    line.append(f'--output-directory={folder}')
  return line


def copy(job: TpuJob, node: str, file: str) -> list[str]:
  """Copies a file to all hosts of a node, as `SOURCE`."""
  return [*_reach(job), 'scp', file, f'{node}:{SOURCE}', *_way(job)]


def _reach(job: TpuJob) -> list[str]:
  """The group of gcloud's commands that reach hosts."""
  return [*(ALPHA if job.iap else TPUS), 'tpu-vm']


def _way(job: TpuJob) -> list[str]:
  """How all hosts of a node are reached: by their public addresses, from inside of their network, or by IAP."""
  inside = ['--tunnel-through-iap'] if job.iap else ['--internal-ip'] if job.internal_ips else []
  return [f'--zone={job.zone}', '--worker=all', *inside]


def archive(file: str) -> list[str]:
  """Writes the commit that is checked out here into a file."""
  return ['git', '-C', str(ROOT), 'archive', '--format=tar.gz', f'--output={file}', 'HEAD']


def facts_of(job: TpuJob, node: str, pace: float = 30, deadline: float | None = None) -> dict:
  """What the hosts of a node learn about the job: see facts.py. pace: seconds between questions to the cloud."""
  return facts.facts(job, node, remove(job), pace, deadline)


def setup(job: TpuJob, host_facts: dict | None = None) -> str:
  """A command for the shell of a host: unpacks the checkout and installs it.

  host_facts: of `facts_of`; None installs without a guard, and prepares the data sets on this host.
  """
  words = _worker(['setup', *(job.data if host_facts is None else ())], host_facts)
  return f'mkdir -p {HOME} && tar -xzf {SOURCE} -C {HOME} && {words}'


def worker(job: TpuJob, verb: str, attempt: int, words: list[str] = (), host_facts: dict | None = None) -> str:
  """A command for the shell of a host: `start`, `follow`, `stop`, `status` or `log` of one attempt at the job.

  host_facts: of `facts_of`, for `start`; None starts without a guard.
  """
  return _worker([verb, f'{job.name}/{attempt}', *words], host_facts)


def _worker(words: list[str], host_facts: dict | None) -> str:
  line = shlex.join(['bash', f'{HOME}/launch/tpu/worker.sh', *words])
  return line if host_facts is None else f'MATHQWEN_JOB={shlex.quote(json.dumps(host_facts))} {line}'


def lines(job: TpuJob, verb: str) -> list[list[str]]:
  """The command lines of a verb in their order; of `up`, those of a job in which nothing goes wrong."""
  if verb == 'up':
    return [line for part in ('create', 'wait', 'setup', 'start', 'follow', 'delete') for line in lines(job, part)]

  def on_all(verb: str, words: list[str] = ()) -> list[list[str]]:
    host_facts = {node: facts_of(job, node) if verb == 'start' else None for node in job.nodes}
    return [ssh(job, node, worker(job, verb, 1, words, host_facts[node])) for node in job.nodes]

  states = [node_state(job, node) for node in job.nodes]
  if job.queue:
    states.insert(0, queue_state(job))
  installs = [archive(SOURCE)]
  for node in job.nodes:
    installs += [copy(job, node, SOURCE), ssh(job, node, setup(job, facts_of(job, node)))]
  return {
    'create': [create(job)],
    'wait': states,
    'setup': installs,
    'start': on_all('start', facts.train(job)),
    'follow': on_all('follow'),
    'status': [*states, *on_all('status')],
    'stop': on_all('stop'),
    'logs': [ssh(job, node, worker(job, 'log', 1), 'LOGS') for node in job.nodes],
    'delete': [delete(job)],
  }[verb]
