r"""Minerva Math: problems of MIT OpenCourseWare in physics, chemistry, astronomy and economics (arXiv 2206.14858).

{"problem": "Each of the two Magellan ...", "solution": "... =\\boxed{1.6} \\mathrm{~cm}", "type": "Astronomy ..."}

The gold answer is the content of the last box, without the unit behind it. Measured values are rounded, so numbers are
equal within a ten-thousandth, as in the graders of ToRA and of Qwen2.5-Math, whose figures are the published ones.
"""

from mathqwen.data.field_texts import last_boxed, text_field
from mathqwen.data.malformed import Malformed
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks._published import QWEN_DATA, problem, qwen_instruct, test_set

ORDER = 10


def parse(record: dict) -> dict:
  """The fields of an Example. Malformed: without a box."""
  solution = text_field(record, 'solution')
  answer = last_boxed(solution)
  if not answer:
    raise Malformed('field "solution" has no \\boxed{answer}')
  return problem(text_field(record, 'problem'), answer, solution, course=record.get('type'), tolerance='0.01%')


DATA = test_set(
  'minerva_math',
  parse,
  f'{QWEN_DATA}/minerva_math/test.jsonl',
  '0e656b430d3a0a1dab6aa853f453ba3805e28e2cabe4fc72486a897cc09d8ba2',
  about='Problems of MIT OpenCourseWare (Lewkowycz et al. 2022, arXiv 2206.14858).',
  homepage='https://storage.googleapis.com/minerva-paper/index.html',
  licence='MIT, of the repository',
  fields=('problem', 'solution'),
)

BENCHMARK = Benchmark(
  'minerva_math',
  title='Minerva Math',
  source='minerva_math',
  rule='math',
  max_new_tokens=2048,
  size=272,
  groups=(('course',),),
  **qwen_instruct(29.4, 37.1, 44.1),
)
