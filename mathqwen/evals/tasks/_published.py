"""What the files of published test sets have in common. Files whose name begins with `_` are no benchmarks."""

import decimal
import re
from collections.abc import Callable, Mapping

from mathqwen.data.catalog import DataSet, Download, Split
from mathqwen.data.malformed import Malformed

# Most are republished together, in one format, by the authors of Qwen2.5-Math.
QWEN_DATA = (
  'https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/a45202bd16f1ec06f433442dc1152d0074773465/evaluation/data'
)
_QWEN_REPORT = 'Qwen2.5-Math Technical Report, arXiv 2409.12122, Tables 2 to 4: zero-shot, chain of thought, greedy'


class NoAnswer(Malformed):
  """A row without a gold answer, which nobody can be asked; the message says why."""

  kind = 'no_answer'


def test_set(
  name: str,
  parse: Callable[[dict], dict],
  address: str,
  sha256: str | None,
  *,
  about: str,
  licence: str,
  fields: tuple[str, ...],
  also: tuple[str, ...] = (),
  more_splits: Mapping[str, Split] = {},  # noqa: B006 - they are only read
  more_downloads: Mapping[str, Download] = {},  # noqa: B006
  **more: object,
) -> DataSet:
  """A data set with a split `test` in one file: DIR/NAME/test.jsonl, DIR/NAME/ and its published name, DIR/NAME.jsonl.

  also: further paths of the file below DIR. The other arguments: of `DataSet` and `Download`.
  """
  published = address.rpartition('/')[2]
  files = dict.fromkeys((f'{name}/test.jsonl', f'{name}/{published}', f'{name}.jsonl', *also))
  return DataSet(
    name=name,
    about=about,
    licence=licence,
    splits={'test': Split(tuple(files)), **more_splits},
    parse=parse,
    fields=fields,
    downloads={f'{name}/{published}': Download(address, sha256), **more_downloads},
    **more,
  )


def qwen_instruct(*accuracies: float) -> dict:
  """Published figures as `Benchmark` takes them: accuracies in % of Qwen2.5-Math-Instruct with 1.5B, 7B and 72B."""
  figures = zip(('1.5B', '7B', '72B'), accuracies, strict=True)
  published = {('Qwen2.5-Math-Instruct', parameters): accuracy for parameters, accuracy in figures}
  return {'published': published, 'published_in': _QWEN_REPORT}


def problem(question: str, answer: str, solution: str = '', **extra: object) -> dict:
  """The fields of an Example. extra: for groups and graders; None is left out."""
  kept = {name: value for name, value in extra.items() if value is not None}
  return {'question': question, 'solution': solution or answer, 'answer': answer, 'extra': kept}


def without_marks(text: str) -> str:
  r"""A text of LaTeX without its marks of mathematics: '$48$, $384$' -> '48, 384'. Money stays: \\$3."""
  return re.sub(r'(?<!\\)\$', '', text).strip()


def as_text(answer: str) -> str:
  r"""Words as LaTeX writes them, so that they are compared as words: 'Yes' -> '\text{Yes}'. Others stay."""
  return f'\\text{{{answer.removesuffix(".")}}}' if re.match('[A-Za-z]', answer) else answer


def plain(number: str) -> str:
  """A number without exponent and final zeros: '145.0' -> '145', '3.509e-07' -> '0.0000003509'. Other text stays."""
  try:
    text = f'{decimal.Decimal(number):f}'
  except decimal.InvalidOperation:
    return number
  return text.rstrip('0').rstrip('.') if '.' in text else text
