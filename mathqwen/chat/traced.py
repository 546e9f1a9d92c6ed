"""`Text`: a str that knows where each of its characters comes from, through everything that a chat template does to it.

An origin is one number: 8 * (turn + 1) + kind, and 4 more inside {% generation %}. `turn` is the index of a message,
-1 for none.

  LITERAL  the template's own text; its turn is that of the message whose loop body wrote it
  OWN      what a message says: content, reasoning_content, tool_calls
  GIVEN    anything else that the caller gave: names, tools
  UNKNOWN  made by an operation that mixed several of these and lost which is which

Text is computed by str's own methods, so it is what plain Jinja gives; only the origins are ours. Strings are
immutable, so runs of equal origin are shared and cheap to join: a message has one run, whatever its length.
"""

import re
from collections.abc import Iterable, Mapping

LITERAL, OWN, GIVEN, UNKNOWN = range(4)
MARKED = 4  # inside {% generation %}
MAX_CHARACTERS = 10_000_000  # that one rendering may make, all intermediate strings together,
PER_PART = 50  # counted as so many characters: each part of a text that is split is an object
PER_CHARACTER = 1_000  # and as many more for each character of the conversation
MAX_CONTAINER = 300_000  # elements of a list that a template makes, or parts of a value that it prints

Runs = tuple[tuple[int, int], ...]  # (length, origin); a run of length 0 marks where an empty text stands


class LimitError(Exception):
  """A template asked for too much memory or too many steps."""


class _Spent:
  characters = 0  # of the rendering under way; `engine.py` resets it and lets one thread render at a time
  limit = MAX_CHARACTERS


def reset_budget(characters: int) -> None:
  """Begins a rendering of a conversation with so many characters."""
  _Spent.characters = 0
  _Spent.limit = MAX_CHARACTERS + PER_CHARACTER * characters


def charge(characters: int) -> None:
  """LimitError: when this rendering has made too many. Called before a string that may be long."""
  _Spent.characters += characters
  if _Spent.characters > _Spent.limit:
    raise LimitError(f'it makes more than {_Spent.limit:,} characters')


def origin(kind: int, turn: int = -1) -> int:
  return 8 * (turn + 1) + kind


def cut(runs: Runs, start: int, stop: int) -> Runs:
  """The runs of text[start:stop]; an empty part keeps where it was cut from."""
  if len(runs) == 1:
    return ((max(stop - start, 0), runs[0][1]),)
  found = []
  at = 0
  for length, where in runs:
    first = max(start, at)
    last = min(stop, at + length)
    if first < last:
      found.append((last - first, where))
    at += length
    if at >= stop:
      break
  return tuple(found) or runs[:1] and ((0, runs[0][1]),)


