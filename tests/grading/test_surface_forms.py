"""One answer in many ways of writing, from tables: each way is right for its own value and wrong for its neighbours."""

import fractions
import itertools

import pytest

from mathqwen.grading import grade

_DIGITS = '零一二三四五六七八九'
_FULL_WIDTH = {ord('0') + digit: '０１２３４５６７８９'[digit] for digit in range(10)}
_FULL_WIDTH |= {ord(sign): full for sign, full in zip('.%,/', '．％，／', strict=True)}


def chinese(number: str) -> str:
  """A number in words: chinese('1203.5') is 一千二百零三点五."""
  whole, _, decimals = number.partition('.')
  return _words(int(whole)) + (f'点{"".join(_DIGITS[int(digit)] for digit in decimals)}' if decimals else '')


def _words(number: int) -> str:
  for unit, name in ((10**8, '亿'), (10**4, '万'), (1000, '千'), (100, '百'), (10, '十')):
    if number >= unit:
      head, rest = divmod(number, unit)
      zero = '零' if 0 < rest < unit // 10 else ''
      words = f'{_words(head)}{name}{zero}{_words(rest) if rest else ""}'
      return words[1:] if words.startswith('一十') and number < 20 else words
  return _DIGITS[number]


def full(text: str) -> str:
  return text.translate(_FULL_WIDTH)


def of_number(n: str) -> list[str]:
  """A whole or decimal number."""
  units = [f'{n}{unit}' for unit in ('元', '米', '千克', '个', '千米', '平方米', ' 厘米', '\\text{元}', '小时')]
  forms = [n, full(n), f'{full(n)}．', chinese(n), f'{chinese(n)}千克', f'{full(n)}元', f'￥{n}', *units]
  if '.' not in n:
    forms.append(f'{n}.0')
    if int(n) > 999:
      grouped = f'{int(n):,}'
      forms += [grouped, full(grouped), grouped.replace(',', '，'), grouped.replace(',', ' ')]
    if int(n) % 1000 == 0:
      forms += [f'{int(n) / 10**4:.10g}万', f'{int(n) / 10**4:.10g}万元']
  return forms


def of_fraction(n: int, d: int) -> list[str]:
  words = f'{_words(d)}分之{_words(n)}'
  forms = [f'\\frac{{{n}}}{{{d}}}', f'{n}/{d}', full(f'{n}/{d}'), words, f'{d}分之{n}', f'(({n})/({d}))', f'({n}/{d})']
  return [*forms, f'{n}/{d}米', f'{words}千克']


def of_mixed(whole: int, n: int, d: int) -> list[str]:
  forms = [f'{whole}\\frac{{{n}}}{{{d}}}', f'{whole} {n}/{d}', f'{_words(whole)}又{_words(d)}分之{_words(n)}']
  forms += [f'{whole}又{d}分之{n}', f'{whole}又{n}/{d}', f'{whole}(({n})/({d}))', f'{whole * d + n}/{d}']
  return [*forms, f'{whole}\\frac{{{n}}}{{{d}}}小时', f'{whole}又\\frac{{{n}}}{{{d}}}']


def of_percent(n: str) -> list[str]:
  share = fractions.Fraction(n) / 100
  forms = [f'{n}%', f'{n}\\%', full(f'{n}%'), f'百分之{chinese(n)}', f'百分之{n}']
  return [*forms, f'\\frac{{{share.numerator}}}{{{share.denominator}}}', f'{float(share):.10g}']


# gold: (its ways of writing, those of other values)
_NUMBERS = ['7', '15', '105', '240', '1200', '36000', '2400000', '13.4', '0.25', '128.05']
GOLDS = {
  n: (of_number(n), [form for other in (f'{n}1', f'2{n}', f'9{n}') for form in of_number(other)]) for n in _NUMBERS
}
GOLDS |= {
  f'(({n})/({d}))': (of_fraction(n, d), of_fraction(d, n) + of_fraction(n, d + 1) + [str(n), str(d)])
  for n, d in ((2, 3), (3, 4), (7, 12))
}
GOLDS |= {
  f'{w}(({n})/({d}))': (of_mixed(w, n, d), of_mixed(w + 1, n, d) + of_fraction(n, d) + [str(w)])
  for w, n, d in ((5, 7, 10), (1, 1, 2))
}
GOLDS |= {f'{n}%': (of_percent(n), of_percent(f'{n}1') + of_percent(f'3{n}')) for n in ('25', '12.5')}
_SENTENCES = [
  '{}',
  '\\boxed{{{}}}',
  '答：{}。',
  '所以答案是{}。',
  '答：一共需要{}。',
  '解：设x。\n因此，小明还剩{}．',
  '**答案：{}**',
]


@pytest.mark.parametrize('rule', ['math23k', 'number', 'math'])
def test_chinese_answers(rule):
  count = 0
  for gold, (same, other) in GOLDS.items():
    sentences = itertools.cycle(_SENTENCES)
    for right, forms in ((True, same), (False, other)):
      for form in forms:
        response = next(sentences).format(form)
        verdict = grade.grade(response, gold, rule)
        assert verdict.correct == right, (gold, response, verdict)
        count += 1
  assert count > 500


