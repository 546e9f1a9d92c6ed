"""Table 12 of the Qwen report beside measured rows: Markdown, LaTeX and HTML.

The published figures are in evals/tasks/, with each benchmark; every other one is read from a `scores.json`, which is
computed from records.
"""

import dataclasses
import os
import pathlib
import re
import sys

from mathqwen.errors import UserError
from mathqwen.evals.benchmarks import BENCHMARKS
from mathqwen.evals.folder import is_unfinished
from mathqwen.evals.records import read_json
from mathqwen.evals.report import page as report
from mathqwen.files import write_atomically

SOURCE = 'Qwen Technical Report, arXiv 2309.16609, Table 12'
PUBLISHED_COLUMNS = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.table12)
_SYSTEMS = dict.fromkeys(system for name in PUBLISHED_COLUMNS for system in BENCHMARKS[name].table12)
# Model, parameters, accuracy in % on each of PUBLISHED_COLUMNS; None: not reported.
PUBLISHED = tuple(
  (*system, *(BENCHMARKS[name].table12.get(system) for name in PUBLISHED_COLUMNS)) for system in _SYSTEMS
)


@dataclasses.dataclass(frozen=True)
class Table:
  title: str
  header: list[str]
  rows: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Run:
  """What one directory holds: its scores by benchmark, and the files they were read from."""

  label: str
  scores: dict[str, dict]
  files: dict[str, pathlib.Path]


def table(paths, out: str | os.PathLike | None = None, metrics=()) -> str:
  """Table 12 with the measured rows of `paths` (scores.json files, or directories holding some), as Markdown.

  With `out`, that directory receives table.md, table.tex and table.html, a page with all problems (evals/report.py) and
  the loss curves of the workdirs of the models, as far as they are here, and of the `metrics` (metrics.jsonl files).
  """
  paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
  runs, notes = _read(paths)
  for note in notes:
    print(note, file=sys.stderr)
  tables = build(runs)
  markdown = to_markdown(tables)
  if out is not None:
    texts = {'table.md': markdown, 'table.tex': to_latex(tables), 'table.html': to_html(runs, tables, metrics, notes)}
    for name, text in texts.items():
      write_atomically(pathlib.Path(out) / name, text.encode('utf-8', 'backslashreplace'))  # a lone surrogate
  return markdown


def build(runs: list[Run]) -> list[Table]:
  measured = {name for run in runs for name in run.scores}
  columns = [name for name in BENCHMARKS if name in PUBLISHED_COLUMNS or name in measured]
  comparison = []
  for model, size, *accuracies in PUBLISHED:
    cells = dict(zip(PUBLISHED_COLUMNS, accuracies, strict=True))
    comparison.append([model, size, *(_percent(cells.get(name)) for name in columns), 'published'])
  runs_rows = []
  for run in runs:
    comparison.append([run.label, '-', *(_measured(run.scores.get(name)) for name in columns), 'measured'])
    runs_rows += [_run_row(run.label, name, run.scores[name]) for name in columns if name in run.scores]
  titles = [BENCHMARKS[name].title for name in columns]
  title = f'Accuracy in % (published: {SOURCE}; measured: ± standard error)'
  tables = [Table(title, ['model', 'params', *titles, 'source'], comparison)]
  if runs_rows:
    header = [
      'run',
      'benchmark',
      'n',
      'of',
      'accuracy',
      'std. error',
      '95% interval',
      'no answer',
      'truncated',
      'prompt',
      'rule',
    ]
    header += ['dtype', 'decoding', 'new tokens', 'version', 'commit']
    if any(row[-1] != '-' for row in runs_rows):
      header = [*header, 'relative error, non-number ratio']
    else:
      runs_rows = [row[:-1] for row in runs_rows]
    tables.append(Table('Measured runs', header, runs_rows))
  tables += _samples_table(runs, columns)
  for name in columns:
    by_group = {run.label: run.scores.get(name, {}).get('by_group') for run in runs}
    grouped = {label: found for label, found in by_group.items() if found}
    if grouped:
      samples = {run.label: _samples(run.scores.get(name)) for run in runs}
      groups = list(dict.fromkeys(group for found in grouped.values() for group in found))
      rows = [
        [group, *(_group(found.get(group), samples[label]) for label, found in grouped.items())] for group in groups
      ]
      tables.append(Table(f'{BENCHMARKS[name].title} by group', ['group', *grouped], rows))
  return tables


