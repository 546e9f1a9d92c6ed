"""What a template is given, with origins: messages, tools and their JSON."""

import json
from collections.abc import Mapping

from mathqwen.chat import traced
from mathqwen.chat.traced import GIVEN, LITERAL, MAX_CONTAINER, OWN, LimitError, Text, origin


class GivenDict(dict):
  """A dict of the caller's. What JSON writes around its values has the origin of the dict."""

  __slots__ = ('_origin',)


class GivenList(list):
  """A list of the caller's."""

  __slots__ = ('_origin',)


class GivenInt(int):
  """A number of the caller's."""


class GivenFloat(float):
  """A number of the caller's."""


_NUMBERS = {int: GivenInt, float: GivenFloat}


class Message(GivenDict):
  """A message: loops over messages set the turn that the template writes."""

  __slots__ = ('_turn',)


_SAID = ('content', 'reasoning_content', 'thinking', 'reasoning', 'tool_calls')


def message(fields: Mapping, turn: int) -> Message:
  """A message whose texts know that they are this message's."""
  wrapped = Message()
  wrapped._turn = turn
  wrapped._origin = origin(OWN, turn)
  for key, value in fields.items():
    # A role is a word (conversations.check), and templates build tokens of it: <|user|>.
    kind = OWN if key in _SAID else LITERAL if key == 'role' else GIVEN
    wrapped[key] = given(value, origin(kind, turn))
  return wrapped


def size(value) -> int:
  """The characters in a value."""
  if isinstance(value, str):
    return len(value)
  if isinstance(value, dict):
    return sum(map(size, value.values()))
  return sum(map(size, value)) if isinstance(value, list) else 1


def given(value, where: int = GIVEN):
  """A JSON value with `where` as the origin of all its texts."""
  if isinstance(value, str):
    return Text(str.__str__(value), ((len(value), where),))
  if isinstance(value, Mapping):
    wrapped = GivenDict((given(key, where), given(item, where)) for key, item in value.items())
  elif isinstance(value, list | tuple):
    wrapped = GivenList(given(item, where) for item in value)
  elif type(value) in _NUMBERS:  # not of bool, which Python cannot subclass
    wrapped = _NUMBERS[type(value)](value)
  else:
    return value
  wrapped._origin = where
  return wrapped


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> Text:
  """json.dumps(value, ...), with the origin of each character."""
  if isinstance(indent, int) and not isinstance(indent, bool) and indent > 1000:
    raise LimitError(f'it indents JSON by {indent} spaces')
  comma, colon = separators or ((', ', ': ') if indent is None else (',', ': '))
  step = ' ' * indent if isinstance(indent, int) else indent
  pieces: list[Text] = []
  # The encoder of one text or number; it makes NaN, floats and escapes as json.dumps does.
  encode = json.JSONEncoder(ensure_ascii=ensure_ascii).encode

  def write(text: str, where: int) -> None:
    pieces.append(Text(str.__str__(text), ((len(text), where),)))
    if len(pieces) > MAX_CONTAINER:
      raise LimitError(f'it writes JSON with more than {MAX_CONTAINER:,} parts')

  def visit(item, where: int, level: int) -> None:
    if isinstance(item, str):
      write('"', where)
      at = 0
      for length, origin_ in traced.known(item)._runs:
        write(encode(str.__getitem__(item, slice(at, at + length)))[1:-1], origin_)
        at += length
      write('"', where)
    elif isinstance(item, dict):
      where = getattr(item, '_origin', where)
      entries = sorted(item.items()) if sort_keys else item.items()
      brackets('{', '}', [(key, child) for key, child in entries], where, level)
    elif isinstance(item, list | tuple):
      brackets('[', ']', [(None, child) for child in item], getattr(item, '_origin', where), level)
    else:
      write(encode(item), getattr(item, '_origin', where))

  def brackets(left: str, right: str, entries: list, where: int, level: int) -> None:
    write(left, where)
    for index, (key, child) in enumerate(entries):
      if index:
        write(comma, where)
      if step is not None:
        write('\n' + step * (level + 1), where)
      if left == '{':
        name = key if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0}))))
        visit(name if isinstance(name, Text) else Text(name, ((len(name), where),)), where, level)
        write(colon, where)
      visit(child, where, level + 1)
    if entries and step is not None:
      write('\n' + step * level, where)
    write(right, where)

  visit(value, LITERAL, 0)
  return traced.joined(pieces)
