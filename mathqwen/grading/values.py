r"""Numbers as people and models write them, and their exact values.

    '-$38,000'        -38000           '25%'            1/4
    '14,\\!400'       14400            '((3)/(4))'      3/4      (Math23K)
    '\\frac{3}{4}'    3/4              '5((7)/(10))'    57/10    (Math23K: 5 + 7/10)
    '1.9e12'          1900000000000    '３.５％'          7/200    (full-width digits)

Every pattern is possessive or bounded, so a megabyte of digits is read once. Nothing is evaluated: a number is
recognised by its form, and a text of more than `MAX_LENGTH` characters has no value.
"""

import re
from fractions import Fraction

from mathqwen.grading.cleaning import clean

MAX_LENGTH = 400  # characters of one number: longer than any answer, and far below Python's limit of 4,300 digits

# 12, 1,234.5, .5. A comma belongs to the number only before exactly three digits.
_DECIMAL = r'(?:\d++(?:,\d{3}(?!\d))*+(?:\.\d++)?+|\.\d++)'
# 万 and 亿, but 5千克 is 5 kg and 3百分点 are points.
_WAN = r'万亿|[百千]万|[万亿](?![能一])|[百千](?![米克瓦卡帕伏升赫焦分])'
_MAGNITUDES = {
  'hundred': 10**2, 'thousand': 10**3, 'k': 10**3, 'm': 10**6, 'million': 10**6, 'billion': 10**9, 'trillion': 10**12,
  'dozen': 12, '百': 100, '千': 1000, '万': 10**4, '亿': 10**8, '千万': 10**7, '百万': 10**6, '万亿': 10**12,
}  # fmt: skip
# The groups n0 to n9 and d0 to d9 are numerators and denominators, one pair for each way of writing a fraction.
_NUMBER = re.compile(
  rf"""
  (?P<sign> (?<![\w)\]}}]) [-+] )?+                 # -5, but 16-3 and (a)-3 are differences
  (?: \\?[$€£¥₹₩¢]\ ? (?P<inner_sign> - )?+ )?+    # $5, \$5, $-5
  (?:
    (?P<scale> {_DECIMAL}) \ ?(?:\\times|\\cdot|[*×x·])\ ? 10\^\{{?+(?P<ten>[-+]?\d{{1,3}}+)\}}?+  # 2 \times 10^{{-3}}
  | 10\^\{{?+(?P<power>[-+]?\d{{1,3}}+)\}}?+        # 10^12
  | (?P<whole> \d++ )                               # a mixed number: the whole part, then
    (?: \ ?\(\(?(?P<n1>\d++)\)?/\(?(?P<d1>\d++)\)?\)          # 5((7)/(10)), 1(5/6)
      | [\ 又]?+\\[dt]?frac (?: \{{(?P<n2>\d++)\}} | (?P<n3>\d) ) (?: \{{(?P<d2>\d++)\}} | (?P<d3>\d) )  # 1\frac{{1}}2
      | [\ 又](?P<n4>\d++)/(?P<d4>\d++) (?![\d/]|\.\d)             # 3 1/2, 3又1/2
      | 又(?P<d5>\d++)分之(?P<n5>\d++)                          # 5又10分之7
    )
  | \\[dt]?frac (?: \{{\ ?(?P<n6>-?{_DECIMAL})\ ?\}} | (?P<n7>\d) ) (?: \{{\ ?(?P<d6>{_DECIMAL})\ ?\}} | (?P<d7>\d) )
                                                    # \frac{{3}}{{4}}, \dfrac12
  | \(\(?(?P<n8>-?{_DECIMAL})\)?/\(?(?P<d8>{_DECIMAL})\)?\)   # ((3)/(4)), (3/4)
  | (?P<d9>\d++)分之(?P<n9>\d++)                    # 3分之2 is two thirds
  | (?P<n0>{_DECIMAL})\ ?/\ ?(?P<d0>{_DECIMAL})     # 3/4
  | 百分之(?P<cent>{_DECIMAL})                      # 百分之40 is 40%
  | (?P<plain>{_DECIMAL}(?P<exponent>[eE][-+]?\d{{1,3}}+(?!\d))?+)  # 7, 1,234.5, 1.9e12
  )
  (?P<percent> \ ?\\?% )?+                          # 25%, 25 \%
  (?: (?<=[\d}})])\ {{0,3}}(?P<magnitude>
      {_WAN} | (?(ten)(?!)|(?(exponent)(?!)|(?<=\d)[kKM](?![\w^])))   # 2k, but 300 K, 2e-4 M
      | (?i:hundred|thousand|million|billion|trillion|dozen)s?(?![a-zA-Z]))
  )?+                                               # 240万, 2k, 2 million
  """,
  re.VERBOSE | re.ASCII,  # ASCII: in '结果是-5' the minus is a sign, because \w does not match the letter before it
)
_CURRENCY = re.compile(r'\\?[$€£¥₹₩¢]')  # $, \$, €
_OPENING = re.compile(r'^[ \t*$]*+(?:\\[(\[])?[ \t]*+')  # what may stand before a leading number: '**$', '\( '


