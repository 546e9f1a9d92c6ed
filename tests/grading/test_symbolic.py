"""The process that compares answers: its limits, its restarts, and hostile answers."""

import contextlib
import json
import pathlib
import queue
import subprocess
import sys
import time

import pytest

from mathqwen.errors import UserError
from mathqwen.grading import grade, symbolic

ROOT = pathlib.Path(__file__).parents[2]
DECIDED = 60.0  # seconds within which a busy machine kills a process; what is killed here would never end

# Replies at once to what it is asked, except that it never replies to the answer `never`.
NEVER = """
import json, signal, sys
print('{"ready": true}', flush=True)
for line in sys.stdin:
  question = json.loads(line)
  signal.setitimer(signal.ITIMER_PROF, question['seconds'])
  while question['answer'] == 'never':
    pass
  print(json.dumps({'equal': question['gold'] == question['answer']}), flush=True)
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
  """worker(source): the program that takes the place of symbolic_worker.py."""

  def write(source):
    path = tmp_path / 'worker.py'
    path.write_text(source)
    monkeypatch.setattr(symbolic, '_WORKER', path)

  return write


@pytest.fixture
def comparer():
  made = symbolic.Comparer(time_limit=60.0)
  yield made
  made.close()


@pytest.fixture
def waits(monkeypatch):
  """The seconds for which replies were waited for, the greeting's first."""
  seen = []

  class Recorded(queue.Queue):
    def get(self, timeout):
      seen.append(timeout)
      return super().get(timeout=timeout)

  monkeypatch.setattr(symbolic.queue, 'Queue', Recorded)
  return seen


def test_a_comparison_that_never_ends_is_given_up(worker, comparer):
  worker(NEVER)
  assert comparer.equal('2', '2') == (True, 'equal by math-verify')
  first = comparer._process
  comparer.time_limit = 0.2
  assert comparer.equal('2', 'never') == (None, 'undecided in 0.2 CPU seconds')
  assert first.poll() is not None and comparer._process is None
  comparer.time_limit = 60.0
  assert comparer.equal('2', '3') == (False, 'different by math-verify')
  assert comparer.starts == 2


def test_the_clock_leaves_a_comparison_much_more_time_than_its_limit(worker, waits):
  worker(NEVER)
  comparer = symbolic.Comparer(time_limit=37.0)
  comparer.equal('2', '2')
  assert waits == [symbolic.START_LIMIT, 37.0 + symbolic.HANGING]
  comparer.close()
  pool = symbolic.ComparerPool(time_limit=36.0)
  pool.equal('2', '2')
  assert waits[2:] == [symbolic.START_LIMIT, 36.0 + symbolic.HANGING]
  pool.close()


def test_a_second_process_is_asked_where_one_ended_without_a_reason(worker, comparer):
  worker(NEVER.replace('question = json.loads(line)', 'break'))  # it ends when it is asked
  assert comparer.equal('2', '2') == (None, 'undecided: the process of math-verify ended twice')
  assert comparer.starts == 2


def test_the_limit_of_a_grader_is_five_seconds():
  assert symbolic.TIME_LIMIT == 5.0
  assert symbolic.Comparer().time_limit == symbolic.ComparerPool().time_limit == symbolic.TIME_LIMIT


def test_an_undecided_answer_is_asked_again_alone_and_named(worker, monkeypatch):
  """It is not wrong: the verdict says so. A second, longer try may decide."""
  worker(
    NEVER.replace(
      "while question['answer'] == 'never'", "while question['seconds'] < (0.5 if 'a' in question['gold'] else 9)"
    )
  )
  monkeypatch.setattr(symbolic, '_shared', pool := symbolic.ComparerPool(time_limit=0.2))
  rows = [{'response': '\\boxed{x+b}', 'gold': 'x+2b'}, {'response': '\\boxed{x+a}', 'gold': 'x+2a'}]
  first, second = grade.judge(rows, 'math')
  assert (first['verdict'], first['correct'], first['reason']) == ('undecided', False, 'undecided in 0.6 CPU seconds')
  assert (second['verdict'], second['reason']) == ('wrong', 'different by mathematics')
  pool.close()


@pytest.fixture(scope='module')
def shared_comparer():
  made = symbolic.Comparer()
  yield made
  made.close()


@pytest.fixture
def one_second(monkeypatch, shared_comparer):
  """The graders' comparer with a limit of one second, started, so that the tests time comparisons only."""
  shared_comparer.time_limit = DECIDED
  assert shared_comparer.equal('0.5', '1/2')[0]
  shared_comparer.time_limit = 1.0
  monkeypatch.setattr(symbolic, '_shared', shared_comparer)
  return shared_comparer


