"""Which problems of a benchmark training data hold, and the score without them: `--against DATA`.

    {"id": "gsm8k/test/7", ..., "against": {"data": ["train.jsonl"], "marked": true, "kinds": {"template":
      {"texts": 3, "share": 1.0, "where": "train.jsonl:18", "text": "Tom has 5 cats. ..."}}}}

A problem is marked when a text of DATA is the same (`exact`), the same but for spacing, braces and punctuation
(`punctuation`), has half of its 13-grams (`ngrams_half`), or is the same but for its numbers (`template`). That a text
has any of its 13-grams (`ngrams_any`) is written down too; that is often a stock phrase, and marks nothing.
13-grams are of words, in Chinese of characters. The problems are indexed, which takes little; DATA is read as a stream.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mathqwen.errors import UserError, report

if TYPE_CHECKING:
  from mathqwen.data.left_out import Report

MARKING = ('exact', 'punctuation', 'ngrams_half', 'template')
KINDS = (*MARKING, 'ngrams_any')
_BATCH = 1000  # texts that are compared at once
_SHOWN = 200  # characters of a text that a record keeps


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Which of some questions training data contain."""

  data: tuple[str, ...]
  kinds: dict[str, dict[str, dict]]  # question -> kind -> what was found; without questions that are in none

  def mark(self, records: Sequence[dict]) -> list[dict]:
    """The records, each with `against`."""
    marked = []
    for record in records:
      kinds = self.kinds.get(record['question'], {})
      about = {'data': list(self.data), 'marked': any(kind in kinds for kind in MARKING), 'kinds': kinds}
      marked.append(record | {'against': about})
    return marked


def compare(questions: Sequence[str], data: Sequence[str], data_dir: str | None = None) -> Overlap:
  """Which of the questions `data` contain. Reports how much was read.

  data: names of data sets, files, folders, patterns of files, data sets on the hub; every text of a record is compared,
  whatever its field. data_dir: of named data sets.
  UserError: when one of `data` is not there, cannot be read, or has no text.
  """
  from mathqwen.data import contamination, left_out
  from mathqwen.data.compared_rows import Batch, Row, Text, take

  distinct = list(dict.fromkeys(questions))
  tests = contamination.TestSets([contamination.Problem('', '', question) for question in distinct])
  found = contamination.Found()
  for source in data:
    skipped = left_out.Report()
    texts = records = 0
    rows = _texts(source, data_dir, skipped)
    while batch := take(rows, _BATCH, lambda row: len(row[1])):
      records += sum(is_first for _, _, is_first in batch)
      texts += len(batch)
      rows_of_texts = [Row(where, [Text.of(text)], [], '', '', '') for where, text, _ in batch]
      tests.check(Batch(rows_of_texts), found, lines=False)  # a text may be an answer
    if not texts:
      raise UserError(f'--against {source}: no text in it; name the training data')
    report(f'compared with {source}: {records:,} records, {texts:,} texts')
    for line in skipped.lines():
      report(f'{source}: not compared: {line}')
  return Overlap(tuple(data), _by_question(distinct, found))


def _by_question(questions: Sequence[str], found) -> dict[str, dict[str, dict]]:
  kinds: dict[str, dict[str, dict]] = {}
  for (kind, number), count in sorted(found.rows.items(), key=lambda item: KINDS.index(item[0][0])):
    question = questions[number]
    if kind == 'template' and not re.search(r'[^\W\d_]', question):
      continue  # of bare arithmetic, a template says nothing
    best = max(found.shown[kind, number], key=lambda row: row['share'])
    about = {'texts': count, 'share': best['share'], 'where': best['where'], 'text': best['question'][:_SHOWN]}
    kinds.setdefault(question, {})[kind] = about
  return kinds


def _texts(source: str, data_dir: str | None, skipped: 'Report') -> Iterator[tuple[str, str, bool]]:
  """(where, text, whether it is the first of its record) of every text of a source, one after another."""
  from mathqwen.data import catalog, formats, sources
  from mathqwen.data.compared_rows import turns_of
  from mathqwen.data.malformed import Malformed

  if catalog.of_source(source) is not None:
    for example in sources.stream(source, skipped, data_dir=data_dir):
      for number, turn in enumerate(turns_of(example)):
        yield f'{source} {example.where}', turn['content'] or '', number == 0
    return
  for path in sources.find_files(source, 'train', left_out=skipped):
    for line, record in formats.records(path):
      where = f'{path.name}:{line}'
      if isinstance(record, Malformed):
        skipped.add('malformed', where, str(record))
        continue
      for number, text in enumerate(_leaves(record)):
        yield where, text, number == 0


def _leaves(value: object) -> Iterator[str]:
  """The texts of a JSON value, at any depth."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    for part in value.values() if isinstance(value, dict) else value:
      yield from _leaves(part)
