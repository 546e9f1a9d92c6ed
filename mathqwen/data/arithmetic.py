"""Arithmetic problems in the 16 groups of Math401 (Yuan et al. 2023, arXiv 2304.02015), with exact answers.

  group 2   {"query": "65+82=", "response": "147", "group": "add_sub_100"}
  group 10  {"query": "16÷83=", "response": "0.1928", "group": "div"}
  group 14  {"query": "( 8 - 90) / 95=", "response": "-0.8632", "group": "brackets"}

Integer arithmetic has integer answers; all other answers are rounded to four decimals, ties to even, as in Math401.
"""

import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

from mathqwen import files as files_lib
from mathqwen.data.expressions import canonical, evaluate, rounded
from mathqwen.data.worked import worked
from mathqwen.errors import UserError

_MISSES = 3000  # a group counts as exhausted after this many draws without a new expression


def fixed(value: Fraction | float) -> str:
  """`value` with four decimals, as Math401 has it: Fraction(16, 83) -> '0.1928'."""
  return rounded(value, 4)


# --- one problem of each group: random.Random -> (expression without '=', answer) ---
#
# The order of the draws is part of the data set: the same seed must give the same problems.


def _sum_or_difference(a: int, b: int, rng: random.Random) -> tuple[str, str]:
  right = f'({b})' if b < 0 else str(b)
  if rng.random() < 0.5:
    return f'{a}+{right}', str(a + b)
  return f'{a}-{right}', str(a - b)


