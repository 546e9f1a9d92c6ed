"""The HTML page of runs: tables, bars, groups, loss curves, and every problem with its answer."""

import dataclasses
import os
from collections.abc import Iterable

from mathqwen import files, page
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, records
from mathqwen.evals.report import bars, curves
from mathqwen.evals.report.formats import ReportTable
from mathqwen.evals.report.measured import MeasuredRun
from mathqwen.evals.samples import METRICS

_FIELDS = ('id', 'question', 'response', 'extracted', 'gold', 'correct', 'reason', 'tokens', 'truncated', 'groups')
_SCORES = ('n', 'correct', 'problems', 'samples', *METRICS, 'intervals95', 'lengths', 'thinking_cut')
# The choices of the page, with the keys of `choices` in report.js.
_VERDICTS = {
  'all': 'all',
  'right': 'right',
  'wrong': 'wrong, no answer included',
  'unextractable': 'no answer',
  'undecided': 'undecided',
  'truncated': 'cut off',
}
_LABELS = {'set': 'run and benchmark', 'group': 'group', 'find': 'text in question or answer', 'show': 'verdict'}


def to_html(
  title: str,
  runs: list[MeasuredRun],
  tables: list[ReportTable],
  metrics: Iterable[str | os.PathLike] = (),
  notes: Iterable[str] = (),
) -> str:
  """The whole file. metrics: metrics.jsonl files to draw; notes: what the reader should know is missing.

  UserError: when a record has no verdict, or when there are no losses in one of `metrics`.
  """
  sets = []
  notes = list(notes)
  for run in runs:
    for name, file in run.files.items():
      found = file.with_name('records.jsonl')
      if found.exists():
        sets.append(problems(run.label, name, found) | {'scores': _shown_scores(run.scores[name])})
      else:
        notes.append(f'{run.label}, {benchmarks.shown(name).title}: no records.jsonl beside {file}')
  drawn, missing = _curves_of(runs)
  drawn += [curves.read_curve(files.path(path), str(path)) for path in metrics]
  notes += missing

  comparison, *measured = tables
  # What was measured comes first, then the problems, and what is compared with it last.
  sections = {
    'measured': ('Measured', '\n'.join(map(_table, measured[:1]))),
    'problems': ('Problems', page.notes(notes) + (_browser(sets) if sets else '')),
    'details': ('Details', '\n'.join(map(_table, measured[1:]))),
    'bars': ('Beside the published systems', bars.beside_published(runs)),
    'groups': ('By group', bars.by_group(runs)),
    'loss': ('Loss', f'<div class="panels">{"".join(map(curves.draw, drawn))}</div>' if drawn else ''),
    'tables': ('Table', _table(_measured_first(comparison))),
  }
  return page.document(title, sections, sets, 'report.js')


def _curves_of(runs: list[MeasuredRun]) -> tuple[list[curves.Curve], list[str]]:
  """The loss curves of the workdirs that the models are from, and notes on those that cannot be read."""
  found = []
  notes = []
  seen = set()
  for run in runs:
    for name in run.files:
      workdir, is_checkpoint, _ = str(run.scores[name].get('model')).partition('/checkpoints/')
      if not is_checkpoint or workdir in seen:
        continue
      seen.add(workdir)
      try:
        found.append(curves.read_curve(files.path(workdir) / 'metrics.jsonl', workdir))
      except UserError as error:
        notes.append(f'{run.label}: no loss curve: {error}')
  return found, notes


def problems(run: str, benchmark: str, path: files.AnyPath) -> dict:
  """The records of a file as the script takes them: `fields` and, for each record, a row of these.

  UserError: when a record has no verdict.
  """
  chosen = benchmarks.shown(benchmark)
  rows = []
  for number, record in enumerate(records.read(path).records, 1):
    if not isinstance(record.get('correct'), bool):
      raise UserError(f'{path}: record {number} has no verdict; `mathqwen grade` gives it one')
    known = {
      'id': str(number if record.get('id') is None else record['id']),
      'groups': chosen.groups_of(record),
      'extracted': None if record.get('extracted') is None else str(record['extracted']),
      'question': None if record.get('question') is None else str(record['question']),
    }
    rows.append([known.get(field, record.get(field)) for field in _FIELDS])
  return {'run': run, 'benchmark': chosen.title, 'fields': _FIELDS, 'rows': rows}


def _shown_scores(scores: dict) -> dict:
  """What of the scores travels with the problems: metrics of several answers with intervals, and lengths."""
  return {key: scores[key] for key in _SCORES if key in scores}


def _browser(sets: list[dict]) -> str:
  """The problems. There is a choice of undecided answers only where there are some."""
  reasons = (row[_FIELDS.index('reason')] for problem_set in sets for row in problem_set['rows'])
  has_undecided = any(str(reason).startswith('undecided') for reason in reasons)
  choices = {key: name for key, name in _VERDICTS.items() if has_undecided or key != 'undecided'}
  return page.browser(sets, choices, 'problems', _LABELS)


def _measured_first(table: ReportTable) -> ReportTable:
  return dataclasses.replace(table, rows=sorted(table.rows, key=lambda row: row[-1] != 'measured'))


def _table(found: ReportTable) -> str:
  return page.table(found.title, found.header, found.rows, [row[-1] == 'measured' for row in found.rows])
