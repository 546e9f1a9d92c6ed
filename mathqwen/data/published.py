r"""Published data sets of mathematics: their names, licences and sizes, and their rows that need more than other names.

  data.sources=deepmath-103k        a name in SETS: fetched from the hub, its licence is printed
  data.sources=DIR/part-0.parquet   a copy: recognised by its columns, and read in the same way

A row may hold several answers, and each becomes an example of its own. What a data set itself marks as wrong is left
out and counted as `unverified`. Sizes and licences are those that the cards on the hub state.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator

from mathqwen.data.field_texts import gold_of, is_empty, is_missing, single, text_field
from mathqwen.data.formats import Record
from mathqwen.data.json_rows import TURNS
from mathqwen.data.malformed import Malformed, Unverified
from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class PublishedSet:
  """One data set on the hub. Without a name, it is known by its place there alone."""

  name: str
  hub: str  # ORGANISATION/NAME
  licence: str
  rows: int  # of `split`, as the card says
  revision: str  # the commit that is fetched, unless the user names another; '': the newest
  configuration: str = ''  # '': the only one, or the one called default
  split: str = 'train'  # which is read as the training split


SETS = (
  PublishedSet('', 'openai/gsm8k', 'mit', 7_473, '740312add88f781978c0658806c59bc2815b9866', 'main'),
  PublishedSet('metamathqa', 'meta-math/MetaMathQA', 'mit', 395_000, 'aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18'),
  PublishedSet(
    'numinamath-cot', 'AI-MO/NuminaMath-CoT', 'apache-2.0', 859_494, '9d8d210c9f6a36c8f3cd84045668c9b7800ef517'
  ),
  PublishedSet(
    'numinamath-1.5', 'AI-MO/NuminaMath-1.5', 'apache-2.0', 896_215, '1b05109f9e5c1ad06c0663519502416c30b300f8'
  ),
  PublishedSet(
    'openmathinstruct-2',
    'nvidia/OpenMathInstruct-2',
    'cc-by-4.0',
    13_972_791,
    '469216e3f46f4dacf476b382e192485ea51a143e',
  ),
  PublishedSet(
    'openmathreasoning',
    'nvidia/OpenMathReasoning',
    'cc-by-4.0',
    3_201_061,
    'd3d08664755704f422af97d43a7ff0ded4bd95df',
    split='cot',
  ),
  PublishedSet(
    'openr1-math-220k',
    'open-r1/OpenR1-Math-220k',
    'apache-2.0',
    93_733,
    'e4e141ec9dea9f8326f4d347be56105859b2bd68',
    'default',
  ),
  PublishedSet('deepmath-103k', 'zwhe99/DeepMath-103K', 'mit', 103_022, '5cf055d1fe3d7a2eb19719ac020211469736ae44'),
  PublishedSet('orca-math', 'microsoft/orca-math-word-problems-200k', 'mit', 200_035, ''),
  PublishedSet(
    'dapo-math-17k',
    'BytedTsinghua-SIA/DAPO-Math-17k',
    'apache-2.0',
    1_791_700,
    '65877096c24ffa7abc4e4fa5edb95cf3413a5674',
  ),
)
_FORBIDS_COMMERCE = re.compile(r'(?<![a-z])nc(?![a-z])|non-?commercial', re.IGNORECASE)
ACCEPT = '?non_commercial=yes'  # behind a source: the user knows that its licence forbids commercial use


def names() -> list[str]:
  """The names that a source may have."""
  return [known.name for known in SETS if known.name]


def find(source: str) -> PublishedSet | None:
  """The data set of a name, or of a place on the hub; None when there is none."""
  return next((known for known in SETS if source and source in (known.name, known.hub)), None)


def check_licence(source: str, licence: str, accepted: bool) -> None:
  """UserError: when the licence forbids commercial use and the user has not said that this is known."""
  if _FORBIDS_COMMERCE.search(licence) and not accepted:
    raise UserError(
      f'{source} has the licence {licence}, which forbids commercial use, and so of models trained on it: where that '
      f'is no obstacle, name it {source}{ACCEPT}'
    )


# --- rows ---


@dataclasses.dataclass(frozen=True)
class _Form:
  """A form of rows that some published data sets have."""

  columns: tuple[str, ...]  # by which it is known
  read: Callable[[dict], list[dict]]  # a row -> {question, solution, answer} of each of its answers
  also: re.Pattern = re.compile('problem|answer|expected_answer')  # further columns that it reads, or need not read


def expanded(records: Iterable[Record]) -> Iterator[Record]:
  """The records, those of a published form as {question, solution, answer}: one for each of their answers."""
  for line, record in records:
    form = _form_of(record)
    if form is None:
      yield line, record
      continue
    try:
      found = form.read(record)
    except Malformed as error:
      yield line, error
      continue
    # The others are read, refused or named as in rows of any form. Several examples need ids of their own, and a
    # conversation is made of one answer, which need not be right.
    dropped = (*form.columns, 'id', *TURNS)
    rest = {name: value for name, value in record.items() if name not in dropped and not form.also.fullmatch(name)}
    for number, made in enumerate(found, start=1):
      yield line if number == 1 else f'{line}.{number}', rest | made


def _form_of(record: object) -> _Form | None:
  if not isinstance(record, dict):
    return None
  return next((form for form in _FORMS if all(map(record.__contains__, form.columns))), None)


def _numina(record: dict) -> list[dict]:
  """NuminaMath-1.5: problem, solution and answer, with marks of whether they are what they should be."""
  for field in ('problem_is_valid', 'solution_is_valid'):
    if record[field] != 'Yes':
      raise Unverified(f'{field} is {record[field]!r}')
  return [_example(record, record.get('solution'), record.get('answer'))]


def _generated(record: dict) -> list[dict]:
  """OpenMathInstruct and OpenMathReasoning."""
  return [_example(record, record['generated_solution'], record.get('expected_answer'))]


def _openr1(record: dict) -> list[dict]:
  """OpenR1-Math: several generations, each with the verdicts of a rule and, where that says no, of a model.

  Kept are those that are complete and that one of the two judges right.
  """
  generations = record['generations']
  if not isinstance(generations, list):
    raise Malformed('field "generations" is no list')
  marks = {}
  for field in ('correctness_math_verify', 'correctness_llama', 'is_reasoning_complete'):
    values = record.get(field)
    if values is not None and (not isinstance(values, list) or len(values) != len(generations)):
      raise Malformed(f'field "{field}" is no list of one mark for each generation')
    marks[field] = values or [None] * len(generations)
  kept = []
  for generation, rule, model, complete in zip(generations, *marks.values(), strict=True):
    if (rule is True or model is True) and complete is not False:
      kept.append(_example(record, generation, record.get('answer')))
  if not kept:
    raise Unverified(f'none of its {len(generations)} generations is complete and judged right')
  return kept


def _deepmath(record: dict) -> list[dict]:
  """DeepMath-103K: three solutions by DeepSeek-R1, all of which end with the answer."""
  solutions = [record[name] for name in record if name.startswith('r1_solution_')]
  kept = [_example(record, solution, record.get('final_answer')) for solution in solutions if solution]
  if not kept:
    raise Malformed('no field "r1_solution_1", "r1_solution_2", ... has a text')
  return kept


# What DAPO writes around each problem.
_DAPO = (
  'Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer '
  '(without quotes) where $Answer is the answer to the problem.\n\n',
  '\n\nRemember to put your answer on its own line after "Answer:".',
)


def _dapo(record: dict) -> list[dict]:
  """DAPO-Math-17k, in the form of verl: a prompt of messages and the answer for the reward.

  The prompt is the question alone in open-r1/DAPO-Math-17k-Processed. Most have no solution.
  """
  turns, reward = record['prompt'], record['reward_model']
  if isinstance(turns, str):
    turns = [{'content': turns}]
  if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns) or not isinstance(reward, dict):
    raise Malformed('field "prompt" is no list of messages, or field "reward_model" no object')
  if isinstance(record.get('responses'), list) and len(record['responses']) > 1:
    raise Malformed('field "responses" has several answers, right and wrong ones: write a row for each right one')
  question = turns  # Eurus-2 has a system turn before the question
  if len(turns) == 1:
    question = text_field(turns[0], 'content').removeprefix(_DAPO[0]).removesuffix(_DAPO[1])
  answer = ', '.join(_texts_of(text_field(reward, 'ground_truth')))
  found = (single(record[name]) for name in _SOLUTIONS if not is_empty(record.get(name)))
  solution = next((text for text in found if text != answer), _worked(record, answer))
  return [{'question': question, 'solution': solution, 'answer': answer}]


_SOLUTIONS = ('solution', 'response', 'responses', 'output')  # a generated or worked one beside verl's columns


def _worked(record: dict, answer: str) -> str:
  """The worked solution that verl keeps of GSM8K in `extra_info`; the answer where it has none."""
  extra = record.get('extra_info')
  worked = extra.get('answer') if isinstance(extra, dict) else None
  is_worked = isinstance(worked, str) and gold_of(worked.strip()) == answer != worked.strip()
  return worked if is_worked else answer


def _texts_of(answer: str) -> list[str]:
  """The texts in an answer that is a list in JSON, as Skywork-OR1 has it; otherwise the answer.

  Malformed: when it has test cases of a program, as Eurus-2.
  """
  try:
    values = json.loads(answer)
  except (ValueError, RecursionError):
    return [answer]
  if isinstance(values, dict) or (isinstance(values, list) and any(isinstance(x, dict) for x in values)):
    raise Malformed('field "ground_truth" is no answer but an object, as of test cases')
  return values if isinstance(values, list) and values and all(isinstance(x, str) for x in values) else [answer]


def _example(record: dict, solution: object, answer: object) -> dict:
  question = record.get('question') if is_missing(record.get('problem')) else record['problem']
  return {'question': question, 'solution': text_field({'solution': solution}, 'solution'), 'answer': answer}


_FORMS = (
  _Form(
    ('problem', 'generations', 'correctness_math_verify'),
    _openr1,
    re.compile('answer|solution|messages|correctness_.*|is_reasoning_complete|.*_count'),
  ),
  _Form(('problem', 'solution', 'problem_is_valid', 'solution_is_valid'), _numina),
  _Form(('problem', 'generated_solution'), _generated),
  _Form(('question', 'generated_solution', 'expected_answer'), _generated),
  _Form(('question', 'final_answer', 'r1_solution_1'), _deepmath, re.compile(r'r1_solution_\d+')),
  _Form(('prompt', 'reward_model'), _dapo, re.compile('|'.join(_SOLUTIONS))),
)
