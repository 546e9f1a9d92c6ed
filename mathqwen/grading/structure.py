r"""What an answer consists of: a tuple, an interval, a set, a list, or one thing. Standard library only.

parse('(3, 4)')            tuple of 3 and 4              parse('3,4')       list of 3 and 4
parse('x > 3')             interval (3, \infty)          parse('\{1,2\}')  set of 1 and 2
parse('2\pm\sqrt3')        list of 2+\sqrt3, 2-\sqrt3    parse('1,000')    one thing
parse('1:2:3')             ratio of 1, 2 and 3           parse('[[1,2],[3,4]]')  matrix of two rows
"""

import dataclasses
import re

from mathqwen.grading import latex, units, values
from mathqwen.grading.cleaning import clean

_MAX_PARTS = 60  # of one answer

_EMPTY = re.compile(
  r'\\(?:emptyset|varnothing)|\\\{\\\}|\{\}|'
  r'(?:\\text\{)?\s*(?:there (?:is|are) )?'
  r'(?:no (?:real |such |integer )?(?:solutions?|roots?|values?)|none|无解|空集)\s*\}?',
  re.IGNORECASE,
)
_REALS = re.compile(r'\\(?:mathbb|Bbb|mathbf)\s?\{?R\}?|\\R|(?:\\text\{)?all real(?: numbers?|s)?\}?', re.IGNORECASE)
_MEMBER = re.compile(r'^([a-zA-Z])\s?\\in(?![a-zA-Z])')
_NAMES = re.compile(r'^\(\s?([a-zA-Z](?:\s?,\s?[a-zA-Z])+)\s?\)\s?=\s?(?=\()')  # (x,y) = (1,2)
_POINT = re.compile(r'^([A-Z](?:_\{?\w\}?|\')?)\s?=?\s?(?=\([^()]*,)')  # A(1,2), P = (0, 3)
_BUILDER = re.compile(r'^\\\{\s?[a-zA-Z]\s?(?:\\in\s?\\mathbb\s?\{?[RZNQ]\}?\s?)?(?:\\mid|\||:)(.*)\\\}$')
_PARTING = re.compile(
  r'\s*(?:\\text\s?\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|\\(?:lor|vee|land|wedge)(?![a-zA-Z])|或|和)\s*'
)
RELATION = re.compile(r'\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne)(?![a-zA-Z])|[<>]=?')
_SIGN = {'<': '<', '>': '>', 'lt': '<', 'gt': '>', 'ne': '!', '<=': '<=', '>=': '>=', 'le': '<=', 'ge': '>='}
_MIRROR = {'<': '>', '>': '<', '<=': '>=', '>=': '<=', '!': '!'}
_BRACKETS = {'(': ')', '[': ']', '{': '}'}
_BEGIN = re.compile(r'\\begin\{|\\end\{')
_MATRIX = re.compile(
  r'\\begin\s?\{([pbB]|small)?(?:matrix|array)\}\s?(?:\{[lcr|]+\})?(?P<rows>(?:(?!\\begin).)*)\\end\s?\{\1?(?:matrix|array)\}'
)
_LISTS = re.compile(r'\[\s?(\[[^\[\]]*\](?:\s?,\s?\[[^\[\]]*\])*)\s?\]')  # [[1,2],[3,4]]
_RATIO = re.compile(r'\s?(?::|\\colon(?![a-zA-Z])|\\text\s?\{\s*to\s*\}|(?<=[\da-z])\s+to\s+(?=[\da-z]))\s?')
_COMMA = re.compile(',')
_SEPARATOR = re.compile('[,;，]')
_LIST_SEPARATOR = re.compile('[,;，；、]')
_CUP = re.compile(r'\\cup(?![a-zA-Z])')
_PM = re.compile(r'\\pm(?![a-zA-Z])')
_MINUS_SET = re.compile(
  r'\s?(?:\\(?:setminus|backslash)(?![a-zA-Z])|(?:\\text\{)?\s?except(?: for)?\s?\}?|(?<=[\])}])\s?[-\\](?=\s?\\\{))\s?'
)
_WITH_ZEROS = re.compile(r'\d{1,3}(?:,\d{3})*,0\d\d(?:,\d{3})*')
_CONGRUENT = re.compile(r'([a-zA-Z]\s?)\\equiv(?![a-zA-Z])(.*\\p?mod)')  # x \equiv 2 \pmod 7
_SIZE = re.compile(r'\|([a-zA-Z])\|')
_VARIABLE = re.compile(r'[a-zA-Z]|\\(?:theta|alpha|lambda)')


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of an answer. `kind`: atom, tuple, list, set, interval, union, ratio, matrix or row."""

  kind: str
  text: str
  parts: tuple['Part', ...] = ()
  ends: str = ''  # the brackets of an interval
  name: str = ''  # of what: x in x>3, A in A(1,2)


def parse(text: str) -> Part:
  """The structure of an answer. What it does not know is an atom."""
  text = tidy(text)
  if _EMPTY.fullmatch(text):
    return Part('set', text)
  if (named := _MEMBER.match(text) or _NAMES.match(text) or _POINT.match(text)) and len(text) > named.end():
    return dataclasses.replace(parse(text[named.end() :]), name=named[1].replace(' ', ''))
  if builder := _BUILDER.match(text):
    text = builder[1].strip()
  if _REALS.fullmatch(text):
    return _interval('(', '-\\infty', '\\infty', ')')
  if len(text) > values.MAX_LENGTH * 5 or units.quantity(text) is not None:
    return Part('atom', text)
  if _BEGIN.search(text):
    return _matrix(text) or Part('atom', text)
  return next((part for form in _FORMS if (part := form(text))), Part('atom', text))


def tidy(text: str) -> str:
  r"""The text, clean, in one way of writing: no `\left`, no `\,`, `\ge` for `\geq`, no `$`."""
  text = latex.spelled(clean(text).replace('\\$', '¤')).replace('¤', '\\$')  # \$ is money, $ is a mark
  text = _CONGRUENT.sub(r'\1=\2', text)
  return text.strip().rstrip('.。．').strip()


def _interval(opening: str, low: str, high: str, closing: str) -> Part:
  ends = ('(' if 'infty' in low else opening) + (')' if 'infty' in high else closing)
  low, high = (text.strip().replace('+\\infty', '\\infty') for text in (low, high))
  kind = 'tuple' if ends == '()' else 'interval'
  return Part(kind, f'{ends[0]}{low},{high}{ends[1]}', (Part('atom', low), Part('atom', high)), ends)


def split(text: str, sign: re.Pattern) -> list[str]:
  """The pieces of the text between signs that stand outside of all brackets."""
  pieces, start, depth = [], 0, []
  position = 0
  while position < len(text):
    char = text[position]
    if char == '\\' and text[position + 1 : position + 2] in ('{', '}'):
      position += 1
      char = text[position]
    if char in '([{':
      depth.append(char)
    elif char in ')]}':
      if depth:
        depth.pop()
    elif not depth and (match := sign.match(text, position)):
      pieces.append(text[start:position])
      start = position = match.end()
      continue
    position += 1
  return [*pieces, text[start:]]


def _without_points(text: str) -> Part | None:
  r"""An interval but for some points: `\mathbb{R}\setminus\{0\}`."""
  pieces = split(text, _MINUS_SET)
  if len(pieces) != 2:
    return None
  whole, taken = map(parse, pieces)
  points = taken.parts if taken.kind in ('set', 'list') else (taken,)
  if len(whole.parts) != 2 or not whole.ends or len(points) > _MAX_PARTS:
    return None
  bounds = [(values.value(bound.text), bound) for bound in points]
  if len(bounds) > 1 or whole.text != '(-\\infty,\\infty)':
    numbers = [values.value(bound.text) for bound in whole.parts]
    if None in [number for number, _ in bounds] or None in [
      number for number, bound in zip(numbers, whole.parts, strict=True) if 'infty' not in bound.text
    ]:
      return None
    low, high = numbers
    bounds = [
      pair
      for pair in sorted(bounds, key=lambda pair: pair[0])
      if (low is None or low < pair[0]) and (high is None or pair[0] < high)
    ]
  ends = [whole.parts[0].text, *(bound.text for _, bound in bounds), whole.parts[1].text]
  opening = [whole.ends[0], *'(' * len(bounds)]
  closing = [*')' * len(bounds), whole.ends[1]]
  return Part('union', text, tuple(map(_interval, opening, ends, ends[1:], closing)))


def _matrix(text: str) -> Part | None:
  """Rows of cells. Bars, as of a determinant, and factors make no matrix."""
  if match := _MATRIX.fullmatch(text):
    rows = [row for row in re.split(r'\\\\(?:\[[^\]]*\])?', match['rows'].replace('\\hline', '')) if row.strip()]
    cells = [row.split('&') for row in rows]
  elif match := _LISTS.fullmatch(text):
    rows = re.findall(r'\[([^\[\]]*)\]', match[1])
    cells = [row.split(',') for row in rows]
  else:
    return None
  if not rows or len(rows) > _MAX_PARTS or sum(map(len, cells)) > _MAX_PARTS * 4:
    return None
  return Part(
    'matrix', text, tuple(Part('row', row, tuple(map(parse, row_of))) for row, row_of in zip(rows, cells, strict=True))
  )


def _ratio(text: str) -> Part | None:
  pieces = split(text, _RATIO)
  if not 2 <= len(pieces) <= 10 or not all(piece.strip() for piece in pieces):
    return None
  return Part('ratio', text, tuple(Part('atom', piece.strip()) for piece in pieces))


def _union(text: str) -> Part | None:
  pieces = split(text, _CUP)
  if len(pieces) < 2 or len(pieces) > _MAX_PARTS:
    return None
  parts = tuple(parse(piece) for piece in pieces)
  if all(part.kind in ('interval', 'tuple', 'set') for part in parts):
    return Part('union', text, parts)
  return None


def _bracketed(text: str) -> Part | None:
  is_set = text.startswith('\\{') and text.endswith('\\}')
  inner = text[2:-2] if is_set else text[1:-1]
  if not is_set and (text[:1] not in ('(', '[') or text[-1:] not in (')', ']')):
    return None
  if split(text, _COMMA) != [text]:
    return None  # (1,2),(3,4): the first bracket is not closed by the last
  pieces = split(inner, _SEPARATOR)
  if not _closes_itself(inner) or len(pieces) > _MAX_PARTS:
    return None
  if is_set:
    return Part('set', text, tuple(parse(piece) for piece in pieces))
  if len(pieces) < 2:
    return None
  if _WITH_ZEROS.fullmatch(inner):
    return Part('atom', inner)  # (1,000) is a thousand
  if len(pieces) == 2 and (text[0] + text[-1] != '()'):
    return _interval(text[0], *pieces, text[-1])
  return Part('tuple', text, tuple(parse(piece) for piece in pieces), '()')


def _closes_itself(text: str) -> bool:
  depth = 0
  for char in text.replace('\\{', '{').replace('\\}', '}'):
    depth += (char in '([{') - (char in ')]}')
    if depth < 0:
      return False
  return depth == 0


def _list(text: str) -> Part | None:
  pieces = [piece for comma in split(text, _LIST_SEPARATOR) for piece in split(comma, _PARTING)]
  pieces = [piece.strip() for piece in pieces]
  pieces = [piece for piece in pieces if piece]
  if not 2 <= len(pieces) <= _MAX_PARTS:
    return None
  parts = [parse(piece) for piece in pieces]
  # \pm1, \pm2 are four
  return Part('list', text, tuple(one for part in parts for one in (part.parts if part.kind == 'list' else (part,))))


def _tuple_of_two_signs(text: str) -> Part | None:
  return _plus_minus(text) if text[:1] == '(' and split(text, _COMMA) == [text] else None


def _plus_minus(text: str) -> Part | None:
  if len(_PM.findall(text)) != 1:
    return None
  plus, minus = (_PM.sub(sign, text) for sign in '+-')
  return Part('list', text, (parse(plus.strip().removeprefix('+').replace('(+', '(').replace(',+', ',')), parse(minus)))


def _inequalities(text: str) -> Part | None:
  r"""`x>3`, `-1\le x<1`, `x<1 or x>2`, `x>1 and x<2` in one variable as intervals."""
  if not RELATION.search(text):
    return None
  is_and = bool(re.search(r'(?<![a-zA-Z])and(?![a-zA-Z])|\\(?:land|wedge)|,', text))
  pieces = [piece for comma in split(text, _COMMA) for piece in split(comma, _PARTING)]
  chains = [_chain(piece) for piece in pieces if piece.strip()]
  if None in chains or len({chain[0] for chain in chains}) != 1:
    return None
  sets = [intervals for _, intervals in chains]
  if is_and and len(sets) > 1:
    found = _intersection(text, sets)
  else:
    intervals = tuple(interval for one in sets for interval in one)
    found = intervals[0] if len(intervals) == 1 else Part('union', text, intervals)
  return found and dataclasses.replace(found, name=chains[0][0])


def _intersection(text: str, sets: list[tuple[Part, ...]]) -> Part | None:
  """Of two half-lines, the interval between; Part('set') when they do not meet; None when that is not clear."""
  if list(map(len, sets)) != [1, 1]:
    return None
  upper = next((found for (found,) in sets if found.parts[0].text == '-\\infty'), None)
  lower = next((found for (found,) in sets if found.parts[1].text == '\\infty'), None)
  if upper is None or lower is None or upper is lower:
    return None
  low, high = lower.parts[0].text, upper.parts[1].text
  numbers = values.value(low), values.value(high)
  if None not in numbers and numbers[0] >= numbers[1]:
    return Part('set', text)
  return _interval(lower.ends[0], low, high, upper.ends[1])


def _chain(text: str) -> tuple[str, tuple[Part, ...]] | None:
  r"""The variable and the interval (for `\ne`, the two intervals) of one inequality."""
  signs = [_SIGN.get(sign.strip('\\').replace('slant', '').removesuffix('q')) for sign in RELATION.findall(text)]
  sides = [side.strip() for side in RELATION.split(text)]
  if None in signs or not 2 <= len(sides) <= 3 or not all(sides):
    return None
  if len(sides) == 2:
    (left, right), [sign] = sides, signs
    if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
      left, right, sign = right, left, _MIRROR[sign]
    if size := _SIZE.fullmatch(left):
      return (size[1], around) if (around := _around_zero(sign, right)) else None
    if not _VARIABLE.fullmatch(left) or _letters(right):
      return None
    return left, _half_line(sign, right)
  low, name, high = sides
  if not _VARIABLE.fullmatch(name) or _letters(low) or _letters(high):
    return None
  kinds = {sign[0] for sign in signs}
  if kinds == {'>'}:
    low, high, signs = high, low, [_MIRROR[signs[1]], _MIRROR[signs[0]]]
  elif kinds != {'<'}:
    return None
  return name, (_interval('[' if '=' in signs[0] else '(', low, high, ']' if '=' in signs[1] else ')'),)


def _around_zero(sign: str, bound: str) -> tuple[Part, ...] | None:
  """|x| < 2 and |x| > 2."""
  if (value := values.value(bound)) is None or value <= 0 or sign == '!':
    return None
  ends = '[]' if '=' in sign else '()'
  if sign[0] == '<':
    return (_interval(ends[0], f'-{bound}', bound, ends[1]),)
  return _interval('(', '-\\infty', f'-{bound}', ends[1]), _interval(ends[0], bound, '\\infty', ')')


def _half_line(sign: str, bound: str) -> tuple[Part, ...]:
  if sign == '!':
    return _interval('(', '-\\infty', bound, ')'), _interval('(', bound, '\\infty', ')')
  if sign[0] == '<':
    return (_interval('(', '-\\infty', bound, ']' if '=' in sign else ')'),)
  return (_interval('[' if '=' in sign else '(', bound, '\\infty', ')'),)


def _letters(text: str) -> bool:
  """Whether the text has letters other than those of commands, e and pi."""
  return bool(re.search(r'[a-df-zA-Z]', re.sub(r'\\[a-zA-Z]+', '', text)))


# In this order: what an earlier one knows, no later one is asked.
_FORMS = (
  _without_points, _union, _inequalities, _matrix, _tuple_of_two_signs, _bracketed, _list, _ratio, _plus_minus,
)  # fmt: skip
