"""Fields that would change what a row teaches, though no shape reads them: the row is refused, or left out as wrong.

{"question": ..., "answer": ..., "tools": [...]}        more of the prompt
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
from mathqwen.data.field_texts import is_empty, single
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
_LETTER = re.compile(r'\(?[A-Ea-e][).]?')  # an answer that names an option
_LABEL = re.compile(r'\s*\(?[A-Ea-e][).:]\s*')  # of an option: 'A) 21'
_TOKEN = re.compile(r'\d+(?:\.\d+)?|[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+|[-+*/^=<>×÷%]')
_SPELLINGS = re.compile(r'(?P<thousands>(?<=\d),(?=\d{3}(?!\d)))|(?P<minus>[−–—])|\\[dt](?=frac)')
_FEW_WORDS = 6  # of reasoning, which is then a label
NAMES = frozenset((*PROMPTS, *MASKS, *VERDICTS, *_PASSAGES, 'options', 'choices', 'chat_template_kwargs'))


@dataclasses.dataclass(frozen=True)
class _Watched:
  """Those names of a row that something here looks at. The rows of a file have few sets of names."""

  verdicts: list[str]
  refused: list[str]  # masks, and what extends the prompt
  pictures: list[str]
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
    [name for name in names if name in MASKS or name in PROMPTS],
    [name for name in names if _PICTURES.fullmatch(name)],
    [name for name in names if name in REASONING],
    [name for name in names if name in _PASSAGES or _OPTIONS.fullmatch(name)],
    [fields for fields in options if len(fields) > 1],
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
  # A picture is a path, bytes or an address; a flag or a number only says something of one.
  refuse(record, [name for name in watched.pictures if not isinstance(record[name], int | float)])
  settings = record.get('chat_template_kwargs')
  if isinstance(settings, dict):
    refuse(settings, PROMPTS, 'chat_template_kwargs: ')
  for name in watched.thoughts:
    if name not in used and len(str(record[name]).split()) >= _FEW_WORDS:
      raise Malformed(
        f'field "{name}" is not read: remove it, write it into the answer, or train on it with --map solution={name}'
      )


def refuse(fields: Mapping, names: Iterable[str], where: str = '') -> None:
  """Malformed: when a row or a turn has something in one of these fields. where: before the message."""
  for name in names:
    value = fields.get(name)
    if value is None or (_masks_nothing(value) if name in MASKS else is_empty(value)):
      continue
    remedy = 'use "weight": 0 on turns of `messages`' if name in MASKS else 'write it into the text'
    raise Malformed(f'{where}field "{name}" is not read: remove it, or {remedy}')


def _masks_nothing(value: object) -> bool:
  return value == 1 or (value is not False and is_empty(value))


def refuse_unasked(record: Mapping, question: str, answer: str) -> None:
  """Malformed: when a row has a text or options for its question that the question does not hold."""
  watched = _watched(tuple(record))
  asked = {name: _parts(record[name]) for name in watched.about}
  for names in watched.options:
    options = [record[name] for name in names]
    if _LETTER.fullmatch(answer) or answer in map(str, options):  # otherwise they are numbers of the problem
      asked['", "'.join(names)] = options
  for name, parts in asked.items():
    if not _holds(question, [str(part) for part in parts if not is_empty(part)]):
      raise Malformed(f'field "{name}" is not read, and the question does not hold it: write it into the text')


def _parts(held: object) -> list:
  """The texts of a passage, or of a list of options. A single letter says which option is right."""
  if isinstance(held, dict):  # ARC has {'label': ['A', ...], 'text': ['1', ...]}
    return held['text'] if isinstance(held.get('text'), list) else list(held.values())
  if isinstance(held, list):
    return held
  return [] if _LETTER.fullmatch(str(held)) else [held]


def _holds(question: str, parts: list[str]) -> bool:
  """Whether a question holds the words, numbers and signs of each part."""
  tokens = _tokens(question)
  for part in parts:
    wanted = _tokens(_LABEL.sub('', part, count=1))
    if wanted.strip() and wanted not in tokens and not _is_spelled(part, question):
      return False
    if not wanted.strip() and part.strip() not in question:
      return False
  return True


def _tokens(text: str) -> str:
  """The words, numbers and signs of a text, one spelling of each, with a space around them."""
  plain = _SPELLINGS.sub(lambda match: '-' if match['minus'] else '' if match['thousands'] else '\\', text.lower())
  return f' {" ".join(_TOKEN.findall(plain))} '


def _is_spelled(part: str, question: str) -> bool:
  """Whether a question holds the letters and digits of a part with a word in it, whatever stands between them."""
  letters = re.sub(r'[\W_]+', '', part).lower()
  return bool(re.search(r'[^\W\d_]{2}', letters)) and letters in re.sub(r'[\W_]+', '', question).lower()
