"""Positions of packed rows for each of 8 answers to a question of GSM8K, with and without `data.share_prompts`.

  python tests/data/measure_shared_prompts.py TRAIN.jsonl.gz [TOKENIZER]

TRAIN.jsonl.gz is GSM8K's own file. Its gold answers are the first answers; for the other 7 stand the gold answers to
the next questions, which have the lengths of real answers. TOKENIZER is a directory; without one it is this package's.
"""

import gzip
import json
import re
import sys

from mathqwen.data import encoding, pipeline
from mathqwen.data.encoded import Encoded
from mathqwen.data.examples import Example
from mathqwen.text.loading import load_tokenizer

SEQ_LEN = 1024


def encoded_answers(path, count: int, tokenizer=None) -> Encoded:
  """The first `count` questions of GSM8K's file with 8 answers each."""
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
  answers = [re.sub(r'<<[^<>]*>>', '', row['answer']) for row in rows]  # as `sources` reads GSM8K
  examples = []
  for number, row in enumerate(rows):
    for sample in range(8):
      name = f'{number}/{sample}'
      answer = answers[(number + sample) % count]
      examples.append(Example(id=name, question=row['question'], solution=answer, answer='', extra={}, where=name))
  return encoding.encode(examples, load_tokenizer(tokenizer), SEQ_LEN)[0]


def positions_per_answer(encoded: Encoded, share_prompts: bool) -> float:
  """Positions of an epoch's packed rows, padding too, for each example."""
  rows = pipeline.packed_rows([encoded], (), SEQ_LEN, 0, share_prompts)
  packed = examples = 0
  for window in range(max(1, rows.epoch // rows.window)):
    packed += rows.pack(window)['tokens'].size
    examples += rows.examples_in(window)
  return packed / examples


if __name__ == '__main__':
  found = encoded_answers(sys.argv[1], 1000, *sys.argv[2:3])
  plain, shared = positions_per_answer(found, False), positions_per_answer(found, True)
  print(f'{shared:.1f} and {plain:.1f} positions for each answer: {shared / plain:.1%}')