# gold: (equal answers | different answers), parted by ' || ', and ' ; ' between answers
EQUIVALENT = r"""
2x+3y=6 || 4x+6y=12 ; y=-\frac23x+2 ; 2x+3y-6=0 || 2x-3y=6 ; 2x+3y=7 ; x=3
xy=1 || y=\frac1x || y=x
y=2x+3 || y-2x=3 ; 2x+3 || y=2x-3 ; y=3x+2
(x-1)^2+(y+2)^2=9 || x^2-2x+y^2+4y-4=0 || (x+1)^2+(y-2)^2=9
x=1,y=2 || (1,2) ; y=2,x=1 ; (x,y)=(1,2) || x=2,y=1 ; (2,1)
\frac{1}{1000!} || \frac{1}{1000 \cdot 999!} || \frac{1}{999!} ; 0
1-\frac{1}{2^{100}} || 1-2^{-100} || 1
2^{1000} || 4^{500} || 2^{1001}
4\sqrt2 || \sqrt{32} ; \frac{8}{\sqrt2} ; 4√2 || \sqrt{16} ; 5.657
\sqrt{5+2\sqrt6} || \sqrt2+\sqrt3 || \sqrt2-\sqrt3
3+4i || 4i+3 ; 3+4\mathrm{i} || 3-4i ; 4+3i
-1 || e^{i\pi} ; i^2 || i ; 1
2i || (1+i)^2 ; \sqrt{-4} || -2i ; 2
1+i\sqrt3 || 2e^{i\pi/3} || 1-i\sqrt3
5 || |3+4i| ; AB=5 || -5 ; > 5 ; \ne 5 ; 5:1 ; 5!
\pm3 || 3,-3 ; x=3 \text{ or } x=-3 || 3 ; \pm2
\pm1,\pm2 || -2,-1,1,2 || 1,2
(0,3),(0,-3) || (0,\pm3) || (0,3)
(3,\infty) || x>3 ; \{x \mid x>3\} ; x\in(3,\infty) ; 3<x || x\ge3 ; [3,\infty) ; x<3
(-2,2) || |x|<2 ; -2<x<2 || |x|>2 ; [-2,2]
(-\infty,3] || x \leqslant 3 || x<3
x<2 \text{ or } x>5 || (-\infty,2)\cup(5,\infty) || 2<x<5 ; x<2 \text{ and } x>5
\mathbb{R}\setminus\{0\} || x\ne0 ; (-\infty,0)\cup(0,\infty) || \mathbb{R}
(-1,0)\cup(0,1) || (-1,1)\setminus\{0\} || (-1,1)
0<a<1 || (0,1) || 0<b<1
A(1,2) || (1,2) || B(1,2) ; (2,1)
\{1,2,3\} || 3,2,1 || (1,2,3) ; \{1,2\}
\begin{pmatrix}1&2\\3&4\end{pmatrix} || \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix} ; [[1,2],[3,4]] || -2 ; [[1,3],[2]]
\begin{pmatrix}2\\4\end{pmatrix} || 2\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}2&4\end{pmatrix} ; (2,4)
-2 || \begin{vmatrix}1&2\\3&4\end{vmatrix} || \begin{vmatrix}1&2\\3&5\end{vmatrix}
1:2:3 || 2:4:6 || 1:2:4 ; 1:2
3:2 || \frac32 ; 3 \text{ to } 2 || 2:3 ; \frac23
12:30 || 12:30 || 12:45 ; 2:5
3 || \log_2 8 ; \gcd(3,6) ; 3\pmod 7 || 7 \bmod 3 ; n \choose 3 ; 3x
x\equiv3\pmod7 || 3 || x\equiv3\pmod8 ; x\equiv4\pmod7
X || X || x ; Y
f'(1) || f'(1) || f(1)
2x || f'(x)=2x ; 2\cdot x || 2X ; x^2
n! || n(n-1)! || n
\frac{\pi}{6} || 30^\circ || 60^\circ ; 30
\frac{3}{11} || 0.272727\ldots ; 0.\overline{27} || 0.27
18 || 18 \text{ (dollars)} ; USD 18 ; 018 ; \$18.00 || 18 \text{ thousand} ; 18i
45 || 45 m^2 ; 45\text{ cm} || 45m ; 45^2
\text{ellipse} || \text{an ellipse} ; Ellipse || \text{circle}
"""


@pytest.mark.parametrize('row', EQUIVALENT.strip().splitlines(), ids=lambda row: row.partition(' ||')[0])
def test_equivalent_answers(row):
  gold, same, other = row.split(' || ')
  for right, answers in ((True, same), (False, other)):
    for answer in answers.split(' ; '):
      verdict = grade.grade(f'Hence\n\\[\\boxed{{{answer}}}\\]', gold, 'math')
      assert verdict.correct == right, (answer, verdict)


# (gold, response, right) by both rules
SENTENCES = [
  ('20', 'The answer is not 18 but 20.', True), ('18', 'The answer is not 18 but 20.', False),
  ('20', 'The answer is 20, not 18.', True), ('18', "The answer isn't 18.", False),
  ('18', 'The answer cannot be 18.', False), ('16', '答案不是15，而是16。', True), ('15', '答案是15，不是16。', True),
  ('18', 'The answer is therefore 18.', True), ('18', 'The answer is `18`.', True), ('18', 'x => 18', True),
  ('18', '\\boxed{18} (in the form \\boxed{\\text{answer}})', True), ('18', '\\boxed{x > 18}', False),
  ('-7', '\\boxed{- 7}', True), ('-7', 'The answer is - 7.', True), ('-3', '答案：负3', True),
  ('1234567', "\\boxed{1'234'567}", True), ('1234567', '1_234_567', True), ('2.5', 'The answer is 2 1/2.', True),
  ('18', 'The answer is Rs. 18.', True), ('18', 'The answer is <b>18</b>.', True),
  ('7', 'The answer is 7 (see step 3).', True),
]  # fmt: skip


@pytest.mark.parametrize('rule', ['number', 'math'])
def test_sentences_around_an_answer(rule):
  for gold, response, right in SENTENCES:
    verdict = grade.grade(response, gold, rule)
    assert verdict.correct == right, (gold, response, verdict)
