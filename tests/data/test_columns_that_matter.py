"""Columns beside a question and its answer: those that change what a row teaches are read, or the row is refused."""

import json
import time

import pytest
from json_lines import write_lines
from two_rows import TURNS, read, refusal

from mathqwen.data import sources
from mathqwen.data.field_texts import gold_of
from mathqwen.errors import UserError

EARLIER = [{'role': 'user', 'content': '0+1='}, {'role': 'assistant', 'content': '1'}]
TOOL = {'type': 'function', 'function': {'name': 'add', 'parameters': {}}}
VERL = {'prompt': [TURNS[0]], 'reward_model': {'ground_truth': '2', 'style': 'rule'}}


# --- read ---


@pytest.mark.parametrize(
  ('record', 'question', 'solution', 'answer'),
  [
    # A number that is 0 is as much of an instruction as any other.
    ({'instruction': 'Add one.', 'input': 0, 'output': 1}, 'Add one.\n0', '1', '1'),
    # The worked solution is trained on, whatever its column is called.
    ({'question': '1+1=', 'target': '2', 'answer': 'One more.\n#### 2'}, '1+1=', 'One more.\n#### 2', '2'),
    ({'question': '1+1=', 'output': 'It is 2.', 'answer': 'One more.\n#### 2'}, '1+1=', 'It is 2.', '2'),
    # SVAMP: where the question holds the text that it is about, that is not asked twice.
    ({'Body': 'Ann has 3.', 'Question': 'Ann has 3. And now?', 'Answer': 3}, 'Ann has 3. And now?', '3', '3'),
    # verl, after generation.
    (VERL | {'response': 'One more: 2'}, '1+1=', 'One more: 2', '2'),
    # A list of gold answers as Python prints it.
    ({'question': '1+1=', 'solution': 'So 2.', 'final_answer': "['$2$']"}, '1+1=', 'So 2.', '$2$'),
    # A word that stands for no answer.
    ({'problem': 'Show it.', 'solution': 'Clear: 2', 'answer': 'proof'}, 'Show it.', 'Clear: 2', ''),
    # The answer of a sentence, and sentences that are none.
    ({'question': '2+2=', 'answer': 'The answer is 4.'}, '2+2=', 'The answer is 4.', '4'),
    ({'question': '2+2=', 'answer': 'We add. So the answer is 4 pens.'}, '2+2=', None, '4 pens'),
    ({'question': '2+2=', 'answer': '答案是4'}, '2+2=', '答案是4', '4'),
    ({'question': '2+2=', 'answer': 'Answer: 4'}, '2+2=', 'Answer: 4', '4'),
    ({'question': 'How long?', 'answer': '3 hours and 5 minutes'}, 'How long?', None, '3 hours and 5 minutes'),
    # The options stand in the question.
    (
      {'question': 'Which? (A) -1 (B) 1 (C) $\\frac12$', 'choices': ['-1', '1', '\\frac12'], 'answer': 'A'},
      'Which? (A) -1 (B) 1 (C) $\\frac12$', 'A', 'A',
    ),
    # A union of two schemas: the conversation of this row is empty.
    ({'messages': [], 'question': '1+1=', 'answer': '2'}, '1+1=', '2', '2'),
  ],
)  # fmt: skip
def test_questions_and_answers(record, question, solution, answer, tmp_path):
  example = read(tmp_path, record)[0][0]
  wanted = record['answer'] if solution is None else solution
  assert (example.question, example.solution, example.answer) == (question, wanted, answer)


