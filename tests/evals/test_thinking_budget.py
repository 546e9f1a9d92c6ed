"""A budget of thinking for a served model, and what scores say about thinking."""

import json

import pytest
from fake_server import evaluate
from reciting import lines

from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.evals import run

pytestmark = pytest.mark.usefixtures('key')
THOUGHT = 'Let me see. One and one is two, but is it? '  # of any length


class Thinking:
  """A server whose model thinks: `words` of thinking, then the answer; it continues a last message of the assistant."""

  def __init__(self, apart, continues=True, refuses=False):
    self.apart, self.continues, self.refuses = apart, continues, refuses

  def __call__(self, handler):
    body = handler.body
    limit = body['max_tokens']
    last = body.get('messages', [{'role': 'user', 'content': body.get('prompt', '')}])[-1]
    begun = last['content'] if last['role'] == 'assistant' or 'The final answer is' in last['content'] else ''
    if begun and self.refuses:
      return handler.say({'error': {'message': 'continue_final_message is not supported'}}, 400)
    prompt_tokens = 9 + (len(begun.split()) if self.continues else 0)
    if begun.endswith('</think>\n\nThe final answer is') and self.continues:
      thought, text, reason, count = '', ' 2', 'stop', 1
    else:
      long = ' '.join([THOUGHT] * 9).split()
      thought, text, reason, count = ' '.join(long[:limit]), '', 'length', limit
    usage = {'completion_tokens': count, 'prompt_tokens': prompt_tokens}
    if 'prompt' in body:
      choice = {'text': f'<think>{thought}' if thought else text}
    elif self.apart:
      choice = {'message': {'content': text or None, 'reasoning_content': thought or None}}
    else:
      choice = {'message': {'content': f'<think>{thought}' if thought else text}}
    handler.say({'choices': [choice | {'finish_reason': reason}], 'usage': usage})


@pytest.mark.parametrize('apart', [True, False])
def test_thinking_of_a_served_chat_is_closed(server, data_dir, tmp_path, apart):
  server.respond = Thinking(apart)
  decoding = run.Decoding(samples=2, temperature=0.7)
  scores = evaluate(server, data_dir, tmp_path, max_thinking_tokens=20, decoding=decoding)['benchmarks']['arithmetic']
  assert (scores['thinking_cut'], scores['truncated'], scores['correct'], len(server.asked)) == (8, 0, 2, 16)
  assert scores['decoding']['max_thinking_tokens'] == 20
  row = lines(tmp_path)[0]
  thought = ' '.join(' '.join([THOUGHT] * 9).split()[:20])
  assert (row['tokens'], row['thinking_cut'], row['extracted']) == (21, True, '2')
  second = next(body for _, _, body, _ in server.asked if body['messages'][-1]['role'] == 'assistant')
  assert second['continue_final_message'] and not second['add_generation_prompt'] and second['max_tokens'] == 44
  if apart:
    assert (row['response'], row['reasoning'], row['thinking_tokens']) == ('The final answer is 2', thought, 20)
    assert second['messages'][-1]['content'] == f'<think>\n{thought}\n</think>\n\nThe final answer is'
    assert scores['lengths']['mean']['right'] == {'n': 2, 'tokens': 21.0, 'thinking': 20.0, 'answer': 1.0}
  else:
    assert row['response'] == f'<think>{thought}\n</think>\n\nThe final answer is 2'


def test_thinking_of_a_text_prompt_is_closed(server, data_dir, tmp_path):
  server.respond = Thinking(apart=False)
  scores = evaluate(server, data_dir, tmp_path, prompt='alpaca', max_thinking_tokens=5)['benchmarks']['arithmetic']
  assert scores['thinking_cut'] == 4
  assert server.asked[-1][2]['prompt'].endswith('\n</think>\n\nThe final answer is')


@pytest.mark.parametrize('options', [{'continues': False}, {'refuses': True}])
def test_a_server_that_cannot_continue_is_named_at_once(server, data_dir, tmp_path, options):
  server.respond = Thinking(apart=True, **options)
  with pytest.raises(UserError, match='--max-thinking-tokens needs a server that continues the last message'):
    evaluate(server, data_dir, tmp_path, max_thinking_tokens=20, concurrency=1)
  assert len(server.asked) == 2


def test_a_server_that_does_not_say_whether_the_budget_is_reached(server, data_dir):
  server.respond = lambda h: h.say({'choices': [{'message': {'content': 'Hm'}}]})
  with pytest.raises(UserError, match='says neither why an answer ended .* needs a server'):
    evaluate(server, data_dir, max_thinking_tokens=20, concurrency=1)


def test_an_answer_that_ends_within_the_budget_is_left_alone(server, data_dir, tmp_path, capsys):
  words = ['evaluate', server.model, '--benchmarks', 'arithmetic', '--data-dir', data_dir, '--max-thinking-tokens']
  assert cli.main([*words, '20', '--out', str(tmp_path), '--json']) == 0
  out = capsys.readouterr().out
  scores = json.loads(out.splitlines()[-1])['benchmarks']['arithmetic']
  assert (scores['thinking_cut'], scores['correct'], len(server.asked)) == (0, 3, 4)
  assert 'thinking of 0 closed at its budget' in out
  assert cli.main([*words, '64', '--out', str(tmp_path / 'b')]) == 2
  assert 'max_thinking_tokens is 64: with max_new_tokens 64, it must be at most 63' in capsys.readouterr().err
  assert cli.main([*words, '21', '--out', str(tmp_path)]) == 2  # another run
  assert 'max_thinking_tokens 20 there and 21 now' in capsys.readouterr().err


def test_the_budget_reaches_a_model_of_ours(reciting, data_dir, tmp_path):
  model = reciting()
  model.answers |= {'1+1=': '<think>Hm</think>the answer is 2'}
  model.check_budget = lambda budget, limit: None
  ask = run.Ask(data_dir, max_thinking_tokens=9)
  generate_ids = model.generate_ids

  def cutting(prompts, max_thinking_tokens, on_cut, **more):
    assert max_thinking_tokens == 9
    on_cut(0)
    return generate_ids(prompts, **more)

  model.generate_ids = cutting
  scores = run.evaluate(model, 'arithmetic', ask, out=tmp_path, progress=False)['benchmarks']['arithmetic']
  assert scores['thinking_cut'] == 1 and [row['thinking_cut'] for row in lines(tmp_path)] == [True, False, False, False]
  assert [row['thinking_tokens'] for row in lines(tmp_path)] == [17, 0, 0, 0]  # bytes, which are its tokens