class Text(str):
  __slots__ = ('_runs',)

  def __new__(cls, value: str, runs: Runs):
    text = str.__new__(cls, value)
    text._runs = runs
    return text

  def __str__(self) -> str:
    return self

  def __reduce__(self):
    return (Text, (str.__str__(self), self._runs))

  def _part(self, start: int, stop: int) -> 'Text':
    return Text(str.__getitem__(self, slice(start, stop)), cut(self._runs, start, stop))

  def __add__(self, other):
    if not isinstance(other, str):
      return NotImplemented
    return joined((self, other))

  def __radd__(self, other):
    if not isinstance(other, str):
      return NotImplemented
    return joined((other, self))

  def __mul__(self, count):
    if not isinstance(count, int):
      return NotImplemented
    charge(len(self) * max(count, 0))
    return Text(
      str.__mul__(self, count),
      merged(
        self._runs * max(count, 0)
        if len(self._runs) > 1
        else tuple((length * max(count, 0), where) for length, where in self._runs)
      ),
    )

  __rmul__ = __mul__

  def __mod__(self, values):
    return percent(self, values)

  def __rmod__(self, other):
    return percent(known(other), self) if isinstance(other, str) else NotImplemented

  def __getitem__(self, index):
    if isinstance(index, slice):
      start, stop, step = index.indices(len(self))
      if step == 1:
        return self._part(start, max(start, stop))
      origins = each(self._runs)[index]
      return Text(str.__getitem__(self, index), merged((1, where) for where in origins))
    character = str.__getitem__(self, index)
    at = index.__index__()
    at += len(self) if at < 0 else 0
    return Text(character, cut(self._runs, at, at + 1))

  def __iter__(self):
    charge(PER_PART * len(self))
    for character, where in zip(str.__iter__(self), each(self._runs), strict=True):
      yield Text(character, ((1, where),))

  def join(self, parts: Iterable) -> 'Text':
    pieces = []
    for index, part in enumerate(parts):
      if not isinstance(part, str):
        raise TypeError(f'sequence item {index}: expected str instance, {type(part).__name__} found')
      if index and self:
        pieces.append(self)
      pieces.append(part)
    return joined(pieces)

  def strip(self, chars=None):
    return self.lstrip(chars).rstrip(chars)

  def lstrip(self, chars=None):
    return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

  def rstrip(self, chars=None):
    return self._part(0, len(str.rstrip(self, chars)))

  def removeprefix(self, prefix, /):
    return self._part(len(prefix), len(self)) if prefix and self.startswith(prefix) else self

  def removesuffix(self, suffix, /):
    return self._part(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

  def split(self, sep=None, maxsplit=-1):
    parts = []
    at = 0
    charge(PER_PART * (str.count(self, sep) if sep else len(self) // 2))
    for part in str.split(self, sep, maxsplit):
      start = str.index(self, part, at) if sep is None else at
      parts.append(self._part(start, start + len(part)))
      at = start + len(part) + (0 if sep is None else len(sep))
    return parts

  def rsplit(self, sep=None, maxsplit=-1):
    # From the right, what is left over on the left may hold the separator, so parts are located from the right.
    parts = []
    charge(PER_PART * (str.count(self, sep) if sep else len(self) // 2))
    end = len(self)
    for part in reversed(str.rsplit(self, sep, maxsplit)):
      start = str.rfind(self, part, 0, end) if sep is None else end - len(part)
      parts.append(self._part(start, start + len(part)))
      end = start - (len(sep) if sep is not None else 0)
    return parts[::-1]

  def splitlines(self, keepends=False):
    parts = []
    at = 0
    charge(PER_PART * str.count(self, '\n'))
    for line in str.splitlines(self, True):
      kept = line if keepends else str.splitlines(line)[0]
      parts.append(self._part(at, at + len(kept)))
      at += len(line)
    return parts

  def partition(self, sep, /):
    head, found, _ = str.partition(self, sep)
    end = len(head) + len(found)
    return self._part(0, len(head)), self._part(len(head), end), self._part(end, len(self))

  def rpartition(self, sep, /):
    head, found, _ = str.rpartition(self, sep)
    end = len(head) + len(found)
    return self._part(0, len(head)), self._part(len(head), end), self._part(end, len(self))

  def replace(self, old, new, count=-1, /):
    if count == 0 or not isinstance(old, str) or not isinstance(new, str) or old not in self:
      return Text(str.replace(self, old, new, count), self._runs)
    times = len(self) + 1 if not old else str.count(self, old)
    times = times if count < 0 else min(times, count)
    charge(times * len(new))
    if not old:
      pieces = []
      for index, character in enumerate(self):
        pieces += [new, character] if index < times else [character]
      return joined(pieces + ([new] if times > len(self) else []))
    return known(new).join(self.split(old, times))

  def format(self, /, *args, **kwargs):
    raise TypeError('format is called through the environment')

  format_map = format

  def _mapped(self, text: str) -> 'Text':
    """The same characters in another form. Where that changes the length, each run is as long as it becomes itself."""
    if len(text) == len(self):
      return Text(text, self._runs)
    return blend(text, self)

  def upper(self):
    return self._mapped(str.upper(self))

  def lower(self):
    return self._mapped(str.lower(self))

  def capitalize(self):
    return self._mapped(str.capitalize(self))

  def title(self):
    return self._mapped(str.title(self))

  def casefold(self):
    return self._mapped(str.casefold(self))

  def swapcase(self):
    return self._mapped(str.swapcase(self))

  def translate(self, table, /):
    return self._mapped(str.translate(self, table))

  def expandtabs(self, tabsize=8):
    charge(str.count(self, '\t') * tabsize)
    return self._mapped(str.expandtabs(self, tabsize))

  def zfill(self, width, /):
    charge(width)
    return self._mapped(str.zfill(self, width))

  def center(self, width, fill=' ', /):
    return self._padded(str.center, width, fill)

  def ljust(self, width, fill=' ', /):
    return self._padded(str.ljust, width, fill)

  def rjust(self, width, fill=' ', /):
    return self._padded(str.rjust, width, fill)

  def _padded(self, method, width, fill):
    if width <= len(self):
      return self
    charge(width)
    left = len(method('x' * len(self), width, '.').partition('x')[0]) if self else 0
    padding = method(self, width, fill)
    return joined((literal(padding[:left]), self, literal(padding[left + len(self) :])))


def turns_said(text: 'Text') -> set[int] | None:
  """The messages of which `text` has a character that they say; None when the origin of any character is lost."""
  origins = {where for length, where in known(text)._runs if length}
  if any(where & 3 == UNKNOWN for where in origins):
    return None
  return {where // 8 - 1 for where in origins if where & 3 == OWN}


def each(runs: Runs) -> list[int]:
  """The origin of each character."""
  return [where for length, where in runs for _ in range(length)]


def merged(runs: Iterable[tuple[int, int]]) -> Runs:
  """Neighbours of equal origin become one run."""
  found: list[tuple[int, int]] = []
  for run in runs:
    if found and found[-1][1] == run[1]:
      found[-1] = (found[-1][0] + run[0], run[1])
    else:
      found.append(run)
  return tuple(found)


def literal(text: str) -> Text:
  return Text(text, ((len(text), LITERAL),))


def known(text: str) -> Text:
  """`text` itself, or, of a str whose origin is lost, one that says so."""
  return text if type(text) is Text else Text(text, ((len(text), UNKNOWN if text else LITERAL),))


def joined(pieces: Iterable[str]) -> Text:
  """The pieces one behind the other."""
  pieces = list(pieces)
  runs: list[tuple[int, int]] = []
  last = None  # the origin of the run before
  for piece in pieces:
    for run in piece._runs if type(piece) is Text else known(piece)._runs:
      if run[1] == last:
        runs[-1] = (runs[-1][0] + run[0], last)
      else:
        runs.append(run)
        last = run[1]
  text = ''.join(pieces)
  charge(len(text))
  return Text(text, tuple(runs))


def blend(text: str, *sources) -> Text:
  """`text`, which some operation made of `sources`: their origin if they have one beside the template's own text."""
  origins = set()
  for source in sources:
    _collect(source, origins, [MAX_CONTAINER])
  foreign = {where for where in origins if where & 3 != LITERAL}
  where = foreign.pop() if len(foreign) == 1 else UNKNOWN if foreign else max(origins, default=LITERAL)
  return Text(str.__str__(text), ((len(text), where),))


def _collect(value, origins: set[int], budget: list[int]) -> None:
  """Adds the origins of all characters in a value. LimitError: when it has too many parts."""
  budget[0] -= 1
  if budget[0] < 0:
    raise LimitError(f'it prints a value with more than {MAX_CONTAINER:,} parts')
  if isinstance(value, str):
    origins.update(where for length, where in known(value)._runs if length)
  elif hasattr(value, '_origin'):  # a container of the caller's
    origins.add(value._origin)
  if isinstance(value, Mapping):
    for key, item in value.items():
      _collect(key, origins, budget)
      _collect(item, origins, budget)
  elif isinstance(value, list | tuple | set | frozenset):
    for item in value:
      _collect(item, origins, budget)


_PERCENT = re.compile(
  r'%(?:\((?P<key>[^)]*)\))?(?P<flags>[#0\- +]*)(?P<width>\*|\d+)?(?:\.(?P<places>\*|\d*))?[hlL]?(.)'
)


def percent(form: Text, values) -> Text:
  """form % values."""
  pieces = []
  at = index = 0
  parts = values if isinstance(values, tuple) else (values,)
  exact = True
  for found in _PERCENT.finditer(form):
    width, places = found['width'] or '0', found['places'] or '0'
    if '*' in (width, places):
      raise LimitError('it formats with a width that it computes')
    charge(int(width) + int(places))
    pieces.append(form._part(at, found.start()))
    at = found.end()
    if found[5] == '%':
      pieces.append(form._part(at - 1, at))
      continue
    if found['key'] is not None:
      value = values[found['key']] if isinstance(values, Mapping) and found['key'] in values else ''
    else:
      value = parts[index] if index < len(parts) else ''
      index += 1
    exact = exact and found[5] == 's' and width == places == '0'
    pieces.append(printed(value))
  result = str.__mod__(form, values)
  pieces.append(form._part(at, len(form)))
  text = joined(pieces)
  return text if exact and text == result else blend(result, form, values)


def printed(value, turn: int = -1) -> Text:
  """What {{ value }} writes."""
  if type(value) is Text:
    return value
  if isinstance(value, str):
    return known(str.__str__(value))
  if isinstance(value, Mapping | list | tuple | set | frozenset):
    _collect(value, set(), [MAX_CONTAINER])
    return blend(str(value), value)
  text = str(value)
  charge(len(text))
  return Text(text, ((len(text), getattr(value, '_origin', origin(LITERAL, turn))),))
