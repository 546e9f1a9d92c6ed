"""`Row`: an example as its texts, and as the line that is written for it."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from mathqwen.data import compared_text as texts
from mathqwen.data.examples import Example


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
  """The text of a turn, in the forms in which it is compared."""

  text: str
  plain: str
  tokens: list[str]
  has_han: bool

  @classmethod
  def of(cls, text: str) -> 'Text':
    """The forms of a text."""
    return cls(text, texts.plain(text), texts.tokens(text), texts.has_han(text))


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
  record |= {'answer': example.answer, 'source': source, 'where': example.where}
  if example.extra:
    record['extra'] = example.extra
  return json.dumps(record, ensure_ascii=False)


class Batch:
  """Rows, and the hashes of all their tokens, which are made once."""

  def __init__(self, rows: Sequence[Row]):
    self.rows = rows
    self.turns = [turn for row in rows for turn in (*row.questions, *row.answers)]
    self.hashes, self.offsets = texts.token_hashes([turn.tokens for turn in self.turns])
    sizes = [len(row.questions) + len(row.answers) for row in rows]
    self.row_of_turn = np.repeat(np.arange(len(rows)), sizes)
    self.offsets_of_rows = self.offsets[np.cumsum([0, *sizes])]
    self.is_answer = np.array([False] * len(self.turns))
    first = 0
    for row, size in zip(rows, sizes, strict=True):
      self.is_answer[first + len(row.questions) : first + size] = True
      first += size
    self.has_han = np.array([turn.has_han for turn in self.turns], bool)
