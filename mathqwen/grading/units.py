r"""Numbers with their units: 50 cm is 0.5 m and is not 50 m, 5 dollars are not 5 cents. Standard library only.

quantity('50\\text{ cm}')   Quantity(value=50, unit=Unit('length', 1/100), ...)
quantity('5 apples')        a unit that is not in the table says nothing: Quantity(value=5, unit=None, ...)
quantity('5x')              None
"""

import dataclasses
import re
from fractions import Fraction

from mathqwen.grading import chinese, values
from mathqwen.grading.cleaning import clean, words


@dataclasses.dataclass(frozen=True)
class Unit:
  """What is measured, and how many of its base units one is."""

  dimension: str
  factor: Fraction


@dataclasses.dataclass(frozen=True)
class Quantity:
  """One number with what stands beside it."""

  value: Fraction
  unit: Unit | None  # None: no unit, or one that is not in the table
  percent: bool
  number: str  # as written


# dimension: {names: how many base units}
_TABLE = {
  'length': {
    'mm millimeter millimetre 毫米': '1/1000', 'cm centimeter centimetre 厘米': '1/100', 'dm 分米': '1/10',
    'm meter metre 米': '1', 'km kilometer kilometre 千米 公里': '1000', 'in inch inche': '127/5000',
    'ft foot feet': '381/1250', 'yd yard': '1143/1250', 'mi mile': '201168/125',
  },
  'time': {
    's sec second 秒': '1', 'min minute 分钟': '60', 'h hr hour 小时': '3600',
    'day 天': '86400', 'week 周 星期': '604800',
  },
  'months': {'month 个月': '1', 'year yr 年': '12'},
  'mass': {
    'mg milligram 毫克': '1/1000000', 'g gram 克': '1/1000', 'kg kilogram 千克 公斤': '1', 'ton tonne 吨': '1000',
    '斤': '1/2',
    'lb pound': '45359237/100000000', 'oz ounce': '45359237/1600000000',
  },
  'volume': {'ml milliliter millilitre 毫升': '1/1000', 'l liter litre 升': '1', 'gallon gal': '3785411784/1000000000'},
  'dollars': {'$ dollar usd us$ 美元': '1', 'cent ¢ 美分': '1/100'},
  'euros': {'€ euro eur 欧元': '1'},
  'pounds sterling': {'£ gbp 英镑': '1'},
  'yuan': {'¥ yuan rmb cny 元 块 人民币': '1', '角': '1/10'},
  'rupees': {'₹ rupee inr rs 卢比': '1'},
  'angle': {'° degree deg 度': '1', "' ′ arcminute": '1/60', "'' ″ arcsecond": '1/3600'},
  'radians': {'radian rad 弧度': '1'},
  'celsius': {'°c 摄氏度': '1'},
  'fahrenheit': {'°f': '1'},
}  # fmt: skip
_UNITS = {
  name: Unit(dimension, Fraction(factor))
  for dimension, rows in _TABLE.items()
  for names, factor in rows.items()
  for name in names.split()
}
_UNITS |= {'mph': Unit('length/time', Fraction(201168, 125) / 3600), '平方米': Unit('length2', Fraction(1))}
_UNITS |= {'平方厘米': Unit('length2', Fraction(1, 10**4)), '立方米': Unit('length3', Fraction(1))}
_UNITS |= {'立方厘米': Unit('length3', Fraction(1, 10**6)), '平方千米': Unit('length2', Fraction(10**6))}
_POWERS = {'square': 2, 'sq': 2, 'cubic': 3, 'cu': 3, '平方': 2, '立方': 3}
_SHORT = frozenset(
  ['m', 's', 'h', 'g', 'l', 't', 'in', 'min']
)  # alone, outside of \text{...}, these are letters of mathematics

_MARKS = {
  re.compile(r'\^\s?\{?\s?\\circ\s?\}?|\\degree(?![a-zA-Z])'): '°',
  re.compile(r"\^\s?\{?\\prime\\prime\}?|''"): '″',
  re.compile(r"\^\s?\{?\\prime\}?|(?<=\d)'"): '′',
  re.compile(
    r'\\(?:left|right|[bB]igg?[lr]?|displaystyle|underline)(?![a-zA-Z])|\\[,;:! ]|~|\\q?quad(?![a-zA-Z])'
  ): ' ',
}
_ABOUT = re.compile(r'^(?:\\approx|\\sim|≈|about|approximately|exactly|约|大约|共|一共)\s*(?![a-z])', re.IGNORECASE)
_CODE = re.compile(r'^(us\$|usd|eur|gbp|inr|rs\.?|rmb|cny)\s?(?=\d)', re.IGNORECASE)  # USD 18, Rs. 18
_POWER = re.compile(r'\s?\^?\{?\s?([23])\s?\}?$')
_WORD = re.compile(r'[^\W\d_]+|[°′″$€£¥₹¢]+[CF]?')
_AREA = re.compile(r'm\^\{?[23]\}?')
_WORDS = re.compile(r"\(?[^\W\d_°′″$€£¥₹¢](?:[^\W\d_]|[ .()/°′″$€£¥₹¢'-]|\^\{?[23]\}?)*|[°′″¢$€£¥₹][CF]?")
_ORDINAL = re.compile(r'\^?\{?(?:th|st|nd|rd)\}?', re.IGNORECASE)
_EUROPEAN = re.compile(r'[-€\s]*\d{1,3}(?:\.\d{3})*,\d{2}[€\s]*')  # 1.234,50 €
_LAKH = re.compile(r'-?[$€£¥₹]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?')  # 12,34,567
_LETTER = re.compile(r'\d\s?[kKM]$')


