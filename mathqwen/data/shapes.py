r"""From a record of anybody's file to the fields of an `Example`.

{"query": "1+1=", "response": "2"}                                     question '1+1=', solution '2', answer '2'
{"conversations": [{"from": "human", "value": "1+1="}, ...]}           the same, and messages

A record has the first of SHAPES whose fields it has. A user's own names come in by `columns`: {'question': 'prob'}.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from mathqwen.data import unread, written_lists
from mathqwen.data.field_texts import gold_of, is_empty, is_missing, is_prose, is_worked, own_gold, text_field
from mathqwen.data.json_rows import TURNS
from mathqwen.data.malformed import Malformed
from mathqwen.data.turns import questions_in, read_turns, turns_of, unread_of_turn
from mathqwen.data.unread import SYSTEM

# What the gold answer beside a solution is called, in order of preference.
_GOLD = ('answer', 'expected_answer', 'final_answer', 'gold', 'ground_truth')
# Fields that a row of any shape may have, and that are read.
_COMMON = ('id', 'weight', *_GOLD)
# What a user can say the columns of: `data.columns`.
COLUMNS = ('question', 'solution', 'answer', 'messages', 'chosen', 'rejected', 'system', 'body', 'id')


_SHOWN = 20  # names of fields in a message
# GSM8K's annotations, '<<48/2=24>>', and nothing else between such signs: '<<' is an operator in code.
_CALCULATOR = re.compile(r'<<[\d\s.,+\-*/()%$]*=[\d\s.,+\-*/()=%$]*>>')


@dataclasses.dataclass(frozen=True, eq=False)  # each is one of its own: `_first_with` finds them by identity
class Shape:
  """A form that records have. `read` turns one into fields of `Example` without `id`, `where` and `extra`."""

  fields: tuple[str, ...]  # that a record must have
  read: Callable[..., dict]
  optional: tuple[str, ...] = ()  # that are read as well
  of_turns: bool = False  # `read` also takes `any_turns`

  def __str__(self) -> str:
    return f'{{{", ".join(self.fields)}}}'


def read(
  record: dict, columns: Mapping[str, str], any_turns: bool = False, among: Sequence[Shape] | None = None
) -> tuple[dict, Shape, list[str]]:
  """(fields of `Example` without `where`, the record's shape, its fields that nothing reads).

  columns: the user's names, {'question': 'prob'}; empty takes the names of SHAPES. any_turns: keep roles, fields of
  turns and tools that ChatML does not have; a chat template takes or refuses them. among: the shapes that it may have;
  None stands for SHAPES. `id` is None where the record has none. Malformed: when it has no shape.
  """
  record, rivals = _renamed(record, columns) if columns else (record, [])
  record = written_lists.read_in(_in_lower_case(record))
  among = SHAPES if among is None else among
  shape = find(record, among)
  if shape is None:
    wanted = 'a question and its answer, or messages' if among is SHAPES else 'a chosen and a rejected answer'
    raise Malformed(f'fields {names_of(record)}: expected {wanted}')
  unread.refuse_wrong(record)
  if _number(record.get('weight')) not in (None, 1):
    raise Malformed('field "weight" of a row is not read: remove it, or use "weight": 0 on turns of `messages`')
  used = (*shape.fields, *shape.optional, 'id', *_GOLD)
  tools = record.get('tools') if any_turns and shape.of_turns else None
  if tools:
    used = (*used, 'tools')
  unread.refuse_in_row(record, (*used, *_copies(record, shape)))
  fields = {'messages': None} | (shape.read(record, any_turns) if shape.of_turns else shape.read(record))
  if shape.fields[0] not in TURNS:
    unread.refuse_unasked(record, fields['question'], fields['answer'])
  if is_worked(fields['answer']):
    fields |= _with_worked_gold(fields, of_pair=among is not SHAPES)
  if tools:
    fields['tools'] = _tools(tools)
  fields['id'] = str(record['id']) if isinstance(record.get('id'), str | int) else None
  fields['extra'] = {key: value for key, value in record.items() if key not in used}
  return fields, shape, [*rivals, *_unread(record, shape)]


def _with_worked_gold(fields: dict, of_pair: bool) -> dict:
  r"""The fields that change where the gold answer is a whole solution: {'output': '72', 'answer': '48+24=72\n#### 72'}.

  It is trained on in place of its bare answer, unless that is one of a pair, or in a conversation.
  """
  worked = fields['answer']
  gold = gold_of(worked)
  is_bare = fields['solution'] == gold and fields['messages'] is None and not of_pair
  return {'answer': gold} | ({'solution': _CALCULATOR.sub('', worked)} if is_bare else {})


def _copies(record: Mapping, shape: Shape) -> list[str]:
  """The fields of a row whose text its conversation holds, as those of Magpie."""
  beside = [name for name in ('instruction', *BELOW) if isinstance(record.get(name), str)]
  if not beside or shape.fields[0] not in TURNS:
    return []
  said = '\n'.join(questions_in(record[shape.fields[0]]))
  return [name for name in beside if record[name].strip() in said]


def names_of(record: Mapping) -> str:
  """The names of a record's fields, for messages."""
  names = [str(name) for name in record]
  return ', '.join(names[:_SHOWN]) + (f', ... ({len(names):,} in all)' if len(names) > _SHOWN else '')


def find(record: Mapping, among: Sequence[Shape]) -> Shape | None:
  """The first of the shapes whose fields the record has; null, an empty text and an empty list count as missing.

  Where that leaves none, the one of whose fields most have a text: its reader says which one is empty.
  """
  named = {name for name, value in record.items() if value is not None}
  filled = {name for name in named if record[name] != [] and not is_missing(record[name])}
  if found := _first_with(frozenset(filled), among):
    return found
  empty = [shape for shape in among if named.issuperset(shape.fields)]
  return max(empty, key=lambda shape: len(filled.intersection(shape.fields)), default=None)


@functools.lru_cache(maxsize=1024)  # the rows of a file have few sets of names, and there are many shapes
def _first_with(names: frozenset[str], among: Sequence[Shape]) -> Shape | None:
  return next((shape for shape in among if names.issuperset(shape.fields)), None)


def _number(value: object) -> object:
  """The number that a cell of CSV holds as a text; None for an empty one; any other value as it is."""
  if is_missing(value):
    return None
  if isinstance(value, str):
    with contextlib.suppress(ValueError):
      return float(value)
  return value


def _unread(record: Mapping, shape: Shape) -> list[str]:
  """The fields of a readable record, and of its turns, that nothing reads."""
  found = [name for name in record if name not in (*shape.fields, *shape.optional, *_COMMON, 'tools')]
  for field in shape.fields:
    turns = record[field] if isinstance(record[field], list) else [record[field]]
    found += [f'{field}.{name}' for turn in turns if isinstance(turn, dict) for name in unread_of_turn(turn)]
  return found


def _in_lower_case(record: dict) -> dict:
  """The record with 'Question' or ' QUESTION' under our name for it, unless it has that name as well."""
  names = _ours(tuple(record))
  return {name: value for name, value in zip(names, record.values(), strict=True)} if names else record


@functools.lru_cache(maxsize=1024)
def _ours(names: tuple[str, ...]) -> tuple[str, ...] | None:
  """The names of a record's fields, with ours for those that are ours in another case; None when there are none."""
  found = list(names)
  for at, name in enumerate(names):
    plain = name.strip().lower()
    if plain in _all_names() and plain not in found:
      found[at] = plain
  return None if found == list(names) else tuple(found)


@functools.cache
def _all_names() -> frozenset[str]:
  """Every field of a row that is read, or refused because it would have to be."""
  return _names() | unread.NAMES | {*_COMMON}


def _renamed(record: dict, columns: Mapping[str, str]) -> tuple[dict, list[str]]:
  """(the record with our names for the user's columns, the fields that it loses because a column took their place).

  Fields that say something else, as a system turn, stay.
  """
  needed = {'question', 'solution', 'messages', 'chosen', 'rejected'} & columns.keys()
  if not {'solution', 'messages', 'chosen'} & columns.keys():
    needed.add('answer')
  missing = [columns[name] for name in sorted(needed) if record.get(columns[name]) is None]
  if missing:
    raise Malformed(f'no column {", ".join(missing)}: it has {names_of(record)}')
  empty = [columns[name] for name in sorted(needed) if is_missing(record[columns[name]])]
  if empty:
    raise Malformed(f'nothing in column {", ".join(empty)}')
  rest = {name: value for name, value in record.items() if name not in columns.values()}
  lost = _rivals(frozenset(columns))
  rivals = [name for name in rest if name.strip().lower() in lost]
  ours = {name: record[column] for name, column in columns.items() if column in record}
  return {name: value for name, value in rest.items() if name not in rivals} | ours, rivals


@functools.cache
def _rivals(columns: frozenset[str]) -> frozenset[str]:
  """The fields whose place these columns take: of several questions, the one that the user names."""
  lost = _names() - {*SYSTEM, *BELOW, 'history', 'body', *_GOLD}
  if 'answer' in columns:
    lost |= set(_GOLD)
  if 'system' in columns:
    lost |= set(SYSTEM)
  return frozenset(lost | columns)


@functools.cache
def _names() -> frozenset[str]:
  """The fields of all SHAPES, and of pairs."""
  return frozenset(name for shape in SHAPES for name in (*shape.fields, *shape.optional)) | {'chosen', 'rejected'}


def answered(question_field: str, solution_field: str) -> Callable[..., dict]:
  """A reader of records with a question and what the assistant should say.

  The question may be a list of messages, and the solution too: then the solution alone is trained on (as in TRL).
  """

  def read_answered(record: dict, any_turns: bool = False) -> dict:
    before = _history(record)
    if isinstance(record[question_field], list):
      if before:
        raise Malformed('field "history" beside a list of turns is not read: write it as turns')
      asked = turns_of(record, question_field, any_turns)
      asked = [turn | {'weight': 0} if turn.get('role') == 'assistant' else turn for turn in asked]
      if isinstance(record[solution_field], list):
        after = turns_of(record, solution_field, any_turns)
      else:
        after = [{'role': 'assistant', 'content': record[solution_field]}]
      return _conversation(record, asked + after, any_turns)
    question = text_field(record, question_field)
    if not is_missing(record.get('body')):  # SVAMP and ASDiv: what the question is about
      body = text_field(record, 'body')
      question = question if body in question else f'{body}\n{question}'
    solution, answer = _solution_and_answer(record, solution_field)
    return {
      'question': question,
      'solution': solution,
      'answer': answer,
      'messages': _with_system(record, question, solution, before),
    }

  return read_answered


def _solution_and_answer(record: dict, solution_field: str) -> tuple[str, str]:
  """(what the assistant should say, the gold answer): the record's own answer, or what the solution ends with."""
  solution = _CALCULATOR.sub('', text_field(record, solution_field))
  own = _own_answer(record, solution_field)
  if own is not None:
    return solution, own
  answer = gold_of(solution)
  if not answer and solution_field in _GOLD and '\n' not in solution and not is_prose(solution):
    answer = solution  # 'answer' on one line is the answer itself: 'x = 3'
  return solution, answer


def _own_answer(record: Mapping, solution_field: str = '') -> str | None:
  """The answer that a record has beside its solution, several with commas; '' for 'n/a'; None without one."""
  found = (record.get(name) for name in _GOLD if name != solution_field)
  values = [value for value in found if value != [] and not is_missing(value)]
  return own_gold(values[0]) if values else None


def _with_system(record: dict, question: str, solution: str, before: tuple[dict, ...] = ()) -> tuple[dict, ...] | None:
  """The conversation of a record that has a system turn of its own, or turns before the question; otherwise None."""
  system = _system_of(record)
  if not system and not before and not record.get('tools'):  # tools belong to a conversation
    return None
  turns = [{'role': 'system', 'content': system}] if system else []
  last = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': solution}]
  return (*turns, *before, *last)


def _system_of(record: Mapping) -> str:
  """The system turn that a field of the record holds; '' without one."""
  found = [text_field(record, name) for name in SYSTEM if not is_missing(record.get(name))]
  if len(set(found)) > 1:
    raise Malformed('two fields with different system turns: leave one of them')
  return found[0] if found else ''


def _history(record: Mapping) -> tuple[dict, ...]:
  """The turns before the question: [[question, answer], ...], as LLaMA-Factory and ms-swift write them."""
  turns: list[dict] = []
  held = [] if is_empty(record.get('history')) else record['history']
  exchanges = held if isinstance(held, list) else [held]
  for exchange in exchanges:
    if not isinstance(exchange, list) or len(exchange) != 2 or any(map(is_missing, exchange)):
      raise Malformed('field "history" is not a list of [question, answer]')
    asked, answered = (text_field({'history': text}, 'history') for text in exchange)
    turns += [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answered}]
  return tuple(turns)


