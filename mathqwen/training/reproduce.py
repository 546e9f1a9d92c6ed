"""`mathqwen train --reproduce`: whether a run that was made again took the same steps as the original."""

from mathqwen import files
from mathqwen.observe import ledger
from mathqwen.observe.metrics import read_lines
from mathqwen.storage.provenance import Original

_LOSSES = ('loss', 'eval_loss')


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
