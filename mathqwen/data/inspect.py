"""`mathqwen data inspect`: counts and rates of a config's data, and a packed row as people read it.

row of 48 positions: 2 segments, 29 tokens (60.4%), 6 with loss, 19 padding
segment 1: 15 tokens, 4 with loss
  <|im_start|>user
  5! =<|im_end|>
  <|im_start|>assistant
  [[120<|im_end|>]]
segment 2: 14 tokens, 2 with loss
  ...
"""

import collections
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from mathqwen import files
from mathqwen.chat import chat_format
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.config import DataConfig, Experiment
from mathqwen.data import encoding, inspect_page, pipeline, row_parts, shard_card, sources
from mathqwen.data.encoded import Examples
from mathqwen.data.examples import Example
from mathqwen.data.shard_reader import Shards
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer

_WINDOWS = 50  # that are packed to see how full rows become
# What is put around tokens with loss.
BRACKETS = ('[[', ']]')
GREEN = ('\x1b[32m', '\x1b[0m')  # ANSI escapes, for a terminal


def describe(row: Mapping[str, np.ndarray], tokenizer: Tokenizer, color: bool = False) -> str:
  """The segments of one packed row (features of shape [T]) as text, with the tokens that are trained on marked.

  color: mark them with ANSI green instead of [[...]].
  """
  segment_ids = row['segment_ids']
  positions = len(segment_ids)
  tokens = int(np.count_nonzero(segment_ids))
  with_loss = int(np.count_nonzero(row['loss_weights']))
  segments = int(segment_ids.max(initial=0))
  lines = [
    f'row of {positions:,} positions: {segments:,} segments, {tokens:,} tokens ({tokens / positions:.1%}), '
    f'{with_loss:,} with loss, {positions - tokens:,} padding'
  ]
  for part in row_parts.parts(row):
    text = marked(part.ids, part.has_loss, tokenizer, GREEN if color else BRACKETS)
    which = (f', answer {part.answer}' if part.answer else '') + part.place
    lines.append(f'segment {part.segment}{which}: {len(part.ids) - 1:,} tokens, {sum(part.has_loss):,} with loss')
    lines += [f'  {line}' for line in text.rstrip('\n').split('\n')]
  return '\n'.join(lines)


def marked(ids: list[int], has_loss: list[bool], tokenizer: Tokenizer, marks: tuple[str, str]) -> str:
  """The text of the ids, special tokens included, with `marks` (BRACKETS, GREEN) around each run that has loss."""
  before, after = marks
  runs = row_parts.runs(ids, has_loss, tokenizer)
  return ''.join(before + text + after if with_loss else text for text, with_loss in runs)


def statistics(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  seq_len: int,
  chat: ChatFormat | None = None,
  share_prompts: bool = False,
  pairs: bool = False,
) -> dict:
  """Counts of the encoded examples, and rates measured on this machine.

  tokens: positions that examples take in rows of their own. positions_per_example: positions of an epoch's packed rows,
  padding too, for each example. *_per_second: by the clock; *_per_cpu_second: by the CPU time of all threads.
  packing_efficiency: the share of a packed epoch's positions that hold a token. Of `pairs`, a pair is an example.
  """
  encode_cpu, encode_clock = time.process_time(), time.perf_counter()
  encoded, report = encoding.encode(examples, tokenizer, seq_len, chat)
  encode_cpu, encode_clock = time.process_time() - encode_cpu, time.perf_counter() - encode_clock
  tokens = encoded.positions
  packed = _pack(encoded, seq_len, share_prompts, pairs)
  return packed | {
    'left_out': dict(report.counts),
    'encode_tokens_per_cpu_second': tokens / encode_cpu,
    'encode_tokens_per_second': tokens / encode_clock,
    'tokens_per_cpu_second': 1 / (encode_cpu / tokens + 1 / packed['pack_tokens_per_cpu_second']),
  }


