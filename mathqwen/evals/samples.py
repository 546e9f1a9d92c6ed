"""Several answers to each problem: their ids, pass@k and maj@k."""

import collections
import dataclasses
import math
import re
from collections.abc import Collection

from mathqwen.grading import latex, values


def expand(examples: list, samples: int) -> list:
  """Each example `samples` times, as 'gsm8k/test/0#0', 'gsm8k/test/0#1', ...; as it is where there is one sample."""
  if samples == 1:
    return examples
  return [dataclasses.replace(example, id=f'{example.id}#{i}') for example in examples for i in range(samples)]


def _is_numbered(name) -> bool:
  return isinstance(name, str) and re.fullmatch(r'.*#[0-9]{1,9}', name, re.DOTALL) is not None


def count(records: Collection[dict]) -> int:
  """How many answers to each problem there are at most, by ids as `expand` gives them; 1 where they are others."""
  ids = [record.get('id') for record in records]
  if not all(map(_is_numbered, ids)):
    return 1
  for answers in _by_problem(records):  # ids may be numbered for another reason
    questions = {record.get('question') for record in answers}
    if len(questions) > 1 or None in questions:
      return 1
  return 1 + max(int(name.rpartition('#')[2]) for name in ids)


def incomplete(records: list[dict], samples: int) -> str | None:
  """The first problem that has not so many answers, or the first id that is none of `expand`."""
  for record in records:
    if not _is_numbered(record.get('id')):
      return str(record.get('id'))
  return next((found[0]['id'].rpartition('#')[0] for found in _by_problem(records) if len(found) != samples), None)


def pass_at(k: int, n: int, correct: int) -> float:
  """Chance that one of k answers is right, drawn from n of which so many are (Chen et al., arXiv 2107.03374)."""
  return 1 - math.comb(n - correct, k) / math.comb(n, k)


def summarise(records: list[dict], samples: int) -> dict:
  """`clustered`, with `pass_at_k` for k of 1, 2, 4, ... and `samples`, and `maj_at_k` of all samples."""
  problems = _by_problem(records)
  count, ks = len(problems), sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})
  rights = [sum(record['correct'] for record in answers) for answers in problems]
  return clustered(records, samples) | {
    'samples': samples,
    'pass_at_k': {str(k): sum(pass_at(k, samples, right) for right in rights) / count for k in ks},
    'maj_at_k': {str(samples): sum(map(_majority, problems)) / count},
  }


def clustered(records: list[dict], samples: int) -> dict:
  """How many `problems` there are, and the accuracy's `stderr` over them: answers to one are no independent draws."""
  rights = [sum(record['correct'] for record in answers) / samples for answers in _by_problem(records)]
  count = len(rights)
  squares = sum((right - sum(rights) / count) ** 2 for right in rights)
  return {'problems': count, 'stderr': math.sqrt(squares / count / max(count - 1, 1))}


def _by_problem(records: list[dict]) -> list[list[dict]]:
  problems: dict[str, list[dict]] = collections.defaultdict(list)
  for record in records:
    problems[record['id'].rpartition('#')[0]].append(record)
  return list(problems.values())


def _majority(answers: list[dict]) -> bool:
  """Whether the answer that most responses hold is right; of equally frequent ones the first counts."""
  votes = collections.Counter(map(_vote, (record for record in answers if record['extracted'] is not None)))
  if not votes:
    return False
  (chosen, _), *_ = votes.most_common(1)
  return next(record['correct'] for record in answers if record['extracted'] is not None and _vote(record) == chosen)


def _vote(record: dict):
  """Right answers are one, however they are written; wrong ones by their value, or by their text without spelling."""
  if record['correct']:
    return True
  number = values.value(record['extracted'])
  return (latex.normalise(record['extracted']),) if number is None else (number,)
