"""Two runs over the same problems: which verdicts flipped, and whether the difference is more than chance.

compare('abel', 'openai_6b')     gsm8k: 1,319 problems, 59.7% and 21.7%; difference -38.1 points (95%: -40.9 to -35.1),
                                 exact McNemar test p = 2.6e-115; right -> wrong: 539, wrong -> right: 37

Runs with several answers to each problem are compared by avg@n, with a test over problems.
"""

import collections
import math
import os

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.evals import asked, records, samples
from mathqwen.evals.folder import is_unfinished, known_about
from mathqwen.evals.report.intervals import Z

_SHOWN = 80  # characters of a question that stands for an id


def mcnemar(b: int, c: int) -> float:
  """Exact two-sided p-value of b flips one way and c the other, when each way is equally likely by chance."""
  n = b + c
  tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
  return min(1.0, 2 * tail / 2**n)


def interval(n: int, b: int, c: int) -> tuple[float, float]:
  """95% confidence interval of the paired difference (c - b) / n.

  Wald's interval after half a problem is added to each of the four outcomes (Agresti and Min, 2005). So it keeps its
  coverage where few problems flip, and has a width where none does.
  """
  n += 2
  b += 0.5
  c += 0.5
  mean = (c - b) / n
  half = Z * math.sqrt((b + c) / n - mean**2) / math.sqrt(n)
  return max(-1.0, mean - half), min(1.0, mean + half)


def interval_of(differences: list[float]) -> tuple[float, float]:
  """`interval` for differences between -1 and 1 of each problem, such as those of accuracies over several answers."""
  values = [*differences, 0.0, 0.0, -1.0, 1.0]
  weights = [1.0] * len(differences) + [0.5] * 4
  total = sum(weights)
  mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
  variance = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, values, strict=True)) / total
  half = Z * math.sqrt(variance / total)
  return max(-1.0, mean - half), min(1.0, mean + half)


