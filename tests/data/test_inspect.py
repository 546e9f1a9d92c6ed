"""`data inspect`: statistics of a data set, and a packed row in words."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from encoded_sums import encode, example

from mathqwen.data import packing
from mathqwen.data.examples import parse_file
from mathqwen.data.inspect import describe, statistics
from mathqwen.text.loading import load_tokenizer

TOKEN_COUNTS = Path(__file__).parents[1] / 'testdata' / 'data_sets' / 'token_counts'


@pytest.mark.parametrize('name', ['gsm8k', 'math'])
def test_statistics_of_sampled_rows(name, samples):
  loaded, _ = parse_file(samples / name / 'train.jsonl.gz', name, 'train')
  found = statistics(loaded, load_tokenizer(), 1024)
  encoded = encode(loaded, 1024)
  assert (found['rows'], found['tokens']) == (len(encoded), encoded.positions)
  assert found['rows'] + sum(found['left_out'].values()) == len(loaded)
  assert found['loss_tokens'] == sum(len(load_tokenizer().encode(e.solution)) + 1 for e in loaded)
  assert 0.9 < found['packing_efficiency'] <= 1  # a few rows leave no choice; see the test above
  assert all(found[key] > 0 for key in found if key.endswith('_second'))
  json.dumps(found)


@pytest.mark.parametrize(
  ('name', 'question', 'solution'), [('gsm8k', 'question', 'answer'), ('math', 'problem', 'solution')]
)
def test_packing_fills_the_rows_of_real_data(name, question, solution, published):
  with gzip.open(published / name / 'train.jsonl.gz', 'rt', encoding='utf-8') as lines:
    rows = [json.loads(line) for line in lines][:4000]
  examples = [example(i, row[question], row[solution]) for i, row in enumerate(rows)]
  found = statistics(examples, load_tokenizer(), 1024)
  assert found['packing_efficiency'] >= 0.99
  assert found['tokens_per_cpu_second'] >= 100_000  # half of what an idle core must reach: others may use this one
  counts = np.diff(encode(examples, 1024).offsets).tolist()
  assert counts == json.loads(gzip.decompress((TOKEN_COUNTS / f'{name}.json.gz').read_bytes()))
  json.dumps(found)


def test_a_row_is_described_with_its_learnt_tokens():
  tokenizer = load_tokenizer()
  row = {
    name: values[0]
    for name, values in packing.pack(
      [encode([example(0, '5! =', '120')])[0], encode([example(1, 'a\n\nb', '!')])[0]], 48
    ).items()
  }
  lines = describe(row, tokenizer).split('\n')
  assert lines[0] == 'row of 48 positions: 2 segments, 29 tokens (60.4%), 6 with loss, 19 padding'
  assert lines[1] == 'segment 1: 15 tokens, 4 with loss'
  assert lines[2:6] == ['  <|im_start|>user', '  5! =<|im_end|>', '  <|im_start|>assistant', '  [[120<|im_end|>]]']
  assert lines[6] == 'segment 2: 14 tokens, 2 with loss'
  assert lines[7:] == [
    '  <|im_start|>user',
    '  a',
    '  ',
    '  b<|im_end|>',
    '  <|im_start|>assistant',
    '  [[!<|im_end|>]]',
  ]
  assert '\x1b[32m120<|im_end|>\x1b[0m' in describe(row, tokenizer, color=True)
