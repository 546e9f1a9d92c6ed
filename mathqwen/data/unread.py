"""Fields that would change what a row teaches, though no shape reads them: the row is refused, or left out as wrong.

{"question": ..., "answer": ..., "history": [...]}      more of the prompt
{"question": "Which?", "options": ["1", "2"], ...}      what a question chooses from, unless it holds that
{"messages": [...], "loss_mask": [...]}                 what another program trains on
{"question": ..., "answer": ..., "is_correct": false}   an answer that its own data set calls wrong

Other fields that nothing reads change nothing, and are named in a line.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class _Watched:
  """Those names of a row that something here looks at. The rows of a file have few sets of names."""

  verdicts: list[str]
  refused: list[str]  # masks, and what extends the prompt
  thoughts: list[str]
  about: list[str]  # passages and lists of options
  options: list[list[str]]  # fields that hold an option each: 'A', 'B', ... or 'option_a', 'option_b', ...


@functools.lru_cache(maxsize=1024)
def _watched(names: tuple[str, ...]) -> _Watched:
  upper = [letter for letter in 'ABCDE' if letter in names]
  lower = [letter for letter in 'abcde' if letter in names]
  options = [
    sorted(name for name in names if _OPTION.fullmatch(name)),
    upper if upper[:2] == ['A', 'B'] else [],
    lower if lower[:3] == ['a', 'b', 'c'] else [],
  ]
  return _Watched(
    [name for name in names if name in VERDICTS],
    [name for name in names if name in MASKS or name in PROMPTS or _PICTURES.fullmatch(name)],
    [name for name in names if name in REASONING],
    [name for name in names if name in _PASSAGES or _OPTIONS.fullmatch(name)],
    [fields for fields in options if fields],
  )


def refuse_wrong(record: Mapping) -> None:
  """Unverified: when a row says that its answer is wrong."""
  for name in _watched(tuple(record)).verdicts:
    if str(single(record[name])).strip().lower() in VERDICTS[name]:
      raise Unverified(f'{name} is {record[name]!r}')


def refuse_in_row(record: Mapping, used: Collection[str]) -> None:
  """Malformed: when a row has more of the prompt, or masks, in a field that its shape does not read.

  used: the fields that it reads.
  """
  watched = _watched(tuple(record))
  refuse(record, [name for name in watched.refused if name not in used])
  settings = record.get('chat_template_kwargs')
  if isinstance(settings, dict):
    refuse(settings, PROMPTS, 'chat_template_kwargs: ')
  for name in watched.thoughts:
    value = record[name]
    if name not in used and isinstance(value, str) and len(value.split()) > 1:  # not 'on'
      raise Malformed(f'field "{name}" is not read: remove it, write it into the answer, or name it with --map')


def refuse(fields: Mapping, names: Iterable[str], where: str = '') -> None:
  """Malformed: when a row or a turn has something in one of these fields. where: before the message."""
  for name in names:
    if fields.get(name) not in (None, '', [], {}, [None]):
      remedy = 'use "weight": 0 on turns of `messages`' if name in MASKS else 'write it into the text'
      raise Malformed(f'{where}field "{name}" is not read: remove it, or {remedy}')


def refuse_unasked(record: Mapping, question: str) -> None:
  """Malformed: when a row has a text or options for its question that the question does not hold."""
  watched = _watched(tuple(record))
  asked = {name: _parts(record[name]) for name in watched.about}
  asked |= {'", "'.join(names): [record[name] for name in names] for names in watched.options}
  for name, parts in asked.items():
    if not _holds(question, [str(part) for part in parts if part is not None]):
      raise Malformed(f'field "{name}" is not read, and the question does not hold it: write it into the text')


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
