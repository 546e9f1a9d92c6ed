"""AIME 2025: both papers of the American Invitational Mathematics Examination. Answers are integers from 0 to 999.

{"id": "aime25-0", "problem": "Find the sum of ...", "expected_answer": "70"}
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import problem, test_set

ORDER = 7
_FILES = 'https://raw.githubusercontent.com/NVIDIA-NeMo/Skills/959efb95e9cc7cf6559d1d0e3e3299392100edef'


def parse(record: dict) -> dict:
  """The fields of an Example."""
  return problem(text_field(record, 'problem'), text_field(record, 'expected_answer'))


DATA = test_set(
  'aime25',
  parse,
  f'{_FILES}/nemo_skills/dataset/aime25/test.txt',
  None,
  about='American Invitational Mathematics Examination 2025, I and II.',
  homepage='https://artofproblemsolving.com/wiki/index.php/AIME_Problems_and_Solutions',
  licence='Apache-2.0, of the repository',
  fields=('problem', 'expected_answer'),
)

BENCHMARK = Benchmark('aime25', title='AIME 2025', source='aime25', rule='number', max_new_tokens=4096, size=30)
