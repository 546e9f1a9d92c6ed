"""The bucket and the slice in one region, checked before anything is made."""

import pytest

from launch.tpu import cloud, job, region
from mathqwen.errors import UserError

REGION, MULTI, DUAL = 'region', 'multi-region', 'dual-region'


@pytest.mark.parametrize(
  'zone, bucket, is_held',
  [
    ('us-east5-a', {'location': 'US-EAST5', 'locationType': REGION}, True),
    ('us-south1-ai1b', {'location': 'US-SOUTH1', 'locationType': REGION}, True),
    ('us-east5-a', {'location': 'US-CENTRAL1', 'locationType': REGION}, False),
    ('us-east5-a', {'location': 'US', 'locationType': MULTI}, True),
    ('us-east5-a', {'location': 'EU', 'locationType': MULTI}, False),
    ('europe-west4-b', {'location': 'EU', 'locationType': MULTI}, True),
    ('europe-west2-b', {'location': 'EU', 'locationType': MULTI}, False),
    ('asia-northeast1-b', {'location': 'ASIA', 'locationType': MULTI}, True),
    ('europe-west4-b', {'location': 'EUR4', 'locationType': DUAL}, True),
    ('us-east5-a', {'location': 'NAM4', 'locationType': DUAL}, False),
    (
      'us-east5-a',
      {'location': 'US', 'locationType': DUAL, 'customPlacementConfig': {'dataLocations': ['US-EAST5', 'US-WEST1']}},
      True,
    ),
    (
      'us-central1-a',
      {'location': 'US', 'locationType': DUAL, 'customPlacementConfig': {'dataLocations': ['US-EAST5', 'US-WEST1']}},
      False,
    ),
  ],
)
def test_where_a_bucket_is(stub_cloud, job_file, zone, bucket, is_held):
  stub_cloud.buckets['bucket'] = bucket
  if is_held:
    region.check(cloud.Cloud(job.read(job_file(f'zone = "{zone}"'))))
    return
  with pytest.raises(UserError, match='bucket gs://bucket is in .*every save would cross regions.*allow_other_region'):
    region.check(cloud.Cloud(job.read(job_file(f'zone = "{zone}"'))))
  region.check(cloud.Cloud(job.read(job_file(f'zone = "{zone}"', 'allow_other_region = true'))))


@pytest.mark.parametrize(
  'bucket, message',
  [
    (404, 'there is no bucket gs://bucket: gcloud storage buckets create gs://bucket --location=us-east5'),
    (403, 'you may not look at bucket gs://bucket: ask its owner for storage.buckets.get'),
    ({'location': 'US-WEST1', 'locationType': REGION}, 'bucket gs://bucket is in US-WEST1 and the slice in us-east5'),
  ],
)
def test_nothing_is_made_for_a_wrong_bucket(fake_cloud, launch, job_file, bucket, message):
  """Through the real gcloud where it is installed."""
  fake_cloud.buckets['bucket'] = bucket
  status, _, printed = launch('create', job_file(), '--no-plan', '--yes')
  assert status == 2 and printed.startswith(f'launch: {message}') and printed.count('\n') == 1, printed
  assert not fake_cloud.queued


def test_several_zones_share_the_bucket(stub_cloud, job_file):
  found = job.read(job_file('zones = ["us-east5-a", "us-east5-b"]'))
  region.check(cloud.Cloud(found))
  found = job.read(job_file('zones = ["us-east5-a", "us-central1-a", "europe-west4-b"]'))
  with pytest.raises(UserError, match='and the slice in europe-west4, us-central1: '):
    region.check(cloud.Cloud(found))


def test_a_bucket_that_may_not_be_looked_at_and_is_said_to_be_right(stub_cloud, job_file):
  stub_cloud.buckets['bucket'] = 403
  region.check(cloud.Cloud(job.read(job_file('allow_other_region = true'))))


def test_a_shared_directory_has_no_region(job_file, monkeypatch):
  monkeypatch.setattr(cloud.Cloud, 'run', None)
  region.check(cloud.Cloud(job.read(job_file('bucket = "/mnt/shared"'))))
