"""What a conversation is where a chat template is in force."""

import re
from collections.abc import Mapping, Sequence

from mathqwen.chat import chatml
from mathqwen.errors import UserError

# Messages, {'role': ..., 'content': ..., ...} each, or {'messages': [...], 'tools': [...]}.
Conversation = Sequence[Mapping] | Mapping

_ROLE = re.compile(r'[\w .-]{1,64}')
REASONING = ('reasoning_content', 'thinking', 'reasoning')  # names of the same; the first is the usual one
# Keys that change the prompt only where the template reads one of these names.
_READ_AS = {'tool_calls': ('tool_calls',), 'tools': ('tools',)} | dict.fromkeys(REASONING, REASONING)


def split(conversation: Conversation) -> tuple[Sequence[Mapping], list | None]:
  """(messages, tools) of a conversation."""
  if isinstance(conversation, Mapping) and 'messages' in conversation:
    return conversation['messages'], conversation.get('tools') or None
  return conversation, None


def check(conversation: Conversation, source: str, name: str) -> None:
  """UserError unless a template with this text can take the conversation. `chatml.check` is stricter."""
  messages, tools = split(conversation)
  if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
    raise UserError("no messages; give a list such as [{'role': 'user', 'content': '1 + 1 ='}]")
  used = {'tools': None} if tools else {}
  for index, message in enumerate(messages):
    if not isinstance(message, dict | Mapping) or not isinstance(message.get('role'), str):
      raise UserError(f'message {index}: expected {{"role": ..., "content": ...}}, found {type(message).__name__}')
    where = f'message {index} ({message["role"]})'
    if not _ROLE.fullmatch(message['role']):
      raise UserError(f'message {index}: the role {message["role"][:40]!r} is not a word')
    content = message.get('content')
    if not isinstance(content, str | list | None.__class__):
      raise UserError(f'{where}: content is {type(content).__name__}, expected text')
    if content is None and not any(message.get(key) for key in _READ_AS):
      raise UserError(f'{where}: no content')
    try:
      chatml.has_loss(message)
    except ValueError as error:
      raise UserError(f'{where}: {error}') from None
    used |= dict.fromkeys((key for key in message if message[key]), where)
  for key, names in _READ_AS.items():
    if key in used and not any(name in source for name in names):
      place = f'{used[key]}: ' if used[key] else ''
      raise UserError(f'{place}the template {name} does not write {key}; remove them, or use another template')


def plain(messages: Sequence[Mapping]) -> list[dict]:
  """Messages as transformers gives them to a template: without keys that are None, reasoning under all its names."""
  found = []
  for message in messages:
    fields = {key: value for key, value in message.items() if value is not None and key != 'weight'}
    reasoning = next((fields[key] for key in REASONING if key in fields), None)
    if reasoning is not None:
      fields = {'thinking': reasoning, **fields, 'reasoning_content': reasoning}
    found.append(fields)
  return found
