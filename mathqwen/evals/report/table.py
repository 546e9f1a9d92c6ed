"""Table 12 of the Qwen report beside measured rows, as Markdown, LaTeX and a page.

The published figures stand with each benchmark in evals/tasks/. Every other figure is read from a `scores.json`, which
is computed from records.
"""

import os
from collections.abc import Iterable

from mathqwen import files
from mathqwen.errors import report
from mathqwen.evals import asked, benchmarks
from mathqwen.evals.report import page
from mathqwen.evals.report.formats import ReportTable, to_latex, to_markdown
from mathqwen.evals.report.intervals import interval
from mathqwen.evals.report.measured import (
  MeasuredRun,
  count_text,
  covers_benchmark,
  part_text,
  read_runs,
  samples_of,
)
from mathqwen.evals.report.table12 import published_columns, published_rows, sources
from mathqwen.evals.samples import SHOWN_METRICS

Paths = str | os.PathLike | Iterable[str | os.PathLike]  # scores.json files, or directories that hold some


def table(paths: Paths, out: str | os.PathLike | None = None, metrics: Iterable[str | os.PathLike] = ()) -> str:
  """Table 12 with the measured rows of `paths`, as Markdown. No paths: the published rows alone.

  With `out`, that directory receives table.md, table.tex and table.html: a page with all problems, and with the loss
  curves of `metrics` (metrics.jsonl files) and of the models' workdirs, where these can be read.
  Prints notes on unfinished evaluations to standard error.
  UserError: when a path has no scores, or scores that are not those of an evaluation.
  """
  runs, notes = _read_and_report(paths)
  tables = build(runs)
  markdown = to_markdown(tables)
  if out is not None:
    title = 'Table 12, and what was measured' if runs else 'Table 12'
    html = page.to_html(title, runs, tables, metrics, notes)
    for name, text in {'table.md': markdown, 'table.tex': to_latex(tables), 'table.html': html}.items():
      # backslashreplace: a model may have written half of a surrogate pair, which UTF-8 cannot hold.
      files.write_atomically(files.path(out) / name, text.encode('utf-8', 'backslashreplace'))
  return markdown


def after_evaluation(paths: Paths) -> str:
  """What `evaluate` prints when it is done: the measured rows, as Markdown.

  The rows of Table 12 follow only when at least one run answered all problems of one of its benchmarks: they cannot be
  compared with the first few problems. Otherwise a line says that they were left out, and how to see them.
  UserError: as `table`.
  """
  runs, _ = _read_and_report(paths)
  columns = _table_columns(runs)
  details = _samples_tables(runs, columns) + _against_tables(runs, columns) + _group_tables(runs, columns)
  compared = [run.scores[name] for run in runs for name in published_columns(run.scores) if name in run.scores]
  if any(map(covers_benchmark, compared)):
    return to_markdown([_brief_table(runs, columns), _comparison_table(runs, columns), *details])
  return to_markdown([_brief_table(runs, columns), *details]) + f'\n{_why_unpublished(runs)}\n'


def build(runs: list[MeasuredRun]) -> list[ReportTable]:
  """All tables of `mathqwen table`: Table 12, then the details of the measured runs."""
  columns = _table_columns(runs)
  tables = [_comparison_table(runs, columns)]
  if any(run.scores for run in runs):
    tables.append(_runs_table(runs, columns))
  for make in (_samples_tables, _against_tables, _length_tables, _group_tables):
    tables += make(runs, columns)
  return tables


def _read_and_report(paths: Paths) -> tuple[list[MeasuredRun], list[str]]:
  runs, notes = read_runs([paths] if isinstance(paths, str | os.PathLike) else paths)
  for note in notes:
    report(note)
  return runs, notes


def _table_columns(runs: list[MeasuredRun]) -> list[str]:
  """The benchmarks of Table 12, and those that were measured."""
  measured = {name for run in runs for name in run.scores}
  known = [name for name in benchmarks.BENCHMARKS if name in published_columns() or name in measured]
  return known + sorted(measured - set(known))  # the others are files of the user's


def _why_unpublished(runs: list[MeasuredRun]) -> str:
  """The line in place of the published rows: `... gsm8k: 16 of 1,319 problems ...`."""
  parts = []
  for run in runs:
    for name in published_columns(run.scores):
      if name in run.scores:
        problems = run.scores[name]['n'] // samples_of(run.scores[name])
        parts.append(f'{name}: {problems:,} of {benchmarks.shown(name).size:,} problems')
  why = 'are of whole benchmarks' if parts else 'are of other benchmarks'
  measured = f' ({"; ".join(parts)})' if parts else ''
  return f'The published rows of Table 12 {why}{measured} and are left out; `mathqwen table DIR` shows them.'


