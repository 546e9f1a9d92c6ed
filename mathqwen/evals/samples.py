"""Several answers to each problem: their ids, and avg@n, pass@k and maj@k with intervals.

avg@n     accuracy over all n answers to each problem
pass@k    probability that k of the n answers, drawn without replacement, include a correct one
maj@k     share of the draws of k answers whose most frequent answer is correct; DeepSeek-R1 calls it cons@k

All draws are counted, none is simulated.
"""

import bisect
import collections
import dataclasses
import math
import re
from collections.abc import Collection, Hashable, Sequence

from mathqwen.evals.report.intervals import interval
from mathqwen.grading import latex, values

SHOWN_METRICS = ('avg_at_n', 'pass_at_k', 'maj_at_k')  # metrics in tables and lines
METRICS = (*SHOWN_METRICS, 'cons_at_k')  # in scores
_MOST_DRAWN = 128  # samples, up to which all draws of fewer are counted
_METHOD = 'Wilson, with the effective sample size of the standard error clustered by problem'

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
  """`clustered`, with each metric for its k (1, 2, 4, ... and `samples`), and `intervals95` of each.

  Above `_MOST_DRAWN` samples, maj@k is of all samples only.
  """
  problems = _by_problem(records)
  ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
  drawn = ks if samples <= _MOST_DRAWN else [samples]
  corrects = [sum(record['correct'] for record in answers) for answers in problems]
  if samples > _MOST_DRAWN:
    majorities = [{samples: float(majority_is_correct(answers))} for answers in problems]
  else:
    majorities = [majority_at([vote(record) for record in answers], drawn) for answers in problems]
  of_problems = {
    'avg_at_n': {samples: [correct / samples for correct in corrects]},
    'pass_at_k': {k: [pass_at(k, samples, correct) for correct in corrects] for k in ks},
    'maj_at_k': {k: [shares[k] for shares in majorities] for k in drawn},
  }
  of_problems['cons_at_k'] = of_problems['maj_at_k']
  found: dict = clustered(records, samples) | {'samples': samples, 'intervals95': {}, 'interval_method': _METHOD}
  for metric, by_k in of_problems.items():
    found[metric] = {str(k): sum(values) / len(values) for k, values in by_k.items()}
    found['intervals95'][metric] = {str(k): _interval(values, samples) for k, values in by_k.items()}
  return found


def _interval(values: Sequence[float], samples: int) -> tuple[float, float]:
  """95% interval of the mean over problems: Wilson's, with the effective sample size of its standard error."""
  mean = sum(values) / len(values)
  scores = {'n': len(values) * samples, 'accuracy': mean, 'stderr': _standard_error(values)}
  return interval(scores, samples)


def _standard_error(values: Sequence[float]) -> float:
  """Of the mean of values that do not depend on each other."""
  count = len(values)
  mean = sum(values) / count
  return math.sqrt(sum((value - mean) ** 2 for value in values) / count / max(count - 1, 1))


def clustered(records: list[dict], samples: int) -> dict:
  """The number of `problems`, and the `stderr` of the accuracy over them.

  Answers to one problem are not independent, so the variance is that of the problems' means.
  """
  means = [sum(record['correct'] for record in answers) / samples for answers in _by_problem(records)]
  return {'problems': len(means), 'stderr': _standard_error(means)}


def by_problem(rows: dict[str, dict], samples: int) -> dict[str, list[dict]]:
  """The records of `rows`, {id: record}, by problem."""
  if samples == 1:
    return {key: [row] for key, row in rows.items()}
  return {_problem_of(answers[0]['id']): answers for answers in _by_problem(rows.values())}


def majority_is_correct(answers: list[dict]) -> bool:
  """Whether the most frequent answer is correct. The first of equally frequent ones counts; no answer has no vote."""
  votes = collections.Counter(one for one in map(vote, answers) if one is not None)
  return bool(votes) and votes.most_common(1)[0][0] is True


def majority_at(votes: Sequence[Hashable], ks: Collection[int]) -> dict[int, float]:
  """For each k, the share of the draws of k of the votes, in their order, whose most frequent vote is True.

  votes: None is no vote. Of equally frequent votes the first drawn counts.
  A draw is won with j right votes, the first of them at some place, if it has fewer than j of each other vote, or j
  that all come later. The draws by their size are the coefficients of a product of polynomials, each with a factor for
  one vote. A polynomial is one integer here, with `width` bits for a coefficient.
  """
  n = len(votes)
  width = n + 1  # the coefficients are numbers of draws, at most 2**n
  places: dict[Hashable, list[int]] = collections.defaultdict(list)
  for place, one in enumerate(votes):
    places[one].append(place)
  right = places.pop(True, [])
  free = len(places.pop(None, []))  # votes that cannot be more frequent
  others = list(places.values())
  fewer = [0] * len(others)  # of each other vote, the draws of fewer than j
  won = 0
  for j in range(1, len(right) + 1):
    fewer = [
      sum_ + (math.comb(len(places), j - 1) << (j - 1) * width) for sum_, places in zip(fewer, others, strict=True)
    ]
    small = free + sum(len(places) for places in others if len(places) < j)
    draws = sum(math.comb(small, x) << x * width for x in range(small + 1))
    rivals = [(sum_, places) for sum_, places in zip(fewer, others, strict=True) if len(places) >= j]
    if not rivals:
      won += math.comb(len(right), j) * draws << j * width
      continue
    for at, place in enumerate(right[: len(right) - j + 1]):
      product = draws * math.comb(len(right) - at - 1, j - 1)
      for sum_, places in rivals:
        later = len(places) - bisect.bisect(places, place)
        product *= sum_ + (math.comb(later, j) << j * width)
      won += product << j * width
  mask = (1 << width) - 1
  return {k: (won >> k * width & mask) / math.comb(n, k) for k in ks}


def vote(record: dict) -> bool | tuple | None:
  """A key that equal answers share: all correct ones; incorrect ones with one value, or with one normalised text.

  None: there is no answer to vote for.
  """
  if record['extracted'] is None:
    return None
  if record['correct']:
    return True
  number = values.value(record['extracted'])
  return (latex.normalise(record['extracted']),) if number is None else (number,)
