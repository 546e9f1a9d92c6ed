"""The card of a folder of shards: what they are, what they were made with, and whether a run can train on them."""

import hashlib
import json
import struct
from collections.abc import Sequence

from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.data import catalog, hub_sets, tfds_sets
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer

FORMAT = 'mathqwen shards 1'
CARD, UNFINISHED = 'card.json', 'unfinished.json'
HEADER = struct.Struct('<IHH')  # of a record: ids, number of the source, bytes of `where`
_END = 4096  # bytes at each end of a file, whose hash shows a file of other data without reading it
# Every kind of text that tokenizers split in different ways.
_PROBE = (
  'It isn\'t 3.14159, 1,234,567 or 2/3: "x_1^2" ≤ \\frac{a+b}{\\sqrt{2}}\n\n  def f(x):\n\treturn x**2  # 100%\n'
  '小明有12个苹果，又买了3个。Ünïcödé … 😀 <<48/2=24>> #### 24 ABCdefGHI   \r\n'
)


def is_path(source: str) -> bool:
  """Whether one of data.sources is a path, not the name of a data set here, on the hub, or of tensorflow-datasets."""
  return not (hub_sets.is_hub(source) or source.startswith(tfds_sets.PREFIX) or catalog.of_source(source) is not None)


def is_source(source: str) -> bool:
  """Whether one of data.sources is a folder of shards, finished or not."""
  return is_path(source) and any((files.path(source) / name).is_file() for name in (CARD, UNFINISHED))


def made_with(tokenizer: Tokenizer, chat: ChatFormat) -> dict:
  """What decides the ids of an example, for the card.

  `probe` stands for the ids that a text of all kinds gets, as a question and an answer: it is the same for a tokenizer
  in other files.
  """
  turns = [{'role': 'user', 'content': _PROBE}, {'role': 'assistant', 'content': _PROBE}]
  ids, mask = chat.template.render_batch([chat.conversation(turns)], tokenizer)[0]
  text = tokenizer.encode(_PROBE)
  return {
    'tokenizer': {'probe': _digest(text), 'text_size': tokenizer.text_size, 'class': type(tokenizer).__name__},
    **chat.record(),
    'system_prompt': chat.system_prompt,
    'system_turn': chat.system_turn(tokenizer),
    'probe': _digest([*ids, *mask]),
  }


def _digest(numbers: Sequence[int]) -> str:
  return hashlib.sha256(struct.pack(f'<{len(numbers)}i', *numbers)).hexdigest()[:16]


def read_card(folder: files.AnyPath) -> dict:
  """The card. UserError: when the folder is unfinished, or the card is none."""
  if not (folder / CARD).is_file():
    what = 'is unfinished (it was not written to its end)' if (folder / UNFINISHED).is_file() else 'has no card'
    raise UserError(f'{folder} {what}: run the command that makes these shards again')
  try:
    card = json.loads((folder / CARD).read_bytes())
    complete = card['format'] == FORMAT and card['examples'] == sum(shard['examples'] for shard in card['shards'])
    if not complete or not card['shards'] or not all(isinstance(card[name], int) for name in ('tokens', 'longest')):
      raise ValueError(f'its format is {card["format"]!r}, {FORMAT!r} is read here; or its counts do not add up')
    for shard in card['shards']:
      for part in ('data', 'prompts'):
        _ = {name: shard[part][name] for name in ('file', 'records', 'bytes', 'ends')}
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f'{folder / CARD} is no card of shards ({error}): copy it again, or make the shards again'
    ) from None
  return card


def ends_of(path: files.AnyPath) -> str:
  """A hash of the first and the last bytes of a file: the last have the places of all records."""
  file = files.open_ranges(path)
  try:
    parts = file.read(0, _END) + file.read(max(0, file.size - _END), _END)
  finally:
    file.close()
  return hashlib.sha256(parts).hexdigest()[:16]
