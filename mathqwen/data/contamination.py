"""Which rows overlap with problems that a model is tested on.

  exact          a question is a test problem
  punctuation    but for spacing, braces and punctuation (`compared_text.bare`)
  ngrams_half    a question has at least half of the 13-grams of a test problem
  solution_half  an answer has
  ngrams_any     a question has any of them: often a stock phrase
  template       but for its numbers (`compared_text.Words.templates`)

13-grams are of words, in Chinese of characters; there, 30-grams are counted too. The first two and `template` compare
a question without its usual wrapping (`compared_text.unwrapped`), and each line of it with problems without 13-grams.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Sequence

import numpy as np

from mathqwen import files
from mathqwen.data import compared_text as texts
from mathqwen.data.compared_rows import Batch, Row, Text

SIZES = {'words': (13,), 'characters': (13, 30)}  # n of n-grams; the first decides, the others are counted
_SHOWN = 20  # rows that are listed for a test problem and kind
_FILTER_BITS = 24
_SPACING = 2  # a line may be so many times as long as a problem that it is compared with, by its spacing


@dataclasses.dataclass(frozen=True)
class Problem:
  """A test problem."""

  test_set: str
  id: str
  question: str


class _Ngrams:
  """The n-grams of test problems, and which problems have each."""

  def __init__(self, problems: Sequence[Problem], unit: str, n: int):
    of_unit = [i for i, problem in enumerate(problems) if texts.has_han(problem.question) == (unit == 'characters')]
    words = texts.Words([problems[i].question for i in of_unit])
    found, owner = texts.ngrams(words.hashes, words.offsets, n)
    pairs = np.unique(np.stack([found, np.array(of_unit, np.uint64)[owner]]), axis=1)  # an n-gram counts once
    self.values, starts = np.unique(pairs[0], return_index=True)
    self._owners = pairs[1].astype(np.int64)
    self._starts = np.append(starts, len(self._owners))
    self.sizes = np.bincount(self._owners, minlength=len(problems))  # n-grams of each problem
    self._maybe = np.zeros(2**_FILTER_BITS, bool)  # most n-grams of a row are none of a test: a table says so faster
    self._maybe[self._short(self.values)] = True

  @staticmethod
  def _short(values: np.ndarray) -> np.ndarray:
    return (values >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)

  def find(self, values: np.ndarray) -> np.ndarray:
    """Position of each value among `values` of this table; -1 where it is not."""
    result = np.full(len(values), -1, np.int64)
    candidates = np.flatnonzero(self._maybe[self._short(values)])
    if len(candidates):
      at = np.searchsorted(self.values, values[candidates])
      at[at == len(self.values)] = 0
      equal = self.values[at] == values[candidates]
      result[candidates[equal]] = at[equal]
    return result

  def owners(self, position: int) -> np.ndarray:
    """The problems that have the n-gram at this position."""
    return self._owners[self._starts[position] : self._starts[position + 1]]

  def counts(self, seen: Iterable[int]) -> np.ndarray:
    """How many of these n-grams each problem has."""
    counts = np.zeros(len(self.sizes), np.int64)
    for position in seen:
      counts[self.owners(position)] += 1
    return counts


class TestSets:
  """The problems of all test sets, indexed."""

  __test__ = False  # pytest takes it for a test

  def __init__(self, problems: Sequence[Problem]):
    self.problems = problems
    self.tables = {(unit, n): _Ngrams(problems, unit, n) for unit, sizes in SIZES.items() for n in sizes}
    all_forms = _forms([texts.unwrapped(problem.question) for problem in problems])
    self._by_form = {kind: _by_form(forms, range(len(problems))) for kind, forms in all_forms.items()}
    short = np.flatnonzero(sum(self.tables[unit, sizes[0]].sizes for unit, sizes in SIZES.items()) == 0).tolist()
    self._by_form_of_line = {kind: _by_form(forms, short) for kind, forms in all_forms.items()}
    self._longest_line = _SPACING * max((len(problems[i].question) for i in short), default=0)

  def check(self, batch: Batch, found: 'Found', lines: bool = True) -> list[dict[str, tuple[int, float]]]:
    """{kind: (problem, share of its n-grams)} of each row, the strongest hit of each kind. Adds all hits to `found`.

    lines: compare each line of a question with problems without n-grams. False where a question may be an answer.
    """
    hits: list[dict[str, tuple[int, float]]] = [{} for _ in batch.rows]
    for number, kind, problem in self._equal(batch, lines):
      hits[number].setdefault(kind, (problem, 1.0))
      found.add(kind, problem, batch.rows[number], 1.0)
    for (unit, n), table in self.tables.items():
      self._check_ngrams(batch, table, unit, n, hits, found)
    return hits

  def _equal(self, batch: Batch, by_line: bool) -> Iterable[tuple[int, str, int]]:
    """(row, kind, problem) of the rows of which a question, or a line of it, is a problem. Each of them once."""
    as_they_are, cut, lines = [], [], []  # cut: questions in a wrapping
    for turn in np.flatnonzero(~batch.is_answer).tolist():
      text = batch.turns[turn].text
      problem = texts.unwrapped(text)
      if problem == text.strip():
        as_they_are.append(turn)
      else:
        cut.append((turn, problem))
      if by_line:
        lines += [(turn, line) for line in self._lines(problem)]
    templates = batch.words.templates()
    forms = _forms_of([batch.turns[turn] for turn in as_they_are], [templates[turn] for turn in as_they_are])
    compared = [(as_they_are, forms, self._by_form)]
    for parts, tables in ((cut, self._by_form), (lines, self._by_form_of_line)):
      if parts:
        compared.append(([turn for turn, _ in parts], _forms([text for _, text in parts]), tables))
    equal: dict[tuple[int, str, int], None] = {}
    for turns, forms, tables in compared:
      of_rows = batch.row_of_turn[turns].tolist() if turns else []
      for kind, of_turns in forms.items():
        for number, form in zip(of_rows, of_turns, strict=True):
          equal.update(((number, kind, problem), None) for problem in tables[kind].get(form, ()))
    return equal

  def _lines(self, text: str) -> list[str]:
    """The lines of a text that may be a problem without n-grams. A text of one line has none."""
    if '\n' not in text or not self._longest_line:
      return []
    lines = (line.strip() for line in text.split('\n'))
    return [line for line in lines if 0 < len(line) <= self._longest_line]

  def _check_ngrams(self, batch: Batch, table: _Ngrams, unit: str, n: int, hits: list[dict], found: 'Found') -> None:
    seen: dict[tuple[int, bool], set[int]] = collections.defaultdict(set)  # (row, of answers) -> positions in the table
    for words, turn_of_text in batch.words_in(unit):
      values, text = texts.ngrams(words.hashes, words.offsets, n)
      position = table.find(values)
      turn = turn_of_text[text]
      for i in np.flatnonzero((position >= 0) & (turn >= 0)).tolist():
        seen[int(batch.row_of_turn[turn[i]]), bool(batch.is_answer[turn[i]])].add(int(position[i]))
    for (number, of_answers), positions in seen.items():
      if not of_answers:
        found.seen[unit, n].update(positions)
      if n == SIZES[unit][0]:
        self._add_ngrams(table, batch.rows[number], positions, hits[number], found, of_answers)

  def _add_ngrams(
    self, table: _Ngrams, row: Row, positions: set[int], hit: dict, found: 'Found', of_answers: bool
  ) -> None:
    counts = collections.Counter(problem for position in positions for problem in table.owners(position).tolist())
    for problem, count in counts.most_common():
      share = count / int(table.sizes[problem])
      kinds = []
      if share >= 0.5:
        kinds.append('solution_half' if of_answers else 'ngrams_half')
      if not of_answers:
        kinds.append('ngrams_any')
      for kind in kinds:
        if share > hit.get(kind, (0, 0.0))[1]:
          hit[kind] = (problem, share)
        found.add(kind, problem, row, share)


def _forms(parts: Sequence[str]) -> dict[str, list[str | int]]:
  """`_forms_of` texts of which nothing is known yet."""
  return _forms_of([Text.of(part) for part in parts], texts.Words(parts).templates())


def _forms_of(turns: Sequence[Text], templates: Sequence[str | int]) -> dict[str, list[str | int]]:
  """{kind: the form of each turn in which that kind compares them}."""
  return {
    'exact': [turn.text.strip() for turn in turns],
    'punctuation': [texts.bare(turn.plain) for turn in turns],
    'template': list(templates),
  }


def _by_form(forms: Sequence[str | int], numbers: Iterable[int]) -> dict[str | int, list[int]]:
  """The problems of these numbers by their form. An empty text is none."""
  table: dict[str | int, list[int]] = collections.defaultdict(list)
  for number in numbers:
    if forms[number] != '':
      table[forms[number]].append(number)
  return dict(table)


class Found:
  """What was found in some rows: counts for each test problem and kind, a few of the rows, and n-grams seen."""

  def __init__(self):
    self.rows: collections.Counter[tuple[str, int]] = collections.Counter()  # (kind, problem) -> rows
    self.shown: dict[tuple[str, int], list[dict]] = collections.defaultdict(list)
    self.seen: dict[tuple[str, int], set[int]] = {(unit, n): set() for unit, sizes in SIZES.items() for n in sizes}

  def add(self, kind: str, problem: int, row: Row, share: float) -> None:
    """Counts a hit. share: of the problem's n-grams."""
    self.rows[kind, problem] += 1
    if len(self.shown[kind, problem]) < _SHOWN:
      self.shown[kind, problem].append(
        {'where': row.where, 'share': round(share, 3), 'question': row.questions[0].text}
      )

  def merge(self, other: 'Found') -> None:
    """Adds what was found in other rows."""
    self.rows += other.rows
    for key, shown in other.shown.items():
      self.shown[key] += shown[: _SHOWN - len(self.shown[key])]
    for key, positions in other.seen.items():
      self.seen[key] |= positions

  def to_json(self) -> str:
    """For a file of this run."""
    rows = [[kind, problem, count, self.shown[kind, problem]] for (kind, problem), count in self.rows.items()]
    return json.dumps({'rows': rows, 'seen': [[*key, sorted(values)] for key, values in self.seen.items()]})

  @classmethod
  def from_json(cls, text: str | bytes) -> 'Found':
    """What `to_json` wrote."""
    found = cls()
    value = json.loads(text)
    for kind, problem, count, shown in value['rows']:
      found.rows[kind, problem] = count
      found.shown[kind, problem] = shown
    for unit, n, positions in value['seen']:
      found.seen[unit, n] = set(positions)
    return found

  def summary(self, tests: TestSets) -> dict[str, dict[str, int]]:
    """{test set: {kind: its problems that rows overlap with}}; 'ngrams_*': with the n-grams of all rows together.

    'punctuation' and 'template' have the exact ones in them.
    """
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for problem in tests.problems:
      counts[problem.test_set]['problems'] += 1
    for kind, problem in self.rows:
      if not kind.startswith('ngrams'):
        counts[tests.problems[problem].test_set][kind] += 1
    for (unit, n), seen in self.seen.items():
      table = tests.tables[unit, n]
      for problem, count in enumerate(table.counts(seen)):
        if count:
          name = '' if n == SIZES[unit][0] else f'_{n}'
          of_set = counts[tests.problems[problem].test_set]
          of_set[f'ngrams_any{name}'] += 1
          of_set[f'ngrams_half{name}'] += int(2 * count >= table.sizes[problem])
    return {name: dict(of_set) for name, of_set in counts.items()}


def write_problems(path: files.AnyPath, problems: Sequence[Problem]) -> None:
  """Writes test problems for the workers."""
  lines = [json.dumps(dataclasses.asdict(problem), ensure_ascii=False) for problem in problems]
  files.write_atomically(path, ''.join(f'{line}\n' for line in lines).encode('utf-8', 'surrogatepass'))


def read_problems(path: files.AnyPath) -> list[Problem]:
  """What `write_problems` wrote."""
  return [Problem(**json.loads(line)) for line in path.read_bytes().decode('utf-8', 'surrogatepass').splitlines()]
