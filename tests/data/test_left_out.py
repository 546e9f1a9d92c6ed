"""How many rows of a source may be left out before a run is refused, and what is said about the others."""

import pytest
from json_lines import write_lines

from mathqwen.config import DataConfig
from mathqwen.data.left_out import Report
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer


def chat(number, weight):
  turns = [{'role': 'user', 'content': f'{number}?'}, {'role': 'assistant', 'content': 'yes', 'weight': weight}]
  return {'messages': turns}


LOST = {
  'not JSON': (lambda n: f'{{"query": {n}', r'49 malformed: a\.jsonl:2 \(not JSON: .*a\.jsonl:4 .*, \.\.\.'),
  'no field': (lambda n: {'query': f'{n}+1='}, '49 malformed: .*fields query: expected'),
  'too long': (
    lambda n: {'query': f'{n}' * 99, 'response': '1'},
    r'49 too_long: .* \(for too_long: raise data.seq_len\)',
  ),
  'weight 0': (lambda n: chat(n, 0), '49 no_loss_token: .*each has weight 0'),
}


def data(path, *rows, **settings):
  source = str(write_lines(path, *rows))
  settings = {'seq_len': 64, 'batch_size': 2, 'eval_examples': 0} | settings
  return TrainingData(DataConfig(sources=(source,), **settings), load_tokenizer())


def test_rows_left_out_are_those_of_every_kind():
  report = Report()
  for kind in ('malformed', 'unverified', 'not_wanted', 'not_wanted', 'a kind of tomorrow'):
    report.add(kind, 'a:1')
  report.add('repeated_id', 'a:2')  # this row stays, under another id
  report.add('empty_file', 'part-1.csv')
  assert sum(report.rows_left_out().values()) == 5


@pytest.mark.parametrize('kind', LOST)
def test_one_row_of_fifty_is_not_a_data_set(kind, tmp_path):
  row, words = LOST[kind]
  rows = [{'query': '1+1=', 'response': '2'}, *map(row, range(10, 59))]
  with pytest.raises(UserError) as caught:
    data(tmp_path / 'a.jsonl', *rows)
  message = str(caught.value)
  assert message.startswith(
    f'{tmp_path}/a.jsonl: 49 of 50 rows cannot be trained on, and data.max_left_out is 0.05: 49'
  )
  assert '\n' not in message and message.endswith('or set data.max_left_out=0.98 to train without them')
  with pytest.raises(UserError, match=words):
    data(tmp_path / 'a.jsonl', *rows)
  assert len(data(tmp_path / 'a.jsonl', *rows, max_left_out=0.98).sources[0]) == 1


def test_few_lost_rows_and_any_duplicates_are_told(tmp_path):
  good = [{'query': f'{n}+1=', 'response': f'{n + 1}', 'level': n} for n in range(30)]
  found = data(tmp_path / 'a.jsonl', *good, *good, 'not JSON', chat(1, 0), max_left_out=2 / 62)
  assert found.describe()[1:] == [
    '  read as {query, response} (60), {messages} (1)',
    '  left out: 1 malformed: a.jsonl:61 (not JSON: Expecting value: line 1 column 1 (char 0))',
    '  left out: 30 duplicate: '
    + ', '.join(f'a.jsonl:{n} (same as a.jsonl:{n - 30})' for n in range(31, 36))
    + ', ...',
    '  left out: 1 no_loss_token: a.jsonl:62 (no assistant turn, or each has weight 0)',
    'fields that training does not read: level',
    'trained with template chatml, no system turn',
  ]
  with pytest.raises(UserError, match='2 of 62 rows .* data.max_left_out is 0.032: 1 malformed: .*; 1 no_loss_token: '):
    data(tmp_path / 'a.jsonl', *good, *good, 'not JSON', chat(1, 0), max_left_out=0.032)


def test_rows_that_differ_in_what_they_train_on_are_no_duplicates(tmp_path):
  """The tokens of a turn of weight 0 carry no loss in the packed rows; only those of the other turn do."""
  turns = [('user', 'q', 0), ('assistant', 'first', 1), ('user', 'r', 0), ('assistant', 'second', 1)]

  def row(left_out):
    weights = {left_out: 0}
    return {'messages': [{'role': r, 'content': c, 'weight': weights.get(c, w)} for r, c, w in turns]}

  found = data(tmp_path / 'a.jsonl', row('first'), row('second'))
  batch = next(found.train())
  tokenizer = load_tokenizer()
  texts = set()
  for row, segments in enumerate(batch['segment_ids']):
    for segment in range(1, segments.max() + 1):
      trained = (segments == segment) & (batch['loss_weights'][row] > 0)
      texts.add(tokenizer.decode(batch['targets'][row][trained].tolist()))
  assert texts == {'first', 'second'}


def test_a_system_prompt_that_conversations_do_not_get_is_told(tmp_path):
  with_system = {'messages': [{'role': 'system', 'content': 'Be brief.'}, *chat(1, 1)['messages']]}
  found = data(tmp_path / 'a.jsonl', with_system, chat(1, 1), chat(2, 1), system_prompt='Be brief.')
  assert found.describe()[2].startswith('2 conversations have no system turn and get none: data.system_prompt goes')
  # The other line says what is trained with.
  assert data(tmp_path / 'a.jsonl', with_system, system_prompt='Be brief.').describe()[1:] == [
    '  read as {messages} (1)',
    'trained with template chatml, system turn "Be brief."',
  ]
