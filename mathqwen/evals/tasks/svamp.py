"""SVAMP: elementary word problems, varied so that shortcuts fail (Patel et al. 2021, arXiv 2103.07191).

{"Body": "There are 87 oranges ...", "Question": "How big is each group?", "Answer": 145.0, "Type": "Common-Division"}
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, plain, problem, test_set

ORDER = 11


def parse(record: dict) -> dict:
  """The fields of an Example. A body ends with a full stop, which most of them lack."""
  body = text_field(record, 'Body')
  question = f'{body if body.endswith((".", "!", "?")) else body + "."} {text_field(record, "Question")}'
  return problem(question, plain(text_field(record, 'Answer')), text_field(record, 'Equation'), type=record.get('Type'))


DATA = test_set(
  'svamp',
  parse,
  f'{QWEN_DATA}/svamp/test.jsonl',
  'd0826ff1264f3860e46fc4e71db9e31d2d188960db87090e22677f9493e67a0d',
  about='Varied elementary word problems (Patel et al. 2021, arXiv 2103.07191).',
  homepage='https://github.com/arkilpatel/SVAMP',
  licence='MIT, of the repository',
  fields=('Body', 'Question', 'Answer', 'Equation'),
)

BENCHMARK = Benchmark(
  'svamp', title='SVAMP', source='svamp', rule='number', max_new_tokens=512, size=1000, groups=(('type',),)
)
