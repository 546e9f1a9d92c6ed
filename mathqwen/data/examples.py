r"""`Example`: a math problem, in the same form whatever file it comes from.

gsm8k/train.jsonl.gz:1   {"question": "Natalia sold ...", "answer": "... <<48/2=24>>24 clips ...\n#### 72"}
Example                  id 'gsm8k/train/0', solution '... 24 clips ...\n#### 72', answer '72'

The rows of a named data set are read by its file in `mathqwen/evals/tasks/`; all other files have one of SCHEMAS.
"""

import codecs
import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Iterator

from mathqwen import files
from mathqwen.data import catalog
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError
from mathqwen.text import chatml

# Fields by which other programs choose what is trained on, or extend the prompt. Nothing here reads them, so a row in
# which one of them has a value is refused. Other fields that nothing reads are named in a line.
_MASKS = ('weights', 'mask', 'loss_mask', 'loss_weight', 'train', 'training', 'trainable')
_PROMPTS_OF_ROWS = ('system', 'system_prompt', 'instruction', 'input', 'history', 'tools', 'functions', 'images')
_PROMPTS_OF_TURNS = ('name', 'tool_calls', 'tool_call_id', 'function_call', 'reasoning_content', 'thinking', 'images')
SCHEMAS = '{question, answer|solution}, {query, response}, {problem, solution} or {messages: [{role, content}, ...]}'


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem, as text."""

  id: str  # unique among the examples of a file
  question: str
  solution: str  # what the assistant should say
  answer: str  # the gold answer as graders compare it; '' where the source has none
  extra: dict  # further fields of the source, for grouping scores
  where: str  # file name and line, counted from 1: 'train.jsonl:18'
  messages: tuple[dict, ...] | None = None  # the conversation, where the source is one


class Malformed(ValueError):
  """A record that cannot be read; the message says why."""


# --- files ---


def find(source: str, split: str, data_dir: str | files.AnyPath) -> files.AnyPath:
  """The file of one split in a directory that has the layout of its `Split.files`.

  UserError: when none of those files is there (the message has the paths tried), or the data set has no such split.
  """
  data, own_split = catalog.find_split(source, split)
  folder = files.path(data_dir)
  tried = []
  for name in data.splits[own_split].files:
    tried += [folder / name, folder / f'{name}.gz']
  for path in tried:
    if path.is_file():
      return path
  names = ', '.join(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for path in tried)
  raise UserError(f'no {source} {split} data in {data_dir}: tried {names}; put one there or pass another --data-dir')


def companion(path: files.AnyPath, data: catalog.DataSet | None) -> files.AnyPath | None:
  """The file with the ids of the rows of `path`: math/train_paths.txt[.gz] beside math/train.jsonl[.gz]."""
  if data is None or not data.ids_beside:
    return None
  name = data.ids_beside.format(stem=path.name.split('.')[0])
  for beside in (path.with_name(name), path.with_name(f'{name}.gz')):
    if beside.is_file():
      return beside
  return None


def read_text(path: files.AnyPath) -> str:
  """The text of a UTF-8 file, compressed with gzip or not: its first bytes decide, not its name.

  UserError: when it cannot be read, is damaged, or is not UTF-8.
  """
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}; check the path') from error
  if raw.startswith(b'\x1f\x8b'):
    try:
      raw = gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
      raise UserError(f'{path} is half-written or damaged ({error}); fetch it again') from error
  try:
    return raw.removeprefix(codecs.BOM_UTF8).decode('utf-8')
  except UnicodeDecodeError as error:
    line = raw.count(b'\n', 0, error.start) + 1
    raise UserError(f'{path}:{line}: not UTF-8; save it as UTF-8') from error


def records(path: files.AnyPath) -> Iterator[tuple[int, object]]:
  """(line, value) of each record; the value is a `Malformed` where a line is not JSON.

  *.jsonl holds one object per line. *.json holds objects one after another, each on one line (Math401) or spread over
  several (Math23K's test file).
  UserError: when the file is empty, or ends in the middle of a record.
  """
  text = read_text(path)
  if not text.strip():
    raise UserError(f'{path} is empty; fetch or write it again')
  if path.name.removesuffix('.gz').endswith('.json'):
    yield from _objects(path, text)
    return
  lines = text.split('\n')  # splitlines() would also split at U+2028, which JSON allows inside a string
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      yield number, json.loads(line)
    except (ValueError, RecursionError) as error:
      if number == len(lines):
        raise UserError(
          f'{path}:{number}: the last line is half-written (no line end, not JSON); write the file again'
        ) from error
      yield number, Malformed(f'not JSON: {error}')


def _objects(path: files.AnyPath, text: str) -> Iterator[tuple[int, object]]:
  """(line, value) of JSON objects one after another."""
  decoder = json.JSONDecoder()
  blanks = re.compile(r'\s*')
  at = blanks.match(text).end()
  line = 1 + text.count('\n', 0, at)
  while at < len(text):
    try:
      value, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f'{path}:{line}: half-written or not JSON objects one after another; write the file again'
      ) from error
    yield line, value
    end = blanks.match(text, end).end()
    line += text.count('\n', at, end)
    at = end


# --- from records to examples ---


def parse_file(path: files.AnyPath, source: str, split: str) -> tuple[list[Example], Report]:
  """(the readable records of a file, duplicates too; a report of the malformed ones and of repeated ids).

  source: the name of a data set, whose parser is used; any other text stands for a file in one of SCHEMAS.
  UserError: when no record is readable.
  """
  data = catalog.of_source(source)
  rows = list(records(path))
  report = Report()
  file_ids = _ids_beside(path, data, len(rows))
  more = data.more_fields(rows, report) if data and data.more_fields else None
  prefix = f'{source}/{split}' if data else path.name.removesuffix('.gz').removesuffix('.jsonl')
  ids = _UniqueIds(report)

  examples = []
  for row, (line, record) in enumerate(rows):
    where = f'{path.name}:{line}'
    try:
      fields = _parse_record(record, data, more[row] if more else {})
      if data is None:
        for name in _unread(record):
          report.unread.setdefault(name, where)
    except Malformed as error:
      report.add('malformed', where, str(error))
      continue
    example_id = fields.pop('id', None)
    if file_ids:
      example_id = file_ids[row]
    if example_id is None:
      example_id = f'{prefix}/{row}'
    elif data and data.numbered:
      example_id = f'{prefix}/{example_id}'
    examples.append(Example(id=ids.add(example_id, where), where=where, **fields))

  if not examples:
    first = next((record for _, record in rows if isinstance(record, dict)), None)
    found = 'no object' if first is None else ', '.join(map(str, first))
    expected = ', '.join(data.fields) if data else SCHEMAS
    _, trouble = report.lines(1)[0].split(': ', 1)
    raise UserError(
      f'{path}: no usable record among {len(rows)}: fields found: {found}; expected: {expected}; first error: {trouble}'
    )
  return examples, report


class _UniqueIds:
  """Gives a repeated id a new name, 'ID#2', 'ID#3', ..., and reports it."""

  def __init__(self, report: Report):
    self._report = report
    self._used: dict[str, str] = {}  # id -> where it was first
    self._last: dict[str, int] = {}  # id -> the last number given to a repetition, so that the next search is short

  def add(self, example_id: str, where: str) -> str:
    """The id to use."""
    if example_id in self._used:
      self._report.add('repeated_id', where, f'id {example_id!r} is already in {self._used[example_id]}')
      example_id = self._free_name(example_id)
    self._used[example_id] = where
    return example_id

  def _free_name(self, example_id: str) -> str:
    number = self._last.get(example_id, 1)
    while (name := f'{example_id}#{number + 1}') in self._used:
      number += 1
    self._last[example_id] = number
    return name


def _ids_beside(path: files.AnyPath, data: catalog.DataSet | None, count: int) -> list[str] | None:
  """The ids in the file's companion; None when there is none, or it does not fit `count` rows."""
  beside = companion(path, data)
  if beside is None:
    return None
  ids = read_text(beside).split()
  fits = len(ids) == count and len(set(ids)) == count
  return ids if fits else None


def _parse_record(record: object, data: catalog.DataSet | None, more: dict) -> dict:
  """Fields of `Example` without `where`, and without `id` where the record has none.

  more: fields to add where the record lacks them. Malformed: when the record cannot be read.
  """
  if isinstance(record, Malformed):
    raise record
  if not isinstance(record, dict):
    raise Malformed('not a JSON object')
  _check_text(record)
  if data is None:
    return _generic(record)
  return data.parse(record | {key: value for key, value in more.items() if key not in record})


def _check_text(record: dict) -> None:
  """Malformed: when any text of the record cannot be written as UTF-8."""
  try:
    json.dumps(record, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError as error:
    raise Malformed('holds half a surrogate pair') from error


def text_field(record: dict, field: str) -> str:
  """The text of a field, without the white space around it. Malformed: when there is none."""
  value = record.get(field)
  if value is None:
    raise Malformed(f'no field "{field}"')
  if not isinstance(value, str) or not value.strip():
    raise Malformed(f'field "{field}" is empty or not text')
  return value.strip()


def last_boxed(solution: str) -> str:
  r"""Content of the last \boxed or \fbox: '\boxed{\frac{1}{2}}' -> '\frac{1}{2}', '\boxed 2' -> '2'; no box -> ''."""
  start = max(solution.rfind('\\boxed'), solution.rfind('\\fbox'))
  if start < 0:
    return ''
  rest = solution[start:].split('box', 1)[1].removeprefix('ed').lstrip()
  if not rest.startswith('{'):
    return re.match(r'[^\s$.]*', rest).group()
  depth = 0
  for at, char in enumerate(rest):
    if char in '{}' and rest[at - 1 : at] != '\\':
      depth += 1 if char == '{' else -1
    if depth == 0:
      return rest[1:at].strip()
  return ''


def gold_of(text: str) -> str:
  """The answer that a solution ends with; '' where none is found.

  It is what follows '####', or the content of the last box, or the whole text if that is a single word.
  """
  if '####' in text:
    return text.rsplit('####', 1)[1].strip().replace(',', '')
  if boxed := last_boxed(text):
    return boxed
  return '' if re.search(r'\s', text) else text


# Fields of question and solution in files that are not a named data set; the first pair that a record has counts.
_PAIRS = (('question', 'solution'), ('question', 'answer'), ('query', 'response'), ('problem', 'solution'))


def _generic(record: dict) -> dict:
  """Fields of `Example` from a record in one of SCHEMAS."""
  if record.get('weight') not in (None, 1):
    raise Malformed('field "weight" of a row is not read: remove it, or use "weight": 0 on turns of `messages`')
  _refuse_unread(record, _PROMPTS_OF_ROWS)
  own_id = str(record['id']) if isinstance(record.get('id'), str | int) else None
  if 'messages' in record:
    return _conversation(record) | {'id': own_id}
  pair = next((pair for pair in _PAIRS if pair[0] in record and pair[1] in record), None)
  if pair is None:
    raise Malformed(f'fields {", ".join(map(str, record))}: expected {SCHEMAS}')

  question_field, solution_field = pair
  question = text_field(record, question_field)
  solution = re.sub(r'<<[^<>]*>>', '', text_field(record, solution_field))  # without GSM8K's calculator annotations
  if solution_field != 'answer' and record.get('answer') is not None:
    answer = str(record['answer']).strip()
  else:
    answer = gold_of(solution)
    if not answer and solution_field == 'answer' and '\n' not in solution:
      answer = solution  # 'answer' on one line is the answer itself: 'x = 3'
  extra = {key: value for key, value in record.items() if key not in (*pair, 'id', 'answer')}
  return {'question': question, 'solution': solution, 'answer': answer, 'extra': extra, 'id': own_id}


def _conversation(record: dict) -> dict:
  """Fields of `Example` from a record with `messages`: the first question, the last answer, and all turns."""
  turns = record['messages']
  if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
    raise Malformed('field "messages" is not a list of {role, content}')
  messages = []
  for number, turn in enumerate(turns, start=1):
    if turn.get('role') not in chatml.ROLES:
      raise Malformed(f'role {turn.get("role")!r} is none of {", ".join(chatml.ROLES)}')
    _refuse_unread(turn, _PROMPTS_OF_TURNS, f'turn {number}: ')
    message = {'role': turn['role'], 'content': text_field(turn, 'content')}
    try:
      has_loss = chatml.has_loss(turn)
    except ValueError as error:
      raise Malformed(f'turn {number}: {error}') from None
    # A weight of 1 is left out, so that two rows that train on the same turns are duplicates.
    messages.append(message if has_loss or turn['role'] != 'assistant' else message | {'weight': 0})

  questions = [message['content'] for message in messages if message['role'] == 'user']
  answers = [message['content'] for message in messages if message['role'] == 'assistant']
  if not questions or not answers:
    raise Malformed('messages without a user turn or without an assistant turn')
  solution = answers[-1]
  gold = record.get('answer')
  return {
    'question': questions[0],
    'solution': solution,
    'answer': gold_of(solution) if gold is None else str(gold).strip(),
    'messages': tuple(messages),
    'extra': {key: value for key, value in record.items() if key not in ('messages', 'id', 'answer')},
  }


def _refuse_unread(fields: dict, prompts: tuple[str, ...], where: str = '') -> None:
  """Malformed: when a row or a turn has a field that would change what is trained on, and that is not read."""
  for name in (*_MASKS, *prompts):
    if fields.get(name) not in (None, '', [], {}):
      remedy = 'write it into the text' if name in prompts else 'use "weight": 0 on turns of `messages`'
      raise Malformed(f'{where}field "{name}" is not read: remove it, or {remedy}')


def _unread(record: dict) -> list[str]:
  """The fields of a readable record, and of its turns, that nothing reads."""
  turns = record.get('messages')
  if turns is None:
    pair = next(pair for pair in _PAIRS if pair[0] in record and pair[1] in record)
    return [name for name in record if name not in (*pair, 'id', 'answer', 'weight')]
  found = [name for name in record if name not in ('messages', 'id', 'answer', 'weight')]
  return found + [f'messages.{name}' for turn in turns for name in turn if name not in ('role', 'content', 'weight')]
