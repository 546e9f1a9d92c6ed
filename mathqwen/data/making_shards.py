"""Shards of a config's sources: read as a stream, tokenised, written."""

from mathqwen import files
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.config import DataConfig
from mathqwen.data import encoding, sources
from mathqwen.data.left_out import Report
from mathqwen.data.shard_card import read_card
from mathqwen.data.shards import SHARD_BYTES, Writer
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer


def make_shards(
  cfg: DataConfig,
  tokenizer: Tokenizer,
  chat: ChatFormat,
  folder: str | files.AnyPath,
  about: dict | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> dict:
  """Writes the usable examples of all sources into `folder`, in their order. Returns the card.

  Left out is what training would leave out. about: as in `Writer`, with its errors.
  UserError: also when a source cannot be read, or loses more rows than data.max_left_out allows, or there are weights.
  """
  if cfg.weights:
    raise UserError(
      'data.weights says how training mixes sources, and shards are one source: write each source into a folder of its '
      'own, and give the weights to `mathqwen train`'
    )
  with Writer(folder, tokenizer, chat, cfg.seq_len, about, shard_bytes) as writer:
    for source in cfg.sources:
      report = Report()
      examples = sources.stream_training(source, cfg, chat, report)
      kept = 0
      for where, (ids, mask) in encoding.tokenised(examples, tokenizer, cfg.seq_len, chat, report):
        writer.add(ids, mask, where, source)
        kept += 1
      report.check(source, kept, cfg.max_left_out)
      writer.left_out[source] = report
  return read_card(files.path(folder))
