"""From examples to tokenised examples: `encode` of all at once, `tokenised` one after another."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.chat.conversations import Conversation
from mathqwen.data.encoded import Encoded, Masked, concatenate
from mathqwen.data.examples import Example
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer

CHUNK = 4096  # conversations tokenised in one call


def messages_of(example: Example, chat: ChatFormat) -> Conversation:
  """The conversation of an example: its own messages, or the system turn if there is one, question and solution."""
  if example.tools:
    return {'messages': list(example.messages), 'tools': list(example.tools)}
  if example.messages is not None:
    return list(example.messages)
  turns = [{'role': 'user', 'content': example.question}, {'role': 'assistant', 'content': example.solution}]
  return chat.conversation(turns)


def encode(
  examples: Iterable[Example], tokenizer: Tokenizer, seq_len: int, chat: ChatFormat | None = None
) -> tuple[Encoded, Report]:
  """(every usable example, tokenised; what was left out, by line). chat: None renders ChatML without a system turn.

  UserError: when no example is left.
  """
  report = Report()
  parts = []
  usable = tokenised(examples, tokenizer, seq_len, chat or ChatFormat(), report)
  while chunk := list(itertools.islice(usable, CHUNK)):
    parts.append(Encoded.from_rendered([masked for _, masked in chunk], [where for where, _ in chunk]))
  if not parts:
    raise UserError(f'no example to train on: {"; ".join(report.lines()) or "the source is empty"}')
  return concatenate(parts), report


def tokenised(
  examples: Iterable[Example], tokenizer: Tokenizer, seq_len: int, chat: ChatFormat, report: Report
) -> Iterator[tuple[str, Masked]]:
  """(where it is from, (ids, mask)) of every usable example; the others are added to `report`.

  Left out are conversations that cannot be rendered, exact duplicates, those without a loss token, and those that need
  more than `seq_len` positions. The last are never cut, because the end holds the answer.
  """
  seen: dict[bytes, str] = {}  # digest of the ids and the mask -> where they were first
  lost: dict[bytes, str] = {}  # the same of the text of examples that are left out

  def leave_out(example: Example, kind: str, detail: str):
    digest = _digest_of_text(example)
    if digest in lost:
      kind, detail = 'duplicate', f'same as {lost[digest]}'
    lost.setdefault(digest, example.where)
    report.add(kind, example.where, detail)

  examples = iter(examples)
  while chunk := list(itertools.islice(examples, CHUNK)):
    for example, rendered in _rendered(chunk, tokenizer, chat):
      if isinstance(rendered, UserError):
        leave_out(example, 'malformed', str(rendered))
        continue
      content = np.asarray(rendered, np.int32)
      ids, mask = content[0], content[1].astype(np.uint8)
      digest = hashlib.blake2b(content.tobytes(), digest_size=16).digest()
      positions = len(ids) - 1
      if positions > seq_len:
        leave_out(example, 'too_long', f'{positions} positions, seq_len is {seq_len}')
      elif not mask.any():
        leave_out(example, 'no_loss_token', 'no assistant turn, or each has weight 0')
      elif digest in seen:
        report.add('duplicate', example.where, f'same as {seen[digest]}')
      else:
        seen[digest] = example.where
        yield example.where, (ids, mask)


def _digest_of_text(example: Example) -> bytes:
  text = json.dumps([example.question, example.solution, example.messages, example.tools])
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _rendered(
  examples: Sequence[Example], tokenizer: Tokenizer, chat: ChatFormat
) -> list[tuple[Example, tuple[list[int], list[int]] | UserError]]:
  """(example, (ids, mask)) of each; the error in place of those that the template cannot render."""
  conversations = [messages_of(example, chat) for example in examples]
  try:
    return list(zip(examples, chat.template.render_batch(conversations, tokenizer), strict=True))
  except UserError as error:
    if len(examples) == 1:
      return [(examples[0], error)]
  middle = len(examples) // 2  # by halves, because few are refused, and large batches are tokenised many times faster
  halves = (examples[:middle], examples[middle:])
  return [pair for half in halves for pair in _rendered(half, tokenizer, chat)]
