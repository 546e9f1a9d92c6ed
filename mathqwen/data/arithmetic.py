"""Arithmetic problems in the 16 groups of Math401 (Yuan et al. 2023, arXiv 2304.02015), with exact answers.

  group 2   {"query": "65+82=", "response": "147", "group": "add_sub_100"}
  group 10  {"query": "16÷83=", "response": "0.1928", "group": "div"}
  group 14  {"query": "( 8 - 90) / 95=", "response": "-0.8632", "group": "brackets"}

Integers answer integers; everything else is rounded to four decimals, ties to even, as Math401 prints it.
"""

import json
import math
import pathlib
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from mathqwen.data.worked import worked
from mathqwen.errors import UserError
from mathqwen.files import write_atomically

_MISSES = 3000  # draws in a row without a new expression before a group counts as exhausted
_MAX_DEPTH, _MAX_EXPONENT = 40, 64


def fixed(value: Fraction | float) -> str:
  """Four decimals, ties to even, no negative zero: Fraction(16, 83) -> '0.1928'."""
  units = round(Fraction(value) * 10000)
  whole, part = divmod(abs(units), 10000)
  return f'{"-" if units < 0 else ""}{whole}.{part:04d}'


def canonical(query: str) -> str:
  """One spelling for one expression: ' 3 × 4=' and '3*4=' are both '3*4'."""
  text = re.sub(r'\s+', '', query).rstrip('=')
  for other, ours in (('×', '*'), ('÷', '/'), ('**', '^'), ('π', 'pi')):
    text = text.replace(other, ours)
  return text


def evaluate(expression: str) -> Fraction:
  """Exact value of an expression of numbers, + - * / ^ ( ) [ ] and a postfix %; ValueError when it is none.

  evaluate('120*80%*15%') == Fraction(72, 5)
  """
  tokens = re.findall(r'\d+\.\d+|\d+|\S', canonical(expression).replace('[', '(').replace(']', ')'))
  tokens.append('')
  at = 0

  def take() -> str:
    nonlocal at
    at += 1
    return tokens[at - 1]

  def total(depth: int) -> Fraction:
    value = product(depth)
    while tokens[at] in ('+', '-'):
      value = value + product(depth) if take() == '+' else value - product(depth)
    return value

  def product(depth: int) -> Fraction:
    value = signed(depth)
    while tokens[at] in ('*', '/'):
      if take() == '*':
        value *= signed(depth)
      else:
        divisor = signed(depth)
        if divisor == 0:
          raise ValueError(f'division by zero in {expression!r}')
        value /= divisor
    return value

  def signed(depth: int) -> Fraction:
    if depth > _MAX_DEPTH:
      raise ValueError(f'too deep: {expression!r}')
    if tokens[at] == '-':
      take()
      return -signed(depth + 1)
    return power(depth)

  def power(depth: int) -> Fraction:
    base = atom(depth)
    while tokens[at] == '%':
      take()
      base /= 100
    if tokens[at] != '^':
      return base
    take()
    exponent = signed(depth + 1)
    if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT or (base == 0 and exponent < 0):
      raise ValueError(f'power out of range in {expression!r}')
    return base ** int(exponent)

  def atom(depth: int) -> Fraction:
    token = take()
    if token == '(':
      value = total(depth + 1)
      if take() != ')':
        raise ValueError(f'unbalanced brackets in {expression!r}')
      return value
    if not re.fullmatch(r'[0-9]+(\.[0-9]+)?', token):
      raise ValueError(f'{token!r} in {expression!r} is no number')
    return Fraction(token)

  value = total(0)
  if tokens[at]:
    raise ValueError(f'{tokens[at]!r} is left over in {expression!r}')
  return value


# --- one problem of each group: random.Random -> (expression without '=', answer) ---


