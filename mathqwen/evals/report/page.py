"""One HTML page of runs that needs nothing else: tables, bars, groups, loss curves, and every problem with its answer.

Records travel gzipped, in base64, so nothing in them can end their element; the script makes text nodes of them, and a
Content-Security-Policy lets no other script run and nothing be fetched.
"""

import base64
import dataclasses
import gzip
import hashlib
import html
import importlib.resources
import json
import math
import pathlib

from mathqwen.errors import UserError
from mathqwen.evals import records
from mathqwen.evals.benchmarks import BENCHMARKS

_FIELDS = ('id', 'question', 'response', 'extracted', 'gold', 'correct', 'reason', 'tokens', 'truncated', 'groups')
_SHOWN = ('all', 'right', 'wrong', 'unextractable', 'truncated')  # VERDICTS in report.js
Z = 1.959963984540054  # 97.5% quantile of the standard normal distribution
_TITLES = {'unextractable': 'no answer found', 'truncated': 'cut off'}


@dataclasses.dataclass(frozen=True)
class Curve:
  """Losses of a run, nats per loss token, by step."""

  name: str
  loss: list[tuple[int, float]]
  eval_loss: list[tuple[int, float]]


def read_curve(path: pathlib.Path, name: str) -> Curve:
  """Of a metrics.jsonl; what follows the half line of a killed run is left out."""
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except FileNotFoundError:
    raise UserError(f'{path}: no such file; --metrics names the metrics.jsonl of a run') from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: no text ({error}); --metrics names the metrics.jsonl of a run') from None
  losses: dict[str, dict[int, float]] = {'loss': {}, 'eval_loss': {}}
  for line in lines:
    try:
      values = json.loads(line)
      step = int(values['step'])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
      break
    for key, points in losses.items():
      if isinstance(values.get(key), int | float) and math.isfinite(values[key]):
        points[step] = float(values[key])
  if not any(losses.values()):
    raise UserError(f'{path}: no losses in it; --metrics names the metrics.jsonl of a run')
  return Curve(name, *(sorted(points.items()) for points in losses.values()))


def page(title: str, tables, panels, groups, curves: list[Curve], sets: list[dict], notes: list[str]) -> str:
  """The whole file.

  tables: `table.Table`s; panels: {benchmark: [(label, accuracy, (low, high) or None, measured)]}; groups:
  {title: {group: [(run, n as text, accuracy, (low, high))]}}; sets: see `problems`; notes: what is not shown.
  """
  sections = {'tables': ('Table', '\n'.join(map(_table, tables)))}
  if panels:
    bars = ''.join(_panel(name, rows) for name, rows in panels.items())
    text = 'Accuracy in %. Measured rows have their 95% interval; published ones were given without.'
    sections['bars'] = ('Beside the published systems', f'<p class="soft">{text}</p><div class="panels">{bars}</div>')
  if groups:
    bars = ''.join(_groups(name, found) for name, found in groups.items())
    sections['groups'] = ('By group', f'<div class="panels">{bars}</div>')
  if curves:
    sections['loss'] = ('Loss', f'<div class="panels">{"".join(map(_curve, curves))}</div>')
  browser = '\n'.join(f'<p class="soft">{html.escape(note)}</p>' for note in notes) + (_browser(sets) if sets else '')
  if browser:
    sections['problems'] = ('Problems', browser)
  links = ''.join(f'<li><a href="#{key}">{name}</a></li>' for key, (name, _) in sections.items())
  body = '\n'.join(
    f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2>\n{text}</section>'
    for key, (name, text) in sections.items()
  )
  style, script = _asset('report.css'), _asset('report.js')
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


def problems(run: str, benchmark: str, path: pathlib.Path) -> dict:
  """The records of a file for `page`, as rows of `fields`."""
  chosen = BENCHMARKS[benchmark]
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
  # A lone surrogate stays its JSON escape.
  return base64.b64encode(gzip.compress(json.dumps(sets, separators=(',', ':')).encode(), 6, mtime=0)).decode()


def _table(one) -> str:
  head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in one.header)
  rows = []
  for row in one.rows:
    first, *rest = map(html.escape, row)
    ours = ' class="ours"' if row[-1] == 'measured' else ''
    rows.append(f'<tr{ours}><th scope="row">{first}</th>' + ''.join(f'<td>{cell}</td>' for cell in rest) + '</tr>\n')
  caption = f'<caption>{html.escape(one.title)}</caption>'
  # A box that scrolls is reached with the keyboard, too.
  region = f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(one.title)}">'
  return f'{region}<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'


def _bar(label: str, accuracy: float, interval, ours: bool) -> str:
  whisker = ''
  if interval:
    low, high = (100 * x for x in interval)
    whisker = f'<b style="left:{low:.2f}%;width:{high - low:.2f}%" title="95%: {low:.1f} to {high:.1f}"></b>'
  track = f'<span class="track" aria-hidden="true"><i style="width:{100 * accuracy:.2f}%"></i>{whisker}</span>'
  value = f'<span class="value">{100 * accuracy:.1f}</span>'
  kind = ' class="ours"' if ours else ''
  return f'<li{kind}><span class="label">{html.escape(label)}</span>{track}{value}</li>'


