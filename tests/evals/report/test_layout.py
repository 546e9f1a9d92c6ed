"""How the page looks: in a browser, and as far as the style sheet alone can tell."""

import importlib.resources
import itertools
import re

import pytest

from mathqwen import page as pages
from mathqwen.evals import benchmarks, records
from mathqwen.evals.report import bars, table

LONG = 'runs/a-first-run-with-a-rather-long-name/checkpoints/4000'
OTHER = 'Qwen/Qwen2.5-Math-1.5B-Instruct'


def problem(number):
  """Every verdict, each of them cut off and not: right, wrong, no answer."""
  kind, is_cut = number % 3, number % 2 == 0
  return {
    'id': f'test/intermediate_algebra/{1000 + number}.json', 'benchmark': 'math500', 'prompt': 'p',
    'question': f'What is ${number} + 1$? ' + 'Say how you found it, and what else it could have been. ' * 4,
    'response': f'It is \\boxed{{{number + 1}}}. ' + 'x' * 300, 'extracted': None if kind == 2 else str(number + kind),
    'gold': str(number), 'correct': kind == 0, 'reason': 'equal text', 'tokens': 9, 'truncated': is_cut,
    'extra': {'level': 1 + number % 2, 'subject': 'Counting & Probability' if number % 3 else 'Intermediate Algebra'},
  }  # fmt: skip


@pytest.fixture
def page(tmp_path):
  """Two runs, one with a long name, and a loss curve."""
  rows = [problem(number) for number in range(12)]
  for name in (LONG, OTHER):
    folder = tmp_path / name.replace('/', '-') / 'math500'
    records.write_all(folder / 'records.jsonl', rows)
    scores = records.summarise(rows, benchmarks.get('math500'), 'math', 1)
    records.write_json(folder / 'scores.json', scores | {'model': name})
  (tmp_path / 'metrics.jsonl').write_text(''.join(f'{{"step": {i}, "loss": {1 / i}}}\n' for i in range(1, 50)))
  runs = [tmp_path / name.replace('/', '-') for name in (LONG, OTHER)]
  table.table(runs, tmp_path / 'out', [tmp_path / 'metrics.jsonl'])
  return (tmp_path / 'out' / 'table.html').read_text()


# Words of labels that stand on two lines. Labels may break at blanks and after / _ - . only.
BROKEN = """
  const broken = [];
  for (const label of all('.bars .label, .bars .group, .legend span, .items .id, .verdict, tbody th, figcaption')) {
    const walker = document.createTreeWalker(label, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      for (const word of walker.currentNode.data.matchAll(/[^\\s/_.-]+/g)) {
        const range = document.createRange();
        range.setStart(walker.currentNode, word.index);
        range.setEnd(walker.currentNode, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(word[0]);
      }
    }
  }
  seen.push(broken);"""

# Pairs of texts that overlap. The boxes are those of the texts, which may be wider than their elements.
OVERLAPS = """
  const box = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return node.textContent ? range.getBoundingClientRect() : node.getBoundingClientRect();
  };
  const overlaps = [], compare = (row, queries) => {
    const nodes = queries.flatMap((query) => [...row.querySelectorAll(query)]);
    nodes.forEach((a, i) => nodes.slice(i + 1).forEach((b) => {
      const [p, q] = [box(a), box(b)];
      if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
        overlaps.push(`${a.textContent.slice(0, 30)} / ${b.textContent.slice(0, 30) || b.className}`);
    }));
  };
  all('#items li > button').forEach((row) => compare(row, ['.verdict', '.id', '.question']));
  all('.bars li').forEach((row) => compare(row, ['.label', '.track', '.value']));
  seen.push(all('#items li > button').length, all('.bars li .track').length, overlaps);"""


@pytest.mark.parametrize('width', [1280, 700, 420, 360])
def test_labels_stand_beside_what_they_label(page, see, width):
  seen = see(page, f'seen.push(innerWidth); {BROKEN} {OVERLAPS}', width=width)
  assert seen[0] == width
  broken, items, tracks, overlaps = seen[1:]
  assert broken == [] and overlaps == []
  assert items == 12 and tracks == 17 + 2 + 2 * (2 + 2)


