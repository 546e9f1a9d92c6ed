"""The page in a real browser: a script beside its own plays the reader and writes what it saw into the page."""

import base64
import gzip
import json
import re
import subprocess

import pytest

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, records
from mathqwen.evals.report import intervals, table

HOSTILE = (
  '</script><script>document.body.dataset.hacked = 1</script><img src=x onerror="document.body.dataset.hacked = 1">'
  '<style>main { display: none }</style>\u2028<!-- $x<b onclick="1">$ <!--<script> "]]>'
)


def record(number, **change):
  one = {
    'id': f't/{number}', 'benchmark': 'math500', 'question': f'What is ${number} + 1$?', 'prompt': 'p',
    'response': f'It is \\boxed{{{number + 1}}}.', 'extracted': str(number + 1), 'gold': str(number + 1),
    'correct': True, 'reason': 'equal text', 'tokens': 9, 'truncated': False,
    'extra': {'level': 1 + number % 5, 'subject': 'Algebra' if number % 2 else 'Geometry'},
  }  # fmt: skip
  return one | change


def write(folder, rows, **change):
  name = rows[0]['benchmark']
  records.write_all(folder / name / 'records.jsonl', rows)
  scores = records.summarise(rows, benchmarks.get(name), 'math', change.get('samples', 1)) | {'model': 'mine'} | change
  records.write_json(folder / name / 'scores.json', scores)
  return folder


@pytest.fixture
def rows():
  """60: number 3 is wrong and cut off, 7 has no answer, 11 is hostile and wrong; all others are right."""
  found = [record(number) for number in range(60)]
  found[3] |= {'response': 'Is it $\\frac{1}{2}$', 'extracted': '\\frac{1}{2}', 'correct': False, 'truncated': True}
  found[7] |= {'response': '', 'extracted': None, 'correct': False, 'reason': 'no answer found'}
  found[11] |= {key: HOSTILE for key in ('question', 'response', 'extracted', 'gold', 'reason')} | {'correct': False}
  return found


def page(folder, out, *, metrics=()):
  table.table([folder], out, metrics)
  return (out / 'table.html').read_text()


def unpacked(text):
  packed = re.search(r'<script type="text/plain" id="records">([A-Za-z0-9+/=]*)</script>', text).group(1)
  return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_every_record_is_in_the_page(tmp_path, rows):
  rows[0]['response'] = 'half a pair \ud83d'
  [one] = unpacked(page(write(tmp_path / 'a', rows), tmp_path / 'out'))
  assert (one['run'], one['benchmark'], len(one['rows'])) == ('mine', 'MATH', 60)
  for row, wanted in zip(one['rows'], rows, strict=True):
    found = dict(zip(one['fields'], row, strict=True))
    groups = [f'Level {wanted["extra"]["level"]}', wanted['extra']['subject']]
    assert found.pop('groups') == groups
    assert found == {key: wanted[key] for key in found}


def test_nothing_is_fetched_and_nothing_escapes(tmp_path, rows):
  text = page(write(tmp_path / 'a', rows, model=HOSTILE, commit=HOSTILE), tmp_path / 'out')
  ours = text.replace('http://www.w3.org/1998/Math/MathML', '')  # a name, not an address
  assert not re.search(r'https?:|\bsrc=(?!x onerror)|url\(|@import|<link|<base', ours)
  assert text.count('<script') == 2 and '<img' not in text and "default-src 'none'" in text
  assert page(tmp_path / 'a', tmp_path / 'again') == text  # the same records make the same bytes


def test_bars_groups_and_intervals(tmp_path, rows):
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  low, high = intervals.wilson(60, 57)
  assert f'left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%' in text
  assert 'mine (n\u00a0=\u00a060)' in text and 'GPT-4' in text
  panels = re.findall(r'<h3>([^<]*)</h3>', text)
  assert panels == ['MATH', 'MATH, subject', 'MATH, level']
  assert (
    '<span class="label">Level 2 (n\u00a0=\u00a012)</span>' in text
    and '<span class="label">Algebra (n\u00a0=\u00a030)</span>' in text
  )


