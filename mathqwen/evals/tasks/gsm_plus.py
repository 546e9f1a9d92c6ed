"""GSM-Plus: each test problem of GSM8K in eight variations (Li et al. 2024, arXiv 2402.19255).

{"question": "...", "solution": "... #### 3.2", "answer": "3.2", "perturbation_type": "digit expansion"}

One of the eight, "critical thinking", lacks a premise and has the answer "None". Its authors report accuracies with and
without it. Here it is left out and counted: no rule of ours tells a well-founded refusal from an answer not found.
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import NoAnswer, problem, test_set

ORDER = 15
_FILES = 'https://huggingface.co/datasets/qintongli/GSM-Plus/resolve/3b708db57b96a16e8e3368ed2956990c0809440e/data'


def parse(record: dict) -> dict:
  """The fields of an Example. NoAnswer: where the problem has none."""
  answer = text_field(record, 'answer')
  if answer == 'None':
    raise NoAnswer('the problem lacks a premise')
  return problem(text_field(record, 'question'), answer, type=record.get('perturbation_type'))


DATA = test_set(
  'gsm_plus',
  parse,
  f'{_FILES}/test-00000-of-00001.jsonl',
  '885c279bfa9cde767ea23f79fd462d566fa0dbf6af9f2dcf30c75aa94f3d4041',
  about='GSM8K in eight variations (Li et al. 2024, arXiv 2402.19255).',
  homepage='https://github.com/qtli/GSM-Plus',
  licence='CC BY-SA 4.0',
  fields=('question', 'answer', 'perturbation_type'),
  also=('gsm_plus/gsmplus_test.jsonl',),
)

BENCHMARK = Benchmark(
  'gsm_plus',
  title='GSM-Plus',
  source='gsm_plus',
  rule='number',
  max_new_tokens=512,
  size=9233,  # 10,552 less one of eight
  groups=(('type',),),
)
