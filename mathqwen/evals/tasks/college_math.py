"""CollegeMath: exercises of nine college textbooks (Tang et al. 2024, arXiv 2403.02884), under CC BY.

{"question": "Simplify: $-10-4(n-5)$", "answer": "$10-4 n$", "license": "Creative Commons ... (CC BY 3.0)",
 "data_topic": "college_math.algebra"}

Of the 2,818 test problems, 1,260 are from books under CC BY. The others, most of them non-commercial, are left out and
counted, so that no accuracy that was published on all of them is comparable.
"""

import re

from mathqwen.data.field_texts import text_field
from mathqwen.data.malformed import Malformed
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, problem, test_set, without_marks

ORDER = 20


class NotPermitted(Malformed):
  """A row under another licence; the message names it."""

  kind = 'other_licence'


def parse(record: dict) -> dict:
  """The fields of an Example. NotPermitted: when the row is not under CC BY."""
  licence = str(record.get('license'))
  if not re.search(r'\(CC BY( \d\.\d)?\)', licence):
    raise NotPermitted(licence)
  answer = without_marks(text_field(record, 'answer'))
  topic = str(record.get('data_topic') or '').rpartition('.')[2]
  return problem(text_field(record, 'question'), answer, topic=topic or None, licence=licence)


DATA = test_set(
  'college_math',
  parse,
  f'{QWEN_DATA}/college_math/test.jsonl',
  None,
  about='Exercises of college textbooks under CC BY (Tang et al. 2024, arXiv 2403.02884).',
  homepage='https://github.com/microsoft/unilm/tree/master/mathscale',
  licence='CC BY',
  fields=('question', 'answer', 'license'),
  also=('college_math_ccby.jsonl',),
)

BENCHMARK = Benchmark(
  'college_math',
  title='CollegeMath (CC BY)',
  source='college_math',
  rule='math',
  max_new_tokens=2048,
  size=1260,
  groups=(('topic',),),
)