def _read(paths) -> tuple[list[Run], list[str]]:
  """A run is a directory, labelled by its model, and by its path too where labels would coincide. And what is not in
  the table."""
  by_run: dict[tuple[str, pathlib.Path], Run] = {}
  notes = []
  for path in map(pathlib.Path, paths):
    files = sorted(path.rglob('scores.json')) if path.is_dir() else [path]
    without = [file for file in path.rglob('records.jsonl') if file.with_name('scores.json') not in files]
    unfinished = [file.parent for file in sorted(without) if is_unfinished(file)]
    for folder in unfinished:
      notes.append(f'{folder}: not finished, and not in the table; the same `mathqwen evaluate` continues it')
    if not files and not unfinished:
      raise UserError(f'{path}: no scores.json below it; give the --out directory of an evaluation')
    for file in files:
      scores = read_json(file)
      if what := _unsound(scores):
        raise UserError(f'{file}: {what}; evaluate or grade again to write it')
      if scores['benchmark'] not in BENCHMARKS:
        raise UserError(f'{file}: unknown benchmark {scores["benchmark"]!r}; there are: {", ".join(BENCHMARKS)}')
      notes += _note(file, scores)
      folder = file.resolve().parents[1] if file.parent.name == scores['benchmark'] else file.resolve().parent
      model = str(scores.get('model') or folder.name)
      run = by_run.setdefault((model, folder), Run(model, {}, {}))
      run.scores[scores['benchmark']], run.files[scores['benchmark']] = scores, file
  if notes and not by_run:
    raise UserError('; '.join(notes))
  names = [name for name, _ in by_run]
  runs = [
    run if names.count(name) == 1 else dataclasses.replace(run, label=f'{name} ({folder})')
    for (name, folder), run in by_run.items()
  ]
  return runs, notes


def _note(file: pathlib.Path, scores: dict) -> list[str]:
  """Where the scores are not of all answers that there are, or that there will be."""
  path = file.with_name('records.jsonl')
  count = sum(map(bool, path.read_bytes().split(b'\n'))) if path.exists() else scores['n']
  if count != scores['n']:
    return [
      f'{file.parent}: the scores are of {scores["n"]:,} answers, and {count:,} are there; evaluate or grade again'
    ]
  return [f'{file.parent}: not finished; the scores are of what is answered so far'] if is_unfinished(file) else []


_COUNTS = {'n': int, 'correct': int, 'accuracy': float | int | None}
_SCORES = {'benchmark': str, **_COUNTS, 'stderr': float | int | None, 'rule': str}
_SAMPLED = {'samples': int, 'problems': int, 'pass_at_k': dict, 'maj_at_k': dict}
_OPTIONAL = {
  'stderr': float | int | None, 'by_group': dict | None, 'decoding': dict | None, 'samples': int, 'pass_at_k': dict,
  'maj_at_k': dict, 'relative_error': float | int, 'non_number_ratio': float | int,
}  # fmt: skip


def _unsound(scores: dict) -> str | None:
  """What keeps this from being the scores of an evaluation."""
  needed = _SCORES | (_SAMPLED if scores.get('samples', 1) != 1 else {})
  if what := _unsound_part(scores, needed):
    return what
  if scores.get('samples', 1) < 1:
    return f"field 'samples' is {scores['samples']}"
  if 'relative_error' in scores and 'non_number_ratio' not in scores:
    return "field 'non_number_ratio' is missing"
  for name, group in (scores.get('by_group') or {}).items():
    what = _unsound_part(group, _COUNTS) if isinstance(group, dict) else f'{type(group).__name__} in place of counts'
    if what or not group['n']:
      return f'group {name!r}: {what or "it is empty"}'
  for kind in ('pass_at_k', 'maj_at_k'):
    for k, share in scores.get(kind, {}).items():
      if not re.fullmatch('[0-9]{1,9}', k) or not isinstance(share, float | int):
        return f'field {kind!r} holds {k!r}: {share!r}'
  return None


