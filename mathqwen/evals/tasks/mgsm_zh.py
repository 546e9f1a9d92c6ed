"""MGSM in Chinese: 250 test problems of GSM8K, translated by people (Shi et al. 2022, arXiv 2210.03057).

The published file is a table without a header: the question, a tab, the answer.
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import problem, test_set

ORDER = 18
_FILES = 'https://raw.githubusercontent.com/google-research/url-nlp/452a21ad3dae5668c06ceeac21ff073e1e40f9be/mgsm'


def parse(record: dict) -> dict:
  """The fields of an Example. Other copies are JSON Lines with the number in `answer_number`, beside a solution."""
  number = 'answer_number' if record.get('answer_number') is not None else 'answer'
  return problem(text_field(record, 'question'), text_field(record, number).replace(',', ''))


DATA = test_set(
  'mgsm_zh',
  parse,
  f'{_FILES}/mgsm_zh.tsv',
  'b2fa63151022370a0de1f4211c8c284eae74b0f5a3b003b1d5982c0d4a73f661',
  about='250 problems of GSM8K in Chinese (Shi et al. 2022, arXiv 2210.03057).',
  homepage='https://github.com/google-research/url-nlp/tree/main/mgsm',
  licence='CC BY 4.0',
  fields=('question', 'answer'),
  header=('question', 'answer'),
)

BENCHMARK = Benchmark('mgsm_zh', title='MGSM (zh)', source='mgsm_zh', rule='math23k', max_new_tokens=512, size=250)
