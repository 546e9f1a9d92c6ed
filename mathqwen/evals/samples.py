"""Several answers to each problem: their ids, pass@k and maj@k."""

import collections
import dataclasses
import math
import re
from collections.abc import Collection

from mathqwen.grading import latex, values

# --- ids ---


def expand(examples: list, samples: int) -> list:
  """Each example `samples` times, with the ids 'gsm8k/test/0#0', 'gsm8k/test/0#1', ...; unchanged for one sample."""
  if samples == 1:
    return examples
  expanded = []
  for example in examples:
    expanded += [dataclasses.replace(example, id=f'{example.id}#{i}') for i in range(samples)]
  return expanded


def _is_numbered(name: object) -> bool:
  return isinstance(name, str) and re.fullmatch(r'.*#[0-9]{1,9}', name, re.DOTALL) is not None


def _problem_of(name: str) -> str:
  """'gsm8k/test/0' of 'gsm8k/test/0#1'."""
  return name.rpartition('#')[0]


def per_problem(records: Collection[dict]) -> int:
  """The largest number of answers to one problem, by ids as `expand` makes them; 1 when the ids are different."""
  ids = [record.get('id') for record in records]
  if not all(map(_is_numbered, ids)):
    return 1
  for answers in _by_problem(records):  # ids may be numbered for another reason: then the questions differ
    questions = {record.get('question') for record in answers}
    if len(questions) > 1 or None in questions:
      return 1
  return 1 + max(int(name.rpartition('#')[2]) for name in ids)


def incomplete(records: list[dict], samples: int) -> str | None:
  """The first id that `expand` did not make, or else the first problem that does not have `samples` answers."""
  for record in records:
    if not _is_numbered(record.get('id')):
      return str(record.get('id'))
  for answers in _by_problem(records):
    if len(answers) != samples:
      return _problem_of(answers[0]['id'])
  return None


def _by_problem(records: Collection[dict]) -> list[list[dict]]:
  problems: dict[str, list[dict]] = collections.defaultdict(list)
  for record in records:
    problems[_problem_of(record['id'])].append(record)
  return list(problems.values())


# --- scores ---


def pass_at(k: int, n: int, correct: int) -> float:
  """Probability that k of n answers, drawn without replacement, include a correct one (Chen et al., 2107.03374)."""
  return 1 - math.comb(n - correct, k) / math.comb(n, k)


def summarise(records: list[dict], samples: int) -> dict:
  """`clustered`, with `pass_at_k` for k = 1, 2, 4, ... and `samples`, and with `maj_at_k` of all samples."""
  problems = _by_problem(records)
  count = len(problems)
  ks = {samples}
  k = 1
  while k <= samples:
    ks.add(k)
    k *= 2

  corrects = [sum(record['correct'] for record in answers) for answers in problems]
  pass_at_k = {}
  for k in sorted(ks):
    pass_at_k[str(k)] = sum(pass_at(k, samples, correct) for correct in corrects) / count
  return clustered(records, samples) | {
    'samples': samples,
    'pass_at_k': pass_at_k,
    'maj_at_k': {str(samples): sum(map(_majority_is_correct, problems)) / count},
  }


def clustered(records: list[dict], samples: int) -> dict:
  """The number of `problems`, and the `stderr` of the accuracy over them.

  Answers to one problem are not independent, so the variance is that of the problems' means.
  """
  means = [sum(record['correct'] for record in answers) / samples for answers in _by_problem(records)]
  count = len(means)
  mean = sum(means) / count
  squares = sum((value - mean) ** 2 for value in means)
  return {'problems': count, 'stderr': math.sqrt(squares / count / max(count - 1, 1))}


def _majority_is_correct(answers: list[dict]) -> bool:
  """Whether the most frequent answer is correct. The first of equally frequent ones counts; no answer has no vote."""
  voters = [record for record in answers if record['extracted'] is not None]
  votes = collections.Counter(map(vote, voters))
  if not votes:
    return False
  [(chosen, _)] = votes.most_common(1)
  return next(record['correct'] for record in voters if vote(record) == chosen)


def vote(record: dict) -> bool | tuple:
  """A key that equal answers share: all correct ones; incorrect ones with one value, or with one normalised text."""
  if record['correct']:
    return True
  number = values.value(record['extracted'])
  return (latex.normalise(record['extracted']),) if number is None else (number,)
