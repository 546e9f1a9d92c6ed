"""A thinking budget for a served model: one request up to the budget, then one that continues the answer.

The second request of a text prompt is a longer prompt. In a chat, the server continues its last message
(`continue_final_message` of vLLM and SGLang). If it does not, the evaluation ends with one line.
"""

import dataclasses
from collections.abc import Callable

from mathqwen.chat.thinking import ASKED, closing_tag
from mathqwen.evals.replies import Answer, Failure

_CONTINUE = {'continue_final_message': True, 'add_generation_prompt': False}
_NEEDED = (
  '--max-thinking-tokens needs a server that continues the last message (vLLM, SGLang), or a --prompt that is a text; '
  'leave it out, or set the budget that this server knows with --request-json'
)


def answer_within(
  ask: Callable[[dict, int], Answer], prompt: dict, max_new_tokens: int, max_thinking_tokens: int
) -> Answer:
  """The answer to a prompt, of at most `max_new_tokens`, its thinking closed when it reaches the budget.

  ask(prompt, limit): sends one request. `tokens` leave out what closes the thinking. Failure: as `ask`, and when the
  server cannot continue an answer.
  """
  first = ask(prompt, max_thinking_tokens)
  if first.truncated is None:
    what = 'the server says neither why an answer ended (finish_reason) nor how many tokens it has'
    raise Failure(f'{what}; {_NEEDED}', retryable=False, affects_all=True)
  if not first.truncated:
    return first
  tag = _open_tag(prompt, first)
  closed = f'\n{tag}{ASKED}' if tag else ''
  # How templates write thinking that was sent apart; only then do they render the message unchanged.
  apart = '' if first.reasoning is None else f'<think>\n{first.reasoning.strip()}'
  behind = f'\n</think>\n\n{first.text}' if apart and first.text else first.text
  begun = f'{apart}{behind}{closed}'
  if 'messages' in prompt:
    longer = prompt | {'messages': [*prompt['messages'], {'role': 'assistant', 'content': begun}]} | _CONTINUE
  else:
    longer = prompt | {'prompt': prompt['prompt'] + begun}
  try:
    second = ask(longer, max_new_tokens - max_thinking_tokens)
  except Failure as error:
    if error.refusal is None:
      raise
    raise Failure(f'{error}; {_NEEDED}', retryable=False, affects_all=True) from None
  _check_was_read(first, second)
  # A server whose model has not closed its thinking in this request may take the answer for thinking.
  rest = second.text or second.reasoning or ''
  shown = ASKED.lstrip() if apart and closed else f'{first.text}{closed}'
  return dataclasses.replace(
    second,
    text=shown + rest,
    reasoning=first.reasoning,
    tokens=None if first.tokens is None or second.tokens is None else first.tokens + second.tokens,
    reasoning_tokens=first.tokens if apart and closed else first.reasoning_tokens,
    thinking_cut=bool(closed),
  )


def _open_tag(prompt: dict, answer: Answer) -> str | None:
  """The tag that closes the thinking in which an answer ends; None when it ends in none."""
  if answer.reasoning is not None:
    return None if answer.text else '</think>'
  return closing_tag(prompt.get('prompt', ''), answer.text)


def _check_was_read(first: Answer, second: Answer) -> None:
  """Failure: when the second prompt is too short to hold what the first request answered."""
  counts = (first.prompt_tokens, first.tokens, second.prompt_tokens)
  if None not in counts and second.prompt_tokens < first.prompt_tokens + first.tokens // 2:
    what = f'the server dropped the thinking so far ({second.prompt_tokens} tokens of prompt)'
    raise Failure(f'{what}; {_NEEDED}', retryable=False, affects_all=True)
