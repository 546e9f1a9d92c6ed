"""The benchmarks: where the problems come from, how they are asked and which rule grades them. One entry each."""

import dataclasses
from collections.abc import Mapping

from mathqwen.errors import look_up


@dataclasses.dataclass(frozen=True)
class Benchmark:
  name: str
  title: str  # column of Table 12
  source: str  # for mathqwen.data.sources.load
  rule: str  # in mathqwen.grading.grade.RULES
  max_new_tokens: int
  size: int | None  # published number of test problems
  split: str = 'test'
  prompt: str = 'chatml'  # in mathqwen.evals.prompts.PROMPTS
  groups: tuple[tuple[str, ...], ...] = ()  # one break-down each: the field's names, the first that is there counts

  def groups_of(self, record: Mapping) -> list[str]:
    """The groups a record belongs to: `['Level 5', 'Algebra']`."""
    fields = {**record, **(record.get('extra') or {})}
    found = []
    for names in self.groups:
      name = next((name for name in names if fields.get(name) is not None), None)
      if name is not None:
        text = str(fields[name])
        found.append(f'{name.capitalize()} {text}' if text.isdigit() else text)
    return found


_GROUP = (('group',),)
_MATH_GROUPS = (('level',), ('subject', 'type'))

BENCHMARKS = {
  benchmark.name: benchmark
  for benchmark in (
    Benchmark('gsm8k', 'GSM8K', 'gsm8k', rule='number', max_new_tokens=512, size=1319),
    Benchmark('math500', 'MATH', 'math500', rule='math', max_new_tokens=1024, size=500, groups=_MATH_GROUPS),
    Benchmark('math', 'MATH (5,000)', 'math', rule='math', max_new_tokens=1024, size=5000, groups=_MATH_GROUPS),
    Benchmark('math401', 'Math401', 'math401', rule='math401', max_new_tokens=256, size=401, groups=_GROUP),
    Benchmark('math23k', 'Math23K', 'math23k', rule='math23k', max_new_tokens=512, size=1000),
    # Generated, in Math401's groups; no one else's numbers to compare with.
    Benchmark('arithmetic', 'Arithmetic', 'arithmetic', rule='math401', max_new_tokens=64, size=None, groups=_GROUP),
  )
}


def get(name: str) -> Benchmark:
  return look_up('benchmark', name, BENCHMARKS)
