"""Generated arithmetic in the groups of Math401, for `mathqwen demo` and for tests. Nothing is published to compare.

{"query": "65+82=", "response": "147", "group": "add_sub_100"}
"""

import dataclasses
from collections.abc import Iterator

from mathqwen.data import arithmetic
from mathqwen.data.catalog import DataSet, Split
from mathqwen.evals.tasks import Benchmark, math401
from mathqwen.settings import setting

ORDER = 50


@dataclasses.dataclass(frozen=True)
class Options:
  """Which training rows are made."""

  count: int = setting(100_000, help='rows', at_least=1)
  seed: int = setting(0, help='the same seed gives the same rows, and a smaller count the first of them', at_least=0)
  groups: str = setting('', help='groups of Math401 joined by +, as div+log, in equal shares; empty takes all 16')


def generate(options: Options) -> Iterator[dict]:
  """Training rows with worked solutions. UserError: as `arithmetic.rows`."""
  return arithmetic.rows(options.count, options.seed, options.groups.split('+') if options.groups else ())


def parse(record: dict) -> dict:
  """The fields of an Example. A training row has its solution as `response` and the answer alone as `answer`."""
  fields = math401.parse(record)
  fields['answer'] = fields['extra'].pop('answer', fields['answer'])
  return fields


DATA = DataSet(
  name='arithmetic',
  about='Arithmetic problems in the groups of Math401, made by mathqwen.data.arithmetic.',
  licence='Apache-2.0',
  # No training row of any seed is a test row of any seed, see `arithmetic.is_test`.
  splits={'train': Split(generate=generate), 'test': Split(('arithmetic/test.jsonl',))},
  parse=parse,
  options=Options,
  fields=('query', 'response', 'group'),
  missing=(
    'the arithmetic data set is generated: call mathqwen.data.arithmetic.write("DIR/arithmetic", ...) and pass '
    '--data-dir DIR'
  ),
)

BENCHMARK = Benchmark(
  'arithmetic',
  title='Arithmetic',
  source='arithmetic',
  rule='math401',
  max_new_tokens=64,
  groups=(('group',),),
)
