"""From a record of a preference set to the fields of an `Example` with a rejected answer.

{"prompt": "1+1=", "chosen": "2", "rejected": "3"}                 texts
{"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}     turns; a text in place of a single turn is one
{"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}           the turns that both begin with are the prompt
{"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}             turns of ShareGPT

Only what follows the prompt is compared: earlier answers have weight 0.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

from mathqwen.data import shapes
from mathqwen.data.field_texts import is_empty, text_field
from mathqwen.data.malformed import Malformed
from mathqwen.data.shapes import Shape
from mathqwen.data.turns import turns_of

# What the answers are called, in order of preference.
_ANSWERS = (('chosen', 'rejected'), ('chosen_response', 'rejected_response'))
Turns = list[dict]


def _pair(question: str | None, chosen: str, rejected: str, asked: str = '') -> Callable[..., dict]:
  """A reader of records with these fields.

  question: None where the prompt is in the answers. asked: the `question_field` of `shapes.alpaca`.
  """

  below = (*shapes.BELOW, 'history')

  def read_pair(record: dict, any_turns: bool = False) -> dict:
    prompt = None if question is None else _turns_or_text(record, question, any_turns)
    answers = [_turns_or_text(record, field, any_turns) for field in (chosen, rejected)]
    if any(isinstance(answer, list) for answer in answers):
      prompt, answers = _split(prompt, [_as_turns(answer, 'assistant') for answer in answers])
    if prompt is None:
      raise Malformed(f'fields "{chosen}" and "{rejected}" are texts without a prompt: give the question as "prompt"')
    if question == 'instruction' and isinstance(prompt, str):
      read = shapes.alpaca('solution', asked)
    elif question == 'instruction' and not all(is_empty(record.get(name)) for name in (*below, asked)):
      raise Malformed('an instruction with more below it, and answers of several turns: write all of it as turns')
    else:
      read = functools.partial(shapes.answered('question', 'solution'), any_turns=any_turns)
      record = {**record, 'question': prompt}
    fields, other = (read({**record, 'solution': answer}) for answer in answers)
    content = 'solution' if fields['messages'] is None else 'messages'
    if fields[content] == other[content]:
      raise Malformed(f'fields "{chosen}" and "{rejected}" are the same')
    return {**fields, 'rejected': other[content]}

  return read_pair


def _turns_or_text(record: Mapping, field: str, any_turns: bool) -> str | Turns:
  """Turns with roles, or the text of a field. A single turn without a list is one turn."""
  value = record[field]
  if isinstance(value, dict):
    value = [value]
  if not isinstance(value, list):
    return text_field(record, field)
  return turns_of({field: value}, field, any_turns)


def _as_turns(value: str | Turns, role: str) -> Turns:
  return [{'role': role, 'content': value}] if isinstance(value, str) else value


def _split(prompt: str | Turns | None, answers: list[Turns]) -> tuple[str | Turns, list[str | Turns]]:
  """(prompt, what follows it in each answer), where an answer may begin with the prompt.

  Texts again where the prompt is a text and each answer one turn that only says something: a plain question.
  """
  if prompt is None or any(turn.get('role') != 'assistant' for answer in answers for turn in answer[:1]):
    shared = next((i for i, (a, b) in enumerate(zip(*answers, strict=False)) if a != b), min(map(len, answers)))
    begin = answers[0][:shared]
    if prompt is not None and not _holds(begin, prompt):
      raise Malformed('the answers begin with turns that are not those of the prompt')
    prompt, answers = begin, [answer[shared:] for answer in answers]
  if not all(answer and answer[0].get('role') == 'assistant' for answer in answers):
    raise Malformed('chosen and rejected are the same, or differ before an answer of the assistant')
  if isinstance(prompt, str) and all(
    len(answer) == 1 and answer[0].keys() == {'role', 'content'} for answer in answers
  ):
    return prompt, [answer[0]['content'] for answer in answers]
  return _as_turns(prompt, 'user'), list(answers)


def _holds(turns: Turns, prompt: str | Turns) -> bool:
  """Whether the turns that both answers begin with are the prompt, or have it as the text of a user's turn."""
  if isinstance(prompt, list):
    return turns == prompt
  return any(turn.get('role') == 'user' and str(turn.get('content')).strip() == prompt for turn in turns)


def _all() -> Iterator[Shape]:
  below = (*shapes.BELOW, 'history', *shapes.SYSTEM)
  for chosen, rejected in _ANSWERS:
    for asked in (*shapes.ASKED, ''):
      fields = ('instruction', asked, chosen, rejected) if asked else ('instruction', chosen, rejected)
      yield Shape(fields, _pair('instruction', chosen, rejected, asked), below, of_turns=True)
    for question in ('conversations', *shapes.QUESTIONS):
      yield Shape((question, chosen, rejected), _pair(question, chosen, rejected), shapes.SYSTEM, of_turns=True)
    yield Shape((chosen, rejected), _pair(None, chosen, rejected), shapes.SYSTEM, of_turns=True)


# In order of preference: a published row may have its question beside conversations that begin with it.
SHAPES = tuple(_all())


def expected(record: Mapping | None) -> str:
  """What is expected of records, for the message about one that has no shape."""
  return (
    f'a question ({", ".join(shapes.QUESTIONS)}), chosen and rejected; --map question=COLUMN,chosen=COLUMN,'
    'rejected=COLUMN names others; single answers are for train.objective=sft'
  )
