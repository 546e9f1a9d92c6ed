r"""Math23K: Chinese word problems with equations (Wang, Liu and Shi 2017, "Deep Neural Solver for Math Word Problems").

{"id": "35", "original_text": "在一正方形花池...", "equation": "x=44*20", "ans": "880"}
Example: id 'math23k/test/35', solution '算式：44*20\n44*20=880\n答案：880', answer '880'
"""

import dataclasses
import json
import pathlib
import re

from mathqwen import files
from mathqwen.data.catalog import DataSet, Download, Split
from mathqwen.data.expressions import evaluate, steps
from mathqwen.data.field_texts import text_field
from mathqwen.data.formats import records
from mathqwen.errors import UserError
from mathqwen.evals.tasks import Benchmark
from mathqwen.settings import setting

ORDER = 5
_TRAIN = 'https://raw.githubusercontent.com/phj95304/math23K/4dd166a7c2e69290d345e115b41c1300e55642b8'
_TEST = 'https://raw.githubusercontent.com/SumbeeLei/Math_EN/34d61ea49c99d4327813afff7c8abe50af60b10f/data'


def plain_number(ans: str) -> str:
  """Math23K's answer as a number is usually written: '((4)/(7))' -> '4/7', '5((7)/(10))' -> '57/10', '25%' stays."""
  match = re.fullmatch(r'(-?)(\d*)\(\((\d+)\)/\((\d+)\)\)', ans)
  if not match:
    return ans
  sign, whole, top, bottom = match.groups()
  return f'{sign}{int(whole or 0) * int(bottom) + int(top)}/{int(bottom)}'


def _equation_gives(equation: str, answer: str) -> bool:
  try:
    return evaluate(equation) == evaluate(answer)
  except ValueError:
    return False


@dataclasses.dataclass(frozen=True)
class Options:
  """How the solutions are written."""

  solution: str = setting(
    'worked',
    help='worked: the equation, its operations one after another, and the answer; short: without the operations',
    choices=('worked', 'short'),
  )


def parse(record: dict, options: Options) -> dict:
  """The fields of an Example. The solution is the equation, worked out, and the answer."""
  equation = text_field(record, 'equation')
  ans = text_field(record, 'ans')
  answer = plain_number(ans)
  formula = equation.removeprefix('x=')
  lines = []
  # Seven published equations are not formulas or have another value: those rows teach only the answer.
  if _equation_gives(formula, answer):
    lines = [f'算式：{formula}']
    if options.solution == 'worked':
      lines += _operations(formula, answer)
  number = record.get('id')
  return {
    'question': text_field(record, 'original_text'),
    'solution': '\n'.join([*lines, f'答案：{answer}']),
    'answer': answer,
    'extra': {'equation': equation, 'ans': ans},
    'id': None if number is None else str(number),
  }


def _operations(formula: str, answer: str) -> list[str]:
  """An equation for each operation; then one for the answer, where it is written in another way: '0.25=25%'."""
  lines, result = steps(formula)
  as_decimals = all(re.fullmatch(r'-?\d+(\.\d+)?', text) for text in (result, answer))
  return lines if result == answer or as_decimals else [*lines, f'{result}={answer}']


def unpack(source: files.AnyPath, target: pathlib.Path) -> None:
  """Joins the question list (line n has id n) and the answer sheet ([{"1": {answer, equation}}, ...]) to train.jsonl.

  The thousand test rows are in both: they check that the two files are aligned, and are then left out.
  """
  folder = source / 'math23k'
  if (target / 'math23k/train.jsonl').is_file():
    return

  test = {record['id']: record for _, record in records(folder / 'math23k_test.json')}
  questions = (folder / 'question_CH.txt').read_text('utf-8').rstrip('\n').split('\n')
  sheet = {}
  for entry in json.loads((folder / 'answersheet.json').read_text('utf-8')):
    sheet |= entry

  rows = []
  for number, question in enumerate(questions, 1):
    found = sheet.get(str(number))
    if found is None:
      raise UserError(f'{folder / "answersheet.json"} has no entry {number}; delete {folder} and prepare again')
    row = {
      'id': str(number),
      'original_text': question.strip(),
      'segmented_text': None,
      'equation': f'x={found["equation"]}',
      'ans': str(found['answer']),
    }
    published = test.get(row['id'])
    if published is None:
      rows.append(row)
    elif any(published[key].strip() != row[key] for key in ('original_text', 'equation', 'ans')):
      raise UserError(
        f'{folder}: question {number} differs between the train and the test files; delete the folder and prepare again'
      )
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  files.write_atomically(target / 'math23k/train.jsonl', text.encode())


DATA = DataSet(
  name='math23k',
  about='Chinese word problems with equations (Wang, Liu and Shi 2017).',
  homepage='https://github.com/SumbeeLei/Math_EN',
  licence='none stated',
  splits={
    'train': Split(('math23k/train.jsonl',)),
    'test': Split(('math23k/test.jsonl', 'math23k/test_upstream.json', 'math23k/math23k_test.json')),
  },
  parse=parse,
  options=Options,
  fields=('id', 'original_text', 'equation', 'ans'),
  downloads={
    'math23k/math23k_test.json': Download(
      f'{_TEST}/math23k_test.json', '3145d8f3eb33f3befc85e1023886b6b2c10eb40279068e989cd6cd7e56e6b8d0'
    ),
    'math23k/question_CH.txt': Download(f'{_TRAIN}/question_CH.txt', None),
    'math23k/answersheet.json': Download(f'{_TRAIN}/test_answersheet_Math23.json', None),
  },
  unpack=unpack,
  numbered=True,
)

BENCHMARK = Benchmark(
  'math23k',
  title='Math23K',
  source='math23k',
  rule='math23k',
  max_new_tokens=512,
  size=1000,
  table12={
    ('GPT-4', '-'): 74.0,
    ('GPT-3.5', '-'): 60.0,
    ('Qwen-Chat', '7B'): 51.2,
    ('Qwen-Chat', '14B'): 67.0,
    ('Math-Qwen-Chat', '7B'): 75.4,
    ('Math-Qwen-Chat', '14B'): 78.4,
  },
)
