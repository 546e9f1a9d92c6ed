"""ASDiv: diverse elementary word problems (Miao et al. 2020, "A Diverse Corpus ...", ACL).

{"body": "Seven red apples ...", "question": "How many apples ...?", "answer": "9 (apples)", "formula": "7+2=9"}

The unit in brackets is no part of the gold answer. Some answers are names, ratios (5:6), times (3:30 p.m.) or words.
"""

import re

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, as_text, problem, test_set

ORDER = 12


def parse(record: dict) -> dict:
  """The fields of an Example."""
  answer = re.sub(r'\s*\([^()\d]*\)', '', text_field(record, 'answer'))  # not of '-(1/3)'
  question = f'{text_field(record, "body")} {text_field(record, "question")}'
  return problem(question, as_text(answer), text_field(record, 'formula'), type=record.get('solution_type'))


DATA = test_set(
  'asdiv',
  parse,
  f'{QWEN_DATA}/asdiv/test.jsonl',
  '5759580385e706f961a30d4c07d6925b35c3f7c86d6c50bc413957169693dad2',
  about='Diverse elementary word problems (Miao et al. 2020).',
  homepage='https://github.com/chaochun/nlu-asdiv-dataset',
  licence='MIT, of the repository',
  fields=('body', 'question', 'answer', 'formula'),
)

BENCHMARK = Benchmark(
  'asdiv', title='ASDiv', source='asdiv', rule='math', max_new_tokens=512, size=2215, groups=(('type',),)
)
