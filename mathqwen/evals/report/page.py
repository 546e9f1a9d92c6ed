"""One HTML page of runs that needs nothing else: tables, bars, groups, loss curves, and every problem with its answer.

The records travel gzipped, in base64, so that nothing in them can end the element that holds them. The script puts them
into the page as text nodes only, and a Content-Security-Policy allows no other script and no request.
"""

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
import os
from collections.abc import Iterable

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, records
from mathqwen.evals.report import bars, curves
from mathqwen.evals.report.formats import ReportTable
from mathqwen.evals.report.measured import MeasuredRun

_FIELDS = ('id', 'question', 'response', 'extracted', 'gold', 'correct', 'reason', 'tokens', 'truncated', 'groups')
# The choices of the page, with the keys of VERDICTS in report.js.
_VERDICTS = {
  'all': 'all',
  'right': 'right',
  'wrong': 'wrong',
  'unextractable': 'no answer found',
  'truncated': 'cut off',
}


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
        sets.append(problems(run.label, name, found))
      else:
        notes.append(f'{run.label}, {benchmarks.shown(name).title}: no records.jsonl beside {file}')
  drawn, missing = _curves_of(runs)
  drawn += [curves.read_curve(files.path(path), str(path)) for path in metrics]
  notes += missing

  sections = {
    'tables': ('Table', '\n'.join(map(_table_html, tables))),
    'bars': ('Beside the published systems', bars.beside_published(runs)),
    'groups': ('By group', bars.by_group(runs)),
    'loss': ('Loss', f'<div class="panels">{"".join(map(curves.draw, drawn))}</div>' if drawn else ''),
    'problems': ('Problems', _notes_html(notes) + (_browser(sets) if sets else '')),
  }
  return _document(title, {key: section for key, section in sections.items() if section[1]}, sets)


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


def _document(title: str, sections: dict[str, tuple[str, str]], sets: list[dict]) -> str:
  """sections: {id: (heading, HTML)}."""
  links = ''.join(f'<li><a href="#{key}">{name}</a></li>' for key, (name, _) in sections.items())
  body = '\n'.join(
    f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2>\n{text}</section>'
    for key, (name, text) in sections.items()
  )
  style = _asset('report.css')
  script = _asset('report_math.js') + _asset('report.js')
  # Our script alone may run, by its hash; nothing may be fetched.
  sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sha}'; base-uri 'none'; form-action 'none'"
  )
  packed = f'<script type="text/plain" id="records">{pack(sets)}</script>\n<script>{script}</script>' if sets else ''
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{body}
</main>
{packed}
</body>
</html>
"""


def _asset(name: str) -> str:
  return (importlib.resources.files('mathqwen') / 'assets' / name).read_text(encoding='utf-8')


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


def pack(sets: list[dict]) -> str:
  """The problems as gzipped JSON in base64; the same problems give the same text."""
  # json.dumps escapes all but ASCII, so half of a surrogate pair stays an escape.
  text = json.dumps(sets, separators=(',', ':'))
  return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _table_html(table: ReportTable) -> str:
  head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
  rows = []
  for row in table.rows:
    first, *rest = row
    ours = ' class="ours"' if row[-1] == 'measured' else ''
    cells = ''.join(f'<td>{html.escape(cell)}</td>' for cell in rest)
    rows.append(f'<tr{ours}><th scope="row">{bars.breakable(first)}</th>{cells}</tr>\n')
  caption = f'<caption>{html.escape(table.title)}</caption>'
  # tabindex: a box that scrolls must be reached with the keyboard, too.
  region = f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(table.title)}">'
  return f'{region}<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'


def _notes_html(notes: list[str]) -> str:
  return '\n'.join(f'<p class="soft note">{html.escape(note)}</p>' for note in notes)


def _browser(sets: list[dict]) -> str:
  """The controls and the empty list, which the script fills."""
  radios = ''.join(
    f'<label><input type="radio" name="show" value="{key}">{name} <span id="count-{key}"></span></label>'
    for key, name in _VERDICTS.items()
  )
  total = sum(len(problem_set['rows']) for problem_set in sets)
  return f"""<noscript><p>The {total:,} problems need JavaScript.</p></noscript>
<div id="browser" hidden>
<div class="controls">
<label>run and benchmark <select id="set"></select></label>
<label>group <select id="group"></select></label>
<label class="find">text in question or answer <input id="find" type="search" autocomplete="off"></label>
</div>
<fieldset><legend>verdict</legend>{radios}</fieldset>
<p class="soft keys"><kbd>/</kbd> finds, <kbd>Tab</kbd> goes to a problem, <kbd>↓</kbd> <kbd>↑</kbd> to the next and the
previous one, <kbd>Enter</kbd> opens and closes it. The address keeps what is shown.</p>
<ol id="items" class="items" aria-label="Problems"></ol>
<div class="pager"><button id="back" type="button">← previous</button><span id="page"></span>
<button id="next" type="button">next →</button></div>
</div>
<p id="status" class="soft" role="status"></p>
"""
