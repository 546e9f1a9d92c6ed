r"""The text of a field of a record, and the gold answer that a solution ends with.

'Ten more than 2.\n#### 12'                  gold answer '12'
'so $x = \boxed{\frac{1}{2}}$.'               gold answer '\frac{1}{2}'
"""

import re
from collections.abc import Mapping

from mathqwen.data.formats import Malformed

NO_ANSWER = ()  # the answer of a record whose data set says that it has none, as a proof; no file holds a tuple


def text_field(record: Mapping, field: str) -> str:
  """The text of a field, stripped; a number is text, and so is a list of one text. Malformed: when there is none."""
  value = single(record.get(field))
  if value is None:
    raise Malformed(f'no field "{field}"')
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str) or not value.strip():
    raise Malformed(f'field "{field}" is empty or not text')
  return value.strip()


def is_missing(value: object) -> bool:
  """Whether a field says nothing: null, or an empty text, which is how CSV writes null."""
  value = single(value)
  return value is None or (isinstance(value, str) and not value.strip())


def single(value: object) -> object:
  """The element of a list of one, as OlympiadBench writes solutions and answers; any other value as it is."""
  return value[0] if isinstance(value, list) and len(value) == 1 else value


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


def gold_of(text: str) -> str:
  """The answer that a solution ends with; '' where none is found.

  It is what follows '####' in its line, or the content of the last box, or what follows 'The answer is:' at the end, as
  MetaMathQA writes it, or the whole text if that is a single word.
  """
  if '####' in text:
    return text.rsplit('####', 1)[1].strip().partition('\n')[0].strip().replace(',', '')
  if boxed := last_boxed(text):
    return boxed
  if said := re.search(r'(?:^|\n)The answer is: ?(.+?)\.?$', text):
    return said[1].strip()
  return '' if re.search(r'\s', text) else text
