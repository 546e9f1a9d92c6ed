"""A job for what the Cloud TPU API does not cover (TPU7x among it), as text to read, keep and run by hand.

`gke`: XPK, flags as of xpk 1.16. `gce`: Compute Engine's managed instance groups, flags as of gcloud 528. `sky`:
SkyPilot, keys as of 0.14. None of them has been run on the real cloud from here; their flags and keys were checked.
"""

import json
import shlex

from launch.tpu import commands
from launch.tpu.job import RUNTIMES, Job
from mathqwen.errors import UserError

HEAD = '#!/usr/bin/env bash\nset -euo pipefail\n'
# Of hosts with four chips: docs.cloud.google.com/compute/docs/tpus/tpu-machines
MACHINES = {'v5p': 'ct5p-hightpu-4t', 'v6e': 'ct6e-standard-4t', 'tpu7x': 'tpu7x-standard-4t'}


def gke(job: Job) -> str:
  """A shell script. XPK writes a slice by its shape: v5p-2x2x4."""
  kind = f'--tpu-type={job.chip.accelerator}-{_shape(job)}'
  capacity = {
    'spot': '--spot',
    'on-demand': '--on-demand',
    'flex-start': '--flex',
    'reserved': '"--reservation=${RESERVATION:?the name of the reservation}"',
  }[job.provisioning]
  where = shlex.join([f'--cluster={job.name}', kind, f'--num-slices={job.slices}', f'--zone={job.zone}'])
  train = f'--command={shlex.join(_prepared(job))}'
  return f"""{HEAD}# The project is gcloud's. IMAGE is like REGION-docker.pkg.dev/PROJECT/REPOSITORY/mathqwen:TAG.
: "${{IMAGE:?where the container goes}}"
docker build --file launch/docker/Dockerfile --tag "$IMAGE" .
docker push "$IMAGE"
xpk cluster create {where} {capacity}
# Exit status 75 is "come back": preempted, or another host was lost. The run continues from its newest checkpoint.
xpk workload create --workload={job.name} {where} "--docker-image=$IMAGE" \\
  --max-restarts={job.max_tries} --restart-on-exit-codes=75 {shlex.quote(train)}
# Logs: xpk workload list --cluster={job.name} ...; when it is done:
# xpk cluster delete {shlex.join([f'--cluster={job.name}', f'--zone={job.zone}'])}
"""


def gce(job: Job) -> str:
  """A shell script for v5p, v6e and TPU7x, which may be in a managed instance group."""
  if job.chip.name not in MACHINES:
    raise UserError(f'Compute Engine has no {job.chip.name} by itself: `up` asks the Cloud TPU API for it')
  if job.slices > 1 or job.where.chips % 4:
    raise UserError(f'recipe --to gce writes one slice of whole hosts of 4 chips, and {job.slice} is another')
  region, hosts = job.zone.rpartition('-')[0], job.where.chips // 4
  model = {
    'spot': ['--provisioning-model=SPOT', '--instance-termination-action=STOP'],
    'on-demand': [],
    'reserved': ['--provisioning-model=RESERVATION_BOUND', '--reservation-affinity=specific'],
    'flex-start': ['--provisioning-model=FLEX_START', f'--max-run-duration={job.max_run}'],
  }[job.provisioning]
  reserved = ' "--reservation=${RESERVATION:?its name}"' if job.provisioning == 'reserved' else ''
  template = shlex.join(
    [f'--machine-type={MACHINES[job.chip.name]}', '--maintenance-policy=TERMINATE', '--scopes=cloud-platform', *model]
  )
  group, command = shlex.quote(job.name), shlex.quote(commands.setup(job))
  train = shlex.quote(commands.worker(job, 'start', 1, job.train()))
  follow = shlex.quote(commands.worker(job, 'follow', 1))
  return f"""{HEAD}# Images: docs.cloud.google.com/tpu/docs/tpu-os-images
: "${{IMAGE_FAMILY:?of the image for {job.chip.name}}}" "${{IMAGE_PROJECT:?of the image}}"
gcloud compute instance-templates create {group} {template}{reserved} \\
  "--image-family=$IMAGE_FAMILY" "--image-project=$IMAGE_PROJECT"
gcloud compute resource-policies create workload-policy {group} --type=HIGH_THROUGHPUT \\
  --accelerator-topology={_shape(job)} --region={region}
gcloud compute instance-groups managed create {group} --size={hosts} --template={group} --zone={job.zone} \\
  --workload-policy={group} --default-action-on-vm-failure=do-nothing
gcloud compute instance-groups managed wait-until {group} --stable --zone={job.zone}
{shlex.join(commands.archive(commands.SOURCE))}
hosts="$(gcloud compute instance-groups managed list-instances {group} --zone={job.zone} --format='value(NAME)' | sort)"
address="$(gcloud compute instances describe "$(head -n 1 <<<"$hosts")" --zone={job.zone} \\
  --format='value(networkInterfaces[0].networkIP)')"
# Every host is told its number and where host 0 is, as a machine outside the Cloud TPU API may not know.
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


def sky(job: Job) -> str:
  """A YAML file (in JSON's syntax where texts stand) for `sky jobs launch`, which starts it again when preempted."""
  if job.slices > 1:
    raise UserError(f'SkyPilot starts one slice, and {job.slice} are {job.slices}: `up`, or recipe --to gke')
  if job.chip.name not in RUNTIMES:
    raise UserError(f'SkyPilot asks the Cloud TPU API, which has no {job.chip.name}: recipe --to gke, or gce')
  text = json.dumps
  accelerator = f'tpu-{job.accelerator_type}'
  return f"""# sky jobs launch {job.name}.yaml
name: {job.name}
resources:
  infra: {text(f'gcp/{job.zone.rpartition("-")[0]}/{job.zone}')}
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


def _shape(job: Job) -> str:
  return 'x'.join(map(str, job.where.shape))


def _prepared(job: Job) -> list[str]:
  """The training command, after its data sets are there."""
  if not job.data:
    return job.train()
  prepare = shlex.join(['mathqwen', 'data', 'prepare', *job.data])
  return ['bash', '-c', f'{prepare} && exec {shlex.join(job.train())}']


RECIPES = {'gke': gke, 'gce': gce, 'sky': sky}
