r"""The text of a field of a record, and the gold answer that a solution ends with.

'Ten more than 2.\n#### 12'                  gold answer '12'
'so $x = \boxed{\frac{1}{2}}$.'               gold answer '\frac{1}{2}'
"""

import re
from collections.abc import Mapping

from mathqwen.data.malformed import Malformed
from mathqwen.data.written_lists import list_in

_NO_ANSWER = ('n/a', 'none', 'nan', 'null', 'proof', 'notfound')  # what stands in place of a gold answer
_EMPTY = ('', '[]', '{}')


def text_field(record: Mapping, field: str) -> str:
  """The text of a field, stripped; a number is text, and so is a list of one text. Malformed: when there is none."""
  value = single(record.get(field))
  if value is None:
    raise Malformed(f'no field "{field}"')
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str):
    raise Malformed(f'field "{field}" is no text but {kind_of(value)}')
  if not value.strip():
    raise Malformed(f'field "{field}" is empty')
  return value.strip()


def kind_of(value: object) -> str:
  """What a JSON value is, in words, for messages: 'a list of 2'."""
  if isinstance(value, bool):
    return str(value).lower()
  return f'a list of {len(value)}' if isinstance(value, list) else 'an object'


def is_missing(value: object) -> bool:
  """Whether a field says nothing: null, or an empty text, which is how CSV writes null."""
  value = single(value)
  return value is None or (isinstance(value, str) and not value.strip())


def is_empty(value: object) -> bool:
  """Whether a field that may hold a list, an object or a flag says nothing: also [] and {}, as texts too, and false."""
  if isinstance(value, str):
    return value.strip() in _EMPTY
  if isinstance(value, dict):
    return all(map(is_missing, value.values()))
  return value is None or value is False or value == [] or value == [None]


def single(value: object) -> object:
  """The element of a list of one, as OlympiadBench writes solutions and answers; any other value as it is."""
  return value[0] if isinstance(value, list) and len(value) == 1 else value


def own_gold(value: object) -> str:
  """The gold answer that a field beside a solution holds, several with commas; '' where it says that there is none.

  Malformed: when it is no text.
  """
  if isinstance(value, str) and value.startswith("['"):
    found = list_in(value)
    if found and str(found) == value and all(isinstance(answer, str) for answer in found):  # as Python prints it
      value = found
  answers = value if isinstance(value, list | tuple) else [value]
  if any(isinstance(answer, list | dict) for answer in answers):
    raise Malformed(f'the gold answer is no text but {kind_of(value)}: name another column with --map answer=COLUMN')
  text = ', '.join(str(answer).strip() for answer in answers)
  return '' if text.lower() in _NO_ANSWER else text


def is_worked(answer: str) -> bool:
  """Whether a gold answer is a whole solution, of several lines, which ends with it."""
  return '\n' in answer and gold_of(answer) not in ('', answer)


def last_boxed(solution: str) -> str:
  r"""Content of the last \boxed or \fbox: '\boxed{\frac{1}{2}}' -> '\frac{1}{2}', '\boxed 2' -> '2'; no box -> ''."""
  start = max(solution.rfind('\\boxed'), solution.rfind('\\fbox'))
  if start < 0:
    return ''
  rest = solution[start:].split('box', 1)[1].removeprefix('ed').lstrip()
  if not rest.startswith('{'):
    return re.match(r'[^\s$.]*', rest).group()
  depth = 0
  for at, char in enumerate(rest):
    if char in '{}' and rest[at - 1 : at] != '\\':
      depth += 1 if char == '{' else -1
    if depth == 0:
      return rest[1:at].strip()
  return ''


# A comma of '1,250', not that of '(1,2)'.
_THOUSANDS = re.compile(r'(?<=\d),(?=\d{3}(?!\d))')
_SAID = re.compile(r'The answer is: ?(.+?)\.?')
# What a last line says in other words: no more than a number or a formula and its unit.
_SAID_SHORTLY = re.compile(
  r"""
  (?:^|[.!]\ )
  (?:(?:So,?\ |Thus,?\ |Therefore,?\ |Hence,?\ )?[Tt]he\ (?:final\ )?answer\ is:?\ |Answer:\ ?|答案[是为]?[：:]?\ ?)
  (
    (?:\$[^$]+\$|\\\S+?|[^\s\u4e00-\u9fff，。]{0,40}\d[^\s\u4e00-\u9fff，。]{0,40}?)
    (?:\ [^\W\d_]+|[\u4e00-\u9fff]{1,2})?
  )[.。]?$
  """,
  re.VERBOSE,
)


def gold_of(text: str) -> str:
  """The answer that a solution ends with; '' where none is found.

  It is what follows '####' in the last line, or in the one before 'The answer is: ...', as MetaMathQA writes it; or the
  content of the last box, or what the last line says ('The answer is: x', 'So the answer is 12 apples.', '答案：4'), or
  the whole text if that is a single word. A '####' that stands elsewhere begins a heading.
  """
  marked, _, after = text.rpartition('####')[2].strip().partition('\n')
  if '####' in text and (not after.strip() or _SAID.fullmatch(after.strip())):
    return _THOUSANDS.sub('', marked.strip())
  if boxed := last_boxed(text):
    return boxed
  last = text.rstrip().rpartition('\n')[2]
  if said := _SAID.fullmatch(last) or _SAID_SHORTLY.search(last):
    return said[1].strip()
  return '' if is_prose(text) or re.search(r'\s', text) else text


def is_prose(text: str) -> bool:
  """Whether a line is a sentence, or has tags of HTML or of reasoning, and so no answer by itself."""
  words = re.findall(r'[^\W\d_]{2,}', re.sub(r'\\[A-Za-z]+', '', text))
  return bool(
    re.search(r'[，。；！？]|</\w+>|[\u4e00-\u9fff]{5}', text)
    or (len(words) > 5 and text.rstrip().endswith(('.', '!', '?')))
  )
