"""`ChatFormat`: what every prompt of a model is made with, its template and its system turn.

Training, generation, evaluation, the export and its model card all take both from here, so that the prompt that is
served is the prompt that was trained.

  trained(...)     of a run: what it was trained with
  for_training     of a run that begins: what its settings ask for
  published(...)   of a Hugging Face directory: our export's, a chat model's own template, or ChatML for a base model
"""

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from mathqwen import files as files_lib
from mathqwen.chat import templates
from mathqwen.chat.conversations import Conversation, split
from mathqwen.chat.templates import CHATML, Template
from mathqwen.errors import UserError, report
from mathqwen.text.bpe import IM_START
from mathqwen.text.tokenizer import Tokenizer, pretty_json

TEMPLATE_FILE = 'chat_template.jinja'  # where a run and an export keep the template, and transformers looks first
_PROBE = ('qSYSTEMq', 'qQUESTIONq')  # texts that no template has
_NOW = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1)[^\\])*)\1\s*\)""")
_SHOWN = 200  # characters of a system turn that a line shows


@dataclasses.dataclass(frozen=True)
class ChatFormat:
  """A template, and the system turn that goes before a conversation that has none."""

  template: Template = CHATML
  system_prompt: str = ''  # '': none is added, and the template's own default applies if it has one

  def conversation(self, messages: Sequence[Mapping]) -> list[Mapping]:
    """The messages, after the system turn unless they have one."""
    if self.system_prompt and not (messages and messages[0].get('role') == 'system'):
      return [{'role': 'system', 'content': self.system_prompt}, *messages]
    return list(messages)

  def prompt(self, messages: Sequence[Mapping], tokenizer: Tokenizer) -> list[int]:
    """Ids that ask for the next turn of a conversation. UserError: when the template or tokenizer cannot render it."""
    return self.template.prompt(self.conversation(messages), tokenizer)

  @property
  def has_own_turns(self) -> bool:
    """Whether roles, tools and fields of turns that ChatML does not have are for the template to take or refuse."""
    return self.template.source != CHATML.source

  def only_asked(self, conversation: Conversation, tokenizer: Tokenizer) -> str:
    """What a prompt ends with and the template does not write before the last answer of a conversation; '' for nothing.

    Templates of reasoning models end a prompt with <think>, and so must the answers begin that they are trained on.
    """
    messages, tools = split(conversation)
    last = max((turn for turn, message in enumerate(messages) if message['role'] == 'assistant'), default=0)
    asked, answered = ({'messages': messages[:stop], 'tools': tools} for stop in (last, last + 1))
    try:
      prompt = text_with_specials(self.template.prompt(asked, tokenizer), tokenizer)
      ids, _ = self.template.render_batch([answered], tokenizer)[0]
    except UserError:
      return ''
    return prompt[len(os.path.commonprefix([prompt, text_with_specials(ids, tokenizer)])) :]

  def jinja(self) -> str:
    """The template as a server must have it: it renders the system turn in conversations that have none."""
    before = _system_block(self.system_prompt)
    return before + self.template.source.removeprefix(before)  # an export's own template has it already

  def system_turn(self, tokenizer: Tokenizer) -> str:
    """The system turn of a conversation that has none: the setting's, else the template's default; '' for none."""
    return self.system_prompt or default_system(self.template, tokenizer)

  def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Answers end at any of these: the ids with which the template ends turns, then the tokenizer's `stop_ids`.

    UserError: when there is none.
    """
    ends = _turn_ends(self.template, tokenizer)
    try:
      stops = tokenizer.stop_ids
    except UserError:
      if not ends:
        raise
      stops = ()
    return tuple(dict.fromkeys([*ends, *stops]))

  def changed(self, tokenizer: Tokenizer, template: str | None, system: str | None) -> 'ChatFormat':
    """With another template, as `templates.load` takes it, or another system turn; None keeps what is here.

    UserError: when the template cannot be loaded, or renders no system turn and is to.
    """
    now = self
    if template is not None:
      now = dataclasses.replace(now, template=templates.load(template, tokenizer))
    if system is not None:
      now.template.check()
      now = dataclasses.replace(now, system_prompt=system)
      if system and not renders_system(now.template, tokenizer):
        raise UserError(f'template {now.template.name} renders no system turn: leave --system out, or take another')
    return now

  def describe(self, tokenizer: Tokenizer) -> str:
    """'template chatml, no system turn', or with its text: a line for people."""
    turn = self.system_turn(tokenizer)
    if not turn:
      return f'template {self.template.name}, no system turn'
    whose = 'system turn' if self.system_prompt else "the template's own system turn"
    text = turn if len(turn) <= _SHOWN else f'{turn[:_SHOWN]}...'
    return f'template {self.template.name}, {whose} {json.dumps(text, ensure_ascii=False)}'

  def record(self) -> dict:
    """What a result says about how it was asked: two formats with the same `template_sha256` ask the same."""
    digest = hashlib.sha256(self.jinja().encode()).hexdigest()
    return {'template': self.template.name, 'template_sha256': digest}

  def in_files(self, files: Mapping[str, bytes], tokenizer: Tokenizer) -> dict[str, bytes]:
    """Tokenizer files in which this template replaces every other, and eos_token is what ends its turns."""
    files = {name: content for name, content in files.items() if not name.startswith('chat_template')}
    files[TEMPLATE_FILE] = self.jinja().encode()
    for name in ('tokenizer_config.json', 'special_tokens_map.json'):
      if name not in files:
        continue
      config = json.loads(files[name])
      now = {key: value for key, value in config.items() if key != 'chat_template'}
      end = self._eos_token(tokenizer)
      if end is not None and token_text(now.get('eos_token')) != end:
        now['eos_token'] = end
      if now != config:
        files[name] = pretty_json(now)
    return files

  def _eos_token(self, tokenizer: Tokenizer) -> str | None:
    """The special token that ends turns; None to leave eos_token as it is."""
    if 'eos_token' in self.template.source:  # another eos_token would change what the template renders
      return None
    return next((token for token in self.template.stop_tokens() if token in tokenizer.special), None)


