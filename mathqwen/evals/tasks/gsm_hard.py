"""GSM-Hard: GSM8K with large numbers in place of small ones (Gao et al. 2022, arXiv 2211.10435).

{"input": "Janet's ducks lay 16 eggs ... with 4933828. ...", "target": -9867630.0}

Targets were computed by programs, so that some are negative, or fractions where they count things. A fraction is right
to the cent: 1234567.33 for 1234567.3333333333, but by no more than a hundredth of it.
"""

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import plain, problem, test_set

ORDER = 14
_TORA = 'https://raw.githubusercontent.com/microsoft/ToRA/213c1c995038c73fab10343814df7a42f990f026/src/data'


def parse(record: dict) -> dict:
  """The fields of an Example."""
  answer = plain(text_field(record, 'target'))
  cent = f'{min(0.005, abs(float(answer)) / 100):.12f}' if '.' in answer else None
  return problem(text_field(record, 'input'), answer, tolerance=cent)


DATA = test_set(
  'gsm_hard',
  parse,
  f'{_TORA}/gsm-hard/test.jsonl',
  '45db606263a4902580aba3974e8b7fb3f66012877889209af206b1c1b2f208f5',
  about='GSM8K with large numbers (Gao et al. 2022, arXiv 2211.10435).',
  homepage='https://huggingface.co/datasets/reasoning-machines/gsm-hard',
  licence='MIT, of the repository',
  fields=('input', 'target'),
  also=('gsm_hard/gsmhardv2.jsonl',),
)

BENCHMARK = Benchmark('gsm_hard', title='GSM-Hard', source='gsm_hard', rule='number', max_new_tokens=512, size=1319)
