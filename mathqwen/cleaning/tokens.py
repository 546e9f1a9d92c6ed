"""Cleaned rows as shards of tokens, which `train` reads at random: tokenised part by part, then written in order."""

import functools
import io
import json
from collections.abc import Sequence

import numpy as np

from mathqwen import files
from mathqwen.chat import chat_format
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.cleaning.job import Tokens
from mathqwen.data import encoding, shapes, shards
from mathqwen.data.encoded import Encoded
from mathqwen.data.examples import Example
from mathqwen.data.left_out import Report
from mathqwen.data.shard_card import CARD
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer


@functools.lru_cache(maxsize=1)
def _load(how: Tokens) -> tuple[Tokenizer, ChatFormat]:
  tokenizer = load_tokenizer(how.tokenizer)
  return tokenizer, chat_format.for_training(how.template, how.system_prompt, tokenizer)


def check(how: Tokens) -> None:
  """UserError: when there is no such tokenizer, or its template cannot be used."""
  _load(how)


def encode(lines: Sequence[bytes], how: Tokens) -> tuple[bytes, Report]:
  """(the tokens of a part's lines as `add_part` reads them, what was left out)."""
  tokenizer, chat = _load(how)
  rows = []
  for line in lines:
    record = json.loads(line)
    fields, _, _ = shapes.read(record, {}, chat.has_own_turns)
    rows.append(Example(where=record['where'], **fields))
  report = Report(named=len(rows))  # each has a line in left_out.jsonl
  usable = list(encoding.tokenised(rows, tokenizer, how.seq_len, chat, report))
  encoded = Encoded.from_rendered([masked for _, masked in usable], [where for where, _ in usable])
  buffer = io.BytesIO()
  where = np.frombuffer(json.dumps(list(encoded.where)).encode(), np.uint8)
  np.savez(buffer, ids=encoded.ids, mask=encoded.mask, offsets=encoded.offsets, where=where)
  return buffer.getvalue(), report


def write_shards(
  target: files.AnyPath, work: files.AnyPath, parts: Sequence[tuple[str, str]], how: Tokens, about: dict, left_out: dict
) -> dict:
  """Writes the shards of all parts, (name, source) each, into `target`. Returns their card.

  about, left_out: of `shards.Writer`. OSError: when the disk is full; the next call begins again with the first part.
  """
  tokenizer, chat = _load(how)
  made = work / 'shards'
  if (made / CARD).is_file():  # the move was interrupted
    files.remove_tree(made)
  with shards.Writer(made, tokenizer, chat, how.seq_len, about) as writer:
    writer.left_out = left_out
    for name, source in parts:
      with np.load(io.BytesIO((work / 'written' / f'{name}.npz').read_bytes())) as part:
        ids, mask, offsets = part['ids'], part['mask'], part['offsets']
        where = json.loads(part['where'].tobytes())
      for i, place in enumerate(where):
        start, stop = offsets[i : i + 2]
        writer.add(ids[start:stop], mask[start:stop], place, source)
  card = json.loads((made / CARD).read_bytes())
  _move(made, target)
  return card


def _move(source: files.AnyPath, target: files.AnyPath) -> None:
  """Moves the files of a folder into another one, the card last."""
  files.make_folder(target)
  if files.is_remote(str(target)):
    files.replace_tree(source, target, last=(CARD,))
    return
  for path in sorted(source.iterdir(), key=lambda path: path.name == CARD):
    if not path.name.startswith('.'):
      path.replace(target / path.name)
