"""JSON as files of records have it: what is decoded, and the rows of an object that is a table.

{"data": [{"question": "1+1=", ...}, ...]}              the only list of objects
{"0": {"question": "1+1=", ...}, "1": {...}}            numbered rows, or rows by name, {"train_7": {...}, ...}
{"question": ["1+1=", ...], "answer": ["2", ...]}       columns
{"question": {"0": "1+1=", ...}, "answer": {...}}       columns of such rows, as pandas writes them
{"columns": ["question", ...], "data": [["1+1=", ...]]}  as pandas writes them with orient="split"
{"rows": [{"row_idx": 0, "row": {"question": ...}}]}    an answer of the hub's /rows
[{"role": "user", "content": "1+1="}, ...]              a row that is a conversation, as InternLM and XTuner write it
"""

import collections
import itertools
import json
from collections.abc import Iterable

from mathqwen.data.malformed import Malformed
from mathqwen.errors import UserError, report

# Python writes these numbers, which JSON does not have: a value that is missing, and texts.
_CONSTANTS = {'NaN': None, 'Infinity': 'inf', '-Infinity': '-inf'}
DECODER = json.JSONDecoder(parse_constant=_CONSTANTS.__getitem__, strict=False)  # a tab in a text is a tab
# How names of files, folders and tables spell the splits.
SPLITS = {
  'train': ('train', 'training'),
  'test': ('test', 'testing'),
  'validation': ('validation', 'valid', 'val', 'dev', 'eval', 'evaluation', 'holdout', 'heldout'),
}
# Names of fields by which a row, or a column, is known from the name of a row.
_OF_A_ROW = ('question', 'problem', 'query', 'prompt', 'instruction', 'solution', 'answer')
TURNS = ('messages', 'conversations', 'conversation')  # fields that hold a conversation
_TABLES = set(itertools.chain.from_iterable(SPLITS.values()))


def rows_of(value: object, where: str) -> list | None:
  """The rows of an object that is a table; None where it is a row itself. where: the file, for messages.

  What it says beside its rows is named in a line. UserError: when it has several tables.
  """
  if not isinstance(value, dict) or not value:
    return None
  inner = list(value.values())
  if any(isinstance(value.get(name), str) for name in _OF_A_ROW):
    return None
  if {'columns', 'data'} <= set(value) <= {'columns', 'data', 'index'}:
    return _split_rows(value['columns'], value['data'], where)
  if len(value) > 1 and set(value) <= _TABLES and all(isinstance(part, list | dict) for part in inner):
    raise UserError(f'{where} holds several splits ({", ".join(value)}): write the rows of each into a file of its own')
  if all(isinstance(part, dict) for part in inner):
    return _numbered_rows(value)
  if isinstance(value.get('rows'), list) and (rows := _rows_of_hub(value['rows'])):
    total = value.get('num_rows_total', len(rows))
    if total != len(rows):
      report(f'{where} holds {len(rows):,} of {total:,} rows: an answer of the hub has at most 100; fetch the data set')
    return rows
  lists = {name: part for name, part in value.items() if isinstance(part, list)}
  if len(lists) == 1:
    ((name, rows),) = lists.items()
    if rows and all(isinstance(row, dict) for row in rows):
      if name in TURNS or {'role', 'from'} & set(rows[0]):  # a conversation is a list of objects as well
        return None
      if beside := [other for other in value if other != name]:
        report(f'{where}: its rows are a list beside {", ".join(beside[:10])}, which training does not read')
      return rows
  is_columns = len(inner) > 1 and len(lists) == len(inner) and len(set(map(len, inner))) == 1
  if is_columns and not any(isinstance(part[0], dict) for part in inner if part):
    return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
  return None


def _split_rows(columns: object, data: object, where: str) -> list | None:
  """The rows of a table that names its columns once; None where it is none. UserError: as `check_names`."""
  if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
    return None
  if not isinstance(data, list) or not all(isinstance(cells, list) for cells in data):
    return None
  check_names(where, columns)
  return [
    dict(zip(columns, cells, strict=True))
    if len(cells) == len(columns)
    else Malformed(f'{len(cells)} values for {len(columns)} columns')
    for cells in data
  ]


def _rows_of_hub(rows: list) -> list | None:
  """The rows of an answer of datasets-server.huggingface.co/rows; None where it is none."""
  if not all(isinstance(entry, dict) and isinstance(entry.get('row'), dict) for entry in rows):
    return None
  return [
    Malformed(f'cut off by the hub: {", ".join(map(str, entry["truncated_cells"]))}')
    if entry.get('truncated_cells')
    else entry['row']
    for entry in rows
  ]


def conversation(value: object) -> object:
  """A row that is a list: of turns as {"messages": [...]}, any other as a `Malformed`. Other rows as they are."""
  if not isinstance(value, list):
    return value
  if is_conversation(value):
    return {'messages': value}
  return Malformed('not a JSON object but a list: name its values, as pandas does with orient="records"')


def is_conversation(value: object) -> bool:
  """Whether this is a list of turns."""
  if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
    return False
  # Rows may have a column `role` or `from` as well.
  return all(
    not turn.keys().isdisjoint(('role', 'from'))
    and not turn.keys().isdisjoint(('content', 'value', 'tool_calls'))
    and turn.keys().isdisjoint(_OF_A_ROW)
    for turn in value
  )


def _numbered_rows(value: dict[str, dict]) -> list | None:
  """The rows of an object of objects: by number or name, or columns of such rows."""
  first = next(iter(value.values()))
  are_alike = all(part.keys() == first.keys() for part in value.values())
  if first and are_alike and (all(map(str.isdecimal, first)) or any(name in value for name in _OF_A_ROW)):
    return [{name: column[number] for name, column in value.items()} for number in first]
  if all(key.isdecimal() for key in value) or (first and are_alike and len(value) > 1):
    return list(value.values())
  return None


def check_names(where: object, names: Iterable[str]) -> None:
  """UserError: when two columns of a table have one name. A record could hold only the last of them."""
  name, count = max(collections.Counter(names).items(), key=lambda item: item[1], default=('', 0))
  if count > 1:
    raise UserError(f'{where}: {count} columns are called {name!r}: give each a name of its own')


def shortest(value) -> float:
  """The shortest decimal of a float16 or float32 of NumPy, 0.1 and not 0.10000000149011612. A whole number is exact."""
  return float(value) if value == value.round() else float(str(value))
