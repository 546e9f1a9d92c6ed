"""MAWPS: elementary word problems from four older sets (Koncel-Kedziorski et al. 2016, NAACL).

{"input": "Joan found 70 seashells ...", "target": 43.0, "type": "singleeq"}
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, plain, problem, test_set

ORDER = 13


def parse(record: dict) -> dict:
  """The fields of an Example."""
  return problem(text_field(record, 'input'), plain(text_field(record, 'target')), type=record.get('type'))


DATA = test_set(
  'mawps',
  parse,
  f'{QWEN_DATA}/mawps/test.jsonl',
  '00ffe31161be8623a3d36741830edbba87a3aee0109f693810fe40b9d5d91b8b',
  about='Elementary word problems from four sets (Koncel-Kedziorski et al. 2016).',
  homepage='https://github.com/sroy9/mawps',
  licence='MIT, of the repository',
  fields=('input', 'target'),
)

BENCHMARK = Benchmark(
  'mawps', title='MAWPS', source='mawps', rule='number', max_new_tokens=512, size=2065, groups=(('type',),)
)