def _unsound_part(part: dict, needed: dict) -> str | None:
  for key, kind in (needed | _OPTIONAL).items():
    if key in needed and key not in part:
      return f'field {key!r} is missing'
    if key in part and (not isinstance(part[key], kind) or isinstance(part[key], bool)):
      return f'field {key!r} is {type(part[key]).__name__}'
  n, accuracy = part['n'], part['accuracy']
  if not 0 <= n < 2**53 or (accuracy is not None) != (n > 0) or (n and not 0 <= accuracy <= 1):
    return f'accuracy {accuracy!r} of {n} answers'
  return None


def _samples_table(runs: list[Run], columns: list[str]) -> list[Table]:
  """pass@k and maj@k, where a run has several answers to each problem."""
  found = [(run.label, run.scores[name]) for run in runs for name in columns if _samples(run.scores.get(name)) > 1]
  if not found:
    return []
  numbers = {kind: sorted({int(k) for _, scores in found for k in scores[kind]}) for kind in ('pass_at_k', 'maj_at_k')}
  shown = [(kind, k) for kind, ks in numbers.items() for k in ks]
  header = ['run', 'benchmark', 'problems', 'samples', 'temperature']
  header += [f'{kind.removesuffix("_at_k")}@{k}' for kind, k in shown]
  rows = []
  for label, scores in found:
    said = [scores['problems'], scores['samples'], (scores.get('decoding') or {}).get('temperature', '-')]
    cells = [_percent(scores[kind].get(str(k)), 100) for kind, k in shown]
    rows.append([label, BENCHMARKS[scores['benchmark']].title, *map(str, said), *cells])
  return [Table('Several answers to each problem: pass@k and maj@k in %', header, rows)]


def _samples(scores: dict | None) -> int:
  return (scores or {}).get('samples', 1)


def _n(got: dict, samples: int) -> str:
  """`1319`, or `1319 x 4` for four answers to each."""
  return str(got['n']) if samples == 1 else f'{got["n"] // samples} x {samples}'


def _part(scores: dict) -> str:
  """What `_n` says, unless that is each problem of the benchmark once."""
  samples = _samples(scores)
  return '' if samples == 1 and scores['n'] == BENCHMARKS[scores['benchmark']].size else _n(scores, samples)


def _run_row(label: str, name: str, scores: dict) -> list[str]:
  decoding = scores.get('decoding') or {}
  errors = '-'
  if 'relative_error' in scores:
    errors = f'{scores["relative_error"]:.3f}, {scores["non_number_ratio"]:.3f}'
  said = [scores.get(key) for key in ('unextractable', 'truncated', 'prompt', 'rule', 'dtype')]
  said += [_decoding(decoding), decoding.get('max_new_tokens'), scores.get('version'), scores.get('commit')]
  of, accuracy, stderr = BENCHMARKS[name].size, scores['accuracy'], scores['stderr']
  samples = _samples(scores)
  figures = [_n(scores, samples), str(of or '-'), _percent(accuracy, 100), _percent(stderr, 100, 2)]
  low, high = report.interval(scores, samples) if scores['n'] else (None, None)
  figures.append(f'{_percent(low, 100)} to {_percent(high, 100)}')
  return [label, BENCHMARKS[name].title, *figures, *('-' if value is None else str(value) for value in said), errors]


def _decoding(decoding: dict) -> str | None:
  """`greedy`, or `temperature 0.7, top_p 0.9, int8 cache`."""
  if not decoding:
    return None
  usual = {'temperature': 0, 'top_p': 1, 'top_k': 0}
  said = [f'{key} {decoding[key]}' for key, value in usual.items() if decoding.get(key, value) != value]
  said += [f'{decoding["cache_dtype"]} cache'] if decoding.get('cache_dtype') else []
  return ', '.join(said if decoding.get('temperature') else ['greedy', *said])


def _percent(value: float | None, scale: float = 1, digits: int = 1) -> str:
  return '-' if value is None else f'{scale * value:.{digits}f}'


def _measured(scores: dict | None) -> str:
  """`62.5 ± 1.3`, and how many problems where it was not the whole benchmark: `60.0 ± 15.5 (n = 10)`."""
  if scores is None or scores['accuracy'] is None:
    return '-'
  part = f' (n = {n})' if (n := _part(scores)) else ''
  return f'{_percent(scores["accuracy"], 100)} ± {_percent(scores["stderr"], 100)}{part}'