def alpaca(solution_field: str, question_field: str = '') -> Callable[[dict], dict]:
  """A reader of {instruction, input, output}: the instruction, and the input or context below it where there is one.

  question_field: what is asked, below an instruction that says how to answer. Where one of the two holds the other, it
  alone is the question.
  """
  return functools.partial(_read_alpaca, solution_field, question_field)


def _read_alpaca(solution_field: str, question_field: str, record: dict) -> dict:
  parts = [text_field(record, 'instruction')]
  if question_field:
    parts.append(text_field(record, question_field))
    longer = max(parts, key=len)
    if all(part in longer for part in parts):
      parts = [longer]
  parts += [text_field(record, name) for name in BELOW if not is_empty(record.get(name))]
  question = '\n'.join(parts)
  solution, answer = _solution_and_answer(record, solution_field)
  return {
    'question': question,
    'solution': solution,
    'answer': answer,
    'messages': _with_system(record, question, solution, _history(record)),
  }


def _tools(tools: object) -> tuple[dict, ...]:
  """The tools of a conversation."""
  if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
    raise Malformed('field "tools" is not a list of tools')
  return tuple(tools)


def _read_turns_in(field: str) -> Callable[..., dict]:
  return lambda record, any_turns=False: _conversation(record, turns_of(record, field, any_turns), any_turns)


