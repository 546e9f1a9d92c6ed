"""Whether the hosts may remove their slice by themselves: said before the slice is made, because it costs money."""

import json

from launch.tpu import commands
from launch.tpu.cloud import Cloud, Later, project
from mathqwen.errors import UserError

# Roles that hold tpu.nodes.delete: docs.cloud.google.com/iam/docs/roles-permissions/tpu
MAY_REMOVE = ('roles/tpu.admin', 'roles/editor', 'roles/owner')
SECONDS = 60  # for each question


def removal(cloud: Cloud) -> str:
  """One line: what happens to the slice when no launcher watches."""
  job = cloud.job
  after = f'when no launcher watches, the hosts remove the slice at a limit, and {job.grace} after a run has ended'
  if not job.grace:
    after = (
      'when no launcher watches, the hosts remove the slice at a limit, but not after a run has ended (grace = "")'
    )
  try:
    account = service_account(cloud)
    roles = roles_of(cloud, account)
  except (UserError, Later, ValueError, KeyError) as error:
    return f'{after}, IF their service account has roles/tpu.admin, which could not be looked up: {error}'
  may = sorted(set(roles) & set(MAY_REMOVE))
  if may:
    return f'{after} ({account} has {may[0]})'
  custom = [role for role in roles if not role.startswith('roles/')]
  if custom:
    return f'{after}, IF {custom[0]} of {account} holds tpu.nodes.delete, which was not looked up'
  return (
    f'NOBODY REMOVES THE SLICE when no launcher watches: the hosts end the run at a limit, but {account} may '
    f'not delete TPUs. Give it roles/tpu.admin (launch/README.md), or leave the launcher running'
  )


def service_account(cloud: Cloud) -> str:
  """The account of the hosts. UserError, Later: when gcloud does not say."""
  if cloud.job.service_account:
    return cloud.job.service_account
  number = cloud.run(commands.project_number(project()), SECONDS).strip()
  return f'{number}-compute@developer.gserviceaccount.com'


def roles_of(cloud: Cloud, account: str) -> list[str]:
  """The roles of an account in the project. UserError, Later: when gcloud does not say."""
  policy = json.loads(cloud.run(commands.roles(project()), SECONDS))
  member = f'serviceAccount:{account}'
  return [binding['role'] for binding in policy.get('bindings', ()) if member in binding.get('members', ())]
