"""The published figures, put together from the benchmarks in evals/tasks/: Table 12 of the Qwen report, and others."""

from collections.abc import Collection

from mathqwen.evals import benchmarks

SOURCE = 'Qwen Technical Report, arXiv 2309.16609, Table 12'


def published_columns(measured: Collection[str] = ()) -> list[str]:
  """Names of the benchmarks of Table 12, and of those `measured` that another publication has figures for.

  In the order of the table's columns.
  """
  return [
    name
    for name, benchmark in benchmarks.BENCHMARKS.items()
    if benchmark.table12 or benchmark.published and name in measured
  ]


def published_rows(measured: Collection[str] = ()) -> list[tuple[str, str, dict[str, float]]]:
  """Model, parameters and accuracies in % by benchmark, of each published system, in the order of the table's rows."""
  rows: dict[tuple[str, str], dict[str, float]] = {}
  for name in published_columns(measured):
    benchmark = benchmarks.BENCHMARKS[name]
    for system, accuracy in (benchmark.table12 or benchmark.published).items():
      rows.setdefault(system, {})[name] = accuracy
  return [(model, parameters, accuracies) for (model, parameters), accuracies in rows.items()]


def sources(measured: Collection[str] = ()) -> str:
  """Where the figures are from."""
  others = [benchmarks.BENCHMARKS[name].published_in for name in published_columns(measured)]
  return '; '.join(dict.fromkeys([SOURCE, *filter(None, others)]))
