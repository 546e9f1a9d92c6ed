"""What is removed from logs, and that nothing else is."""

import base64
import hashlib
import pathlib
import random
import string

import pytest

from launch.tpu import cloud, redaction

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = sorted(path for path in ROOT.rglob('*.md') if '.venv' not in path.parts)
SOURCES = sorted((ROOT / 'mathqwen').rglob('*.py'))


def made(length, letters=string.ascii_letters + string.digits, seed=0):
  """A key of this length, which holds a digit. Written out, it would be taken for a real one."""
  return ''.join(random.Random(seed).choices(letters, k=length - 1)) + '7'


KEYS = {
  'google': 'ya29.' + made(40),
  'google key': 'AIza' + made(35),
  'hugging face': 'hf_' + made(34),
  'openai': 'sk-proj-' + made(48),
  'anthropic': 'sk-ant-api03-' + made(60),
  'github': 'ghp_' + made(36),
  'github fine-grained': 'github_pat_' + made(22) + '_' + made(59),
  'gitlab': 'glpat-' + made(20),
  'wandb': 'wandb_v1_' + made(60),
  'aws': 'AKIA' + made(16, string.ascii_uppercase + string.digits),
  'aws session': 'ASIA' + made(16, string.ascii_uppercase + string.digits),
  'slack': 'xoxb-' + made(12, string.digits) + '-' + made(24),
  'json web token': 'eyJ' + made(20) + '.eyJ' + made(30) + '.' + made(40),
  'private key': f'-----BEGIN RSA PRIVATE KEY-----\n{made(64)}\n{made(30)}\n-----END RSA PRIVATE KEY-----',
}
HEX40 = hashlib.sha1(b'a').hexdigest()
IN_CONTEXT = {
  'wandb login {}': HEX40,
  'WANDB_API_KEY={}': HEX40,
  'wandb: Paste an API key from your profile: {}': HEX40,
  '"api_key": "{}"': HEX40,
  'aws_secret_access_key = {}': made(40, string.ascii_letters + '/+'),
  'Secret access key: {}': made(40),
  'Authorization: Bearer {}': made(30),
  'authorization: basic {}': base64.b64encode(b'user:password7').decode(),
  'HF_TOKEN={}': made(12),
  'export MY_SERVICE_KEY="{}"': 'abcdef-ghi',
  'DB_PASSWORD={}': 'hunter2hunter',
  "{'HF_TOKEN': '{}'}": made(20),
  'password: {}': 'hunter2hunter',
  'PRIVATE-TOKEN: {}': made(20),
  'https://host/x?access_token={}&y=1': made(20),
  'git clone https://{}@host/x': 'user:word',
}


@pytest.mark.parametrize('name', KEYS)
@pytest.mark.parametrize('around', ['{}', 'the key {} is wrong', 'key="{}",', '[host 3] {}.'])
def test_keys_that_are_known_by_their_form(name, around):
  got = redaction.without_secrets(around.format(KEYS[name]))
  assert KEYS[name] not in got and 'SECRET' in got and KEYS[name][-20:] not in got
  assert len(got) <= len(around) + 8  # nothing of the key is left


@pytest.mark.parametrize('around', IN_CONTEXT)
def test_keys_that_are_known_by_their_place(around):
  key = IN_CONTEXT[around]
  got = redaction.without_secrets(around.replace('{}', key))
  assert key not in got and got == around.replace('{}', 'SECRET')


def test_a_private_key_that_arrives_line_by_line():
  """As the log of a host does."""
  block = base64.b64encode(random.Random(1).randbytes(400)).decode()
  lines = [block[i : i + 64] for i in range(0, len(block), 64)]
  assert {redaction.without_secrets(line) for line in lines if len(line) == 64} == {'SECRET'}


@pytest.mark.parametrize(
  'line',
  [
    f'mathqwen at commit {HEX40}',
    f'wandb: git commit {HEX40}',
    f'sha256 {hashlib.sha256(b"a").hexdigest()}',
    'train 12/60 loss 1.234 lr 2.0e-05 tokens/s 12,345.6',
    'EOS_TOKEN=151645 PAD_TOKEN=<pad> HF_TOKEN=$HF_TOKEN',
    'hf_tokenizer_config and sk-learn-contrib, task-0123456789-x',
    'the next token is 5 and the key is sorted; basic arithmetic, bearer of news',
    'gs://bucket/runs/math-7b/checkpoints/000123 written in 3.2 s',
  ],
)
def test_lines_without_secrets_stay(line):
  assert redaction.without_secrets(line) == line


@pytest.mark.parametrize('path', [*TEXTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_without_secrets_stay(path):
  text = path.read_text()
  assert redaction.without_secrets(text) == text
  for line in text.splitlines():
    assert redaction.without_secrets(line) == line


@pytest.mark.parametrize('project', ['training', 'models', 'fine-tuning', 'checkpoint', 'math-7b'])
def test_a_project_that_is_called_like_a_word(project, monkeypatch):
  """It is removed where it stands as a project, and stays where it is a word."""
  monkeypatch.setattr(cloud, 'project', lambda: project)
  for line in (
    f'{project} continues from its newest checkpoint' if project != 'checkpoint' else 'checkpoint 3',
    f'the {project} of the run, {project}/{project} and projects of ours',
    (ROOT / 'README.md').read_text(),
  ):
    assert cloud.redact(line) == line
  for around in (
    'projects/{}/locations/us-east5-a',
    'gcloud x --project={} y',
    'gcloud x --project {}',
    'sa@{}.iam.gserviceaccount.com',
    'https://console.cloud.google.com/iam-admin/quotas?project={}&x=1',
    'project [{}] not found',
    "project '{}' not found",
    'Your active project is: project: {}',
    'GOOGLE_CLOUD_PROJECT={}',
    'us-docker.pkg.dev/{}/images/mathqwen:1',
  ):
    assert cloud.redact(around.format(project)) == around.format('PROJECT')


def test_a_project_with_an_id_of_its_own_is_removed_everywhere(monkeypatch):
  monkeypatch.setattr(cloud, 'project', lambda: 'acme-research-417')
  assert cloud.redact('in acme-research-417: denied') == 'in PROJECT: denied'
  assert cloud.redact('acme-research-4170 is another') == 'acme-research-4170 is another'


def test_other_projects_and_numbers():
  for around in (
    'has not been used in project {} before',
    '?project={} then retry',
    "consumer 'project_number:{}'",
    '{}-compute@developer.gserviceaccount.com',
    'projects/{}/locations/x',
  ):
    assert redaction.without_projects(around.format('123456789012')) == around.format('PROJECT')
