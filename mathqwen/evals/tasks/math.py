r"""MATH: competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874), with MATH-500 as one of its splits.

{"problem": "...", "level": "Level 5", "type": "Algebra", "solution": "... $\boxed{\frac{1}{2}}$"}

The gold answer is the content of the last box. The benchmark here asks all 5,000 test problems; math500.py asks 500.

Its text was withdrawn in 2025 under a claim of Art of Problem Solving. So this repository holds none of it, neither in
tests nor in prompts, and downloads none of it, MATH-500 included: `data prepare math --data-dir DIR` reads a copy that
the user has.
"""

import dataclasses
import json
import pathlib
import re
import tarfile

from mathqwen import files
from mathqwen.data.catalog import DataSet, Split
from mathqwen.data.field_texts import last_boxed, text_field
from mathqwen.data.formats import opened
from mathqwen.data.malformed import Malformed
from mathqwen.errors import UserError
from mathqwen.evals.tasks import Benchmark, PromptSettings
from mathqwen.settings import setting

ORDER = 3  # after math500, which is the column of Table 12


_DRAWING = re.compile(r'\s*\[asy\].*?(\[/asy\]|$)\s*', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Options:
  """What becomes of drawings, which are Asymptote programs in the text."""

  asy: str = setting(
    'keep',
    help='keep: problems and solutions as they are; strip: without the programs of drawings; drop: rows with a drawing '
    'are left out, and counted',
    choices=('keep', 'strip', 'drop'),
  )


class NotWanted(Malformed):
  """A record that an option leaves out; the message says which."""

  kind = 'not_wanted'


def parse(record: dict, options: Options) -> dict:
  """The fields of an Example. MATH-500 has `answer`, `subject` and `unique_id` too. NotWanted: by its options."""
  question = text_field(record, 'problem')
  solution = text_field(record, 'solution')
  if options.asy == 'drop' and _DRAWING.search(question + solution):
    raise NotWanted('it has a drawing, and asy=drop')
  if options.asy == 'strip':
    question, solution = (_DRAWING.sub('\n', text).strip() for text in (question, solution))
    if not question or not solution:
      raise NotWanted('it is nothing but a drawing, and asy=strip')
  level = re.search(r'\d{1,9}', str(record.get('level')))  # 'Level 5' or 5; two rows have 'Level ?'
  answer = record.get('answer')
  own_id = record.get('unique_id')
  if not isinstance(own_id, str | None):
    raise Malformed('field "unique_id" is not text')
  return {
    'question': question,
    'solution': solution,
    'answer': answer.strip() if isinstance(answer, str) else last_boxed(solution),
    'extra': {'level': int(level.group()) if level else None, 'subject': record.get('subject', record.get('type'))},
    'id': own_id,
  }


def unpack(source: files.AnyPath, target: pathlib.Path) -> None:
  """Makes train.jsonl and test.jsonl of MATH.tar as it was published, with one file for each problem.

  MATH/train/algebra/0.json becomes a line of train.jsonl, and 'train/algebra/0.json' the same line of train_paths.txt.
  """
  archive_file = source / 'math/MATH.tar'
  members: dict[str, dict[str, bytes]] = {'train': {}, 'test': {}}
  with opened(archive_file) as file, tarfile.open(fileobj=file) as archive:
    for member in archive:
      if match := re.fullmatch(r'(?:\./)?MATH/((train|test)/\w+/\d+\.json)', member.name):
        path, split = match.groups()
        members[split][path] = archive.extractfile(member).read()

  for split, found in members.items():
    if not found:
      raise UserError(f'{archive_file} holds no MATH/{split}/*/*.json; replace it and prepare again')
    paths = sorted(found)
    rows = [json.dumps(json.loads(found[path]), ensure_ascii=False) for path in paths]
    files.write_atomically(target / f'math/{split}_paths.txt', ('\n'.join(paths) + '\n').encode())
    files.write_atomically(target / f'math/{split}.jsonl', ('\n'.join(rows) + '\n').encode())


DATA = DataSet(
  name='math',
  about='Competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874); test500 is the split of arXiv 2305.20050.',
  homepage='https://github.com/hendrycks/math',
  licence='MIT',
  splits={
    'train': Split(('math/train.jsonl',)),
    'test': Split(('math/test.jsonl',)),
    'test500': Split(('math/test500.jsonl',), known_as=('math500', 'test')),
  },
  parse=parse,
  options=Options,
  fields=('problem', 'solution'),
  withdrawn='its text was withdrawn in 2025 under a claim of Art of Problem Solving',
  unpack=unpack,
  packed=('math/MATH.tar',),
  ids_beside='{stem}_paths.txt',
)

BENCHMARK = Benchmark(
  'math',
  title='MATH (5,000)',
  source='math',
  rule='math',
  max_new_tokens=1024,
  size=5000,
  by_prompt={
    'qwen2.5-math': PromptSettings('math', max_new_tokens=2048),
    'wizardmath': PromptSettings('wizardmath-math', max_new_tokens=2048),
    'abel': PromptSettings('abel', max_new_tokens=2048),
    'minerva': PromptSettings('minerva'),
  },
  groups=(('level',), ('subject', 'type')),
)
