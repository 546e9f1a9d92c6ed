"""A Jinja template, messages and a tokenizer together: ids and loss mask. `templates.Template` is how others use it."""

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mathqwen.chat import answers, chatml, whole
from mathqwen.chat.conversations import Conversation, check, plain, split
from mathqwen.chat.engine import Engine
from mathqwen.chat.engine_functions import Refusal
from mathqwen.chat.traced import LimitError, Text, turns_said
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # templates.py imports this module once it has a Jinja template
  from mathqwen.chat.templates import Template


@functools.lru_cache(maxsize=32)
def compiled(source: str, date: str) -> Engine:
  """UserError: when the text is not a template."""
  try:
    return Engine(source, datetime.date.fromisoformat(date))
  except Exception as error:  # Jinja's compiler raises many kinds for a text that is no template
    raise UserError(f'{words(error)}') from None


def words(error: Exception) -> str:
  """What went wrong, in one line."""
  text = ' '.join(str(error).split()).replace('mathqwen.chat.traced.Text object', 'str object')
  line = getattr(error, 'lineno', None)
  if isinstance(error, RecursionError | MemoryError):
    text = 'it goes too deep' if isinstance(error, RecursionError) else 'it needs too much memory'
  return (f'line {line}: ' if line else '') + (text or type(error).__name__)[:500]


class Session:
  """Renders conversations with one template and one tokenizer."""

  def __init__(self, template: 'Template', tokenizer: Tokenizer):
    self.template = template
    self.tokenizer = tokenizer
    self.encoder = whole.encoder(tokenizer)
    self.variables = {**self.encoder.named, **dict(template.options)}

  def engine(self, tools: list | None) -> Engine:
    template = self.template
    return compiled(template.tool_source if tools and template.tool_source else template.source, template.date)

  def text(self, messages: Sequence[Mapping], tools: list | None, generation_prompt: bool = False) -> Text:
    """The rendered conversation. UserError: when the template refuses it or fails."""
    engine = self.engine(tools)
    try:
      return engine.render(plain(messages), {**self.variables, 'tools': tools}, generation_prompt)
    except Exception as error:  # a template is a program, and may raise anything; the line names the kind
      turn = engine.turn
      place = f'message {turn} ({messages[turn]["role"]}): ' if 0 <= turn < len(messages) else ''
      name = self.template.name
      if isinstance(error, Refusal):
        raise UserError(f'{place}the template {name} refuses the conversation: {words(error)}') from None
      if isinstance(error, LimitError):
        raise UserError(f'{place}the template {name} is stopped: {words(error)}; use another template') from None
      raise UserError(f'{place}the template {name} fails: {words(error)} ({type(error).__name__})') from None

  @functools.cached_property
  def control(self) -> frozenset[str]:
    """The added tokens that the template writes."""
    sources = filter(None, (self.template.source, self.template.tool_source))
    constants = [text for source in sources for text in compiled(source, self.template.date).constants]
    written = '\0'.join([*constants, *(v for v in self.variables.values() if isinstance(v, str))])
    return frozenset(token for token in self.encoder.tokens if token in written)

  def generation_prompt(self, messages: Sequence[Mapping], tools: list | None, turn: int, head: str) -> str | None:
    """What the template writes to ask for message `turn`.

    head: the rendered conversation up to what the message says. None when the template, asked for the message, writes
    just that: then its header ends there, whatever belongs to it.
    """
    for before in (messages[:turn], [{'role': 'user', 'content': 'x'}]):
      if not before:
        continue
      try:
        asked = self.text(before, tools, generation_prompt=True)
        if head and asked == head:
          return None
        answered = self.text(before, tools)
      except UserError:
        continue  # a template may refuse a conversation that stops there
      return answers.generation_prompt(asked, str.__str__(answered), self.encoder.tokens)
    return ''

  def check(self, conversation: Conversation) -> tuple[Sequence[Mapping], list | None]:
    """(messages, tools). UserError: when the template cannot take them."""
    check(conversation, self.template.source + (self.template.tool_source or ''), self.template.name)
    return split(conversation)

  def check_said(self, messages: Sequence[Mapping], text: Text) -> None:
    """UserError: when the template has left out a turn, as many do with roles that they do not know.

    Of what the assistant says, a template may leave out earlier reasoning.
    """
    said = turns_said(text)
    if said is None:
      return
    for turn, message in enumerate(messages):
      has_content = bool(message.get('content')) and bool(str(message['content']).strip())
      if turn not in said and has_content and message['role'] != 'assistant':
        raise UserError(
          f'message {turn} ({message["role"]}): the template {self.template.name} writes nothing of it; give it '
          'another role, or use another template'
        )

  def encode(self, conversations: Sequence[tuple[Sequence[Mapping], list | None]], texts: Sequence[Text]):
    """Tokens of the rendered conversations. UserError: when a text cannot be kept from becoming a special token."""
    says = []
    for messages, _ in conversations:
      assistant = frozenset(turn for turn, message in enumerate(messages) if message['role'] == 'assistant')
      says.append(assistant.__contains__)
    try:
      return self.encoder.encode(texts, says, self.control)
    except whole.NotExact:
      raise UserError(
        'a message contains the text of a special token, and this tokenizer treats a text behind a special token in '
        'another way than one at the beginning; remove it from the message'
      ) from None
    except (UnicodeEncodeError, TypeError):
      for text in texts:
        self.tokenizer.encode(str.__str__(text))  # its error says where
      raise

  def spans(self, messages, tools, text: Text, encoded: whole.Encoded) -> list[answers.Span]:
    """The characters with loss. UserError: when they cannot be known."""
    trained = [turn for turn, message in enumerate(messages) if chatml.has_loss(message)]
    answers_ = {turn for turn, message in enumerate(messages) if message['role'] == 'assistant'}
    silent = frozenset(answers_ - set(trained)) if self.engine(tools).marked else None
    calls = frozenset(turn for turn in trained if messages[turn].get('tool_calls'))
    try:
      return answers.spans(
        text,
        trained,
        lambda turn, first: self.generation_prompt(messages, tools, turn, str.__str__(text)[:first]),
        encoded.specials,
        self.encoder.tokens,
        silent,
        calls,
      )
    except answers.OriginLost as lost:
      raise UserError(
        f'the template {self.template.name} changes the text of messages in a way that hides who wrote '
        f'{lost.args[0][:40]!r}; mark the answers in it with {{% generation %}}'
      ) from None


