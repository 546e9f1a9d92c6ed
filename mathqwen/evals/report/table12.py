"""Table 12 of the Qwen report: the published figures, put together from the benchmarks in evals/tasks/."""

from mathqwen.evals import benchmarks

SOURCE = 'Qwen Technical Report, arXiv 2309.16609, Table 12'


def published_columns() -> list[str]:
  """Names of the benchmarks that have published figures, in the order of the table's columns."""
  return [name for name, benchmark in benchmarks.BENCHMARKS.items() if benchmark.table12]


def published_rows() -> list[tuple[str, str, dict[str, float]]]:
  """Model, parameters and accuracies in % by benchmark, of each published system, in the order of the table's rows."""
  rows: dict[tuple[str, str], dict[str, float]] = {}
  for name in published_columns():
    for system, accuracy in benchmarks.BENCHMARKS[name].table12.items():
      rows.setdefault(system, {})[name] = accuracy
  return [(model, parameters, accuracies) for (model, parameters), accuracies in rows.items()]
