"""The generator's answers against sympy, its forms against rows of Math401, its splits against each other."""

import collections
import gzip
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from sympy.parsing.sympy_parser import convert_xor, parse_expr, rationalize, standard_transformations

from mathqwen.data import arithmetic, expressions, sources
from mathqwen.errors import UserError
from mathqwen.grading.grade import grade

FORMS = Path(__file__).parents[1] / 'testdata' / 'data_sets' / 'math401_forms.json'


def rows(path):
  return [json.loads(line) for line in Path(path).read_text('utf-8').splitlines()]


def spelled(query):
  """The canonical spelling of a query, computed without the code under test."""
  text = query.replace(' ', '').strip('=').replace('×', '*').replace('÷', '/').replace('π', 'pi')
  return text.replace('**', '^')


def truth(query):
  """Value by sympy; the queries are the generator's own, so parse_expr sees nothing foreign."""
  text = query.rstrip('=').replace('×', '*').replace('÷', '/').replace('π', '*pi').replace('(*pi', '(pi')
  text = re.sub(r'^\*pi|(?<=[-+*/])\*pi', 'pi', text)
  text = re.sub(r'log (\d+)\((\d+)\)', r'(ln(\2)/ln(\1))', text).replace('°', '*pi/180')
  names = {'pi': sympy.pi, 'e': sympy.E, 'ln': sympy.log}
  return parse_expr(text, names, standard_transformations + (convert_xor, rationalize))  # 0.17 is 17/100


@pytest.mark.parametrize('group', arithmetic.GROUPS)
def test_answers_are_exact(group):
  rng = random.Random(7)
  for _ in range(25):
    row = arithmetic.problem(group, rng)
    assert row['group'] == group and row['query'].endswith('=')
    value, shown = truth(row['query']), row['response']
    if re.fullmatch(r'-?\d+', shown):
      assert value == sympy.Integer(shown), row
    else:
      assert re.fullmatch(r'-?\d+\.\d{4}', shown) and not re.fullmatch(r'-0\.0+', shown), row
      assert abs(float(sympy.N(value - sympy.Rational(shown), 30, chop=True))) <= 0.5e-4 + 1e-9, row


@pytest.mark.parametrize(
  'value, text',
  [
    (Fraction(16, 83), '0.1928'),
    (Fraction(1, 32), '0.0312'),
    (Fraction(3, 32), '0.0938'),
    (Fraction(-1, 10**6), '0.0000'),
    (Fraction(-82, 95), '-0.8632'),
    (59.0, '59.0000'),
    (1933406196413, '1933406196413.0000'),
  ],
)
def test_fixed(value, text):
  assert arithmetic.fixed(value) == text


@pytest.mark.parametrize(
  'expression, value',
  [
    ('(11-1)*2', 20),
    ('120*80%*15%', Fraction(72, 5)),
    ('30/[1-37.5%-(1-37.5%)*40%]', 80),
    ('1999+999^2', 1000000),
    ('2^3^2', 512),
    ('-2^2', -4),
    ('10-3-2', 5),
    ('16/4/2', 2),
    ('(1/3)+0.25', Fraction(7, 12)),
    ('2 × 3 ÷ 4=', 1.5),
    ('2*-3', -6),
    ('2^-1', 0.5),
  ],
)
def test_evaluate(expression, value):
  assert expressions.evaluate(expression) == value


@pytest.mark.parametrize(
  'expression',
  [
    '',
    '1+',
    '(1',
    '1)',
    '80千米/小时',
    '1/0',
    '0^-1',
    '2^0.5',
    '9^9^9^9',
    '((((9^64)^64)^64)^64)^64',
    '(1/6)0',
    '1..2',
    '__import__("os")',
    '²',
    '(' * 5000 + '1' + ')' * 5000,
    '-' * 5000 + '1',
  ],
)
def test_evaluate_refuses(expression):
  with pytest.raises(ValueError):
    expressions.evaluate(expression)


def test_every_expression_occurs_once_and_the_splits_are_disjoint(tmp_path):
  equal = dict.fromkeys(arithmetic.GROUPS, 1)
  summary = arithmetic.write(str(tmp_path / 'a'), 3000, 10, seed=1, weights=equal)
  files = sorted((tmp_path / 'a' / 'train').iterdir())
  assert [file.name for file in files] == sorted(f'{group}.jsonl' for group in arithmetic.GROUPS)
  train, test = [row for file in files for row in rows(file)], rows(tmp_path / 'a' / 'test.jsonl')
  for row in train:
    last = row['response'].split('\n')[-1]
    if row['group'] in ('e_pi', 'log', 'pow_decimal'):  # which round on the way, see test_worked.py
      assert grade(last, row['answer'], 'math401').correct
    else:
      assert last == row['answer']
  everything = [spelled(row['query']) for row in train + test]
  assert len(everything) == len(set(everything))
  assert (summary['train'], summary['test']) == (len(train), len(test))
  counts = collections.Counter(row['group'] for row in test)
  assert counts['add_sub_100'] == counts['log'] == 10 and 0 < counts['pow_int'] < 10
  assert {g: n['train'] for g, n in summary['groups'].items()} == {
    g: sum(row['group'] == g for row in train) for g in arithmetic.GROUPS
  }
  assert list(dict.fromkeys(row['group'] for row in test)) == list(arithmetic.GROUPS)
  assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['test.jsonl', 'train']


def test_the_seed_decides(tmp_path):
  for name, seed in (('a', 1), ('b', 1), ('c', 2)):
    arithmetic.write(str(tmp_path / name), 300, 5, seed=seed)
  read = {name: (tmp_path / name / 'train' / 'add_sub_100.jsonl').read_bytes() for name in 'abc'}
  assert read['a'] == read['b'] != read['c']


