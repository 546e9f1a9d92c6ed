"""Verdicts: literal rows, the published verdicts in ../shared, gold against gold, and hostile answers."""

import contextlib
import gzip
import json
import pathlib
import subprocess
import sys
import time

import pytest

from mathqwen.errors import UserError
from mathqwen.grading import grade, latex, symbolic

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared'


@pytest.mark.parametrize(
  'rule, response, gold, correct, extracted',
  [
    ('number', 'pays $129,200. #### 129200', '129200', True, '129200'),
    ('number', 'The answer is 18.00', '18', True, '18.00'),
    ('number', '18.0001', '18', False, '18.0001'),
    ('number', '18.00009', '18', True, '18.00009'),
    ('number', 'It fell by 25%.', '25', True, '25%'),
    ('number', 'It fell by 0.25.', '25%', True, '0.25'),
    ('number', 'Nothing left.', '0', False, None),
    ('math23k', '25%', '25', False, '25%'),
    ('math23k', '答：0.25', '25%', True, '0.25'),
    ('math23k', '57/10', '5((7)/(10))', True, '57/10'),
    ('math23k', '9.33', '((28)/(3))', False, '9.33'),
    ('math23k', '9.33333', '((28)/(3))', True, '9.33333'),
    ('math23k', '30-3*4=18（吨）\n答：3天后还剩18吨。', '18', True, '18'),
    ('math23k', '答案是：甲、乙2地相距18千米。这比20少。', '18', True, '18'),
    ('math23k', '答：1又1/2小时。', '1((1)/(2))', True, '1又1/2'),
    ('math23k', '1又\\frac{1}{2}', '1.5', True, '1又\\frac{1}{2}'),
    ('math23k', '答：0', '0.00008', False, '0'),
    ('math23k', '0.33333', '((1)/(3))', True, '0.33333'),
    ('number', 'Answer: In 3 days she earns $18.', '18', True, '18'),
    ('number', 'The answer is 18 dollars for 3 days.', '18', True, '18'),
    ('number', 'The answer is 3 + 4 = 7 apples in 2 days.', '7', True, '7'),
    ('math401', '= 0.5910', '0.5914', True, '0.5910'),
    ('math401', '= 0.592', '0.591', False, '0.592'),  # exactly 1e-3 apart: not below
    ('math401', 'The answer is 7 (4 digits)', '7', False, '4'),  # the last number, whatever is said
    ('math401', '0.0', '-0.0000', True, '0.0'),
    ('math', '\\boxed{\\dfrac12}', '\\frac{1}{2}', True, '\\dfrac12'),
    ('math', '\\boxed{0.5}', '\\frac{1}{2}', True, '0.5'),
    ('math', 'so $x = 5$ or\n\\boxed{x=5}', '5', True, 'x=5'),
    ('math', '\\boxed{(2,4)}', '(2, 4)', True, '(2,4)'),
    ('math', '\\boxed{(4,2)}', '(2,4)', False, '(4,2)'),
    ('math', '\\boxed{9999}', '10{,}000', False, '9999'),
    ('math', '\\boxed{10000}', '10{,}000', True, '10000'),
    ('math', '\\boxed{2112_5}', '2112_6', False, '2112_5'),
    ('math', 'The answer is $\\$115,000$.', '\\$115,000', True, '\\$115,000'),
    ('math', 'They pay \\$3, then $\\$40$.', '\\$40', True, '\\$40'),
    ('math', '\\boxed{9\\text{ p.m.}}', '9\\text{ a.m.}', False, '9\\text{ p.m.}'),
    ('math', '\\boxed{9 \\text{ AM}}', '9\\text{ a.m.}', True, '9 \\text{ AM}'),
    ('math', '\\boxed{5\\text{ million}}', '5\\text{ billion}', False, '5\\text{ million}'),
    ('math', 'p - q', 'p - q', True, 'p - q'),
    ('math', 'We find $a$ and then $b+1$.', '1+b', True, 'b+1'),
    ('math', '\\boxed{\\sqrt{8}}', '2\\sqrt{2}', True, '\\sqrt{8}'),
    ('math', '\\boxed{}', '4', False, None),
    ('abel', '1. [...] #### 18', '18', True, '18'),
    ('abel', '#### 1\nQuestion: another #### 2', '1', True, '1'),
    ('abel', '#### 18\nso 18', '18', False, None),  # only the last line is read
    ('abel', '#### 9.0', '9', True, '9.0'),
    ('openai', 'so 26\nA: 1,026', '1026', True, '1026'),
    ('openai', 'A: 26.', '26', False, '26.'),  # string equality, period and all
    ('rft', '#### 5 #### 6', '5', True, '5'),
    ('abel', '#### 18</s>', '18', True, '18'),
    ('abel', '#### 18</s> ', '18', False, '18<'),  # four characters go, whatever they are
    ('abel', '#### 20 miles', '20', False, '20 miles'),  # a product of letters, where a unit is not Minerva's
    ('abel', '#### 20 dollars', '20', True, '20 dollars'),
    ('abel', '#### 25\\%', '25', False, '25\\%'),
    ('abel', '#### \\frac{31}{5}', '6\\frac{1}{5}', False, '\\frac{31}{5}'),
    ('abel', '#### 1\\dfrac{9}{10}', '1\\frac{9}{10}', True, '1\\dfrac{9}{10}'),
    ('abel', '#### \\frac{\\sqrt{3}}{3}.', '\\frac{\\sqrt{3}}{3}', True, '\\frac{\\sqrt{3}}{3}.'),
    ('abel', '#### \\frac{36}2', '18', True, '\\frac{36}2'),
    ('abel', '#### 25\\%.', '25\\%', False, '25\\%.'),
    ('abel', '#### 18.', '18', False, '18.'),
    ('abel', '#### 6 * 3', '18', True, '6 * 3'),
    ('abel', '#### x^2-1', '(x-1)(x+1)', True, 'x^2-1'),
    ('rft', '5', '5', False, None),
    ('rft', '#### 18.', '18', True, '18.'),
    ('rft', '#### 2,125', '2,125', True, '2125'),
    ('rft', '#### 1.2.3', '1', False, '1.2.3'),
    ('rft', '#### 18.00009', '18', True, '18.00009'),
    ('qwen-chat', 'about -1,000.50 then', '-1000.5', True, '-1,000.50'),
    ('qwen-chat', 'it is 18.', '18', True, '18.'),
    ('qwen-chat', 'so 5-3', '-3', True, '-3'),
    ('qwen-chat', 'at 10:05', '5', False, '05'),
    ('qwen-chat', 'it costs $1.00', '1', True, '1.00'),
    ('qwen-base', 'it is -12', '12', True, '12'),
    ('qwen-base', 'it is 12.5', '12.5', False, '5'),
    ('qwen-base', 'it is 1,000', '1000', False, '000'),
    ('wizardmath-gsm8k', 'The answer is: 1/2 cup', '0.5', True, '1/2'),
    ('wizardmath-gsm8k', 'The answer is: 4. The answer is: 36/2.', '18', True, '36/2'),
    ('wizardmath-gsm8k', 'The answer is: 12.5', '12', True, '12.5'),  # Python rounds a half to the even side
    ('wizardmath-gsm8k', 'The answer is: 1,234,567', '1234567', False, '1,234'),
    ('wizardmath-gsm8k', 'The answer is: $1,200', '1,200', True, '1,200'),
    ('wizardmath-gsm8k', 'The answer is: 3/0', '3', True, '3/0'),
    ('wizardmath-gsm8k', 'The answer is: -/5', '1', False, '-/5'),
    ('wizardmath-gsm8k', 'The answer is 18', '18', False, None),
    ('wizardmath-math', 'The answer is: \\dfrac12.', '\\frac{1}{2}', True, '\\dfrac12'),
    ('wizardmath-math', 'The answer is: 5\\text{ cm}.\nThus', '5', True, '5\\text{ cm}'),
    ('wizardmath-math', 'The answer is: 0.25', '\\frac{1}{4}', False, '0.25'),
    ('wizardmath-math', 'The answer is: x/2', 'x/2', True, 'x/2'),
    ('minerva', 'The final answer is $x=5$. I hope it is correct.', '5', True, '$x=5$'),
    ('minerva', 'The final answer is $\\frac{2}{4}$. I hope it is correct.', '\\frac12', True, '$\\frac{2}{4}$'),
    (
      'minerva',
      'The final answer is 4. I hope it is correct. The final answer is 5. I hope it is correct.',
      '4',
      True,
      '4',
    ),
    ('minerva', 'The final answer is $5$', '5', False, None),
    ('lm-eval-strict', '#### 1,000', '1000', True, '1000'),
    ('lm-eval-strict', '#### 18.', '18', True, '18.'),
    ('lm-eval-strict', '#### $18', '18', False, None),
    ('lm-eval-flexible', 'it is 1,000 then', '1000', True, '1,000'),
    ('lm-eval-flexible', 'he pays $18.', '18', True, '$18.'),
    ('lm-eval-flexible', 'he pays 18.00', '18', False, '18.00'),
    ('lm-eval-flexible', 'it is 18, so...', '18', False, '...'),
  ],
)
def test_verdicts(rule, response, gold, correct, extracted):
  verdict = grade.grade(response, gold, rule)
  assert (verdict.correct, verdict.extracted) == (correct, extracted), verdict.reason
  assert verdict.reason


