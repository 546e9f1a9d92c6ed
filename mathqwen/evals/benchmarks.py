"""The benchmarks by name: every BENCHMARK of the files in `tasks/`, and of the folders in $MATHQWEN_TASKS."""

from mathqwen.data import catalog
from mathqwen.errors import UserError, look_up
from mathqwen.evals.tasks import Benchmark


def _collect() -> dict[str, Benchmark]:
  """UserError: when a task file has no benchmark, or two have the same name."""
  found: dict[str, Benchmark] = {}
  for module in catalog.task_files():
    benchmark = getattr(module, 'BENCHMARK', None)
    if not isinstance(benchmark, Benchmark):
      raise UserError(f'{module.__file__} does not define `BENCHMARK = Benchmark(...)`; add it, or move the file')
    if benchmark.name in found:
      raise UserError(f'{module.__file__}: a benchmark {benchmark.name!r} exists already; choose another name')
    found[benchmark.name] = benchmark
  return found


BENCHMARKS = _collect()


def get(name: str) -> Benchmark:
  """The benchmark of that name. UserError: when there is none, with the nearest name."""
  return look_up('benchmark', name, BENCHMARKS)