def _add_sub(low: int, high: int) -> Callable[[random.Random], tuple[str, str]]:
  def draw(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(low, high)
    b = rng.randint(low, high)
    return _sum_or_difference(a, b, rng)

  return draw


def _add_sub_decimal(rng: random.Random) -> tuple[str, str]:
  def number() -> str:  # two significant digits: 39.0, 3.9, 0.39, 0.039, 0.0039
    digits = rng.randint(10, 99)
    places = rng.randint(0, 4)
    sign = rng.choice(('', '-'))
    return sign + (f'{digits}.0' if places == 0 else repr(digits / 10**places))

  left = number()
  right = number()
  a = Fraction(left)
  b = Fraction(right)
  op = rng.choice('+-')
  shown = f'({right})' if b < 0 else right
  return f'{left}{op}{shown}', fixed(a + b if op == '+' else a - b)


def _mul(low: int, high: int) -> Callable[[random.Random], tuple[str, str]]:
  def draw(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(low, high)
    b = rng.randint(low, high)
    return f'{a}{rng.choice("*×")}{b}', str(a * b)

  return draw


def _mul_decimal(rng: random.Random) -> tuple[str, str]:
  def number() -> str:  # one significant digit: 7.0, 0.7, 0.07
    return repr(rng.randint(0, 9) / rng.choice((1, 10, 100)))

  a = number()
  b = number()
  return f'{a}{rng.choice("*×")}{b}', fixed(Fraction(a) * Fraction(b))


def _div(rng: random.Random) -> tuple[str, str]:
  a = rng.randint(1, 99)
  b = rng.randint(1, 99)
  return f'{a}{rng.choice("/÷")}{b}', fixed(Fraction(a, b))


def _pow_int(rng: random.Random) -> tuple[str, str]:
  base = rng.randint(1, 10)
  exponent = rng.randint(2, 4)
  return f'{base}{rng.choice(("^", "**"))}{exponent}', str(base**exponent)


def _pow_decimal(rng: random.Random) -> tuple[str, str]:
  base = rng.randint(5000, 99999) / 10000
  exponent = rng.randint(20000, 39999) / 10000
  return f'{base}{rng.choice(("^", "**"))}{exponent}', fixed(base**exponent)


_CONSTANTS = {'e': math.e, 'π': math.pi, 'pi': math.pi}


def _e_pi(rng: random.Random) -> tuple[str, str]:
  constant = rng.choice(tuple(_CONSTANTS))
  other = rng.choice(tuple(_CONSTANTS)) if rng.random() < 0.2 else str(rng.randint(0, 10))
  left, right = (constant, other) if rng.random() < 0.5 else (other, constant)
  op = rng.choice('+-*/')
  if right == '0' and op == '/':
    op = '*'
  a = _CONSTANTS.get(left) or float(left)
  b = _CONSTANTS.get(right) or float(right)
  value = {'+': a + b, '-': a - b, '*': a * b, '/': a / b if b else 0.0}[op]
  return f'{left}{op}{right}', fixed(value)


def _brackets(rng: random.Random) -> tuple[str, str]:
  def number() -> str:
    return f' {rng.randint(0, 99)}'

  def pair() -> str:
    return f' ({number()} {rng.choice("+-*/")}{number()})'

  shapes = (
    (number, number),
    (pair, number),
    (number, pair),
    (pair, pair),
    (pair, number, number),
    (number, pair, number),
    (pair, pair, number),
    (number, pair, pair),
    (pair, number, pair),
    (pair, pair, pair),
  )
  while True:
    parts = rng.choice(shapes)
    text = parts[0]()
    for part in parts[1:]:
      text += f' {rng.choice("+-*/")}{part()}'
    try:
      return text.strip(), fixed(evaluate(text))
    except ValueError:  # a divisor is zero: draw again
      continue


def _trig(rng: random.Random) -> tuple[str, str]:
  name = rng.choice(('sin', 'cos', 'tan'))
  if rng.random() < 0.25:
    degrees = rng.choice((30, 45)) * rng.randint(-12, 12)
    shown, turns = f'{degrees}°', Fraction(degrees, 360)
  else:  # quarters of pi, or sixths as Math401 prints them: 0.17, 0.33, 0.67, 0.83
    multiple = rng.randint(-10, 9) + rng.choice((0.0, 0.25, 0.5, 0.75, 0.17, 0.33, 0.67, 0.83))
    shown = f'{round(multiple, 2)}π'
    turns = Fraction(shown[:-1]) / 2
  if name == 'tan' and (turns * 4).denominator == 1 and turns * 4 % 2 == 1:
    name = 'sin'  # the tangent has a pole here
  return f'{name}({shown})', fixed(getattr(math, name)(float(turns % 1) * 2 * math.pi))


def _log(rng: random.Random) -> tuple[str, str]:
  name, function = rng.choice((('log 2', math.log2), ('log 10', math.log10), ('ln', math.log)))
  x = rng.randint(2, 999)
  return f'{name}({x})', fixed(function(x))


_DRAW = {
  'add_sub_10': _add_sub(0, 10),
  'add_sub_100': _add_sub(0, 100),
  'add_sub_1000': _add_sub(1, 1000),
  'add_sub_1e12': _add_sub(10**10, 10**12),
  'add_sub_negative': _add_sub(-10, 10),
  'add_sub_decimal': _add_sub_decimal,
  'mul_100': _mul(0, 99),
  'mul_decimal': _mul_decimal,
  'mul_100000': _mul(1000, 99999),
  'div': _div,
  'pow_int': _pow_int,
  'pow_decimal': _pow_decimal,
  'e_pi': _e_pi,
  'brackets': _brackets,
  'trig': _trig,
  'log': _log,
}
GROUPS = tuple(_DRAW)  # in Math401's order
# Share of each group in the training examples of `mathqwen demo`. Its few minutes of training do not teach the groups
# that are missing here, and their solutions are long. Most of the rest goes to sums, which need all of it.
MIX = {
  'add_sub_10': 0.04,
  'add_sub_100': 0.26,
  'add_sub_1000': 0.2,
  'add_sub_negative': 0.12,
  'add_sub_decimal': 0.08,
  'mul_100': 0.16,
  'mul_decimal': 0.07,
  'pow_int': 0.02,
  'trig': 0.05,
}


def problem(group: str, rng: random.Random) -> dict[str, str]:
  """One problem of a group: {'query': '65+82=', 'response': '147', 'group': 'add_sub_100'}."""
  query, response = _DRAW[group](rng)
  return {'query': f'{query}=', 'response': response, 'group': group}


def is_test(query: str) -> bool:
  """Whether an expression is a test problem, in whatever spelling. A tenth of all expressions are, by their hash.

  So no training row of any seed and count is a test row of any other.
  """
  digest = hashlib.blake2b(canonical(query).encode(), digest_size=4).digest()
  return int.from_bytes(digest) % 10 == 0


class _Draws:
  """New problems of each group: no expression comes twice, in whatever spelling and group."""

  def __init__(self, seed: int):
    self._seed = seed
    self._rngs: dict[str, random.Random] = {}
    self._seen: set[str] = set()

  def next(self, group: str, test: bool) -> dict[str, str] | None:
    """A problem of the test part, or of the other; None when the group has no more."""
    rng = self._rngs.setdefault(group, random.Random(f'{self._seed}/{group}'))
    for _ in range(_MISSES):
      row = problem(group, rng)
      key = canonical(row['query'])
      if key not in self._seen and is_test(row['query']) == test:
        self._seen.add(key)
        return row
    return None


def _solved(row: dict[str, str]) -> dict[str, str]:
  """A training row: the worked solution as `response`, where there is one, and the answer alone as `answer`."""
  return row | {'response': worked(row['query']) or row['response'], 'answer': row['response']}


def rows(count: int, seed: int, groups: Sequence[str] = ()) -> Iterator[dict[str, str]]:
  """`count` training rows with worked solutions, one after another, in random order; a smaller count gives the first.

  groups: in equal shares, until a group has no further expression; empty takes GROUPS.
  UserError: when a group is unknown; from the iterator, when all groups have no further expression.
  """
  _check_groups(groups)
  return _rows(count, seed, list(groups or GROUPS))


def _rows(count: int, seed: int, groups: list[str]) -> Iterator[dict[str, str]]:
  draws = _Draws(seed)
  order = random.Random(f'{seed}/order')
  made = 0
  while made < count:
    if not groups:
      raise UserError(
        f'arithmetic?count={count}: there are only {made:,} different expressions; ask for fewer or more groups'
      )
    group = order.choice(groups)
    row = draws.next(group, test=False)
    if row is None:
      groups.remove(group)
      continue
    made += 1
    yield _solved(row)


def _check_groups(groups: Iterable[str]) -> None:
  if unknown := sorted(set(groups) - set(GROUPS)):
    raise UserError(f'unknown arithmetic group {", ".join(unknown)}: the groups are {", ".join(GROUPS)}')


def _train_counts(train_examples: int, test_per_group: int, weights: Mapping[str, float] | None) -> dict[str, int]:
  """Group -> training examples to make. UserError: when the arguments of `generate` make no sense."""
  weights = MIX if weights is None else weights
  _check_groups(weights)
  total = sum(weights.values())
  if min(weights.values(), default=0) < 0 or not total > 0:
    raise UserError('arithmetic weights must not be negative and one must be positive')
  if train_examples < 0 or test_per_group < 0 or train_examples + test_per_group == 0:
    raise UserError(f'nothing to write: train_examples={train_examples}, test_per_group={test_per_group}')
  return {group: round(train_examples * weights.get(group, 0) / total) for group in GROUPS}


def generate(
  train_examples: int,
  test_per_group: int,
  seed: int,
  weights: Mapping[str, float] | None = None,
) -> tuple[list[dict], list[dict]]:
  """(training rows in random order, test rows by group), as `problem` gives them; no expression occurs twice.

  weights: share of each group in the training rows; None takes MIX. A group with too few distinct expressions gives
  all that it has, about a tenth of them to the test rows.
  UserError: when a group is unknown, or the numbers are negative or all zero.
  """
  draws = _Draws(seed)
  train = []
  test = []
  for group, wanted in _train_counts(train_examples, test_per_group, weights).items():
    for part, count, is_test_part in ((test, test_per_group, True), (train, wanted, False)):
      for _ in range(count):
        row = draws.next(group, is_test_part)
        if row is None:
          break
        part.append(row)
  random.Random(f'{seed}/order').shuffle(train)
  return train, test


def write(
  directory: str | os.PathLike,
  train_examples: int,
  test_per_group: int,
  seed: int,
  weights: Mapping[str, float] | None = None,
) -> dict:
  """Writes directory/train/GROUP.jsonl and directory/test.jsonl; the same arguments give the same bytes.

  A training row's `response` is the worked solution where there is one (`worked.worked`), and its `answer` the answer
  alone. Arguments: as `generate`.

  Returns {'train': rows, 'test': rows, 'groups': {group: {'train': n, 'test': n}}, 'short': {group: rows missing}};
  'short' has the groups that ran out of distinct expressions.
  UserError: as `generate`, and when the directory cannot be written.
  """
  train, test = generate(train_examples, test_per_group, seed, weights)
  train = [_solved(row) for row in train]

  files = {}
  groups = {}
  short = {}
  for group, wanted in _train_counts(train_examples, test_per_group, weights).items():
    rows = [row for row in train if row['group'] == group]
    test_rows = sum(row['group'] == group for row in test)
    groups[group] = {'train': len(rows), 'test': test_rows}
    if missing := wanted + test_per_group - len(rows) - test_rows:
      short[group] = missing
    if rows:
      files[f'train/{group}.jsonl'] = rows
  files['test.jsonl'] = test

  try:
    for name, rows in files.items():
      text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
      files_lib.write_atomically(files_lib.path(directory) / name, text.encode())
  except OSError as error:
    raise UserError(
      f'cannot write arithmetic problems under {directory}: {error.strerror}; name another directory'
    ) from error
  return {'train': len(train), 'test': len(test), 'groups': groups, 'short': short}
