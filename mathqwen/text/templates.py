"""Chat templates: which prompt format a run uses, and the ids and loss mask it gives.

'chatml'   text/chatml.py: the format of this library, without Jinja
'own'      the checkpoint's: chat_template.jinja, chat_template.json, or `chat_template` in tokenizer_config.json
a path     a Jinja file
"""

import dataclasses
from collections.abc import Mapping, Sequence

from mathqwen.errors import UserError
from mathqwen.text import chatml
from mathqwen.text.bpe import IM_END
from mathqwen.text.tokenizer import Tokenizer

Conversation = Sequence[Mapping]  # of messages: {'role': ..., 'content': ..., ...}


@dataclasses.dataclass(frozen=True)
class Template:
  """A prompt format. `load` makes one."""

  name: str  # 'chatml', 'own' or the path of a file: what the user asked for
  source: str  # the Jinja text

  def render_batch(self, conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[tuple[list, list]]:
    """(ids, loss mask of the same length) of each conversation. UserError: when one of them cannot be rendered."""
    return chatml.render_batch(conversations, tokenizer)

  def prompt(self, messages: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the answer begins. UserError: as `render_batch`."""
    return chatml.prompt(messages, tokenizer)

  def stop_tokens(self) -> tuple[str, ...]:
    """The special tokens with which this template ends the assistant's turns."""
    return (IM_END,)


CHATML = Template('chatml', chatml.CHAT_TEMPLATE)


def load(name: str, tokenizer: Tokenizer) -> Template:
  """The template of this name: see the top of this file. UserError: when it is missing or cannot be used."""
  if name == 'chatml':
    return CHATML
  raise UserError(f'no template {name!r}; use chatml')
