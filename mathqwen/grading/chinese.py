"""Chinese numerals as digits. Standard library only.

digits('一千二百')      '1200'        digits('十三点四')    '13.4'
digits('三分之二')      '3分之2'      digits('百分之二十五')  '百分之25'
"""

import re

_DIGITS = {digit: value for value, digit in enumerate('零一二三四五六七八九')} | {'〇': 0, '两': 2}
_TENS = {'十': 10, '百': 100, '千': 1000}
_SECTIONS = {'万': 10**4, '亿': 10**8}

# A name of a unit or a word that begins with a numeral: 千米 is a kilometre, 一共 is "altogether".
_NOT_NUMERALS = re.compile(
  '(?:千米|千克|千瓦|千卡|千帕|千伏|千升|千赫|千焦|百帕|万一|十分(?!之)|千万(?=[别不要])|一共|一定|一般|一样|一些|一起'
  '|一直|一边|一旦|一半|一段|一致|统一|唯一|第[一二三四五六七八九十]|[三四五六七八九十]边形|三角|十字|万能|百货|星期[一二三四五六]|周[一二三四五六])'
)
_NUMERAL = re.compile(
  r'(?P<words>' + _NOT_NUMERALS.pattern + r')'
  r'|(?P<percent>百分之)'
  r'|(?P<sign>负)?(?P<whole>[零〇一二两三四五六七八九十百千万亿]{1,40}+)(?:点(?P<decimals>[零〇一二三四五六七八九]{1,40}+))?'
)
_UNITS_OF_THOUSANDS = re.compile('千[米克瓦卡帕伏升赫焦]|百帕')


def digits(text: str) -> str:
  """The text with its Chinese numerals as digits; words such as 一共 and 千米 stay."""
  return _NUMERAL.sub(_replaced, text)


def _replaced(match: re.Match) -> str:
  whole = match['whole']
  if whole is None:
    return match.group()
  kept = ''
  # 五千米 is 5 km and 五十千克 is 50 kg: the last sign belongs to the unit.
  if whole[-1] in '千百' and _UNITS_OF_THOUSANDS.match(match.string, match.end() - 1) and not match['decimals']:
    whole, kept = whole[:-1], whole[-1]
  value = integer(whole)
  if value is None:
    return match.group()
  decimals = ''.join(str(_DIGITS[digit]) for digit in match['decimals'] or '')
  return f'{"-" if match["sign"] else ""}{value}{"." if decimals else ""}{decimals}{kept}'


def integer(numeral: str) -> int | None:
  """The value of a whole numeral, 一千二百 or 二〇二四; None when it is not one."""
  if not numeral:
    return None
  if all(sign in _DIGITS for sign in numeral):
    return int(''.join(str(_DIGITS[sign]) for sign in numeral))
  total = section = 0
  digit: int | None = None
  unit = 10  # of the sign before, for 一百二: 120
  for sign in numeral:
    if sign in _DIGITS:
      digit = _DIGITS[sign]
      unit = 10 if sign in '零〇' else unit
    elif sign in _TENS:
      section += (1 if digit is None else digit) * _TENS[sign]
      digit, unit = None, _TENS[sign]
    else:
      if not (section or digit or total):
        return None  # 万 alone is a word
      if sign == '万':
        total += (section + (digit or 0)) * _SECTIONS[sign]
      else:
        total = (total + section + (digit or 0)) * _SECTIONS[sign]
      section, digit, unit = 0, None, _SECTIONS[sign]
  if digit is not None and numeral[-2:-1] in ('百', '千', '万'):
    return total + section + digit * unit // 10  # 一百二, 三千五
  return total + section + (digit or 0)
