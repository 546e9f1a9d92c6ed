"""Two runs over the same problems: which of them flipped, and whether the difference is more than chance.

compare('abel', 'openai_6b')     gsm8k: 1,319 problems, 59.7% and 21.7%; difference -38.1 points (95%: -40.9 to -35.1),
                                 exact McNemar test p = 2.6e-115; right -> wrong: 539, wrong -> right: 37
"""

import collections
import math
import os
import pathlib

from mathqwen.errors import UserError
from mathqwen.evals import records, samples
from mathqwen.evals.folder import about, is_unfinished
from mathqwen.evals.report.page import Z


def mcnemar(b: int, c: int) -> float:
  """Exact two-sided p-value of b flips one way and c the other, each way being equally likely by chance."""
  n = b + c
  tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
  return min(1.0, 2 * tail / 2**n)


def interval(n: int, b: int, c: int) -> tuple[float, float]:
  """95% confidence interval of the paired difference (c - b) / n.

  Wald's, after half a problem is added to each of the four outcomes (Agresti and Min, 2005), so that it keeps its
  coverage where few problems flip, and is no point where none does.
  """
  n, b, c = n + 2, b + 0.5, c + 0.5
  mean = (c - b) / n
  half = Z * math.sqrt((b + c) / n - mean**2) / math.sqrt(n)
  return max(-1.0, mean - half), min(1.0, mean + half)


def compare(a: str | os.PathLike, b: str | os.PathLike) -> dict:
  """`{'benchmarks': {name: {n, accuracies, flipped ids, other_texts, difference, ...}}, 'only_in_one': [names],
  'unfinished': [names]}`.

  Each of `a` and `b` is what `evaluate` or `grade` wrote with --out, or a NAME directory inside it. Benchmarks that one
  of the two has not finished are `unfinished`, and not compared where there are others.
  """
  found_a, found_b = _find(a), _find(b)
  shared = [name for name in found_a if name in found_b]
  unfinished = [name for name in shared if is_unfinished(found_a[name]) or is_unfinished(found_b[name])]
  common = [name for name in shared if name not in unfinished] or shared
  if not common:
    raise UserError(
      f'{a} holds {", ".join(found_a)} and {b} {", ".join(found_b)}: no benchmark in common; give runs of the same'
    )
  result = {name: _pair(name, found_a[name], found_b[name]) for name in common}
  only = sorted(found_a.keys() ^ found_b.keys())
  return {'benchmarks': result, 'only_in_one': only, 'unfinished': unfinished}


def _find(path) -> dict[str, pathlib.Path]:
  """Records files by benchmark."""
  path = pathlib.Path(path)
  if not path.is_dir():
    raise UserError(f'{path}: no such directory; give what evaluate or grade wrote with --out')
  if (path / 'records.jsonl').exists():
    files = [path / 'records.jsonl']
  else:
    files = sorted(path.glob('*/records.jsonl'))
  if not files:
    raise UserError(f'{path}: no records.jsonl in it; give what evaluate or grade wrote with --out')
  return {file.parent.name if len(files) > 1 else _name(file): file for file in files}


def _name(file: pathlib.Path) -> str:
  first = next(iter(records.read(file).records), {})
  return str(first.get('benchmark') or file.parent.name)


def _read(file: pathlib.Path) -> dict[str, dict]:
  """Records by problem."""
  rows = records.read(file).records
  if not rows:
    raise UserError(f'{file}: no records in it; evaluate first')
  for row in rows:
    if not isinstance(row.get('correct'), bool):
      raise UserError(f'{file}: {_problem(row)} has no verdict; `mathqwen grade` gives it one')
  found, times = {}, collections.Counter()
  for row in rows:
    key = _problem(row)
    times[key] += 1  # without ids: Math401 asks eight questions twice
    found[key if times[key] == 1 else f'{key} (no. {times[key]})'] = row
  return found


def _problem(row: dict) -> str:
  return str(row['question'] if row.get('id') is None else row['id'])