def save_tokenizer(
  tokenizer: Tokenizer, directory: str | files_lib.AnyPath, layout: str | None = None, chat: ChatFormat | None = None
) -> str:
  """Writes files that `load_tokenizer(directory)` reads, with a chat template. Returns whose template it is.

  That is 'trained' with `chat`, what a run was trained with, whose template then replaces every other. Otherwise it is
  'original' or 'mathqwen': ChatML is added, as chat_template.jinja, only when the tokenizer's files have none.
  layout: as in `Tokenizer.files_in`, with its errors.
  """
  found = tokenizer.files_in(layout)
  if chat is not None:
    found = chat.in_files(found, tokenizer)
    whose = 'trained'
  elif tokenizer.has_template:
    whose = 'original'
  else:
    if IM_START in tokenizer.special:
      found[TEMPLATE_FILE] = CHATML.source.encode()
    whose = 'mathqwen'

  directory = files_lib.path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for name, content in found.items():
    (directory / name).write_bytes(content)
  return whose


def _system_block(system_prompt: str) -> str:
  """Jinja that puts a system turn before messages without one; '' for none."""
  if not system_prompt:
    return ''
  text = json.dumps(system_prompt, ensure_ascii=False)  # a string of Jinja too
  # transformers removes the newline behind a block, so what follows starts a line as it did before.
  return (
    "{%- if not messages or messages[0]['role'] != 'system' %}"
    f"{{%- set messages = [{{'role': 'system', 'content': {text}}}] + messages %}}"
    '{%- endif %}\n'
  )


def token_text(token: object) -> object:
  """A special token of tokenizer_config.json, which is a text, or an object with the text as its content."""
  return token.get('content') if isinstance(token, dict) else token


def trained(name: str, system_prompt: str, tokenizer: Tokenizer) -> ChatFormat:
  """What a run was trained with. name: its setting data.template. tokenizer: the run's, which keeps the Jinja text.

  UserError: when the text is missing or damaged.
  """
  if name == 'chatml':
    return ChatFormat(CHATML, system_prompt)
  return ChatFormat(dataclasses.replace(templates.load('own', tokenizer), name=name), system_prompt)


def for_training(name: str, system_prompt: str, tokenizer: Tokenizer, saved: str | None = None) -> ChatFormat:
  """What the settings data.template and data.system_prompt ask for.

  saved: the Jinja text that a run keeps which is continued; what `name` stands for may be another one by now.
  UserError: when there is no such template, or both the template and the setting would decide the system turn.
  """
  if saved is None:
    # A server has one template, so a checkpoint's other one for conversations with tools is not trained with.
    template = dataclasses.replace(templates.load(name, tokenizer), tool_source=None)
    template = _with_its_date(template, tokenizer)
  else:
    template = templates.from_source(saved.removeprefix(_system_block(system_prompt)), tokenizer, name)
    _report_changed(template, tokenizer)
  template.prompt([{'role': 'user', 'content': _PROBE[1]}], tokenizer)  # for its error, before any data is read
  if system_prompt:
    if default := default_system(template, tokenizer):
      raise UserError(
        f'data.system_prompt is set, and data.template {name} has a system turn of its own '
        f'({json.dumps(default[:_SHOWN], ensure_ascii=False)}): only one of them may decide; leave data.system_prompt '
        'out, or take a template without one, such as chatml'
      )
    if not renders_system(template, tokenizer):
      raise UserError(
        f'data.system_prompt is set, and data.template {name} renders no system turn: leave data.system_prompt out, '
        'or take another template, such as chatml'
      )
  return ChatFormat(template, system_prompt)


