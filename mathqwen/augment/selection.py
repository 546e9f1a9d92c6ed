"""Which samples of a question are kept: the rule of RFT (arXiv 2308.01825), as its authors' script applies it.

Of the right answers whose calculations all hold, one for each list of equations: of two with the same list, the one
whose wording is farther, in the sum of edit distances, from those kept for the other lists. Samples are taken in the
order of their numbers, so the outcome does not depend on the order in which they arrived.

What the script does not have to decide, because all of its answers have marked calculations: an answer without any
equation is known by its formulas (LaTeX), and without those by its words.
"""

import functools
from collections.abc import Collection, Sequence

from mathqwen.augment import equations

# Why a sample is not kept, in the order of the card. The first four are verdicts of a grader; a sample that reached its
# limit of tokens is 'cut off' whatever the grader says.
DROPPED = ('undecided', 'no answer', 'cut off', 'wrong', 'wrong calculation', 'same equations', 'same text')


def select(records: Sequence[dict], golds: Collection[str]) -> list[dict]:
  """The records, graded samples of one question in their order, each with `kept`, `dropped` and `why`.

  golds: solutions that are kept beside them; a sample with the very words of one is not. dropped: one of DROPPED, None
  for a kept one; why: in words.
  """
  verdicts = [_verdict(record) for record in records]
  kept: list[int] = []  # positions of records, one for each list of equations
  place: dict[tuple, int] = {}  # list of equations -> index in `kept`
  gold_words = {_words(gold) for gold in golds if gold}
  for i, record in enumerate(records):
    if verdicts[i]:
      continue
    text = record['response']
    if _words(text) in gold_words:
      verdicts[i] = ('same text', 'as the gold answer')
      continue
    key = _key(text)
    if key not in place:
      place[key] = len(kept)
      kept.append(i)
      continue
    now = kept[place[key]]
    others = [records[other]['response'] for other in kept if other != now]
    if _distance(text, others) > _distance(records[now]['response'], others):
      kept[place[key]] = i
      verdicts[now] = ('same equations', f'as {record["id"]}, whose wording differs more')
    else:
      verdicts[i] = ('same equations', f'as {records[now]["id"]}')

  result = []
  for record, verdict in zip(records, verdicts, strict=True):
    dropped, why = verdict or (None, '')
    result.append({**record, 'kept': dropped is None, 'dropped': dropped, 'why': why})
  return result


def pairs(records: Sequence[dict], most: int) -> list[tuple[dict, dict]]:
  """(right answer, wrong answer) of one question, at most so many. No two of them have the same words.

  records: as `select` returns them. The right answers are those whose calculations all hold, kept ones first; a wrong
  one was finished and has an answer. Otherwise they come in the order of their numbers.
  """
  right = [record for record in records if record['dropped'] in (None, 'same equations', 'same text')]
  right.sort(key=lambda record: not record['kept'])
  wrong = [record for record in records if record['dropped'] == 'wrong']
  return list(zip(_different(right), _different(wrong), strict=False))[:most]


def _different(records: Sequence[dict]) -> list[dict]:
  """The first record of each wording."""
  found: dict[str, dict] = {}
  for record in records:
    found.setdefault(_words(record['response']), record)
  return list(found.values())


def _verdict(record: dict) -> tuple[str, str] | None:
  """(one of DROPPED, why) of a sample that is no right answer; None of one that is."""
  if record['truncated']:
    return 'cut off', 'it is not finished'
  if record['verdict'] != 'right':
    return record['verdict'], record['reason']
  for equation in equations.read(record['response']):
    if not equation.holds:
      return 'wrong calculation', equation.text
  return None


def _key(text: str) -> tuple[str, ...]:
  """What answers are told apart by."""
  found = [equation.text for equation in equations.read(text)]
  return tuple(found or equations.formulas(text) or [_words(text)])


def _words(text: str) -> str:
  return ' '.join(text.split())


def _distance(text: str, others: list[str]) -> int:
  return sum(edit_distance(text, other) for other in others)


@functools.lru_cache(maxsize=2**16)
def edit_distance(a: str, b: str) -> int:
  """Levenshtein's distance: the fewest insertions, deletions and replacements of characters that make `b` of `a`.

  A column of the table is two integers, whose bits say where it rises and falls (Hyyrö 2003, after Myers 1999): one
  pass over `b`.
  """
  if not a or not b:
    return len(a) + len(b)
  positions: dict[str, int] = {}
  for i, character in enumerate(a):
    positions[character] = positions.get(character, 0) | 1 << i
  last = 1 << len(a) - 1
  everywhere = (1 << len(a)) - 1
  rises, falls = everywhere, 0
  distance = len(a)
  for character in b:
    equal = positions.get(character, 0)
    diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
    up = falls | ~(diagonal | rises) & everywhere
    down = rises & diagonal
    distance += bool(up & last) - bool(down & last)
    up = up << 1 | 1
    down <<= 1
    rises = (down | ~(diagonal | up)) & everywhere
    falls = up & diagonal & everywhere
  return distance