def _comparison_table(runs: list[MeasuredRun], columns: list[str]) -> ReportTable:
  """Table 12 itself: published rows, then measured ones."""
  rows = []
  for model, size, accuracies in published_rows(columns):
    cells = [_percent(accuracies.get(name), scale=1) for name in columns]
    rows.append([model, size, *cells, 'published'])
  for run in runs:
    cells = [_measured_cell(run.scores.get(name)) for name in columns]
    rows.append([run.label, '-', *cells, 'measured'])
  titles = [benchmarks.shown(name).title for name in columns]
  title = f'Accuracy in % (published: {sources(columns)}; measured: ± standard error)'
  return ReportTable(title, ['model', 'params', *titles, 'source'], rows)


_BRIEF = ['run', 'benchmark', 'n', 'of', 'accuracy', '95% interval', 'no answer', 'truncated']
_RUNS = [
  'run', 'benchmark', 'n', 'of', 'accuracy', 'std. error', '95% interval', 'no answer', 'undecided', 'truncated',
  'prompt', 'rule', 'dtype', 'decoding', 'new tokens', 'version', 'commit', 'relative error, non-number ratio',
]  # fmt: skip


def _brief_table(runs: list[MeasuredRun], columns: list[str]) -> ReportTable:
  rows = []
  for run in runs:
    for name in columns:
      if name in run.scores:
        cells = _run_cells(run.label, name, run.scores[name])
        rows.append([cells[column] for column in _BRIEF])
  return ReportTable('Measured, accuracy in %', _BRIEF, rows)


def _runs_table(runs: list[MeasuredRun], columns: list[str]) -> ReportTable:
  """How each accuracy was measured."""
  cells = [_run_cells(run.label, name, run.scores[name]) for run in runs for name in columns if name in run.scores]
  # Few runs have undecided answers, and only Math401 has the errors.
  seldom = {column for column in ('undecided', _RUNS[-1]) if all(row[column] in ('-', '0') for row in cells)}
  header = [column for column in _RUNS if column not in seldom]
  return ReportTable(
    'Measured runs; answers that are missing or undecided count as wrong',
    header,
    [[row[column] for column in header] for row in cells],
  )


def _run_cells(label: str, name: str, scores: dict) -> dict[str, str]:
  """One row of `_runs_table`, by column."""
  decoding = scores.get('decoding') or {}
  samples = samples_of(scores)
  low, high = interval(scores, samples) if scores['n'] else (None, None)
  errors = '-'
  if 'relative_error' in scores:
    errors = f'{scores["relative_error"]:.3f}, {scores["non_number_ratio"]:.3f}'
  values = {
    'run': label,
    'benchmark': benchmarks.shown(name).title,
    'n': count_text(scores, samples),
    'of': benchmarks.shown(name).size,
    'accuracy': _percent(scores['accuracy']),
    'std. error': _percent(scores['stderr'], digits=2),
    '95% interval': f'{_percent(low)} to {_percent(high)}',
    'no answer': scores.get('unextractable'),
    'undecided': (scores.get('verdicts') or {}).get('undecided'),
    'truncated': scores.get('truncated'),
    'prompt': asked.text(scores),
    'rule': scores.get('rule'),
    'dtype': scores.get('dtype'),
    'decoding': _decoding_text(decoding),
    'new tokens': decoding.get('max_new_tokens'),
    'version': scores.get('version'),
    'commit': scores.get('commit'),
    'relative error, non-number ratio': errors,
  }
  return {column: '-' if value is None else str(value) for column, value in values.items()}


def _decoding_text(decoding: dict) -> str | None:
  """`greedy`, or `temperature 0.7, top_p 0.9, int8 cache`."""
  if not decoding:
    return None
  usual = {'temperature': 0, 'top_p': 1, 'top_k': 0}
  parts = [f'{key} {decoding[key]}' for key, value in usual.items() if decoding.get(key, value) != value]
  if decoding.get('cache_dtype'):
    parts.append(f'{decoding["cache_dtype"]} cache')
  if not decoding.get('temperature'):
    parts.insert(0, 'greedy')
  return ', '.join(parts)


