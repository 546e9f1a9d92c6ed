r"""The forms in which texts are compared.

plain     '$\dfrac{1}{2} + 2,125$.'  ->  'frac12+2125'     what makes two examples duplicates
bare      'tan 22.5°!'               ->  'tan225°'         equal but for spacing, braces and punctuation
template  'It costs 3.50 dollars.'   ->  'it costs 0 0 dollars'
tokens    'Tom has 3 cats.'          ->  tom, has, 3, cats; each character of a text with Chinese in it
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

HAN = re.compile('[\u3400-\u9fff\uf900-\ufaff]')
_WORD = re.compile(r'[^\W_]+')
_CHARACTER = re.compile(r'[^\W_]')
_DIGITS = re.compile(r'\d+')
_FORMULA = re.compile(r'\d+(?:\.\d+)?|[+*/^<>=%!-]')
_NUMBER = re.compile(r'\d+(?:\.\d+)?')
# Spellings of LaTeX that look the same.
_LATEX = re.compile(r'\\(?:(left|right|displaystyle|quad|[,;:! ])|([dt])(?=frac)|(times|cdot)|(div))')
_OPERATORS = str.maketrans({'×': '*', '·': '*', '÷': '/', '−': '-', '\u2013': '-'})
# What never counts, deleted first because that takes no time.
_NEVER = dict.fromkeys(map(ord, ' \t\n\r\f\v$(){}[]?;:"\'`_\\#&~@|'))
_NEVER_OTHER = re.compile(r'[^\w.,+*/^=<>%!°-]')
# Of points and commas, those between digits count, but not of thousands; an exclamation mark after a digit does, and a
# minus that does not stand between two words.
_SOMETIMES = re.compile(
  r'[.,!-](?:(?<=[.,])(?:(?!\d)|(?<!\d[.,]))|(?<=,)(?=\d{3}(?!\d))|(?<=!)(?<!\d!)|(?<=[^\W\d]{2}-)(?=[^\W\d]{2}))'
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


def has_han(text: str) -> bool:
  """Whether there is a Chinese character in a text."""
  return not text.isascii() and HAN.search(text) is not None


def plain(text: str) -> str:
  """A text without what does not change its mathematics: white space, braces, punctuation, case."""
  text = text.lower()
  if '\\' in text:
    text = _LATEX.sub(_same_latex, text)
  if not text.isascii():
    text = _NEVER_OTHER.sub('', unicodedata.normalize('NFKC', text).translate(_OPERATORS))
  return _SOMETIMES.sub('', text.translate(_NEVER))


def _same_latex(match: re.Match) -> str:
  _, _, times, division = match.groups()
  return '*' if times else '/' if division else ''


def bare(plain_text: str) -> str:
  """What `plain` gave without points, commas and exclamation marks: it errs on the side of being equal."""
  return plain_text.translate(_POINTS)


_POINTS = dict.fromkeys(map(ord, '.,!'))


def template(text: str, words: Sequence[str]) -> str:
  """A text with its numbers masked: problems of the same template differ in them alone. words: its `tokens`

  Words are compared, without what stands between them; in Chinese, or without a letter, all of the text.
  """
  if has_han(text) or not any(map(str.isalpha, words)):
    return _NUMBER.sub('0', text.strip())
  return _DIGITS.sub('0', ' '.join(words))


def formulas(plain_text: str) -> list[str]:
  """The numbers and operators of what `plain` gave, in order."""
  return _FORMULA.findall(plain_text)


def tokens(text: str) -> list[str]:
  """The words of a text, in lower case; its letters and digits one by one where it has Chinese characters."""
  return (_CHARACTER if has_han(text) else _WORD).findall(text.lower())


def hash64(text: str) -> int:
  """A hash that is the same in every process."""
  return int.from_bytes(hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'little')


class _Hashes(dict):
  """The hash of each token seen, of the last million different ones."""

  def __missing__(self, token: str) -> int:
    if len(self) >= 1_000_000:
      self.clear()
    value = self[token] = hash64(token)
    return value


_hashes = _Hashes()


def token_hashes(lists: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
  """(hashes of the tokens of all lists end to end, uint64; offsets of the lists in it, one more than there are)."""
  offsets = np.zeros(len(lists) + 1, np.int64)
  np.cumsum([len(tokens_of) for tokens_of in lists], out=offsets[1:])
  flat = map(_hashes.__getitem__, itertools.chain.from_iterable(lists))
  return np.fromiter(flat, np.uint64, int(offsets[-1])), offsets


def ngrams(hashes: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
  """(a hash of each n consecutive tokens, which list it is of). Arguments: of `token_hashes`."""
  count = max(0, len(hashes) - n + 1)
  found = np.zeros(count, np.uint64)
  for k in range(n):
    found = found * _MULTIPLIER + hashes[k : k + count]
  found ^= found >> np.uint64(32)
  owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  inside = owner[:count] == owner[n - 1 :] if count else np.zeros(0, bool)
  return found[inside], owner[:count][inside]