def _group(got: dict | None, samples: int) -> str:
  """`96.0 (n = 25)`"""
  return '-' if got is None else f'{_percent(got["accuracy"], 100)} (n = {_n(got, samples)})'


def to_markdown(tables: list[Table]) -> str:
  """Columns padded, so that it reads on a terminal too."""
  blocks = []
  for one in tables:
    cells = [[c.replace('|', '\\|').replace('\n', ' ') for c in row] for row in [one.header, *one.rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    pipes = [f'| {" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |' for row in cells]
    rule = f'| {" | ".join("-" * w for w in widths)} |'
    blocks.append('\n'.join([f'**{one.title}**', '', pipes[0], rule, *pipes[1:]]))
  return '\n\n'.join(blocks) + '\n'


_LATEX = str.maketrans(
  {c: f'\\{c}' for c in '&%$#_{}'}
  | {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$'}
)


def to_latex(tables: list[Table]) -> str:
  """Needs the package booktabs."""
  blocks = []
  for one in tables:
    rows = [' & '.join(cell.translate(_LATEX) for cell in row) + r' \\' for row in [one.header, *one.rows]]
    body = '\n'.join([r'\toprule', rows[0], r'\midrule', *rows[1:], r'\bottomrule'])
    columns = 'l' * len(one.header)
    blocks.append(
      f'\\begin{{table}}\n\\caption{{{one.title.translate(_LATEX)}}}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}'
    )
  return '\n\n'.join(blocks) + '\n'


def to_html(runs: list[Run], tables: list[Table], metrics=(), notes=()) -> str:
  """One file with nothing to fetch."""
  sets, notes, groups, curves = [], list(notes), {}, {}
  for run in runs:
    for name, file in run.files.items():
      found, scores, what = file.with_name('records.jsonl'), run.scores[name], f'{run.label}, {BENCHMARKS[name].title}'
      if found.exists():
        sets.append(report.problems(run.label, name, found))
      else:
        notes.append(f'{what}: no records.jsonl beside {file}')
      samples = _samples(scores)
      for group, got in (scores.get('by_group') or {}).items():
        title = f'{BENCHMARKS[name].title}{", level" if group.startswith("Level ") else _KINDS.get(name, "")}'
        bar = run.label, _n(got, samples), got['accuracy'], report.interval(got, samples)
        groups.setdefault(title, {}).setdefault(group, []).append(bar)
      workdir, inside, _ = str(scores.get('model')).partition('/checkpoints/')
      path = pathlib.Path(workdir) / 'metrics.jsonl'
      if inside and path not in curves:
        curves[path] = None
        try:
          curves[path] = report.read_curve(path, workdir)
        except UserError as error:
          notes.append(f'{run.label}: no loss curve: {error}')
  for path in map(pathlib.Path, metrics):
    curves[path] = report.read_curve(path, str(path))
  title = 'Table 12, and what was measured' if runs else 'Table 12'
  return report.page(title, tables, _panels(runs), groups, [curve for curve in curves.values() if curve], sets, notes)


_KINDS = {name: ', subject' for name, benchmark in BENCHMARKS.items() if ('subject', 'type') in benchmark.groups}


def _panels(runs: list[Run]) -> dict[str, list]:
  """Bars of each benchmark that is published and measured; of the published systems alone where nothing is measured."""
  measured = {name for run in runs for name in run.scores}
  panels = {}
  for column, name in enumerate(PUBLISHED_COLUMNS):
    if name in measured or not measured:
      rows = []
      for model, size, *accuracies in PUBLISHED:
        if accuracies[column] is not None:
          rows.append((f'{model} {size}'.removesuffix(' -'), accuracies[column] / 100, None, False))
      for run in runs:
        scores = run.scores.get(name)
        if scores and scores['n']:
          part = f' (n\u00a0=\u00a0{n})' if (n := _part(scores)) else ''
          rows.append((run.label + part, scores['accuracy'], report.interval(scores, _samples(scores)), True))
      panels[name] = rows
  return panels
