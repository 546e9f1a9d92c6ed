"""New questions: what a teacher's reply says, masked numbers, and the majority that confirms an answer."""

import fake_server
import pytest
from four_questions import QUESTIONS

from mathqwen.augment import questions
from mathqwen.data.examples import Example
from mathqwen.errors import UserError


def example(question, answer='7'):
  return Example('rows/0', question, '', answer, {}, 'rows.jsonl:1')


def replies(kind, *texts, question='A pen costs 3 and a book 4. What do both cost?'):
  given = [{'id': f'rows/0/{kind}#{i}', 'response': text, 'truncated': text == 'cut'} for i, text in enumerate(texts)]
  return questions.from_replies(kind, [example(question)], [given])


def test_replies_of_a_teacher():
  found = replies(
    'rephrase',
    '<think>Let me <question>see</question>.</think>So: <question>What do a pen of 3 and a book of 4 cost?</question>',
    'What do they cost?',
    'cut',
    '<question>a  pen costs 3 and a book 4.\nWhat do both cost?</question>',
    '<question>What do a pen of 3 and a book of 4 COST?</question>',
  )
  assert [question.dropped for question in found] == [None, 'no question', 'cut off', 'unchanged', 'duplicate']
  assert found[0].question == 'What do a pen of 3 and a book of 4 cost?'
  assert (found[0].id, found[0].source_id, found[0].answer) == ('rows/0/rephrase0', 'rows/0', '7')
  found = replies(
    'numbers', '<question>A pen costs 3, a book 4. What?</question>', '<question>A pen costs 5</question>'
  )
  assert [(question.dropped, question.answer) for question in found] == [('unchanged', ''), (None, '')]


@pytest.mark.parametrize(
  'source, new, dropped',
  [
    ('Tom has three apples and buys two.', 'Tom has four apples and buys six.', None),
    ('Tom has three apples and buys 2.', 'Tom has Three pears, buys 2.', 'unchanged'),
    ('One of 3 boys has twenty-two pens.', 'A boy, one of 3, has twenty-two pens.', 'unchanged'),
    ('小明有三个苹果，买了两个。', '小明有五个苹果，买了两个。', None),
    ('小明有三个苹果。', '小红一共有三个苹果。', 'unchanged'),
  ],
)
def test_other_numbers_may_be_words(source, new, dropped):
  [found] = replies('numbers', f'<question>{new}</question>', question=source)
  assert found.dropped == dropped


def test_the_instruction_holds_the_question():
  asked = questions.instruction('numbers', example('How many?'))
  assert asked.question.endswith('\n\nHow many?') and '<question>' in asked.question and asked.id == 'rows/0/numbers'


def test_backward_questions():
  text = 'On 3/4 of 1,200 fields, at 10:30, 2x grow 15.5 kg; A4 and -7 and 5 m^2. How much?'
  found = questions.backward([example(text)], 9, 0)
  assert {question.answer for question in found} == {'1200', '15.5', '5'}
  of_1200 = next(question for question in found if question.answer == '1200')
  assert of_1200.question == text.replace('1,200', 'Y') + (
    ' If we know that the answer to the above question is 7, what is the value of the unknown variable Y?'
  )  # not X, which the question has in 2x
  assert found == questions.backward([example(text)], 9, 0)
  assert len(questions.backward([example(text)], 1, 0)) == 1
  assert len({questions.backward([example(text)], 1, seed)[0].answer for seed in range(9)}) == 3
  assert questions.backward([example('How many?')], 1, 0)[0].dropped == 'no number'
  assert questions.backward([example('小明有12个苹果，共有几个？')], 1, 0)[0].question.startswith(
    '小明有X个苹果，共有几个？已知'
  )


def votes(*answers, gold='7'):
  return [
    {'extracted': x, 'correct': x == gold, 'truncated': False} if x != 'cut' else
    {'extracted': gold, 'correct': True, 'truncated': True}
    for x in answers
  ]  # fmt: skip