def _conversation(record: dict, turns: list[dict], any_turns: bool) -> dict:
  """Fields of `Example` from turns: the first question, the last answer, and all turns."""
  messages = read_turns(turns, any_turns)
  system = _system_of(record)
  own = [message['content'].strip() for message in messages if message['role'] == 'system']
  if system and own and own[0] != system:
    raise Malformed('a field "system" beside another system turn: leave one of them')
  if system and not own:
    messages.insert(0, {'role': 'system', 'content': system})

  questions = [message['content'] for message in messages if message['role'] == 'user']
  answers = [message['content'] for message in messages if message['role'] == 'assistant']
  if not questions or not answers:
    beside = next((name for name in _SOLUTIONS if questions and not is_missing(record.get(name))), None)
    field = next((name for name in TURNS if name in record), 'messages')
    remedy = f': --map question={field},answer={beside} takes its answer from there' if beside else ''
    raise Malformed(f'messages without a user turn or without an assistant turn{remedy}')
  gold = _own_answer(record)
  return {
    'question': questions[0],
    'solution': answers[-1],
    'answer': gold_of(answers[-1]) if gold is None else gold,
    'messages': tuple(messages),
  }


BELOW = ('input', 'context')  # an instruction, in the forms of Alpaca and of Dolly
# What a row may ask beside its instruction. A `prompt` there is the whole row in a template, with its answer.
ASKED = ('question', 'query', 'problem')
# What a question and what the assistant should say are called, in order of preference. A question beside its answer and
# a solution is trained on with the solution. The last of each are those of CAMEL-AI.
QUESTIONS = ('question', 'query', 'problem', 'prompt', 'input', 'message_1')
_SOLUTIONS = ('solution', 'response', 'output', 'completion', 'target', 'message_2', *_GOLD)


