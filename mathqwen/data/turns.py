"""The turns of a record's conversation, in the forms of `messages` and of ShareGPT."""

import itertools
import json
from collections.abc import Mapping

from mathqwen.chat import chatml
from mathqwen.chat.conversations import REASONING
from mathqwen.data.field_texts import is_missing, text_field
from mathqwen.data.json_rows import TURNS
from mathqwen.data.malformed import Malformed
from mathqwen.data.unread import MASKS, refuse

# Of a turn, what a chat template may take: see `chat/conversations.py`.
_KEPT = ('name', 'tool_calls', 'tool_call_id', *REASONING)
_PROMPTS = (*_KEPT, 'function_call', 'images')
_READ = ('role', 'content', 'weight', 'loss', *_KEPT)
_ASKED_SAID = ('user', 'assistant')
# What an exchange of a system turn, a question and an answer has, in the forms of XTuner and of Firefly.
_EXCHANGES = (('system', 'input', 'output'), ('system', 'human', 'assistant'))
# ShareGPT's names of the roles, and those that LLaMA-Factory adds for tools.
_ROLES = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant'} | {role: role for role in chatml.ROLES}
_TOOL_ROLES = {'observation': 'tool', 'function_call': 'assistant'}


def turns_of(record: Mapping, field: str, any_turns: bool = False) -> list[dict]:
  """The turns of a field, with our names for what they have in other programs. any_turns: as in `shapes.read`.

  Malformed: when it has none.
  """
  turns = record[field]
  is_texts = isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)
  if is_texts and field in TURNS and len(turns) % 2 == 0:  # LIMA
    turns = [{'role': role, 'content': text} for role, text in zip(itertools.cycle(_ASKED_SAID), turns, strict=False)]
  if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
    raise Malformed(f'field "{field}" is not a list of turns')
  for names in _EXCHANGES:
    if turns and all(name in turn for turn in turns for name in names[1:]):
      turns = [turn for exchange in turns for turn in _of_exchange(exchange, names)]
  return [_with_weight(_with_role(turn, number, any_turns), number) for number, turn in enumerate(turns, 1)]


def questions_in(turns: object) -> list[str]:
  """The texts of the user's turns in a conversation that may not be readable."""
  held = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
  asked = [turn for turn in held if turn.get('role', turn.get('from')) in ('user', 'human')]
  found = [turn.get(name) for turn in asked for name in ('content', 'value')]
  found += [turn.get(name) for turn in held for name in ('input', 'human')]
  return [text for text in found if isinstance(text, str)]


def unread_of_turn(turn: Mapping) -> list[str]:
  """The fields of a turn that nothing reads."""
  forms = {'from': ('from', 'value')} | {names[-1]: (*names, 'output_with_loss') for names in _EXCHANGES}
  also = [name for sign, names in forms.items() if sign in turn for name in names]
  return [name for name in turn if name not in _READ and name not in also]


def _of_exchange(exchange: dict, names: tuple[str, str, str]) -> list[dict]:
  """The turns of one of _EXCHANGES, as {'system': ..., 'input': ..., 'output': ..., 'output_with_loss': true}."""
  roles = dict(zip(names, ('system', *_ASKED_SAID), strict=True))
  turns = [{'role': role, 'content': exchange.get(name)} for name, role in roles.items()]
  # What else it says is about the answer.
  turns[-1] |= {name.replace('output_with_loss', 'loss'): x for name, x in exchange.items() if name not in roles}
  return [turn for turn in turns if not is_missing(turn['content'])]


def _with_role(turn: dict, number: int, any_turns: bool) -> dict:
  """The turn with `role` and `content`, where it has ShareGPT's names for them."""
  # A table has the columns of all its rows, so `from` may be there and empty.
  if 'from' not in turn or (turn['from'] is None and 'role' in turn):
    return turn
  said = str(turn['from']).lower()
  role = _ROLES.get(said, _TOOL_ROLES.get(said, turn['from']) if any_turns else None)
  if role is None:
    raise Malformed(f'turn {number}: "from" is {turn["from"]!r}, none of {", ".join(_ROLES)}')
  rest = {name: value for name, value in turn.items() if name not in ('from', 'value', 'content')}
  value = turn.get('content') if turn.get('value') is None else turn['value']
  if said == 'function_call' and any_turns:
    return rest | {'role': role, 'tool_calls': _calls(value, number)}
  return rest | {'role': role} | ({'content': value} if {'value', 'content'} & turn.keys() else {})


