r"""Problems of our own in the form of MATH, with the quirks of its rows; no text of MATH itself.

{"problem": "...", "level": "Level 3", "type": "Algebra", "solution": "... $\boxed{\frac{2}{3}}$."}

The quirks: boxes with nested braces, without braces (`\boxed 5`), without content, several of them in one solution,
\fbox; answers that are no plain number; drawings between [asy] and [/asy]; two spaces after a sentence; 'Level ?'.
"""

import fractions
import math

# Each problem is (type, level, problem, solution, answer, values). values(k) maps each <name> in the texts to what
# replaces it: k = 0 and 1 make the two problems of train, k = 2 and 3 those of test.


def _shared_marbles(k):
  children, each, taken = 4 + k, 7 + k, 5
  return {'all': children * each + taken, 'taken': taken, 'children': children, 'rest': children * each, 'each': each}


def _two_roots(k):
  u, v = ((2, 3), (3, 5), (5, 7), (7, 11))[k]
  return {'u': u, 'v': v, 'sum': u + v, 'product': u * v}


def _interval(k):
  return {'middle': 9 + k, 'reach': 4, 'low': 5 + k, 'high': 13 + k}


def _sum_and_difference(k):
  x, y = 17 + k, 6 - k
  return {'x': x, 'y': y, 'sum': x + y, 'difference': x - y, 'twice': 2 * x}


def _orders(k):
  return {'n': 7 + k, 'orders': f'{math.factorial(7 + k):,}'.replace(',', r',\!')}


def _socks(k):
  red, green = 4 + k, 3
  both = fractions.Fraction(math.comb(red, 2), math.comb(red + green, 2))
  return {'red': red, 'green': green, 'all': red + green, 'p': both.numerator, 'q': both.denominator}


def _diagonal(k):
  a, b, c = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (20, 21, 29))[k]
  return {'a': a, 'b': b, 'c': c, 'squares': a * a + b * b}


def _polygon(k):
  sides = (5, 6, 8, 9)[k]
  return {'sides': sides, 'angles': 180 * (sides - 2)}


def _equilateral(k):
  half = 3 + k
  return {'half': half, 'side': 2 * half, 'area': half * half}


def _third_angle(k):
  first, second = 41 + k, 68 - 2 * k
  return {'first': first, 'second': second, 'third': 180 - first - second}


def _fourth_power(k):
  return {'root': 3 + k, 'power': (3 + k) ** 4}


def _sum_of_squares(k):
  n = (30, 5, 7, 9)[k]  # one long row
  lines, total = [], 0
  for i in range(1, n + 1):
    total += i * i
    lines.append(f'{i}^2&={i * i},&\\quad\\text{{the sum so far is }}&{total}')
  return {'n': n, 'lines': '\\\\\n'.join(lines), 'total': total}


def _base_six(k):
  number = 400 + 37 * k
  digits, rest = '', number
  while rest:
    rest, digit = divmod(rest, 6)
    digits = f'{digit}{digits}'
  return {'number': number, 'digits': digits}


def _common_divisor(k):
  divisor = 6 + k
  return {'a': 8 * divisor, 'b': 15 * divisor, 'divisor': divisor}


def _multiples(k):
  step = 3 + k
  return {'step': step, 'last': 11 * step + 2, 'count': 11}


def _percent(k):
  part = 7 + 2 * k
  return {'part': part, 'percent': 5 * part}


