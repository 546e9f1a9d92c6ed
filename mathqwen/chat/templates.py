r"""Chat templates: which prompt format a run uses, and the ids and loss mask that it gives.

  'chatml'   chat/chatml.py: the format of this library, without Jinja
  'own'      the checkpoint's: chat_template.jinja, chat_template.json, or `chat_template` in tokenizer_config.json
  a path     a Jinja file

A conversation is rendered as a whole, by Jinja as transformers sets it up, so default system turns, trimmed content and
<think> blocks dropped from earlier turns come out as the template says, and the ids are those of transformers'
`apply_chat_template`. `{'messages': [...], 'tools': [...]}` is a conversation with tools.

The loss mask. What the model has to generate has loss. Of each assistant message that is

  from   right behind the header that a generation prompt would have written: the longest beginning of the generation
         prompt that the template wrote before the answer. Where it wrote none: from the first character of what the
         message says (content, reasoning_content, tool_calls)
  to     the last character of what the message says, and on to the first special token that follows inside of the
         turn, that token included: the end of the turn. Where none follows, the last character is the end.
         Tool calls end with what the template writes behind them: special tokens that touch each other count as one,
         since a call may end with one and the turn with the next, and where none follows, closing tags are included

A message with 'weight': 0 has no loss. Where a template has {% generation %} marks, they decide instead. A token has
loss when any of its characters has.

Qwen3, with loss on what stands between the brackets. It drops the <think> block of the first answer, which is not the
last turn, and puts an empty one before the last answer, which has none; the generation prompt ends with 'assistant\n':

  <|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n[2<|im_end|>]\n
  <|im_start|>user\n2 + 2 =<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\n4<|im_end|>]\n

DeepSeek-R1. The generation prompt is '<｜Assistant｜><think>\n'. Of it, the template writes '<｜Assistant｜>' before an
answer, and cuts what the answer says up to </think>; what a message says is never a header, though a prompt may equal
it:

  <｜User｜>1 + 1 =<｜Assistant｜>[2<｜end▁of▁sentence｜>]

Limits. A template is someone else's program. When it is loaded, it runs first in a process of its own with limits on
time and memory (probe.py), and each rendering has limits on steps and sizes (engine.py).

Dates. `strftime_now` gives the day of `Template.date`, at midnight, for as long as the template is used: a prompt that
changes during training, or between training and serving, would be another prompt. It is the day of loading unless one
is given.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mathqwen import files as files_lib
from mathqwen.chat import chatml
from mathqwen.chat.conversations import Conversation, split
from mathqwen.errors import UserError
from mathqwen.text.bpe import IM_END
from mathqwen.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Template:
  """A prompt format. `load` makes one."""

  name: str  # 'chatml', 'own' or the path of a file: what the user asked for
  source: str  # the Jinja text
  tool_source: str | None = None  # another for conversations with tools, if the checkpoint has one
  date: str = ''  # ISO date that strftime_now gives
  options: tuple[tuple[str, Any], ...] = ()  # more variables, such as ('enable_thinking', False)
  stops: tuple[str, ...] = (IM_END,)
  problem: str = ''  # why it cannot be used, where that is said once it is

  def render_batch(
    self, conversations: Sequence[Conversation], tokenizer: Tokenizer
  ) -> list[tuple[list[int], list[int]]]:
    """(ids, loss mask of the same length) of each conversation.

    UserError: when a message is not one, when the template refuses a conversation or fails, or when the tokenizer
    cannot keep special tokens out of a text.
    """
    self.check()
    if self._is_chatml():
      return chatml.render_batch(list(map(_only_messages, conversations)), tokenizer)
    from mathqwen.chat import rendering

    return rendering.render_batch(self, conversations, tokenizer)

  def prompt(self, messages: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the answer begins. UserError: as `render_batch`."""
    self.check()
    if self._is_chatml():
      return chatml.prompt(_only_messages(messages), tokenizer)
    from mathqwen.chat import rendering

    return rendering.prompt(self, messages, tokenizer)

  def stop_tokens(self) -> tuple[str, ...]:
    """The special tokens with which this template ends the assistant's turns; none if it ends them without one."""
    return self.stops

  def check(self) -> None:
    """UserError: when this template cannot be used."""
    if self.problem:
      raise UserError(self.problem)

  def _is_chatml(self) -> bool:
    return self.source == chatml.CHAT_TEMPLATE