def test_groups_of_several_runs(tmp_path, rows):
  """Each bar has the run it is of and that run's own count, also where one run alone has the group."""
  write(tmp_path / 'a', rows)
  few = [row for row in rows if row['extra']['level'] < 5][:10] + [record(99, extra={'level': 7, 'subject': 'Algebra'})]
  write(tmp_path / 'b', few, model='other')
  table.table([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'out')
  text = (tmp_path / 'out' / 'table.html').read_text()
  levels = text.split('<h3>MATH, level</h3>')[1].split('</figure>')[0]
  found = re.findall(r'<li class="group">([^<]*)</li>|<span class="label">([^<]*)</span>', levels)
  labels = [group or bar.replace('\u00a0', ' ') for group, bar in found]
  assert labels[:3] == ['Level 1', 'mine (n = 12)', 'other (n = 3)']
  assert labels[-4:] == ['Level 5', 'mine (n = 12)', 'Level 7', 'other (n = 1)']


def test_scores_that_are_not_of_these_records_are_reported(tmp_path, rows):
  folder = write(tmp_path / 'a', rows)
  records.write_all(folder / 'math500' / 'records.jsonl', rows[:-1])
  message = f'{folder}/math500: the scores are of 60 answers, and 59 are there; evaluate or grade again'
  assert message in page(folder, tmp_path / 'out')


def test_wilson_beside_scipy():
  stats = pytest.importorskip('scipy.stats')
  for n, correct in ((1, 0), (1, 1), (60, 57), (1319, 824), (5000, 5000)):
    wanted = stats.binomtest(correct, n).proportion_ci(method='wilson')
    assert intervals.wilson(n, correct) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def sampled(rights):
  """Four answers to each problem, of which so many are right."""
  return [
    record(number, id=f't/{number}#{i}', correct=i < right, extracted=str(number + 1) if i < right else '0')
    for number, right in enumerate(rights)
    for i in range(4)
  ]


def test_an_interval_counts_problems_and_not_answers(tmp_path):
  interval = lambda rights: intervals.interval(
    records.summarise(sampled(rights), benchmarks.get('math500'), 'math', 4), 4
  )
  # Answers that are all the same count as one answer.
  assert interval([4] * 30 + [0] * 70) == pytest.approx(intervals.wilson(100, 30), abs=1e-12)
  assert interval([4] * 50) == intervals.wilson(50, 50) and interval([2] * 50) == intervals.wilson(50, 25)
  # Otherwise the half width is that of the standard error over problems, which is between those of both extremes.
  rights = [0, 1, 2, 3, 4, 4, 4, 3] * 100
  mean = sum(rights) / 3200
  stderr = (sum((right / 4 - mean) ** 2 for right in rights) / 799 / 800) ** 0.5
  low, high = interval(rights)
  assert (high - low) / 2 == pytest.approx(1.96 * stderr, rel=0.01)
  widths = [
    high - low for low, high in (intervals.wilson(3200, mean * 3200), (low, high), intervals.wilson(800, mean * 800))
  ]
  assert widths == sorted(widths)


def test_several_answers_in_all_forms(tmp_path, see):
  rows = sampled([4, 3, 2, 1, 0] * 6)
  folder = write(tmp_path / 'a', rows, samples=4, decoding={'temperature': 0.7})
  text = page(folder, tmp_path / 'out')
  markdown, latex = ((tmp_path / 'out' / f'table.{kind}').read_text() for kind in ('md', 'tex'))
  lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in markdown.splitlines()]
  header = ['run', 'benchmark', 'problems', 'samples', 'temperature', 'avg@4', 'pass@1', 'pass@2', 'pass@4', 'maj@4']
  # pass@2 of 3, 2 and 1 right of 4: 1, 5/6, 3/6; of two and two the first, which is right, counts.
  bounds = json.loads((folder / 'math500' / 'scores.json').read_text())['intervals95']
  values = ['mine', 'MATH', '30', '4', '0.7']
  shown = [('avg_at_n', '4'), ('pass_at_k', '1'), ('pass_at_k', '2'), ('pass_at_k', '4'), ('maj_at_k', '4')]
  for (metric, k), share in zip(shown, ['50.0', '50.0', '66.7', '80.0', '60.0'], strict=True):
    low, high = (100 * x for x in bounds[metric][k])
    values.append(f'{share} ({low:.1f} to {high:.1f})')
  assert header in lines and values in lines
  assert ' & '.join(values) in latex and 'pass@k and maj@k in \\%' in latex
  scores = json.loads((folder / 'math500' / 'scores.json').read_text())
  low, high = (100 * x for x in intervals.interval(scores, 4))
  (measured,) = (line for line in lines if line[:2] == ['mine', 'MATH'] and '30 x 4' in line)
  assert f'{low:.1f} to {high:.1f}' in measured and high - low > 24
  group = scores['by_group']['Level 3']
  assert (group['n'], group['problems'], group['stderr']) == (24, 6, 0.0)
  steps = """
    const cells = (row) => [...row.cells].map((cell) => cell.textContent);
    const tables = all('table').filter((table) => table.caption.textContent.startsWith('Several answers'));
    seen.push(tables.length, cells(tables[0].tHead.rows[0]), cells(tables[0].tBodies[0].rows[0]));
    const whiskers = (label) => all('.bars li').filter((bar) => bar.querySelector('.label')?.textContent === label)
      .map((bar) => bar.querySelector('b').title);
    seen.push(whiskers('mine (n\u00a0=\u00a030 x 4)'), whiskers('Level 3 (n\u00a0=\u00a06 x 4)'));
    const box = tables[0].getBoundingClientRect();
    seen.push(box.width > 300 && box.height > 40, $('#status').textContent);"""
  found = see(text, steps)
  assert found[:3] == [1, header, values]
  low_3, high_3 = (100 * x for x in intervals.wilson(6, 3))
  assert found[3:5] == [[f'95%: {low:.1f} to {high:.1f}'], [f'95%: {low_3:.1f} to {high_3:.1f}']]
  assert found[5:] == [True, 'Problems 1 to 25 of 120']