def _calls(value: object, number: int) -> list[dict]:
  """The calls that a `function_call` turn holds as JSON, {"name": ..., "arguments": {...}} or a list of these."""
  try:
    calls = json.loads(value) if isinstance(value, str) else value
  except (ValueError, RecursionError):
    calls = None
  calls = calls if isinstance(calls, list) else [calls]
  if not all(isinstance(call, dict) and isinstance(call.get('name'), str) and 'arguments' in call for call in calls):
    raise Malformed(f'turn {number}: function_call is not JSON with "name" and "arguments"')
  return [{'type': 'function', 'function': call} for call in calls]


def _with_weight(turn: dict, number: int) -> dict:
  """The turn with `weight` 1 or 0 for the true or false that ms-swift and XTuner write as its `loss`."""
  loss = turn.get('loss')
  rest = {name: value for name, value in turn.items() if name != 'loss'}
  if loss is None:
    return rest
  if not isinstance(loss, int | float) or loss not in (0, 1):
    raise Malformed(f'turn {number}: loss is {loss!r}: it must be true or false (not trained on)')
  if turn.get('weight') not in (None, loss):
    raise Malformed(f'turn {number}: loss is {loss!r} and weight is {turn["weight"]!r}: leave one of them')
  return rest | {'weight': int(loss)}


def read_turns(turns: list[dict], any_turns: bool) -> list[dict]:
  """The turns as `Example.messages` has them. any_turns: as in `shapes.read`. Malformed: names the turn."""
  messages = []
  for number, turn in enumerate(turns, start=1):
    role = turn.get('role')
    if not (isinstance(role, str) if any_turns else role in chatml.ROLES):
      raise Malformed(f'role {role!r} is none of {", ".join(chatml.ROLES)}')
    kept = {name: turn[name] for name in _KEPT if turn.get(name)} if any_turns else {}
    refuse(turn, [name for name in (*MASKS, *_PROMPTS) if name not in kept], f'turn {number}: ')
    try:
      content = _content(turn)
      has_loss = chatml.has_loss(turn)
    except ValueError as error:
      raise Malformed(f'turn {number}: {error}') from None
    if not content and not kept:  # a turn that thinks or calls a tool may say nothing else
      if role == 'system' and 'content' in turn:
        continue
      raise Malformed(f'turn {number}: no text in field "content"')
    message = {'role': role, 'content': content, **kept}
    # A weight of 1 is left out, so that two rows that train on the same turns are duplicates.
    messages.append(message if has_loss or role != 'assistant' else message | {'weight': 0})
  return messages


def _content(turn: dict) -> str:
  """The text of a turn, '' without one; parts of text, [{'type': 'text', 'text': ...}, ...], are put together."""
  content = turn.get('content')
  if isinstance(content, list):
    content = ''.join(_text_of_part(part) for part in content if part is not None)
  return '' if is_missing(content) else text_field({'content': content}, 'content')


def _text_of_part(part: object) -> str:
  """The text of a part of a turn; '' where it is null. Malformed: when the part holds something else."""
  if not isinstance(part, dict) or part.get('type', 'text') != 'text':
    kind = part.get('type') if isinstance(part, dict) else type(part).__name__
    raise Malformed(f'field "content" has a part that is no text ({kind})')
  text = part.get('text')
  if text is None:
    held = [name for name, value in part.items() if name != 'type' and value is not None]
    if held:
      raise Malformed(f'field "content" has a part without "text", with {", ".join(held)}')
    return ''
  if not isinstance(text, str | int | float) or isinstance(text, bool):
    raise Malformed(f'field "content" has a part whose "text" is no text ({type(text).__name__})')
  return str(text)
