"""The loss masks that other trainers make of a conversation, as their published code does it.

All of them render with the same template as we do, and let text that looks like a special token become one.

  prefix  the conversation up to each turn is rendered, and the turn is what that adds to the text rendered before it
          (verl's multi-turn data set; much code does the same with ids). The text up to a turn must not change when
          turns follow: templates that drop <think> blocks, or treat the last turn in another way, break that
  marks   what the template's {% generation %} marks enclose (`return_assistant_tokens_mask` of transformers, TRL): no
          loss at all without marks
  turns   each question and its answer are rendered on their own, one behind the other (MaxText): a template with a
          system turn of its own writes it again in each
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence

from mathqwen.chat import chatml, rendering, whole
from mathqwen.chat.conversations import Conversation, split
from mathqwen.chat.templates import Template
from mathqwen.chat.traced import literal
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer

Masked = tuple[list[int], list[int]]  # ids, and 1 where a token has loss


class Renderer:
  """Renders the messages of one conversation, whole or in part, as other programs do."""

  tools: list | None = None  # of the conversation

  def __init__(self, template: Template, tokenizer: Tokenizer):
    # ChatML has no date, which Jinja's templates need.
    self.session = rendering.session(dataclasses.replace(template, date=template.date or '2000-01-01'), tokenizer)
    self._encoder = whole.encoder(tokenizer)

  def with_tools(self, tools: list | None) -> 'Renderer':
    """The same for a conversation with these tools."""
    renderer = copy.copy(self)
    renderer.tools = tools
    return renderer

  @property
  def has_marks(self) -> bool:
    """Whether the template has {% generation %} marks."""
    return self.session.engine(self.tools).marked

  def text(self, messages: Sequence[dict], ask: bool = False) -> str:
    """The text of the messages, with the header of the next answer where asked for."""
    return str.__str__(self.session.text(messages, self.tools, ask)) if messages else ''

  def ids(self, text: str) -> list[int]:
    """Ids of a text, its special tokens included."""
    return self._encoder.encode([literal(text)], [lambda turn: True], frozenset())[0].ids


def _prefix(messages: Sequence[dict], renderer: Renderer) -> Masked:
  ids: list[int] = []
  mask: list[int] = []

  def add(text: str, loss: bool):
    part = renderer.ids(text)
    ids.extend(part)
    mask.extend([int(loss)] * len(part))

  for turn, message in enumerate(messages):
    before = renderer.text(messages[:turn])
    now = renderer.text(messages[: turn + 1])
    if message['role'] != 'assistant':
      add(now[len(before) :], False)
      continue
    asked = renderer.text(messages[:turn], ask=True)
    add(asked[len(before) :], False)
    add(now[len(asked) :], chatml.has_loss(message))
  return ids, mask


def _marks(messages: Sequence[dict], renderer: Renderer) -> Masked:
  if not renderer.has_marks:
    ids = renderer.ids(renderer.text(messages))
    return ids, [0] * len(ids)
  session = renderer.session
  text = session.text(messages, renderer.tools)
  (encoded,) = session.encode([(messages, renderer.tools)], [text])
  return encoded.ids, whole.loss_mask(encoded, session.spans(messages, renderer.tools, text, encoded))


def _turns(messages: Sequence[dict], renderer: Renderer) -> Masked:
  ids: list[int] = []
  mask: list[int] = []
  part: list[dict] = []  # the turns since the last answer
  for message in messages:
    part.append(message)
    if message['role'] != 'assistant':
      continue
    prompt = renderer.ids(renderer.text(part[:-1], ask=True))
    answered = renderer.ids(renderer.text(part))
    ids += answered
    loss = int(chatml.has_loss(message))
    mask += [0] * min(len(prompt), len(answered)) + [loss] * max(len(answered) - len(prompt), 0)
    part = []
  return ids, mask


@dataclasses.dataclass(frozen=True)
class Behaviour:
  """What another trainer does with a conversation."""

  about: str
  render: Callable[[Sequence[dict], Renderer], Masked]


BEHAVIOURS = {
  'prefix': Behaviour('prefix difference (verl)', _prefix),
  'marks': Behaviour('{% generation %} marks (transformers, TRL)', _marks),
  'turns': Behaviour('each question and answer on its own (MaxText)', _turns),
}


def render(name: str, conversation: Conversation, renderer: Renderer) -> Masked | None:
  """What a behaviour makes of a conversation; None where the template refuses a part of it."""
  messages, tools = split(conversation)
  try:
    return BEHAVIOURS[name].render(messages, renderer.with_tools(tools))
  except UserError:
    return None
