r"""GaoKao 2023 (English): exam questions of 2023 in English, from China and other countries (arXiv 2401.08190).

{"question": "Given sets $M=\\{x|x+2\\geq 0\\} ...", "answer": "$\\{x|-2\\leq x < 1\\}$", "source": "2023BJ_..."}

Some answers are the letter of a choice that the question lists. Two rows have no answer and are left out.
"""

import re

from mathqwen.data.field_texts import text_field
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import (
  QWEN_DATA,
  NoAnswer,
  as_text,
  problem,
  qwen_instruct,
  test_set,
  without_marks,
)

ORDER = 19


def parse(record: dict) -> dict:
  """The fields of an Example. NoAnswer: when the row has none."""
  answer = without_marks(str(record.get('answer') or '')).removesuffix('solution:')  # which one row has
  if not answer:
    raise NoAnswer('field "answer" is empty')
  is_choice = re.fullmatch('[A-K]', answer)
  return problem(text_field(record, 'question'), as_text(answer) if is_choice else answer)


DATA = test_set(
  'gaokao2023en',
  parse,
  f'{QWEN_DATA}/gaokao2023en/test.jsonl',
  '654d8f49bdb86f578c171dbc0dd8f4d9f1bf3d7a7438f60359fda7d643df4951',
  about='Exam questions of 2023 in English (Liao et al. 2024, arXiv 2401.08190).',
  homepage='https://huggingface.co/datasets/MARIO-Math-Reasoning/Gaokao2023-Math-En',
  licence='MIT, of the repository',
  fields=('question', 'answer'),
)

BENCHMARK = Benchmark(
  'gaokao2023en',
  title='GaoKao 2023 (en)',
  source='gaokao2023en',
  rule='math',
  max_new_tokens=2048,
  size=383,  # of 385, with an answer
  **qwen_instruct(65.5, 66.8, 71.9),
)
