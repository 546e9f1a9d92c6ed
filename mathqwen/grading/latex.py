r"""Ways of writing an answer in one form, so that equal answers become equal strings.

normalise('\\dfrac12')                         '\\frac{1}{2}'
normalise('\\left( 3, \\frac{\\pi}{2} \\right)')  '(3,\\frac{\\pi}{2})'
normalise('x = 14{,}400\\%')                   '14400'
minerva('x=5\\text{ cm}')                      '5'
"""

import re

_SPACING = re.compile(
  r'(\\\\)'  # the end of a row stays, and `\\ 3` holds no `\ `
  # \left( and \right), \big and \Bigg, \quad, \displaystyle: not \leftarrow
  r'|\\(?:left|right|[bB]igg?[lr]?|q?quad|displaystyle|limits|underline)(?![a-zA-Z])'
  r'|\\[!,;: ]'  # \! \, \; \: and a backslash with a blank
  r'|[~$]'  # ~ and $
)
# \text{Evelyn}, \mbox{...}, \mathrm{...}: the words stay, the command goes
_WORDS = re.compile(r'\\(?:text|mbox|textbf|textit|mathrm|mathbf|textrm|operatorname)\s?\{([^{}]*+)\}')
_UNITS = re.compile(
  r'(?<=[\d}])\s*+\\(?:text|mbox|mathrm|textrm)\s?\{\s*+'  # behind a number or a brace: 5\text{ cm}
  r'(?!(?:[ap]\.?m\b|[a-z]*illion|thousand|hundred))'  # but not a.m., p.m., million, thousand: they change the value
  r'[a-zA-Z][^{}]*+\}(?:\^\{?\d\}?)?$',  # ... at the end, with its power: \text{ cm}^2, \text{ cm}^{2}
  re.IGNORECASE,
)
_THOUSANDS = re.compile(r'\d{1,3}(?:,\d{3})++(?:\.\d++)?')  # 1,200 and 1,200.5; not (1,200) or 1,2
_DEGREES = re.compile(r'\^\{?\\circ\}?|\\degree(?![a-zA-Z])|°')  # 90^\circ, 90^{\circ}, 90\degree, 90°
# \frac12, \frac1{72}, \frac{a}b
_SHORT_FRACTION = re.compile(r'\\frac\s?(?:\{([^{}]++)\}|(\w))\s?(?:\{([^{}]++)\}|(\w))')
_SHORT_ROOT = re.compile(r'\\sqrt\s?(\w)')  # \sqrt3
_NAME = re.compile(r'^[a-zA-Z](?:\([a-z]\))?\s?=(?!=)')  # x = and f(x) = at the start
_POINT = re.compile(r'(?<![\d])\.(?=\d)')  # .5, to be 0.5
_TRAILING_ZEROS = re.compile(r'(?<=\d)\.0++(?!\d)')  # 7.00, to be 7; not 10.05
_BLANKS = re.compile(r'(?<!\d)\s+|\s+(?![\d\s])')  # all but one between digits: `1 2` is not 12
_PLAIN_FRACTION = re.compile(r'(-?)(\d++)/(\d++)')  # 3/4 and -3/4


def normalise(text: str) -> str:
  """Our form for MATH: spacing, units, percent and degree signs, `x =` and short fractions make no difference."""
  text = text.strip().rstrip('.').replace('\n', ' ').replace('−', '-')
  text = text.replace('{,}', ',').replace('\\%', '').replace('%', '').replace('\\$', '')

  text = spelled(text)

  # Units go before words: both are \text{...}.
  text = _WORDS.sub(r'\1', _UNITS.sub('', text.strip()))
  text = _NAME.sub('', _DEGREES.sub('', text).strip())

  # Numbers and fractions.
  text = whole_fractions(text)
  text = _SHORT_ROOT.sub(r'\\sqrt{\1}', text)
  text = _TRAILING_ZEROS.sub('', _POINT.sub('0.', text))
  text = _BLANKS.sub('', text)
  if _THOUSANDS.fullmatch(text.lstrip('-')):
    text = text.replace(',', '')
  if fraction := _PLAIN_FRACTION.fullmatch(text):
    sign, numerator, denominator = fraction.groups()
    text = f'{sign}\\frac{{{numerator}}}{{{denominator}}}'
  return text


def spelled(text: str) -> str:
  r"""The text without spacing commands and `$`, with one command where LaTeX has several for the same thing."""
  text = (
    _SPACING.sub(r'\1', text).replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac').replace('\\cfrac', '\\frac')
  )
  text = text.replace('\\lbrace', '\\{').replace('\\rbrace', '\\}').replace('\\cdotp', '\\cdot')
  text = text.replace('\\geqslant', '\\ge ').replace('\\leqslant', '\\le ')
  return text.replace('\\geq', '\\ge').replace('\\leq', '\\le').replace('\\neq', '\\ne')


def whole_fractions(text: str) -> str:
  r"""`\frac{36}2` as `\frac{36}{2}`."""
  return _SHORT_FRACTION.sub(lambda m: f'\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}', text)