def _samples_tables(runs: list[MeasuredRun], columns: list[str]) -> list[ReportTable]:
  """avg@n, pass@k and maj@k of the runs that have several answers to each problem: one table, or none."""
  found = [(run.label, run.scores[name]) for run in runs for name in columns if samples_of(run.scores.get(name)) > 1]
  if not found:
    return []
  shown: list[tuple[str, int]] = []  # ('avg_at_n', 4), ('pass_at_k', 1), ..., ('maj_at_k', 4), which is of all samples
  for kind in SHOWN_METRICS:
    ks = {
      int(k) for _, scores in found for k in scores.get(kind, ()) if kind != 'maj_at_k' or k == str(scores['samples'])
    }
    shown += [(kind, k) for k in sorted(ks)]
  header = ['run', 'benchmark', 'problems', 'samples', 'temperature']
  header += [f'{kind.partition("_at_")[0]}@{k}' for kind, k in shown]
  rows = []
  for label, scores in found:
    temperature = (scores.get('decoding') or {}).get('temperature', '-')
    counts = [str(scores['problems']), str(scores['samples']), str(temperature)]
    shares = [_sampled_cell(scores, kind, str(k)) for kind, k in shown]
    rows.append([label, benchmarks.shown(scores['benchmark']).title, *counts, *shares])
  title = 'Several answers to each problem: avg@n, pass@k and maj@k in %, with 95% intervals'
  return [ReportTable(title, header, rows)]


def _sampled_cell(scores: dict, kind: str, k: str) -> str:
  """`62.5 (58.1 to 66.7)`; `62.5` for scores of an older version."""
  cell = _percent(scores.get(kind, {}).get(k))
  bounds = scores.get('intervals95', {}).get(kind, {}).get(k)
  return cell if bounds is None else f'{cell} ({_percent(bounds[0])} to {_percent(bounds[1])})'


def _length_tables(runs: list[MeasuredRun], columns: list[str]) -> list[ReportTable]:
  """Accuracy by the length of answers: one table, or none."""
  found = [(run.label, name, lengths) for run in runs for name in columns if (lengths := _lengths(run, name))]
  if not found:
    return []
  edges = sorted({(one['from'], one['below']) for *_, lengths in found for one in lengths['bins']})
  rows = []
  for label, name, lengths in found:
    bins = {(one['from'], one['below']): f'{_percent(one["accuracy"])} (n = {one["n"]})' for one in lengths['bins']}
    means = [lengths['mean'][kind]['tokens'] for kind in ('right', 'wrong')]
    means = ['-' if mean is None else f'{mean:,.0f}' for mean in means]
    rows.append([label, benchmarks.shown(name).title, *means, *(bins.get(edge, '-') for edge in edges)])
  header = ['run', 'benchmark', 'tokens if right', 'tokens if wrong']
  header += [f'{low:,} to {max(low, below - 1):,}' for low, below in edges]
  return [ReportTable('Accuracy in % by the length of answers in tokens', header, rows)]


def _lengths(run: MeasuredRun, name: str) -> dict | None:
  return run.scores.get(name, {}).get('lengths')


def _against_tables(runs: list[MeasuredRun], columns: list[str]) -> list[ReportTable]:
  """The accuracies without the problems that training data hold: one table, or none."""
  rows = []
  for run in runs:
    for name in columns:
      scores = run.scores.get(name) or {}
      if found := scores.get('against'):
        rest, only = found['without'], found['only']
        spread = '' if rest['stderr'] is None else f' ± {_percent(rest["stderr"])}'
        shares = [_percent(scores['accuracy']), _percent(rest['accuracy']) + spread, _percent(only['accuracy'])]
        about = [run.label, benchmarks.shown(name).title, ', '.join(found['data']), str(found['marked'])]
        rows.append([*about, *shares])
  header = ['run', 'benchmark', 'training data', 'problems held', 'all', 'without them', 'them alone']
  return [ReportTable('Problems that training data hold, accuracy in %', header, rows)] if rows else []


def _group_tables(runs: list[MeasuredRun], columns: list[str]) -> list[ReportTable]:
  """The accuracies by group, a table for each benchmark that has groups."""
  tables = []
  for name in columns:
    grouped = [run for run in runs if run.scores.get(name, {}).get('by_group')]
    if not grouped:
      continue
    groups = list(dict.fromkeys(group for run in grouped for group in run.scores[name]['by_group']))
    rows = [[group, *(_group_cell(run.scores[name], group) for run in grouped)] for group in groups]
    labels = [run.label for run in grouped]
    tables.append(ReportTable(f'{benchmarks.shown(name).title} by group', ['group', *labels], rows))
  return tables


def _group_cell(scores: dict, group: str) -> str:
  """`96.0 (n = 25)`"""
  counts = scores['by_group'].get(group)
  if counts is None:
    return '-'
  return f'{_percent(counts["accuracy"])} (n = {count_text(counts, samples_of(scores))})'


def _measured_cell(scores: dict | None) -> str:
  """`62.5 ± 1.3`, and how many problems where it was not the whole benchmark: `60.0 ± 15.5 (n = 10)`."""
  if scores is None or scores['accuracy'] is None:
    return '-'
  return f'{_percent(scores["accuracy"])} ± {_percent(scores["stderr"])}{part_text(scores)}'


def _percent(value: float | None, scale: float = 100, digits: int = 1) -> str:
  return '-' if value is None else f'{scale * value:.{digits}f}'
