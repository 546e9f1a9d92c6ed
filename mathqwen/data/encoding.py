"""From examples to tokenised examples: `encode` of all at once, `tokenised` one after another."""

import dataclasses
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
Rendered = tuple[list[int], list[int]]  # ids and mask


def messages_of(example: Example, chat: ChatFormat) -> Conversation:
  """The conversation of an example: its own messages, or the system turn if there is one, question and solution."""
  if example.tools:
    return {'messages': list(example.messages), 'tools': list(example.tools)}
  if example.messages is not None:
    return list(example.messages)
  turns = [{'role': 'user', 'content': example.question}, {'role': 'assistant', 'content': example.solution}]
  return chat.conversation(turns)


def sides(example: Example) -> tuple[Example, ...]:
  """The example; of a pair, one with the chosen and one with the rejected answer."""
  if example.rejected is None:
    return (example,)
  content = 'solution' if isinstance(example.rejected, str) else 'messages'
  chosen = dataclasses.replace(example, rejected=None)
  return chosen, dataclasses.replace(chosen, **{content: example.rejected})


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
  """(where it is from, (ids, mask)) of every usable example, of a pair twice; the others are added to `report`.

  Left out are conversations that cannot be rendered, exact duplicates, those without a loss token, and those that need
  more than `seq_len` positions, a pair for both answers. The last are never cut, because the end holds the answer.
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
    of_sides = iter(_rendered([side for example in chunk for side in sides(example)], tokenizer, chat))
    for example in chunk:
      rendered = [next(of_sides) for _ in sides(example)]
      if (unusable := _unusable(rendered, seq_len)) is not None:
        leave_out(example, *unusable)
        continue
      content = [np.asarray(ids_and_mask, np.int32) for ids_and_mask in rendered]
      digest = hashlib.blake2b(b''.join(side.tobytes() for side in content), digest_size=16).digest()
      if digest in seen:
        report.add('duplicate', example.where, f'same as {seen[digest]}')
        continue
      seen[digest] = example.where
      for ids, mask in content:
        yield example.where, (ids, mask.astype(np.uint8))


def _unusable(rendered: Sequence[Rendered | UserError], seq_len: int) -> tuple[str, str] | None:
  """(kind, detail) of an example that is left out, as a `Report` has them; of a pair, for either of its answers."""
  for side in rendered:
    if isinstance(side, UserError):
      return 'malformed', str(side)
  positions = sum(len(ids) - 1 for ids, _ in rendered)
  if positions > seq_len:
    what = 'positions of both answers' if len(rendered) > 1 else 'positions'
    return 'too_long', f'{positions} {what}, seq_len is {seq_len}'
  if not all(any(mask) for _, mask in rendered):
    return 'no_loss_token', 'no assistant turn, or each has weight 0'
  if len(rendered) > 1:
    chosen, rejected = rendered
    if chosen == rejected:
      return 'malformed', 'the chosen and the rejected answer have the same tokens'
    if len({tuple(ids[: list(mask).index(1)]) for ids, mask in rendered}) > 1:
      return 'malformed', 'the template writes the prompt in another way before the rejected answer'
  return None


def _digest_of_text(example: Example) -> bytes:
  text = json.dumps([example.question, example.solution, example.messages, example.tools, example.rejected])
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _rendered(examples: Sequence[Example], tokenizer: Tokenizer, chat: ChatFormat) -> list[Rendered | UserError]:
  """(ids, mask) of each example; the error in place of those that the template cannot render."""
  conversations = [messages_of(example, chat) for example in examples]
  try:
    return list(chat.template.render_batch(conversations, tokenizer))
  except UserError as error:
    if len(examples) == 1:
      return [error]
  middle = len(examples) // 2  # by halves, because few are refused, and large batches are tokenised many times faster
  return [*_rendered(examples[:middle], tokenizer, chat), *_rendered(examples[middle:], tokenizer, chat)]