@pytest.mark.parametrize(
  ('record', 'turns'),
  [
    ({'query': '1+1=', 'response': '2', 'history': [['0+1=', '1']]}, [*EARLIER, *TURNS]),  # ms-swift
    ({'instruction': '1+1=', 'output': '2', 'history': '[["0+1=", "1"]]', 'images': '[]'}, [*EARLIER, *TURNS]),  # CSV
    ({'conversations': ['0+1=', '1', '1+1=', '2']}, [*EARLIER, *TURNS]),  # LIMA
    ({'conversation': [{'human': '1+1=', 'assistant': '2'}]}, TURNS),  # Firefly
    ({'conversations': [{'from': 'user', 'content': '1+1='}, {'from': 'assistant', 'content': '2'}]}, TURNS),
    ({'messages': [{'from': None, 'value': None, **turn} for turn in TURNS]}, TURNS),  # Parquet: columns of all rows
    ({'messages': str(TURNS)}, TURNS),  # CSV by pandas: as Python prints it
    ({'prompt': str(TURNS[:1]), 'completion': '2'}, TURNS),
    # Magpie keeps its single turn beside the conversation.
    ({'instruction': '1+1=', 'response': '2', 'conversations': TURNS}, TURNS),
    ({'messages': TURNS, 'chat_template_kwargs': {'custom_instructions': '', 'xml_tools': []}}, TURNS),
  ],
)
def test_conversations(record, turns, tmp_path):
  assert read(tmp_path, record)[0][0].messages == tuple(turns)


@pytest.mark.parametrize('record', [{'query': '1+1=', 'response': '2'}, {'prompt': '1+1=', 'completion': '2'}, VERL])
def test_tools_of_a_row_without_turns_make_it_a_conversation(record, tmp_path):
  example = read(tmp_path, record | {'tools': [TOOL]}, any_turns=True)[0][0]
  assert example.messages == tuple(TURNS)
  assert example.tools == (TOOL,)


def test_tools_of_a_pair(tmp_path):
  record = {'prompt': '1+1=', 'chosen': '2', 'rejected': '3', 'tools': [TOOL]}
  other = {'prompt': 'plain?', 'chosen': '0', 'rejected': '1'}
  example = read(tmp_path, record, other, any_turns=True, pairs=True)[0][0]
  assert example.messages == tuple(TURNS)
  assert example.rejected == (TURNS[0], {'role': 'assistant', 'content': '3'})


# --- refused ---


@pytest.mark.parametrize(
  ('record', 'reason'),
  [
    # Published forms: what they do not read is refused as in any row.
    ({'problem': 'Which?', 'generated_solution': 'B', 'expected_answer': 'B', 'options': ['1', '2']}, 'options'),
    (VERL | {'passage': 'Ann has 3 pens.'}, 'passage'),
    (VERL | {'responses': ['2', '3']}, 'responses'),
    (VERL | {'reward_model': {'ground_truth': '{"inputs": ["1"], "outputs": ["2"]}'}}, 'test cases'),
    # Options, whatever they are called; a digit of the question is no option.
    ({'question': 'Which?', 'option_a': '1', 'option_b': '2', 'answer': 'B'}, 'option_a'),
    ({'question': 'Which?', 'A': '1', 'B': '2', 'answer': 'B'}, '"A", "B"'),
    ({'question': 'Which?', 'answer_choices': ['1', '2'], 'answer': 'B'}, 'answer_choices'),
    ({'question': '24135 modulo 7?', 'choices': ['1', '2', '3'], 'answer': 1}, 'choices'),
    ({'question': 'Which sign?', 'choices': ['+', '-', '×'], 'answer': '+'}, 'choices'),
    ({'question': 'Which is 1?', 'choices': ['-1', '1'], 'answer': 'B'}, 'choices'),
    ({'question': 'q', 'answer': 'a', 'image_1': 'x.png'}, 'image_1'),
    ({'question': 'q', 'answer': 'a', 'decoded_image': {'bytes': 'x'}}, 'decoded_image'),
    ({'question': 'q', 'answer': 'a', 'figure_path': 'x.png'}, 'figure_path'),
    (
      {'question': 'q', 'answer': 'a', 'reasoning_content': 'this, then that, then all of it'},
      'reasoning_content',
    ),
    ({'messages': TURNS, 'chat_template_kwargs': {'custom_instructions': 'Be brief.'}}, 'custom_instructions'),
    ({'messages': [TURNS[0], TURNS[1] | {'loss_scale': 0.0}]}, 'loss_scale'),
    ({'messages': TURNS, 'assistant_masks': [0, 1]}, 'assistant_masks'),
    ({'question': 'q', 'answer': 'a', 'system': 'One.', 'system_prompt': 'Other.'}, 'system'),
    ({'messages': [*EARLIER, {'role': 'system', 'content': 'Other.'}, *TURNS], 'system': 'One.'}, 'system'),
    ({'instruction': 'Another.', 'response': '2', 'conversations': TURNS}, 'instruction'),
    ({'messages': TURNS[:1], 'ground_truth': '2'}, '--map question=messages,answer=ground_truth'),
    ({'prompt': "[{'role': 'user', 'content': array([1])}]", 'completion': '2'}, 'Python'),
    ({'messages': TURNS, 'history': [['0+1=', '1']]}, 'history'),
    ({'prompt': [TURNS[0]], 'completion': '2', 'history': [['0+1=', '1']]}, 'history'),
  ],
)
def test_what_a_row_cannot_be_read_with(record, reason, tmp_path):
  kind, found = refusal(tmp_path, record)
  assert kind == 'malformed'
  assert reason in found


