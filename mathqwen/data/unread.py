"""Fields that would change what a row teaches, though no shape reads them: the row is refused, or left out as wrong.

{"question": ..., "answer": ..., "history": [...]}      more of the prompt
{"question": "Which?", "options": ["1", "2"], ...}      what a question chooses from, unless it holds that
{"messages": [...], "loss_mask": [...]}                 what another program trains on
{"question": ..., "answer": ..., "is_correct": false}   an answer that its own data set calls wrong

Other fields that nothing reads change nothing, and are named in a line.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping

from mathqwen.chat.conversations import REASONING
from mathqwen.data.field_texts import single
from mathqwen.data.malformed import Malformed, Unverified

SYSTEM = ('system', 'system_prompt', 'system_message', 'system_instruction')
# Fields that extend the prompt, where the shape of a row does not read them.
PROMPTS = (
  *SYSTEM, 'instruction', 'input', 'context', 'history', 'tools', 'functions', 'body', 'initial_reason_steps',
  'custom_instructions', 'xml_tools', 'python_tools',
)  # fmt: skip
_PICTURES = re.compile(
  r'(?:decoded_)?(?:image|picture|photo|figure|diagram|video|audio)s?(?:_?\d+|_(?:path|url|file)s?)?', re.IGNORECASE
)
# Fields by which other programs choose what is trained on.
MASKS = (
  'weights', 'mask', 'loss_mask', 'loss_weight', 'loss_scale', 'train', 'training', 'trainable', 'train_detail',
  'do_train', 'completion_mask', 'assistant_masks',
)  # fmt: skip
_WRONG = ('false', 'incorrect', 'wrong')
# Fields that may say whether an answer is right, and what they have where it is not. CSV has it as a text. A number in
# the last two may be that of an option.
VERDICTS = dict.fromkeys(
  ('is_correct', 'iscorrect', 'correctness', 'verified', 'is_verified', 'kto_tag'), (*_WRONG, 'no', '0', '0.0')
) | dict.fromkeys(('correct', 'label'), _WRONG)
# Texts that a question is asked about.
_PASSAGES = ('passage', 'table')
_OPTIONS = re.compile(r'options?|choices|(?:answer|mc)_choices', re.IGNORECASE)
_OPTION = re.compile(r'(?:option|opt?|choice)[ _]?[a-e1-5]', re.IGNORECASE)
_LABEL = re.compile(r'\s*\(?[A-Ea-e][).:]\s*')  # of an option: 'A) 21'
_TOKEN = re.compile(r'\d+(?:\.\d+)?|[^\W\d_]+|[-+*/^=<>×÷−%]')
NAMES = frozenset((*PROMPTS, *MASKS, *VERDICTS, *_PASSAGES, 'options', 'choices', 'chat_template_kwargs'))


def refuse_wrong(record: Mapping) -> None:
  """Unverified: when a row says that its answer is wrong."""
  for name, wrong in VERDICTS.items():
    if name in record and str(single(record[name])).strip().lower() in wrong:
      raise Unverified(f'{name} is {record[name]!r}')


def refuse_in_row(record: Mapping, used: Collection[str]) -> None:
  """Malformed: when a row has more of the prompt, or masks, in a field that its shape does not read.

  used: the fields that it reads.
  """
  watched = _watched(tuple(record))
  refuse(record, [name for name in watched if name not in used])
  settings = record.get('chat_template_kwargs')
  if isinstance(settings, dict):
    refuse(settings, PROMPTS, 'chat_template_kwargs: ')
  for name in REASONING:
    value = record.get(name)
    if name in record and name not in used and isinstance(value, str) and len(value.split()) > 1:  # not 'on'
      raise Malformed(f'field "{name}" is not read: remove it, write it into the answer, or name it with --map')


@functools.lru_cache(maxsize=1024)  # the rows of a file have few sets of names
def _watched(names: tuple[str, ...]) -> tuple[str, ...]:
  """Those names of a row that extend its prompt or mask its tokens."""
  return tuple(name for name in names if name in PROMPTS or name in MASKS or _PICTURES.fullmatch(name))


def refuse(fields: Mapping, prompts: Iterable[str], where: str = '') -> None:
  """Malformed: when a row or a turn has a mask, or something in one of `prompts`. where: before the message."""
  for name in (*MASKS, *prompts):
    if fields.get(name) not in (None, '', [], {}, [None]):
      remedy = 'use "weight": 0 on turns of `messages`' if name in MASKS else 'write it into the text'
      raise Malformed(f'{where}field "{name}" is not read: remove it, or {remedy}')


def refuse_unasked(record: Mapping, question: str) -> None:
  """Malformed: when a row has a text or options for its question that the question does not hold."""
  for name, parts in _asked_about(record).items():
    if not _holds(question, [str(part) for part in parts if part is not None]):
      raise Malformed(f'field "{name}" is not read, and the question does not hold it: write it into the text')


def _asked_about(record: Mapping) -> dict[str, list]:
  """Field -> the texts in it that belong to the question; the names of several fields of one option each together."""
  found = {name: _parts(record[name]) for name in _names_about(tuple(record))}
  for names in _option_fields(tuple(record)):
    found['", "'.join(names)] = [record[name] for name in names]
  return found


@functools.lru_cache(maxsize=1024)
def _names_about(names: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(name for name in names if name in _PASSAGES or _OPTIONS.fullmatch(name))


@functools.lru_cache(maxsize=1024)
def _option_fields(names: tuple[str, ...]) -> list[list[str]]:
  """The fields that hold an option each: 'A', 'B', ..., 'a', 'b', 'c', ... or 'option_a', 'opb', 'choice1', ..."""
  named = [sorted(name for name in names if _OPTION.fullmatch(name))]
  upper = [letter for letter in 'ABCDE' if letter in names]
  lower = [letter for letter in 'abcde' if letter in names]
  if upper[:2] == ['A', 'B']:
    named.append(upper)
  if lower[:3] == ['a', 'b', 'c']:
    named.append(lower)
  return [fields for fields in named if fields]


def _parts(held: object) -> list:
  if isinstance(held, dict):  # ARC has {'label': ['A', ...], 'text': ['1', ...]}
    return held['text'] if isinstance(held.get('text'), list) else list(held.values())
  return held if isinstance(held, list) else [held]


def _holds(question: str, parts: list[str]) -> bool:
  """Whether a question holds the words and numbers of each part, one part behind the other."""
  left = _TOKEN.findall(question.lower())
  for part in parts:
    wanted = _TOKEN.findall(_LABEL.sub('', part, count=1).lower())
    if not wanted and part.strip() not in question:
      return False
    at = next((at for at in range(len(left) - len(wanted) + 1) if left[at : at + len(wanted)] == wanted), None)
    if at is None:
      return False
    left = left[at + len(wanted) :]
  return True
