"""Google's refusals: which stay and which pass, and what the launcher does about each."""

import json
import pathlib

import pytest

from launch.tpu import cloud, job, refusals

MESSAGES = json.loads(pathlib.Path(__file__).with_name('refusals.json').read_text())
STAYS = {'stays': True, 'passes': False, 'unknown': None}
QUOTA = "Quota limit 'TPUV5PPreemptiblePerProjectPerZoneForTPUAPI' has been exceeded. Limit: {} in zone us-east5-a."


@pytest.mark.parametrize('kind, code, message, remedy', MESSAGES, ids=lambda value: str(value)[:40])
def test_messages(kind, code, message, remedy, job_file):
  found = refusals.judge(message, code, job.read(job_file()))
  assert found.permanent == STAYS[kind] and remedy in found.remedy
  assert found.text().startswith(message.split()[0]) and '\n' not in found.text() and remedy in found.text()


@pytest.mark.parametrize(
  'slice, limit, permanent',
  [('v5p-32', 31, True), ('v5p-32', 32, False), ('2xv5p-32', 63, True), ('v5e-16', 15, True), ('v5e-16', 16, False)],
)
def test_a_quota_is_compared_with_what_the_job_takes(slice, limit, permanent, job_file):
  """In cores for v5p and in chips for v5e, as Google counts both."""
  found = refusals.judge(QUOTA.format(limit), 8, job.read(job_file(f'slice = "{slice}"')))
  assert found.permanent == permanent


def test_a_request_that_fails_for_good_stops_at_once(fake_cloud, launch, job_file):
  fake_cloud.failures = [(8, QUOTA.format(0))]
  status, _, printed = launch('create', job_file(), '--no-plan', '--yes')
  assert status == 2 and not fake_cloud.queued, printed
  assert printed.count('the request has failed: Quota limit') == 1
  assert 'is 0 and it takes 32 for v5p-32: ask for more at console.cloud.google.com/iam-admin/quotas' in printed
  assert printed.splitlines()[-1].startswith('launch: Quota limit')


def test_a_request_that_fails_for_now_is_asked_again(stub_cloud, launch, job_file):
  """Once for capacity and once for a quota in use, then it is there."""
  stub_cloud.failures = [(8, 'There is no more capacity in the zone "us-east5-a"'), (8, QUOTA.format(64))]
  for _ in range(2):
    status, _, printed = launch('create', job_file(), '--no-plan', '--yes')
    assert status == 1 and 'the request has failed: ' in printed
  assert 'something else uses the quota' in printed
  assert launch('create', job_file(), '--no-plan', '--yes')[0] == 0


@pytest.mark.parametrize(
  'code, status, message, raised',
  [
    (429, 'RESOURCE_EXHAUSTED', QUOTA.format(0), cloud.Refused),
    (429, 'RESOURCE_EXHAUSTED', QUOTA.format(64), cloud.Later),
    (429, 'RESOURCE_EXHAUSTED', 'no more capacity in the zone', cloud.Later),
    (403, 'PERMISSION_DENIED', 'Permission tpu.nodes.create denied', cloud.Refused),
  ],
)
def test_the_answer_to_a_request(stub_cloud, job_file, code, status, message, raised):
  stub_cloud.refusals = [(code, {'error': {'code': code, 'status': status, 'message': message}})]
  with pytest.raises((cloud.Refused, cloud.Later)) as error:
    cloud.Cloud(job.read(job_file())).create()
  assert type(error.value) is raised and message.split('.')[0] in str(error.value)
