"""CMATH: Chinese elementary word problems by grade (Wei et al. 2023, arXiv 2306.16636), the first 600.

{"grade": 1, "question": "芳芳买了一本书有99页 ...", "answer": "9", "reasoning_step": 1}

These 600, a hundred of each grade, are what Qwen2.5-Math is measured on; its authors call them the dev split, with
`input` and `golden` for the two texts. cmath_test.py asks their test split.
"""

from mathqwen.data.catalog import Download, Split
from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, problem, qwen_instruct, test_set

ORDER = 16
_TEST = 'https://huggingface.co/datasets/weitianwen/cmath/resolve/402e2626b9f959e6c939cdcec2f81c20a41537e2'


def parse(record: dict) -> dict:
  """The fields of an Example."""
  question = text_field(record, 'input' if 'input' in record else 'question')
  answer = text_field(record, 'golden' if 'golden' in record else 'answer')
  return problem(question, answer, grade=record.get('grade'))


DATA = test_set(
  'cmath',
  parse,
  f'{QWEN_DATA}/cmath/test.jsonl',
  'e2ceabf05d10b37f207eaebbe8db24dbfc961e1a4f07337d2fc4db42a7f44fdb',
  about='Chinese elementary word problems by grade (Wei et al. 2023, arXiv 2306.16636).',
  homepage='https://github.com/XiaoMi/cmath',
  licence='CC BY 4.0',
  fields=('question', 'answer', 'grade'),
  also=('cmath/cmath_dev.jsonl', 'cmath_600.jsonl'),
  more_splits={'test1098': Split(('cmath/cmath_test.jsonl',), known_as=('cmath_test', 'test'))},
  more_downloads={'cmath/cmath_test.jsonl': Download(f'{_TEST}/cmath_test.jsonl', None)},
)

BENCHMARK = Benchmark(
  'cmath',
  title='CMATH',
  source='cmath',
  rule='math23k',
  max_new_tokens=512,
  size=600,
  groups=(('grade',),),
  **qwen_instruct(89.7, 91.8, 94.3),
)
