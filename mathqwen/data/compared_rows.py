"""`Row`: an example as its texts, and as the line that is written for it."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from mathqwen.data import compared_text as texts
from mathqwen.data.examples import Example
from mathqwen.data.field_texts import gold_of

T = TypeVar('T')
_MOST_CHARACTERS = 2**20  # of rows that are compared at once
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # `dumps` would make an encoder for each row


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
  """The text of a turn, in the forms in which it is compared."""

  text: str
  plain: str

  @classmethod
  def of(cls, text: str) -> 'Text':
    """The forms of a text."""
    return cls(text, texts.plain(text))


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """The texts of an example."""

  where: str
  questions: list[Text]  # of user turns
  answers: list[Text]  # of assistant turns that are trained on
  gold: str
  identity: str  # equal for duplicates
  record: str  # the JSON that is written

  @classmethod
  def of(cls, example: Example, source: str) -> 'Row':
    """The row of an example of `source`."""
    questions = []
    answers = []
    identity = []
    for turn in turns_of(example):
      text = Text.of(turn['content'] or '')
      if turn['role'] == 'user':
        questions.append(text)
      elif turn['role'] == 'assistant' and turn.get('weight') != 0:
        answers.append(text)
      # Whatever else of a turn a template may show, or training reads, makes another example.
      more = {name: value for name, value in turn.items() if name not in ('role', 'content')} if len(turn) > 2 else ''
      identity.append(f'{turn["role"]} {text.plain} {more}')
    identity.append(json.dumps(example.tools) if example.tools else '')
    return cls(example.where, questions, answers, example.answer, '\n'.join(identity), json_of(example, source))


def turns_of(example: Example) -> Sequence[dict]:
  """The turns of an example."""
  if example.messages is not None:
    return example.messages
  return ({'role': 'user', 'content': example.question}, {'role': 'assistant', 'content': example.solution})


def json_of(example: Example, source: str) -> str:
  """The line of an example, as `shapes.SHAPES` reads it: messages, or question and solution."""
  record: dict = {'id': example.id}
  # Calculator marks, which someone asked to keep, would be removed from a `solution` when it is read.
  if example.messages is not None or '<<' in example.solution:
    record['messages'] = turns_of(example)
    if example.tools:
      record['tools'] = example.tools
  else:
    record['question'] = example.question
    record['solution'] = example.solution
  # Where there is no answer, as of a proof, an empty one would be looked for in the solution.
  answer = example.answer or ('n/a' if gold_of(example.solution) else '')
  record |= {'answer': answer, 'source': source, 'where': example.where}
  if example.extra:
    record['extra'] = example.extra
  return _to_json(record)


def take(rows: Iterator[T], most: int, characters: Callable[[T], int]) -> list[T]:
  """The next rows, which are compared at once: `most` of them, or fewer where they are long."""
  batch = []
  total = 0
  for row in itertools.islice(rows, most):
    batch.append(row)
    total += characters(row)
    if total > _MOST_CHARACTERS:
      break
  return batch


class Batch:
  """Rows, and the words of all their turns, which are made once."""

  def __init__(self, rows: Sequence[Row]):
    self.rows = rows
    self.turns = [turn for row in rows for turn in (*row.questions, *row.answers)]
    self.words = texts.Words([turn.text for turn in self.turns])
    sizes = [len(row.questions) + len(row.answers) for row in rows]
    self.row_of_turn = np.repeat(np.arange(len(rows)), sizes)
    self.turns_before = np.cumsum([0, *sizes])  # the turns of row i begin at [i] and end at [i + 1]
    position = np.arange(len(self.turns)) - self.turns_before[self.row_of_turn]
    self.is_answer = position >= np.repeat([len(row.questions) for row in rows], sizes)

  def words_in(self, unit: str) -> list[tuple[texts.Words, np.ndarray]]:
    """What is compared in 'words' or 'characters': (words of some texts, the turn that each text is, or -1 for none).

    A turn with Chinese characters is compared in both.
    """
    turns = np.arange(len(self.turns))
    has_han = self.words.has_han
    if unit == 'characters':
      return [(self.words, np.where(has_han, turns, -1))] if has_han.any() else []
    found = [] if has_han.all() else [(self.words, np.where(has_han, -1, turns))]
    return [*found, (self._words_between_han, turns[has_han])] if has_han.any() else found

  @functools.cached_property
  def _words_between_han(self) -> texts.Words:
    """The words of the turns with Chinese characters in them."""
    chosen = np.flatnonzero(self.words.has_han).tolist()
    return texts.Words([self.turns[i].text for i in chosen], split_han=False)

  @property
  def words_before(self) -> np.ndarray:
    """The words of row i begin at [i] and end at [i + 1]."""
    return self.words.offsets[self.turns_before]
