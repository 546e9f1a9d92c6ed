"""What made a result: the code, and for a run also where it ran, its command, settings and data.

WORKDIR/sessions.jsonl has a line for each time that the run was started or continued, and each checkpoint holds the
sessions up to it, for `mathqwen train --reproduce`.
"""

import datetime
import functools
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import mathqwen
from mathqwen import files, strict_json
from mathqwen.config import Experiment
from mathqwen.errors import report
from mathqwen.hardware import hosts
from mathqwen.observe.metrics import as_lines, read_lines
from mathqwen.settings import to_flat

if TYPE_CHECKING:  # `code` runs without JAX
  import jax

SESSIONS = 'sessions.jsonl'
# What each line must have; the rest was not there in all versions.
_FIELDS = (('from_step', int), ('settings', dict), ('mesh', dict), ('batch', dict), ('data', dict))
# Environment variables that change how XLA compiles, and with that the last bits of a result.
_VARIABLES = ('JAX_', 'XLA_', 'LIBTPU_')
COMPARED = (
  *('version', 'commit', 'python', 'system', 'platform', 'device_kind', 'devices', 'hosts', 'mesh'),
  *('packages', 'environment', 'settings', 'batch', 'data'),
)
_BY_KEY = ('packages', 'environment', 'settings', 'batch', 'data')
_CODE = ('version', 'commit', 'packages', 'environment')  # what decides the numbers, beside settings, data and devices
_NAMED = 5  # changes in a line


@functools.cache
def code() -> dict[str, str | None]:
  """The version of the package, and the commit of the source tree when it runs from one ('-dirty' with changes)."""
  root = pathlib.Path(__file__).parents[2]
  commit = None
  if (root / '.git').exists():
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    # Keep git from refreshing its index, which would need permission to write there.
    environ = {**os.environ, 'GIT_OPTIONAL_LOCKS': '0'}
    try:
      commit = subprocess.run(command, capture_output=True, text=True, env=environ).stdout.strip() or None
    except FileNotFoundError:  # git is not installed
      commit = None
  return {'version': mathqwen.__version__, 'commit': commit}


def collect(
  experiment: Experiment, mesh: 'jax.sharding.Mesh', batch: dict, data: dict, step: int, sources: dict | None = None
) -> dict:
  """One session of a run, for JSON.

  batch: `rows` and `micro_batches` of its batches. data: the fingerprint of its data. step: the checkpoint's, 0 for a
  new run. sources: where its sources come from, as far as it is known: names, revisions, licences.
  """
  import jax

  device = mesh.devices.flat[0]
  return {
    'from_step': step,
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join(sys.argv),
    **code(),
    'python': platform.python_version(),
    'packages': hosts.versions(),
    'system': platform.platform(),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'devices': mesh.size,
    'hosts': jax.process_count(),
    'mesh': dict(mesh.shape),
    'batch': batch,
    'environment': {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    'settings': to_flat(experiment),
    'data': data,
    'sources': sources or {},
  }


def begin_session(workdir: str, session: dict, is_new: bool, primary: bool) -> list[dict]:
  """Adds a session to WORKDIR/sessions.jsonl, and reports other code and another environment than before.

  Returns all sessions of the run, with this one at the end.

  is_new: whether the run starts without a checkpoint. The sessions that are there then belong to an attempt that saved
  nothing, and are removed. primary: whether this host writes; only one may.
  """
  sessions = [session] if is_new else [*read_sessions(workdir), session]
  if primary:
    if len(sessions) > 1:
      _report_change(*sessions[-2:])
    files.write_atomically(files.path(workdir) / SESSIONS, as_lines(sessions))
  return sessions


def changes(before: dict, now: dict, names: tuple[str, ...] = COMPARED) -> list[str]:
  """'packages: jax 0.10.2 -> 0.12.0', ...: what differs between two sessions, by kind."""
  before, now = (json.loads(strict_json.dumps(session)) for session in (before, now))
  lines = []
  for name in names:
    if name not in _BY_KEY:
      if before.get(name) != now.get(name):
        lines.append(f'{name} {before.get(name)} -> {now.get(name)}')
      continue
    old, new = before.get(name, {}), now.get(name, {})
    changed = [f'{key} {old.get(key)} -> {new.get(key)}' for key in old | new if old.get(key) != new.get(key)]
    if changed:
      lines.append(f'{name}: {listed(changed)}')
  return lines


def listed(changed: list[str]) -> str:
  """The first of them, and how many more there are."""
  more = f' and {len(changed) - _NAMED} more' if len(changed) > _NAMED else ''
  return f'{", ".join(changed[:_NAMED])}{more}'


def _report_change(before: dict, now: dict) -> None:
  """Reports in a line that a run continues with other code or another environment, which may change its numbers."""
  if found := changes(before, now, tuple(name for name in _CODE if name in before)):
    report(f'not as in the session before: {"; ".join(found)}; the numbers may differ from an undisturbed run')


def read_sessions(workdir: str) -> list[dict]:
  """The sessions of a run, oldest first; [] where an earlier version of mathqwen wrote none. Skips damaged lines."""
  return read_lines(files.path(workdir) / SESSIONS, _FIELDS).values