@functools.lru_cache(maxsize=8)
def session(template: 'Template', tokenizer: Tokenizer) -> Session:
  return Session(template, tokenizer)


def render_batch(
  template: 'Template', conversations: Sequence[Conversation], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
  """`Template.render_batch`."""
  run = session(template, tokenizer)
  split = []
  texts = []
  for conversation in conversations:
    messages, tools = run.check(conversation)
    split.append((messages, tools))
    texts.append(run.text(messages, tools))
    run.check_said(messages, texts[-1])
  rendered = []
  for (messages, tools), text, encoded in zip(split, texts, run.encode(split, texts), strict=True):
    rendered.append((encoded.ids, whole.loss_mask(encoded, run.spans(messages, tools, text, encoded))))
  return rendered


def prompt(template: 'Template', conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
  """`Template.prompt`."""
  run = session(template, tokenizer)
  messages, tools = run.check(conversation)
  text = run.text(messages, tools, generation_prompt=True)
  run.check_said(messages, text)
  return run.encode([(messages, tools)], [text])[0].ids


def find_stops(template: 'Template', tokenizer: Tokenizer) -> tuple[str, ...]:
  """The special token that ends an answer to a plain question; none when there is none, or the template refuses it."""
  messages = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}]
  try:
    ids, mask = render_batch(template, [messages], tokenizer)[0]
  except UserError:
    return ()
  encoder = whole.encoder(tokenizer)
  ends = [i for i, loss in zip(ids, mask, strict=True) if loss and i in encoder.special_ids]
  return (encoder.added[ends[-1]],) if ends else ()
