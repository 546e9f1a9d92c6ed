"""CPU seconds to grade the 5,000 problems of MATH, and whether verdicts depend on a busy machine. By hand:

  python tests/grading/measure_grading.py data           (data/math/test.jsonl: the user's own copy)

Prints the seconds of the whole tree of processes (user and system) for answers that are all right and all wrong, and
how many verdicts on the wrong ones differ with busy processes beside and with a fifth of the limit of CPU time.
"""

import collections
import multiprocessing
import os
import random
import resource
import sys

from mathqwen.data import sources
from mathqwen.grading import grade, symbolic

BUSY = 20  # processes


def measured(rows: list[dict]) -> tuple[list[str], float]:
  """The verdicts, and the CPU seconds of this process and of the comparers."""
  before = _seconds()
  verdicts = [row['verdict'] for row in grade.judge(rows, 'math')]
  symbolic._shared.close()  # a process counts once it has ended
  return verdicts, _seconds() - before


def _seconds() -> float:
  usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def busy() -> None:
  """Computes for ever."""
  while True:
    pass


def main(data_dir: str) -> None:
  """Prints the figures."""
  rows, _ = sources.load('math', 'test', data_dir, strict=True)
  golds = [row.answer for row in rows]
  others = random.Random(0).sample(golds, len(golds))
  right = [{'response': row.solution, 'gold': row.answer} for row in rows]
  wrong = [{'response': f'\\boxed{{{other}}}', 'gold': gold} for other, gold in zip(others, golds, strict=True)]
  verdicts, seconds = measured(right)
  print(f'right: {len(rows):,} answers in {seconds:.1f} CPU seconds, {dict(collections.Counter(verdicts))}')
  alone, seconds = measured(wrong)
  print(f'of other problems: {seconds:.1f} CPU seconds, {dict(collections.Counter(alone))}')

  symbolic._shared.time_limit = symbolic.TIME_LIMIT / 5
  short, _ = measured(wrong)
  symbolic._shared.time_limit = symbolic.TIME_LIMIT
  loads = [multiprocessing.get_context('spawn').Process(target=busy, daemon=True) for _ in range(BUSY)]
  for load in loads:
    load.start()
  try:
    loaded, _ = measured(wrong)
  finally:
    for load in loads:
      load.kill()
  for name, verdicts in ((f'a load of {BUSY}', loaded), ('a fifth of the CPU time', short)):
    print(f'{sum(map(str.__ne__, alone, verdicts))} verdicts differ with {name}')


if __name__ == '__main__':
  main(os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else 'data'))
