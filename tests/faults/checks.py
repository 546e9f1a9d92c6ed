"""What must hold once a run has ended, whatever happened to it."""

import collections
import hashlib
import json
import pathlib
import re

import numpy as np
from faults.runs import CONFIG

STEPS = 12  # of tiny.py
# How far another mesh may change values: sums are rounded in another order, and Adam divides by small second moments.
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 3e-4


def inspect(workdir: pathlib.Path, out: pathlib.Path):
  """Restores every checkpoint that looks whole, with the code that a run uses. Starts a device: call it in a fork.

  out: a folder; gets `steps.json`, {step: {array: digest}, or why it cannot be restored}, and `STEP.npz` of the last.
  """
  import jax

  from mathqwen import config
  from mathqwen.errors import UserError
  from mathqwen.hardware import sharding
  from mathqwen.storage.checkpoint import Checkpoints
  from mathqwen.training import optim, step

  experiment = config.load(str(CONFIG))  # no setting of a fault changes the shapes of its arrays
  mesh = sharding.make_mesh(config.MeshConfig(), jax.devices()[:1])
  target = step.abstract_state(mesh, experiment.model, optim.optimizer(experiment.optim, experiment.train.steps))
  checkpoints = Checkpoints(str(workdir))
  found: dict[str, dict | str] = {}
  arrays = {}
  folders = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()]
  for folder in sorted(folders, key=lambda path: int(path.name)):
    try:
      params, opt_state, data = checkpoints.restore(int(folder.name), target.params, target.opt_state)
    except UserError as error:
      found[folder.name] = str(error)
      continue
    leaves = jax.tree_util.tree_leaves_with_path({'params': params, 'opt_state': opt_state})
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    found[folder.name] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    found[folder.name]['data'] = json.dumps(data, sort_keys=True)
    found[folder.name]['position'] = json.dumps(data['position'])
  checkpoints.close()
  out.mkdir()
  np.savez(out / 'last.npz', **arrays)
  (out / 'steps.json').write_text(json.dumps(found))


def read_json_lines(file: pathlib.Path) -> list[dict]:
  """The lines of a file of strict JSON. ValueError: when a line is something else."""

  def refuse(word):
    raise ValueError(f'{word} is not JSON')

  return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


def resumed_at(said: str) -> list[int]:
  """The steps at which processes continued, in the order in which they said so."""
  return [int(step) for step in re.findall(r'^continuing .* at step (\d+)', said, re.MULTILINE)]


def check_whole(found: pathlib.Path) -> list[str]:
  """What is wrong with checkpoints of which no undisturbed run knows; `found` was written by `inspect`."""
  steps = json.loads((found / 'steps.json').read_text())
  wrong = [f'checkpoint {step} cannot be restored: {why}' for step, why in steps.items() if isinstance(why, str)]
  with np.load(found / 'last.npz') as last:
    wrong += [f'the last checkpoint is not finite: {name}' for name in last if not np.isfinite(last[name]).all()][:1]
  return wrong


def compare_checkpoints(found: pathlib.Path, reference: pathlib.Path, exact: bool, damaged: str | None) -> list[str]:
  """What is wrong with the checkpoints of a run, both folders written by `inspect`.

  exact: every array of every step must be equal to the bit; else the last step's must be close.
  damaged: the step whose files the fault has changed, which may be found damaged.
  """
  ours = json.loads((found / 'steps.json').read_text())
  theirs = json.loads((reference / 'steps.json').read_text())
  wrong = []
  if str(STEPS) not in ours:
    wrong.append(f'there is no checkpoint of step {STEPS}, only {list(ours)}')
  for step, arrays in ours.items():
    if isinstance(arrays, str):
      if step != damaged:
        wrong.append(f'checkpoint {step} looks whole and cannot be restored: {arrays}')
      continue
    if step in theirs and arrays['position'] != theirs[step]['position']:
      wrong.append(f'checkpoint {step} has another position in the data')
    if exact and step in theirs:
      different = [name for name in theirs[step] if arrays.get(name) != theirs[step][name]]
      if different:
        wrong.append(f'checkpoint {step} differs in {len(different)} of {len(arrays)} values: {different[0]} ...')
  if not exact:
    with np.load(found / 'last.npz') as mine, np.load(reference / 'last.npz') as other:
      largest = max(float(np.abs(mine[name] - other[name]).max()) for name in other if 'params' in name)
    if not largest <= WEIGHT_TOLERANCE:
      wrong.append(f'a weight differs by {largest:.1e}')
  return wrong


def compare_lines(
  workdir: pathlib.Path, reference: pathlib.Path, exact: bool, since: dict[str, int], values: bool = True
) -> list[str]:
  """What is wrong with the metrics and the ledger of a run.

  since: {file: step} of files that the fault has changed: lines up to this step may be missing or differ.
  values: whether the numbers in the metrics must be those of the reference.
  """
  wrong = []
  for name, key in (('metrics.jsonl', 'loss'), ('ledger.jsonl', 'batch')):
    try:
      ours = [line for line in read_json_lines(workdir / name) if key in line]
    except (ValueError, OSError) as error:
      wrong.append(f'{name} is not strict JSON: {error}')
      continue
    theirs = {line['step']: line[key] for line in read_json_lines(reference / name) if key in line}
    steps = collections.Counter(line['step'] for line in ours)
    twice = [step for step, count in steps.items() if count > 1]
    first = since.get(name, 0)
    missing = [step for step in range(first + 1, STEPS + 1) if step not in steps]
    if twice or missing:
      wrong.append(f'{name}: steps {twice} stand there twice, {missing} are missing')
    if key == 'loss' and not values:
      continue
    for line in ours:
      expected = theirs.get(line['step'])
      if line['step'] <= first or line[key] == expected:
        continue
      if key == 'batch' or exact or expected is None or line[key] is None:
        wrong.append(f'{name}: step {line["step"]} has {key} {line[key]}, undisturbed {expected}')
      elif abs(line[key] - expected) > LOSS_TOLERANCE * abs(expected):
        wrong.append(f'{name}: step {line["step"]} has loss {line[key]}, undisturbed {expected}')
  return wrong[:4]


def compare_files(workdir: pathlib.Path, reference: pathlib.Path) -> list[str]:
  """What is wrong with the small files beside the checkpoints, from which other commands read the model."""
  wrong = []
  for file in sorted((reference / 'tokenizer').iterdir()):
    mine = workdir / 'tokenizer' / file.name
    if not mine.is_file() or mine.read_bytes() != file.read_bytes():
      wrong.append(f'tokenizer/{file.name} is not that of the undisturbed run')
  return wrong


def read_ends(statuses: list[int], said: str) -> list[str]:
  """What is wrong with how the processes ended."""
  wrong = [f'status {status}' for status in statuses if status not in (0, 2, 75, 130, 143, -9)]
  for sign in ('Traceback', 'Fatal Python error', 'Check failed', '*** SIG', 'Exception ignored'):
    if sign in said:
      line = next(line for line in said.splitlines() if sign in line)
      wrong.append(f'on standard error: {line[:150]}')
  if 2 in statuses and 'mathqwen: ' not in said:
    wrong.append('status 2 without a line that says why')
  return wrong


def strays(folder: pathlib.Path) -> list[str]:
  """Files that a run has left outside of its workdir: in its current directory, its home and its TMPDIR."""
  left = [path for name in ('cwd', 'home', 'tmp') for path in (folder / name).rglob('*') if not path.is_dir()]
  return [f'left outside of the workdir: {path.relative_to(folder)}' for path in left[:2]]