@pytest.mark.parametrize(
  'expected, answers, least, outcome',
  [
    ('7', ['7', '7', '8'], 0.5, ('7', 2 / 3, '')),
    ('7', ['7', '8', '8'], 0.5, (None, 2 / 3, 'another answer')),
    ('7', ['7', '8'], 0.1, (None, 0.5, 'tie')),
    ('7', ['7', '8', '9', '7'], 0.6, (None, 0.5, 'no majority')),
    ('7', ['7', None, 'cut', '7'], 0.6, (None, 0.5, 'no majority')),  # what has no vote counts
    ('7', ['7', None, 'cut', '7'], 0.5, ('7', 0.5, '')),
    ('7', [None, 'cut'], 0.5, (None, 0.0, 'no sample has an answer')),
    ('', ['8.0', '8', '7'], 0.5, ('8.0', 2 / 3, '')),  # votes of one value
  ],
)
def test_the_majority(expected, answers, least, outcome):
  records = votes(*answers, gold=expected or None)
  assert questions.verify(expected, records, len(records), least) == outcome


def test_samples_that_never_came_count():
  """One of ten may be any answer."""
  records = votes('7', gold=None)
  assert questions.verify('', records, 10, 0.5) == (None, 0.1, 'no majority')
  assert questions.verify('', records * 5, 10, 0.5) == ('7', 0.5, '')


SOLUTIONS = {
  'rephrase': {'What do 40 and 2 make?': '42', 'What do 10 times 5 make?': '51', 'Take 4 from 9.': '5'},
  'numbers': {'What is 30 + 2?': '32', 'What is 11 * 5?': None, 'What is 9 - 3?': '6'},
}


@pytest.mark.parametrize('kind', ['rephrase', 'numbers'])
def test_a_teachers_questions(run, server, lines, kind):
  """Confirmed, with another answer or a tie, and none at all for the last question."""
  new = SOLUTIONS[kind]

  def reply(question, number):
    if question in new:
      return f'1+{number} = {1 + number}, so {new[question] or number % 2}'
    place = list(QUESTIONS).index(question.rpartition('\n')[2])
    return f'<question>{list(new)[place]}</question>' if place < 3 else 'What?'

  server.reply = reply
  server.script = [None, lambda handler: handler.say(b'', 500)]
  summary = run(samples=4, questions=kind)
  found = {row['question']: row for row in lines('new_questions')}
  second = 'another answer' if kind == 'rephrase' else 'tie'
  assert [row['dropped'] for row in found.values()] == [None, second, None, 'no question']
  assert summary['new_questions_dropped'] == {second: 1, 'no question': 1}
  rows = [row for row in lines('train') if row['question'] == list(new)[0]]
  assert [row['answer'] for row in rows] == [list(new.values())[0]] * 4  # four lists of equations
  assert rows[0]['id'] == f'rows/0/{kind}0#0' and rows[0]['solution'] == f'1+0 = 1, so {rows[0]["answer"]}'
  assert {row['question'] for row in lines('train')} == {list(new)[0], list(new)[2]} and summary['rows'] == 8
  assert summary['dropped'] == {'unverified question': 4}
  asked = len(server.asked)
  assert run(samples=4, questions=kind)['sha256'] == summary['sha256'] and len(server.asked) == asked


def replies_of(*answers):
  """What a server says that makes one question with other numbers, and solves it with these answers in turn."""

  def reply(question, number):
    return '<question>What is 50 + 2?</question>' if question.startswith('Write a new') else answers[number]

  return reply


