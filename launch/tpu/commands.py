"""From a job to command lines of gcloud: pure functions, and the only place that knows gcloud's flags.

The Cloud TPU API takes v4 to v6e; gcloud 528 was asked for every flag that stands here (tests/launch).
"""

import shlex

from launch.tpu.job import ROOT, RUNTIMES, Job

TPUS = ['gcloud', 'compute', 'tpus']
HOME = 'mathqwen'  # the checkout, in the home directory of every host
SOURCE = 'mathqwen.tar.gz'
VERBS = ('up', 'create', 'setup', 'start', 'follow', 'status', 'stop', 'logs', 'delete')  # that have command lines


def create(job: Job) -> list[str]:
  """Asks for the slice, or slices."""
  runtime = job.runtime_version or RUNTIMES[job.chip.name]
  alpha = job.provisioning == 'flex-start'
  flags = [f'--zone={job.zone}', f'--accelerator-type={job.accelerator_type}', f'--labels=mathqwen={job.name}']
  flags += {
    'spot': ['--spot'],
    'on-demand': [],
    'reserved': ['--reserved'],
    'flex-start': ['--provisioning-model=flex-start', f'--max-run-duration={job.max_run}'],
  }[job.provisioning]
  flags += [f'--valid-until-duration={job.wait}'] * bool(job.wait)
  flags += [f'--network={job.network}'] * bool(job.network)
  flags += [f'--subnetwork={job.subnetwork}'] * bool(job.subnetwork)
  flags += ['--internal-ips'] * job.internal_ips
  flags += [f'--service-account={job.service_account}'] * bool(job.service_account)
  if not job.queue:
    return [*TPUS, 'tpu-vm', 'create', job.name, f'--version={runtime}', *flags]
  nodes = [f'--node-id={job.name}']
  if job.slices > 1:
    nodes = [f'--node-count={job.slices}', f'--node-prefix={job.name}']
  start = ['gcloud', 'alpha', *TPUS[1:]] if alpha else TPUS
  return [*start, 'queued-resources', 'create', job.name, *nodes, f'--runtime-version={runtime}', *flags]


def queue_state(job: Job) -> list[str]:
  return [*TPUS, 'queued-resources', 'describe', job.name, f'--zone={job.zone}', '--format=value(state.state)']


def node_state(job: Job, node: str) -> list[str]:
  return [*TPUS, 'tpu-vm', 'describe', node, f'--zone={job.zone}', '--format=value(state)']


def delete(job: Job) -> list[str]:
  """Of the slices with whatever runs on them; a queued resource takes its TPU VMs along."""
  if job.queue:
    return [*TPUS, 'queued-resources', 'delete', job.name, f'--zone={job.zone}', '--force', '--quiet']
  return [*TPUS, 'tpu-vm', 'delete', job.name, f'--zone={job.zone}', '--quiet']


def ssh(job: Job, node: str, command: str, folder: str | None = None) -> list[str]:
  """`command` on all hosts of a node; with `folder` each host's output goes into a file there."""
  line = [*TPUS, 'tpu-vm', 'ssh', node, f'--zone={job.zone}', '--worker=all', f'--command={command}']
  return line + ['--internal-ip'] * job.internal_ips + [f'--output-directory={folder}'] * bool(folder)


def copy(job: Job, node: str, file: str) -> list[str]:
  line = [*TPUS, 'tpu-vm', 'scp', file, f'{node}:{SOURCE}', f'--zone={job.zone}', '--worker=all']
  return line + ['--internal-ip'] * job.internal_ips


def archive(file: str) -> list[str]:
  """The commit that is checked out here, as a file."""
  return ['git', '-C', str(ROOT), 'archive', '--format=tar.gz', f'--output={file}', 'HEAD']


def setup(job: Job) -> str:
  """For the shell of a host: unpacks the checkout and installs it."""
  words = shlex.join(['bash', f'{HOME}/launch/tpu/worker.sh', 'setup', *job.data])
  return f'mkdir -p {HOME} && tar -xzf {SOURCE} -C {HOME} && {words}'


def worker(job: Job, verb: str, attempt: int, words: list[str] = ()) -> str:
  """For the shell of a host: `start`, `follow`, `stop`, `status` or `log` of one attempt at the job."""
  return shlex.join(['bash', f'{HOME}/launch/tpu/worker.sh', verb, f'{job.name}/{attempt}', *words])


def lines(job: Job, verb: str) -> list[list[str]]:
  """The command lines of a verb, in their order; those of `up` where nothing goes wrong."""
  if verb == 'up':
    return [line for part in ('create', 'wait', 'setup', 'start', 'follow', 'delete') for line in lines(job, part)]
  on_all = lambda verb, words=(): [ssh(job, node, worker(job, verb, 1, words)) for node in job.nodes]
  states = [queue_state(job)] * job.queue + [node_state(job, node) for node in job.nodes]
  return {
    'create': [create(job)],
    'wait': states,
    'setup': [archive(SOURCE)]
    + [line for node in job.nodes for line in (copy(job, node, SOURCE), ssh(job, node, setup(job)))],
    'start': on_all('start', job.train()),
    'follow': on_all('follow'),
    'status': [*states, *on_all('status')],
    'stop': on_all('stop'),
    'logs': [ssh(job, node, worker(job, 'log', 1), 'LOGS') for node in job.nodes],
    'delete': [delete(job)],
  }[verb]
