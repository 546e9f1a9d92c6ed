r"""Finds the answer inside a response: text in, the answer's text or None out. Standard library only.

    number('... so 3 + 4 = 7 apples.')                '7'
    number('She pays $18.\n#### 18')                  '18'
    boxed('Thus \\boxed{\\frac{1}{2}}.')              '\\frac{1}{2}'
    final_answer('Final Answer: The final answer is $x+1$. I hope it is correct.')   'x+1'

A response can be a megabyte of repetition, so each function reads it once: the patterns below are bounded or possessive
and cannot backtrack over a long text.
"""

import re

from mathqwen.grading import chinese, context, units, values
from mathqwen.grading.cleaning import clean, words

_HASHES = re.compile(r'####(?: |(?=[-+$€£¥\d]))')
_BOX = re.compile(
  r'\\(?:boxed|fbox)\s{0,3}'  # \boxed or \fbox, then
  r'(?:\{|([^\s{}$.,\\]{1,64}))'  # ... the brace that opens its content, or a bare content: \boxed 2
  r'|\\[{}]'  # an escaped brace, \{ or \}: matched first, so that it does not count as one of the next line
  r'|[{}]'  # any other brace, to find the one that closes the box
)
_ANSWER_IS = re.compile(
  r"(?P<denied>\banswer\s{1,3}(?:isn['’]t|(?:can|could|should|wo|would)(?:not|n['’]t|['’]t|\s{1,3}not)\s{1,3}be))"
  r'|(?:the\s{1,3})?(?:final\s{1,3})?(?:answer\s{1,3}(?:is|(?:would|should|must|will)\s{1,3}be)'  # The answer is 5
  r'|(?:answers|solutions|roots)\s{1,3}are)(?:\s{0,3}[:：])?'  # the solutions are: 5 and 6
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
  r'(?<!\b(?:Rs|Mr|Ms|Dr|St|vs))(?<!\bMrs)(?<!\bProf)\.\s'  # a period and a blank: 3.5 does not end the sentence
  r'|\.?$'  # the end of the text, with or without a period
  r'|[。．；;]'  # Chinese periods (。 and ．) and semicolons
)
_EMPTY = re.compile(
  r'(?:\\text\s?\{)?\s*+(?:your |the )?(?:final )?(?:answer|ans)(?: here)?\s*+\}?'  # a prompt's placeholder
  r'|(?:\s|\.\.\.|…|[?_~]|\\(?:[lc]?dots|quad|qquad|[ ,;:!_])(?![a-zA-Z])|\\(?:text|phantom|mathrm)\{[\s_.…?]*+\})*+',
  re.IGNORECASE,
)
_NOT = re.compile(r"[\s:：*$]*+(?:not\b|n['’]t\b|never\b|不是|不为|并非)", re.IGNORECASE)  # the answer is not 45
_BUT = re.compile(
  r'[,;，；.。]?\s?(?:\bbut(?:\s+rather)?\b|\brather\b|\bit(?:\W?s|\s+is|\s+equals)\b|而是|应(?:该|当)?(?:是|为))\s?[:：]?\s?',
  re.IGNORECASE,
)  # not 45 but 54
_AND_NOT = re.compile(
  r'\s?(?:[,;，；(（]\s?(?:(?:and|but)\s+)?(?:not\b|而?不是|并非)|(?:and|but)\s+not\b|rather\s+than\b)', re.IGNORECASE
)  # 54, not 45
_ASIDE = re.compile(r'(?<=\S)\s+[(（](?=[^()（）]*[^\W\d_]{3})[\s\S]*$')  # 7 (since 3+4=7)
_BECAUSE = re.compile(r'(?<=\S),?\s+(?:because|since)\b', re.IGNORECASE)  # 18 because x=18 and y=2
_AS_FOLLOWS = re.compile(r'^as\s+follows\b[\s:：*_]*', re.IGNORECASE)
_JOINED = r'(?:[\s$]|\\[()\[\]])*(?:[,;、]|and\b|or\b|和|或|\\text\{\s?(?:and|or)\s?\})(?:\s*(?:and|or)\b)?'
_NEXT_FORMULA = re.compile(rf'{_JOINED}\s*(?=\$|\\[(\[])')
_POWER_OF_LETTER = re.compile(r'[^\W\d_]\^\{?$')
_FILLER = re.compile(
  r'^(?:(?:therefore|thus|hence|then|simply|just|clearly|indeed|exactly|equal to|found to be|given by),?\s{1,3})+',
  re.IGNORECASE,
)
_SIGN_APART = re.compile(r'^\s*([-+])\s+(?=[\d.\\])')  # - 7 at the start of an answer
_EQUALS = re.compile(r'(?<![<>!\\])=|≈|\\approx(?![a-zA-Z])')
_OPENS = ('\\[', '$$', '\\(', '$')
_STATED = 4000  # characters behind `The answer is` that are read
_MINERVA_CLOSING = 'I hope it is correct'  # the few-shot examples of Minerva end with this sentence


def hashes(text: str) -> str | None:
  """The rest of the line after the last `#### ` or `####18`, the mark of GSM8K's own solutions."""
  match = _last_match(_HASHES, text)
  if match is None:
    return None
  return text[match.end() :].split('\n', 1)[0].strip() or None


def boxed(text: str) -> str | None:
  r"""The content of the last `\boxed{...}` that is closed, or of a `\boxed 2`. Escaped braces do not count.

  "Last" is the one that opens last: of `\boxed{a \boxed{b} c}` it is `b`. A box with nothing in it (`\boxed{}`,
  `\boxed{...}`), as prompts and reminders have it, does not count beside others; alone it gives ''.
  """
  found = _spans(text)
  filled = [span for span in found if not _EMPTY.fullmatch(text[slice(*span)].strip())]
  if not filled:
    return '' if found else None
  return _SIGN_APART.sub(r'\1', text[slice(*filled[-1])].strip())


