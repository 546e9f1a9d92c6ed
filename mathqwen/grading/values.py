"""Numbers as people and models write them, and their exact values.

    '-$38,000'       -38000            '25%'            1/4
    '14,\\!400'       14400             '((3)/(4))'      3/4      (Math23K)
    '\\frac{3}{4}'    3/4               '5((7)/(10))'    57/10    (Math23K: 5 + 7/10)
    '1.9e12'         1900000000000     '３.５％'          7/200    (full-width digits)

Every pattern is possessive or bounded, so a megabyte of digits is read once. Nothing is evaluated: a number is matched
by its form, and anything longer than `MAX_LENGTH` characters has no value.
"""

import re
from fractions import Fraction

MAX_LENGTH = 400  # characters of one number: past any answer, and far below Python's limit of 4,300 digits

_WIDE = str.maketrans('０１２３４５６７８９％／（）＋－−＝＄￥', '0123456789%/()+--=$¥')
_WIDE_POINT = re.compile(r'(?<=\d)．(?=\d)')  # elsewhere '．' ends a Chinese sentence

_DECIMAL = r'(?:\d++(?:,\d{3}(?!\d))*+(?:\.\d++)?+|\.\d++)'
_NUMBER = re.compile(
  rf"""
  (?P<sign> (?<![\w)\]}}]) [-+] )?+  (?: \\?[$€£¥] (?P<inner_sign> - )?+ )?+
  (?:
    (?P<scale> {_DECIMAL}) \ ?(?:\\times|\\cdot|[*×x·])\ ? 10\^\{{?+(?P<ten>[-+]?\d{{1,3}}+)\}}?+
  | 10\^\{{?+(?P<power>[-+]?\d{{1,3}}+)\}}?+
  | (?P<whole> \d++ )
    (?: \ ?\(\(?(?P<n1>\d++)\)?/\(?(?P<d1>\d++)\)?\)          # 5((7)/(10)), 1(5/6)
      | [\ 又]?+\\[dt]?frac (?: \{{(?P<n2>\d++)\}} | (?P<n3>\d) ) (?: \{{(?P<d2>\d++)\}} | (?P<d3>\d) )
      | [\ 又](?P<n4>\d++)/(?P<d4>\d++) (?![\d/.])             # 3 1/2, 3又1/2
      | 又(?P<d5>\d++)分之(?P<n5>\d++)
    )
  | \\[dt]?frac (?: \{{\ ?(?P<n6>-?{_DECIMAL})\ ?\}} | (?P<n7>\d) ) (?: \{{\ ?(?P<d6>{_DECIMAL})\ ?\}} | (?P<d7>\d) )
  | \(\(?(?P<n8>-?{_DECIMAL})\)?/\(?(?P<d8>{_DECIMAL})\)?\)   # ((3)/(4)), (3/4)
  | (?P<d9>\d++)分之(?P<n9>\d++)
  | (?P<n0>{_DECIMAL})\ ?/\ ?(?P<d0>{_DECIMAL})
  | 百分之(?P<cent>{_DECIMAL})
  | (?P<plain>{_DECIMAL}(?:[eE][-+]?\d{{1,3}}+(?!\d))?+)
  )
  (?P<percent> \ ?\\?% )?+
  """,
  re.VERBOSE | re.ASCII,  # ASCII: in '结果是-5' the minus is a sign, not a hyphen after a letter
)
_CURRENCY = re.compile(r'\\?[$€£¥]')
_OPENING = re.compile(r'^[ \t*$]*+(?:\\[(\[])?[ \t]*+')


def clean(text: str) -> str:
  """The same text with ASCII digits, signs and percent, and without LaTeX's spacing inside numbers."""
  text = text.translate(_WIDE)
  return _WIDE_POINT.sub('.', text).replace('\\!', '').replace('{,}', ',')


def find(text: str) -> list[str]:
  """Every number in `text`, in order, as written, but without its currency sign (after `clean`)."""
  return [_written(match) for match in _NUMBER.finditer(clean(text))]


def starts(text: str) -> str | None:
  """The number `text` begins with, after white space, bold and math marks, or None."""
  match = _NUMBER.match(_OPENING.sub('', clean(text)))
  return _written(match) if match else None


def last(text: str) -> str | None:
  """The last number of `text`, or None."""
  match = None
  for match in _NUMBER.finditer(clean(text)):  # noqa: B007 - the last one is wanted
    pass
  return _written(match) if match else None


def value(text: str | None) -> Fraction | None:
  """The exact value of one number; None when `text` is not one number, divides by zero or is longer than MAX_LENGTH."""
  if text is None or len(text) > MAX_LENGTH:
    return None
  match = _NUMBER.fullmatch(clean(text).strip())
  if not match:
    return None
  got = {name: text for name, text in match.groupdict().items() if text is not None}
  number = _magnitude(got)
  if number is None:
    return None
  if 'percent' in got:
    number /= 100
  return -number if (got.get('sign') == '-') != ('inner_sign' in got) else number


def _written(match: re.Match) -> str:
  return _CURRENCY.sub('', match.group()).strip()


def is_percent(text: str) -> bool:
  return text.rstrip().endswith('%')


def without_percent(text: str) -> str:
  return text.rstrip().removesuffix('%').rstrip(' \\')


def _magnitude(got: dict[str, str]) -> Fraction | None:
  if 'power' in got:
    return Fraction(10) ** int(got['power'])
  if 'ten' in got:
    return _decimal(got['scale']) * Fraction(10) ** int(got['ten'])
  if 'cent' in got:
    return _decimal(got['cent']) / 100
  if 'plain' in got:
    return _decimal(got['plain'])
  numerator = next(_decimal(text) for name, text in got.items() if re.fullmatch(r'n\d', name))
  denominator = next(_decimal(text) for name, text in got.items() if re.fullmatch(r'd\d', name))
  if not denominator:
    return None
  return Fraction(got.get('whole', 0)) + numerator / denominator


def _decimal(text: str) -> Fraction:
  return Fraction(text.replace(',', ''))
