"""Bars of accuracies for the page: measured runs beside published systems, and groups of problems. HTML as text.

Each run has one colour in all bars: `--run-0` to `--run-5` in report.css, for light and dark. The next six have the
same colours with stripes, then they repeat.
"""

import html

from mathqwen import page
from mathqwen.evals import benchmarks
from mathqwen.evals.report.intervals import interval
from mathqwen.evals.report.measured import MeasuredRun, count_text, part_text, samples_of
from mathqwen.evals.report.table12 import published_columns, published_rows

_COLOURS = 6
_NO_BREAK = '\u00a0'


def beside_published(runs: list[MeasuredRun]) -> str:
  """A panel for each measured benchmark with published figures; for those of Table 12 when nothing was measured."""
  measured = {name for run in runs for name in run.scores}
  panels = []
  for name in published_columns(measured):
    if measured and name not in measured:
      continue
    bars = []  # (accuracy, HTML)
    for model, size, accuracies in published_rows(measured):
      if name in accuracies:
        accuracy = accuracies[name] / 100
        bars.append((accuracy, _bar(f'{model} {size}'.removesuffix(' -'), accuracy, None, 'published')))
    for number, run in enumerate(runs):
      scores = run.scores.get(name)
      if scores and scores['n']:
        label = run.label + _unbroken(part_text(scores))
        reach = interval(scores, samples_of(scores))
        bars.append((scores['accuracy'], _bar(label, scores['accuracy'], reach, _run_class(number))))
    bars.sort(key=lambda bar: -bar[0])
    panels.append(page.panel(benchmarks.shown(name).title, [bar for _, bar in bars]))
  if not panels:
    return ''
  note = '<p class="soft">Accuracy in %. Measured rows have their 95% interval; published ones were given without.</p>'
  key = _legend(runs, with_published=True) if runs else ''
  return f'{note}{key}<div class="panels">{"".join(panels)}</div>'


def by_group(runs: list[MeasuredRun]) -> str:
  """A panel for each way in which the problems of a benchmark are grouped: by level, by subject."""
  panels: dict[str, dict[str, list]] = {}  # title: {group: [(number of the run, its counts, answers to each problem)]}
  for number, run in enumerate(runs):
    for name in run.files:
      scores = run.scores[name]
      for group, counts in (scores.get('by_group') or {}).items():
        rows = panels.setdefault(_group_title(name, group), {}).setdefault(group, [])
        rows.append((number, counts, samples_of(scores)))
  if not panels:
    return ''
  texts = [_group_panel(title, groups, runs) for title, groups in panels.items()]
  return f'{_legend(runs, with_published=False)}<div class="panels">{"".join(texts)}</div>'


def _group_title(benchmark: str, group: str) -> str:
  title = benchmarks.shown(benchmark).title
  if group.startswith('Level '):
    return f'{title}, level'
  return f'{title}, subject' if ('subject', 'type') in benchmarks.shown(benchmark).groups else title


def _group_panel(title: str, groups: dict[str, list], runs: list[MeasuredRun]) -> str:
  """With several runs, each group is a heading over a bar for each run; with one, each group is a bar."""
  is_several = len({number for rows in groups.values() for number, *_ in rows}) > 1
  bars = []
  for group, rows in groups.items():
    if is_several:
      bars.append(f'<li class="group">{html.escape(group)}</li>')
    for number, counts, samples in rows:
      count = _unbroken(f' (n = {count_text(counts, samples)})')
      label = (runs[number].label if is_several else group) + count
      bars.append(_bar(label, counts['accuracy'], interval(counts, samples), _run_class(number)))
  return page.panel(title, bars)


def _bar(label: str, accuracy: float, reach: tuple[float, float] | None, kind: str) -> str:
  """kind: 'published', or the class of a run. reach: the 95% interval."""
  whisker = ''
  if reach:
    low, high = (100 * bound for bound in reach)
    whisker = f'<b style="left:{low:.2f}%;width:{high - low:.2f}%" title="95%: {low:.1f} to {high:.1f}"></b>'
  return page.bar(label, accuracy, f'{100 * accuracy:.1f}', kind, whisker)


def _legend(runs: list[MeasuredRun], with_published: bool) -> str:
  entries = [(_run_class(number), run.label) for number, run in enumerate(runs)]
  if with_published:
    entries.append(('published', 'published'))
  items = [
    f'<li class="{kind}"><i aria-hidden="true"></i><span>{page.breakable(name)}</span></li>' for kind, name in entries
  ]
  return f'<ul class="legend" aria-label="Colours">{"".join(items)}</ul>'


def _run_class(number: int) -> str:
  striped = ' striped' if number // _COLOURS % 2 else ''
  return f'ours run-{number % _COLOURS}{striped}'


def _unbroken(text: str) -> str:
  """` (n = 10)`, which breaks before the bracket only."""
  return text.replace(' = ', f'{_NO_BREAK}={_NO_BREAK}')