def boxes(text: str) -> list[str]:
  r"""The contents of all boxes that are closed, in the order in which they open."""
  return [text[slice(*span)].strip() for span in _spans(text)]


def _spans(text: str) -> list[tuple[int, int]]:
  """Where the contents of the boxes start and end."""
  found: list[tuple[int, int]] = []
  open_braces = []  # for each open brace, where the content of its box starts; -1 for a brace that opens no box
  for match in _BOX.finditer(text):
    token = match.group()
    if token.startswith(('\\boxed', '\\fbox')):
      if match.group(1) is None:
        open_braces.append(match.end())
      else:
        found.append(match.span(1))
    elif token == '{':
      open_braces.append(-1)
    elif token == '}' and open_braces:
      box_start = open_braces.pop()
      if box_start >= 0:
        found.append((box_start, match.start()))
  return sorted(found)


def answer_is(text: str) -> str | None:
  """What stands behind the last `The answer is` (`Answer:`, `答案是`): the rest of its line, or the next line.

  Where the last one says what the answer is not, the one before counts; of `not 45 but 54` and of `54, not 45`, 54.
  """
  denied = None
  for match in reversed(list(_ANSWER_IS.finditer(text))):
    lines = _AS_FOLLOWS.sub('', text[match.end() : match.end() + _STATED].lstrip(' \t*_:：')).split('\n')
    first = next((index for index, line in enumerate(lines[:4]) if line.strip(' \t*_#-')), 0)
    stated = lines[first].strip()
    if stated in _OPENS:  # a formula of several lines
      stated = ' '.join(lines[first : first + 8])
    stated = _FILLER.sub('', stated)
    if stated and (match['denied'] or (negation := _NOT.match(stated))):
      rest = stated if match['denied'] else stated[negation.end() :]
      if but := _BUT.search(rest):
        return rest[but.end() :]
      denied = denied or f'not {rest.strip()}'
    elif stated:
      affirmed = stated[: found.start()] if (found := _AND_NOT.search(stated)) else stated
      return _SIGN_APART.sub(r'\1', _BECAUSE.split(affirmed, maxsplit=1)[0])
  return denied or None


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
  text = words(clean(text))
  marked = hashes(text)
  # The line after `#### ` must begin with a number: `#### Step 2` is a Markdown heading, not an answer.
  if marked and values.starts(marked):
    opening = values.opening(marked)
    return context.whole(opening, values.matches(opening)[0])

  for place, stated in (('box', boxed(text)), ('sentence', answer_is(text))):
    if not stated:
      continue
    if place == 'box' and (quantity := units.quantity(stated)):
      return quantity.number
    stated = _with_digits(stated)
    *_, result = _EQUALS.split(stated)
    numbers = _numbers(result)
    if not numbers:
      continue
    if place == 'box' or result is not stated and result != stated or (leading_counts and values.starts(result)):
      return context.one(result, numbers)
    sentence = result[: _SENTENCE_END.search(result).start()]
    in_sentence = _numbers(sentence)
    return context.whole(sentence, in_sentence[-1]) if in_sentence else context.whole(result, numbers[0])
  text = _with_digits(text)
  last = next(iter(_numbers(text)[-1:]), None)
  return None if last is None else context.whole(text, last)


def _numbers(text: str) -> list[re.Match]:
  """The numbers of a text that is clean, without the powers of units: of `12 cm^{2}`, 12."""
  return [
    found
    for found in values.matches(text)
    if not _POWER_OF_LETTER.search(text[max(0, found.start() - 3) : found.start()])
  ]


def _with_digits(text: str) -> str:
  """The text with digits for Chinese numerals, which may be parts of words, where it has no digits."""
  if text.isascii() or any(sign in '0123456789' for sign in text):
    return text
  return chinese.digits(text)


def last_whole_number(text: str) -> str | None:
  """The last number of the text; where it is a part of an expression (`9!`, `2^{36}`), that expression."""
  text = _with_digits(words(clean(text)))
  last = values.last_match(text)
  return None if last is None else context.whole(text, last)


def last_math(text: str) -> str | None:
  r"""The content of the last `$...$`, `\(...\)` or `\[...\]`."""
  match = _last_match(_MATH, text)
  return None if match is None else _formula(match)


def final_answer(text: str) -> str | None:
  r"""An answer that may be any mathematics: the last `\boxed{}`, else the stated answer, else None.

  Of a stated answer (`The answer is ...`, `#### ...`), its first formula counts, with those that `and`, `or` or a
  comma joins to it, else its first sentence.
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
    joined = _formula(formula)
    while (
      len(joined) < _STATED
      and (between := _NEXT_FORMULA.match(stated, formula.end()))
      and (formula := _MATH.match(stated, between.end()))
    ):
      joined += (' \\text{ or } ' if re.search('or|或', between.group()) else ', ') + _formula(formula)
    return joined
  sentence = stated[: _SENTENCE_END.search(stated).start()]
  return _ASIDE.sub('', sentence).strip(' $*') or None


def _last_match(pattern: re.Pattern, text: str) -> re.Match | None:
  match = None
  for match in pattern.finditer(text):  # noqa: B007 - only the last one is wanted
    pass
  return match


def _formula(match: re.Match) -> str:
  """The one group of `_MATH` that matched."""
  return next(group for group in match.groups() if group is not None).strip()
