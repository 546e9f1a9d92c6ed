"""Rows in the forms of public data sets: what is read of them, and what is refused rather than misread."""

import json

import pytest
from json_lines import write_lines
from two_rows import TURNS, read, refusal

from mathqwen.data import sources
from mathqwen.data.field_texts import gold_of
from mathqwen.errors import UserError


@pytest.mark.parametrize(
  ('record', 'question', 'solution', 'answer'),
  [
    # SVAMP and ASDiv: the question is about a text in another column.
    ({'Body': 'Ann has 3 pens.', 'Question': 'How many?', 'Answer': 3}, 'Ann has 3 pens.\nHow many?', '3', '3'),
    # Code is no calculator annotation; GSM8K's are.
    ({'prompt': 'Read n.', 'response': 'cout << "n="; cin >> n;'}, 'Read n.', 'cout << "n="; cin >> n;', ''),
    ({'prompt': 'Shift.', 'response': '1 << 2 >> 1'}, 'Shift.', '1 << 2 >> 1', ''),
    ({'query': '2*3', 'response': 'It is <<2*3=6>>6.\n#### 6'}, '2*3', 'It is 6.\n#### 6', '6'),
    # The options stand in the question, spelled in another way.
    ({'question': 'Which? A. 21 B. 7', 'options': ['A)21', 'B)7'], 'answer': 'B'}, 'Which? A. 21 B. 7', 'B', 'B'),
    # A sentence is no gold answer.
    ({'question': 'How many?', 'answer': 'If Jo is fifth, then 4 were faster.'}, 'How many?', None, ''),
    # An answer that is true.
    ({'question': 'Is it even?', 'solution': 'Yes: 2.', 'answer': True}, 'Is it even?', 'Yes: 2.', 'True'),
    # verl: the worked solution where there is one, and answers that are lists in JSON.
    (
      {'prompt': [{'role': 'user', 'content': 'Q'}], 'reward_model': {'ground_truth': '72'},
       'extra_info': {'answer': '70+2=72\n#### 72'}},
      'Q', '70+2=72\n#### 72', '72',
    ),
    ({'prompt': [{'role': 'user', 'content': 'Q'}], 'reward_model': {'ground_truth': '["2"]'}}, 'Q', '2', '2'),
    ({'prompt': 'Q', 'reward_model': {'ground_truth': '[1, 2]'}}, 'Q', '[1, 2]', '[1, 2]'),
  ],
)  # fmt: skip
def test_questions_and_answers(record, question, solution, answer, tmp_path):
  example = read(tmp_path, record)[0][0]
  wanted = record['answer'] if solution is None else solution
  assert (example.question, example.solution, example.answer) == (question, wanted, answer)


@pytest.mark.parametrize(
  ('record', 'system'),
  [
    ({'messages': [{'from': 'human', 'value': '1+1='}, {'from': 'gpt', 'value': '2'}]}, None),
    ({'conversation': TURNS}, None),
    ({'conversation': [{'system': 'Count.', 'input': '1+1=', 'output': '2', 'output_with_loss': True}]}, 'Count.'),
    ({'conversations': [{'role': 'system', 'content': 'Count.'}, *TURNS], 'system_prompt': 'Count.'}, 'Count.'),
    ({'question': '1+1=', 'answer': '2', 'system_message': 'Count.'}, 'Count.'),
    ({'prompt': [{'role': 'system', 'content': 'Count.'}, TURNS[0]], 'reward_model': {'ground_truth': '2'}}, 'Count.'),
  ],
)
def test_conversations(record, system, tmp_path):
  example = read(tmp_path, record)[0][0]
  before = [] if system is None else [{'role': 'system', 'content': system}]
  assert example.messages == (*before, *TURNS)


def test_an_exchange_may_be_without_loss(tmp_path):
  exchanges = [{'input': '1+1=', 'output': '2', 'output_with_loss': False}, {'input': '1+2=', 'output': '3'}]
  example = read(tmp_path, {'conversation': exchanges})[0][0]
  assert [turn.get('weight', 1) for turn in example.messages] == [1, 0, 1, 1]
  kind, reason = refusal(tmp_path, {'conversation': [exchanges[0] | {'mask': [1]}]})
  assert (kind, reason) == (
    'malformed',
    'turn 2: field "mask" is not read: remove it, or use "weight": 0 on turns of `messages`',
  )


