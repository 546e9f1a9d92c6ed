"""The check that ends an export: what a server makes of the written chat template is what we ask and train with.

The template is rendered by Jinja set up as transformers does it, which shares nothing with `chat.engine`; the text is
encoded as a whole, special tokens included. Compared are the ids of the prompt and of the whole conversation.

Two differences are inherent, and no sample has the first:
  - Text of a message that looks like a special token is text here, and the token in a server.
  - ChatML encodes the header of an answer and the answer apart, because generation sees that boundary. A server that
    continues a conversation encodes them as one text. So the ids may differ where an answer begins with white space;
    the texts are then compared instead. The ids of prompts that end with a question never differ.
"""

import datetime
import json
from collections.abc import Sequence

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mathqwen import files
from mathqwen.chat import templates, whole
from mathqwen.chat.chat_format import ChatFormat, text_with_specials
from mathqwen.chat.templates import CHATML
from mathqwen.chat.traced import literal
from mathqwen.errors import UserError, report
from mathqwen.storage.source import Source
from mathqwen.text.bpe import IM_START
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer


def _turns(*contents: str, system: str | None = None) -> list[dict]:
  """A conversation in which user and assistant take turns."""
  turns = [] if system is None else [{'role': 'system', 'content': system}]
  return turns + [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(contents)]


SAMPLE = (
  _turns('What is 2 + 2?', '4'),
  _turns('What is 2 + 2?', 'It is $\\boxed{4}$.\n', system='Please reason step by step.'),
  _turns('1 + 1 =', '2', 'And 5! =', '120', 'Sure?', 'Yes.'),
  _turns('1 + 1 =', '<think>\nOne and one.\n</think>\n\n2', 'Twice that?', '<think>\n2 * 2\n</think>\n\n4'),
  _turns('小明有3盒铅笔,一共多少支? 😀 é', '36 支。\u00a0\u200b', system='Ответ — число.'),
  _turns('  spaces\n\nand lines \t', '\n\n four \n', ' again ', '  4  '),
  _turns('<b>&amp; "quoted" \\n {{ x }} {% if %}', "it's <i>4</i>"),
)


class _Generation(Extension):
  """{% generation %}, whose marks change no text."""

  tags = {'generation'}

  def parse(self, parser) -> list[nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(['name:endgeneration'], drop_needle=True)


class _Refused(Exception):
  """The template raised an error of its own."""


def _refuse(message: str):
  raise _Refused(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(source: str, messages: Sequence[dict], tokenizer: Tokenizer, ask: bool) -> str | None:
  """The text that transformers makes of a template; None where the template refuses the conversation.

  ask: whether to end with the header of the next answer.
  """
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _refuse
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  variables = whole.named_tokens(tokenizer)
  try:
    template = environment.from_string(source)
    return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=ask, **variables)
  except (_Refused, jinja2.TemplateError, TypeError, AttributeError, KeyError, IndexError, ValueError):
    return None


def check_written(model: Source, folder: files.AnyPath) -> int:
  """Compares the template and tokenizer in a folder with those of the model. Returns how many texts were compared.

  UserError: when a prompt or a conversation differs.
  """
  chat = _written_chat(model)
  if chat is None:
    return 0
  written = load_tokenizer(folder)
  source = templates.load('own', written).source
  compared = 0
  for messages in SAMPLE:
    compared += _compare(model.tokenizer, chat, written, source, messages[:-1], ask=True)
    compared += _compare(model.tokenizer, chat, written, source, messages, ask=False)
  if not compared:
    report(f'{model.name}: its chat template refuses every conversation that it was tried with, so it is not compared')
  return compared


def _written_chat(model: Source) -> ChatFormat | None:
  """What the written files are to give; None when there is nothing to compare."""
  tokenizer = model.tokenizer
  if tokenizer is None:
    return None
  if (chat := model.trained_chat()) is not None:
    return chat
  if not tokenizer.has_template:  # then ours is written, where it can be
    return ChatFormat(system_prompt=model.system_prompt) if IM_START in tokenizer.special else None
  try:
    return ChatFormat(templates.load('own', tokenizer))
  except UserError as error:
    report(f'{model.name}: its chat template is written as it is, and not compared: {error}')
    return None


def _compare(
  tokenizer: Tokenizer, chat: ChatFormat, written: Tokenizer, source: str, messages: list[dict], ask: bool
) -> bool:
  """Whether both sides render the conversation. UserError: when only one does, or they differ.

  tokenizer, chat: what we ask and train with. written, source: the files of the export and their template.
  """
  text = render(source, messages, written, ask)
  ours = _ours(chat, tokenizer, messages, ask)
  if text is None and ours is None:
    return False
  what = f'{"the prompt of" if ask else "the conversation"} {json.dumps(messages, ensure_ascii=False)[:200]}'
  if text is None or ours is None:
    refuses = 'a server' if text is None else 'ours'
    raise UserError(f'{what}: of the written chat template and ours, {refuses} refuses it: nothing is kept')
  (encoded,) = whole.encoder(written).encode([literal(text)], [lambda turn: True], frozenset())
  if encoded.ids == ours:
    return True
  theirs_text, ours_text = (text_with_specials(ids, tokenizer) for ids in (encoded.ids, ours))
  inherent = chat.template.source == CHATML.source and _begins_with_space(messages)
  if inherent and theirs_text == ours_text:
    return True
  raise UserError(
    f'{what}: a server would read {_around(theirs_text, ours_text)} where we have {_around(ours_text, theirs_text)}: '
    'nothing is kept; use another data.template'
  )


def _ours(chat: ChatFormat, tokenizer: Tokenizer, messages: list[dict], ask: bool) -> list[int] | None:
  """The ids that we ask or train with; None where the template refuses the conversation."""
  try:
    if ask:
      return chat.prompt(messages, tokenizer)
    return chat.template.render_batch([chat.conversation(messages)], tokenizer)[0][0]
  except UserError:
    return None


def _begins_with_space(messages: list[dict]) -> bool:
  return any(turn['role'] == 'assistant' and turn['content'][:1].isspace() for turn in messages)


def _around(text: str, other: str) -> str:
  """The part of a text at which it begins to differ from another."""
  at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
  return repr(text[max(at - 20, 0) : at + 20])
