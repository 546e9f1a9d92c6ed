"""Lists that a record holds as a text, in JSON or as Python prints them, which pandas' `to_csv` does.

'[{"role": "user", "content": "1+1="}]'       turns
"[{'role': 'user', 'content': '1+1='}]"       the same
"['2']"                                       a gold answer
"""

import ast
import contextlib
import json
import re

from mathqwen.data.json_rows import TURNS
from mathqwen.data.malformed import Malformed

# Fields that hold lists of objects, and fields that hold lists of anything.
_OF_OBJECTS = {*TURNS, 'prompt', 'completion', 'chosen', 'rejected'}
_OF_ANYTHING = {'tools', 'history', 'images', 'image'}
_FIELDS = _OF_OBJECTS | _OF_ANYTHING
_PRINTED_TURNS = re.compile(r"\[\s*\{\s*'(?:role|content|from|value)'")  # as Python prints a list of them


def read_in(record: dict) -> dict:
  """The record with these lists in place of their texts. Malformed: when a list of turns cannot be read."""
  found = {}
  for name in _FIELDS & record.keys():
    text = record[name]
    if not isinstance(text, str) or not text.lstrip().startswith('['):
      continue
    value = list_in(text)
    # '[1, 2]' and '[]' are answers.
    if value is not None and (name in _OF_ANYTHING or (value and all(isinstance(turn, dict) for turn in value))):
      found[name] = value
    elif value is None and _PRINTED_TURNS.match(text.lstrip()):
      raise Malformed(f'field "{name}" is a text of turns, printed by Python, that cannot be read: write it as JSON')
  return record | found if found else record


def list_in(text: str) -> list | None:
  """The list that a text is; None when it is none."""
  for read in (json.loads, ast.literal_eval):
    with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
      value = read(text.strip())
      return value if isinstance(value, list) else None
  return None
