"""A packed row as people read it, with the tokens that are learnt marked.

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
import itertools
import sys
from collections.abc import Mapping

import numpy as np

from mathqwen.config import Experiment
from mathqwen.data import pipeline, sources
from mathqwen.data.training import TrainingData
from mathqwen.text.loading import load_tokenizer

PLAIN, ANSI = ('[[', ']]'), ('\x1b[32m', '\x1b[0m')  # around learnt text; ANSI: green


def describe(row: Mapping[str, np.ndarray], tokenizer, color: bool = False) -> str:
  """The segments of one packed row (features of shape [T]) as text. color: ANSI green instead of [[...]]."""
  segment_ids = row['segment_ids']
  total, used = len(segment_ids), int(np.count_nonzero(segment_ids))
  count, loss = int(segment_ids.max(initial=0)), int(np.count_nonzero(row['loss_weights']))
  lines = [
    f'row of {total:,} positions: {count:,} segments, {used:,} tokens ({used / total:.1%}), '
    f'{loss:,} with loss, {total - used:,} padding'
  ]
  for segment in range(1, count + 1):
    here = segment_ids == segment
    targets, learnt = row['targets'][here], row['loss_weights'][here] > 0
    ids = [int(row['tokens'][here][0]), *targets.tolist()]
    text = _marked(ids, [False, *learnt.tolist()], tokenizer, ANSI if color else PLAIN)
    lines.append(f'segment {segment}: {len(targets):,} tokens, {int(learnt.sum()):,} with loss')
    lines += [f'  {line}' for line in text.rstrip('\n').split('\n')]
  return '\n'.join(lines)


def _marked(ids: list[int], learnt: list[bool], tokenizer, marks: tuple[str, str]) -> str:
  names = {i: token for token, i in tokenizer.special.items()}
  text = ''
  for wanted, run in itertools.groupby(zip(ids, learnt, strict=True), key=lambda pair: pair[1]):
    part = ''
    for name, group in itertools.groupby((i for i, _ in run), key=names.get):
      tokens = list(group)
      part += name * len(tokens) if name else tokenizer.decode(tokens)
    text += marks[0] + part + marks[1] if wanted else part
  return text


def inspect_data(experiment: Experiment, tokenizer: str | None) -> dict:
  """Prints counts, packing efficiency, rates and the first packed row of a config's data. Returns the numbers."""
  data_cfg, tok = experiment.data, load_tokenizer(tokenizer)
  numbers = {}
  for source in data_cfg.sources:
    read, report = sources.load(source, 'train', data_cfg.data_dir)
    found = pipeline.statistics(read, tok, data_cfg.seq_len, data_cfg.system_prompt)
    numbers[source] = found | {'left_out': dict(report.counts + collections.Counter(found['left_out']))}
    print(
      f'{source}: {found["rows"]:,} examples, {found["tokens"]:,} tokens, {found["loss_tokens"]:,} with loss\n'
      f'  packed to {data_cfg.seq_len}: {found["packing_efficiency"]:.2%} of positions hold a token\n'
      f'  {found["tokens_per_cpu_second"]:,.0f} tokens per CPU second, tokenised and packed'
    )
  data = TrainingData(data_cfg, tok)
  for line in data.describe():
    print(line)
  first = {name: rows[0] for name, rows in next(data.train()).items()}
  print(describe(first, tok, sys.stdout.isatty()))
  return {'sources': numbers}
