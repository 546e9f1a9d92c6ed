"""The answer inside a response: text in, answer text or None out. Standard library only, one pass each.

number('... so 3 + 4 = 7 apples.')                  '7'
number('She pays $18.\\n#### 18')                    '18'
boxed('Thus \\\\boxed{\\\\frac{1}{2}}.')                 '\\\\frac{1}{2}'
final_answer('Final Answer: The final answer is $x+1$. I hope it is correct.')   'x+1'
"""

import re

from mathqwen.grading import values

_BOX = re.compile(r'\\(?:boxed|fbox)\s{0,3}(?:\{|([^\s{}$.,\\]{1,64}))|\\[{}\\]|[{}]')
_ANSWER_IS = re.compile(
  r'(?:the\s{1,3})?(?:final\s{1,3})?answer\s{1,3}is(?:\s{0,3}[:：])?|\bfinal\s{1,3}answer\s{0,3}[:：]|\banswer\s{0,3}[:：]|^A:|'
  r'答案?(?:是|为|[:：])',
  re.IGNORECASE | re.MULTILINE,
)
_MATH = re.compile(
  r'(?<!\\)\$\$?((?:[^$\\]|\\[\s\S])++)\$|\\\(((?:[^\\]|\\(?![()]))*+)\\\)|\\\[((?:[^\\]|\\(?![\[\]]))*+)\\\]'
)
_SENTENCE_END = re.compile(r'\.\s|\.?$|[。．；;]')


def hashes(text: str) -> str | None:
  """What follows the last `#### ` on its line (GSM8K's own mark)."""
  _, mark, rest = text.rpartition('#### ')
  return rest.split('\n', 1)[0].strip() or None if mark else None


def boxed(text: str) -> str | None:
  r"""The content of the last `\boxed{...}` that closes, or of a `\boxed 2`; escaped braces do not count."""
  start, found = -1, None
  open_braces = []  # position of the content where a box opened the brace, else -1
  for match in _BOX.finditer(text):
    token = match.group()
    if token.startswith(('\\boxed', '\\fbox')):
      if match.group(1) is None:
        open_braces.append(match.end())
      elif match.start() > start:
        start, found = match.start(), (match.start(1), match.end(1))
    elif token == '{':
      open_braces.append(-1)
    elif token == '}' and open_braces:
      opened = open_braces.pop()
      if opened > start:
        start, found = opened, (opened, match.start())
  return text[found[0] : found[1]].strip() if found else None


def answer_is(text: str) -> str | None:
  """What follows the last `The answer is` (`Answer:`, `A:`, `答案是`, `答：`) up to the end of its line."""
  match = None
  for match in _ANSWER_IS.finditer(text):  # noqa: B007 - the last one is wanted
    pass
  return text[match.end() :].split('\n', 1)[0].strip() or None if match else None


def number(text: str) -> str | None:
  r"""The number given as the answer: after `#### `, in `\boxed{}`, after `The answer is`, else the last one.

  A segment with `=` counts from its last `=`: `The answer is 3 + 4 = 7 apples` gives 7. A sentence that does not begin
  with a number gives its last: `Answer: In 3 days she earns $18.`
  """
  return _number(text, first=True)


def chinese_number(text: str) -> str | None:
  """As `number`, but the last of the answer's sentence in any case: `答：3天后还剩18吨。` gives 18."""
  return _number(text, first=False)


def _number(text: str, first: bool) -> str | None:
  segment = hashes(text)
  if segment and (marked := values.starts(segment)):  # a Markdown heading, `#### Step 2`, is no answer
    return marked
  for segment in (boxed(text), answer_is(text)):
    if segment:
      _, equals, end = segment.rpartition('=')
      numbers = values.find(end)
      if numbers and (equals or (first and values.starts(end))):
        return numbers[0]
      if numbers:
        sentence = values.find(end[: _SENTENCE_END.search(end).start()])
        return (sentence or numbers[:1])[-1]
  return values.last(text)


def last_number(text: str) -> str | None:
  """The last number of the text, whatever is said around it."""
  return values.last(text)


def last_math(text: str) -> str | None:
  r"""The last `$...$`, `\(...\)` or `\[...\]`."""
  match = None
  for match in _MATH.finditer(text):  # noqa: B007 - the last one is wanted
    pass
  return next(group for group in match.groups() if group is not None).strip() if match else None


def final_answer(text: str) -> str | None:
  r"""An answer that may be any mathematics: the last `\boxed{}`, else what is said to be the answer, else None."""
  box = boxed(text)
  if box is not None:
    return box
  segment = answer_is(text) or hashes(text)
  if segment is None:
    return None
  segment = segment.partition('I hope it is correct')[0].strip()
  inside = _MATH.search(segment)
  if inside:
    return next(group for group in inside.groups() if group is not None).strip()
  return segment[: _SENTENCE_END.search(segment).start()].strip(' $*') or None