def _with_its_date(template: Template, tokenizer: Tokenizer) -> Template:
  """The template with the day of today in place of `strftime_now('...')`: a server would write another day."""
  midnight = datetime.datetime.combine(datetime.date.fromisoformat(template.date or '2000-01-01'), datetime.time())
  source = _NOW.sub(lambda call: json.dumps(midnight.strftime(call[2]), ensure_ascii=False), template.source)
  return template if source == template.source else templates.from_source(source, tokenizer, template.name)


def _report_changed(kept: Template, tokenizer: Tokenizer) -> None:
  """Reports that what a run's data.template names is now another text than the run keeps."""
  try:
    now = templates.load(kept.name, tokenizer)
  except UserError:  # it is gone, and is not needed
    return
  if now.source != kept.source and not _NOW.search(now.source):
    report(f'data.template={kept.name} is another text now: the run keeps the one that it began with')


def published(system_prompt: str, tokenizer: Tokenizer) -> ChatFormat:
  """What a Hugging Face directory, or a checkpoint converted from one, is to be asked with.

  system_prompt: what its config.json says our training set. UserError: when its template cannot be used.
  """
  ours = ChatFormat(CHATML, system_prompt)
  if not tokenizer.has_template or tokenizer.files.get(TEMPLATE_FILE) == ours.jinja().encode():
    return ours
  own = templates.load('own', tokenizer)
  # A model without the tokens of ChatML can only be asked in its own template, whatever it stops at.
  is_for_chat = _ends_where_it_stops(own, tokenizer) or IM_START not in tokenizer.special
  return ChatFormat(own, system_prompt) if is_for_chat else ours


def published_or_unusable(system_prompt: str, tokenizer: Tokenizer) -> ChatFormat:
  """As `published`; where the model's template cannot be used, a format whose first use says so."""
  try:
    return published(system_prompt, tokenizer)
  except UserError as error:
    return ChatFormat(Template('own', '', stops=(), problem=str(error)), system_prompt)


def _ends_where_it_stops(template: Template, tokenizer: Tokenizer) -> bool:
  """Whether a model stops where its template ends a turn.

  Base models of Qwen2.5 and Qwen3 come with the template of the chat models, and stop at <|endoftext|> alone.
  """
  ends = _turn_ends(template, tokenizer)
  stops = tokenizer.published_stops
  return not ends or not stops or any(end in stops for end in ends)


def _turn_ends(template: Template, tokenizer: Tokenizer) -> list[int]:
  """Ids of the special tokens with which a template ends the assistant's turns."""
  return [tokenizer.special[token] for token in template.stop_tokens() if token in tokenizer.special]


# --- what a template does with system turns ---


def renders_system(template: Template, tokenizer: Tokenizer) -> bool:
  """Whether the text of a system turn comes out of a template."""
  return template.source == CHATML.source or _PROBE[0] in (_probe(template, tokenizer, True) or '')


@functools.lru_cache(maxsize=32)
def default_system(template: Template, tokenizer: Tokenizer) -> str:
  """The system turn that a template adds to a conversation without one; '' for none."""
  if template.source == CHATML.source:
    return ''
  given, default = (_probe(template, tokenizer, with_system) for with_system in (True, False))
  if given is None or default is None or _PROBE[0] not in given:
    return ''
  before, _, after = given.partition(_PROBE[0])
  if not default.startswith(before) or not default.endswith(after) or len(default) < len(before) + len(after):
    return ''  # without a system turn, it renders no place for one
  return default[len(before) : len(default) - len(after)].strip()


def _probe(template: Template, tokenizer: Tokenizer, with_system: bool) -> str | None:
  """The text of a question, after a system turn or alone; None where the template refuses it."""
  messages = [{'role': 'system', 'content': _PROBE[0]}, {'role': 'user', 'content': _PROBE[1]}]
  try:
    return text_with_specials(template.prompt(messages[0 if with_system else 1 :], tokenizer), tokenizer)
  except UserError:
    return None


def text_with_specials(ids: Iterable[int], tokenizer: Tokenizer) -> str:
  """The text of the ids with special tokens by their names, which `decode` leaves out."""
  names = {token_id: token for token, token_id in tokenizer.special.items()}
  text = ''
  for name, group in itertools.groupby(ids, key=names.get):
    same = list(group)
    text += name * len(same) if name else tokenizer.decode(same)
  return text
