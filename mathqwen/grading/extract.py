r"""Finds the answer inside a response: text in, the answer's text or None out. Standard library only.

    number('... so 3 + 4 = 7 apples.')                '7'
    number('She pays $18.\n#### 18')                  '18'
    boxed('Thus \\boxed{\\frac{1}{2}}.')              '\\frac{1}{2}'
    final_answer('Final Answer: The final answer is $x+1$. I hope it is correct.')   'x+1'

A response can be a megabyte of repetition, so each function reads it once: the patterns below are bounded or possessive
and cannot backtrack over a long text.
"""

import re

from mathqwen.grading import values

_BOX = re.compile(
  r'\\(?:boxed|fbox)\s{0,3}'  # \boxed or \fbox, then
  r'(?:\{|([^\s{}$.,\\]{1,64}))'  # ... the brace that opens its content, or a bare content: \boxed 2
  r'|\\[{}]'  # an escaped brace, \{ or \}: matched first, so that it does not count as one of the next line
  r'|[{}]'  # any other brace, to find the one that closes the box
)
_ANSWER_IS = re.compile(
  r'(?:the\s{1,3})?(?:final\s{1,3})?answer\s{1,3}is(?:\s{0,3}[:：])?'  # The answer is 5; the final answer is: 5
  r'|\bfinal\s{1,3}answer\s{0,3}[:：]'  # Final Answer: 5
  r'|\banswer\s{0,3}[:：]'  # Answer: 5
  r'|^A:'  # A: 5, at the start of a line
  r'|答案?(?:是|为|[:：])',  # 答：5; 答案是5; 答案为5
  re.IGNORECASE | re.MULTILINE,
)
_MATH = re.compile(
  r'(?<!\\)\$\$?((?:[^$\\]|\\[\s\S])++)\$'  # $x$ and $$x$$, where \$ inside or in front is a dollar sign
  r'|\\\(((?:[^\\]|\\(?![()]))*+)\\\)'  # \(x\)
  r'|\\\[((?:[^\\]|\\(?![\[\]]))*+)\\\]'  # \[x\]
)
_SENTENCE_END = re.compile(
  r'\.\s'  # a period and a blank: the one in 3.5 does not end the sentence
  r'|\.?$'  # the end of the text, with or without a period
  r'|[。．；;]'  # Chinese periods (。 and ．) and semicolons
)
_MINERVA_CLOSING = 'I hope it is correct'  # the few-shot examples of Minerva end with this sentence


def hashes(text: str) -> str | None:
  """The rest of the line after the last `#### `, the mark of GSM8K's own solutions."""
  _, mark, rest = text.rpartition('#### ')
  if not mark:
    return None
  return rest.split('\n', 1)[0].strip() or None


def boxed(text: str) -> str | None:
  r"""The content of the last `\boxed{...}` that is closed, or of a `\boxed 2`. Escaped braces do not count.

  "Last" is the one that opens last: of `\boxed{a \boxed{b} c}` it is `b`. An empty box gives ''.
  """
  last_start, content = -1, None
  open_braces = []  # for each open brace, where the content of its box starts; -1 for a brace that opens no box
  for match in _BOX.finditer(text):
    token = match.group()
    if token.startswith(('\\boxed', '\\fbox')):
      if match.group(1) is None:
        open_braces.append(match.end())
      else:
        last_start = match.start()
        content = match.group(1)
    elif token == '{':
      open_braces.append(-1)
    elif token == '}' and open_braces:
      box_start = open_braces.pop()
      if box_start > last_start:
        last_start = box_start
        content = text[box_start : match.start()]
  return None if content is None else content.strip()


def answer_is(text: str) -> str | None:
  """The rest of the line after the last `The answer is` (or `Answer:`, `A:`, `答案是`, `答：`)."""
  match = _last_match(_ANSWER_IS, text)
  if match is None:
    return None
  return text[match.end() :].split('\n', 1)[0].strip() or None


def number(text: str) -> str | None:
  r"""The number given as the answer: after `#### `, in `\boxed{}`, after `The answer is`, else the last of the text.

  Where the stated answer contains `=`, what follows the last `=` counts: `The answer is 3 + 4 = 7 apples` gives 7.
  A stated answer that does not begin with a number gives the last number of its sentence:
  `Answer: In 3 days she earns $18.` gives 18.
  """
  return _stated_number(text, leading_counts=True)


def chinese_number(text: str) -> str | None:
  """As `number`, but always the last number of the answer's sentence: `答：3天后还剩18吨。` gives 18."""
  return _stated_number(text, leading_counts=False)


def _stated_number(text: str, leading_counts: bool) -> str | None:
  """With `leading_counts`, a number that the stated answer begins with is the answer."""
  marked = hashes(text)
  # The line after `#### ` must begin with a number: `#### Step 2` is a Markdown heading, not an answer.
  if marked and (answer := values.starts(marked)):
    return answer

  for stated in (boxed(text), answer_is(text)):
    if not stated:
      continue
    _, equals, result = stated.rpartition('=')
    numbers = values.find(result)
    if not numbers:
      continue
    if equals or (leading_counts and values.starts(result)):
      return numbers[0]
    in_sentence = values.find(result[: _SENTENCE_END.search(result).start()])
    return in_sentence[-1] if in_sentence else numbers[0]
  return values.last(text)


def last_number(text: str) -> str | None:
  """The last number of the text, whatever stands around it."""
  return values.last(text)


def last_math(text: str) -> str | None:
  r"""The content of the last `$...$`, `\(...\)` or `\[...\]`."""
  match = _last_match(_MATH, text)
  return None if match is None else _formula(match)


def final_answer(text: str) -> str | None:
  r"""An answer that may be any mathematics: the last `\boxed{}`, else the stated answer, else None.

  Of a stated answer (`The answer is ...`, `#### ...`), its first formula counts, else its first sentence.
  """
  box = boxed(text)
  if box is not None:
    return box
  stated = answer_is(text) or hashes(text)
  if stated is None:
    return None
  stated = stated.partition(_MINERVA_CLOSING)[0].strip()
  formula = _MATH.search(stated)
  if formula:
    return _formula(formula)
  return stated[: _SENTENCE_END.search(stated).start()].strip(' $*') or None


def _last_match(pattern: re.Pattern, text: str) -> re.Match | None:
  match = None
  for match in pattern.finditer(text):  # noqa: B007 - only the last one is wanted
    pass
  return match


def _formula(match: re.Match) -> str:
  """The one group of `_MATH` that matched."""
  return next(group for group in match.groups() if group is not None).strip()