def matches(text: str) -> list[re.Match]:
  """Every number of `text`, in order. `text` is clean: see `cleaning.clean`."""
  return list(_NUMBER.finditer(text))


def find(text: str) -> list[str]:
  """Every number of `text`, in order, as written (after `clean`), without its currency sign."""
  return [as_written(match) for match in _NUMBER.finditer(clean(text))]


def opening(text: str) -> str:
  """The text, clean, from where a leading number would begin: behind white space, bold and math marks."""
  return _OPENING.sub('', clean(text))


def starts(text: str) -> str | None:
  """The number that `text` begins with, after white space, bold and math marks, or None."""
  match = _NUMBER.match(opening(text))
  return as_written(match) if match else None


def last_match(text: str) -> re.Match | None:
  """The last number of a text that is clean."""
  match = None
  for match in _NUMBER.finditer(text):  # noqa: B007 - only the last one is wanted
    pass
  return match


def last(text: str) -> str | None:
  """The last number of `text`, or None."""
  match = last_match(clean(text))
  return as_written(match) if match else None


def value(text: str | None) -> Fraction | None:
  """The exact value of one number.

  None when `text` is not one number, divides by zero or is longer than MAX_LENGTH.
  """
  if text is None or len(text) > MAX_LENGTH:
    return None
  match = _NUMBER.fullmatch(clean(text).strip())
  if not match:
    return None
  parts = {name: part for name, part in match.groupdict().items() if part is not None}
  number = _magnitude(parts)
  if number is None:
    return None
  if 'percent' in parts:
    number /= 100
  if magnitude := parts.get('magnitude'):
    number *= _MAGNITUDES.get(magnitude) or _MAGNITUDES[magnitude.lower().removesuffix('s')]
  negative = (parts.get('sign') == '-') != ('inner_sign' in parts)  # -$-5 is 5
  return -number if negative else number


def is_percent(text: str) -> bool:
  """Whether `text` ends with a percent sign."""
  return text.rstrip().endswith('%')


def without_percent(text: str) -> str:
  r"""`text` without the percent sign at its end: of `25 \%`, 25."""
  return text.rstrip().removesuffix('%').rstrip(' \\')


def as_written(match: re.Match) -> str:
  """The number of a match without its currency sign."""
  return _CURRENCY.sub('', match.group()).strip()


def _magnitude(parts: dict[str, str]) -> Fraction | None:
  """The value without sign and percent, from the groups of `_NUMBER` that matched; None when it divides by zero."""
  if 'power' in parts:
    return Fraction(10) ** int(parts['power'])
  if 'ten' in parts:
    return _decimal(parts['scale']) * Fraction(10) ** int(parts['ten'])
  if 'cent' in parts:
    return _decimal(parts['cent']) / 100
  if 'plain' in parts:
    return _decimal(parts['plain'])
  numerator = next(_decimal(text) for name, text in parts.items() if re.fullmatch(r'n\d', name))
  denominator = next(_decimal(text) for name, text in parts.items() if re.fullmatch(r'd\d', name))
  if not denominator:
    return None
  return Fraction(parts.get('whole', 0)) + numerator / denominator


def _decimal(text: str) -> Fraction:
  return Fraction(text.replace(',', ''))