def _answered() -> Iterator[Shape]:
  more = (*BELOW, 'history', *SYSTEM)
  for question in ASKED:
    for solution in _SOLUTIONS:
      yield Shape(('instruction', question, solution), alpaca(solution, question), more)
  for solution in _SOLUTIONS:
    yield Shape(('instruction', solution), alpaca(solution), more)
  for question in QUESTIONS:
    for solution in _SOLUTIONS:
      yield Shape((question, solution), answered(question, solution), (*SYSTEM, 'body', 'history'), of_turns=True)


# In order of preference: a published row may have its problem and its solution beside the conversation made of them.
SHAPES = (*(Shape((name,), _read_turns_in(name), SYSTEM, of_turns=True) for name in TURNS), *_answered())
_EXPECTED = (
  f'{{messages}}, {{conversations}}, {{instruction, output}} or a question ({", ".join(QUESTIONS)}) and what answers '
  f'it ({", ".join(_SOLUTIONS)}); --map '
)


def expected(record: Mapping | None) -> str:
  """What is expected of records, for the message about one that has no shape."""
  names = {str(name).strip().lower(): name for name in record or ()}
  question = next((names[name] for name in ('instruction', *QUESTIONS) if name in names), 'COLUMN')
  solution = next((names[name] for name in _SOLUTIONS if name in names), 'COLUMN')
  pairs = '; pairs are for train.objective=dpo' if 'rejected' in names else ''
  lists = [name for name, value in (record or {}).items() if isinstance(value, list) and value]
  turns = [name for name in lists if isinstance(record[name][0], dict)]
  of_turns = f' or messages={turns[0]}' if turns else ''
  return f'{_EXPECTED}question={question},answer={solution}{of_turns} names others{pairs}'
