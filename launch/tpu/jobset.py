"""A job as a GKE manifest: a JobSet, with one Job for each slice and one pod for each host, and its service account.

Fields of jobset.x-k8s.io/v1alpha2 (github.com/kubernetes-sigs/jobset), batch/v1 and v1. Labels of nodes:
docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus and .../concepts/tpus. GKE tells each pod which host and which
slice it is, so `--distributed` needs no address.
"""

import json
import os
from typing import Any

from launch.tpu.facts import SAVE_SECONDS
from launch.tpu.job import TpuJob

RESTARTED = (os.EX_TEMPFAIL, 137, 143)  # statuses after which the run continues: saved, or killed with its node
PORTS = (8471, 8476, 8080)  # between hosts: libtpu, JAX's coordinator, Megascale
CACHE = '/cache'  # of launch/docker/Dockerfile
CAPACITY = {
  'spot': {'cloud.google.com/gke-spot': 'true'},
  'on-demand': {},
  'reserved': {},
  'flex-start': {'cloud.google.com/gke-flex-start': 'true'},
}


def manifest(job: TpuJob, command: list[str]) -> str:
  """YAML for kubectl. command: what every pod runs."""
  documents = [_service_account(job), _jobset(job, command)]
  return _head(job) + '---\n'.join('\n'.join(_yaml(document)) + '\n' for document in documents)


def _head(job: TpuJob) -> str:
  lines = [
    'IMAGE is like REGION-docker.pkg.dev/PROJECT/REPOSITORY/mathqwen:TAG:',
    '  docker build --file launch/docker/Dockerfile --tag $IMAGE . && docker push $IMAGE',
    f"  export IMAGE; envsubst '$IMAGE' < {job.name}.yaml | kubectl apply -f -",
    f'The cluster needs the JobSet controller and {job.slices} node pool(s) of {job.where.machine.name}, topology '
    f'{job.where.topology}.',
  ]
  if job.secrets:
    lines += ['Once, so that no value is in a file:', f'  kubectl create secret generic {job.name} {_given(job)}']
  if job.service_account:
    lines += [
      f'Let the pods act as {job.service_account}:',
      f'  gcloud iam service-accounts add-iam-policy-binding {job.service_account} '
      f'--role=roles/iam.workloadIdentityUser --member="serviceAccount:PROJECT.svc.id.goog[default/{job.name}]"',
    ]
  lines += [f'The log of host 0: kubectl logs -f job/{job.name}-slice-0; to end it: kubectl delete jobset {job.name}']
  return ''.join(f'# {line}\n' for line in lines)


def _given(job: TpuJob) -> str:
  """kubectl's flags for the secrets: each value goes from Secret Manager to the cluster."""
  flags = []
  for name, secret in job.secrets.items():
    secret, _, version = secret.partition('/versions/')
    flags.append(f'--from-file={name}=<(gcloud secrets versions access {version or "latest"} --secret={secret})')
  return ' '.join(flags)


def _service_account(job: TpuJob) -> dict[str, Any]:
  metadata: dict[str, Any] = {'name': job.name}
  if job.service_account:
    metadata['annotations'] = {'iam.gke.io/gcp-service-account': job.service_account}
  return {'apiVersion': 'v1', 'kind': 'ServiceAccount', 'metadata': metadata}


def _jobset(job: TpuJob, command: list[str]) -> dict[str, Any]:
  stop = {'onExitCodes': {'containerName': 'mathqwen', 'operator': 'NotIn', 'values': list(RESTARTED)}}
  template = {
    'parallelism': job.hosts,
    'completions': job.hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,  # one pod less, and all hosts of all slices start again
    'podFailurePolicy': {'rules': [{'action': 'FailJob', **stop}]},
    'template': {'spec': _pod(job, command)},
  }
  if job.max_hours:
    template['activeDeadlineSeconds'] = int(job.max_hours * 3600)  # of each start
  # A status that a new start would meet again ends the JobSet; after any other it starts again.
  ends = {'name': 'ends', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy', 'DeadlineExceeded']}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': job.name,
      'labels': {'mathqwen': job.name},
      # Each slice on a node pool of its own.
      'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
    },
    'spec': {
      'failurePolicy': {'maxRestarts': job.max_tries - 1, 'rules': [ends]},
      'network': {'enableDNSHostnames': True, 'publishNotReadyAddresses': True},
      'replicatedJobs': [{'name': 'slice', 'replicas': job.slices, 'template': {'spec': template}}],
    },
  }


def _pod(job: TpuJob, command: list[str]) -> dict[str, Any]:
  # Kubernetes puts the value of a variable in the place of $(NAME); $$ is a dollar.
  words = [word.replace('$(', '$$(') for word in command]
  chips = str(job.where.machine.chips)
  return {
    'serviceAccountName': job.name,
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': SAVE_SECONDS,  # a Spot VM is gone after 30 s, whatever is written here
    'nodeSelector': _nodes(job),
    'containers': [
      {
        'name': 'mathqwen',
        'image': '${IMAGE}',
        'command': words,
        'env': _variables(job),
        'ports': [{'containerPort': port} for port in PORTS],
        'resources': {'requests': {'google.com/tpu': chips}, 'limits': {'google.com/tpu': chips}},
        'volumeMounts': [{'name': 'cache', 'mountPath': CACHE}],
      }
    ],
    'volumes': [{'name': 'cache', 'emptyDir': {}}],
  }


def _nodes(job: TpuJob) -> dict[str, str]:
  """Labels of the nodes that may run the pods."""
  labels = {
    'cloud.google.com/gke-tpu-accelerator': job.where.chip.gke_label,
    'cloud.google.com/gke-tpu-topology': job.where.topology,
    **CAPACITY[job.provisioning],
  }
  if job.provisioning == 'reserved' and job.reservation:
    labels['cloud.google.com/reservation-name'] = job.reservation.rpartition('/')[2]
  if len(job.all_zones) == 1:
    labels['topology.kubernetes.io/zone'] = job.zone
  return labels


def _variables(job: TpuJob) -> list[dict[str, Any]]:
  """Of the container: the job's own, and its secrets by name."""
  plain = [{'name': name, 'value': value.replace('$(', '$$(')} for name, value in job.env.items()]
  secret = {name: {'secretKeyRef': {'name': job.name, 'key': name}} for name in job.secrets}
  return plain + [{'name': name, 'valueFrom': source} for name, source in secret.items()]


def _yaml(value: Any, indent: str = '') -> list[str]:
  """Lines of block style YAML. Strings are JSON, which is YAML too."""
  lines = []
  items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
  for key, item in items:
    begin = f'{indent}- ' if key is None else f'{indent}{key}:'
    if not isinstance(item, dict | list) or not item:
      lines.append(f'{begin}{"" if key is None else " "}{json.dumps(item, ensure_ascii=False)}')
    elif key is None:
      inner = _yaml(item, indent + '  ')
      lines += [begin + inner[0].lstrip(), *inner[1:]]
    else:
      lines += [begin, *_yaml(item, indent + '  ')]
  return lines