def test_turns_of_tools(tmp_path):
  """As LLaMA-Factory writes them, for a chat template."""
  call = {'name': 'add', 'arguments': {'a': 1, 'b': 1}}
  turns = [{'from': 'human', 'value': '1+1='}, {'from': 'function_call', 'value': json.dumps(call)}]
  turns += [{'from': 'observation', 'value': '2'}, {'from': 'gpt', 'value': 'It is 2.'}]
  example = read(tmp_path, {'conversations': turns}, any_turns=True)[0][0]
  assert [turn['role'] for turn in example.messages] == ['user', 'assistant', 'tool', 'assistant']
  assert example.messages[1]['tool_calls'] == [{'type': 'function', 'function': call}]
  kind, reason = refusal(
    tmp_path, {'conversations': [turns[0], {'from': 'function_call', 'value': 'add(1, 1)'}]}, any_turns=True
  )
  assert (kind, reason) == ('malformed', 'turn 2: function_call is not JSON with "name" and "arguments"')


@pytest.mark.parametrize(
  ('record', 'kind', 'reason'),
  [
    # What a question is asked about, and what it chooses from.
    ({'question': 'Which?', 'choices': ['3', '4'], 'answer': 1}, 'malformed', 'field "choices" is not read'),
    ({'query': 'Which?', 'options': {'A': '3', 'B': '4'}, 'response': 'A'}, 'malformed', 'field "options" is not read'),
    ({'question': 'Which?', 'A': '3', 'B': '4', 'C': '5', 'D': '6', 'answer': 'C'}, 'malformed', '"A", "B", "C"'),
    ({'passage': 'Ann has 3.', 'question': 'How many?', 'answer': '3'}, 'malformed', 'field "passage" is not read'),
    ({'table': 'pen | 3', 'question': 'How many?', 'answer': '3'}, 'malformed', 'field "table" is not read'),
    ({'image': 'a.png', 'messages': TURNS}, 'malformed', 'field "image" is not read'),
    ({'prompt': 'x', 'images': ['a.png'], 'reward_model': {'ground_truth': '3'}}, 'malformed', 'field "images"'),
    ({'problem': 'x', 'generated_solution': '3', 'weight': 0}, 'malformed', 'field "weight" of a row is not read'),
    # What its own data set calls wrong.
    ({'prompt': '1+1=', 'completion': '3', 'label': False}, 'unverified', 'label is False'),
    ({'messages': TURNS, 'label': False}, 'unverified', 'label is False'),
    ({'problem': '1+1=', 'response': '3', 'is_correct': 'false'}, 'unverified', "is_correct is 'false'"),
    # Turns: reasoning under its third name, and Axolotl's mask.
    ({'messages': [TURNS[0], TURNS[1] | {'reasoning': 'hm'}]}, 'malformed', 'field "reasoning" is not read'),
    ({'messages': [TURNS[0], TURNS[1] | {'train_detail': [1]}]}, 'malformed', 'field "train_detail" is not read'),
    ({'messages': [{'role': 'system', 'content': 'A'}, *TURNS], 'system': 'B'}, 'malformed', 'beside another system'),
    # What is no text is named as what it is.
    ({'question': '1+1=', 'answer': [2, 3]}, 'malformed', 'field "answer" is no text but a list of 2'),
    ({'question': '1+1=', 'solution': '2', 'answer': {'value': '2'}}, 'malformed', 'the gold answer is no text but an'),
  ],
)
def test_refused_rows(record, kind, reason, tmp_path):
  found_kind, found = refusal(tmp_path, record)
  assert found_kind == kind and reason in found


def test_a_verdict_is_no_answer_for_map(tmp_path):
  record = {'q': '1+1=', 'a': '3', 'is_correct': False}
  path = write_lines(tmp_path / 'rows.jsonl', record, record | {'is_correct': True})
  kept, report = sources.load(str(path), columns=('question=q', 'solution=a'))
  assert len(kept) == 1 and report.counts['unverified'] == 1


def test_a_text_that_the_question_is_about_by_map(tmp_path):
  path = write_lines(tmp_path / 'rows.jsonl', {'passage': 'Ann has 3.', 'q': 'How many?', 'a': '3'})
  ((example,), _) = sources.load(str(path), columns=('body=passage', 'question=q', 'answer=a'))
  assert example.question == 'Ann has 3.\nHow many?'


def test_a_step_that_follows_others_is_no_answer(tmp_path):
  """Math-Step-DPO-10K: both answers continue `initial_reason_steps`."""
  pair = {'prompt': 'x?', 'initial_reason_steps': 'First,', 'chosen': ' so 2.', 'rejected': ' so 3.'}
  path = write_lines(tmp_path / 'rows.jsonl', pair, {'prompt': 'y?', 'chosen': '2', 'rejected': '3'})
  kept, report = sources.load(str(path), pairs=True)
  assert len(kept) == 1 and 'field "initial_reason_steps" is not read' in report.rows['malformed'][0][1]


# --- gold answers ---


