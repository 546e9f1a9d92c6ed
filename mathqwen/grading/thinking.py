r"""Takes the thinking of a model apart from its answer. Standard library only.

apart('<think>Maybe \\boxed{20}?</think>It is 18.')    Reading('It is 18.', cut_off=False, tagged=False)
apart('<think>Maybe \\boxed{20}?')                     Reading('', cut_off=True, tagged=False)
apart('<think>9*2</think><answer>18</answer>')         Reading('18', cut_off=False, tagged=True)
"""

import dataclasses
import re

from mathqwen.text.thinking_tags import PAIRS

_either = lambda tags: '|'.join(map(re.escape, tags))
_TAG = re.compile(f'(?P<open>{_either(PAIRS)})|{_either(PAIRS.values())}', re.IGNORECASE)
_ANSWER_OPEN = re.compile(r'<answer>|<\|begin_of_solution\|>', re.IGNORECASE)
_ANSWER_CLOSE = re.compile(r'</answer>|<\|end_of_solution\|>', re.IGNORECASE)
_END_OF_TEXT = re.compile(r'(?:\s|<\|(?:im_end|endoftext|eot_id|end)\|>|</s>)+\Z')


@dataclasses.dataclass(frozen=True)
class Reading:
  """The answer's part of a response."""

  text: str  # all that stands outside of the thinking; of the last <answer>, its content
  cut_off: bool  # the response ends inside the thinking
  tagged: bool  # the text is the content of an <answer>


def apart(response: str) -> Reading:
  """The response without its thinking. A closing tag without an opening one, as prompts that open it leave, counts."""
  outside: list[str] = []
  depth = start = 0
  for tag in _TAG.finditer(response):
    if tag['open']:
      if not depth:
        outside.append(response[start : tag.start()])
      depth = 1
    else:
      if not depth:
        outside.clear()  # it was opened by the prompt
      depth, start = 0, tag.end()
  if depth:
    return Reading('', cut_off=True, tagged=False)
  outside.append(response[start:])
  text = ''.join(outside)

  opened = None
  for opened in _ANSWER_OPEN.finditer(text):  # noqa: B007 - only the last one is wanted
    pass
  if opened:
    content = _ANSWER_CLOSE.split(text[opened.end() :], maxsplit=1)[0].strip()
    if content:
      return Reading(content, cut_off=False, tagged=True)
  text = _ANSWER_OPEN.sub(' ', _ANSWER_CLOSE.sub(' ', text)) if '<' in text else text
  tail = text[-200:]
  return Reading(text[:-200] + _END_OF_TEXT.sub('', tail), cut_off=False, tagged=False)