@pytest.mark.parametrize(
  'verdict',
  [{'kto_tag': False}, {'isCorrect': False}, {'is_correct': 0.0}, {'is_correct': '0.0'}, {'is_correct': [False]},
   {'verified': 'no'}, {'correctness': 'incorrect'}, {'label': 'incorrect'}],
)  # fmt: skip
def test_what_its_data_set_calls_wrong_is_unverified(verdict, tmp_path):
  assert refusal(tmp_path, {'instruction': 'q', 'output': 'a'} | verdict)[0] == 'unverified'


@pytest.mark.parametrize('verdict', [{'label': 0}, {'correct': 0}, {'is_correct': 1.0}, {'kto_tag': True}])
def test_what_may_be_right_stays(verdict, tmp_path):
  assert len(read(tmp_path, {'instruction': 'q', 'output': 'a'} | verdict)[0]) == 2


def test_the_other_columns_of_a_published_form_are_named(tmp_path):
  _, report = read(tmp_path, VERL | {'data_source': 'x', 'ability': 'math', 'id': 3})
  assert set(report.unread) == {'data_source', 'ability'}


# --- --map ---

MAPPED = {'q': '1+1=', 'a': '2'}
BY_NAME = ('question=q', 'answer=a')


def test_columns_that_the_user_names_do_not_hide_a_system_turn(tmp_path):
  example = read(tmp_path, MAPPED | {'System': 'Count.'}, MAPPED, columns=BY_NAME)[0][0]
  assert example.messages == ({'role': 'system', 'content': 'Count.'}, *TURNS)


def test_they_do_not_hide_the_gold_answer(tmp_path):
  rows, _ = read(tmp_path, {'q': '1+1=', 's': 'So 2.', 'answer': '2'}, MAPPED, columns=('question=q', 'solution=s'))
  assert [(row.solution, row.answer) for row in rows] == [('So 2.', '2')]


@pytest.mark.parametrize('column', ['input', 'context', 'history'])
def test_more_of_the_prompt_beside_them(column, tmp_path):
  value = [['0+1=', '1']] if column == 'history' else 'more'
  examples, report = read(tmp_path, MAPPED | {column: value}, MAPPED, columns=BY_NAME)
  if column == 'history':
    assert examples[0].messages == (*EARLIER, *TURNS)
  else:
    assert column in report.rows['malformed'][0][1]


def test_the_column_whose_place_they_take_is_named(tmp_path):
  examples, report = read(tmp_path, MAPPED | {'problem': 'another', 'solution': 'So 2.'}, MAPPED, columns=BY_NAME)
  assert (examples[0].question, examples[0].solution) == ('1+1=', '2')
  assert set(report.unread) == {'problem', 'solution'}


