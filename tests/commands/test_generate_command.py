"""`mathqwen generate`: what it refuses before weights are read, and what it prints."""

import json

import pytest

from mathqwen import cli


@pytest.mark.parametrize(
  'options, message',
  [
    (['--temperature', '-1'], 'temperature -1.0 is not a finite number >= 0: 0 is greedy'),
    (['--temperature', 'nan'], 'temperature nan is not'),
    (['--top-p', '0'], 'top_p 0.0 is not in (0, 1]'),
    (['--top-k', '-1'], 'top_k -1 is below 0'),
    (['--seed', '-1'], 'seed is -1: it must be from 0'),
    (['--seed', '99999999999999999999'], 'seed is 99999999999999999999: it must be from 0'),
    (['--max-new-tokens', '0'], 'max_new_tokens is 0: it must be at least 1'),
    (['--max-new-tokens', '96'], "above the model's max_position_embeddings 96: set max_new_tokens to at most"),
    (['1' * 200], "above the model's max_position_embeddings 96: shorten the prompt"),
  ],
)
def test_generate(fails, unread, trained, options, message):
  assert message in fails('generate', trained, '11+3=', *options)


def test_generate_answers(trained, capsys):
  assert cli.main(['generate', str(trained), '11+3=', '12+4=', '--json']) == 0
  lines = capsys.readouterr().out.splitlines()
  answers = json.loads(lines[-1])['answers']
  assert len(answers) == 2 and '\n'.join(answers) == '\n'.join(lines[:-1])


def test_flags_stand_anywhere():
  parser = cli.build_parser()
  for line in (
    ['M', 'a', 'b', '--seed', '3', '--json'],
    ['M', '--seed', '3', 'a', 'b', '--json'],
    ['--json', 'M', '--seed', '3', 'a', 'b'],
    ['--seed', '3', 'M', 'a', '--json', 'b'],
  ):
    args = parser.parse_args(['generate', *line])
    assert (args.model, args.questions, args.seed, args.json) == ('M', ['a', 'b'], 3, True), line
  args = parser.parse_args(['generate', 'M', '--seed', '3', '--', '-1 + 2'])
  assert args.questions == ['-1 + 2']
  assert parser.parse_args(['generate', 'M', '--seed', '3']).questions == []
  assert parser.parse_args(['table', 'a', '--out', 'o', 'b']).scores == ['a', 'b']
  assert parser.parse_args(['data', 'prepare', '--data-dir', 'd', 'gsm8k', '--json', 'math']).names == ['gsm8k', 'math']