def _weekday(k):
  days = 30 + 8 * k
  name = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday')[days % 7]
  return {'days': days, 'weeks': days // 7, 'over': days % 7, 'name': name}


def _matrix(k):
  return {'a': 2 + k, 'b': 5, 'double_a': 4 + 2 * k, 'minus': -3 - k, 'double_minus': -6 - 2 * k}


def _period(k):
  return {'a': 2 * k + 3}


def _dollars(k):
  price, count = 35 + 10 * k, 14
  return {'price': price, 'count': count, 'cents': price * count, 'dollars': f'{price * count / 100:.2f}'}


PROBLEMS = (
  (
    'Algebra',
    1,
    'A tin holds <all> marbles.  If <taken> of them are taken out and <children> children share the rest equally, how '
    'many marbles does each child get?',
    r'When <taken> are taken out, $<all>-<taken>=<rest>$ marbles are left.  So each child gets '
    r'$<rest>\div<children>=\boxed{<each>}$ marbles.',
    '<each>',
    _shared_marbles,
  ),
  (
    'Algebra',
    3,
    r'The roots of $x^2-<sum>x+<product>=0$ are $u$ and $v$, and $u$ is the smaller one.  What is $\frac{u}{v}$?',
    'We factor the left side: \\begin{align*}\nx^2-<sum>x+<product>&=(x-<u>)(x-<v>)\\\\\n&=0.\n\\end{align*}So $u=<u>$ '
    r'and $v=<v>$, and the quotient is $\boxed{\frac{<u>}{<v>}}$.',
    r'\frac{<u>}{<v>}',
    _two_roots,
  ),
  (
    'Algebra',
    5,
    r'Which real numbers $x$ are at most <reach> away from <middle>?  Give all of them as one interval.',
    r'They satisfy \[-<reach>\le x-<middle>\le <reach>,\] and adding <middle> to all sides gives '
    r'$<low>\le x\le <high>$, which is $x\in\boxed{[<low>,<high>]}$.',
    '[<low>,<high>]',
    _interval,
  ),
  (
    'Algebra',
    2,
    'If $x+y=<sum>$ and $x-y=<difference>$, find $x$ and then $y$.',
    r'The sum of both equations is $2x=<twice>$, so $x=\boxed{<x>}$.  The first one now says $<x>+y=<sum>$, so '
    r'$y=\boxed{<y>}$.',
    '<y>',
    _sum_and_difference,
  ),
  (
    'Counting & Probability',
    2,
    'In how many different orders can <n> flags of different colours hang on a pole?',
    r'Any of the <n> flags can be at the top, any other below it, and so on.  That makes '
    r'$<n>!=\boxed{<orders>}$ orders.',
    '<orders>',
    _orders,
  ),
  (
    'Counting & Probability',
    4,
    'A drawer holds <red> red socks and <green> green ones.  Without looking, Ines takes two.  What is the '
    'probability that both are red?',
    r'There are $\binom{<all>}{2}$ pairs of socks, and $\binom{<red>}{2}$ of them are red.  So the probability is '
    r'$$\frac{\binom{<red>}{2}}{\binom{<all>}{2}}=\boxed{\dfrac{<p>}{<q>}}.$$',
    r'\dfrac{<p>}{<q>}',
    _socks,
  ),
  (
    'Geometry',
    2,
    'How long is the diagonal of this rectangle?\n\n[asy]\nsize(3cm);\n'
    'draw((0,0)--(<a>,0)--(<a>,<b>)--(0,<b>)--cycle);\n'
    'draw((0,0)--(<a>,<b>),dashed);\nlabel("$<a>$",(<a>/2,0),S);\nlabel("$<b>$",(<a>,<b>/2),E);\n[/asy]',
    r'By the theorem of Pythagoras the diagonal is $\sqrt{<a>^2+<b>^2}=\sqrt{<squares>}=\boxed{<c>}$.',
    '<c>',
    _diagonal,
  ),
  (
    'Geometry',
    1,
    r'The interior angles of a polygon add up to $<angles>^\circ$.  Find the number of its sides.',
    r'With $n$ sides they add up to $(n-2)\cdot180^\circ$.  From $n-2=<angles>\div180$ follows $n=\boxed <sides>$.',
    '<sides>',
    _polygon,
  ),
  (
    'Geometry',
    4,
    'What is the area of an equilateral triangle whose sides are <side> units long?',
    'The height cuts the base in half.\n\n[asy]\npair A=(0,0),B=(<side>,0),C=(<half>,<half>*sqrt(3));\n'
    'draw(A--B--C--cycle);\ndraw(C--(<half>,0));\n[/asy]\n\n'
    r'It is $<half>\sqrt3$ long, so the area is $<half>\cdot<half>\sqrt3=\boxed{<area>\sqrt{3}}$.',
    r'<area>\sqrt{3}',
    _equilateral,
  ),
  (
    'Geometry',
    3,
    r'Two angles of a triangle are $<first>^\circ$ and $<second>^\circ$.  Find the third.',
    r'The three add up to $180^\circ$, so it is $180^\circ-<first>^\circ-<second>^\circ=\boxed{<third>^\circ}$.',
    r'<third>^\circ',
    _third_angle,
  ),
  (
    'Intermediate Algebra',
    5,
    'Find the set of all real solutions of $x^4=<power>$.',
    r'Because $x^4-<power>=(x-<root>)(x+<root>)(x^2+<root>^2)$, and the last factor has no real root, the set is '
    r'$\boxed{\left\{ -<root>, <root> \right\}}$.',
    r'\left\{ -<root>, <root> \right\}',
    _fourth_power,
  ),
  (
    'Intermediate Algebra',
    3,
    r'What is $\sum_{i=1}^{<n>} i^2$?',
    'We add one square after another:\n\\begin{align*}\n<lines>\n\\end{align*}The sum is $\\boxed{<total>}$.',
    '<total>',
    _sum_of_squares,
  ),
  (
    'Number Theory',
    2,
    'Write <number> in base six.',
    r'Repeated division by six gives the digits in reverse order: $<number>=\boxed{<digits>_6}$.',
    '<digits>_6',
    _base_six,
  ),
  (
    'Number Theory',
    1,
    'What is the greatest common divisor of <a> and <b>?',
    r'We have $<a>=8\cdot<divisor>$ and $<b>=15\cdot<divisor>$, and 8 and 15 have no common factor: \fbox{<divisor>}.',
    '<divisor>',
    _common_divisor,
  ),
  (
    'Number Theory',
    4,
    'How many of the numbers from 1 to <last> are multiples of <step>?',
    r'Every group of <step> numbers ends with one, and $<last>=<count>\cdot<step>+2$, so there are $\boxed{<count>}$.',
    '<count>',
    _multiples,
  ),
  (
    'Prealgebra',
    1,
    'Of 20 lamps, <part> are on.  What percent of the lamps is that?',
    r'One lamp of 20 is $5\%$ of them, so <part> lamps are $<part>\cdot5\%=\boxed{<percent>\%}$.',
    r'<percent>\%',
    _percent,
  ),
  (
    'Prealgebra',
    2,
    'If today is Monday, which day of the week is it in <days> days?',
    r'In <weeks> weeks it is Monday again, and <over> days later it is $\boxed{\text{<name>}}$.',
    r'\text{<name>}',
    _weekday,
  ),
  (
    'Prealgebra',
    3,
    'A stamp costs <price> cents.  How many dollars do <count> stamps cost?',
    r'They cost $<count>\cdot<price>=<cents>$ cents, which are $\boxed{\$<dollars>}$.',
    r'\$<dollars>',
    _dollars,
  ),
  (
    'Precalculus',
    4,
    r'Double every entry of $\begin{pmatrix} <a> & <b> \\ <minus> & 1 \end{pmatrix}$.',
    r'Entry by entry we get \[\boxed{\begin{pmatrix} <double_a> & 10 \\ <double_minus> & 2 \end{pmatrix}}.\]',
    r'\begin{pmatrix} <double_a> & 10 \\ <double_minus> & 2 \end{pmatrix}',
    _matrix,
  ),
  (
    'Precalculus',
    2,
    r'What is the period of $y = \sin <a>x$?',
    r'The sine repeats after $2\pi$, so $<a>x$ has to grow by $2\pi$, and $x$ by $\boxed{\frac{2\pi}{<a>}}$.',
    r'\frac{2\pi}{<a>}',
    _period,
  ),
)


def _fill(text: str, values: dict) -> str:
  for name, value in values.items():
    text = text.replace(f'<{name}>', str(value))
  return text


def _drawn(split: str) -> list[dict]:
  """Rows with the fields of MATH and of MATH-500, in the order of their paths, as published."""
  drawn = []
  for number, (subject, level, problem, solution, answer, values) in enumerate(PROBLEMS):
    folder = subject.lower().replace('&', 'and').replace(' ', '_')
    for k in (0, 1) if split == 'train' else (2, 3):
      row = {
        'problem': _fill(problem, values(k)),
        'level': f'Level {level}',
        'type': subject,
        'solution': _fill(solution, values(k)),
        'answer': _fill(answer, values(k)),
        'path': f'{split}/{folder}/{10 * number + k}.json',
      }
      if split == 'train' and values is _multiples:
        row['solution'] = row['solution'].replace(rf'\boxed{{{row["answer"]}}}', r'\boxed{}')
      if split == 'train' and values is _equilateral:
        row['level'] = 'Level ?'
      drawn.append(row)
  return sorted(drawn, key=lambda row: row['path'])


def rows(split: str) -> list[dict]:
  """The 40 rows of train.jsonl or test.jsonl."""
  return [{field: row[field] for field in ('problem', 'level', 'type', 'solution')} for row in _drawn(split)]


def paths(split: str) -> list[str]:
  """The lines of train_paths.txt or test_paths.txt."""
  return [row['path'] for row in _drawn(split)]


def test500_rows() -> list[dict]:
  """Every second row of test, in the form of MATH-500: 20 of them."""
  return [
    {
      'problem': row['problem'],
      'solution': row['solution'],
      'answer': row['answer'],
      'subject': row['type'],
      'level': int(row['level'].removeprefix('Level ')),
      'unique_id': row['path'],
    }
    for row in _drawn('test')[::2]
  ]