def test_loss_curve(tmp_path, rows, capsys):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  lines = [{'step': s, 'loss': 2 / s, 'grad_norm': 1.0} for s in range(1, 4001)] + [{'step': 4000, 'eval_loss': 0.25}]
  text = ''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 40'
  (workdir / 'metrics.jsonl').write_text(text)
  folder = write(tmp_path / 'a', rows, model=f'{workdir}/checkpoints/4000')
  found = page(folder, tmp_path / 'out')
  message = 'loss 2 at step 1 and 0.0005 at step 4,000; evaluation loss 0.25 at step 4,000 and 0.25 at step 4,000'
  assert f'aria-label="{workdir}: {message}"' in found
  assert len(re.search(r'points="([^"]*)"', found).group(1).split()) <= 1500
  (tmp_path / 'other.jsonl').write_text('{"step": 5, "loss": 1.0}\n')
  words = ['table', str(folder), '--metrics', str(tmp_path / 'other.jsonl')]
  assert cli.main([*words, '--out', str(tmp_path / 'out')]) == 0
  assert (tmp_path / 'out' / 'table.html').read_text().count('<polyline') == 3
  assert cli.main(words) == 2
  assert '--metrics is for the page: give --out DIR' in capsys.readouterr().err
  (tmp_path / 'other.jsonl').write_text('{"step": 5}\n')
  with pytest.raises(UserError, match='no losses in it'):
    page(folder, tmp_path / 'out', metrics=[tmp_path / 'other.jsonl'])


def test_a_loss_curve_that_is_missing_is_reported(tmp_path, rows):
  folder = write(tmp_path / 'a', rows, model='run/checkpoints/4000')
  message = 'run/checkpoints/4000: no loss curve: run/metrics.jsonl: no such file; --metrics names the metrics.jsonl'
  assert message in page(folder, tmp_path / 'out')