def sign_flips(differences: list[int]) -> float:
  """Exact two-sided p-value of a sum of differences, when each has either sign with equal probability by chance.

  For differences of -1, 0 and 1 it is `mcnemar`.
  """
  import numpy as np  # late: runs with one answer to each problem need none

  unit = math.gcd(*differences) or 1
  sizes = [abs(difference) // unit for difference in differences if difference]
  total = sum(sizes)
  share = np.zeros(total + 1)  # by the sum of the differences that are positive
  share[0] = 1.0
  for size in sizes:
    moved = np.zeros_like(share)
    moved[size:] = share[: total + 1 - size]
    share = (share + moved) / 2
  sums = np.abs(2 * np.arange(total + 1) - total)
  return float(min(1.0, share[sums >= abs(sum(differences)) // unit].sum()))


def compare(a: str | os.PathLike, b: str | os.PathLike) -> dict:
  """`{'benchmarks': {name: {n, accuracies, flipped ids, other_texts, difference, ...}}, 'only_in_one': [names],
  'unfinished': [names]}`.

  Each of `a` and `b` is what `evaluate` or `grade` wrote with --out, or a NAME directory inside it. A benchmark that
  one of the two has not finished is in `unfinished`; it is compared only when there is no other one. UserError: when
  they have no benchmark in common, or not the same problems.
  """
  files_a, files_b = _record_files(a), _record_files(b)
  shared = [name for name in files_a if name in files_b]
  unfinished = [name for name in shared if is_unfinished(files_a[name]) or is_unfinished(files_b[name])]
  chosen = [name for name in shared if name not in unfinished] or shared
  if not chosen:
    names_a, names_b = ', '.join(files_a), ', '.join(files_b)
    raise UserError(f'{a} holds {names_a} and {b} {names_b}: no benchmark in common; give runs of the same benchmarks')
  return {
    'benchmarks': {name: _compare_files(name, files_a[name], files_b[name]) for name in chosen},
    'only_in_one': sorted(files_a.keys() ^ files_b.keys()),
    'unfinished': unfinished,
  }


def _record_files(folder: str | os.PathLike) -> dict[str, files.AnyPath]:
  """{benchmark: its records.jsonl}"""
  path = files.path(folder)
  if not path.is_dir():
    raise UserError(f'{path}: no such directory; give what evaluate or grade wrote with --out')
  if (path / 'records.jsonl').exists():
    found = [path / 'records.jsonl']
  else:
    found = sorted(path.glob('*/records.jsonl'))
  if not found:
    raise UserError(f'{path}: no records.jsonl in it; give what evaluate or grade wrote with --out')
  if len(found) == 1:
    return {_benchmark_of(found[0]): found[0]}
  return {file.parent.name: file for file in found}


def _benchmark_of(file: files.AnyPath) -> str:
  """The name in the first record: the directory of a single benchmark may have any name."""
  first = next(iter(records.read(file).records), {})
  return str(first.get('benchmark') or file.parent.name)


def _records_by_problem(file: files.AnyPath) -> dict[str, dict]:
  """{problem: its record}"""
  rows = records.read(file).records
  if not rows:
    raise UserError(f'{file}: no records in it; evaluate first')
  for row in rows:
    if not isinstance(row.get('correct'), bool):
      raise UserError(f'{file}: {_problem_key(row)} has no verdict; `mathqwen grade` gives it one')
  found = {}
  times: collections.Counter[str] = collections.Counter()
  for row in rows:
    key = _problem_key(row)
    times[key] += 1  # without ids, a question may be there twice: Math401 asks eight of them twice
    found[key if times[key] == 1 else f'{key} (no. {times[key]})'] = row
  return found


def _problem_key(row: dict) -> str:
  return str(row['question'] if row.get('id') is None else row['id'])


def _compare_files(name: str, file_a: files.AnyPath, file_b: files.AnyPath) -> dict:
  """One entry of `compare`. UserError: when the files do not hold one answer to each of the same problems."""
  rows_a, rows_b = _records_by_problem(file_a), _records_by_problem(file_b)
  samples_a, samples_b = _samples(file_a, rows_a), _samples(file_b, rows_b)
  if samples_a > 1 or samples_b > 1:
    return _compare_sampled(name, (file_a, rows_a, samples_a), (file_b, rows_b, samples_b))
  _check_same_problems(name, file_a, rows_a, file_b, rows_b)

  right_to_wrong, wrong_to_right = [], []
  for key, row in rows_a.items():
    if row['correct'] and not rows_b[key]['correct']:
      right_to_wrong.append(key)
    elif rows_b[key]['correct'] and not row['correct']:
      wrong_to_right.append(key)

  n = len(rows_a)
  lost, gained = len(right_to_wrong), len(wrong_to_right)
  right = sum(row['correct'] for row in rows_a.values())
  return {
    'n': n,
    'accuracy_a': right / n,
    'accuracy_b': (right - lost + gained) / n,
    'right_to_wrong': right_to_wrong,
    'wrong_to_right': wrong_to_right,
    'difference': (gained - lost) / n,
    'interval95': interval(n, lost, gained),
    'p_value': mcnemar(lost, gained),
    'other_texts': sum(row.get('response') != rows_b[key].get('response') for key, row in rows_a.items()),
    'undecided': [_undecided(rows_a), _undecided(rows_b)],
    'rules': [_rule(file_a, rows_a), _rule(file_b, rows_b)],
    'asked': [_asked(file_a), _asked(file_b)],
  }


def _undecided(rows: dict[str, dict]) -> int:
  """Answers that the rule could not decide about, which count as not right."""
  return sum(row.get('verdict') == 'undecided' for row in rows.values())


def _samples(file: files.AnyPath, rows: dict[str, dict]) -> int:
  """How many answers each problem has. UserError: when some lack answers."""
  count = known_about(file).get('samples') or samples.per_problem(rows.values())
  if count > 1 and (problem := samples.incomplete(list(rows.values()), count)):
    raise UserError(
      f'{file}: {problem!r} lacks some of the {count} answers to each problem; finish the evaluation first'
    )
  return count


_Run = tuple[files.AnyPath, dict[str, dict], int]  # the file, its records, and how many there are of each problem


def _compare_sampled(name: str, run_a: _Run, run_b: _Run) -> dict:
  """As `_compare_files`, where a run has several answers to each problem: accuracies are avg@n, flips of maj@n."""
  (file_a, rows_a, samples_a), (file_b, rows_b, samples_b) = run_a, run_b
  problems_a, problems_b = samples.by_problem(rows_a, samples_a), samples.by_problem(rows_b, samples_b)
  first_a, first_b = ({key: rows[0] for key, rows in found.items()} for found in (problems_a, problems_b))
  _check_same_problems(name, file_a, first_a, file_b, first_b)

  right_a, right_b = (
    {key: sum(row['correct'] for row in rows) for key, rows in found.items()} for found in (problems_a, problems_b)
  )
  voted_a = {key: samples.majority_is_correct(rows) for key, rows in problems_a.items()}
  voted_b = {key: samples.majority_is_correct(problems_b[key]) for key in problems_a}
  n = len(problems_a)
  # In units of 1 / (samples_a * samples_b), so that the test adds integers.
  differences = [right_b[key] * samples_a - right_a[key] * samples_b for key in problems_a]
  unit = samples_a * samples_b
  texts = None
  if samples_a == samples_b:
    texts = sum(row.get('response') != rows_b[key].get('response') for key, row in rows_a.items())
  return {
    'n': n,
    'samples': [samples_a, samples_b],
    'accuracy_a': sum(right_a.values()) / n / samples_a,
    'accuracy_b': sum(right_b.values()) / n / samples_b,
    'majority_a': sum(voted_a.values()) / n,
    'majority_b': sum(voted_b.values()) / n,
    'right_to_wrong': [key for key in voted_a if voted_a[key] and not voted_b[key]],
    'wrong_to_right': [key for key in voted_a if voted_b[key] and not voted_a[key]],
    'difference': sum(differences) / n / unit,
    'interval95': interval_of([difference / unit for difference in differences]),
    'p_value': sign_flips(differences),
    'other_texts': texts,
    'undecided': [_undecided(rows_a), _undecided(rows_b)],
    'rules': [_rule(file_a, rows_a), _rule(file_b, rows_b)],
    'asked': [_asked(file_a), _asked(file_b)],
  }


def _check_same_problems(
  name: str, file_a: files.AnyPath, rows_a: dict[str, dict], file_b: files.AnyPath, rows_b: dict[str, dict]
) -> None:
  """UserError: unless both files have the same problems."""
  missing = [key for key in rows_a if key not in rows_b] + [key for key in rows_b if key not in rows_a]
  if missing:
    raise UserError(
      f'{name}: {len(rows_a)} problems in {file_a} and {len(rows_b)} in {file_b}, {len(missing)} of them in one only, '
      f'such as {missing[0][:_SHOWN]!r}; compare runs over the same problems (the same '
      '--limit and --limit-seed, both finished)'
    )
  for key, row in rows_a.items():
    other = rows_b[key]
    # A gold answer may be written in two ways (2,125 and 2125), so it is compared only when there is no question.
    field = 'question' if 'question' in row and 'question' in other else 'gold'
    if row[field] != other[field]:
      raise UserError(
        f'{name}: {key!r} has another {field} in {file_b} than in {file_a}; compare runs over one data set'
      )


def _rule(file: files.AnyPath, rows: dict[str, dict]) -> str | None:
  """The rule that the records name, or else the one in the scores beside them."""
  named = {row['rule'] for row in rows.values() if isinstance(row.get('rule'), str)}
  return ' and '.join(sorted(named)) or known_about(file).get('rule')


def _asked(file: files.AnyPath) -> dict | None:
  """How the model was asked: `asked.FIELDS`; None where an older version or another program did not say it."""
  known = known_about(file)
  return {key: known[key] for key in asked.FIELDS} if known.keys() >= set(asked.FIELDS) else None


def describe(result: dict, shown: int = 10) -> str:
  """What `compare` found, for people; with at most `shown` ids of each kind of flip."""
  lines = []
  for name, pair in result['benchmarks'].items():
    lines += _describe_pair(name, pair, shown)
  if result['only_in_one']:
    lines.append(f'not compared, in one of the two only: {", ".join(result["only_in_one"])}')
  for name in result['unfinished']:
    what = 'only what is answered so far' if name in result['benchmarks'] else 'not compared'
    lines.append(f'{name} is not finished in one of the two: {what}')
  return '\n'.join(lines)


def _describe_pair(name: str, pair: dict, shown: int) -> list[str]:
  low, high = pair['interval95']
  lines = [
    f'{name}: {pair["n"]:,} problems, {pair["accuracy_a"]:.1%} and {pair["accuracy_b"]:.1%}; difference '
    f'{100 * pair["difference"]:+.1f} points (95%: {100 * low:+.1f} to {100 * high:+.1f}), '
    f'exact {"sign-flip" if "samples" in pair else "McNemar"} test p = {pair["p_value"]:.2g}'
  ]
  if 'samples' in pair:
    count_a, count_b = pair['samples']
    lines.append(
      f'  means of {count_a} and {count_b} answers to each; by majority {pair["majority_a"]:.1%} and '
      f'{pair["majority_b"]:.1%}, and flips are of the majority'
    )
  for field, words in (('right_to_wrong', 'right -> wrong'), ('wrong_to_right', 'wrong -> right')):
    ids = pair[field]
    listed = ', '.join(ids[:shown])
    if len(ids) > shown:
      listed += ', ... (all with --json)'
    lines.append(f'  {words}: {len(ids)}' + (f' ({listed})' if ids else ''))
  if pair['other_texts'] is not None:
    lines.append(f'  answers that differ as texts: {pair["other_texts"]}')
  if any(pair['undecided']):
    undecided_a, undecided_b = pair['undecided']
    lines.append(f'  undecided, which count as not right: {undecided_a} and {undecided_b}; grade them again')
  rule_a, rule_b = pair['rules']
  if rule_a != rule_b:
    names = [rule or 'one that is not recorded' for rule in (rule_a, rule_b)]
    lines.append(f'  graded by different rules, {" and ".join(names)}, which may explain flips')
  asked_a, asked_b = pair['asked']
  if asked_a and asked_b and asked.differ(asked_a, asked_b):
    lines.append(f'  asked differently ({asked.text(asked_a)}; {asked.text(asked_b)}), which may explain flips')
  return lines