def test_every_rule_has_a_row_above():
  rows = next(mark for mark in test_verdicts.pytestmark if mark.name == 'parametrize').args[1]
  assert {row[0] for row in rows} == set(grade.RULES)


def test_unknown_rule_names_the_nearest():
  with pytest.raises(UserError, match="unknown rule 'maths'; did you mean 'math'"):
    grade.get('maths')


@pytest.mark.parametrize('decoded, error', [('5', 0.0), ('6', 0.2), ('-1000', 10.0), (None, 10.0), ('abc', 10.0)])
def test_relative_error(decoded, error):
  assert grade.relative_error(decoded, '5') == error


def test_relative_error_divides_by_one_at_least():
  assert grade.relative_error('0.25', '0.125') == 0.125


@pytest.mark.parametrize(
  'text, form',
  [
    ('\\left( 3, \\frac{\\pi}{2} \\right)', '(3,\\frac{\\pi}{2})'),
    ('\\tfrac34', '\\frac{3}{4}'),
    ('3/4', '\\frac{3}{4}'),
    ('x = 14{,}400\\%', '14400'),
    ('5\\text{ cm}^2', '5'),
    ('90^{\\circ}', '90'),
    ('.5', '0.5'),
    ('7.00', '7'),
    ('10.05', '10.05'),
    ('\\text{Evelyn}', 'Evelyn'),
    ('(1,200)', '(1,200)'),
    ('1,2', '1,2'),
  ],
)
def test_normalised_form(text, form):
  assert latex.normalise(text) == form