@pytest.mark.parametrize('data, message', [(b'\xff\xfe', 'not text'), (b'{"step": 1e999, "loss": 1}\n', 'no losses')])
def test_metrics_without_losses(tmp_path, rows, data, message):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'metrics.jsonl').write_bytes(data)
  folder = write(tmp_path / 'a', rows, model=f'{tmp_path}/run/checkpoints/4000')
  assert f'no loss curve: {tmp_path}/run/metrics.jsonl: {message}' in page(folder, tmp_path / 'out')
  with pytest.raises(UserError, match=message):
    page(folder, tmp_path / 'out', metrics=[tmp_path / 'run' / 'metrics.jsonl'])


def test_records_without_a_verdict(tmp_path, rows):
  folder = write(tmp_path / 'a', rows)
  path = folder / 'math500' / 'records.jsonl'
  path.write_text('{"id": "1", "response": "r", "gold": "1"}\n')
  with pytest.raises(UserError, match='record 1 has no verdict; `mathqwen grade` gives it one'):
    page(folder, tmp_path / 'out')


# --- in a browser ---


def test_reading_with_mouse_and_keys(tmp_path, rows, see):
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  steps = """
    seen.push($('#status').textContent, all('[id^=count-]').map((node) => node.textContent).join(' '));
    $('#next').click(); $('#next').click();
    seen.push($('#page').textContent, ids()[0], $('#next').disabled);
    $('input[value=wrong]').click(); seen.push(ids().join(' '));
    $('input[value=unextractable]').click(); seen.push(ids().join(' '));
    $('input[value=truncated]').click(); seen.push(ids().join(' '));
    $('#items button').click();
    seen.push($('.detail').innerText, $('[data-kind=answer] mfrac') !== null, location.hash);
    $('.detail .small').click(); seen.push($('[data-kind=answer]').textContent);
    $('input[value=right]').click(); choose('#group', 'Level 5'); seen.push($('#status').textContent, ids()[0]);
    $('input[value=all]').click(); choose('#group', '');
    $('#items button').focus(); key('End'); seen.push(document.activeElement.querySelector('.id').textContent);
    key('ArrowDown'); seen.push(document.activeElement.querySelector('.id').textContent, $('#page').textContent);
    key('ArrowUp'); seen.push(document.activeElement.querySelector('.id').textContent);
    document.activeElement.click(); seen.push(document.activeElement.getAttribute('aria-expanded'));
    key('/'); seen.push(document.activeElement.id);
    $('#find').value = '42 + 1'; $('#find').dispatchEvent(new Event('input')); await pause(300);
    seen.push(ids().join(' '));
    $('#find').value = 'nowhere'; $('#find').dispatchEvent(new Event('input')); await pause(300);
    seen.push($('#status').textContent);"""
  seen = see(text, steps)
  assert seen[:2] == ['Problems 1 to 25 of 60', '60 57 3 1 1']
  assert seen[2:5] == ['page 3 of 3', 't/50', True]
  assert seen[5:8] == ['t/3 t/7 t/11', 't/7', 't/3']
  detail, rendered, link, source = seen[8:12]
  for words in ('Is it', 'Gold', 'wrong', 'equal text', '9 tokens', 'cut off at the limit', 'Level 4, Algebra'):
    assert words in detail
  assert rendered and 'show=truncated' in link and 'id=t%2F3' in link
  assert source == 'Is it $\\frac{1}{2}$'
  assert seen[12:14] == ['Problems 1 to 12 of 12', 't/4']
  assert seen[14:19] == ['t/24', 't/25', 'page 2 of 3', 't/24', 'true']
  assert seen[19:] == ['find', 't/42', 'No problem matches.']