MAX_BYTES = 4 * 2**20  # of a template's file
CHATML = Template('chatml', chatml.CHAT_TEMPLATE)


def _only_messages(conversation: Conversation) -> Sequence[Mapping]:
  messages, tools = split(conversation)
  if tools:
    raise UserError("ChatML has no tools; use the checkpoint's own template or a file")
  return messages


def load(name: str, tokenizer: Tokenizer, date: str | None = None, **options) -> Template:
  """The template of this name: see the top of this file.

  date     ISO date for strftime_now, where the prompt was fixed on another day; today's by default
  options  more variables for the template, such as enable_thinking=False

  UserError: when there is none, when it is not a template, or when it takes too much time or memory.
  """
  if name == 'chatml':
    return CHATML
  source, tool_source = _own(tokenizer) if name == 'own' else (_from_file(name), None)
  return from_source(source, tokenizer, name, tool_source, date, **options)


def from_source(
  source: str,
  tokenizer: Tokenizer,
  name: str = 'own',
  tool_source: str | None = None,
  date: str | None = None,
  **options,
) -> Template:
  """The template with this Jinja text. UserError: as `load`."""
  for key, value in options.items():
    if not isinstance(value, str | int | float | None.__class__):
      raise UserError(f'template option {key}: {type(value).__name__}, expected a text, a number, true, false or null')
  template = Template(
    name, source, tool_source, date or datetime.date.today().isoformat(), tuple(sorted(options.items()))
  )
  if template._is_chatml():
    return template
  from mathqwen.chat import probe, rendering

  for text in filter(None, (source, tool_source)):
    probe.try_out(text, name)
  return dataclasses.replace(template, stops=rendering.find_stops(template, tokenizer))


def _own(tokenizer: Tokenizer) -> tuple[str, str | None]:
  """The template of the checkpoint, and that for conversations with tools if it is another."""
  files = tokenizer.files
  found: Any = None
  if 'chat_template.jinja' in files:
    found = _text(files['chat_template.jinja'], 'chat_template.jinja')
  for file in ('chat_template.json', 'tokenizer_config.json'):
    if found is None and file in files:
      try:
        parsed = json.loads(_text(files[file], file))
      except (ValueError, RecursionError) as error:
        raise UserError(f'{file} is not JSON ({error}); copy it again from its source') from None
      found = parsed.get('chat_template') if isinstance(parsed, dict) else None
  if isinstance(found, list):
    found = {entry.get('name'): entry.get('template') for entry in found if isinstance(entry, Mapping)}
  if isinstance(found, Mapping):
    if 'default' not in found:
      raise UserError(
        f'the checkpoint has no default chat template, only {", ".join(map(str, found))}; save the one to use in a '
        'file and name that'
      )
    default, tool_source = found['default'], found.get('tool_use')
  else:
    default, tool_source = found, None
  if not isinstance(default, str) or not default:
    raise UserError(
      'the checkpoint has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); use '
      'chatml or name a Jinja file'
    )
  return default, tool_source if isinstance(tool_source, str) else None


def _from_file(name: str) -> str:
  path = files_lib.path(name)
  if not files_lib.is_there(path):
    raise UserError(f"{name}: no such file; a template is 'chatml', 'own' (the checkpoint's) or a Jinja file")
  return _text(files_lib.read_bytes(path, MAX_BYTES), name)


def _text(content: bytes, name: str) -> str:
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'{name} is not UTF-8 ({error}); copy it again from its source') from None
