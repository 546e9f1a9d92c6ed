"""The benchmarks by name: every BENCHMARK of the files in `tasks/`, and of the folders in $MATHQWEN_TASKS.

A file of problems is one too, by its path: `choose('gsm8k,mine.jsonl', 'math')`.
"""

import dataclasses
import os
import re
from collections.abc import Iterable

from mathqwen import files
from mathqwen.data import catalog, folders, formats
from mathqwen.errors import UserError, look_up
from mathqwen.evals.tasks import Benchmark
from mathqwen.grading import grade


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


def choose(names: str | Iterable[str | os.PathLike | Benchmark], rule: str | None = None) -> list[Benchmark]:
  """The benchmarks of these names or paths, each once.

  names: text with commas, or a list of names, paths or benchmarks. rule: how a file's answers are graded.
  UserError: for an unknown name, a path without a file or without a rule, and two benchmarks of one name.
  """
  chosen = [name.strip() for name in names.split(',')] if isinstance(names, str) else list(names)
  if not chosen:
    raise UserError(f'no benchmark given; there are: {", ".join(BENCHMARKS)}')
  found: dict[str, Benchmark] = {}
  for name in chosen:
    benchmark = name if isinstance(name, Benchmark) else _named(os.fspath(name), rule)
    other = found.setdefault(benchmark.name, benchmark)
    if other.source != benchmark.source:
      raise UserError(
        f'{other.source} and {benchmark.source} would both be called {benchmark.name}: evaluate them one after the '
        'other, or rename a file'
      )
  return list(found.values())


def _named(name: str, rule: str | None) -> Benchmark:
  return of_path(name, rule) if is_path(name) else get(name)


def is_path(name: str) -> bool:
  """Whether this is the path of a file, of a folder or of a data set on the hub, rather than a benchmark's name."""
  if name in BENCHMARKS:
    return False
  return '/' in name or _stem(name) != name or files.path(name).exists()


def of_path(path: str, rule: str | None) -> Benchmark:
  """The benchmark whose problems are in a user's own file or folder, called as that is: 'mine' of 'data/mine.jsonl'.

  UserError: when there is nothing, its name is taken, or no rule is given.
  """
  is_hub = path.startswith((files.HUB, files.HUB_SHORT))
  if not is_hub and not files.path(path).exists():
    raise UserError(f'{path}: no such file or folder; give a file of problems, or one of {", ".join(BENCHMARKS)}')
  name = _stem(path.rstrip('/').rpartition('/')[2])
  if name in BENCHMARKS:
    raise UserError(f'{path} would be called {name}, as a benchmark that exists: rename it')
  if rule is None:
    others = ', '.join(name for name in grade.RULES if name not in ('math', 'number'))
    raise UserError(f'{path}: say how its answers are graded, with --rule math or --rule number (or {others})')
  grade.get(rule)
  return dataclasses.replace(shown(name), source=path, rule=rule)


def _stem(name: str) -> str:
  """A file's name without what says its format: 'mine' of 'mine.jsonl.gz'."""
  end = folders.SUFFIX.search(name) or re.search(formats.COMPRESSION, name, re.IGNORECASE)
  return name[: end.start()]


def shown(name: str) -> Benchmark:
  """The benchmark of that name; of a user's file, all that does not depend on the file."""
  groups = (('level',), ('subject', 'type'))  # as MATH has them
  own = Benchmark(name, title=name, source='', rule='', max_new_tokens=2048, groups=groups)
  return BENCHMARKS.get(name, own)
