r"""The thinking in an answer that a model of ours generates: whether it is open, how it is closed, how long it is.

closing_tag('... <think>\n', 'Maybe 20?')    '</think>'
closing_tag('...', '<think>9*2</think>18')    None
"""

import bisect
import re
from collections.abc import Sequence

from mathqwen.chat.chat_format import text_with_specials
from mathqwen.text.thinking_tags import PAIRS
from mathqwen.text.tokenizer import Tokenizer

_TAG = re.compile('|'.join(map(re.escape, (*PAIRS, *PAIRS.values()))))
_TAIL = 32  # tokens at the end of a prompt, where its template may open the thinking
ASKED = '\n\nThe final answer is'  # goes between the closed thinking and the answer


def closing_tag(prompt: str, answer: str) -> str | None:
  """The tag that closes the thinking in which the answer so far ends; None when it does not end in one."""
  tags = _TAG.findall(answer)
  if tags:
    return PAIRS.get(tags[-1])
  opened = [tag for tag in PAIRS if prompt.rstrip().endswith(tag)]
  return PAIRS[opened[0]] if opened else None


def has_tag(text: str) -> bool:
  """Whether a text has a mark of thinking."""
  return _TAG.search(text) is not None


def close(prompt_ids: Sequence[int], ids: list[int], tokenizer: Tokenizer) -> list[int] | None:
  """The ids that close the thinking in which an answer ends and ask for the answer; None when it ends in none."""
  prompt = text_with_specials(prompt_ids[-_TAIL:], tokenizer)
  tag = closing_tag(prompt, text_with_specials(ids, tokenizer))
  return None if tag is None else closing_ids(tag, tokenizer)


def closing_ids(tag: str, tokenizer: Tokenizer) -> list[int]:
  """The ids of a closing tag on a line of its own, and of `ASKED`. The tag is a token where the tokenizer has one."""
  if tag in tokenizer.special:
    return [*tokenizer.encode('\n'), tokenizer.special[tag], *tokenizer.encode(ASKED)]
  return tokenizer.encode(f'\n{tag}{ASKED}')


def longest_close(tokenizer: Tokenizer) -> int:
  """The most ids that `close` gives."""
  return max(len(closing_ids(tag, tokenizer)) for tag in PAIRS.values())


def count(prompt_ids: Sequence[int], ids: list[int], tokenizer: Tokenizer) -> int:
  """How many tokens of an answer are thinking, up to the last closing tag with it; 0 when it has none."""
  text = text_with_specials(ids, tokenizer)
  if closing_tag(text_with_specials(prompt_ids[-_TAIL:], tokenizer), text) is not None:
    return len(ids)
  ends = [found.end() for found in _TAG.finditer(text)]
  if not ends:
    return 0
  return bisect.bisect_left(range(len(ids)), ends[-1], key=lambda n: len(text_with_specials(ids[:n], tokenizer)))
