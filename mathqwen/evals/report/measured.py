"""Measured runs: the `scores.json` files of one directory each, checked field by field."""

import dataclasses
import os
import re
from collections.abc import Iterable

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks
from mathqwen.evals.folder import is_unfinished
from mathqwen.evals.records import read_json
from mathqwen.evals.samples import METRICS


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
  """What one directory holds: its scores by benchmark, and the files they were read from."""

  label: str
  scores: dict[str, dict]
  files: dict[str, files.AnyPath]


def read_runs(paths: Iterable[str | os.PathLike]) -> tuple[list[MeasuredRun], list[str]]:
  """The runs below `paths`, and notes on what is there but not (or not completely) in the scores.

  A run is labelled with its model, and with its directory too when two runs would have the same label.
  UserError: when a path has no scores, when a file is not the scores of an evaluation, or when nothing is finished.
  """
  by_run: dict[tuple[str, files.AnyPath], MeasuredRun] = {}
  notes = []
  for path in map(files.path, paths):
    found = sorted(path.rglob('scores.json')) if path.is_dir() else [path]
    unfinished = _unfinished_below(path, found)
    for folder in unfinished:
      notes.append(f'{folder}: not finished, and not in the table; the same `mathqwen evaluate` continues it')
    if not found and not unfinished:
      raise UserError(f'{path}: no scores.json below it; give the --out directory of an evaluation')

    for file in found:
      scores = _read_scores(file)
      notes += _note(file, scores)
      benchmark = scores['benchmark']
      # DIR/gsm8k/scores.json belongs to the run DIR; a scores.json elsewhere, to the directory it is in.
      folder = file.resolve().parent
      if file.parent.name == benchmark:
        folder = folder.parent
      model = str(scores.get('model') or folder.name)
      run = by_run.setdefault((model, folder), MeasuredRun(model, {}, {}))
      run.scores[benchmark] = scores
      run.files[benchmark] = file
  if notes and not by_run:
    raise UserError('; '.join(notes))

  models = [model for model, _ in by_run]
  runs = [
    run if models.count(model) == 1 else dataclasses.replace(run, label=f'{model} ({folder})')
    for (model, folder), run in by_run.items()
  ]
  return runs, notes


def samples_of(scores: dict | None) -> int:
  """How many answers each problem has; 1 without scores."""
  return (scores or {}).get('samples', 1)


def count_text(counts: dict, samples: int) -> str:
  """`1319`, or `1319 x 4` for four answers to each. counts: the scores of a benchmark or of a group."""
  return str(counts['n']) if samples == 1 else f'{counts["n"] // samples} x {samples}'


def covers_benchmark(scores: dict) -> bool:
  """Whether each problem of the benchmark was answered. A benchmark without a published size is never covered."""
  size = benchmarks.shown(scores['benchmark']).size
  return size is not None and scores['n'] // samples_of(scores) >= size


def part_text(scores: dict) -> str:
  """` (n = 10)`; '' when it is each problem of the benchmark once."""
  samples = samples_of(scores)
  if samples == 1 and scores['n'] == benchmarks.shown(scores['benchmark']).size:
    return ''
  return f' (n = {count_text(scores, samples)})'


def _unfinished_below(path: files.AnyPath, scored: list[files.AnyPath]) -> list[files.AnyPath]:
  """Folders of evaluations that were started and have no scores yet."""
  records = sorted(path.rglob('records.jsonl'))
  without_scores = [file for file in records if file.with_name('scores.json') not in scored]
  return [file.parent for file in without_scores if is_unfinished(file)]


def _read_scores(file: files.AnyPath) -> dict:
  scores = read_json(file)
  if fault := _fault(scores):
    raise UserError(f'{file}: {fault}; evaluate or grade again to write it')
  if scores['benchmark'] not in benchmarks.BENCHMARKS and not scores.get('source'):
    raise UserError(f'{file}: unknown benchmark {scores["benchmark"]!r}; there are: {", ".join(benchmarks.BENCHMARKS)}')
  return scores


def _note(file: files.AnyPath, scores: dict) -> list[str]:
  """A note when the scores do not cover the records next to them, or when more records will follow."""
  records = file.with_name('records.jsonl')
  if records.exists():
    count = sum(1 for line in files.read_journal(records).split(b'\n') if line)
    if count != scores['n']:
      return [
        f'{file.parent}: the scores are of {scores["n"]:,} answers, and {count:,} are there; evaluate or grade again'
      ]
  return [f'{file.parent}: not finished; the scores are of what is answered so far'] if is_unfinished(file) else []


# Types of the fields. A benchmark needs _SCORES, a group needs _COUNTS, several answers to a problem need _SAMPLED.
_COUNTS = {'n': int, 'correct': int, 'accuracy': float | int | None}
_SCORES = {'benchmark': str, **_COUNTS, 'stderr': float | int | None, 'rule': str}
_SAMPLED = {'samples': int, 'problems': int, 'pass_at_k': dict, 'maj_at_k': dict}
_OPTIONAL = {
  'stderr': float | int | None,
  'by_group': dict | None,
  'decoding': dict | None,
  'samples': int,
  **dict.fromkeys(METRICS, dict),
  'intervals95': dict,
  'lengths': dict | None,
  'relative_error': float | int,
  'non_number_ratio': float | int,
}


def _fault(scores: dict) -> str | None:
  """Why these are not the scores of an evaluation; None when they are."""
  needed = _SCORES | (_SAMPLED if scores.get('samples', 1) != 1 else {})
  if fault := _fault_of_fields(scores, needed):
    return fault
  if scores.get('samples', 1) < 1:
    return f"field 'samples' is {scores['samples']}"
  if 'relative_error' in scores and 'non_number_ratio' not in scores:
    return "field 'non_number_ratio' is missing"

  for name, group in (scores.get('by_group') or {}).items():
    if not isinstance(group, dict):
      return f'group {name!r}: {type(group).__name__} in place of counts'
    if fault := _fault_of_fields(group, _COUNTS):
      return f'group {name!r}: {fault}'
    if not group['n']:
      return f'group {name!r}: it is empty'

  for kind in METRICS:
    for k, share in scores.get(kind, {}).items():
      if not re.fullmatch('[0-9]{1,9}', k) or not isinstance(share, float | int):
        return f'field {kind!r} holds {k!r}: {share!r}'
  return None


def _fault_of_fields(part: dict, needed: dict) -> str | None:
  """Why `part`, the scores of a benchmark or of a group, is unsound; None when it is sound."""
  for key, kind in (needed | _OPTIONAL).items():
    if key in needed and key not in part:
      return f'field {key!r} is missing'
    if key in part and (not isinstance(part[key], kind) or isinstance(part[key], bool)):  # True is an int to Python
      return f'field {key!r} is {type(part[key]).__name__}'

  n, accuracy = part['n'], part['accuracy']
  is_sound = accuracy is None if n == 0 else accuracy is not None and 0 <= accuracy <= 1
  if not 0 <= n < 2**53 or not is_sound:  # a float holds integers below 2**53 exactly
    return f'accuracy {accuracy!r} of {n} answers'
  return None