@pytest.mark.parametrize('text, form', [('x=5\\text{ cm}', '5'), ('$\\frac12$', '\\frac{1}{2}'), ('1,000', '1000')])
def test_minerva_form(text, form):
  assert latex.minerva(text) == form


@pytest.mark.parametrize(
  'text, form',
  [
    ('\\left(\\tfrac12,\\ \\sqrt3\\right)', '(\\frac{1}{2},\\\\sqrt{3})'),
    ('x = .5', '\\frac{1}{2}'),
    ('-3/4', '\\frac{-3}{4}'),
    ('\\frac1{72}', '\\frac{1}{72}'),
    ('\\$3,\\!600\\text{ dollars}', '3,600'),
    ('90^\\circ', '90'),
    ('10\\%', '10'),
    ('', ''),
  ],
)
def test_form_of_the_math_release(text, form):
  assert latex.hendrycks(text) == form


@pytest.mark.parametrize('text', ['a/b', '1\\text{ m}\\text{ s}', '\\sqrt', '\\frac'])
def test_texts_without_a_form_of_the_math_release(text):
  with pytest.raises(ValueError):
    latex.hendrycks(text)


def published(name):
  path = SHARED / 'fixtures' / 'grading' / f'{name}.jsonl.gz'
  if not path.exists():
    pytest.skip(f'../shared is not here: {path}')
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
  'name, rule, least',
  [
    ('abel_7b_gsm8k', 'abel', 1.0),
    ('openai_6b_finetuning_gsm8k', 'openai', 1.0),
    ('abel_7b_gsm8k', 'number', 0.995),
    ('openai_6b_finetuning_gsm8k', 'number', 0.995),
    ('qwen25math_math_half', 'math', 0.995),
  ],
)
def test_agreement_with_published_verdicts(name, rule, least):
  rows = published(name)
  agree = sum(grade.grade(row['response'], row['gold'], rule).correct == row['correct'] for row in rows)
  assert agree / len(rows) >= least