def _panel(name: str, rows) -> str:
  ordered = sorted(rows, key=lambda row: -row[1])
  bars = ''.join(_bar(*row) for row in ordered)
  return f'<figure class="panel"><h3>{html.escape(BENCHMARKS[name].title)}</h3><ul class="bars">{bars}</ul></figure>'


def _groups(title: str, found) -> str:
  several = len({run for rows in found.values() for run, *_ in rows}) > 1
  bars = []
  for group, rows in found.items():
    if several:
      bars.append(f'<li class="group">{html.escape(group)}</li>')
    for run, n, accuracy, reach in rows:
      bars.append(_bar(f'{run if several else group} (n\u00a0=\u00a0{n})', accuracy, reach, True))
  kind = ' several' if several else ''
  return f'<figure class="panel"><h3>{html.escape(title)}</h3><ul class="bars{kind}">{"".join(bars)}</ul></figure>'


def interval(scores: dict, samples: int) -> tuple[float, float]:
  """95% confidence interval of the accuracy in `scores`, of a whole benchmark or of a group.

  Of several samples Wilson's with the effective number of answers: so many independent ones have the standard error
  over problems (Dean and Pagano, 2015). No fewer than the problems, and no more than the answers.
  """
  n, p, stderr = scores['n'], scores['accuracy'], scores.get('stderr')
  if samples > 1:
    n = min(n, max(n / samples, p * (1 - p) / stderr**2)) if stderr else n / samples
  return wilson(n, p * n)


def wilson(n: float, correct: float) -> tuple[float, float]:
  """95% confidence interval of an accuracy (Wilson's score interval): no point at 0% and 100%, and inside of both."""
  z, p = Z, correct / n
  middle = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
  return max(0.0, middle - half), min(1.0, middle + half)


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 640, 300, 50, 28, 34, 12


def _curve(curve: Curve) -> str:
  points = curve.loss + curve.eval_loss
  first, last = min(step for step, _ in points), max(step for step, _ in points)
  high = max(loss for _, loss in points) * 1.05 or 1.0

  def x(step):
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / max(last - first, 1)

  def y(loss):
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * loss / high

  parts = []
  for tick in _ticks(0, high):
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
    parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
  for tick in _ticks(first, last):
    parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{tick:,g}</text>')
  said, key = [], []
  for points, kind, name in ((curve.loss, 'line', 'loss'), (curve.eval_loss, 'line held', 'evaluation loss')):
    if points:
      path = ' '.join(f'{x(step):.1f},{y(loss):.1f}' for step, loss in _thin(points))
      parts.append(f'<polyline class="{kind}" points="{path}"/>')
      if 'held' in kind:
        parts += [f'<circle class="held-dot" r="3" cx="{x(s):.1f}" cy="{y(v):.1f}"/>' for s, v in _thin(points, 40)]
      said.append(
        f'{name} {points[0][1]:.4g} at step {points[0][0]:,} and {points[-1][1]:.4g} at step {points[-1][0]:,}'
      )
      key.append(f'<i class="{kind.removeprefix("line").strip()}"></i>{name}')
  label = html.escape(f'{curve.name}: {"; ".join(said)}')
  svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
  caption = f'{html.escape("; ".join(said))}. Nats per loss token, by step.'
  return (
    f'<figure class="panel"><h3>{html.escape(curve.name)}</h3>{svg}'
    f'<figcaption><span class="key" aria-hidden="true">{"".join(key)}</span><br>{caption}</figcaption></figure>'
  )


def _thin(points, most: int = 1500):
  """Every nth point and the last one."""
  every = -(-len(points) // most)
  return points[:-1:every] + points[-1:]


def _ticks(low: float, high: float) -> list[float]:
  """Four to ten round numbers from low to high."""
  span = max(high - low, 1e-9)
  size = 10 ** math.floor(math.log10(span / 4))
  step = next(size * m for m in (1, 2, 5, 10) if span / (size * m) <= 7)
  return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _browser(sets: list[dict]) -> str:
  radios = ''.join(
    f'<label><input type="radio" name="show" value="{name}">{_TITLES.get(name, name)} '
    f'<span id="count-{name}"></span></label>'
    for name in _SHOWN
  )
  total = sum(len(one['rows']) for one in sets)
  return f"""<noscript><p>The {total:,} problems need JavaScript.</p></noscript>
<div id="browser" hidden>
<div class="controls">
<label>run and benchmark <select id="set"></select></label>
<label>group <select id="group"></select></label>
<label class="find">text in question or answer <input id="find" type="search" autocomplete="off"></label>
</div>
<fieldset><legend>verdict</legend>{radios}</fieldset>
<p class="soft keys"><kbd>/</kbd> finds, <kbd>Tab</kbd> goes to a problem, <kbd>↓</kbd> <kbd>↑</kbd> to the next and the
one before, <kbd>Enter</kbd> opens and closes it. The address keeps what is shown.</p>
<ol id="items" class="items" aria-label="Problems"></ol>
<div class="pager"><button id="back" type="button">← before</button><span id="page"></span>
<button id="next" type="button">next →</button></div>
</div>
<p id="status" class="soft" role="status"></p>
"""
