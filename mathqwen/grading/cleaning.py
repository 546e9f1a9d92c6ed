r"""One cleaning of texts for every rule of ours: signs of other scripts, spaces and groups of digits in one form.

    clean('１３．４')    '13.4'      clean('12\\,345')   '12345'
    clean('1，000')     '1,000'     clean('–18')       '-18'
    clean('3½')         '3\\frac{1}{2}'                clean('×10⁶')  '×10^{6}'
    words('\\text{She makes } 18\\text{ dollars}')      'She makes  18 dollars'

Nothing that changes the value is thrown away: percent signs, units and words of magnitude stay. Every step reads the
text once.
"""

import re
import unicodedata

# The first digit, zero, of each script whose digits people write: Arabic, Persian, Indian scripts, Thai, ...; bold.
_ZEROS = [0x0660, 0x06F0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0E50, 0x0ED0]
_ZEROS += [0x0F20, 0x1040, 0x17E0, 0x1810, 0xFF10, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6]
_SIGNS = {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
# Full-width signs, but ，．：；！？, which are also punctuation of Chinese sentences: see below.
_SIGNS |= {
  code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) not in '，．：；！？０１２３４５６７８９'
}
_SIGNS |= dict.fromkeys(map(ord, '−‐‑‒–﹣⁃'), '-')
_SIGNS |= dict.fromkeys(
  map(ord, '\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000'), ' '
)
_SIGNS |= dict.fromkeys(map(ord, '\u200b\u200c\u200d\u2060\ufeff\u200e\u200f'), '')
_SIGNS |= {
  ord('￥'): '¥',
  ord('￡'): '£',
  ord('￠'): '¢',
  ord('∶'): ':',
  ord('⁄'): '/',
  ord('∕'): '/',
  ord('﹪'): '%',
  ord('٪'): '%',
}
_SIGNS |= {ord('√'): '\\sqrt', ord('π'): '\\pi ', ord('∞'): '\\infty ', ord('∪'): '\\cup ', ord('∩'): '\\cap '}
_SIGNS |= {ord('≤'): '\\le ', ord('≥'): '\\ge ', ord('≠'): '\\ne ', ord('±'): '\\pm ', ord('∅'): '\\emptyset '}
_SIGNS |= {ord('⩽'): '\\le ', ord('⩾'): '\\ge ', ord('∈'): '\\in ', ord('θ'): '\\theta ', ord('ℝ'): '\\mathbb{R}'}
for _code in [0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F)]:  # ½ is 1⁄2 in Unicode's own table
  _numerator, _, _denominator = unicodedata.normalize('NFKC', chr(_code)).partition('⁄')
  _SIGNS[_code] = f'\\frac{{{_numerator}}}{{{_denominator}}}'

_RAISED = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ', '0123456789-+n')
_LOWERED = str.maketrans('₀₁₂₃₄₅₆₇₈₉', '0123456789')
_RAISED_RUN = re.compile('[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]++')
_LOWERED_RUN = re.compile('[₀₁₂₃₄₅₆₇₈₉]++')

_IN_NUMBERS = {
  re.compile(r'(?<=\d)．(?=\d)'): '.',  # ３．５; elsewhere `．` ends a sentence
  re.compile(r'(?<=\d)，(?=\d{3}(?!\d))'): ',',  # １，０００; elsewhere `，` parts a sentence
  re.compile(r'(?<=\d)٫(?=\d)'): '.',
  re.compile(r'(?<=\d)٬(?=\d)'): ',',
  re.compile(r"(?<=\d)['’_](?=\d{3}(?!\d))"): ' ',  # 12'345 and 12_345
  re.compile(r'负\s?(?=[\d.])'): '-',
  re.compile(r'[-=]{1,2}>'): '→',  # an arrow: `=> 18` is not `> 18`
  re.compile(r',\\! ?|\{,\}'): ',',  # 14,\!400 and 14{,}400
  re.compile(r'\\!'): '',
  re.compile(r'(?<=\d)(?:\\_|\\,|\\ |\\;|\\:|~)(?=\d{3}(?!\d))'): ' ',  # 12\,345 and 12\_345
}
# 12 345 and 1 234 567. A number that stands alone behind another, as in `1 2`, is no group.
_GROUPS = re.compile(r'(?<![\d.,/_^] )(?<![\d.,/_^\\])([1-9]\d{0,2}(?: \d{3})++)(?![\d]|[,.]\d{3}| ?[/\d])')
# 0.\overline{3}, 0.1\dot{6}, 0.333...
_REPEATING = re.compile(
  r'(?<![\d.,])(?P<whole>\d{0,12})\.(?P<head>\d{0,12})'
  r'(?:\\(?:overline|bar|dot)\s?(?:\{(?P<cycle>\d{1,20})\}|(?P<digit>\d))'
  r'|(?P<repeated>\d{1,6}?)(?P=repeated){2,20}(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.|…))'
)
_CURRENCIES = re.compile(r'\\(pounds|euro|texteuro|yen|textyen|textsterling|cents?)(?![a-zA-Z])\s?')
_CURRENCY_SIGNS = {'pounds': '£', 'textsterling': '£', 'euro': '€', 'texteuro': '€', 'yen': '¥', 'textyen': '¥'}
_TAGS = re.compile(r'</?(?:b|i|u|em|strong|p|br|span|div|center|code|mark|h\d)(?:\s[^<>]{0,200})?/?>', re.IGNORECASE)
_BOLD = re.compile(r'`|(?<![\w)])\*\*|\*\*(?![\w(\\-])|(?<=[^\W\d])\*\*|\*\*(?=[^\W\d])')  # **18**, but not 2**3
_TEXT = re.compile(r'\\(?:text|mbox|textbf|textit|mathrm|mathbf|textrm|mathit|textsf|operatorname)\*?\s?\{([^{}]*+)\}')
_PERCENT = re.compile(r'(?<=[\d}])\s?(?:percent|per cent)(?![a-z])', re.IGNORECASE)


def clean(text: str) -> str:
  """The text with ASCII digits and signs, and with groups of digits joined."""
  if not text.isascii():
    text = _RAISED_RUN.sub(lambda run: f'^{{{run.group().translate(_RAISED)}}}', text)
    text = _LOWERED_RUN.sub(lambda run: f'_{{{run.group().translate(_LOWERED)}}}', text)
    text = text.translate(_SIGNS)
  for pattern, sign in _IN_NUMBERS.items():
    text = pattern.sub(sign, text)
  text = _GROUPS.sub(lambda groups: groups.group().replace(' ', ''), text)
  text = _REPEATING.sub(_fraction, text)
  text = _CURRENCIES.sub(lambda name: _CURRENCY_SIGNS.get(name[1], '¢'), text)
  if '<' in text:
    text = _TAGS.sub('', text)
  return _BOLD.sub('', text)


def words(text: str) -> str:
  r"""The text without `\text{...}` around words, and with `%` for `percent`: for rules that read numbers."""
  return _PERCENT.sub('%', _TEXT.sub(r'\1', re.sub(r'(?<=\d)(?=\\mathrm)', ' ', text)))  # 300\mathrm{K} is no 300k


def _fraction(repeating: re.Match) -> str:
  r"""The fraction that a repeating decimal is: of `0.1\overline{6}`, `\frac{15}{90}`."""
  head = repeating['head']
  cycle = repeating['cycle'] or repeating['digit'] or repeating['repeated']
  before = int(repeating['whole'] + head or '0')
  numerator = int(f'{before}{cycle}') - before
  return f'\\frac{{{numerator}}}{{{(10 ** len(cycle) - 1) * 10 ** len(head)}}}'