def _add_sub(low: int, high: int) -> Callable[[random.Random], tuple[str, str]]:
  def draw(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(low, high), rng.randint(low, high)
    return (f'{a}+{b}', str(a + b)) if rng.random() < 0.5 else (f'{a}-{b}', str(a - b))

  return draw


def _add_sub_negative(rng: random.Random) -> tuple[str, str]:
  a, b = rng.randint(-10, 10), rng.randint(-10, 10)
  right = f'({b})' if b < 0 else str(b)
  return (f'{a}+{right}', str(a + b)) if rng.random() < 0.5 else (f'{a}-{right}', str(a - b))


def _add_sub_decimal(rng: random.Random) -> tuple[str, str]:
  def number() -> tuple[str, Fraction]:  # two significant digits: 39.0, 3.9, 0.39, 0.039, 0.0039
    digits, places = rng.randint(10, 99), rng.randint(0, 4)
    sign = rng.choice(('', '-'))
    text = sign + (f'{digits}.0' if places == 0 else repr(digits / 10**places))
    return text, Fraction(text)

  (left, a), (right, b) = number(), number()
  op = rng.choice('+-')
  shown = f'({right})' if b < 0 else right
  return f'{left}{op}{shown}', fixed(a + b if op == '+' else a - b)


def _mul(low: int, high: int) -> Callable[[random.Random], tuple[str, str]]:
  def draw(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(low, high), rng.randint(low, high)
    return f'{a}{rng.choice("*×")}{b}', str(a * b)

  return draw


def _mul_decimal(rng: random.Random) -> tuple[str, str]:
  def number() -> str:  # one significant digit: 7.0, 0.7, 0.07
    return repr(rng.randint(0, 9) / rng.choice((1, 10, 100)))

  a, b = number(), number()
  return f'{a}{rng.choice("*×")}{b}', fixed(Fraction(a) * Fraction(b))


def _div(rng: random.Random) -> tuple[str, str]:
  a, b = rng.randint(1, 99), rng.randint(1, 99)
  return f'{a}{rng.choice("/÷")}{b}', fixed(Fraction(a, b))


def _pow_int(rng: random.Random) -> tuple[str, str]:
  base, exponent = rng.randint(1, 10), rng.randint(2, 4)
  return f'{base}{rng.choice(("^", "**"))}{exponent}', str(base**exponent)


def _pow_decimal(rng: random.Random) -> tuple[str, str]:
  base, exponent = rng.randint(5000, 99999) / 10000, rng.randint(20000, 39999) / 10000
  return f'{base}{rng.choice(("^", "**"))}{exponent}', fixed(base**exponent)


def _e_pi(rng: random.Random) -> tuple[str, str]:
  constant = (rng.choice(('e', 'π', 'pi')), True)
  other = (rng.choice(('e', 'π', 'pi')), True) if rng.random() < 0.2 else (str(rng.randint(0, 10)), False)
  (left, _), (right, _) = (constant, other) if rng.random() < 0.5 else (other, constant)
  op = rng.choice('+-*/')
  if right == '0' and op == '/':
    op = '*'
  a, b = ({'e': math.e, 'π': math.pi, 'pi': math.pi}.get(x) or float(x) for x in (left, right))
  return f'{left}{op}{right}', fixed({'+': a + b, '-': a - b, '*': a * b, '/': a / b if b else 0.0}[op])


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
    except ValueError:  # a divisor came out as zero: draw another
      continue


def _trig(rng: random.Random) -> tuple[str, str]:
  name = rng.choice(('sin', 'cos', 'tan'))
  if rng.random() < 0.25:
    degrees = rng.choice((30, 45)) * rng.randint(-12, 12)
    shown, turns = f'{degrees}°', Fraction(degrees, 360)
  else:  # quarters of pi, or sixths as they are printed: 0.17, 0.33, 0.67, 0.83
    multiple = rng.randint(-10, 9) + rng.choice((0.0, 0.25, 0.5, 0.75, 0.17, 0.33, 0.67, 0.83))
    shown = f'{round(multiple, 2)}π'
    turns = Fraction(shown[:-1]) / 2
  if name == 'tan' and (turns * 4).denominator == 1 and turns * 4 % 2 == 1:
    name = 'sin'  # the tangent has a pole there
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
  'add_sub_negative': _add_sub_negative,
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
# How many training examples `write` makes of each group, as shares. Sums and differences within 100 have 20,402
# expressions, and a small model learns them only when it sees many; the other groups keep a taste of each form.
WEIGHTS = {group: 0.02 for group in GROUPS} | {'add_sub_100': 0.5, 'add_sub_1000': 0.2, 'add_sub_negative': 0.04}
# How often training draws from a group, as a share: a small group comes round more often than a large one.
MIX = {group: 0.01 for group in GROUPS} | {
  'add_sub_10': 0.08,
  'add_sub_100': 0.44,
  'add_sub_1000': 0.24,
  'add_sub_negative': 0.1,
}


def problem(group: str, rng: random.Random) -> dict[str, str]:
  """One problem: {'query': '65+82=', 'response': '147', 'group': 'add_sub_100'}."""
  query, response = _DRAW[group](rng)
  return {'query': f'{query}=', 'response': response, 'group': group}


def _wanted(train_examples: int, test_per_group: int, weights: Mapping[str, float] | None) -> dict[str, int]:
  weights = WEIGHTS if weights is None else weights
  if unknown := sorted(set(weights) - set(GROUPS)):
    raise UserError(f'unknown arithmetic group {", ".join(unknown)}: the groups are {", ".join(GROUPS)}')
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
  """Train rows in random order and test rows by group; no expression twice, however it is spelled.

  A group with too few distinct expressions gives what it has, at most a tenth of it to the test.
  """
  seen: set[str] = set()
  train, test = [], []
  for group, wanted in _wanted(train_examples, test_per_group, weights).items():
    rng = random.Random(f'{seed}/{group}')
    pool, misses = [], 0
    while len(pool) < wanted + test_per_group and misses < _MISSES:
      row = problem(group, rng)
      key = canonical(row['query'])
      misses = misses + 1 if key in seen else 0
      if key not in seen:
        seen.add(key)
        pool.append(row)
    held_out = test_per_group if len(pool) == wanted + test_per_group else min(test_per_group, len(pool) // 10)
    test += pool[:held_out]
    train += pool[held_out:]
  random.Random(f'{seed}/order').shuffle(train)
  return train, test


def write(
  directory: str, train_examples: int, test_per_group: int, seed: int, weights: Mapping[str, float] | None = None
) -> dict:
  """Writes directory/train/GROUP.jsonl and directory/test.jsonl; the same arguments give the same bytes.

  A training row's response is the worked solution where there is one (`worked.worked`), and `answer` the answer alone.
  Returns {'train': rows, 'test': rows, 'groups': {group: {'train': n, 'test': n}}, 'short': {group: rows missing}};
  'short' names the groups that ran out of distinct expressions.
  """
  train, test = generate(train_examples, test_per_group, seed, weights)
  train = [row | {'response': worked(row['query']) or row['response'], 'answer': row['response']} for row in train]
  groups = {
    g: {'train': sum(r['group'] == g for r in train), 'test': sum(r['group'] == g for r in test)} for g in GROUPS
  }
  wanted = _wanted(train_examples, test_per_group, weights)
  missing = {g: wanted[g] + test_per_group - sum(counts.values()) for g, counts in groups.items()}
  files = {f'train/{g}.jsonl': [row for row in train if row['group'] == g] for g in GROUPS}
  try:
    for name, rows in ({name: rows for name, rows in files.items() if rows} | {'test.jsonl': test}).items():
      text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
      write_atomically(pathlib.Path(directory, name), text.encode())
  except OSError as error:
    raise UserError(
      f'cannot write arithmetic problems under {directory}: {error.strerror}; name another directory'
    ) from error
  return {'train': len(train), 'test': len(test), 'groups': groups, 'short': {g: n for g, n in missing.items() if n}}