def test_a_resumed_run_counts_its_votes_as_one_that_was_not_stopped(run, server, lines, tmp_path):
  """The samples of the first run were judged by the majority of that time, those of the second are not yet."""
  answers = ['so 52', 'it is 52', '40 + 12 = 52', '51 + 1 = 52']
  server.reply = replies_of(*answers)
  run(samples=4, questions='numbers', limit=1, out=tmp_path / 'whole')

  failing = iter([False, False, False, True, True])  # the new question, then its answers
  texts = iter(answers)
  teach = replies_of('')

  def respond(handler):
    if next(failing, False):
      handler.say(b'{}', 400)
      return
    text = teach(handler.question, 0) or next(texts)
    handler.say(fake_server.answer('', message={'role': 'assistant', 'content': text}))

  server.respond = respond
  with pytest.raises(UserError, match='2 problems have no answer'):
    run(samples=4, questions='numbers', limit=1)
  run(samples=4, questions='numbers', limit=1)
  for name in ('new_questions', 'train'):
    assert (tmp_path / 'out' / f'{name}.jsonl').read_text() == (tmp_path / 'whole' / f'{name}.jsonl').read_text()
  assert lines('new_questions')[0]['share'] == 1.0 and len(lines('train')) == 4


def test_the_least_share_may_change(run, server, lines):
  """What the first run found right by its majority votes again by its own words: 25% is not 25."""
  server.reply = replies_of(*['The answer is 25'] * 2, 'The answer is 25%', 'The answer is 7')
  run(samples=4, questions='numbers', limit=1, min_share=0.5)
  assert (lines('new_questions')[0]['share'], lines('new_questions')[0]['answer']) == (0.5, '25')
  assert {sample['correct'] for sample in lines('samples')} == {True, False}
  asked = len(server.asked)
  run(samples=4, questions='numbers', limit=1, min_share=0.6)
  assert (lines('new_questions')[0]['share'], lines('new_questions')[0]['dropped']) == (0.5, 'no majority')
  assert len(server.asked) == asked and lines('train') == []


def test_a_reply_that_comes_late_may_make_another_one_a_duplicate(run, server, lines):
  """The answers to that one, which are there, are passed over."""
  new = '<question>The same, in other words.</question>'
  texts = iter([None, new, 'so {}', 'it is {}'])  # the first reply does not come
  golds = []

  def respond(handler):
    text = next(texts)
    golds.append(QUESTIONS.get(handler.question.rpartition('\n')[2]))
    if text is None:
      handler.say(b'{}', 400)
    else:
      text = text.format(golds[0])
      handler.say(fake_server.answer('', message={'role': 'assistant', 'content': text}))

  server.respond = respond
  options = {'samples': 2, 'questions': 'rephrase', 'per_question': 2, 'limit': 1}
  with pytest.raises(UserError, match='1 problem has no answer .*/rephrase#0'):
    run(**options)
  assert [row['id'].rpartition('/')[2] for row in lines('train')] == ['rephrase1#0', 'rephrase1#1']
  texts = iter([new, 'so {}', 'it is {}'])
  assert run(**options)['new_questions_dropped'] == {'duplicate': 1}
  assert [row['id'].rpartition('/')[2] for row in lines('train')] == ['rephrase0#0', 'rephrase0#1']
  assert len(lines('samples')) == 2


def test_backward_questions_are_solved(run, server, lines):
  masked = {'40': '42', '10': '50', '9': '5', '8': '4', '2': '42', '5': '50', '4': '5'}

  def reply(question, number):
    return 'X = 1' if '50' in question else f'X = {set(masked) and hidden(question)}'

  def hidden(question):
    original = next(q for q, a in QUESTIONS.items() if f'is {a},' in question)
    return next(
      n for n in original.replace('?', '').split() if n.isdigit() and n not in question.partition('?')[0].split()
    )

  server.reply = reply
  summary = run(samples=3, questions='backward', per_question=2)
  assert summary['new_questions'] == 8 and summary['new_questions_kept'] == 6
  assert summary['new_questions_dropped'] == {'another answer': 2}
  assert all(row['solution'] == f'X = {row["answer"]}' for row in lines('train')) and len(lines('train')) == 6


def test_what_does_not_go_together(run):
  with pytest.raises(UserError, match='2 new questions at temperature 0 are all the same'):
    run(samples=1, questions='rephrase', per_question=2, temperature=0)
  with pytest.raises(UserError, match='per_question is 0'):
    run(questions='rephrase', per_question=0)