def quantity(text: str, gold: bool = False) -> Quantity | None:
  """The number that the whole text is, with its unit. None when the text is anything else.

  gold: `2k` is a product here; in an answer that is compared with a number it is 2,000.
  """
  if len(text) > values.MAX_LENGTH:
    return None
  text = plain(text)
  in_text = '\\text' in text or '\\mathrm' in text or '\\mbox' in text
  text = words(text).strip()
  text = _ABOUT.sub('', text).strip()
  code = _CODE.match(text)
  text = text[code.end() :] if code else text
  if not text.isascii() and not any(sign in '0123456789' for sign in text):
    text = chinese.digits(text)
  if '€' in text and _EUROPEAN.fullmatch(text):
    text = text.replace('.', '').replace(',', '.')
  if _LAKH.fullmatch(text):
    text = text.replace(',', '')
  found = values.matches(text[: values.MAX_LENGTH])
  if not found or found[0].start() != 0:
    return None
  number = found[0].group()
  value = values.value(number)
  rest = text[found[0].end() :].strip()
  if value is None or (gold and _LETTER.search(number)):
    return None
  sign = re.match(r'[-+]?\\?([$€£¥₹¢])', number)
  unit = _UNITS[sign[1]] if sign else _UNITS[code[1].lower().rstrip('.')] if code else None
  if rest and not _ORDINAL.fullmatch(rest):
    if not _WORDS.fullmatch(rest) or _is_algebra(rest, in_text, text[found[0].end() :][:1] == ' '):
      return None
    unit = unit_of(rest) or unit
  return Quantity(value, unit, values.is_percent(number), values.as_written(found[0]))


def plain(text: str) -> str:
  r"""The text, clean, with signs for degrees and minutes, without LaTeX's spacing and marks of mathematics."""
  text = clean(text).replace('\\$', '¤').replace('$', '').replace('¤', '$')
  for pattern, sign in _MARKS.items():
    text = pattern.sub(sign, text)
  return re.sub(r'^\\[(\[]|\\[)\]]$', '', text.strip()).strip().removesuffix('.').strip()


def _is_algebra(rest: str, in_text: bool, spaced: bool) -> bool:
  """Whether letters behind a number are factors, as in 5x and 2ab, and no unit."""
  first = _WORD.search(rest).group()
  if not in_text and spaced and _AREA.fullmatch(rest):
    return False  # 45 m^2
  if not rest.isascii() or in_text or first.lower() in _UNITS and first.lower() not in _SHORT:
    return False
  return len(first) < 3 or not spaced


def unit_of(text: str) -> Unit | None:
  """The unit that the words name: cm, square feet, km/h, dollars. None when it is not in the table."""
  top, slash, bottom = re.sub(r'\s+per\s+', '/', text.strip().lower()).partition('/')
  unit = _single(top)
  if unit is None or not slash:
    return unit
  below = _single(bottom)
  return Unit(f'{unit.dimension}/{below.dimension}', unit.factor / below.factor) if below else None


def _single(text: str) -> Unit | None:
  text = text.strip(' .()')
  power = 1
  if raised := _POWER.search(text):
    power = int(raised[1])
    text = text[: raised.start()].strip(' {}.')
  head, _, tail = text.partition(' ')
  if head.strip('.') in _POWERS:
    power, text = _POWERS[head.strip('.')], tail
  head, _, tail = text.partition(' ')
  name = text if text in _UNITS else head.strip('.')
  unit = _UNITS.get(name) or _UNITS.get(name.removesuffix('s')) or _UNITS.get(name.removesuffix('es'))
  if unit is None or power == 1:
    return unit
  return Unit(f'{unit.dimension}{power}', unit.factor**power)


def same(answer: Quantity, gold: Quantity) -> tuple[bool, str]:
  """Whether two quantities are equal: by value, in units that agree where both have one."""
  got, want = answer.value, gold.value
  if answer.unit and gold.unit:
    if answer.unit.dimension != gold.unit.dimension:
      return False, f'{answer.unit.dimension} instead of {gold.unit.dimension}'
    got, want = got * answer.unit.factor, want * gold.unit.factor
  if got == want or rounded(answer, gold, got, want):
    return True, 'equal value'
  if answer.percent != gold.percent:  # 20% for 20 and 20 for 20%
    without = Fraction(100)
    if got * (without if answer.percent else 1) == want * (without if gold.percent else 1):
      return True, 'equal value without the percent sign'
  return False, 'different value'


def rounded(answer: Quantity, gold: Quantity, got: Fraction, want: Fraction) -> bool:
  """Whether the answer is the gold answer, a fraction, rounded to six digits or more: 0.333333 for 1/3."""
  return _rounds(answer.number, got, want) and '.' not in gold.number


def _rounds(decimal: str, got: Fraction, want: Fraction) -> bool:
  match = re.fullmatch(r'-?(\d*)\.(\d+)', decimal.replace(',', ''))
  if not match or len((match[1] + match[2]).lstrip('0')) < 6:
    return False
  return want.denominator != 1 and abs(got - want) <= Fraction(1, 2 * 10 ** len(match[2]))