@pytest.mark.parametrize(
  'answer',
  ['9**9**9', '9^{9^9}', '9^{9^{9^9}}', '100000000!', '{' * 900 + '1' + '}' * 900, '\\sqrt{' * 250 + '1' + '}' * 250]
  + ["__import__('os').system('touch PWNED')", '9' * 1900, '9' * 1_000_000, '1e999999999', '\ud800'],
)
def test_hostile_answers_are_given_up(one_second, answer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  start = time.monotonic()
  verdict = grade.grade(f'\\boxed{{{answer}}}', '4', 'math')
  assert time.monotonic() - start < DECIDED
  assert not verdict.correct
  assert not list(tmp_path.iterdir())
  one_second.time_limit = DECIDED
  assert grade.grade('\\boxed{0.5}', '\\frac12', 'math').correct  # the next answer is graded as usual


@pytest.mark.parametrize(
  'rule, ending', [('abel', '#### {}'), ('minerva', 'The final answer is {}. I hope it is correct.')]
)
def test_hostile_answers_to_published_rules(one_second, rule, ending):
  start = time.monotonic()
  assert not grade.grade(ending.format('9**9**9 x'), '4', rule).correct
  assert time.monotonic() - start < DECIDED


@pytest.mark.parametrize('rule', grade.RULES)
def test_long_hostile_texts_are_read_once(one_second, rule):
  pieces = ['9', '1,', '-', '{', '$', '\\boxed{', '\\frac', '#### ', 'A: ', 'The answer is: ', 'The final answer is ']
  for piece in [*pieces, '%', '. I hope it is correct', '\\text{', '\\sqrt', ' \n', 'Question', '分之']:
    text = piece * (50_000 // len(piece))
    start = time.process_time()  # of this process: a busy machine does not count
    verdicts = [grade.grade(response, '4', rule) for response in (text, f'#### {text}', f'The answer is: {text}')]
    assert time.process_time() - start < 3.0, piece  # a rule that reads in quadratic time takes minutes
    assert not any(verdict.correct for verdict in verdicts), piece


def test_one_process_serves_many_comparisons(comparer):
  assert comparer.equal('\\frac{1}{2}', '0.5') == (True, 'equal by math-verify')
  assert comparer.equal('2', '3') == (False, 'different by math-verify')
  assert comparer.equal('x+1', '1+x', test='difference') == (True, 'equal by difference')
  assert comparer.equal('x+1', '2+x', test='difference') == (False, 'different by difference')
  assert comparer.starts == 1


def test_a_process_that_was_killed_is_replaced(comparer):
  assert comparer.equal('2', '2')[0]
  comparer._process.kill()
  comparer._process.wait()
  assert comparer.equal('0.5', '1/2') == (True, 'equal by math-verify')
  assert comparer.starts == 2


def test_the_difference_is_of_the_texts_as_they_are(comparer):
  assert not comparer.equal('20', '20 km', test='difference')[0]  # a product of letters, not a unit
  assert not comparer.equal('5', 'x=5', test='difference')[0]  # an equation is not an expression
  assert comparer.equal('20', '20 km')[0]  # here it is a unit


def test_verdicts_do_not_depend_on_the_number_of_workers(monkeypatch):
  pool = symbolic.ComparerPool(time_limit=60.0)  # nothing here takes so long on any machine
  monkeypatch.setattr(symbolic, '_shared', pool)
  pairs = [('x+1', '1+x'), ('2', '3'), ('\\sqrt{8}', '2\\sqrt{2}'), ('x', 'y'), ('0.5', '1/2'), ('7', '14/2')]
  rows = [{'id': i, 'response': f'\\boxed{{{answer}}}', 'gold': gold} for i, (answer, gold) in enumerate(pairs)]
  one = grade.judge(rows, 'math', workers=1)
  assert [(row['id'], row['correct'], row['rule']) for row in one] == [
    (0, True, 'math'),
    (1, False, 'math'),
    (2, True, 'math'),
    (3, False, 'math'),
    (4, True, 'math'),
    (5, True, 'math'),
  ]
  assert len(pool._idle) == 1
  pool._idle[0]._process.kill()
  assert grade.judge(rows, 'math', workers=2) == one
  assert grade.judge(rows, 'math', workers=4) == one
  pool.close()


def test_as_many_processes_as_threads_that_ask_at_a_time(worker, monkeypatch, tmp_path):
  """Two workers that each wait until the other has been asked as well."""
  meeting = tmp_path / 'asked'
  meeting.mkdir()
  waiting = f'open({str(meeting)!r} + "/" + str(os.getpid()), "w"); '
  waiting += f'exec("while len(os.listdir({str(meeting)!r})) < 2: time.sleep(0.01)")'
  worker(NEVER.replace('question = json.loads(line)', f'question = json.loads(line); import os, time; {waiting}'))
  pool = symbolic.ComparerPool(time_limit=60.0)
  monkeypatch.setattr(symbolic, '_shared', pool)
  rows = [{'response': '\\boxed{x+1}', 'gold': 'x+2'}, {'response': '\\boxed{x}', 'gold': 'y'}]
  assert [row['reason'] for row in grade.judge(rows, 'math', workers=2)] == ['different by mathematics'] * 2
  assert len(pool._idle) == 2
  pool.close()
  assert not pool._idle


def test_interrupted_comparison_leaves_no_late_answer_behind(monkeypatch, comparer):
  comparer.equal('1', '1')

  def interrupted(timeout):
    raise KeyboardInterrupt

  monkeypatch.setattr(comparer._answers, 'get', interrupted)
  with pytest.raises(KeyboardInterrupt):
    comparer.equal('2', '2.0')
  assert comparer.equal('2', '3') == (False, 'different by math-verify')


def test_interrupted_start_leaves_no_greeting_behind(monkeypatch, comparer):
  class Interrupted(queue.Queue):
    def get(self, timeout):
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(symbolic.queue, 'Queue', Interrupted)
    with pytest.raises(KeyboardInterrupt):
      comparer.equal('2', '2.0')
  assert comparer.equal('2', '3') == (False, 'different by math-verify')
  assert comparer.equal('2', '2.0') == (True, 'equal by math-verify')


def test_an_answer_at_which_workers_die_is_undecided(worker, comparer):
  worker('print(\'{"ready": true}\', flush=True)\ninput()\n')
  assert comparer.equal('1', '2') == (None, 'undecided: the process of math-verify ended twice')


def test_a_fault_of_the_parser_is_undecided_and_named(worker, comparer):
  worker('print(\'{"ready": true}\', flush=True)\ninput()\nprint(\'{"equal": null, "why": "ValueError"}\', flush=True)')
  assert comparer.equal('1', '2') == (None, 'undecided: ValueError')
  assert comparer.starts == 1


def test_missing_math_verify_is_reported(worker, comparer):
  worker('print(\'{"missing": "No module named math_verify"}\')')
  with pytest.raises(UserError, match='No module named math_verify; install it with: pip install math-verify'):
    comparer.equal('1', '2')


def test_a_worker_that_does_not_start_is_reported(worker, comparer, monkeypatch):
  monkeypatch.setattr(symbolic, 'START_LIMIT', 0.1)
  worker('while True:\n  pass\n')
  with pytest.raises(UserError, match=r'its process did not start in 0\.1 s; install it with: pip install math-verify'):
    comparer.equal('1', '2')
  assert comparer._process is None


def test_the_worker_says_what_is_missing(tmp_path):
  (tmp_path / 'math_verify.py').write_text('raise ImportError("no math_verify here")')
  code = f'import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path(sys.argv[1], run_name="__main__")'
  words = [sys.executable, '-c', code, str(symbolic._WORKER)]
  done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
  assert json.loads(done.stdout) == {'missing': 'no math_verify here'}, done.stderr


def test_the_worker_has_a_limit_of_memory():
  code = (
    'import resource, runpy, sys; module = runpy.run_path(sys.argv[1]); module["limit_memory"](); '
    'print(resource.getrlimit(resource.RLIMIT_AS)[0] == module["MEMORY_LIMIT"] == 4 * 2**30)'
  )
  words = [sys.executable, '-c', code, str(symbolic._WORKER)]
  done = subprocess.run(words, capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == 'True', done.stderr


def test_grading_imports_neither_jax_nor_sympy():
  code = (
    'import sys; from mathqwen.evals.report import table; from mathqwen.grading import *; '
    'grade.grade("\\\\boxed{0.5}", "1/2", "math"); '
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
  process = pathlib.Path('/proc', parent.stdout.readline().strip())
  time.sleep(0.5)  # it is at work
  parent.kill()
  parent.wait()
  deadline = time.monotonic() + DECIDED
  with contextlib.suppress(OSError):  # it is gone
    while process.joinpath('stat').read_text().rpartition(')')[2].split()[0] != 'Z':
      assert time.monotonic() < deadline
      time.sleep(0.1)


def test_worker_imports_no_jax():
  source = pathlib.Path(symbolic._WORKER).read_text()
  assert 'mathqwen' not in source.replace('mathqwen/', '')
  code = 'import sys, math_verify, sympy; print("jax" in sys.modules)'
  done = subprocess.run([sys.executable, '-P', '-c', code], capture_output=True, text=True, timeout=120)
  assert done.stdout.strip() == 'False'