def _pair(name: str, file_a: pathlib.Path, file_b: pathlib.Path) -> dict:
  rows_a, rows_b = _read(file_a), _read(file_b)
  for file, rows in ((file_a, rows_a), (file_b, rows_b)):
    if (count := about(file).get('samples') or samples.count(rows.values())) > 1:
      raise UserError(
        f'{file} has {count} answers to each problem, which are no independent draws; compare runs with one each'
      )
  if missing := [key for key in rows_a if key not in rows_b] + [key for key in rows_b if key not in rows_a]:
    raise UserError(
      f'{name}: {len(rows_a)} problems in {file_a} and {len(rows_b)} in {file_b}, {len(missing)} of them in one only, '
      f'such as {missing[0][:80]!r}; compare runs over the same problems (the same --limit, both finished)'
    )
  for key, row in rows_a.items():
    other = rows_b[key]
    # Golds may be written in two ways (2,125 and 2125), so they only speak where the questions are not there.
    field = 'question' if 'question' in row and 'question' in other else 'gold'
    if row[field] != other[field]:
      raise UserError(
        f'{name}: {key!r} has another {field} in {file_b} than in {file_a}; compare runs over one data set'
      )
  n, b, c = len(rows_a), [], []
  for key, row in rows_a.items():
    if row['correct'] != rows_b[key]['correct']:
      (b if row['correct'] else c).append(key)
  right = sum(row['correct'] for row in rows_a.values())
  return {
    'n': n,
    'accuracy_a': right / n,
    'accuracy_b': (right - len(b) + len(c)) / n,
    'right_to_wrong': b,
    'wrong_to_right': c,
    'difference': (len(c) - len(b)) / n,
    'interval95': interval(n, len(b), len(c)),
    'p_value': mcnemar(len(b), len(c)),
    'other_texts': sum(row.get('response') != rows_b[key].get('response') for key, row in rows_a.items()),
    'rules': [_rule(file, rows) for file, rows in ((file_a, rows_a), (file_b, rows_b))],
  }


def _rule(file: pathlib.Path, rows: dict[str, dict]) -> str | None:
  """What the records say that they were graded by, else the scores beside them."""
  said = {row['rule'] for row in rows.values() if isinstance(row.get('rule'), str)}
  return ' and '.join(sorted(said)) or about(file).get('rule')


def describe(result: dict, shown: int = 10) -> str:
  """For people; `shown` ids of each kind of flip."""
  lines = []
  for name, one in result['benchmarks'].items():
    low, high = one['interval95']
    lines += [
      f'{name}: {one["n"]:,} problems, {one["accuracy_a"]:.1%} and {one["accuracy_b"]:.1%}; difference '
      f'{100 * one["difference"]:+.1f} points (95%: {100 * low:+.1f} to {100 * high:+.1f}), '
      f'exact McNemar test p = {one["p_value"]:.2g}'
    ]
    for field, words in (('right_to_wrong', 'right -> wrong'), ('wrong_to_right', 'wrong -> right')):
      ids = one[field]
      named = ', '.join(ids[:shown]) + (', ... (all with --json)' if len(ids) > shown else '')
      lines.append(f'  {words}: {len(ids)}' + (f' ({named})' if ids else ''))
    lines.append(f'  answers that differ as texts: {one["other_texts"]}')
    rule_a, rule_b = one['rules']
    if rule_a != rule_b:
      names = [rule or 'one that is not recorded' for rule in (rule_a, rule_b)]
      lines.append(f'  graded by different rules, {" and ".join(names)}: flips may be theirs')
  if result['only_in_one']:
    lines.append(f'not compared, in one of the two only: {", ".join(result["only_in_one"])}')
  for name in result['unfinished']:
    kept = 'only what is answered so far' if name in result['benchmarks'] else 'not compared'
    lines.append(f'{name} is not finished in one of the two: {kept}')
  return '\n'.join(lines)