def _pack(encoded: Examples, seq_len: int, share_prompts: bool, pairs: bool = False) -> dict:
  """Counts of tokenised examples, and rates of packing an epoch of them, or its first _WINDOWS windows."""
  cpu, clock = time.process_time(), time.perf_counter()
  rows = pipeline.packed_rows([encoded], (), seq_len, seed=0, share_prompts=share_prompts, pairs=pairs)
  packed = 0
  filled = 0
  windows = range(min(_WINDOWS, max(1, rows.epoch // rows.window)))
  for window in windows:
    segment_ids = rows.pack(window)['segment_ids']
    packed += segment_ids.size
    filled += int(np.count_nonzero(segment_ids))
  cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
  sides = 2 if pairs else 1
  return {
    'rows': len(encoded) // sides,
    'tokens': encoded.positions,
    'loss_tokens': encoded.loss_tokens,
    'packing_efficiency': filled / packed,
    'positions_per_example': packed * sides / sum(map(rows.examples_in, windows)),
    'pack_tokens_per_cpu_second': filled / cpu,
    'pack_tokens_per_second': filled / clock,
  }


def _of_shards(source: str, cfg: DataConfig, tokenizer: Tokenizer, chat: ChatFormat) -> dict:
  """As `statistics`, of shards: counts from their card, rates of reading and packing. Prints what they were made of."""
  shards = Shards(source)
  shards.check(tokenizer, chat, cfg.seq_len)
  for name, counts in shards.card['sources'].items():
    print(f'{source}: {counts["examples"]:,} examples from {name}, {counts["tokens"]:,} tokens')
  if shards.card['about']:
    print(f'{source}: {json.dumps(shards.card["about"], ensure_ascii=False)}')
  found = _pack(shards, cfg.seq_len, cfg.share_prompts)
  return found | {
    'left_out': dict(shards.left_out.counts),
    'sources': shards.card['sources'],
    'tokens_per_cpu_second': found['pack_tokens_per_cpu_second'],
  }


def inspect_data(experiment: Experiment, tokenizer: str | None, page: str | None = None) -> dict:
  """Prints counts, packing efficiency, rates and the first packed row of a config's data. Returns the numbers.

  tokenizer: a directory; None takes the one in this package. page: where an HTML page of the data is written.
  UserError: when the data cannot be read.
  """
  if page is not None and files.path(page).is_dir():  # before the data are read
    raise UserError(f'{page} is a folder: name the file, as {page.rstrip("/")}/data.html')
  cfg = experiment.data
  pairs = experiment.train.objective == 'dpo'
  noun = 'pair' if pairs else 'example'
  loaded = load_tokenizer(tokenizer)
  chat = chat_format.for_training(cfg.template, cfg.system_prompt, loaded)
  numbers = {}
  for source in cfg.sources:
    if shard_card.is_source(source) and not pairs:
      found, how = _of_shards(source, cfg, loaded, chat), 'read and packed'
    else:
      examples, report = sources.load_training(source, cfg, chat, pairs)
      found, how = statistics(examples, loaded, cfg.seq_len, chat, cfg.share_prompts, pairs), 'tokenised and packed'
      found['left_out'] = dict(report.counts + collections.Counter(found['left_out']))
    numbers[source] = found
    print(
      f'{source}: {found["rows"]:,} {noun}s, {found["tokens"]:,} tokens, {found["loss_tokens"]:,} with loss\n'
      f'  packed to {cfg.seq_len}: {found["packing_efficiency"]:.2%} of positions hold a token, '
      f'{found["positions_per_example"]:,.1f} positions for each {noun}\n'
      f'  {found["tokens_per_cpu_second"]:,.0f} tokens per CPU second, {how}'
    )

  # Whatever is left out is shown here, not refused.
  data = TrainingData(dataclasses.replace(cfg, max_left_out=1.0), loaded, pairs=pairs)
  for line in data.describe():
    print(line)
  first_row = {name: rows[0] for name, rows in next(data.train()).items()}
  print(describe(first_row, loaded, sys.stdout.isatty()))
  if page is not None:
    inspect_page.write(files.path(page), f'Data: {", ".join(cfg.sources)}', data, numbers)
    print(f'the page: {page}')
  return {'sources': numbers}