def test_published_accuracies():
  rows = published('abel_7b_gsm8k')
  assert sum(grade.grade(row['response'], row['gold'], 'abel').correct for row in rows) == 788
  rows = published('openai_6b_finetuning_gsm8k')
  assert sum(grade.grade(row['response'], row['gold'], 'openai').correct for row in rows) == 286


@pytest.mark.parametrize('name', ['gsm8k', 'math500', 'math', 'math401', 'math23k'])
def test_gold_against_itself(name):
  from mathqwen.data import sources
  from mathqwen.evals import benchmarks

  if not (SHARED / 'data').exists():
    pytest.skip(f'../shared is not here: {SHARED / "data"}')
  benchmark = benchmarks.get(name)
  rows, _ = sources.load(benchmark.source, benchmark.split, str(SHARED / 'data'), strict=True)
  assert len(rows) == benchmark.size
  for row in rows:
    for response in (row.answer, row.solution):
      verdict = grade.grade(response, row.answer, benchmark.rule)
      assert verdict.correct, (row.id, response, row.answer, verdict)


@pytest.fixture(scope='module')
def one_second():
  comparer = symbolic.Comparer(time_limit=1.0)
  yield comparer
  comparer.close()


@pytest.fixture
def quick(monkeypatch, one_second):
  """The shared comparer with a limit of one second, started, so that the tests time comparisons only."""
  one_second.equal('1', '1')
  monkeypatch.setattr(symbolic, '_shared', one_second)


