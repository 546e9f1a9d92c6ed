"""`mathqwen train --reproduce`: a run is made again; what differs, before it starts and after it has ended."""

import dataclasses

from mathqwen import files
from mathqwen.config import Experiment
from mathqwen.errors import UserError
from mathqwen.observe import ledger
from mathqwen.observe.metrics import read_lines
from mathqwen.storage import base as bases
from mathqwen.storage import provenance
from mathqwen.storage import workdir as workdirs

_LOSSES = ('loss', 'eval_loss')


@dataclasses.dataclass(frozen=True)
class Original:
  """A run to be made again, as one of its checkpoints describes it."""

  workdir: str
  step: int  # of the checkpoint
  experiment: Experiment  # its `init` is what the run started from, whatever was given when it continued
  sessions: list[dict]  # up to the checkpoint, oldest first; [] where an earlier version of mathqwen wrote none
  base: dict | None = None  # the record of its frozen weights, where it has any


def find_original(path: str) -> Original:
  """The run of a workdir, of its newest checkpoint, or of a checkpoint in it.

  UserError: when there is no such checkpoint, or its config is damaged.
  """
  found = workdirs.find_checkpoint(path)
  if found is None or workdirs.is_converted(found[0]):
    raise UserError(f'{path} holds no checkpoint of a run: give the --workdir of a run, or one of its checkpoints')
  workdir, experiment, step = found
  folder = workdirs.step_path(workdir, step)
  sessions = workdirs.sessions_of(folder)
  if sessions:
    experiment = dataclasses.replace(experiment, init=sessions[0]['settings']['init'])
  return Original(workdir, step, experiment, sessions, workdirs.item_of(folder, bases.ITEM))


def differences(original: Original, now: dict, base: bases.Base | None = None) -> list[str]:
  """A line for each kind of thing in which a session differs from the first one of a run.

  now: the session, as `collect` returns it. base: its frozen weights.
  """
  if not original.sessions:
    return ['an earlier version of mathqwen made the original, and did not write down on what it ran']
  first, *later = original.sessions
  lines = [
    f'not as in the original: {line}'
    for line in [*provenance.changes(first, now), *_compare_bases(original.base, base)]
  ]
  for session in later:
    changes = provenance.changes(first, session)
    if changes:
      lines.append(f'the original itself was continued at step {session["from_step"]} with {"; ".join(changes)}')
  if (first['commit'] or '').endswith('-dirty'):
    lines.append(f'the original ran commit {first["commit"]}: its changes to that commit are not known')
  return lines or ['code, versions, devices, settings and data are those of the original']


def _compare_bases(before: dict | None, now: bases.Base | None) -> list[str]:
  """A line when the frozen weights are others, whatever they are called."""
  if before is None or now is None:
    return []
  others = now.record['arrays']
  changed = [weight for weight, description in before['arrays'].items() if others.get(weight) != description]
  return [f'base {now.record["name"]}: {provenance.listed(changed)}'] if changed else []


def compare(original: Original, workdir: str) -> tuple[dict, list[str]]:
  """(for JSON, lines for the user): whether ledger and losses of the run in `workdir` are those of the original.

  They are compared line by line up to the original's checkpoint. `reproduced` is True when there was something to
  compare, and nothing differed in any bit.
  """
  theirs, ours = (_batches(folder, original.step) for folder in (original.workdir, workdir))
  first_batch = min((step for step in theirs | ours if theirs.get(step) != ours.get(step)), default=None)
  their_losses, our_losses = (_losses(folder, original.step) for folder in (original.workdir, workdir))
  common = sorted(their_losses.keys() & our_losses.keys())
  differing = [key for key in common if their_losses[key] != our_losses[key]]
  largest = max((_distance(their_losses[key], our_losses[key]) for key in differing), default=0.0)
  result = {
    'reproduced': bool(theirs and common) and first_batch is None and not differing,
    'steps': len(theirs),
    'losses': len(common),
    'first_step_of_another_batch': first_batch,
    'first_step_of_another_loss': differing[0][0] if differing else None,
    'largest_difference_of_loss': largest,
  }
  return result, [_ledger_line(theirs, first_batch), _loss_line(common, differing, their_losses, our_losses, largest)]


def _ledger_line(theirs: dict[int, str], first: int | None) -> str:
  if not theirs:
    return 'ledger: the original has none to compare with'
  if first is None:
    return f'ledger: all {len(theirs):,} steps had the batches of the original'
  return f'ledger: the first step with another batch than in the original is {first}'


def _loss_line(common: list, differing: list, theirs: dict, ours: dict, largest: float) -> str:
  if not common:
    return 'loss: the original has no line to compare with'
  if not differing:
    return f'loss: all {len(common):,} lines equal those of the original to the last bit'
  step, name, _ = first = differing[0]
  return (
    f'loss: {len(differing):,} of {len(common):,} lines differ; the first is {name} of step {step}, {ours[first]} and '
    f'{theirs[first]} in the original; the largest relative difference is {largest:.1e}'
  )


def _batches(workdir: str, last: int) -> dict[int, str]:
  """{step: digest of its batch}, up to the step `last`."""
  lines = ledger.read(files.path(workdir) / ledger.NAME).values
  return {line['step']: line['batch'] for line in lines if line['step'] <= last}


def _losses(workdir: str, last: int) -> dict[tuple[int, str, int], float | None]:
  """{(step, 'loss', the step before its window): mean loss, ...}, up to the step `last`.

  A stop ends a window early: what it holds then can be compared with nothing.
  """
  found = {}
  start = 0
  for values in read_lines(files.path(workdir) / 'metrics.jsonl').values:
    step = values['step']
    if step > last:
      break
    for name in _LOSSES:
      if name in values:
        found[step, name, start if name == 'loss' else 0] = values[name]
    if 'loss' in values:
      start = step
  return found


def _distance(a: float | None, b: float | None) -> float:
  """Relative; infinite where one of them is no number."""
  if a is None or b is None:
    return float('inf')
  return abs(a - b) / max(abs(a), abs(b))