@pytest.mark.parametrize('field', ['system', 'body', 'id'])
def test_a_column_that_is_in_no_row_is_refused(field, tmp_path):
  with pytest.raises(UserError, match=f"no row has a column 'ther', which --map {field}=ther names"):
    read(tmp_path, MAPPED, MAPPED, columns=(*BY_NAME, f'{field}=ther'))


def test_a_column_may_be_in_few_rows(tmp_path):
  examples, _ = read(tmp_path, MAPPED, MAPPED | {'said': 'Count.'}, columns=(*BY_NAME, 'system=said'))
  assert [bool(example.messages) for example in examples] == [False, True]


def test_a_column_may_be_in_one_of_several_files(tmp_path):
  write_lines(tmp_path / 'a.jsonl', MAPPED | {'said': 'Count.'})
  write_lines(tmp_path / 'b.jsonl', {'q': '1+2=', 'a': '3'})
  examples, _ = sources.load(str(tmp_path), columns=(*BY_NAME, 'system=said'))
  assert [bool(example.messages) for example in examples] == [True, False]
  with pytest.raises(UserError, match="no row has a column 'ther'"):
    sources.load(str(tmp_path), columns=(*BY_NAME, 'system=ther'))


# --- gold answers ---


@pytest.mark.parametrize(
  ('solution', 'gold'),
  [
    ('48+24=72\n#### 72', '72'),
    ('It is 72.\n#### 72\nThe answer is: 72', '72'),  # MetaMathQA
    # A heading is no answer.
    ('#### Step 3\nSo 72.\n\n#### Final Answer\nThe final answer is $\\boxed{72}$.', '72'),
    ('#### Conclusion\nThe answer is \\boxed{5}.', '5'),
    ('#### 答案\n答案是\\boxed{5}', '5'),
    ('#### 5. Answer\nAnswer: \\boxed{12}', '12'),
    ('Work.\n\n#### Final Answer\n\nThus, the answer is $72$.', '$72$'),
    # The last line says it.
    ('We add.\nThe answer is 4.', '4'),
    ('We add. So the answer is 4 pens.', '4 pens'),
    ('The answer is $x = 3$.', '$x = 3$'),
    ('答案：4。', '4'),
    ('Answer: 7', '7'),
    # More than an answer is none.
    ('Answer: First we take 12, and then divide by 4 to get 3 apples each.', ''),
    ('Answer: 4. Explanation: we add 2 and 2.', ''),
    ('The answer is 4 since 2+2=4.', ''),
    ('The answer is below.', ''),
    ('答案是正确的。', ''),
    ('答案：小明有4个苹果，因为2+2=4。', ''),
    ('Show your work. Answer carefully.', ''),
  ],
)
def test_gold_of_a_solution(solution, gold):
  assert gold_of(solution) == gold


def test_gold_of_a_long_text_takes_no_time():
  started = time.process_time()
  assert gold_of('Answer: x. ' * 100_000 + '\nfoo bar') == ''
  assert gold_of('Answer: ' + '1' * 100_000 + ' a b c') == ''
  assert time.process_time() - started < 5


def test_the_gold_answer_of_a_conversation_may_be_worked(tmp_path):
  example = read(tmp_path, {'messages': TURNS, 'answer': 'One more.\n#### 2'})[0][0]
  assert example.answer == '2'


@pytest.mark.parametrize('value', ["['1' '2']", "['\\frac{1}{2}']", "['1', ['2']]"])
def test_a_text_that_is_no_list_of_texts_stays(value, tmp_path):
  example = read(tmp_path, {'question': 'q', 'solution': 'So it is.', 'final_answer': value})[0][0]
  assert example.answer == value


# --- the answers of a pair are what they are ---