@pytest.mark.parametrize(
  'answer',
  ['9**9**9', '9^{9^9}', '9^{9^{9^9}}', '100000000!', '{' * 900 + '1' + '}' * 900, '\\sqrt{' * 250 + '1' + '}' * 250]
  + ["__import__('os').system('touch PWNED')", '9' * 1900, '9' * 1_000_000, '1e999999999', '\ud800'],
)
def test_hostile_answers_cost_at_most_the_limit(quick, answer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  start = time.monotonic()
  verdict = grade.grade(f'\\boxed{{{answer}}}', '4', 'math')
  assert time.monotonic() - start < 1.0 + 3.0  # the limit, and what a busy machine takes to kill and schedule
  assert not verdict.correct
  assert not list(tmp_path.iterdir())
  assert grade.grade('\\boxed{0.5}', '\\frac12', 'math').correct  # the next one is graded as ever


@pytest.mark.parametrize('rule', grade.RULES)
def test_long_hostile_texts_are_read_once(quick, rule):
  pieces = [
    '9',
    '1,',
    '-',
    '{',
    '$',
    '\\boxed{',
    '\\frac',
    '#### ',
    'A: ',
    'The answer is: ',
    'The final answer is ',
    '%',
  ]
  for piece in [*pieces, '. I hope it is correct', '\\text{', '\\sqrt', ' \n', 'Question', '分之']:
    text = piece * (50_000 // len(piece))
    start = time.monotonic()
    verdicts = [grade.grade(response, '4', rule) for response in (text, f'#### {text}', f'The answer is: {text}')]
    assert time.monotonic() - start < 3.0, piece  # where the square of the length is read, it is minutes
    assert not any(verdict.correct for verdict in verdicts), piece


@pytest.mark.parametrize(
  'rule, ending', [('abel', '#### {}'), ('minerva', 'The final answer is {}. I hope it is correct.')]
)
def test_hostile_answers_to_published_rules(quick, rule, ending):
  start = time.monotonic()
  assert not grade.grade(ending.format('9**9**9 x'), '4', rule).correct
  assert time.monotonic() - start < 1.0 + 3.0


def test_comparer_is_one_process_restarted_after_a_time_out():
  comparer = symbolic.Comparer(time_limit=1.0)
  assert comparer.equal('\\frac{1}{2}', '0.5') == (True, 'equal by math-verify')
  assert comparer.equal('2', '3') == (False, 'different by math-verify')
  first = comparer._process
  assert comparer.equal('4', '9^{9^{9^9}}') == (False, 'not decided in 1 s')
  assert first.poll() is not None
  assert comparer.equal('x+1', '1+x', test='difference') == (True, 'equal by difference')
  assert comparer.starts == 2
  comparer._process.kill()
  comparer._process.wait()
  assert comparer.equal('2', '2')[0]
  comparer.close()


def test_verdicts_do_not_depend_on_the_number_of_workers(monkeypatch):
  comparers = symbolic.Comparers(time_limit=1.0)
  monkeypatch.setattr(symbolic, '_shared', comparers)
  pairs = [('x+1', '1+x'), ('2', '3'), ('\\sqrt{8}', '2\\sqrt{2}'), ('x', 'y'), ('9^{9^{9^9}}', '4')]
  rows = [{'id': i, 'response': f'\\boxed{{{answer}}}', 'gold': gold} for i, (answer, gold) in enumerate(pairs)]
  one = grade.judge(rows[:4], 'math', workers=1)
  assert [(row['id'], row['correct'], row['rule']) for row in one] == [
    (0, True, 'math'), (1, False, 'math'), (2, True, 'math'), (3, False, 'math'),
  ]  # fmt: skip
  assert len(comparers._idle) == 1
  comparers._idle[0]._process.kill()
  two = grade.judge(rows, 'math', workers=2)
  assert two[:4] == one and two[4]['reason'] == 'not decided in 1 s'
  assert len(comparers._idle) == 2
  comparers.close()


def test_interrupted_comparison_leaves_no_late_answer_behind(monkeypatch):
  comparer = symbolic.Comparer()
  comparer.equal('1', '1')

  def interrupted(timeout):
    raise KeyboardInterrupt

  monkeypatch.setattr(comparer._answers, 'get', interrupted)
  with pytest.raises(KeyboardInterrupt):
    comparer.equal('2', '2.0')
  assert comparer.equal('2', '3') == (False, 'different by math-verify')
  comparer.close()


def test_interrupted_start_leaves_no_greeting_behind(monkeypatch):
  comparer = symbolic.Comparer()

  class Interrupted(symbolic.queue.Queue):
    def get(self, timeout):
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(symbolic.queue, 'Queue', Interrupted)
    with pytest.raises(KeyboardInterrupt):
      comparer.equal('2', '2.0')
  assert comparer.equal('2', '3') == (False, 'different by math-verify')
  assert comparer.equal('2', '2.0') == (True, 'equal by math-verify')
  comparer.close()


def test_worker_that_dies_is_an_answer_that_could_not_be_read(monkeypatch, tmp_path):
  worker = tmp_path / 'worker.py'
  worker.write_text('print(\'{"ready": true}\', flush=True)\ninput()\n')
  monkeypatch.setattr(symbolic, '_WORKER', worker)
  assert symbolic.Comparer().equal('1', '2') == (False, 'math-verify could not read the answer')


def test_missing_math_verify_is_said(monkeypatch, tmp_path):
  worker = tmp_path / 'worker.py'
  worker.write_text('print(\'{"missing": "No module named math_verify"}\')')
  monkeypatch.setattr(symbolic, '_WORKER', worker)
  with pytest.raises(UserError, match='No module named math_verify; install it with: pip install math-verify'):
    symbolic.Comparer().equal('1', '2')


def test_grading_imports_neither_jax_nor_sympy():
  code = (
    'import sys; from mathqwen.evals import extract, grade, table; grade.grade("\\\\boxed{0.5}", "1/2", "math"); '
    'print([m for m in ("jax", "sympy", "math_verify", "tensorflow_datasets") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == '[]', done.stderr


def test_worker_ends_with_a_parent_that_was_killed():
  ask = json.dumps({'gold': '1', 'answer': '\\sum_{i=1}^{10^{9}} i!', 'test': 'math-verify'})
  script = (
    'import subprocess, sys; '
    f'p = subprocess.Popen([sys.executable, "-P", {str(symbolic._WORKER)!r}], stdin=-1, stdout=-1, text=True); '
    f'p.stdout.readline(); p.stdin.write({ask!r} + chr(10)); p.stdin.flush(); print(p.pid, flush=True); '
    'import time; time.sleep(100)'
  )
  parent = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
  worker = pathlib.Path('/proc', parent.stdout.readline().strip())
  time.sleep(0.5)  # it is at work
  parent.kill()
  parent.wait()
  deadline = time.monotonic() + 30
  with contextlib.suppress(OSError):  # it is gone
    while worker.joinpath('stat').read_text().rpartition(')')[2].split()[0] != 'Z':
      assert time.monotonic() < deadline
      time.sleep(0.1)


def test_worker_imports_no_jax():
  source = pathlib.Path(symbolic._WORKER).read_text()
  assert 'mathqwen' not in source.replace('mathqwen/', '')
  code = 'import sys, math_verify, sympy; print("jax" in sys.modules)'
  done = subprocess.run([sys.executable, '-P', '-c', code], capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == 'False'
