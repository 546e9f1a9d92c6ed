r"""LaTeX as SymPy expressions, with nothing of the text lost. Runs in the worker: SymPy and latex2sympy alone.

latex2sympy makes x of X and of x', 2 of `n \choose 2`, 3 of `7 \bmod 3`, and a variable of i. Here letters keep their
case and primes, i is the imaginary unit, and an expression without a letter that its text has is no expression.
"""

import functools
import re

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.math_normalization import normalize_latex

_NORMALISED = NormalizationConfig(
  basic_latex=True, units=True, malformed_operators=True, nits=True, boxed='all', equations=False
)
_CONVERTED = ConversionConfig(lowercase_symbols=False)
_REWRITTEN = {
  re.compile(r'\\(?:mathrm|text|mathit|operatorname)\s?\{\s?([ei])\s?\}'): r' \1 ',  # the constants
  re.compile(r"([a-zA-Z])(?:\^\s?\{?\s?\\prime\s?\}?|')"): r'\1_{prime}',  # f', x^\prime
  re.compile(r'\{\s?([^{}\\]+?)\s?\\choose\s?([^{}\\]+?)\s?\}'): r'\\binom{\1}{\2}',
  re.compile(r'^\s?([^{}\\]+?)\s?\\choose\s?([^{}\\]+?)\s?$'): r'\\binom{\1}{\2}',
  re.compile(r'(?<![a-zA-Z\\])(?:\\exp|exp)\s?\(([^()]*+)\)'): r'e^{\1}',
  re.compile(r'(?<![a-zA-Z\\])(sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan)(?![a-zA-Z])'): r'\\\1 ',
  re.compile(r'\*\*'): '^',
}
_NO_LETTERS = re.compile(
  r'\\(?:text|mathrm|mbox|operatorname|textrm)\*?\s?\{[^{}]*\}|\\(?:begin|end)\s?\{[^{}]*\}(?:\{[lcr|]*\})?'
  r'|\\[a-zA-Z]+|sqrt|prime|[dei]'
)
_LOST = re.compile(
  r'\\(?:bmod|pmod|mod|equiv|ldots|cdots|dots|to|mapsto|Rightarrow|implies|iff|perp|parallel|cong|sim)(?![a-zA-Z])'
)


@functools.lru_cache(maxsize=4096)
def read(text: str) -> tuple[sympy.Basic | sympy.MatrixBase | None, bool]:
  """What the text means, None when it has no such meaning; and whether the parser loses a part of it."""
  if _LOST.search(text):
    return None, True
  has_prime = "'" in text or '\\prime' in text
  for pattern, form in _REWRITTEN.items():
    text = pattern.sub(form, text)
  try:
    found = latex2sympy(
      normalize_latex(text, _NORMALISED), is_real=True, normalization_config=None, conversion_config=_CONVERTED
    )
  except MemoryError:
    raise
  except Exception:  # the parser raises exceptions of all kinds
    return None, has_prime
  if not isinstance(found, (sympy.Basic, sympy.MatrixBase)):
    return None, has_prime
  if isinstance(found, sympy.MatrixExpr):
    found = found.doit()
  if isinstance(found, sympy.Basic):
    found = found.replace(sympy.UnevaluatedExpr, lambda inner: inner)  # \\gcd(4,6)
  if _letters(text) - _names(found):
    return None, True
  # Symbols that differ in what is assumed of them would differ; i is the imaginary unit.
  constants = {'i': sympy.I, 'e': sympy.E}
  symbols = {
    symbol: constants.get(symbol.name) or sympy.Symbol(symbol.name, real=True) for symbol in found.free_symbols
  }
  if isinstance(found, sympy.MatrixBase):
    return found.applyfunc(lambda cell: cell.xreplace(symbols)), has_prime
  return found.xreplace(symbols), has_prime


def _letters(text: str) -> set[str]:
  """The variables of the text: its letters but those of commands, words, d, e and i."""
  return set(re.findall('[a-zA-Z]', _NO_LETTERS.sub(' ', text)))


def _names(found: sympy.Basic | sympy.MatrixBase) -> set[str]:
  """The letters in the names of symbols and functions."""
  atoms = found.atoms(sympy.Symbol) | found.atoms(sympy.core.function.AppliedUndef)
  return {letter for atom in atoms for letter in getattr(atom, 'name', None) or atom.func.__name__}
