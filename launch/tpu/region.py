"""Whether a job's bucket is where its slice will be: reading and saving across regions is slow, and Google charges it.

Locations: docs.cloud.google.com/storage/docs/locations.
"""

import json
import re

from launch.tpu import commands
from launch.tpu.cloud import MISSING, Cloud
from mathqwen.errors import UserError

# How regions of a multi-region's continent begin, and the regions there that are not part of it.
CONTINENTS = {
  'US': ('us-', ()),
  'EU': ('europe-', ('europe-west2', 'europe-west6')),
  'ASIA': ('asia-', ()),
}
DUAL_REGIONS = {
  'ASIA1': ('asia-northeast1', 'asia-northeast2'),
  'EUR4': ('europe-north1', 'europe-west4'),
  'EUR5': ('europe-west1', 'europe-west2'),
  'EUR7': ('europe-west2', 'europe-west3'),
  'EUR8': ('europe-west3', 'europe-west6'),
  'NAM4': ('us-central1', 'us-east1'),
}


def check(cloud: Cloud) -> None:
  """UserError: when the bucket does not exist, may not be looked at, or is in another region.

  Later: when Google does not answer.
  """
  job = cloud.job
  if not job.bucket.startswith('gs://'):
    return
  name = re.match('gs://[^/]+', job.bucket)[0]
  try:
    bucket = json.loads(cloud.run(commands.bucket_location(name)))
  except UserError as error:
    if MISSING.search(str(error)) or re.search(r'\b404\b', str(error)):
      raise UserError(
        f'there is no bucket {name}: gcloud storage buckets create {name} --location={job.region}'
      ) from None
    if not re.search(r'\b403\b|permission|access', str(error), re.IGNORECASE):
      raise
    if job.allow_other_region:
      return
    raise UserError(
      f'you may not look at bucket {name}: ask its owner for storage.buckets.get (roles/storage.legacyBucketReader), '
      'or set allow_other_region = true if it is in the region of the slice'
    ) from None
  outside = sorted({job.in_zone(zone).region for zone in job.all_zones if not holds(bucket, job.in_zone(zone).region)})
  if outside and not job.allow_other_region:
    raise UserError(
      f'bucket {name} is in {bucket["location"]} and the slice in {", ".join(outside)}: every save would cross '
      f'regions, slowly, and Google charges for that. Take a bucket there (gcloud storage buckets create gs://NAME '
      f'--location={outside[0]}), another zone, or allow_other_region = true'
    )


def holds(bucket: dict, region: str) -> bool:
  """Whether a bucket's data are in a region. bucket: as `commands.bucket_location` prints it."""
  location = bucket['location'].upper()
  chosen = [place.upper() for place in bucket.get('data_locations') or ()]  # of a dual-region of the user's own
  if chosen:
    return region.upper() in chosen
  if location in DUAL_REGIONS:
    return region in DUAL_REGIONS[location]
  begin, without = CONTINENTS.get(location, ('', ()))
  return region.startswith(begin) and region not in without if begin else region.upper() == location
