r"""Math problems as one kind of record, whatever file they come from.

gsm8k/train.jsonl.gz:1   {"question": "Natalia sold ...", "answer": "... <<48/2=24>>24 clips ...\n#### 72"}
Example                  id 'gsm8k/train/0', solution '... 24 clips ...\n#### 72', answer '72'

The rows of a named data set are read as its file in `mathqwen/evals/tasks/` says; all other files have one of SCHEMAS.
"""

import codecs
import collections
import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from mathqwen.data import catalog
from mathqwen.errors import UserError

SCHEMAS = '{question, answer|solution}, {query, response}, {problem, solution} or {messages: [{role, content}, ...]}'
_KEPT = 100  # rows named per kind in a report


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem; `where` is its file and 1-based line."""

  id: str
  question: str
  solution: str  # what the assistant should say
  answer: str  # the gold answer as graders compare it, '' where the source has none
  extra: dict
  where: str
  messages: tuple[dict, ...] | None = None


class Report:
  """What was left out and where, by kind: 'malformed', 'duplicate', 'no_loss_token', 'too_long'."""

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self.rows: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)

  def add(self, kind: str, where: str, detail: str = '') -> None:
    self.counts[kind] += 1
    if len(self.rows[kind]) < _KEPT:
      self.rows[kind].append((where, detail))

  def lines(self, limit: int = 5) -> list[str]:
    """For people: '3 malformed: train.jsonl:18 (no field "answer"), train.jsonl:99 (not JSON), ...'."""
    result = []
    for kind, count in self.counts.items():
      named = [f'{where} ({detail})' if detail else where for where, detail in self.rows[kind][:limit]]
      result.append(f'{count} {kind}: ' + ', '.join(named + ['...'] * (count > len(named))))
    return result

  def merge(self, other: 'Report') -> None:
    for kind, count in other.counts.items():
      self.counts[kind] += count
      self.rows[kind] += other.rows[kind][: _KEPT - len(self.rows[kind])]

  def to_dict(self) -> dict:
    return {
      kind: {'count': count, 'rows': [list(row) for row in self.rows[kind]]} for kind, count in self.counts.items()
    }

  @classmethod
  def from_dict(cls, value: dict) -> 'Report':
    report = cls()
    for kind, entry in value.items():
      report.counts[kind] = entry['count']
      report.rows[kind] = [(where, detail) for where, detail in entry['rows']]
    return report


class Malformed(ValueError):
  """A record that cannot be read; the message says why."""


def find(source: str, split: str, data_dir: str | Path) -> Path:
  """The file of one split in a directory that has the layout of its `Split.files`. UserError: names the paths tried."""
  data, own = catalog.find_split(source, split)
  tried = [Path(data_dir) / f'{name}{end}' for name in data.splits[own].files for end in ('', '.gz')]
  for path in tried:
    if path.is_file():
      return path
  names = ', '.join(str(path.relative_to(data_dir)) if path.is_relative_to(data_dir) else str(path) for path in tried)
  raise UserError(f'no {source} {split} data in {data_dir}: tried {names}; put one there or pass another --data-dir')


# --- files ---


def read_text(path: Path) -> str:
  """The text of a plain or gzip'ed UTF-8 file, told apart by content."""
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


def records(path: Path) -> Iterator[tuple[int, object]]:
  """(line, value) of each record; the value is Malformed where a line is not JSON.

  *.jsonl holds one object per line. *.json holds objects one after another, which may spread over lines (Math23K's
  test file) or not (Math401's).
  """
  text = read_text(path)
  if not text.strip():
    raise UserError(f'{path} is empty; fetch or write it again')
  if path.name.removesuffix('.gz').endswith('.json'):
    yield from _objects(path, text)
    return
  lines = text.split('\n')  # not splitlines(): U+2028 inside a string is no line end
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


def _objects(path: Path, text: str) -> Iterator[tuple[int, object]]:
  decoder, at, line = json.JSONDecoder(), 0, 1
  while at < len(text):
    end = re.compile(r'\s*').match(text, at).end()
    line += text.count('\n', at, end)
    at = end
    if at == len(text):
      return
    try:
      value, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f'{path}:{line}: half-written or not JSON objects one after another; write the file again'
      ) from error
    yield line, value
    line += text.count('\n', at, end)
    at = end


