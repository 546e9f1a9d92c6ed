"""AMC 2023: the problems of AMC 12A and 12B whose answer can be asked as an integer.

{"problem": "Cities $A$ and $B$ are ...", "answer": 27.0}
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, plain, problem, qwen_instruct, test_set

ORDER = 8


def parse(record: dict) -> dict:
  """The fields of an Example."""
  return problem(text_field(record, 'problem'), plain(text_field(record, 'answer')), url=record.get('url'))


DATA = test_set(
  'amc23',
  parse,
  f'{QWEN_DATA}/amc23/test.jsonl',
  '43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4',
  about='American Mathematics Competitions 12A and 12B, 2023.',
  homepage='https://artofproblemsolving.com/wiki/index.php/AMC_12_Problems_and_Solutions',
  licence='MIT, of the repository',
  fields=('problem', 'answer'),
)

BENCHMARK = Benchmark(
  'amc23',
  title='AMC 2023',
  source='amc23',
  rule='math',
  max_new_tokens=4096,
  size=40,
  **qwen_instruct(60.0, 62.5, 70.0),
)