# Minerva (arXiv 2206.14858), Appendix D.1: what is replaced, in this order, and then what is removed.
_MINERVA_REPLACED = (
  ('an ', ''), ('a ', ''), ('.$', '$'), ('\\$', ''), ('\\ ', ''), (' ', ''), ('mbox', 'text'), (',\\text{and}', ','),
  ('\\text{and}', ','), ('\\text{m}', '\\text{}'),
)  # fmt: skip
_MINERVA_REMOVED = (
  'square', 'ways', 'integers', 'dollars', 'mph', 'inches', 'ft', 'hours', 'km', 'units', '\\ldots', 'sue', 'points',
  'feet', 'minutes', 'digits', 'cents', 'degrees', 'cm', 'gm', 'pounds', 'meters', 'meals', 'edges', 'students',
  'childrentickets', 'multiples', '\\text{s}', '\\text{.}', '\\text{\ns}', '\\text{}^2', '\\text{}^3', '\\text{\n}',
  '\\text{}', '\\mathrm{th}', '^\\circ', '^{\\circ}', '\\;', ',\\!', '{,}', '"', '\\dots',
)  # fmt: skip


def minerva(text: str) -> str:
  """Minerva's form (arXiv 2206.14858, Appendix D.1). Its order and its oddities are kept: `pa 5` becomes `p5`."""
  text = text.split('=')[-1]
  for before, after in _MINERVA_REPLACED:
    text = text.replace(before, after)
  for expression in _MINERVA_REMOVED:
    text = text.replace(expression, '')
  text = re.sub(r'(.*?)(\$)(.*?)(\$)(.*)', r'$\3$', text)  # of `so $x$ holds`, $x$
  text = re.sub(r'(\\text\{)(.*?)(\})', r'\2', text)  # \text{...}, \textbf{...}, \overline{...}, \boxed{...}: content
  text = re.sub(r'(\\textbf\{)(.*?)(\})', r'\2', text)
  text = re.sub(r'(\\overline\{)(.*?)(\})', r'\2', text)
  text = re.sub(r'(\\boxed\{)(.*)(\})', r'\2', text)
  text = re.sub(r'(frac)([^{])(.)', r'frac{\2}{\3}', text)  # \frac12
  text = re.sub(r'(sqrt)([^{])', r'sqrt{\2}', text)  # \sqrt3
  text = text.replace('$', '')
  return text.replace(',', '') if text.replace(',', '').isdigit() else text  # 1,000


def hendrycks(text: str) -> str:
  r"""The form of the MATH release (arXiv 2103.03874), for string equality. Its oddities are kept.

  ValueError when the text has no such form: it has a second unit, a `\frac` or `\sqrt` with nothing behind it, or an
  `a/b` that is not made of digits.
  """
  text = text.replace('\n', '').replace('\\!', '').replace('\\\\', '\\')
  text = text.replace('tfrac', 'frac').replace('dfrac', 'frac')
  for removed in ('\\left', '\\right', '^{\\circ}', '^\\circ', '\\$'):
    text = text.replace(removed, '')

  text, *units = text.split('\\text{ ')  # a unit stands at the end: 5\text{ cm}
  if len(units) > 1:
    raise ValueError('more than one unit')
  text = text.replace('\\%', '').replace(' .', ' 0.').replace('{.', '{0.')
  if text.startswith('.'):
    text = '0' + text

  left, *right = text.split('=')
  if len(right) == 1 and len(left) <= 2:  # `k = `
    text = right[0]

  text = _hendrycks_roots(text).replace(' ', '')
  text = _hendrycks_fractions(text)
  if text == '0.5':
    text = '\\frac{1}{2}'
  if text.count('/') == 1:
    numerator, denominator = map(int, text.split('/'))
    if text == f'{numerator}/{denominator}':  # not 03/4, which int reads as well
      text = f'\\frac{{{numerator}}}{{{denominator}}}'
  return text


def _hendrycks_roots(text: str) -> str:
  r"""`\sqrt3` as `\sqrt{3}`."""
  result, *parts = text.split('\\sqrt')
  for part in parts:
    if not part:
      raise ValueError('a root of nothing')
    if part[0] != '{':
      part = f'{{{part[0]}}}{part[1:]}'
    result += '\\sqrt' + part
  return result


def _hendrycks_fractions(text: str) -> str:
  r"""`\frac12` and `\frac1{2}` as `\frac{1}{2}`. Unchanged when any fraction has a single character behind it."""
  result, *parts = text.split('\\frac')
  if not all(parts):
    raise ValueError('a fraction of nothing')
  if any(len(part) == 1 and part != '{' for part in parts):
    return text
  for part in parts:
    if part[0] != '{':
      numerator = part[0]
      denominator = part[1]
      rest = part[2:]
      part = f'{{{numerator}}}{{{rest}' if denominator == '{' else f'{{{numerator}}}{{{denominator}}}{rest}'
    result += '\\frac' + part
  return result