@pytest.mark.parametrize('width', [1280, 700, 420, 360])
def test_the_page_does_not_scroll_sideways(page, see, width):
  steps = """
    const room = () => document.documentElement.scrollWidth - innerWidth;
    seen.push(innerWidth, room());
    all('#items li > button').forEach((button) => button.click());
    seen.push(all('.detail').length, room());
    choose('#set', '1'); seen.push(room());"""
  seen = see(page, steps, width=width)
  assert seen[0] == width and seen[2] == 12
  assert max(seen[1], seen[3], seen[4]) <= 0


def luminance(colour):
  """Relative luminance (WCAG 2) of `#rrggbb` or `rgb(r, g, b)`."""
  if colour.startswith('#'):
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
  else:
    parts = [int(part) for part in re.findall(r'\d+', colour)[:3]]
  linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in parts]
  return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('dark', [False, True])
def test_each_run_has_a_colour_and_the_legend_says_which(page, see, dark):
  steps = """
    const colour = (node) => getComputedStyle(node).backgroundColor;
    seen.push(getComputedStyle(document.body).backgroundColor);
    for (const section of ['#bars', '#groups'])
      seen.push(all(`${section} .legend li`).map((item) => [item.textContent, colour(item.querySelector('i'))]));
    seen.push(all('.bars li').filter((bar) => bar.querySelector('.track'))
      .map((bar) => [bar.querySelector('.label').textContent, colour(bar.querySelector('i'))]));
    seen.push(colour($('.panel')), getComputedStyle($('.legend span')).color);"""
  back, beside, groups, shown, card, text = see(page, steps, dark=dark)
  assert (luminance(back) < 0.1) == dark
  beside, groups = dict(beside), dict(groups)
  assert list(beside) == [LONG, OTHER, 'published'] and list(groups) == [LONG, OTHER]
  assert len(set(beside.values())) == 3 and groups.items() <= beside.items()
  assert all(contrast(colour, card) >= 3 for colour in groups.values())
  assert contrast(text, back) >= 4.5
  for label, colour in shown:
    run = next((name for name in (LONG, OTHER) if label.startswith(name)), 'published')
    assert colour == beside[run], label


def test_colours_of_runs_without_a_browser():
  style = (importlib.resources.files('mathqwen') / 'assets' / 'report.css').read_text()
  light, dark = re.findall(r':root \{(.*?)\}', style, re.DOTALL)
  for scheme in (light, dark):
    colours = dict(re.findall(r'--([\w-]+): (#[0-9a-f]{6});', scheme))
    runs = [colours[f'run-{number}'] for number in range(bars._COLOURS)]
    assert f'run-{bars._COLOURS}' not in colours
    assert len({*runs, colours['bar']}) == bars._COLOURS + 1
    assert all(contrast(run, colours[back]) >= 3 for run in runs for back in ('card', 'track'))
  for number in range(bars._COLOURS):
    assert f'.run-{number} {{ --bar: var(--run-{number}); }}' in style


def test_classes_of_runs_differ_until_the_thirteenth():
  classes = [bars._run_class(number) for number in range(13)]
  assert len(set(classes)) == 12 and classes[12] == classes[0]
  assert [('striped' in one) for one in classes] == [False] * 6 + [True] * 6 + [False]


def test_names_may_break_between_words_only():
  assert pages.breakable('a/b_c-d.json <e> 2.5') == 'a/<wbr>b_<wbr>c-d.<wbr>json &lt;e&gt; 2.5'


def test_bars_without_a_browser(page):
  """Both runs in each group, with their colours, whatever their order in a panel."""
  labels = {LONG: 'run-0', OTHER: 'run-1'}
  found = re.findall(r'<li class="ours (run-\d)"><span class="label">(.*?) \(n', page.replace('<wbr>', ''))
  assert len(found) == 2 + 2 * (2 + 2)
  assert all(labels[label] == kind for kind, label in found)
  assert {kind for kind, _ in itertools.islice(found, 2)} == {'run-0', 'run-1'}