def test_measured_rows_and_problems_come_first(tmp_path, rows):
  rows[5] |= {'correct': False, 'reason': 'undecided in 15 CPU seconds'}
  means = {kind: {'n': 1, 'tokens': 90.4, 'thinking': None, 'answer': None} for kind in ('right', 'wrong')}
  lengths = {'bins': [{'from': 64, 'below': 128, 'n': 60, 'correct': 57, 'accuracy': 0.95}], 'mean': means}
  text = page(write(tmp_path / 'a', rows, lengths=lengths), tmp_path / 'out')
  sections = re.findall(r'<section id="(\w+)"', text)
  assert sections[:2] == ['measured', 'problems'] and sections[-1] == 'tables'
  assert '>wrong, no answer included <' in text and '>undecided <' in text
  assert re.findall(r'<td>(64 to 127|90|95.0 \(n = 60\))</td>', text) == ['90', '90', '95.0 (n = 60)']
  comparison = text.partition('<section id="tables"')[2]
  assert comparison.index('measured</td>') < comparison.index('published</td>')
  rows[5]['reason'] = 'different value'
  assert '>undecided <' not in page(write(tmp_path / 'b', rows), tmp_path / 'out')


def test_undecided_answers_are_shown(tmp_path, rows, see):
  rows[5] |= {'correct': False, 'reason': 'undecided in 15 CPU seconds'}
  steps = """$('input[value=undecided]').click(); $('#items button').click();
    seen.push(ids().join(' '), $('.verdict').textContent, $('.detail').innerText.includes('counts as wrong'));"""
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  assert see(text, steps) == ['t/5', '? undecided', True]


def test_links_open_what_they_name(tmp_path, rows, see):
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  steps = "seen.push(ids()[0], $('.detail').innerText.includes('What is'), $('#find').value, $('#page').textContent);"
  assert see(text, steps, '#show=right&id=t/40') == ['t/28', True, '', 'page 2 of 3']
  assert see(text, 'seen.push(ids().length);', '#set=99&show=none&page=-3&group=x&__proto__=1') == [25]
  assert see(text, 'seen.push(ids().length);', '#show=constructor') == [25]


def test_counts_follow_group_and_text(tmp_path, rows, see):
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  steps = """const counts = () => all('[id^=count-]').map((node) => node.textContent).join(' ');
    choose('#group', 'Level 4');
    seen.push(counts()); $('input[value=wrong]').click(); seen.push(counts(), ids().join(' '));
    $('#find').value = '13 + 1'; $('#find').dispatchEvent(new Event('input')); await pause(300); seen.push(counts());"""
  assert see(text, steps) == ['12 11 1 0 1', '12 11 1 0 1', 't/3', '1 1 0 0 0']


def test_a_formula_of_nothing_but_primes(tmp_path, rows, see):
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  steps = """const found = formula("x" + "'".repeat(3000), false);
    seen.push(found.querySelectorAll('mo').length, found.querySelector('mrow mrow mrow mrow') === null);"""
  assert see(text, steps) == [3000, True]


def test_problems_without_an_id_have_their_number(tmp_path):
  rows = [record(1, id=None), record(2, id=None)]
  [one] = unpacked(page(write(tmp_path / 'a', rows), tmp_path / 'out'))
  assert [row[one['fields'].index('id')] for row in one['rows']] == ['1', '2']


def test_hostile_text_is_text(tmp_path, rows, see):
  text = page(write(tmp_path / 'a', rows, model=HOSTILE, commit=HOSTILE), tmp_path / 'out')
  steps = """$('input[value=wrong]').click(); all('#items button')[2].click(); await pause(200);
    seen.push(document.body.dataset.hacked ?? 'inert', all('img').length, all('script').length, all('style').length);
    seen.push(getComputedStyle($('main')).display, $('[data-kind=answer]').textContent);"""
  inert, images, scripts, styles, display, answer = see(text, steps)
  assert (inert, images, scripts, styles, display) == ('inert', 0, 2, 1, 'block')  # ours and the driver's
  # What stands between dollars is a formula, in which spaces mean nothing.
  assert answer.replace(' ', '') == HOSTILE.replace('$', '').replace(' ', '')


