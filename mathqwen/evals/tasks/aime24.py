"""AIME 2024: both papers of the American Invitational Mathematics Examination. Answers are integers from 0 to 999.

{"problem": "Every morning Aya goes ...", "solution": "...", "answer": "204"}

The numeric rule, because a paper's own form of 25 is `025`.
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, problem, qwen_instruct, test_set

ORDER = 6


def parse(record: dict) -> dict:
  """The fields of an Example."""
  return problem(text_field(record, 'problem'), text_field(record, 'answer'), url=record.get('url'))


DATA = test_set(
  'aime24',
  parse,
  f'{QWEN_DATA}/aime24/test.jsonl',
  'af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac',
  about='American Invitational Mathematics Examination 2024, I and II.',
  homepage='https://artofproblemsolving.com/wiki/index.php/AIME_Problems_and_Solutions',
  licence='MIT, of the repository',
  fields=('problem', 'answer'),
)

BENCHMARK = Benchmark(
  'aime24',
  title='AIME 2024',
  source='aime24',
  rule='number',
  max_new_tokens=4096,
  size=30,
  **qwen_instruct(10.0, 16.7, 30.0),
)
