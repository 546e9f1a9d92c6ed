"""Why Google refused a slice, and whether asking again can help. All of its words that we know are in this file.

Sources: the Cloud TPU API's answers as users and other launchers quote them in public issues (skypilot-org/skypilot,
hashicorp/terraform-provider-google, marin-community/marin), and the codes of google.rpc.Code. The messages are in
tests/launch/refusals.json.
"""

import dataclasses
import re
import typing

if typing.TYPE_CHECKING:
  from launch.tpu.job import TpuJob

QUOTAS = 'console.cloud.google.com/iam-admin/quotas'
IN_USE = f'something else uses the quota now: see `gcloud compute tpus list`, or ask for more at {QUOTAS}'
# "Quota 'X' exhausted. Limit 4 in zone Z", "Quota limit 'X' has been exceeded. Limit: 0 in region R."
QUOTA = re.compile(
  r"""quota\b(?:[^'"`]*?['"`](?P<name>[\w./-]+)['"`])?.{0,200}?\blimit\W{0,3}(?:is |of )?(?P<limit>\d[\d,]*)""",
  re.IGNORECASE | re.DOTALL,
)
# "request requires '16.0' and is short '8.0'. project has a quota of '12.0' with '8.0' available"
SHORT = re.compile(r"requires '?(?P<needed>[\d.]+).{0,80}?quota of '?(?P<limit>[\d.]+)", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Refusal:
  """An answer of Google's that is not a slice."""

  message: str  # in Google's own words
  permanent: bool | None  # whether the same request fails again; None where these words are not known
  remedy: str

  def text(self) -> str:
    """One line: Google's words, then what to do."""
    words = ' '.join(self.message.split()).rstrip('.;')
    return f'{words}; {self.remedy}' if self.remedy else words


# (words, whether the same request fails again, what to do), the first that matches counts.
RULES = (
  (
    r'no more capacity|insufficient (reserved )?capacity|not (have )?enough (resources|capacity)|'
    r'stock.?out|resource_pool_exhausted|resource pool exhausted|capacity is (currently )?(unavailable|not available)',
    False, 'the zone has no free chips now',
  ),
  (r'\bquota\b', False, IN_USE),
  (
    r'has not been used in project|SERVICE_DISABLED|API .{0,60}(is )?(not enabled|disabled)',
    True, 'run `gcloud services enable tpu.googleapis.com`',
  ),
  (
    r'billing',
    True, 'set up billing for the project: console.cloud.google.com/billing',
  ),
  (
    r'compute\.vmExternalIpAccess',
    True, 'the organization allows no public addresses: internal_ips = true in the job file',
  ),
  (
    r'constraints/|CONSTRAINT_VIOLATED|LOCATION_POLICY_VIOLATED|organi[sz]ation(al)? policy|org policy',
    True, 'a policy of the organization forbids it: console.cloud.google.com/iam-admin/orgpolicies',
  ),
  (
    r'service account.{0,160}(not exist|not found|invalid|disabled|access|permission|deleted)|'
    r'(access to|act ?as|invalid|unknown|no such) service account|iam\.serviceAccount',
    True, 'give service_account an account of this project on which you have roles/iam.serviceAccountUser',
  ),
  (
    r'reservation.{0,160}(not found|not exist|be found|invalid|must be specified|expired|does not match|not match|'
    r'not shared|no longer)|(no|invalid|unknown|any) (matching )?reservation',
    True, 'see `gcloud alpha compute tpus reservations list --zone=ZONE`, and set reservation in the job file',
  ),
  (
    r'runtime.?version.{0,160}(not found|not exist|be found|invalid|not supported|unsupported|incompatible)|'
    r'(invalid|unknown|unsupported) (runtime|software).?version',
    True, 'see `gcloud compute tpus versions list --zone=ZONE`, and set runtime_version in the job file',
  ),
  (
    r'(sub)?network.{0,160}(not found|not exist|be found|invalid|not ready)',
    True, 'set network and subnetwork in the job file to ones of this project',
  ),
  (
    r'disks?\b.{0,160}(not found|not exist|be found|invalid|wrong zone|in use|being used)',
    True, 'set data_disks in the job file to disks of this zone that are free, or mode=read-only',
  ),
  (
    r'submit requests for accelerator',
    True, f'the project may not have this kind of chip with this provisioning here: take another, or ask at {QUOTAS}',
  ),
  (
    r'accelerator.{0,160}(not found|be found|not exist|not supported|unsupported|invalid|not available|not offered)|'
    r'(invalid|unknown|unsupported|not supported for|no such) (the )?accelerator|'
    r'topology.{0,80}(not supported|invalid|not found)|(zone|location).{0,80}(not found|is not valid|invalid)',
    True, 'see `gcloud compute tpus accelerator-types list --zone=ZONE`, and change slice or zone',
  ),
  (
    r'PERMISSION_DENIED|permission|forbidden|access denied|not authori[sz]ed',
    True, 'ask an owner of the project for roles/tpu.admin',
  ),
  (
    r'internal error|INTERNAL\b|try again|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|timed? ?out|expired|temporar|'
    r'valid.?until|per minute|rate.?limit|connection (reset|refused|aborted)',
    False, '',
  ),
)  # fmt: skip
_RULES = [(re.compile(words, re.IGNORECASE | re.DOTALL), permanent, remedy) for words, permanent, remedy in RULES]
# google.rpc.Code, for words that no rule knows. The others say nothing about the next time.
CODES = {
  'INVALID_ARGUMENT': 3, 'DEADLINE_EXCEEDED': 4, 'NOT_FOUND': 5, 'PERMISSION_DENIED': 7, 'RESOURCE_EXHAUSTED': 8,
  'FAILED_PRECONDITION': 9, 'ABORTED': 10, 'OUT_OF_RANGE': 11, 'UNIMPLEMENTED': 12, 'INTERNAL': 13, 'UNAVAILABLE': 14,
}  # fmt: skip
STAY, PASS = (3, 5, 7, 9, 11, 12), (4, 8, 10, 13, 14)


def judge(message: str, code: int | None = None, job: 'TpuJob | None' = None) -> Refusal:
  """What a message of Google's means for the same request. code: of google.rpc.Code, where one is known.

  job: what was asked for, which a quota is compared with.
  """
  if quota := QUOTA.search(message):
    return _judge_quota(message, quota['name'], int(quota['limit'].replace(',', '')), job)
  if short := SHORT.search(message):
    stays = float(short['limit'].rstrip('.')) < float(short['needed'].rstrip('.'))
    return Refusal(message, stays, f'ask for more at {QUOTAS}' if stays else IN_USE)
  for words, permanent, remedy in _RULES:
    if words.search(message):
      return Refusal(message, permanent, remedy.replace('ZONE', job.zone) if job else remedy)
  code = code or _code_in(message)
  return Refusal(message, True if code in STAY else False if code in PASS else None, '')


def _code_in(message: str) -> int | None:
  """The code that gcloud prints: '"code": 8', or its name."""
  number = re.search(r'["\']code["\']: (\d+)\b', message)
  name = re.search(rf'\b({"|".join(CODES)})\b', message)
  return int(number[1]) if number else CODES[name[1]] if name else None


def _judge_quota(message: str, name: str | None, limit: int, job: 'TpuJob | None') -> Refusal:
  """A quota that is smaller than the job never suffices; one that is larger is in use, by something that may end."""
  needed = job.slices * int(job.accelerator_type.rpartition('-')[2]) if job else 1
  quota = f'the quota {name}' if name else 'the quota'
  if limit < needed:
    units = f'{needed} for {job.slice}' if job else 'more'
    return Refusal(message, True, f'{quota} is {limit} and it takes {units}: ask for more at {QUOTAS}')
  return Refusal(message, False, f'something else uses {quota} now; see `gcloud compute tpus list`')
