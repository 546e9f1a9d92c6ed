"""Math401: 401 arithmetic expressions in 17 groups (Yuan et al. 2023, arXiv 2304.02015).

{"query": "65+82=", "response": "147"}
"""

from mathqwen.data import arithmetic
from mathqwen.data.catalog import DataSet, Download, Split
from mathqwen.data.field_texts import text_field
from mathqwen.data.left_out import Report
from mathqwen.evals.tasks import Benchmark

ORDER = 4


def parse(record: dict) -> dict:
  """The fields of an Example. Every further field of the record is kept in `extra`."""
  response = text_field(record, 'response')
  return {
    'question': text_field(record, 'query'),
    'solution': response,
    'answer': response,
    'extra': {key: value for key, value in record.items() if key not in ('query', 'response')},
  }


def more_fields(rows: list[tuple[int, object]], report: Report) -> list[dict] | None:
  """The group of each row, which the published file has by position: Euler's identity, then 25 rows of each group."""
  if len(rows) != 401:
    return None
  line, first = rows[0]
  if not isinstance(first, dict) or not str(first.get('query')).strip().startswith('e^(i'):
    report.add('other_order', f'line {line}', "Math401 begins with Euler's identity: which row is of which group?")
    return None
  groups = ['Euler']
  for group in arithmetic.GROUPS:
    groups += [group] * 25
  return [{'group': group} for group in groups]


DATA = DataSet(
  name='math401',
  about='401 arithmetic expressions in 17 groups (Yuan et al. 2023, arXiv 2304.02015).',
  homepage='https://github.com/GanjinZero/math401-llm',
  licence='none stated',
  splits={'test': Split(('math401/test.jsonl', 'math401/math401.json'))},
  parse=parse,
  fields=('query', 'response'),
  downloads={
    'math401/math401.json': Download(
      'https://raw.githubusercontent.com/GanjinZero/math401-llm/3def7f1fc44246a93b1d61fed1ae0b4e1aaaf6c7/math401.json',
      '0fb57c2bd632459aa325ac517109e25f940c6a732b984b1611853514db131ae2',
    ),
  },
  more_fields=more_fields,
)

BENCHMARK = Benchmark(
  'math401',
  title='Math401',
  source='math401',
  rule='math401',
  max_new_tokens=256,
  size=401,
  groups=(('group',),),
  table12={
    ('GPT-4', '-'): 83.5,
    ('GPT-3.5', '-'): 75.1,
    ('Qwen-Chat', '7B'): 57.4,
    ('Qwen-Chat', '14B'): 70.1,
    ('Math-Qwen-Chat', '7B'): 80.8,
    ('Math-Qwen-Chat', '14B'): 85.0,
  },
)
