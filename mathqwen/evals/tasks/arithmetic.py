"""Generated arithmetic in the groups of Math401, for `mathqwen demo` and for tests. Nothing is published to compare.

{"query": "65+82=", "response": "147", "group": "add_sub_100"}
"""

from mathqwen.data.catalog import DataSet, Split
from mathqwen.evals.tasks import Benchmark
from mathqwen.evals.tasks.math401 import parse

ORDER = 6

DATA = DataSet(
  name='arithmetic',
  about='Arithmetic problems in the groups of Math401, made by mathqwen.data.arithmetic.',
  licence='Apache-2.0',
  # Only the test rows have a name: training files, one for each group, are given by their paths.
  splits={'test': Split(('arithmetic/test.jsonl',))},
  parse=parse,
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
