r"""OlympiadBench (He et al. 2024, arXiv 2402.14008): the English problems in text alone, with one final answer each.

{"id": 1606, "question": "Xenia and Sergey ...", "context": null, "final_answer": ["2"], "is_multiple_answer": false,
 "unit": null, "answer_type": "Numerical", "error": null, "subfield": "Combinatorics"}

Several answers stand in one text, '$69$,$84$', in any order. `error` is the difference that its authors allow, and the
unit is told apart from the answer: a response may say it or not.
"""

from mathqwen.data.field_texts import text_field
from mathqwen.data.malformed import Malformed
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, problem, qwen_instruct, test_set, without_marks

ORDER = 9


def parse(record: dict) -> dict:
  """The fields of an Example. Malformed: without a final answer."""
  answers = record.get('final_answer')
  if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
    raise Malformed('field "final_answer" is not a list of answers')
  question = text_field(record, 'question')
  if record.get('context'):
    question = f'{text_field(record, "context")}\n{question}'
  fields = problem(
    question,
    without_marks(', '.join(answers)),
    subject=record.get('subfield'),
    type=record.get('answer_type'),
    unit=record.get('unit'),
    tolerance=record.get('error'),
  )
  return fields | {'id': None if record.get('id') is None else str(record['id'])}


DATA = test_set(
  'olympiadbench',
  parse,
  f'{QWEN_DATA}/olympiadbench/test.jsonl',
  'bb8c1e38a16ea9eacb77530315a674d883f267fbff79183effc53681b4fcc416',
  about='Olympiad problems in English, text alone (He et al. 2024, arXiv 2402.14008).',
  homepage='https://github.com/OpenBMB/OlympiadBench',
  licence='MIT, of the repository',
  fields=('question', 'final_answer'),
  numbered=True,
)

BENCHMARK = Benchmark(
  'olympiadbench',
  title='OlympiadBench',
  source='olympiadbench',
  rule='math',
  max_new_tokens=4096,
  size=675,
  groups=(('subject',), ('type',)),
  **qwen_instruct(38.1, 41.6, 49.0),
)
