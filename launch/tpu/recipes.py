"""A job as text for other launchers, to read and run by hand: for what the Cloud TPU API lacks, TPU7x among it.

`gke`: XPK, with the flags of xpk 1.16. `jobset`: a GKE manifest (jobset.py). `gce`: Compute Engine's managed instance
groups, with the flags of gcloud 528. `sky`: SkyPilot, with the keys of 0.14. Flags and keys were checked; none of these
has been run on the real cloud yet.
"""

import dataclasses
import json
import shlex

from launch.tpu import commands, jobset
from launch.tpu.job import RUNTIMES, TpuJob
from mathqwen.errors import UserError

HEAD = '#!/usr/bin/env bash\nset -euo pipefail\n'
IN_COMPUTE_ENGINE = ('v5p', 'v6e', 'tpu7x')  # generations of which managed instance groups can make a slice


def gke(job: TpuJob) -> str:
  """A shell script for XPK, which names a slice by its shape: v5p-2x2x4."""
  kind = f'--tpu-type={job.chip.accelerator}-{job.where.topology}'
  capacity = {
    'spot': '--spot',
    'on-demand': '--on-demand',
    'flex-start': '--flex',
    'reserved': _reservation(job, 'the name of the reservation'),
  }[job.provisioning]
  where = shlex.join([f'--cluster={job.name}', kind, f'--num-slices={job.slices}', f'--zone={job.zone}'])
  train = f'--command={shlex.join(_prepared(job))}'
  return f"""{HEAD}{_left_out(job, 'gke')}# The project is gcloud's. IMAGE is like
# REGION-docker.pkg.dev/PROJECT/REPOSITORY/mathqwen:TAG.
: "${{IMAGE:?where the container goes}}"
docker build --file launch/docker/Dockerfile --tag "$IMAGE" .
docker push "$IMAGE"
xpk cluster create {where} {capacity}
# Exit status 75: preempted, or another host was lost. The run continues from its newest checkpoint.
xpk workload create --workload={job.name} {where} "--docker-image=$IMAGE" \\
  --max-restarts={job.max_tries} --restart-on-exit-codes=75 {shlex.quote(train)}
# Logs: xpk workload list --cluster={job.name} ...; when it is done:
# xpk cluster delete {shlex.join([f'--cluster={job.name}', f'--zone={job.zone}'])}
"""


def gce(job: TpuJob) -> str:
  """A shell script for a managed instance group of v5p, v6e or TPU7x. UserError: for any other slice."""
  if job.chip.name not in IN_COMPUTE_ENGINE:
    raise UserError(f'Compute Engine has no {job.chip.name}: use `up`, which asks the Cloud TPU API')
  if job.slices > 1 or job.where.machine.chips < 4:
    raise UserError(f'recipe --to gce writes one slice of hosts with 4 chips or more, and {job.slice} is not one')
  region, hosts = job.region, job.hosts
  model = {
    'spot': ['--provisioning-model=SPOT', '--instance-termination-action=STOP'],
    'on-demand': [],
    'reserved': ['--provisioning-model=RESERVATION_BOUND', '--reservation-affinity=specific'],
    'flex-start': ['--provisioning-model=FLEX_START', f'--max-run-duration={job.max_run}'],
  }[job.provisioning]
  reserved = f' {_reservation(job, "its name")}' if job.provisioning == 'reserved' else ''
  template = shlex.join(
    [f'--machine-type={job.where.machine.name}', '--maintenance-policy=TERMINATE', '--scopes=cloud-platform', *model]
  )
  group, command = shlex.quote(job.name), shlex.quote(commands.setup(job))
  train = shlex.quote(commands.worker(job, 'start', 1, job.train()))
  follow = shlex.quote(commands.worker(job, 'follow', 1))
  return f"""{HEAD}{_left_out(job, 'gce')}# Images: docs.cloud.google.com/tpu/docs/tpu-os-images
: "${{IMAGE_FAMILY:?of the image for {job.chip.name}}}" "${{IMAGE_PROJECT:?of the image}}"
gcloud compute instance-templates create {group} {template}{reserved} \\
  "--image-family=$IMAGE_FAMILY" "--image-project=$IMAGE_PROJECT"
gcloud compute resource-policies create workload-policy {group} --type=HIGH_THROUGHPUT \\
  --accelerator-topology={job.where.topology} --region={region}
gcloud compute instance-groups managed create {group} --size={hosts} --template={group} --zone={job.zone} \\
  --workload-policy={group} --default-action-on-vm-failure=do-nothing
gcloud compute instance-groups managed wait-until {group} --stable --zone={job.zone}
{shlex.join(commands.archive(commands.SOURCE))}
hosts="$(gcloud compute instance-groups managed list-instances {group} --zone={job.zone} --format='value(NAME)' | sort)"
address="$(gcloud compute instances describe "$(head -n 1 <<<"$hosts")" --zone={job.zone} \\
  --format='value(networkInterfaces[0].networkIP)')"
# Every host gets its number and the address of host 0, which a machine outside the Cloud TPU API may not know.
number=0
for host in $hosts; do
  gcloud compute scp {commands.SOURCE} "$host:" --zone={job.zone}
  gcloud compute ssh "$host" --zone={job.zone} --command={command}
done
for host in $hosts; do
  numbered={train}
  gcloud compute ssh "$host" --zone={job.zone} \\
    --command="${{numbered/--distributed/--distributed=$address:8476,{hosts},$number}}"
  number=$((number + 1))
done
gcloud compute ssh "$(head -n 1 <<<"$hosts")" --zone={job.zone} --command={follow}
# gcloud compute instance-groups managed delete {group} --zone={job.zone}
"""