def test_a_small_group_gives_what_it_has_and_says_so(tmp_path):
  summary = arithmetic.write(str(tmp_path), 1000, 30, seed=0, weights={'pow_int': 1, 'add_sub_10': 1})
  # 10 bases, exponents 2, 3, 4; and 11 * 11 sums and as many differences
  assert sum(summary['groups']['pow_int'].values()) == 30 and summary['short']['pow_int'] == 530 - 30
  assert sum(summary['groups']['add_sub_10'].values()) == 242 and summary['short']['add_sub_10'] == 530 - 242
  assert 0 < summary['groups']['pow_int']['test'] < 10
  assert summary['groups']['add_sub_100'] == {'train': 0, 'test': 30}
  train, _ = arithmetic.generate(1000, 10, seed=0, weights={'add_sub_10': 1})
  assert {row['query'] for row in train} == {row['query'] for row in rows(tmp_path / 'train' / 'add_sub_10.jsonl')}


def test_the_default_train_rows_are_those_of_the_demo():
  train, _ = arithmetic.generate(20000, 25, seed=0)
  counts = collections.Counter(row['group'] for row in train)
  for group in ('add_sub_100', 'add_sub_1000', 'mul_100', 'add_sub_decimal'):
    assert counts[group] == round(20000 * arithmetic.MIX[group] / sum(arithmetic.MIX.values()))
  assert set(counts) == set(arithmetic.MIX)
  within = [row for row in train if row['group'] == 'add_sub_100']
  operands = {int(n) for row in within for n in re.findall(r'\d+', row['query'])}
  assert operands == set(range(101))


@pytest.mark.parametrize(
  'arguments, words',
  [
    ({'weights': {'sums': 1}}, 'sums'),
    ({'weights': {'log': -1, 'div': 2}}, 'negative'),
    ({'weights': {'log': 0}}, 'positive'),
    ({'train_examples': 0, 'test_per_group': 0}, 'nothing'),
  ],
)
def test_bad_arguments(arguments, words, tmp_path):
  with pytest.raises(UserError, match=words):
    arithmetic.write(str(tmp_path), **{'train_examples': 10, 'test_per_group': 1, 'seed': 0} | arguments)
  assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='file'):
    arithmetic.write(str(tmp_path / 'file' / 'below'), 10, 1, seed=0)


def form(query):
  """A query with its numbers and spaced operators masked: '( 8 - 90) / 95=' is '( 9 o 9) o 9='."""
  return re.sub(r' [-+*/] ', ' o ', re.sub(r'\d+', '9', query.strip()))


def test_forms_are_those_of_math401():
  """The generator's forms of a group cover nearly all of Math401's in that group."""
  published = json.loads(FORMS.read_text('utf-8'))
  assert list(published) == list(arithmetic.GROUPS)
  rng = random.Random(0)
  for group, counts in published.items():
    assert sum(counts.values()) == 25
    made = {form(arithmetic.problem(group, rng)['query']) for _ in range(2000)}
    missing = {other: count for other, count in counts.items() if other not in made}
    assert sum(missing.values()) <= 4, (group, missing)  # 0*2, 2+6, 6-5 and 3*4 are among the sums of e and pi


def test_stored_forms_are_those_of_the_published_file(published):
  text = gzip.decompress((published / 'math401' / 'test.jsonl.gz').read_bytes()).decode('utf-8')
  queries = [json.loads(line)['query'] for line in text.splitlines()]
  found = {}
  for number, group in enumerate(arithmetic.GROUPS):
    found[group] = collections.Counter(map(form, queries[1 + 25 * number : 26 + 25 * number]))
  assert json.loads(FORMS.read_text('utf-8')) == found


def test_training_rows_of_any_seed_are_test_rows_of_none():
  _, test = arithmetic.generate(0, 20, seed=5)
  held_out = {spelled(row['query']) for row in test}
  train = [spelled(row['query']) for row in arithmetic.rows(3000, seed=6)]
  assert len(set(train)) == 3000 and not held_out & set(train)
  assert all(arithmetic.is_test(query) for query in held_out) and not any(map(arithmetic.is_test, train))
  assert arithmetic.is_test('2×3=') == arithmetic.is_test(' 2 * 3')


def test_arithmetic_as_a_source():
  examples, report = sources.load('arithmetic?count=300&seed=3&groups=div+add_sub_100')
  assert [example.extra['group'] for example in examples].count('div') in range(110, 190)
  assert not report.counts and len({example.id for example in examples}) == 300
  more, _ = sources.load('arithmetic?count=301&groups=div+add_sub_100&seed=3')
  assert [example.question for example in more[:300]] == [example.question for example in examples]
  for example in examples:
    assert example.solution.split('\n')[-1] == example.answer


@pytest.mark.parametrize(
  'source, message',
  [
    ('arithmetic?cout=3', "arithmetic has no option 'cout'; did you mean 'count'?"),
    ('arithmetic?count=x', 'count must be a whole number'),
    ('arithmetic?count=0', 'it must be at least 1'),
    ('arithmetic?groups=dov', 'unknown arithmetic group dov: the groups are add_sub_10, '),
    ('arithmetic?groups=pow_int&count=31', 'there are only 2. different expressions'),
    ('arithmetic?count', "'count' is not OPTION=VALUE"),
    ('arithmetic?seed=1&seed=1', 'names the option seed twice'),
    ('math401?seed=1', "math401 has no option 'seed'; it has none"),
  ],
)
def test_options_that_make_no_sense(source, message):
  with pytest.raises(UserError, match=message.replace('?', r'\?')):
    sources.load(source)