FORMULAS = {
  "f''(x)": '<msup><mi>f</mi><mrow><mrow><mo>′</mo><mo>′</mo></mrow></mrow></msup><mo stretchy="false">(</mo>',
  '\\frac12': '<mfrac><mn>1</mn><mn>2</mn></mfrac>',
  '\\dfrac{x+1}{y}': '<mfrac><mrow><mi>x</mi><mo>+</mo><mn>1</mn></mrow><mrow><mi>y</mi></mrow></mfrac>',
  'x^{2}_1': '<msubsup><mi>x</mi><mn>1</mn><mrow><mn>2</mn></mrow></msubsup>',
  '\\sqrt[3]{8}': '<mroot><mrow><mn>8</mn></mrow><mrow><mn>3</mn></mrow></mroot>',
  '-2\\le\\pi': '<mo form="prefix">−</mo><mn>2</mn><mo>≤</mo><mi>π</mi>',
  '1{,}000.5\\%': '<mn>1,000.5</mn><mo>%</mo>',
  '\\boxed{7}': '<mrow class="boxed"><mrow><mn>7</mn></mrow></mrow>',
  'n \\choose k': '<mfrac linethickness="0"><mrow><mi>n</mi></mrow><mrow><mi>k</mi></mrow></mfrac>',
  '\\begin{cases}1&a\\\\2&b\\end{cases}': '<mo>{</mo><mtable><mtr><mtd><mrow><mn>1</mn></mrow></mtd>',
  '\\left(\\text{two words}\\right]': '<mo>(</mo><mrow><mtext>two words</mtext></mrow><mo>]</mo>',
}
NOT_KNOWN = (
  '\\mystery{1}',
  '\\constructor',
  '\\toString{1}',
  '\\begin{constructor}1\\end{constructor}',
  '{',
  '}',
  '\\frac1',
  '\\left(',
  'a&b',
  '\\begin{x}\\end{x}',
  '\\sqrt[3',
  '{' * 60 + '}' * 60,
  '\\sqrt' * 700 + '2',
  'x' * 5000,
)
TEXTS = {  # '' for a formula
  'It costs $5 or $6, ($7) and $8.50-$9': 'It costs $5 or $6, ($7) and $8.50-$9',
  'so $x$ and \\(y\\), \\[z\\] then $$w$$.': 'so  and ,  then .',
  'Thus \\boxed{\\frac{a}{b}} **bold** 2 * 3': 'Thus  bold 2 * 3',
  'not \\boxed{closed': 'not \\boxed{closed',
}


def test_formulas(tmp_path, rows, see):
  text = page(write(tmp_path / 'a', rows), tmp_path / 'out')
  steps = f"""
    for (const tex of {json.dumps(list(FORMULAS))}) seen.push(formula(tex, false).innerHTML);
    for (const tex of {json.dumps(NOT_KNOWN)}) seen.push(formula(tex).localName + formula(tex).textContent);
    for (const text of {json.dumps(list(TEXTS))}) seen.push(rendered(text).map((node) =>
      typeof node === 'string' ? node : node.localName === 'math' ? '' : node.textContent).join(''));"""
  seen = see(text, steps)
  for (tex, wanted), got in zip(FORMULAS.items(), seen, strict=False):
    assert wanted in got, tex
  seen = seen[len(FORMULAS) :]
  assert seen[: len(NOT_KNOWN)] == [f'code{tex}' for tex in NOT_KNOWN]
  assert seen[len(NOT_KNOWN) :] == list(TEXTS.values())


def test_the_policy_lets_the_page_work(tmp_path, rows, browser):
  page(write(tmp_path / 'a', rows), tmp_path / 'out')
  flags = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path / "profile"}']
  address = (tmp_path / 'out' / 'table.html').as_uri()
  words = [browser, *flags, '--virtual-time-budget=20000', '--dump-dom', address]
  done = subprocess.run(words, capture_output=True, text=True, timeout=120)
  assert 'Problems 1 to 25 of 60' in done.stdout and 'aria-label="0 + 1"' in done.stdout
