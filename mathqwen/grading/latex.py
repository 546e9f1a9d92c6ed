r"""Two ways of writing an answer in one form, so that equal answers become equal strings.

normalise('\dfrac12')                        '\frac{1}{2}'
normalise('\left( 3, \frac{\pi}{2} \right)') '(3,\frac{\pi}{2})'
normalise('x = 14{,}400\%')                  '14400'
minerva('x=5\text{ cm}')                     '5'
"""

import re

_SPACING = re.compile(r'\\(?:left|right|[bB]igg?[lr]?|q?quad|displaystyle|limits)(?![a-zA-Z])|\\[!,;: ]|[~$]')
_WORDS = re.compile(r'\\(?:text|mbox|textbf|textit|mathrm|mathbf|textrm|operatorname)\s?\{([^{}]*+)\}')
_UNITS = re.compile(
  r'(?<=[\d}])\s*+\\(?:text|mbox|mathrm|textrm)\s?\{\s*+(?!(?:[ap]\.?m\b|[a-z]*illion|thousand|hundred))'
  r'[a-zA-Z][^{}]*+\}(?:\^\{?\d\}?)?$',
  re.IGNORECASE,
)
_THOUSANDS = re.compile(r'\d{1,3}(?:,\d{3})++(?:\.\d++)?')
_DEGREES = re.compile(r'\^\{?\\circ\}?|\\degree(?![a-zA-Z])|°')
_SHORT_FRACTION = re.compile(r'\\frac\s?(?:\{([^{}]++)\}|(\w))\s?(?:\{([^{}]++)\}|(\w))')
_SHORT_ROOT = re.compile(r'\\sqrt\s?(\w)')
_NAME = re.compile(r'^[a-zA-Z](?:\([a-z]\))?\s?=(?!=)')
_POINT = re.compile(r'(?<![\d])\.(?=\d)')
_TRAILING_ZEROS = re.compile(r'(?<=\d)\.0++(?!\d)')
_PLAIN_FRACTION = re.compile(r'(-?)(\d++)/(\d++)')


def normalise(text: str) -> str:
  """The default form for MATH: spacing, units, percent and degree signs, `x =` and short fractions do not count."""
  text = text.strip().rstrip('.').replace('\n', ' ').replace('−', '-')
  text = text.replace('{,}', ',').replace('\\%', '').replace('%', '').replace('\\$', '')
  text = _SPACING.sub('', text).replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac')
  text = text.replace('\\lbrace', '\\{').replace('\\rbrace', '\\}').replace('\\cdotp', '\\cdot')
  text = text.replace('\\geq', '\\ge').replace('\\leq', '\\le').replace('\\neq', '\\ne')
  text = _WORDS.sub(r'\1', _UNITS.sub('', text.strip()))
  text = _NAME.sub('', _DEGREES.sub('', text).strip())
  text = whole_fractions(text)
  text = _TRAILING_ZEROS.sub('', _POINT.sub('0.', _SHORT_ROOT.sub(r'\\sqrt{\1}', text)))
  text = ''.join(text.split())
  if _THOUSANDS.fullmatch(text.lstrip('-')):
    text = text.replace(',', '')
  if fraction := _PLAIN_FRACTION.fullmatch(text):
    text = f'{fraction[1]}\\frac{{{fraction[2]}}}{{{fraction[3]}}}'
  return text


def whole_fractions(text: str) -> str:
  r"""`\frac{36}2` as `\frac{36}{2}`."""
  return _SHORT_FRACTION.sub(lambda m: f'\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}', text)


# Minerva (arXiv 2206.14858), Appendix D.1.
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
  """Minerva's form; its order and its oddities (`a ` is cut out of `pa 5`) are kept."""
  text = text.split('=')[-1]
  for before, after in _MINERVA_REPLACED:
    text = text.replace(before, after)
  for expression in _MINERVA_REMOVED:
    text = text.replace(expression, '')
  text = re.sub(r'(.*?)(\$)(.*?)(\$)(.*)', r'$\3$', text)
  text = re.sub(r'(\\text\{)(.*?)(\})', r'\2', text)
  text = re.sub(r'(\\textbf\{)(.*?)(\})', r'\2', text)
  text = re.sub(r'(\\overline\{)(.*?)(\})', r'\2', text)
  text = re.sub(r'(\\boxed\{)(.*)(\})', r'\2', text)
  text = re.sub(r'(frac)([^{])(.)', r'frac{\2}{\3}', text)
  text = re.sub(r'(sqrt)([^{])', r'sqrt{\2}', text)
  text = text.replace('$', '')
  return text.replace(',', '') if text.replace(',', '').isdigit() else text


def hendrycks(text: str) -> str:
  r"""The form of the MATH release (arXiv 2103.03874), for string equality; its oddities are kept.

  ValueError where it has none: a second unit, a `\frac` or `\sqrt` with nothing behind it, `a/b` of other than digits.
  """
  text = (
    text.replace('\n', '').replace('\\!', '').replace('\\\\', '\\').replace('tfrac', 'frac').replace('dfrac', 'frac')
  )
  for removed in ('\\left', '\\right', '^{\\circ}', '^\\circ', '\\$'):
    text = text.replace(removed, '')
  text, *units = text.split('\\text{ ')  # units stand at the right
  if len(units) > 1:
    raise ValueError('more than one unit')
  text = text.replace('\\%', '').replace(' .', ' 0.').replace('{.', '{0.')
  if text.startswith('.'):
    text = '0' + text
  left, *right = text.split('=')
  if len(right) == 1 and len(left) <= 2:  # `k = `
    text = right[0]
  text = _roots(text).replace(' ', '')
  text = _fractions(text)
  if text == '0.5':
    text = '\\frac{1}{2}'
  if text.count('/') == 1:
    upper, lower = map(int, text.split('/'))
    if text == f'{upper}/{lower}':
      text = f'\\frac{{{upper}}}{{{lower}}}'
  return text


def _roots(text: str) -> str:
  r"""`\sqrt3` as `\sqrt{3}`."""
  head, *rest = text.split('\\sqrt')
  if not all(rest):
    raise ValueError('a root of nothing')
  return head + ''.join('\\sqrt' + (part if part[0] == '{' else f'{{{part[0]}}}{part[1:]}') for part in rest)


def _fractions(text: str) -> str:
  r"""`\frac12` and `\frac1{2}` as `\frac{1}{2}`; as it is, where a fraction has one character only."""
  head, *rest = text.split('\\frac')
  if not all(rest):
    raise ValueError('a fraction of nothing')
  if any(len(part) == 1 and part != '{' for part in rest):
    return text
  parts = []
  for part in rest:
    if part[0] != '{':
      part = f'{{{part[0]}}}' + (part[1:] if part[1] == '{' else f'{{{part[1]}}}{part[2:]}')
    parts.append(part)
  return '\\frac'.join([head, *parts])
