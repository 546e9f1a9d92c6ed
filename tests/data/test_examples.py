"""Records in the form of each source, and in other forms that `load` reads."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest
from json_lines import write_lines

from mathqwen.data.arithmetic import GROUPS
from mathqwen.data.examples import parse_file
from mathqwen.data.field_texts import last_boxed
from mathqwen.data.sources import load
from mathqwen.errors import UserError
from mathqwen.evals.tasks.math23k import plain_number

NATALIA = {
  'question': 'How many clips did Natalia sell?',
  'answer': 'Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72',
}


def one(source, record, tmp_path, split='train'):
  parsed, report = parse_file(write_lines(tmp_path / 'rows.jsonl', record), source, split)
  assert len(parsed) == 1 and not report.counts
  return parsed[0]


def test_imports_nothing_heavy():
  code = (
    'import sys, mathqwen.data.examples, mathqwen.data.arithmetic; '
    'print([m for m in ("jax", "numpy", "tensorflow", "tensorflow_datasets") if m in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


# --- the four data sets ---


def test_gsm8k(tmp_path):
  example = one('gsm8k', NATALIA, tmp_path)
  assert example.id == 'gsm8k/train/0' and example.where == 'rows.jsonl:1' and example.messages is None
  assert example.question == 'How many clips did Natalia sell?'
  assert example.solution == 'Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips.\n#### 72'
  assert example.answer == '72'


def test_gsm8k_with_its_marks(tmp_path):
  example = one('gsm8k', NATALIA, tmp_path)
  marked = one('gsm8k?marks=keep', NATALIA, tmp_path)
  assert marked == dataclasses.replace(example, solution=NATALIA['answer'])
  assert one('gsm8k?marks=drop', NATALIA, tmp_path) == example


def test_drawings_of_math(tmp_path):
  plain = {'problem': 'Find $x$.', 'solution': r'It is $\boxed{2}$.', 'level': 'Level 1', 'type': 'Algebra'}
  drawing = '[asy]\ndraw((0,0)--(1,1));\n[/asy]'
  drawn = plain | {'problem': f'Find $x$.\n\n{drawing}'}
  solved = plain | {'solution': f'{drawing} It is $\\boxed{{2}}$.'}
  path = write_lines(tmp_path / 'rows.jsonl', plain, drawn, solved, plain | {'problem': drawing})
  kept, _ = parse_file(path, 'math', 'train')
  assert [drawing in example.question + example.solution for example in kept] == [False, True, True, True]
  stripped, report = parse_file(path, 'math?asy=strip', 'train')
  assert [(example.question, example.solution) for example in stripped] == [(plain['problem'], plain['solution'])] * 3
  assert report.lines() == ['1 not_wanted: rows.jsonl:4 (it is nothing but a drawing, and asy=strip)']
  dropped, report = parse_file(path, 'math?asy=drop', 'train')
  assert len(dropped) == 1 and report.counts == {'not_wanted': 3}
  report.check('math', 1, 0.0)  # what was asked for is not lost


@pytest.mark.parametrize('ending, answer', [('#### 2,125', '2125'), ('#### -5', '-5'), ('####  70,000 ', '70000')])
def test_gsm8k_answers(ending, answer, tmp_path):
  example = one('gsm8k', {'question': 'Janet’s ducks?', 'answer': f'It’s so.\n{ending}'}, tmp_path)
  assert example.answer == answer
  assert example.question == 'Janet’s ducks?' and example.solution == f'It’s so.\n{ending}'.strip()


@pytest.mark.parametrize(
  'solution, answer',
  [
    (r'so $a+b=-3+3=\boxed{0}$.', '0'),
    (r'$\boxed{3}$ or rather $\boxed{\frac{1}{2}}$', r'\frac{1}{2}'),
    (r'is $\boxed 2$.', '2'),
    (r'is \boxed 9', '9'),
    (r'\boxed{}', ''),
    ('no box', ''),
    (r'\boxed{ \{1, 2\} }', r'\{1, 2\}'),
    (r'\boxed{\left\{ x \right\}}', r'\left\{ x \right\}'),
    (r'\boxed{14,\!400}', r'14,\!400'),
    (r'\boxed{2112_6}', '2112_6'),
    (r'\boxed{never closed', ''),
    (r'\fbox{7}', '7'),
    (r'\boxed{\text{(A) } \{}', r'\text{(A) } \{'),
  ],
)
def test_last_boxed(solution, answer):
  assert last_boxed(solution) == answer


@pytest.mark.parametrize(
  'record, level, subject',
  [
    ({'level': 'Level 5', 'type': 'Algebra'}, 5, 'Algebra'),
    ({'level': 'Level ?', 'type': 'Geometry'}, None, 'Geometry'),
    ({'level': 2, 'subject': 'Precalculus'}, 2, 'Precalculus'),
    ({}, None, None),
  ],
)
def test_math_levels_and_subjects(record, level, subject, tmp_path):
  example = one('math', {'problem': 'p', 'solution': r'\boxed{1}'} | record, tmp_path)
  assert (example.extra, example.answer, example.id) == ({'level': level, 'subject': subject}, '1', 'math/train/0')


def test_math500_names_its_rows_and_answers(tmp_path):
  example = one(
    'math500',
    {
      'problem': 'p',
      'solution': r'\boxed{3}',
      'answer': 'p - q',
      'subject': 'Algebra',
      'level': 1,
      'unique_id': 'test/algebra/7.json',
    },
    tmp_path,
    'test',
  )
  assert (example.id, example.answer) == ('test/algebra/7.json', 'p - q')


def test_math_rows_take_their_paths_from_the_file_beside(tmp_path):
  rows = [{'problem': f'p{n}', 'solution': r'\boxed{1}'} for n in range(2)]
  path = write_lines(tmp_path / 'train.jsonl.gz', *rows)
  write_lines(tmp_path / 'train_paths.txt.gz', 'train/algebra/0.json', 'train/algebra/100.json')
  assert [e.id for e in parse_file(path, 'math', 'train')[0]] == ['train/algebra/0.json', 'train/algebra/100.json']
  write_lines(tmp_path / 'train_paths.txt.gz', 'train/algebra/0.json')  # not the paths of these rows
  assert [e.id for e in parse_file(path, 'math', 'train')[0]] == ['math/train/0', 'math/train/1']


def test_an_empty_box_is_not_an_answer_but_trains(tmp_path):
  write_lines(tmp_path / 'a.jsonl', {'problem': 'p', 'solution': r'so $\boxed{}$'})
  (example,), report = load(str(tmp_path / 'a.jsonl'))
  assert example.answer == '' and example.solution == r'so $\boxed{}$' and not report.counts
  with pytest.raises(UserError, match=r'a\.jsonl:1: no gold answer'):
    load(str(tmp_path / 'a.jsonl'), strict=True)


def test_math401_groups_go_by_row_and_the_record_wins(tmp_path):
  rows = [{'query': f' {n} + 0=', 'response': str(n)} for n in range(401)]
  rows[0], rows[30]['group'] = {'query': 'e^(iπ)+1=', 'response': '0'}, 'mine'
  path = write_lines(tmp_path / 'math401.json', *rows, end='')  # upstream: no final newline
  parsed, report = parse_file(path, 'math401', 'test')
  assert len(parsed) == 401 and not report.counts
  assert parsed[1].question == '1 + 0=' and parsed[1].answer == parsed[1].solution == '1'
  groups = [example.extra['group'] for example in parsed]
  assert groups[0] == 'Euler' and groups[30] == 'mine'
  assert groups[1] == groups[25] == GROUPS[0] == 'add_sub_10' and groups[26] == groups[50] == GROUPS[1]
  assert groups[376] == groups[400] == GROUPS[15] == 'log'
  parsed, report = parse_file(write_lines(tmp_path / 'turned.json', *rows[::-1]), 'math401', 'test')
  assert 'group' not in parsed[1].extra and report.lines() == [
    "1 other_order: line 1 (Math401 begins with Euler's identity: which row is of which group?)"
  ]
  parsed, _ = parse_file(write_lines(tmp_path / 'fewer.json', *rows[:400]), 'math401', 'test')
  assert 'group' not in parsed[1].extra and parsed[30].extra['group'] == 'mine'


@pytest.mark.parametrize(
  'ans, answer',
  [
    ('20', '20'),
    ('14.4', '14.4'),
    ('0.720', '0.720'),
    ('((3)/(4))', '3/4'),
    ('5((7)/(10))', '57/10'),
    ('12.5%', '12.5%'),
    ('25%', '25%'),
    ('-1.5', '-1.5'),
  ],
)
def test_math23k_answers(ans, answer):
  assert plain_number(ans) == answer


@pytest.mark.parametrize(
  'equation, ans, solution',
  [
    ('x=(11-1)*2', '20', '算式：(11-1)*2\n11-1=10\n10*2=20\n答案：20'),
    ('x=120*80%*15%', '14.4', '算式：120*80%*15%\n120*80%=96\n96*15%=14.4\n答案：14.4'),
    ('x=3-2/6+5', '7((2)/(3))', '算式：3-2/6+5\n2/6=1/3\n3-(1/3)=8/3\n(8/3)+5=23/3\n答案：23/3'),
    ('x=(125-100)/100', '25%', '算式：(125-100)/100\n125-100=25\n25/100=0.25\n0.25=25%\n答案：25%'),
    ('x=3.14*(4/2)^2', '12.56', '算式：3.14*(4/2)^2\n4/2=2\n2^2=4\n3.14*4=12.56\n答案：12.56'),
    ('x=[12-4*(3/8)]/7', '1((1)/(2))', '算式：[12-4*(3/8)]/7\n4*(3/8)=3/2\n12-(3/2)=21/2\n(21/2)/7=3/2\n答案：3/2'),
    ('x=1-(-(1/2))', '1.5', '算式：1-(-(1/2))\n1-(-(1/2))=3/2\n3/2=1.5\n答案：1.5'),
    ('x=0.72', '0.720', '算式：0.72\n答案：0.720'),
    ('x=13/(13+17)', '((13)/(30))', '算式：13/(13+17)\n13+17=30\n答案：13/30'),
    ('x=80千米/小时', '80', '答案：80'),
    ('x=(15+25)/10', '21', '答案：21'),
  ],
)
def test_math23k_solutions(equation, ans, solution, tmp_path):
  record = {'id': '946', 'original_text': '多少米？', 'segmented_text': None, 'equation': equation, 'ans': ans}
  example = one('math23k', record, tmp_path, 'test')
  lines = solution.split('\n')
  short = '\n'.join(dict.fromkeys([lines[0], lines[-1]]))
  assert one('math23k?solution=short', record, tmp_path, 'test') == dataclasses.replace(example, solution=short)
  assert example.solution == solution and example.id == 'math23k/test/946' and example.question == '多少米？'
  assert example.extra == {'equation': equation, 'ans': ans}


def test_math23k_upstream_file_is_objects_one_after_another(tmp_path):
  records = [
    {'id': str(n), 'original_text': f'第{n}题？', 'segmented_text': '第 题', 'equation': 'x=1+1', 'ans': '2'}
    for n in (35, 65)
  ]
  text = '\n'.join(json.dumps(record, indent=4, ensure_ascii=False) for record in records)
  (tmp_path / 'test_upstream.json').write_text(text, 'utf-8')
  parsed, _ = parse_file(tmp_path / 'test_upstream.json', 'math23k', 'test')
  assert [(e.id, e.where) for e in parsed] == [
    ('math23k/test/35', 'test_upstream.json:1'),
    ('math23k/test/65', 'test_upstream.json:8'),
  ]
  (tmp_path / 'test_upstream.json').write_text(text[:-1], 'utf-8')
  with pytest.raises(UserError, match='test_upstream.json:8: half-written'):
    parse_file(tmp_path / 'test_upstream.json', 'math23k', 'test')


def test_arithmetic_source(tmp_path):
  write_lines(tmp_path / 'arithmetic' / 'test.jsonl', {'query': '1+1=', 'response': '2', 'group': 'add_sub_10'})
  (example,), _ = load('arithmetic', 'test', str(tmp_path))
  assert (example.id, example.answer, example.extra) == ('arithmetic/test/0', '2', {'group': 'add_sub_10'})
  with pytest.raises(UserError, match='--data-dir'):
    load('arithmetic', 'test')


# --- other .jsonl files ---


@pytest.mark.parametrize(
  'record, question, solution, answer, extra',
  [
    ({'question': 'q', 'answer': 'a\n#### 1,000', 'n': 1}, 'q', 'a\n#### 1,000', '1000', {'n': 1}),
    ({'question': 'q', 'solution': 's', 'answer': 7}, 'q', 's', '7', {}),
    ({'question': 'q', 'answer': 'x = 3'}, 'q', 'x = 3', 'x = 3', {}),
    ({'query': '1+1=', 'response': '2'}, '1+1=', '2', '2', {}),
    ({'query': 'q', 'response': 'It is\n\\boxed{5}.'}, 'q', 'It is\n\\boxed{5}.', '5', {}),
    ({'query': 'q', 'response': 'no number here'}, 'q', 'no number here', '', {}),
    ({'problem': 'p', 'solution': '$\\boxed{4}$', 'level': 'Level 1'}, 'p', '$\\boxed{4}$', '4', {'level': 'Level 1'}),
  ],
)
def test_generic_schemas(record, question, solution, answer, extra, tmp_path):
  (example,), _ = load(str(write_lines(tmp_path / 'mine.jsonl.gz', record)))
  assert (example.question, example.solution, example.answer, example.extra) == (question, solution, answer, extra)
  assert example.id == 'mine/0' and example.where == 'mine.jsonl.gz:1'


def test_chats_bring_their_own_turns(tmp_path):
  turns = [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': '1+1?'},
    {'role': 'assistant', 'content': '2'},
    {'role': 'user', 'content': 'and 2+2?'},
    {'role': 'assistant', 'content': '4'},
  ]
  (example,), _ = load(str(write_lines(tmp_path / 'chat.jsonl', {'messages': turns, 'id': 'c1', 'source': 'mine'})))
  assert example.messages == tuple(turns) and example.id == 'c1'
  assert (example.question, example.solution, example.answer) == ('1+1?', '4', '4')
  assert example.extra == {'source': 'mine'}


@pytest.mark.parametrize(
  'messages, words',
  [
    ('hello', 'not a list'),
    ([{'role': 'user', 'content': 'q'}], 'without'),
    ([{'role': 'tool', 'content': 'q'}], "'tool'"),
    ([{'role': 'user', 'content': None}, {'role': 'assistant', 'content': 'a'}], 'content'),
  ],
)
def test_bad_chats_are_malformed(messages, words, tmp_path):
  _, report = load(str(write_lines(tmp_path / 'chat.jsonl', {'messages': messages}, {'query': '1=', 'response': '1'})))
  assert report.counts == {'malformed': 1} and words in report.lines()[0]


def test_weights_of_turns(tmp_path):
  """Weight 1 says nothing, so that rows that train on the same turns are duplicates."""

  def row(first, second):
    turns = [('user', 'q', 0), ('assistant', 'a', first), ('user', 'r', None), ('assistant', 'b', second)]
    return {'messages': [{'role': role, 'content': text, 'weight': weight} for role, text, weight in turns]}

  found, report = load(
    str(write_lines(tmp_path / 'chat.jsonl', row(1, 1), row(0, True), row(None, 1.0), row(False, 1)))
  )
  assert [[turn.get('weight') for turn in example.messages] for example in found] == [[None] * 4, [None, 0, None, None]]
  assert report.lines() == ['2 duplicate: chat.jsonl:3 (same as chat.jsonl:1), chat.jsonl:4 (same as chat.jsonl:2)']


@pytest.mark.parametrize(
  'names', [('messages', 'role', 'content', 'assistant'), ('conversations', 'from', 'value', 'gpt')]
)
def test_the_loss_of_a_turn_is_its_weight(names, tmp_path):
  """As ms-swift and XTuner write it."""
  field, role, content, assistant = names

  def row(first, second, **more):
    turns = [('user', 'q', False), (assistant, 'a', first), ('user', 'r', None), (assistant, 'b', second)]
    return {field: [{role: who, content: text, 'loss': loss, **more} for who, text, loss in turns]}

  rows = row(False, True), row(True, None, note='x'), row('false', True), row(0.5, True), row(True, True, weight=0)
  found, report = load(str(write_lines(tmp_path / 'chat.jsonl', *rows)))
  assert [[turn.get('weight') for turn in example.messages] for example in found] == [[None, 0, None, None], [None] * 4]
  assert report.unread == {f'{field}.note': 'chat.jsonl:2'} and report.counts == {'malformed': 3}
  assert [why.partition(':')[2] for _, why in report.rows['malformed']] == [
    " loss is 'false': it must be true or false (not trained on)",
    ' loss is 0.5: it must be true or false (not trained on)',
    ' loss is True and weight is 0: leave one of them',
  ]


def test_the_answers_of_a_prompt_have_no_loss_whatever_they_say(tmp_path):
  before = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a', 'loss': True}]
  asked = {'role': 'user', 'content': 'r', 'note': 1}
  row = {'prompt': [*before, asked], 'completion': [{'role': 'assistant', 'content': 'b'}]}
  ((example,), report) = load(str(write_lines(tmp_path / 'chat.jsonl', row)))
  assert [turn.get('weight') for turn in example.messages] == [None, 0, None, None]
  assert report.unread == {'prompt.note': 'chat.jsonl:1'}


@pytest.mark.parametrize(
  'row, turn, words',
  [
    ({}, {'weight': 0.5}, 'turn 2: weight is 0.5: it must be 0 (not trained on) or 1'),
    ({}, {'weight': '0'}, "turn 2: weight is '0': it must"),
    ({}, {'train': False}, 'turn 2: field "train" is not read: remove it, or use "weight": 0 on turns of `messages`'),
    ({}, {'mask': 0}, 'turn 2: field "mask" is not read'),
    ({}, {'tool_calls': [{}]}, 'turn 2: field "tool_calls" is not read: remove it, or write it into the text'),
    ({}, {'name': 'Ann'}, 'turn 2: field "name" is not read'),
    ({'weight': 0}, {}, 'field "weight" of a row is not read'),
    ({'loss_mask': [0, 1]}, {}, 'field "loss_mask" is not read'),
    ({'tools': [{}]}, {}, 'field "tools" is not read'),
    ({'functions': [{}]}, {}, 'field "functions" is not read'),
  ],
)
def test_fields_that_would_change_what_is_trained_are_refused(row, turn, words, tmp_path):
  turns = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'} | turn]
  good, other = {'query': '1=', 'response': '1'}, {'query': '2=', 'response': '2'}
  found, report = load(str(write_lines(tmp_path / 'a.jsonl', {'messages': turns} | row, good | row, other)))
  assert words in report.lines()[0] and report.counts == {'malformed': 2 if row else 1}
  # As data sets write a field that says nothing
  turns[1] |= dict.fromkeys(turn)
  found, report = load(str(write_lines(tmp_path / 'a.jsonl', {'messages': turns} | dict.fromkeys(row))))
  assert len(found) == 1 and not report.counts


def test_other_fields_that_nothing_reads_are_named(tmp_path):
  turns = [{'role': 'user', 'content': 'q', 'time': 3}, {'role': 'assistant', 'content': 'a', 'time': 4}]
  rows = {'query': 'q', 'response': 'r', 'level': 1}, {'messages': turns, 'id': 5, 'answer': 'a', 'level': 2, 'tag': ''}
  _, report = load(str(write_lines(tmp_path / 'a.jsonl', *rows)))
  assert report.unread == {'level': 'a.jsonl:1', 'tag': 'a.jsonl:2', 'messages.time': 'a.jsonl:2'}
  assert not report.counts


def test_ids_are_unique(tmp_path):
  rows = [{'id': 5, 'query': 'q', 'response': str(n)} for n in range(3)]
  path = str(write_lines(tmp_path / 'a.jsonl', *rows, {'id': '5#2', 'query': 'q', 'response': '9'}))
  found, report = load(path)
  assert [e.id for e in found] == ['5', '5#2', '5#3', '5#2#2']
  assert report.lines(1) == ["3 repeated_id: a.jsonl:2 (id '5' is already in a.jsonl:1), ..."]
  message = (
    r"a.jsonl:2: id '5' is already in a.jsonl:1; .*; 3 bad records in all; an evaluation needs every record, once"
  )
  with pytest.raises(UserError, match=message):
    load(path, strict=True)


@pytest.mark.parametrize('field', ['unique_id', 'answer', 'subject'])
def test_half_a_surrogate_pair_anywhere(tmp_path, field):
  row = {'problem': 'q', 'solution': r'\boxed{1}', 'answer': '1', 'level': 'Level ' + '9' * 5000} | {field: '\ud800'}
  path = write_lines(tmp_path / 'math' / 'test500.jsonl', json.dumps(row), row | {field: 'x'})
  found, report = parse_file(path, 'math500', 'test')
  assert len(found) == 1 and report.lines() == ['1 malformed: test500.jsonl:1 (holds half a surrogate pair)']


def test_one_id_for_many_rows_takes_no_time(tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', *({'id': 5, 'query': 'q', 'response': str(n)} for n in range(20_000)))
  begin = time.process_time()
  found, _ = parse_file(path, 'a', 'train')
  assert found[-1].id == '5#20000' and time.process_time() - begin < 10  # each looked up among all before: minutes


def test_an_id_of_math_500_is_text(tmp_path):
  (tmp_path / 'math').mkdir()
  row = {'problem': 'q', 'solution': r'\boxed{1}', 'answer': '1', 'unique_id': 7}
  path = write_lines(tmp_path / 'math' / 'test500.jsonl', row)
  with pytest.raises(UserError, match='field "unique_id" is not text'):
    parse_file(path, 'math500', 'test')
