r"""The forms in which texts are compared.

unwrapped 'Question: 5! = \nAnswer:' ->  '5! ='              without the usual labels and instructions around a problem
plain     '$\dfrac{1}{2} + 2,125$.'  ->  'frac12+2125'     what makes two examples duplicates
bare      'tan 22.5°!'               ->  'tan225°'         equal but for spacing, braces and punctuation
formulas  'frac12+2125'              ->  12, +, 2125
words     'Tom has 3 cats.'          ->  tom, has, 3, cats; each character of a text with Chinese in it
template  'It costs 3.50 dollars.'   ->  it, costs, 0, 0, dollars

The last three are made as hashes, of a batch of texts at once.
"""

import functools
import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

HAN = re.compile('[\u3400-\u9fff\uf900-\ufaff]')
_NUMBER = re.compile(r'\d+(?:\.\d+)?')
# Spellings of LaTeX that look the same.
_LATEX = re.compile(r'\\(?:(left|right|displaystyle|quad|[,;:! ])|([dt])(?=frac)|(times|cdot)|(div))')
_OPERATORS = str.maketrans({'×': '*', '·': '*', '÷': '/', '−': '-', '\u2013': '-'})
# ASCII characters that never count, as a table for `translate`. It lists all of ASCII: a lookup that fails is slow.
_NEVER = [None if chr(code) in ' \t\n\r\f\v$(){}[]?;:"\'`_\\#&~@|' else code for code in range(128)]
_NEVER_OTHER = re.compile(r'[^\w.,+*/^=<>%!°-]')
# These count: a point or comma between digits (not of thousands), an exclamation mark behind a digit, and a minus
# unless it joins two words. All others match.
_SOMETIMES = re.compile(
  r'[.,!-](?:(?<=[.,])(?:(?!\d)|(?<!\d[.,]))|(?<=,)(?=\d{3}(?!\d))|(?<=!)(?<!\d!)|(?<=[^\W\d]{2}-)(?=[^\W\d]{2}))'
)
# What prompts usually write around a problem. First labels, at the start and the end of a line.
_LABELS = re.compile(
  r"""
  ^[ \t#*>]*(?:question|problem|instruction|q|问题|题目|问)[ \t]*\d*[ \t]*[:：][ \t*]*
  | ^[ \t#*]*(?:a|答)[ \t]*[:：][ \t*]*$
  | (?:^|(?<=[\s.?!=$。．？！]))[ \t#*]*(?:answer|solution|response|答案|解答|解)[ \t]*[:：][ \t*]*$
  """,
  re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
# Then requests for steps or a box, up to the end of the sentence. They must not reach back into a formula.
_REQUESTS = re.compile(
  r"""
  \b(?:please|let['’]?s|let\ us|think|reason|solve|work|answer|explain|show|put|write|give|present|enclose)\b
    [^.?!:=$\n]{0,80}?
    (?:step[ -]by[ -]step|(?:your|the)\ (?:final\ )?answer\ (?:within|inside)|\\boxed\s*\{\s*\})
    [^.?!:\n]*[.?!:]?
  | (?:请|让我们|我们)[^，。．？！；：,.?!:=\n]{0,12}(?:逐步|分步|一步一步|一步步)[^。：:\n]*[。：:]?
  | (?:请|并)?[将把](?:你的)?(?:最终|最后的?)?答案(?:放|写|填|置)[^。：:\n]*[。：:]?
  """,
  re.VERBOSE | re.IGNORECASE,
)
_IN_REQUESTS = ('by step', 'by-step', 'answer within', 'answer inside', 'boxed', '步', '答案')  # each has one of these
# Odd numbers have an inverse modulo 2**64, so that a product loses nothing.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xD1342543DE82EF95)


def has_han(text: str) -> bool:
  """Whether there is a Chinese character in a text."""
  return not text.isascii() and HAN.search(text) is not None


def unwrapped(text: str) -> str:
  """A problem without the labels and instructions that prompts usually write around it, stripped.

  A text that is nothing but these stays as it is.
  """
  problem = text
  if ':' in text or '：' in text:
    problem = _LABELS.sub('', problem)
  lower = text.lower()
  if any(words in lower for words in _IN_REQUESTS):
    problem = '\n'.join(map(_without_requests, problem.split('\n')))
  return problem.strip() or text.strip()


def _without_requests(line: str) -> str:
  lower = line.lower()
  return _REQUESTS.sub('', line) if any(words in lower for words in _IN_REQUESTS) else line


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
  return plain_text.replace('.', '').replace(',', '').replace('!', '')


def hash64(text: str) -> int:
  """A hash that is the same in every process."""
  return int.from_bytes(hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest(), 'little')


# --- many texts at once, as hashes ---

_LETTER, _DIGIT, _OTHER, _OPERATOR = 1, 2, 4, 8  # kinds of characters; _OTHER: '²', '½'
_OF_WORDS = _LETTER | _DIGIT | _OTHER


def _every_character() -> str:
  return np.arange(sys.maxunicode + 1, dtype='<u4').tobytes().decode('utf-32-le', 'surrogatepass')


@functools.cache
def _kinds() -> np.ndarray:
  """The kind of each code point, uint8."""
  kinds = np.zeros(sys.maxunicode + 1, np.uint8)
  for match in re.finditer(r'[^\W_]', _every_character()):
    char = match.group()
    kinds[ord(char)] = _LETTER if char.isalpha() else _DIGIT if char.isdecimal() else _OTHER
  kinds[[ord(char) for char in '+*/^<>=%!-']] = _OPERATOR
  return kinds


@functools.cache
def _is_han() -> np.ndarray:
  """Whether each code point is a Chinese character, bool."""
  is_han = np.zeros(sys.maxunicode + 1, bool)
  is_han[[match.start() for match in HAN.finditer(_every_character())]] = True
  return is_han


def _codes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """(the code points of all texts, a line end after each; where each text begins, and the end of the last)."""
  codes = np.frombuffer('\n'.join([*texts, '']).encode('utf-32-le', 'surrogatepass'), '<u4')
  return codes, np.cumsum([0, *(len(text) + 1 for text in texts)])


@functools.cache
def _values() -> np.ndarray:
  """A hash of each code point."""
  return _mixed(np.arange(sys.maxunicode + 1))


def _mixed(values: np.ndarray) -> np.ndarray:
  """Hashes of numbers: different ones stay different."""
  values = (values.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
  values ^= values >> np.uint64(32)
  values *= _MULTIPLIER
  return values


def hash_slices(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """A hash of each of values[starts[0]:starts[1]], values[starts[1]:starts[2]], ..., in which the order counts.

  A polynomial hash: the sum of values times powers of _FACTOR, as a difference of prefix sums, divided by the power of
  the first value, so that it does not depend on where the slice starts.
  """
  powers, back = _powers(2 ** len(values).bit_length())
  sums = np.zeros(len(values) + 1, np.uint64)
  np.cumsum(values * powers[: len(values)], out=sums[1:])
  return _mixed((sums[starts[1:]] - sums[starts[:-1]]) * back[starts[:-1]])


@functools.lru_cache(maxsize=4)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
  """(_FACTOR to the power of 0, 1, ..., count - 1; their inverses), modulo 2**64."""
  factors = np.ones((2, count), np.uint64)
  factors[0, 1:] = _FACTOR
  factors[1, 1:] = pow(int(_FACTOR), -1, 2**64)
  return tuple(np.cumprod(factors, axis=1))


def formula_hashes(plain_texts: Sequence[str]) -> np.ndarray:
  """A hash of each text that `plain` gave, of its numbers and operators, in order: uint64."""
  codes, starts = _codes(plain_texts)
  kinds = _kinds()[codes]
  is_digit = kinds == _DIGIT
  in_number = is_digit.copy()
  in_number[1:-1] |= (codes[1:-1] == ord('.')) & is_digit[:-2] & is_digit[2:]
  begins = in_number.copy()
  begins[1:] &= ~in_number[:-1]
  kept = in_number | (kinds == _OPERATOR)
  values = _values()[codes[kept]]
  values[begins[kept]] += _FACTOR  # '12' is not '1', '2'
  return hash_slices(values, _before(kept)[starts])


class Words:
  """The words of texts, in lower case; of a text with Chinese characters its letters and digits, one by one.

  split_han: False takes the words of such a text too, those between its Chinese characters.
  hashes: of all words of all texts, end to end, uint64. offsets: of the texts in them, one more than there are.
  """

  def __init__(self, texts: Sequence[str], split_han: bool = True):
    self._texts = texts
    self.has_han = np.array([has_han(text) for text in texts], bool)
    codes, starts = _codes([text.lower() for text in texts])
    kinds = _kinds()[codes]
    in_word = (kinds & _OF_WORDS) != 0
    if not split_han:
      in_word &= ~_is_han()[codes]
    begins = in_word.copy()
    begins[1:] &= ~in_word[:-1]
    if split_han:
      begins |= in_word & np.repeat(self.has_han, np.diff(starts))
    self._codes = codes[in_word]  # of all words, end to end
    self._kinds = kinds[in_word]
    self._first = np.append(np.flatnonzero(begins[in_word]), len(self._codes))  # where each word begins in them
    self.hashes = hash_slices(_values()[self._codes], self._first)
    self.offsets = np.searchsorted(np.flatnonzero(begins), starts)

  def templates(self) -> list[str | int]:
    """What texts have in common that differ in their numbers alone; a hash of it, or a text.

    Words are compared, without what stands between them; in Chinese, or without a word of letters, all of the text.
    """
    is_digit = self._kinds == _DIGIT
    kept = ~is_digit  # and of consecutive digits the first
    kept[1:] |= ~is_digit[:-1]
    kept[self._first[:-1]] = True
    masked = np.where(is_digit, np.uint32(ord('0')), self._codes)[kept]
    words = hash_slices(_values()[masked], _before(kept)[self._first])
    hashes = hash_slices(words, self.offsets).tolist()

    letters = np.diff(_before(self._kinds == _LETTER)[self._first])  # of each word
    of_letters = np.diff(_before(letters == np.diff(self._first))[self.offsets])  # words of each text
    known = (of_letters > 0) & ~self.has_han
    return [
      value if is_known else _NUMBER.sub('0', text.strip())
      for text, value, is_known in zip(self._texts, hashes, known.tolist(), strict=True)
    ]


def _before(is_one: np.ndarray) -> np.ndarray:
  """How many of the values before each are true, and of all at the end."""
  return np.concatenate([[0], np.cumsum(is_one)])


def ngrams(hashes: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
  """(a hash of each n consecutive words, which text it is of). Arguments: of `Words`."""
  count = max(0, len(hashes) - n + 1)
  found = np.zeros(count, np.uint64)
  for k in range(n):
    found = found * _MULTIPLIER + hashes[k : k + count]
  found ^= found >> np.uint64(32)
  owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  inside = owner[:count] == owner[n - 1 :] if count else np.zeros(0, bool)
  return found[inside], owner[:count][inside]
