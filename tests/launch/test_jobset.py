"""The GKE manifest of a job, against the fields of jobset.x-k8s.io/v1alpha2, batch/v1 and v1."""

import json
import pathlib
import re

import pytest
import yaml

from launch.tpu import job, recipes

# {type: {field: its type; 'any' is not looked into}}, from kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go,
# and the reference of the Kubernetes API.
SCHEMA = json.loads(pathlib.Path(__file__).with_name('jobset_schema.json').read_text())
SIMPLE = {'str': str, 'int': int, 'bool': bool, 'any': object}


def check(value, kind, where=''):
  """Fails for a field that Kubernetes does not know, or of another type."""
  if isinstance(kind, list):
    assert isinstance(value, list), where
    for i, item in enumerate(value):
      check(item, kind[0], f'{where}[{i}]')
  elif isinstance(kind, dict):
    assert isinstance(value, dict), where
    for name, item in value.items():
      assert name in kind or '*' in kind, f'{where}.{name}'
      check(item, kind.get(name, kind.get('*')), f'{where}.{name}')
  elif kind in SIMPLE:
    assert isinstance(value, SIMPLE[kind]) and not (kind == 'int' and isinstance(value, bool)), where
  else:
    check(value, SCHEMA[kind], f'{where}.{kind}')


@pytest.fixture
def documents(job_file):
  """documents(line, ...) -> the service account, the JobSet, its Job's spec and the pod's spec"""

  def read(*lines):
    text = recipes.RECIPES['jobset'](job.read(job_file(*lines)))
    account, jobset = yaml.safe_load_all(text)
    check(account, 'ServiceAccount')
    check(jobset, 'JobSet')
    spec = jobset['spec']['replicatedJobs'][0]['template']['spec']
    return account, jobset, spec, spec['template']['spec']

  return read


@pytest.mark.parametrize(
  'slice, accelerator, topology, chips, hosts, slices',
  [
    ('v5p-32', 'tpu-v5p-slice', '2x2x4', '4', 4, 1),
    ('2xv6e-16', 'tpu-v6e-slice', '4x4', '4', 4, 2),
    ('v5e-8', 'tpu-v5-lite-podslice', '2x4', '8', 1, 1),
    ('v4-16', 'tpu-v4-podslice', '2x2x2', '4', 2, 1),
    ('2xtpu7x-16', 'tpu7x', '2x2x2', '4', 2, 2),
  ],
)
def test_slices(documents, slice, accelerator, topology, chips, hosts, slices):
  _, jobset, spec, pod = documents(f'slice = "{slice}"')
  assert jobset['spec']['replicatedJobs'][0]['replicas'] == slices
  assert spec['parallelism'] == spec['completions'] == hosts and spec['completionMode'] == 'Indexed'
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
    'cloud.google.com/gke-spot': 'true',
    'topology.kubernetes.io/zone': 'us-east5-a',
  }
  (container,) = pod['containers']
  assert container['resources'] == {'limits': {'google.com/tpu': chips}, 'requests': {'google.com/tpu': chips}}


@pytest.mark.parametrize(
  'lines, labels',
  [
    (['provisioning = "on-demand"'], {}),
    (['provisioning = "flex-start"', 'max_run = "10h"'], {'cloud.google.com/gke-flex-start': 'true'}),
    (['provisioning = "reserved"', 'reservation = "mine"'], {'cloud.google.com/reservation-name': 'mine'}),
  ],
)
def test_capacity(documents, lines, labels):
  selector = documents(*lines)[3]['nodeSelector']
  assert {name: value for name, value in selector.items() if 'tpu' not in name and 'zone' not in name} == labels


def test_restarts_and_the_time_to_save(documents):
  _, jobset, spec, pod = documents('max_tries = 5', 'max_hours = 2.5')
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 4  # the first start is a try
  (rule,) = policy['rules']
  assert rule['action'] == 'FailJobSet' and rule['onJobFailureReasons'] == ['PodFailurePolicy', 'DeadlineExceeded']
  # 75 and killed pods fail the Job by its backoff limit, which no rule names: the JobSet starts again.
  (failed,) = spec['podFailurePolicy']['rules']
  assert failed['onExitCodes'] == {'containerName': 'mathqwen', 'operator': 'NotIn', 'values': [75, 137, 143]}
  assert failed['action'] == 'FailJob' and spec['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  assert spec['activeDeadlineSeconds'] == 9000 and pod['terminationGracePeriodSeconds'] >= 600


def test_the_command_is_the_one_of_the_job(documents, job_file):
  hostile = ['set = ["data.system_prompt=$(HOME) ${IMAGE: # ä"]']
  words = documents(*hostile)[3]['containers'][0]['command']
  # Kubernetes reads $$ as a dollar, and expands nothing after it.
  assert [word.replace('$$(', '$(') for word in words] == job.read(job_file(*hostile)).train()
  assert not re.search(r'(?<!\$)\$\(', ' '.join(words))
  shell = documents('data = ["gsm8k"]')[3]['containers'][0]['command']
  assert shell[:2] == ['bash', '-c'] and shell[2].startswith('mathqwen data prepare gsm8k && exec mathqwen train')


def test_service_account(documents, job_file):
  account, _, _, pod = documents('service_account = "sa@p.iam.gserviceaccount.com"')
  assert account['metadata'] == {
    'name': 'math-7b',
    'annotations': {'iam.gke.io/gcp-service-account': 'sa@p.iam.gserviceaccount.com'},
  }
  assert pod['serviceAccountName'] == 'math-7b'
  text = recipes.RECIPES['jobset'](job.read(job_file('service_account = "sa@p.iam.gserviceaccount.com"')))
  assert 'add-iam-policy-binding sa@p.iam.gserviceaccount.com --role=roles/iam.workloadIdentityUser' in text


def test_variables_and_secrets(documents, job_file):
  """A secret is in the manifest by its name; the comment makes it from Secret Manager without a file."""
  lines = ['env = {MODE = "a $(b)"}', 'secrets = {HF_TOKEN = "hf-token", WANDB_API_KEY = "wandb/versions/3"}']
  assert documents(*lines)[3]['containers'][0]['env'] == [
    {'name': 'MODE', 'value': 'a $$(b)'},
    {'name': 'HF_TOKEN', 'valueFrom': {'secretKeyRef': {'name': 'math-7b', 'key': 'HF_TOKEN'}}},
    {'name': 'WANDB_API_KEY', 'valueFrom': {'secretKeyRef': {'name': 'math-7b', 'key': 'WANDB_API_KEY'}}},
  ]
  text = recipes.RECIPES['jobset'](job.read(job_file(*lines)))
  assert '--from-file=WANDB_API_KEY=<(gcloud secrets versions access 3 --secret=wandb)' in text


@pytest.mark.parametrize(
  'recipe, missing', [('jobset', 'iap, max_cost'), ('gke', 'iap, service_account, max_cost, max_hours')]
)
def test_what_a_recipe_leaves_out_is_said(recipe, missing, job_file):
  lines = ['iap = true', 'service_account = "a@b.c"', 'price_per_chip_hour = 1', 'max_cost = 5', 'max_hours = 1']
  text = recipes.RECIPES[recipe](job.read(job_file(*lines)))
  assert f'# NOT IN HERE, although the job file has it: {missing}\n' in text
  assert 'NOT IN HERE' not in recipes.RECIPES[recipe](job.read(job_file()))