@pytest.mark.parametrize(
  ('solution', 'gold'),
  [
    ('#### Step 1\n2+3\n#### Step 2: Conclude\nSo \\boxed{5}', '5'),
    ('#### Step 2: Conclude\nSo 5', ''),
    ('x\n#### (1,2)', '(1,2)'),
    ('x\n#### 1,250', '1250'),
    ('x\n#### 4\nThe answer is: 4', '4'),
    ('小明还剩下5-2=3个苹果。', ''),
    ('小明还剩下三个苹果', ''),
    ('3个', '3个'),
    ('<think>t</think><answer>2</answer>', ''),
    ('$x^2$', '$x^2$'),
  ],
)
def test_the_gold_answer_of_a_solution(solution, gold):
  assert gold_of(solution) == gold


# --- files ---


def test_an_object_with_a_question_is_a_row(tmp_path):
  row = {'problem': 'x?', 'solution': '2', 'sub_questions': [{'question': 'y?', 'answer': '1'}]}
  (tmp_path / 'row.json').write_text(json.dumps(row))
  ((example,), report) = sources.load(str(tmp_path / 'row.json'))
  assert (example.question, list(report.unread)) == ('x?', ['sub_questions'])


@pytest.mark.parametrize('key', ['messages', 'conversation'])
def test_an_object_with_turns_is_a_row(key, tmp_path):
  turns = TURNS if key == 'messages' else [{'input': '1+1=', 'output': '2'}]
  (tmp_path / 'row.json').write_text(json.dumps({key: turns}))
  ((example,), _) = sources.load(str(tmp_path / 'row.json'))
  assert example.messages == tuple(TURNS)


def test_columns_of_rows_by_name(tmp_path):
  (tmp_path / 'rows.json').write_text(
    json.dumps({'question': {'a': '1+1=', 'b': '1+2='}, 'answer': {'a': '2', 'b': '3'}})
  )
  assert [example.answer for example in sources.load(str(tmp_path / 'rows.json'))[0]] == ['2', '3']


def test_the_reason_comes_before_what_is_expected(tmp_path):
  path = write_lines(tmp_path / 'rows.jsonl', {'question': 'Which?', 'choices': ['3', '4'], 'answer': 1})
  with pytest.raises(UserError, match=r'among 1: rows.jsonl:1 \(field "choices" is not read.*; expected: '):
    sources.load(str(path))


def test_what_stands_beside_a_list_of_rows_is_named(tmp_path, capsys):
  (tmp_path / 'rows.json').write_text(json.dumps({'version': '1', 'data': [{'question': 'x?', 'answer': '2'}]}))
  assert len(sources.load(str(tmp_path / 'rows.json'))[0]) == 1
  assert 'its rows are a list beside version, which training does not read' in capsys.readouterr().err


def test_rows_by_name(tmp_path):
  rows = {f'train_{n}': {'question': f'{n}+1=', 'answer': f'{n + 1}'} for n in range(40)}
  (tmp_path / 'rows.json').write_text(json.dumps(rows))
  assert [example.answer for example in sources.load(str(tmp_path / 'rows.json'))[0]] == [str(n + 1) for n in range(40)]


def test_many_names_are_not_all_shown(tmp_path):
  path = write_lines(tmp_path / 'rows.jsonl', {f'name_{n}': 'x' for n in range(3000)})
  with pytest.raises(UserError, match=r'name_19, \.\.\. \(3,000 in all\)') as error:
    sources.load(str(path))
  assert len(str(error.value)) < 2000


def test_the_column_of_turns_is_named(tmp_path):
  path = write_lines(tmp_path / 'rows.jsonl', {'dialogue': TURNS})
  with pytest.raises(UserError, match='or messages=dialogue names others'):
    sources.load(str(path))
  assert len(sources.load(str(path), columns=('messages=dialogue',))[0]) == 1


@pytest.mark.parametrize(
  ('head', 'what'),
  [(b'<?xml version="1.0"?>', 'XML'), (b'Rar!\x1a\x07', 'a RAR archive'), (b'\xd0\xcf\x11\xe0\xa1', 'an old Excel')],
)
def test_a_format_that_holds_no_rows_is_named(head, what, tmp_path):
  (tmp_path / 'rows.jsonl').write_bytes(head + b'<a>1</a>' * 20)
  with pytest.raises(UserError, match=f'rows.jsonl is {what}'):
    sources.load(str(tmp_path / 'rows.jsonl'))


def test_the_line_of_excel_that_names_the_separator(tmp_path):
  (tmp_path / 'rows.csv').write_text('sep=;\nquestion;answer\n1+1=;2\n')
  ((example,), _) = sources.load(str(tmp_path / 'rows.csv'))
  assert (example.question, example.answer, example.where) == ('1+1=', '2', 'rows.csv:3')


def test_a_quotation_mark_does_not_join_rows(tmp_path):
  (tmp_path / 'rows.tsv').write_text('question\tanswer\n"Yes" or "no"?\t1\nIs it "x"?\t2\n"A\t3\nB"\t4\n')
  with pytest.raises(UserError, match='rows.tsv'):
    sources.load(str(tmp_path / 'rows.tsv'))