def parse_file(path: Path, source: str, split: str) -> tuple[list[Example], Report]:
  """All readable records of a file, duplicates too, and a report of the malformed ones."""
  data = catalog.of_source(source)
  rows = list(records(path))
  examples, report, used, times = [], Report(), {}, collections.Counter()
  ids = _ids_beside(path, data, len(rows))
  more = data.more_fields(rows, report) if data and data.more_fields else None
  for row, (line, record) in enumerate(rows):
    where = f'{path.name}:{line}'
    try:
      if isinstance(record, Malformed):
        raise record
      if not isinstance(record, dict):
        raise Malformed('not a JSON object')
      _check_text(record)
      if more:
        record = record | {key: value for key, value in more[row].items() if key not in record}
      fields = data.parse(record) if data else _generic(record)
    except Malformed as error:
      report.add('malformed', where, str(error))
      continue
    stem = f'{source}/{split}' if data else path.name.removesuffix('.gz').removesuffix('.jsonl')
    own = fields.pop('id', None)
    name = ids[row] if ids else own
    if name is None or (data and data.numbered):
      name = f'{stem}/{row if name is None else name}'
    if name in used:
      report.add('repeated_id', where, f'id {name!r} is already in {used[name]}')
      while (new := f'{name}#{times[name] + 2}') in used:
        times[name] += 1
      name = new
    used[name] = where
    examples.append(Example(id=name, where=where, **fields))
  if not examples:
    found = next((', '.join(map(str, value)) for _, value in rows if isinstance(value, dict)), 'no object')
    wanted = ', '.join(data.fields) if data else SCHEMAS
    raise UserError(
      f'{path}: no usable record among {len(rows)}: fields found: {found}; wanted: {wanted}; '
      f'first trouble: {report.lines(1)[0].split(": ", 1)[1]}'
    )
  return examples, report


def companion(path: Path, data: catalog.DataSet | None) -> Path | None:
  """The file with the ids of the rows of `path`: math/train_paths.txt[.gz] beside math/train.jsonl[.gz]."""
  if data is None or not data.ids_beside:
    return None
  name = data.ids_beside.format(stem=path.name.split('.')[0])
  return next((beside for end in ('', '.gz') if (beside := path.with_name(f'{name}{end}')).is_file()), None)


def _ids_beside(path: Path, data: catalog.DataSet | None, count: int) -> list[str] | None:
  beside = companion(path, data)
  names = read_text(beside).split() if beside else []
  return names if len(names) == count and len(set(names)) == count else None


# --- records: dict -> fields of Example without `where`; `id` where the record has its own ---


def _check_text(record: dict):
  try:
    json.dumps(record, ensure_ascii=False).encode('utf-8')
  except UnicodeEncodeError as error:
    raise Malformed('holds half a surrogate pair') from error


def text_field(record: dict, field: str) -> str:
  """The text of a field, without the space around it. Malformed: when there is none."""
  value = record.get(field)
  if not isinstance(value, str) or not value.strip():
    raise Malformed(f'no field "{field}"' if value is None else f'field "{field}" is empty or not text')
  return value.strip()


def last_boxed(solution: str) -> str:
  r"""Content of the last box, braces nested: '\boxed{\frac{1}{2}}' -> '\frac{1}{2}', '\boxed 2' -> '2', none -> ''."""
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
  """The answer a worked solution ends with: after '####', in the last box, or the whole of a text without spaces."""
  if '####' in text:
    return text.rsplit('####', 1)[1].strip().replace(',', '')
  return last_boxed(text) or ('' if re.search(r'\s', text) else text)


def _generic(record: dict) -> dict:
  own = str(record['id']) if isinstance(record.get('id'), str | int) else None
  if 'messages' in record:
    return _chat(record) | {'id': own}
  for ask, tell in (('question', 'solution'), ('question', 'answer'), ('query', 'response'), ('problem', 'solution')):
    if ask in record and tell in record:
      break
  else:
    raise Malformed(f'fields {", ".join(map(str, record))}: wanted {SCHEMAS}')
  question, solution = text_field(record, ask), re.sub(r'<<[^<>]*>>', '', text_field(record, tell))
  if tell != 'answer' and record.get('answer') is not None:
    answer = str(record['answer']).strip()
  else:
    answer = gold_of(solution) or ('' if tell != 'answer' or '\n' in solution else solution)
  extra = {key: value for key, value in record.items() if key not in (ask, tell, 'id', 'answer')}
  return {'question': question, 'solution': solution, 'answer': answer, 'extra': extra, 'id': own}


def _chat(record: dict) -> dict:
  turns = record['messages']
  if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
    raise Malformed('field "messages" is not a list of {role, content}')
  messages = []
  for turn in turns:
    if turn.get('role') not in ('system', 'user', 'assistant'):
      raise Malformed(f'role {turn.get("role")!r} is none of system, user, assistant')
    messages.append({'role': turn['role'], 'content': text_field(turn, 'content')})
  said = {role: [m['content'] for m in messages if m['role'] == role] for role in ('user', 'assistant')}
  if not said['user'] or not said['assistant']:
    raise Malformed('messages without a user turn or without an assistant turn')
  solution = said['assistant'][-1]
  answer = str(record['answer']).strip() if record.get('answer') is not None else gold_of(solution)
  return {
    'question': said['user'][0],
    'solution': solution,
    'answer': answer,
    'messages': tuple(messages),
    'extra': {key: value for key, value in record.items() if key not in ('messages', 'id', 'answer')},
  }