def sky(job: TpuJob) -> str:
  """A YAML file for `sky jobs launch`, which restarts the job after a preemption. Strings are JSON, which is YAML too.

  UserError: when SkyPilot has no such slice.
  """
  if job.slices > 1:
    raise UserError(f'SkyPilot starts one slice, and {job.slice} is {job.slices}: use `up`, or recipe --to gke')
  if job.provisioning not in ('spot', 'on-demand'):
    raise UserError(f'SkyPilot has spot and on-demand slices, not {job.provisioning}: use `up`, or recipe --to gke')
  if job.chip.name not in RUNTIMES:
    raise UserError(f'SkyPilot asks the Cloud TPU API, which has no {job.chip.name}: use recipe --to gke, or gce')
  text = json.dumps
  accelerator = f'tpu-{job.accelerator_type}'
  return f"""{_left_out(job, 'sky')}# sky jobs launch {job.name}.yaml
name: {job.name}
resources:
  infra: {text(f'gcp/{job.region}/{job.zone}')}
  accelerators: {text(f'{accelerator}:1')}
  accelerator_args:
    runtime_version: {text(job.runtime_version or RUNTIMES[job.chip.name])}
  use_spot: {text(job.provisioning == 'spot')}
  job_recovery:
    max_restarts_on_errors: 0
    recover_on_exit_codes: [75]
workdir: .
setup: |
  {shlex.join(['bash', 'launch/tpu/worker.sh', 'setup', *job.data])}
run: |
  {shlex.join(['.venv/bin/mathqwen', *job.train()[1:]])}
"""


def _prepared(job: TpuJob) -> list[str]:
  """The training command, after a command that prepares its data sets."""
  if not job.data:
    return job.train()
  prepare = shlex.join(['mathqwen', 'data', 'prepare', *job.data])
  return ['bash', '-c', f'{prepare} && exec {shlex.join(job.train())}']


def manifest(job: TpuJob) -> str:
  """A GKE manifest: a JobSet and its service account."""
  return _left_out(job, 'jobset') + jobset.manifest(job, _prepared(job))


def _reservation(job: TpuJob, what: str) -> str:
  """The flag with the job's reservation, or with the variable that names it when the script runs."""
  name = job.reservation.rpartition('/')[2]
  return f'--reservation={name}' if name else f'"--reservation=${{RESERVATION:?{what}}}"'


_HERE = {'name', 'slice', 'zone', 'bucket', 'config', 'init', 'set', 'data', 'provisioning', 'reservation'}
# The fields of a job that are not about what is asked of the other launcher.
_OWN = {'allow_other_region', 'queue', 'wait', 'price_per_chip_hour', 'grace', 'zones'}
# {recipe: the fields of a job that it writes}
WRITTEN = {
  'gke': _HERE | {'max_tries'},
  'gce': _HERE | {'max_run'},
  'sky': _HERE | {'runtime_version'},  # and a reservation is refused
  'jobset': _HERE | {'max_tries', 'max_hours', 'service_account', 'env', 'secrets'},
}


def _left_out(job: TpuJob, recipe: str) -> str:
  """A comment that names the fields that the user gave and the text does not have.

  UserError: for files on this machine, which no recipe can hand over.
  """
  if job.files:
    raise UserError(
      f'data has {job.files[0]!r}, a file on this machine, which `up` copies and a recipe does not: copy it with '
      '`gcloud storage cp` and name its gs:// address in set = ["data.sources=..."]'
    )
  fields = [
    field.name
    for field in dataclasses.fields(job)
    if field.name not in WRITTEN[recipe] | _OWN and getattr(job, field.name) != _default(field)
  ]
  return f'# NOT IN HERE, although the job file has it: {", ".join(fields)}\n' if fields else ''


def _default(field: dataclasses.Field) -> object:
  return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


RECIPES = {'gke': gke, 'jobset': manifest, 'gce': gce, 'sky': sky}
