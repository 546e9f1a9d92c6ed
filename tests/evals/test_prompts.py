"""Prompts: literal texts, ids, what names them, where an answer is cut; the worked examples' arithmetic."""

import itertools
import pathlib
import re
import types

import pytest
import sympy

from mathqwen.evals import benchmarks, prompts, worked_examples
from mathqwen.grading import grade

EXAMPLE = types.SimpleNamespace(question='What is 1+1?')

TEXTS = {
  'alpaca': 'Below is an instruction that describes a task. Write a response that appropriately completes the request.'
  '\n\n### Instruction:\nWhat is 1+1?\n\n### Response:',
  'wizardmath': 'Below is an instruction that describes a task. Write a response that appropriately completes the '
  "request.\n\n### Instruction:\nWhat is 1+1?\n\n### Response: Let's think step by step.",
  'abel': "Question:\nWhat is 1+1?\nAnswer:\nLet's think step by step.\n",
}


@pytest.mark.parametrize('name', TEXTS)
def test_zero_shot_texts(name):
  assert prompts.get(name).text(EXAMPLE) == TEXTS[name]


@pytest.mark.parametrize(
  'name, shots, begins, ends',
  [
    ('qwen-base', 8, 'Question: A baker', "\n\nQuestion: What is 1+1?\nLet's think step by step\n"),
    ('minerva', 4, 'Problem:\nWhat is the larger', '\n\nProblem:\nWhat is 1+1?\n\nSolution:'),
    ('lm-eval', 5, 'Question: A baker', '\n\nQuestion: What is 1+1?\nAnswer:'),
  ],
)
def test_few_shot_texts(name, shots, begins, ends):
  text = prompts.get(name).text(EXAMPLE)
  assert text.startswith(begins) and text.endswith(ends)
  assert len(re.findall('^(?:Question|Problem):', text, re.MULTILINE)) == shots + 1


def test_form_of_a_shot():
  assert prompts.get('lm-eval').text(EXAMPLE).split('\n\n')[1].endswith('= 50 passengers.\n#### 50')
  shot = prompts.get('qwen-base').text(EXAMPLE).split('\n\n')[3]
  assert "is it full?\nLet's think step by step\nEvery minute" in shot and shot.endswith('minutes.\nThe answer is 50')
  text = prompts.get('minerva').text(EXAMPLE)
  assert '\n\nSolution:\nOf the $6' in text
  assert '$.\nFinal Answer: The final answer is $\\frac{1}{9}$. I hope it is correct.\n\nProblem:\nFind' in text


def test_qwen_chat_few_shot_is_one_turn():
  system, user = prompts.get('qwen-chat-few-shot').messages(EXAMPLE, 'Be brief.')
  assert system == {'role': 'system', 'content': 'You are a helpful assistant.'}
  assert user['role'] == 'user' and user['content'].count('The answer is ') == 4
  assert user['content'].endswith("The answer is 50\n\nQuestion: What is 1+1?\nLet's think step by step")


@pytest.mark.parametrize('name', prompts.PROMPTS)
def test_every_entry_is_complete(name):
  prompt = prompts.PROMPTS[name]
  assert (prompt.messages is None) != (prompt.text is None) and prompt.about
  if prompt.text:  # the worked examples do not hold what ends an answer, but where the next one begins
    assert not any(stop in text for stop in prompt.stop for text in answers(name))


def answers(name):
  shots = worked_examples.MATHEMATICS if name == 'minerva' else worked_examples.WORD_PROBLEMS
  return [f'{worked.solution} {worked.answer}' for worked in shots]


def rules_of(name):
  """{benchmark: rule} of a prompt's system."""
  settings = {benchmark.name: benchmark.by_prompt.get(name) for benchmark in benchmarks.BENCHMARKS.values()}
  return {benchmark: found.rule for benchmark, found in settings.items() if found and found.rule}


@pytest.mark.parametrize('name', [name for name in prompts.PROMPTS if rules_of(name)])
def test_an_answer_in_the_form_of_the_worked_examples_is_read_by_the_rule(name):
  for benchmark, rule in rules_of(name).items():
    endings = {
      'minerva': 'Final Answer: The final answer is $5$. I hope it is correct.',
      'wizardmath': 'The answer is: 5',
      'qwen-base': 'The answer is 5',
    }
    ending = endings.get(name, 'The answer is 5' if name.startswith('qwen') else 'so\n#### 5')
    assert grade.grade(f'Thus 2 + 3.\n{ending}', '5', rule).correct, benchmark


def test_ids_of_text(reciting):
  tokenizer = reciting().tokenizer
  hostile = types.SimpleNamespace(question='<s> <|im_end|>')
  (found,) = prompts.ids(prompts.get('abel'), [hostile], tokenizer)
  assert found == list(b"Question:\n<s> <|im_end|>\nAnswer:\nLet's think step by step.\n")
  tokenizer.bos = 1
  assert prompts.ids(prompts.get('abel'), [hostile], tokenizer) == [[1, *found]]
  assert prompts.ids(prompts.get('chatml'), [hostile], tokenizer)[0][0] == tokenizer.im_start


def test_cut():
  assert prompts.cut('It is 4.\n\nQuestion: next', ('Question:', '\n\n')) == ('It is 4.', True)
  assert prompts.cut('It is 4.', ('\n\n',)) == ('It is 4.', False)
  assert prompts.cut('It is 4.', ()) == ('It is 4.', False)
  assert prompts.cut('\n\n', ('\n\n',)) == ('', True)


@pytest.mark.parametrize('worked', worked_examples.WORD_PROBLEMS)
def test_arithmetic_of_the_word_problems(worked):
  equations = re.findall(r'([\d(][\d ()*/+-]*) = (\d+)', worked.solution)
  assert len(equations) == worked.solution.count('=') >= 2
  for left, right in equations:
    assert sympy.sympify(left) == int(right), (left, right)
  assert worked.answer in (equations[-1][1], re.findall(r'\d+', worked.solution)[-1])


def test_answers_of_the_mathematics_problems():
  roots, dice, interval, expansion = worked_examples.MATHEMATICS
  x = sympy.Symbol('x', real=True)
  assert max(sympy.solve(x**2 - 7 * x + 10)) == int(roots.answer)
  twelve = sum(a * b == 12 for a, b in itertools.product(range(1, 7), repeat=2))
  assert sympy.Rational(twelve, 36) == sympy.Rational(1, 9) and dice.answer == '\\frac{1}{9}'
  assert sympy.solveset(abs(2 * x - 3) <= 5, x, sympy.S.Reals) == sympy.Interval(-1, 4) and interval.answer == '[-1,4]'
  assert sympy.expand((x + 2) * (x**2 - 3 * x + 1)) == x**3 - x**2 - 5 * x + 2
  assert expansion.answer == 'x^3 - x^2 - 5x + 2'
  for worked in worked_examples.MATHEMATICS:
    assert f'\\boxed{{{worked.answer}}}' in worked.solution


def test_no_worked_example_is_a_problem_of_a_benchmark():
  from mathqwen.data import sources

  data = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
  if not data.exists():
    pytest.skip(f'the full data sets are not here: there is no directory {data}')

  def grams(text):
    words = re.findall(r'\w+', text.lower())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

  ours = set().union(*(grams(w.question) for w in worked_examples.WORD_PROBLEMS + worked_examples.MATHEMATICS[:3]))
  for source in ('gsm8k', 'math'):
    rows, _ = sources.load(source, 'test', str(data), strict=True)
    shared = [row.id for row in rows if grams(row.question) & ours]
    assert not shared
