"""New questions made of those of a source, by a teacher model or, for backward ones, without it.

    rephrase    the same problem in other words; its answer is the gold answer
    numbers     the same story with other numbers; its answer is what most samples say
    backward    a number of the question becomes X, the gold answer is told, and X is asked for; the answer is known
                (FOBAR, arXiv 2308.07758; MetaMath, arXiv 2309.12284)

A new question counts only if samples confirm it: see `verify`.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

from mathqwen.data.examples import Example
from mathqwen.evals import samples as samples_lib
from mathqwen.grading import thinking

_REPLY = 'Write only the new problem, in the language of the original, between <question> and </question>.'
INSTRUCTIONS = {
  'rephrase': (
    'Rewrite the following math problem in other words and with another sentence structure. Keep every number and '
    f'every condition, so that its answer stays the same. Do not solve it. {_REPLY}'
  ),
  'numbers': (
    'Write a new version of the following math problem: the same story and the same steps, but other numbers. Choose '
    f'numbers with which the problem makes sense and has exactly one answer. Do not solve it. {_REPLY}'
  ),
}
KINDS = (*INSTRUCTIONS, 'backward')

_TAGGED = re.compile(r'<question>(.*?)</question>', re.DOTALL | re.IGNORECASE)
# A number that stands alone: not part of a word, a fraction, a date, a time, a formula or another number.
_NUMBER = re.compile(r'(?<![\w.,/:^\\{-])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w/:^}-]|[.,]\d)', re.ASCII)
_CHINESE = re.compile('[\u4e00-\u9fff]')
_UNKNOWNS = 'XYZNABC'
# What shows that the numbers are other ones: digits and words. `one` and 一 are left out: `one of them` counts nothing.
_DIGITS_AND_WORDS = re.compile(
  r'\d+(?:[.,]\d+)*'
  r'|\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen'
  r'|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|dozens?|half|twice|thirds?'
  r'|quarters?|double|triple)\b'
  r'|[零〇二两三四五六七八九十百千万半]',
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class NewQuestion:
  """A new question, or why there is none."""

  id: str  # of the question, and of its samples up to their '#3'
  source_id: str  # of the question it was made of
  question: str
  answer: str  # as expected; '' where the samples decide
  dropped: str | None = None  # 'cut off', 'no question', 'unchanged', 'duplicate', 'no number'

  def example(self) -> Example:
    """To be asked."""
    return Example(self.id, self.question, '', self.answer, {}, self.source_id)


def instruction(kind: str, example: Example) -> Example:
  """What the teacher is asked for a new question."""
  return dataclasses.replace(example, id=f'{example.id}/{kind}', question=f'{INSTRUCTIONS[kind]}\n\n{example.question}')


def from_replies(kind: str, examples: Sequence[Example], replies: Sequence[Sequence[dict]]) -> list[NewQuestion]:
  """The new questions of a teacher. replies: to the instruction for each example, in their order."""
  seen = {_words(example.question) for example in examples}
  found = []
  for example, of_example in zip(examples, replies, strict=True):
    for reply in of_example:
      question, dropped = _read(kind, example, reply)
      if dropped is None and _words(question) in seen:
        dropped = 'duplicate'
      seen.add(_words(question))
      # 'gsm8k/train/0/rephrase#1' is a reply, 'gsm8k/train/0/rephrase1#0' the first answer to what it asks.
      name = re.sub(r'#(\d+)$', r'\1', reply['id'])
      answer = '' if kind == 'numbers' else example.answer
      found.append(NewQuestion(name, example.id, question, answer, dropped))
  return found


def _read(kind: str, example: Example, reply: dict) -> tuple[str, str | None]:
  """(the new question in a reply, why it is none)"""
  if reply['truncated']:
    return '', 'cut off'
  tagged = _TAGGED.findall(thinking.apart(reply['response']).text)
  question = tagged[-1].strip() if tagged else ''
  if not question:
    return '', 'no question'
  same = _words(question) == _words(example.question)
  if same or (kind == 'numbers' and _numbers(question) == _numbers(example.question)):
    return question, 'unchanged'
  return question, None


def backward(examples: Sequence[Example], per_question: int, seed: int) -> list[NewQuestion]:
  """For each example up to `per_question` new questions, for numbers of it that `seed` chooses."""
  found = []
  for example in examples:
    matches = list(_NUMBER.finditer(example.question))
    unknown = next(
      (x for x in _UNKNOWNS if not re.search(rf'(?<![a-z]){x}(?![a-z])', example.question, re.IGNORECASE)), None
    )
    if not matches or unknown is None:
      found.append(NewQuestion(f'{example.id}/backward0', example.id, '', '', 'no number'))
      continue
    chosen = random.Random(f'{seed} {example.id}').sample(matches, min(per_question, len(matches)))
    for i, match in enumerate(chosen):
      answer = match.group().replace(',', '')
      question = example.question[: match.start()] + unknown + example.question[match.end() :]
      question += _ask_for(unknown, example)
      found.append(NewQuestion(f'{example.id}/backward{i}', example.id, question, answer))
  return found


def _ask_for(unknown: str, example: Example) -> str:
  if _CHINESE.search(example.question):
    return f'已知上面这道题的答案是{example.answer}，求未知数{unknown}的值。'
  return (
    f' If we know that the answer to the above question is {example.answer}, what is the value of the unknown '
    f'variable {unknown}?'
  )


def verify(answer: str, records: Sequence[dict], samples: int, min_share: float) -> tuple[str | None, float, str]:
  """(the answer that the samples of a new question confirm, or None; its share of them; why it is None)

  answer: as expected, '' where the samples decide. samples: how many were asked for. They vote by their answers; one
  without an answer, or that never came, counts and has no vote. The most frequent answer must have the share
  `min_share` of the samples, alone, and be the expected one.
  """
  voters = [record for record in records if record['extracted'] is not None and not record['truncated']]
  votes: dict[object, list[dict]] = {}
  for record in voters:
    votes.setdefault(samples_lib.vote(record), []).append(record)
  if not votes:
    return None, 0.0, 'no sample has an answer'
  ordered = sorted(votes.values(), key=len, reverse=True)
  first = ordered[0]
  share = len(first) / samples
  if len(ordered) > 1 and len(ordered[1]) == len(first):
    return None, share, 'tie'
  if share < min_share:
    return None, share, 'no majority'
  if not answer:
    return first[0]['extracted'].strip(), share, ''
  return (answer, share, '') if first[0]['correct'] else (None, share, 'another answer')


def _words(text: str) -> str:
  return ' '.join(text.lower().split())


def _numbers(text: str) -> list[str]:
  return _DIGITS_AND_WORDS.findall(text.lower())
