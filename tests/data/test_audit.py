"""`data audit`: our masks beside those of other trainers, and beside a file of another trainer's rows."""

import json

import pytest
from json_lines import write_lines

from mathqwen.chat import chatml
from mathqwen.cli import main
from mathqwen.text.loading import load_tokenizer

TWO_TURNS = {
  'messages': [
    {'role': 'user', 'content': '1+1='},
    {'role': 'assistant', 'content': '<think>one</think>2'},
    {'role': 'user', 'content': '2+2='},
    {'role': 'assistant', 'content': '4'},
  ]
}
ONE_TURN = {'question': '5! =', 'answer': '120'}
TURN = "{{- '<|im_start|>' + m.role + '\\n' + TEXT + '<|im_end|>' }}"
TEMPLATES = {
  'system': "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nThink.<|im_end|>' }}{%- endif %}"
  "{%- for m in messages %}" + TURN.replace('TEXT', 'm.content') + '{%- endfor %}',
  'thinking': '{%- for m in messages %}{%- if loop.last %}' + TURN.replace('TEXT', 'm.content') + '{%- else %}'
  + TURN.replace('TEXT', "m.content.split('</think>')[-1]") + '{%- endif %}{%- endfor %}',
}  # fmt: skip
ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"


@pytest.fixture
def audit(tmp_path, capsys):
  """audit(*words, template=None) -> (the JSON, what is printed before it)."""
  write_lines(tmp_path / 'rows.jsonl', TWO_TURNS, ONE_TURN)

  def run(*words, template=None):
    settings = ['--set', f'data.sources={tmp_path}/rows.jsonl']
    if template is not None:
      (tmp_path / 'chat.jinja').write_text(TEMPLATES[template] + ASK)
      settings += ['--set', f'data.template={tmp_path}/chat.jinja']
    assert main(['data', 'audit', 'gsm8k_small', *settings, *map(str, words), '--json']) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return json.loads(last), lines

  return run


def counts(found, name):
  return {key: value for key, value in found['others'][name].items() if value and key != 'differ'}


def test_chatml(audit):
  found, lines = audit()
  assert lines[0] == '2 conversations, template chatml, no system turn'
  assert lines[1].startswith('first conversation (rows.jsonl:1), ') and '  [[4<|im_end|>]]' in lines
  # The newline behind the end of a turn is not generated, and others train on it.
  assert counts(found, 'prefix') == counts(found, 'turns') == {'more': 2, 'first': 'rows.jsonl:1'}
  assert counts(found, 'marks') == {} and found['conversations'] == 2
  assert lines.count('  ]]') == lines.count('  [[4<|im_end|>') == 2
  found, lines = audit('--limit', 1)
  assert found['conversations'] == 1 and lines[0].startswith('1 conversations')


def test_templates_that_other_trainers_render_in_parts(audit):
  """A system turn of its own, which MaxText repeats; a <think> block that is dropped once a turn follows."""
  found, lines = audit(template='system')
  assert counts(found, 'turns') == {'other_ids': 1, 'first': 'rows.jsonl:1'}
  assert counts(found, 'prefix') == {}
  assert counts(found, 'marks') == {'less': 2, 'first': 'rows.jsonl:1'}
  assert found['system_prompt'] == 'Think.' and 'the template\'s own system turn "Think."' in lines[0]
  assert ''.join(lines).count('Think.') == 1 + 1 + 2 + 1  # described, ours, twice by MaxText, once without marks
  found, _ = audit(template='thinking')
  assert counts(found, 'prefix') == counts(found, 'turns') == {'other_ids': 1, 'first': 'rows.jsonl:1'}


def test_rows_of_another_trainer(audit, tmp_path):
  tokenizer = load_tokenizer()
  turns = [TWO_TURNS['messages'], [{'role': 'user', 'content': '5! ='}, {'role': 'assistant', 'content': '120'}]]
  (ids, mask), (short, short_mask) = (chatml.render(messages, tokenizer) for messages in turns)
  labels = [token if loss else -100 for token, loss in zip(ids, mask, strict=True)]
  padded = {'input_ids': [*short, 0, 0], 'loss_mask': [*short_mask, 0, 0], 'attention_mask': [1] * len(short) + [0, 0]}
  file = tmp_path / 'theirs.jsonl'
  write_lines(file, {'ids': ids, 'labels': labels}, padded)
  assert counts(audit('--against', file)[0], 'against') == {}
  write_lines(file, {'ids': ids, 'mask': [1] * len(ids)}, {'ids': short, 'mask': [0, *short_mask[1:-2], 0, 0]})
  assert counts(audit('--against', file)[0], 'against') == {'more': 1, 'less': 1, 'first': 'rows.jsonl:1'}
  write_lines(file, {'ids': ids, 'mask': mask}, {'ids': short[1:], 'mask': short_mask[1:]})
  found, lines = audit('--against', file)
  assert counts(found, 'against') == {'other_ids': 1, 'first': 'rows.jsonl:2'} and f'rows.jsonl:2, {file}:' in lines


def test_rows_that_cannot_be_compared(audit, tmp_path, fails):
  file = tmp_path / 'theirs.jsonl'
  command = ('data', 'audit', 'gsm8k_small', '--set', f'data.sources={tmp_path}/rows.jsonl', '--against', file)
  good = {'ids': [1, 2], 'mask': [0, 1]}
  for rows, words in (
    ([good], 'has 1 rows and the config 2 conversations: give it a row for each conversation'),
    ([good, {'ids': [1, 2]}], 'theirs.jsonl:2: expected a list ids|input_ids|tokens, and a list mask|'),
    ([good, {'ids': [1, 2], 'mask': [1]}], 'theirs.jsonl:2: 2 ids and 1 labels or mask values'),
    ([good, {'ids': [1, 2], 'labels': [2, -100]}], 'theirs.jsonl:2: the label at 0 is 2 and the id there is 1: labels'),
    ([good, ['ids']], 'theirs.jsonl:2: not a JSON object'),
  ):
    write_lines(file, *rows)
    assert words in fails(*command)
  assert fails(*command, '--limit', 0) == '--limit is 0; it must be 1 or more'