@pytest.mark.parametrize('gold', ['2', '3'])
def test_a_worked_gold_answer_takes_the_place_of_no_answer_of_a_pair(gold, tmp_path):
  record = {'prompt': '1+1=', 'chosen': '2', 'rejected': '3', 'answer': f'One more.\n#### {gold}'}
  example = read(tmp_path, record, {'prompt': 'p', 'chosen': '0', 'rejected': '1'}, pairs=True)[0][0]
  assert (example.solution, example.rejected, example.answer) == ('2', '3', gold)


# --- columns that change nothing ---


@pytest.mark.parametrize(
  'beside',
  [
    {'a': 1, 'b': -3, 'c': 2},  # coefficients
    {'A': 12, 'B': 7},
    {'op1': 3, 'op2': '+'},
    {'option': 'A'},
    {'choices': '[]'},
    {'table': ''},
    {'figure': False},
    {'diagram': 0},
    {'image': {'bytes': None, 'path': None}},
    {'images': '[]'},
    {'reasoning': 'multi-step arithmetic'},
    {'do_train': True},
    {'loss_scale': 1.0},
    {'history': False},
  ],
)
def test_columns_that_change_nothing(beside, tmp_path):
  record = {'question': 'What is 7 more than 12?', 'answer': '19'}
  example = read(tmp_path, record | beside)[0][0]
  assert (example.question, example.solution, example.messages) == (record['question'], '19', None)


@pytest.mark.parametrize('history', [5, 'before', [['0+1=', None]], [['0+1=', '1', '2']]])
def test_a_history_of_another_form(history, tmp_path):
  reason = 'field "history" is not a list of [question, answer]'
  assert refusal(tmp_path, {'query': 'q', 'response': 'a', 'history': history}) == ('malformed', reason)


@pytest.mark.parametrize(
  ('question', 'options'),
  [
    ('Which? (A) 1,000 (B) 2,000', [1000, 2000]),
    ('Which? (A) −1 (B) 1', ['-1', '1']),
    ('Which? A. $\\dfrac12$ B. 3', ['\\frac12', '3']),
    ('Which? A. $\\frac{1}{2}$ B. 3', ['\\frac12', '3']),
    ('哪个？A苹果B梨', ['苹果', '梨']),
    ('Which is more, 1 or 2?', ['2', '1']),
  ],
)
def test_options_that_the_question_holds(question, options, tmp_path):
  assert read(tmp_path, {'question': question, 'options': options, 'answer': 'A'})[0][0].question == question


def test_two_texts_are_a_conversation_only_where_conversations_stand(tmp_path):
  assert refusal(tmp_path, {'problem': ['Ann has 3 pens.', 'How many?'], 'solution': '3'})[0] == 'malformed'


def test_the_right_one_of_several_generations_is_trained_on(tmp_path):
  record = {'problem': 'p', 'generations': ['g1', 'g2'], 'correctness_math_verify': [True, False], 'answer': '5'}
  wrong = [{'from': 'human', 'value': 'p'}, {'from': 'gpt', 'value': 'g2'}]
  examples, _ = read(tmp_path, record | {'conversations': wrong})
  assert [example.solution for example in examples] == ['g1', '0']


def test_a_prompt_that_looks_like_python_is_a_prompt(tmp_path):
  record = {'prompt': "[{'a': 1}][0]['a'] is what?", 'completion': '1'}
  assert read(tmp_path, record)[0][0].question == record['prompt']


# --- written and read again ---


def test_a_proof_has_no_answer_when_it_is_read_again(tmp_path):
  from mathqwen.data.compared_rows import json_of

  examples, _ = read(tmp_path, {'problem': 'Show it.', 'solution': 'So $\\boxed{2}$.', 'answer': 'proof'})
  again, _ = read(tmp_path, json.loads(json_of(examples[0], 'rows.jsonl')))
  assert (examples[0].answer, again[0].answer) == ('', '')
