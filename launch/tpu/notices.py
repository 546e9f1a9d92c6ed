"""What Google tells a machine about its end, on its metadata server.

instance/preempted              TRUE: a spot machine that is taken away now
instance/maintenance-event      NONE, or what is about to be done to it
instance/upcoming-maintenance   the window of a maintenance that is planned, days ahead; JSON

docs.cloud.google.com/compute/docs/metadata/getting-live-migration-notice and
docs.cloud.google.com/tpu/docs/view-maintenance-notifications. Only the standard library of Python 3.8: see host.py.
"""

from __future__ import annotations

import calendar
import json
import os
import re
import time
import urllib.request

SERVER = 'GCE_METADATA_HOST'  # the variable by which Google's own libraries find another server
LEAD = 600  # seconds before the window of a planned maintenance opens, in which a run should save and end


def read(now: float) -> str:
  """The notice that a run should answer now, in a few words; '' when there is none."""
  if (_get('instance/preempted') or '').strip().upper() == 'TRUE':
    return 'preempted'
  event = (_get('instance/maintenance-event') or 'NONE').strip()
  if event.upper() not in ('NONE', ''):
    return f'maintenance event {event}'
  return _planned(_get('instance/upcoming-maintenance?alt=json'), now)


def _planned(text: str | None, now: float) -> str:
  """The notice of a planned maintenance that goes on, or begins within `LEAD` seconds."""
  try:
    found = _flat(json.loads(text or '{}'))
  except ValueError:
    return ''
  start = found.get('windowstarttime', found.get('starttime', ''))
  if found.get('maintenancestatus', '').upper() == 'ONGOING':
    return f'planned maintenance of {start or "now"}'
  begins = _seconds(start)
  return f'planned maintenance of {start}' if begins is not None and begins - now <= LEAD else ''


def _flat(found: object) -> dict[str, str]:
  """{name: text} at any depth; names without _ and capitals, because both spellings are in use."""
  values = {}
  for name, value in found.items() if isinstance(found, dict) else ():
    if isinstance(value, dict):
      values.update(_flat(value))
    else:
      values[name.replace('_', '').lower()] = str(value)
  return values


def _seconds(text: str) -> float | None:
  """A time such as 2026-11-30T05:00:00-08:00, in seconds since 1970; None when it is written in another way."""
  match = re.match(r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:?\d\d)?', text)
  if not match:
    return None
  zone = (match[3] or 'Z').replace(':', '')
  east = 0 if zone == 'Z' else int(zone[0] + '1') * (int(zone[1:3]) * 3600 + int(zone[3:]) * 60)
  return calendar.timegm(time.strptime(f'{match[1]} {match[2]}', '%Y-%m-%d %H:%M:%S')) - east


def _get(path: str) -> str | None:
  """What the metadata server says; None when it says nothing, or is not there."""
  address = f'http://{os.environ.get(SERVER, "metadata.google.internal")}/computeMetadata/v1/{path}'
  request = urllib.request.Request(address, headers={'Metadata-Flavor': 'Google'})
  try:
    # Without a proxy: the server is on the machine itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=2) as response:
      return response.read().decode(errors='replace')
  except OSError:
    return None
