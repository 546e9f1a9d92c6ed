"""One file for each benchmark: its data, how it is asked and graded, and what was published about it.

To add a benchmark, put one file into this folder, or into a folder of yours that $MATHQWEN_TASKS names. Every list of
benchmarks and data sets (help, tables, `data prepare`, job files) is made from the files that are found there. For
problems in a JSON Lines file with `question` and `answer`, this is all of it:

    from mathqwen.evals.tasks import Benchmark

    BENCHMARK = Benchmark('mine', title='My problems', source='mine.jsonl', rule='number', max_new_tokens=512)

    $ MATHQWEN_TASKS=my_tasks mathqwen evaluate MODEL --benchmarks mine,gsm8k

A data set with a name, a download or a row format of its own is a `DataSet` in the same file, as DATA: see gsm8k.py,
and `mathqwen.data.catalog` for what its fields mean. ORDER is the place of both in lists and tables; files without it
come last.

Public here: `Benchmark` and `PromptSettings`. The benchmarks that were found are in `mathqwen.evals.benchmarks`.
"""

import dataclasses
from collections.abc import Mapping

__all__ = ['Benchmark', 'PromptSettings']


@dataclasses.dataclass(frozen=True)
class PromptSettings:
  """What differs when a benchmark is asked with a certain prompt, because that prompt's system was measured so."""

  rule: str | None = None  # in mathqwen.grading.grade.RULES; None: the benchmark's own
  max_new_tokens: int | None = None  # None: the benchmark's own


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One benchmark. Prompts and rules are given by name, so that this folder imports neither of them."""

  name: str  # in records, scores and directories
  title: str  # column of the table
  source: str  # the name of a data set, or the path of a .jsonl file
  rule: str  # in mathqwen.grading.grade.RULES
  max_new_tokens: int
  split: str = 'test'
  size: int | None = None  # published number of problems
  prompt: str = 'chatml'  # in mathqwen.evals.prompts.PROMPTS
  by_prompt: Mapping[str, PromptSettings] = dataclasses.field(default_factory=dict)
  # One entry for each breakdown of the scores: a field of the records, or several names for it, of which the first
  # that a record has counts.
  groups: tuple[tuple[str, ...], ...] = ()
  # Accuracy in % in Table 12 of the Qwen report (arXiv 2309.16609), by (model, parameters), in the table's order.
  # A benchmark with such figures is always a column of the table.
  table12: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
  # The same from another publication, which is named: rows of the table once the benchmark is measured.
  published: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
  published_in: str = ''

  def __post_init__(self):
    if (self.table12 or self.published) and self.size is None:
      raise ValueError(f'{self.name} has published figures and no size; add the number of problems')
    if self.published and not self.published_in:
      raise ValueError(f'{self.name} has published figures and no published_in; add where they are from')

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
