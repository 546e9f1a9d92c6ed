r"""The calculations in a solution, and whether they hold.

    read('48/2 = <<48/2=24>>24 clips')     Equation('48/2=24', holds=True)
    read('She has 5 + 3 = 9 apples.')      Equation('5+3=9', holds=False)
    read('2x + 3 = 7')                     none: it is not a calculation of numbers

GSM8K marks its calculations, <<LEFT=RIGHT>>. In a text without marks, an equation counts only where it can be read with
certainty: numbers and operators alone, with nothing around them that could belong to them, such as a variable, a unit
inside the calculation, or the `20% of` before one.
"""

import dataclasses
import functools
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from mathqwen.data.expressions import canonical, evaluate
from mathqwen.grading.cleaning import clean

TOLERANCE = Fraction(1, 1000)  # of RFT

_MARK = re.compile(r'<<([^<>]*)>>')
_LATEX = (  # LaTeX as the signs that `expressions.evaluate` knows
  (re.compile(r'\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}'), r'((\1)/(\2))'),
  (re.compile(r'\\(?:times|cdot|ast)(?![a-zA-Z])'), '*'),
  (re.compile(r'\\div(?![a-zA-Z])'), '/'),
  (re.compile(r'\\(?:left|right|big)(?![a-zA-Z])|\\[,;!]'), ''),
  (re.compile(r'\\([%$])'), r'\1'),
  (re.compile(r'\\[()\[\]]|&'), ' '),
  (re.compile(r'\^\{([^{}]*)\}'), r'^(\1)'),
)
_TIMES = re.compile(r'(?<=[\d)%])\s?[x×⋅∗✕✖]\s?(?=[\d($.])|(?<=[\d)])·(?=[\d(])')
_RUN = re.compile(r'[0-9.,+\-*/×÷^()\[\]%$€£¥= ]*=[0-9.,+\-*/×÷^()\[\]%$€£¥= ]*')  # all that an equation may consist of
_PUNCTUATION = re.compile(r'[.,]+(?=\s|$)')
_CURRENCY = re.compile(r'[$€£¥]')
_THOUSANDS = re.compile(r'(?<=\d),(?=\d{3}(?!\d))')
_BARE_POINT = re.compile(r'(?<!\d)\.(?=\d)')  # .5
_UNARY_PLUS = re.compile(r'(?<![\d)%])\+')
_OPERATOR = re.compile(r'(?<=[\d)%])[-+*/^]')
_TWO_NUMBERS = re.compile(r'[\d.]\s+[$€£¥]?\s*[\d.]')  # 1 1/2, or `= 4 $5 bills`
_HAN = '\u3400-\u9fff'
_DOTS = '·•・'  # 2 · 3, or the sign before an item of a list, or between two of them
_NEUTRAL = '→←↔⇒⇔⟹⟶∴∵≈≡|'  # symbols between an equation and what has no part in it
# A word behind which a number is a part of something larger: `20% of 30 + 20`, `17 mod 5 + 1`, `\log_{2} 8 + 1`.
_PART_OF = re.compile(
  r'(?:\b(?:of|times|plus|minus|by|than|over|from|to|squared|percent|dozen|half|twice|double|x|\d\s+and'
  r'|(?:(?:a|arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|lg|exp|sqrt|mod|max|min|gcd|lcm|abs)'
  r'(?:[_^](?:\{[^{}]*\}|[^\W_]+))*)'
  r'|\\(?!(?:q?quad|implies|(?:long)?(?:left)?rightarrow|therefore|because|so|to|iff|item|newline|displaystyle|hline'
  r'|approx|equiv|sim|[lgn]eq?)'
  r'(?![a-z]))[a-z]+(?:[_^](?:\{[^{}]*\}|\w))*'
  r'|加上?|减去?|乘以?|除以?|的|比|从|到|至|第|约|分之|负|又|根号|平方|倍|和|与)\s*$',
  re.IGNORECASE,
)
# What belongs to a number directly behind it: `三十5`, `2小时30`.
_PART_OF_ATTACHED = re.compile(rf'[零一二三四五六七八九十百千万亿两半点]$|\d\s?[{_HAN}]{{1,2}}$')
# `- 5 + 3 = 8` is an item of a list, or begins with a minus.
_BULLET = re.compile(r'\s*-\s+')
# `Step 1 - 5 + 3 = 8`, and `2.20-5=15` of `2．20-5=15`.
_LABEL = re.compile(r'\s*\d{1,2}(?:\s+-\s+|\.(?=\d))')
_BEFORE_LABEL = re.compile(r'[\s#>*•|-]*(?:[A-Z][a-z]+)?\s*')
# In `5*2=10,100-10=90`, the comma may stand between two equations.
_COMMA = re.compile(rf'(?<=\d),(?=[1-9]\d\d\s*[-+*/×÷^={_HAN}])')
# With these, an equation that is wrong as it stands may be right as it is meant.
_DOUBTFUL = re.compile(
  r'%'  # 100 - 20% = 80
  r'|/[\d.]+/'  # 25 / 1/3 = 75
  r'|(?<![\d.,])0\d'  # 0900 - 0130 = 0730
)
_DOUBTFUL_AFTER = re.compile(
  r'\s*(?:cents?\b|¢|角|and \(?\$?\d+/'  # $1 / 2 = 50 cents; 4/3 = 1 and 1/3
  r'|(?:in )?(?:mod|modulo|base|binary)\b'  # 9 + 5 = 2 (mod 12)
  r"|[b-fknp-ru-z](?![a-z')])"  # 10 + 5 = 3 x
  r')|.*\bremainder\b',  # 13/6 = 2 with a remainder of 1
  re.IGNORECASE,
)
_AND_SO_ON = re.compile(r'\s*(?:…|⋯|\.{3})')  # 22/7 = 3.14...
_SCALES = {'dozen': 12, 'hundred': 100, 'thousand': 1000, 'million': 10**6, 'billion': 10**9}
_SCALES |= {'百': 100, '千': 1000, '万': 10**4, '亿': 10**8}
_SCALE = re.compile(rf'\s*({"|".join(_SCALES)})', re.IGNORECASE)  # 500000 * 4 = 2 million
# Behind the whole part of a quotient: 7÷2=3……1, 7÷2=3余1, 7 / 2 = 3 R 1, 7 / 2 = 3, and 1 is left over.
_REMAINDER = re.compile(r'[^=]*?(?:…|⋯|\.{3}|余|剩|\bleft[ -]?over|\bremain)|\s*R\.?\s?\d', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Equation:
  """One calculation."""

  text: str  # without spaces, signs of currencies and commas of thousands: '1000*2=2000'
  holds: bool  # within TOLERANCE


@functools.lru_cache(maxsize=2**13)  # a question's samples are read when they are judged, and when they are compared
def read(text: str) -> list[Equation]:
  """The calculations of a solution, in its order: the marked ones if there are any, else those that are plain.

  A marked one that cannot be evaluated does not hold. A plain one that contradicts itself is listed in either case.
  """
  marked = [_marked(content) for content in _MARK.findall(text)]
  plain = _plain(_MARK.sub('', text))
  if not marked:
    return plain
  return marked + [equation for equation in plain if not equation.holds]


def formulas(text: str) -> list[str]:
  r"""What stands between signs of LaTeX ($...$, \(...\), \[...\]) and has an `=`, without spaces."""
  found = re.findall(r'\$\$?([^$]+)\$|\\\(((?:[^\\]|\\[^)])*)\\\)|\\\[((?:[^\\]|\\[^\]])*)\\\]', text)
  texts = [re.sub(r'\s+', '', ''.join(parts)) for parts in found]
  return [formula for formula in texts if '=' in formula]


def _marked(content: str) -> Equation:
  sides = [_side(side) for side in content.split('=')]
  values = [_values(side) for side in sides]
  holds = len(sides) > 1 and all(map(_agree, values, values[1:]))
  return Equation('='.join(sides), holds)


def _plain(text: str) -> list[Equation]:
  """The equations of a text without marks that can be read with certainty."""
  text = clean('\n'.join(line for line in text.split('\n') if '=' in line or '＝' in line))
  for pattern, sign in _LATEX:
    text = pattern.sub(sign, text)
  text = _TIMES.sub('*', text)
  found = []
  for line in text.split('\n'):
    found += _of_line(line)
  return found


def _of_line(line: str) -> list[Equation]:
  """The equations of a line. A comma before three digits parts two of them where more of them hold then."""
  found = _of_runs(line)
  commas = [] if all(equation.holds for equation in found) else list(_COMMA.finditer(line))
  for comma in reversed(commas):
    parted = f'{line[: comma.end()]} {line[comma.end() :]}'
    other = _of_runs(parted)
    right, right_now = (sum(equation.holds for equation in equations) for equations in (found, other))
    if right_now > right and len(other) - right_now < len(found) - right:
      line, found = parted, other
  return found


def _of_runs(line: str) -> list[Equation]:
  """The equations of a line, its commas read as they stand."""
  return [equation for run in _RUN.finditer(line) for equation in _of_run(line, run)]


def _of_run(line: str, run: re.Match) -> list[Equation]:
  """The equations of a run of digits and signs: 'and 5+3 = 8, 8*2 = 16 apples' has two."""
  found = []
  start = run.start()
  ends = [match.start() for match in _PUNCTUATION.finditer(run[0])]
  for end in [*ends, len(run[0])]:
    piece = line[start : run.start() + end]
    if '=' in piece:
      found += _of_chain(line[:start], piece, line[start + len(piece) :])
    start = run.start() + end + 1
  return found


class _Side(NamedTuple):
  """One side of an equation, in one way to read it."""

  text: str  # in one spelling
  values: list[Fraction]  # that it may mean; none when it is no calculation
  has_operator: bool


def _of_chain(before: str, chain: str, after: str) -> list[Equation]:
  """The equations of 'A = B = C', each side with the next. before, after: the rest of the line."""
  sides = _balanced(chain).split('=')
  readings = [[_read_side(side)] for side in sides]
  readings[0] = [side for side in map(_read_side, _beginnings(before, sides[0])) if side.has_operator]
  if not _ends(sides[-1], after):
    readings[-1] = []

  found = []
  for i in range(len(sides) - 1):
    follows = after if i == len(sides) - 2 else ''
    pairs = [(left, right) for left in readings[i] for right in readings[i + 1]]
    ways = [_of_sides(left, right, follows) for left, right in pairs]
    right = [equation for equation in ways if equation and equation.holds]
    if right or None not in ways:  # it is wrong when it is so in each way to read it
      found += (right or ways)[:1]
  return found


def _read_side(side: str) -> _Side:
  text = _side(side)
  return _Side(text, [] if _TWO_NUMBERS.search(side) else _values(text), _has_operator(text))


def _of_sides(left: _Side, right: _Side, after: str) -> Equation | None:
  """The equation of two sides; None when they are none, or when it is not certain that it is wrong."""
  if not left.values or not right.values or not (left.has_operator or right.has_operator):
    return None
  text = f'{left.text}={right.text}'
  if _agree(left.values, right.values):
    return Equation(text, holds=True)
  if (scale := _SCALE.match(after)) and _agree(left.values, [b * _SCALES[scale[1].lower()] for b in right.values]):
    return None
  is_cut = '.' in right.text and _AND_SO_ON.match(after)
  is_whole_part = '/' in left.text and any(a // 1 == b for a in left.values for b in right.values)
  if is_cut or (is_whole_part and _REMAINDER.match(after)) or _DOUBTFUL.search(text) or _DOUBTFUL_AFTER.match(after):
    return None
  return Equation(text, holds=False)


def _beginnings(before: str, side: str) -> list[str]:
  """The ways to read the first side of a chain, the likely one first; none where its calculation may begin earlier."""
  if not _begins(before, side):
    return []
  if bullet := _BULLET.match(side):
    return [side[bullet.end() :], side]
  label = _LABEL.match(side) if _BEFORE_LABEL.fullmatch(before) else None
  return [side, side[label.end() :]] if label else [side]


def _begins(before: str, side: str) -> bool:
  """Whether the first side of a chain begins where its calculation does, as far as the text before it shows."""
  text = side.lstrip()
  if not text or text[0] in '+*/^÷×)' or (text[0] == '-' and before.strip(' \t:,;(')):
    return False
  attached = before[-1:] if text == side else ''  # '2x' before '+3': a letter that the number belongs to
  is_word = attached.isalnum() and not re.match(f'[{_HAN}]', attached)  # Chinese has no blanks between words
  if is_word or attached in ('_', '\\', '}', '{', '.', ':', '^', '|'):
    return False
  if _PART_OF.search(before) or (attached and _PART_OF_ATTACHED.search(before)):
    return False
  last = before.rstrip()[-1:]
  # A dot is an operator where there is something before it.
  return not _is_operator(last) or (last in _DOTS and not before.strip(f' \t{_DOTS}'))


def _ends(side: str, after: str) -> bool:
  """Whether the last side of a chain ends where its calculation does: not in `20x`, `20^{...`, `6 \\sqrt`, `20!`."""
  if not side.strip() or side.rstrip()[-1] in '+-*/^÷×(':
    return False
  following = after.lstrip()[:1]
  if following and (following in '\\{:|' or _is_operator(following)):
    return False
  return side != side.rstrip() or not re.match(r'[A-Za-z_](?![a-z])', after)


def _is_operator(sign: str) -> bool:
  """Whether a sign beside a number may join it to another one."""
  if not sign or sign in _NEUTRAL:
    return False
  return sign in f'*/^!{_DOTS}✕✖' or unicodedata.category(sign) == 'Sm'


def _balanced(chain: str) -> str:
  """The chain without a bracket that opens before it or closes behind it: '(she has 5+3 = 8)'."""
  chain = re.sub(r'[(\[]\s*$', '', chain)
  while chain.count(')') > chain.count('(') and re.search(r'\)\s*$', chain):
    chain = re.sub(r'\)\s*$', '', chain)
  while chain.count('(') > chain.count(')') and re.match(r'\s*\(', chain):
    chain = re.sub(r'^\s*\(', '', chain)
  return chain


def _side(text: str) -> str:
  """A side in one spelling: ' $1,000 × .5' is '1000*0.5'."""
  text = canonical(_THOUSANDS.sub('', _CURRENCY.sub('', text))).replace('//', '/')
  return _UNARY_PLUS.sub('', _BARE_POINT.sub('0.', text)).rstrip('.,')


def _has_operator(side: str) -> bool:
  """Whether a side in one spelling has one."""
  return _OPERATOR.search(side) is not None


def _values(side: str) -> list[Fraction]:
  """The values that a side may mean: with and without the percent sign at its end; none when it is no calculation."""
  found = []
  for text in {side, side.removesuffix('%')}:
    try:
      found.append(evaluate(text))
    except (ValueError, RecursionError):
      continue
  return found


def _agree(left: list[Fraction], right: list[Fraction]) -> bool:
  return any(abs(a - b) < TOLERANCE for a in left for b in right)
