"""What made a result: the code, and for a run also where it ran, its command, settings and data.

WORKDIR/sessions.jsonl has a line for each time that the run was started or continued, and each checkpoint holds the
sessions up to it. `mathqwen train --reproduce` reads them there, and says what differs now.
"""

import dataclasses
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
from mathqwen.config import Experiment, from_json
from mathqwen.errors import UserError
from mathqwen.hardware import hosts
from mathqwen.settings import to_flat

if TYPE_CHECKING:  # `code` runs without JAX
  import jax

SESSIONS = 'sessions.jsonl'
_ITEM = 'metadata'  # Orbax's name for the file of a JSON item of a checkpoint
_DEVICES = ('platform', 'device_kind', 'devices', 'hosts', 'mesh')
_NAMED = 5  # changes in a line
# Environment variables that change how XLA compiles, and with that the last bits of a result.
_VARIABLES = ('JAX_', 'XLA_', 'LIBTPU_')


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


def collect(experiment: Experiment, mesh: 'jax.sharding.Mesh', batch: dict, data: dict, step: int) -> dict:
  """One session of a run, for JSON.

  batch: `rows` and `micro_batches` of its batches. data: the fingerprint of its data. step: the checkpoint's, 0 for a
  new run.
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
  }


def begin_session(workdir: str, session: dict, primary: bool) -> list[dict]:
  """Adds a session to WORKDIR/sessions.jsonl. Returns all sessions of the run, with this one at the end.

  primary: whether this host writes; only one may.
  """
  sessions = [*read_sessions(workdir), session]
  if primary:
    lines = ''.join(strict_json.dumps(each) + '\n' for each in sessions)
    files.write_atomically(files.path(workdir) / SESSIONS, lines.encode())
  return sessions


def read_sessions(workdir: str) -> list[dict]:
  """The sessions of a run, oldest first; [] where an earlier version of mathqwen wrote none. Skips damaged lines."""
  path = files.path(workdir) / SESSIONS
  if not path.exists():
    return []
  found = []
  for line in path.read_bytes().splitlines():
    try:
      session = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(session, dict):
      found.append(session)
  return found


# --- making a run again ---


@dataclasses.dataclass(frozen=True)
class Original:
  """A run to be made again, as one of its checkpoints describes it."""

  workdir: str
  step: int  # of the checkpoint
  experiment: Experiment  # its `init` is what the run started from, whatever was given when it continued
  sessions: list[dict]  # up to the checkpoint, oldest first; [] where an earlier version of mathqwen wrote none


def find_original(path: str) -> Original:
  """The run of a workdir, of its newest checkpoint, or of a checkpoint in it. Imports no JAX.

  UserError: when there is no such checkpoint, or its config is damaged.
  """
  directory = files.path(files.absolute_text(path))
  if directory.parent.name == 'checkpoints':
    step = directory
  else:
    folder = directory if directory.name == 'checkpoints' else directory / 'checkpoints'
    found = [each for each in folder.iterdir() if each.name.isdigit()] if folder.exists() else []
    if not found:
      raise UserError(f'{path} holds no checkpoint: give the --workdir of a run, or one of its checkpoints')
    step = max(found, key=lambda each: int(each.name))
  if not step.name.isdigit() or not (step / 'config' / _ITEM).exists():
    raise UserError(f'{step} is not a checkpoint of a run: give the --workdir of a run, or one of its checkpoints')

  experiment = from_json((step / 'config' / _ITEM).read_text(), str(step / 'config' / _ITEM))
  file = step / 'sessions' / _ITEM
  sessions = json.loads(file.read_text())['sessions'] if file.exists() else []
  if sessions:
    experiment = dataclasses.replace(experiment, init=sessions[0]['settings']['init'])
  return Original(str(step.parent.parent), int(step.name), experiment, sessions)


def differences(original: Original, now: dict) -> list[str]:
  """A line for each kind of thing in which a session differs from the first one of a run.

  now: the session, as `collect` returns it.
  """
  if not original.sessions:
    return ['an earlier version of mathqwen made the original, and did not write down on what it ran']
  first, *later = original.sessions
  lines = [f'not as in the original: {line}' for line in _compare(first, now)]
  for session in later:
    changes = _compare(first, session)
    if changes:
      lines.append(f'the original itself was continued at step {session["from_step"]} with {"; ".join(changes)}')
  if (first['commit'] or '').endswith('-dirty'):
    lines.append(f'the original ran commit {first["commit"]}: its changes to that commit are not known')
  return lines or ['code, versions, devices, settings and data are those of the original']


def _compare(before: dict, now: dict) -> list[str]:
  """'packages: jax 0.10.2 -> 0.12.0', ...: what differs between two sessions, by kind."""
  before, now = (json.loads(strict_json.dumps(session)) for session in (before, now))
  lines = []
  for name in ('version', 'commit', 'python', 'system', *_DEVICES):
    if before.get(name) != now.get(name):
      lines.append(f'{name} {before.get(name)} -> {now.get(name)}')
  for name in ('packages', 'environment', 'settings', 'batch', 'data'):
    old, new = before.get(name, {}), now.get(name, {})
    changes = [f'{key} {old.get(key)} -> {new.get(key)}' for key in old | new if old.get(key) != new.get(key)]
    if changes:
      more = f' and {len(changes) - _NAMED} more' if len(changes) > _NAMED else ''
      lines.append(f'{name}: {", ".join(changes[:_NAMED])}{more}')
  return lines
