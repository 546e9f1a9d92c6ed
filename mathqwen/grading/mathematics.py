r"""Whether two answers of MATH are equal. Texts first, then numbers with units, then structure, then symbols.

    equal('0.5\\text{ m}', '50\\text{ cm}')   (True, 'equal value')
    equal('x>3', '(3,\\infty)')               (True, 'equal after normalisation')
    equal('3,4', '(3,4)')                    (False, 'list instead of tuple')

What two answers share may be ignored, what tells them apart may not: a false "right" is worse than a false "wrong".
"""

import re

from mathqwen.grading import context, extract, latex, structure, symbolic, units, values
from mathqwen.grading.cleaning import words
from mathqwen.grading.rule import MAX_ANSWER
from mathqwen.grading.structure import Part

Equal = tuple[bool | None, str]

_NUMBERS = [
  'two',
  'three',
  'four',
  'five',
  'six',
  'seven',
  'eight',
  'nine',
  'ten',
  'eleven',
  'twelve',
  'thirteen',
  'fourteen',
  'fifteen',
  'sixteen',
]
_NAMED_BASE = re.compile(r'_\{?\s?(?:\\text\s?\{)?\s?(' + '|'.join(_NUMBERS) + r')\s?\}{0,2}$', re.IGNORECASE)
_BASE = re.compile(r'([0-9A-Z]+)_\{?(\d+)\}?')
_PARENTHESISED_BASE = re.compile(r'^\(([0-9A-Z]+)\)(?=_)')

_NOT = re.compile(r"\s*(?:not\b|isn't\b|不是|不为)", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_][^\W\d_.,'’&-]*(?:[ .,'’&-]+[^\W\d_]+)*[.']?")
_ARTICLE = re.compile(r'^(?:an?|the)\s+', re.IGNORECASE)
_CHOICE = re.compile(r'\(?([A-Z])\)?')
_CHOICE_AND_TEXT = re.compile(r'\(?([A-Z])(?:\)|[.:])\s*\S.*')
_LABEL = re.compile(
  r'(?:\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{\s?)?\([A-E]\)(?:[\s~:]*\}|[\s~:])(?:[\s~]|\\[,;: ]|\\q?quad)*'
)
_NAMED = re.compile(
  r'^([a-zA-Z](?:_\{?\w+\}?)?|\\(?:theta|alpha|beta|lambda|pi)'
  r'|[a-zA-Z]\'{0,2}\([a-z]\)|\\[a-zA-Z]+ [A-Z]+|[A-Z]{2})\s?=(?!=)\s?(.+)$'
)
_NAMED_BEHIND = re.compile(r'^([^=]+?)\s?=\s?([a-zA-Z])$')
_TWO_NUMBERS = re.compile(r'(?<![_^]\d)(?<=\d)\s+\d')  # but \log_2 8
_MATRIX = re.compile(r'\\begin\s?\{(?![vV])')  # vmatrix is a determinant, a number
_TRIGONOMETRIC = re.compile(r'\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])')
_DEGREES = re.compile(r'(\d+(?:\.\d+)?)\s?(?:\^\s?\{?\s?\\circ\s?\}?|\\degree|°)')
_PI = re.compile(
  r'(-)?(?:(\d+)|\\frac\{(\d*)\\pi\s?\}\{(\d+)\}|\\frac\{(\d+)\}\{(\d+)\})?\s?(?:\\cdot)?\s?(\\pi)?\s?(?:/\s?(\d+))?\s?(?:\\text\{\s?rad(?:ian)?s?\})?'
)
_UNIT_BEHIND = re.compile(
  r'(.*\S)\s*\\(?:(?:text|mbox|mathrm|textrm)\s?\{\s*(?![ei]\s*\})([a-zA-Z][^{}]*)\}(\^\{?[23]\}?)?|p?mod(?![a-zA-Z])(.*))$',
  re.DOTALL,
)
_CONSTANT = re.compile(r'\+\s?[A-Z]$|\+\s?c$')
_BARE_LETTERS = re.compile(r'[A-Z]{2,}')
_CHINESE = re.compile('[\u4e00-\u9fff]')
_ORDER = re.compile(
  r'^\\(overrightarrow|overline|angle|triangle|vec|widehat|overleftrightarrow)\s?\{?\s?([A-Za-z]+)\s?\}?$'
)

_CLOCK_TIME = re.compile(r'(\d{1,2})(?::(\d\d))?[\s\\,;]*([ap])\.?\s?m\.?')  # 2:30 p.m., 2 PM
_TIME = re.compile(r'\d{1,2}:\d\d')
_CLOCK = {
  # 9 a.m., 9:30 PM, 9\text{ p.m.}: the a or the p
  'half of the day': re.compile(r'\d[^\da-zA-Z]*(?:\\(?:text|mbox|mathrm|textrm)\s?\{\s*)?([apAP])\.?\s?[mM]\b'),
  'time of the day': re.compile(r'(\d{1,2}:\d\d)(?!\d|:)'),
}
# Parts of an answer that math-verify ignores: it takes 2112_5 for 2112_6. Where answer and gold both have such a part
# (group 1), the parts must agree.
_MUST_AGREE = {
  # 2112_5, 2112_{5}, \text{2AB}_{\text{16}}: the digits of the base
  'number base': re.compile(r'[0-9A-Z]\}?_\{?(?:\\text\{)?(\d+)'),
  # 5 million, 5\text{ billion}, three hundred: the word
  'scale': re.compile(r'(?<![a-zA-Z])((?:m|b|tr)illion|thousand|hundred)', re.IGNORECASE),
}


def same_text(answer: str, gold: str) -> bool:
  """Whether two answers differ in spacing and spelling of commands at most."""
  return _squeezed(answer) == _squeezed(gold)


def equal(answer: str, gold: str) -> Equal:
  """Whether the answer equals the gold answer, and how that was found; None: undecided."""
  if same_text(answer, gold):
    return True, 'equal after normalisation'
  if len(gold) > MAX_ANSWER:
    return None, f'undecided: a gold answer of {len(gold)} characters is too long to compare'
  if _NOT.match(words(answer)) and not _NOT.match(words(gold)):
    return False, 'says what the answer is not'
  verdict = _compare(structure.parse(answer), structure.parse(gold))
  label = None if verdict[0] else _LABEL.match(answer)
  if label and not _LABEL.match(gold) and answer[label.end() :].strip():  # \textbf{(C)}~12 for 12
    return equal(answer[label.end() :].strip(), gold)
  return verdict


def _squeezed(text: str) -> str:
  """The text, clean, with single blanks between digits and none elsewhere."""
  return re.sub(r'(?<!\d)\s+|\s+(?!\d)', '', re.sub(r'\s+', ' ', structure.tidy(text)))


def _compare(answer: Part, gold: Part) -> Equal:
  """By structure: how many parts, in which order, between which brackets."""
  kinds = answer.kind, gold.kind
  if answer.name and gold.name and answer.name != gold.name:
    return False, f'{answer.name} instead of {gold.name}'
  if kinds == ('atom', 'atom'):
    return _atoms(answer.text, gold.text)
  if 'ratio' in kinds:
    return _ratios(answer, gold)
  if set(kinds) == {'matrix', 'atom'}:
    return _atoms(answer.text, gold.text)  # 2 times a matrix
  if _squeezed(answer.text) == _squeezed(gold.text):
    return True, 'equal after normalisation'
  if 'union' in kinds:
    pair = [part.parts if part.kind == 'union' else (part,) for part in (answer, gold)]
    return _unordered(*pair)
  if set(kinds) <= {'list', 'set'}:
    return _unordered(answer.parts, gold.parts)
  if set(kinds) == {'set', 'atom'}:  # {5} for 5
    pair = [part.parts if part.kind == 'set' else (part,) for part in (answer, gold)]
    return _unordered(*pair)
  if set(kinds) == {'list', 'tuple'} and (values_of := _of_names(answer if answer.kind == 'list' else gold)):
    pair = [values_of if part.kind == 'list' else part.parts for part in (answer, gold)]
    return _ordered(*pair)
  if kinds == ('list', 'atom') and _CHINESE.search(answer.text) and (wanted := units.quantity(gold.text, gold=True)):
    got = _only_number(answer.text)
    if got and len(values.matches(words(units.plain(answer.text)))) == 1:  # 一共有67,000
      return units.same(got, wanted)
  if answer.kind != gold.kind:
    return False, f'{answer.kind} instead of {gold.kind}'
  if answer.ends != gold.ends:
    return False, 'other ends of the interval'
  return _ordered(answer.parts, gold.parts)


def _ratios(answer: Part, gold: Part) -> Equal:
  """3:2 beside 6:4 and 3/2. A gold answer like 12:30 is a time of the day."""
  times = [bool(_TIME.fullmatch(part.text)) for part in (answer, gold)]
  if answer.kind == gold.kind and not times[1]:
    if len(answer.parts) != len(gold.parts):
      return False, f'{len(answer.parts)} parts instead of {len(gold.parts)}'
    rows = [[values.value(part.text) for part in side.parts] for side in (answer, gold)]
    if None in rows[0] or None in rows[1]:
      return _ordered(answer.parts, gold.parts)
    same = all(got * rows[1][0] == want * rows[0][0] for got, want in zip(*rows, strict=True))
    return same, 'equal ratio' if same else 'different ratio'
  ratio, other = (answer, gold) if answer.kind == 'ratio' else (gold, answer)
  if len(ratio.parts) == 2 and not any(times) and (ratio is gold or re.search(r'/|\\frac', gold.text)):
    quotient = f'\\frac{{{ratio.parts[0].text}}}{{{ratio.parts[1].text}}}'
    return _compare(*(Part('atom', quotient) if part is ratio else part for part in (answer, gold)))
  if other.kind == 'atom' and (any(times) or _CLOCK_TIME.fullmatch(words(other.text).strip().lower())):
    return _by_clock(answer.text, gold.text) or (False, 'different text')
  return (_by_clock(answer.text, gold.text) if all(times) else None) or (False, f'{answer.kind} instead of {gold.kind}')


def _of_names(part: Part) -> tuple[Part, ...] | None:
  """Of `x=1, y=2` the values 1 and 2, by the order of the names; None when parts have no names."""
  named = [_NAMED.match(piece.text) for piece in part.parts]
  if not all(named):
    return None
  return tuple(Part('atom', match[2]) for match in sorted(named, key=lambda match: match[1]))


def _ordered(answers: tuple[Part, ...], golds: tuple[Part, ...]) -> Equal:
  if len(answers) != len(golds):
    return False, f'{len(answers)} parts instead of {len(golds)}'
  reason = 'equal parts'
  undecided = None
  for answer, gold in zip(answers, golds, strict=True):
    verdict, reason = _compare(answer, gold)
    if verdict is False:
      return False, reason
    if verdict is None:
      undecided = reason
  return (None, undecided) if undecided else (True, reason)


def _unordered(answers: tuple[Part, ...], golds: tuple[Part, ...]) -> Equal:
  """Each part of the gold answer has one part of the answer that equals it, and none is left."""
  if len(answers) != len(golds):
    return False, f'{len(answers)} parts instead of {len(golds)}'
  left = list(answers)
  undecided = None
  for gold in golds:
    verdicts = []
    for answer in left:
      verdicts.append(_compare(answer, gold))
      if verdicts[-1][0]:
        left.remove(answer)
        break
    else:
      undecided = next((reason for verdict, reason in verdicts if verdict is None), None)
      return (None, undecided) if undecided else (False, f'no part equals {gold.text[:40]}')
  return True, 'equal parts'


def _atoms(answer: str, gold: str) -> Equal:
  """One thing beside one thing: the first way of comparing that has something to say decides."""
  if _squeezed(answer) == _squeezed(gold):
    return True, 'equal after normalisation'
  for way in _WAYS:
    verdict = way(answer, gold)
    if verdict is not None:
      return verdict
  return symbolic.equal(_as_radians(gold), _as_radians(answer), 'mathematics')


def _as_radians(text: str) -> str:
  r"""`\sin 30^\circ` with radians: SymPy ignores degrees."""
  if not _TRIGONOMETRIC.search(text):
    return text
  return _DEGREES.sub(r'{\\frac{\1\\pi}{180}}', text)


def _by_relation(answer: str, gold: str) -> Equal | None:
  """x > 18 and `\\ne 18` are not 18."""
  if bool(structure.RELATION.search(answer)) != bool(structure.RELATION.search(gold)):
    return False, 'a relation beside a value'
  return None


def _by_value(answer: str, gold: str) -> Equal | None:
  wanted = units.quantity(gold, gold=True)
  if wanted is None:
    return _by_pi(answer, gold)
  got = units.quantity(answer)
  if got is None:
    got = _only_number(answer)
  if got is not None:
    verdict = units.same(got, wanted)
    return verdict if verdict[0] or not (pi := _by_pi(answer, gold)) else pi
  return _by_pi(answer, gold)


def _only_number(answer: str) -> units.Quantity | None:
  """The one number of a sentence: `She makes 18 dollars`, 一共有18个."""
  text = words(units.plain(answer))
  if _CHINESE.search(text):
    number = extract.chinese_number(text)
    return None if number is None else units.quantity(number)
  found = values.matches(text)
  letters = re.sub(r'[^a-zA-Z ]', '', text[: found[0].start()]) if len(found) == 1 else ''
  if len(letters.split()) < 2 or not re.search('[a-zA-Z]{3}', letters) or '\\' in text or _NOT.search(text):
    return None
  number = context.whole(text, found[0])
  rest = text[found[0].start() :].rstrip('.')
  return units.quantity(rest) if values.value(number) is not None else None


def _by_pi(answer: str, gold: str) -> Equal | None:
  r"""`\pi/2` beside 90 degrees."""
  for degrees, radians in ((gold, answer), (answer, gold)):
    angle = units.quantity(degrees, gold=True)
    parts = _PI.fullmatch(radians.strip())
    if angle and angle.unit and angle.unit.dimension == 'angle' and parts and '\\pi' in radians:
      sign, factor, top, bottom, top2, bottom2, _, divisor = parts.groups()
      turns = values.Fraction(int(factor or top or top2 or 1), int(bottom or bottom2 or 1) or 1) / (
        int(divisor or 1) or 1
      )
      same = angle.value * angle.unit.factor == turns * 180 * (-1 if sign else 1)
      return same, 'equal angle' if same else 'different angle'
  return None


def _by_base(answer: str, gold: str) -> Equal | None:
  """10110_2: the digits must agree, and the base where both say one."""
  forms = []
  for text in (answer, gold):
    text = _NAMED_BASE.sub(lambda name: f'_{{{_NUMBERS.index(name[1].lower()) + 2}}}', text.strip())
    text = _PARENTHESISED_BASE.sub(r'\1', words(text).replace(' ', ''))
    match = _BASE.fullmatch(text)
    forms.append((match[1], match[2]) if match else (text.replace(',', ''), None))
  (digits, base), (wanted, wanted_base) = forms
  if base is None and wanted_base is None or not re.fullmatch('[0-9A-Z]+', digits + wanted):
    return None
  if base and wanted_base and base != wanted_base:
    return False, 'different number base'
  return digits == wanted, 'equal digits' if digits == wanted else 'different digits'


def _by_words(answer: str, gold: str) -> Equal | None:
  """Words, names of points and letters of choices: as texts, in this order."""
  got, want = (' '.join(words(text).replace('$', '').replace('~', ' ').split()) for text in (answer, gold))
  if (choice := _CHOICE.fullmatch(want)) and ('text' in gold or '(' in gold):
    given = _CHOICE.fullmatch(got) or _CHOICE_AND_TEXT.fullmatch(got)
    if given:
      return given[1] == choice[1], 'equal choice' if given[1] == choice[1] else 'different choice'
  for pattern in (_BARE_LETTERS, _ORDER):
    if (a := pattern.fullmatch(got)) and (g := pattern.fullmatch(want)):
      same = a.groups() == g.groups() and (got == want or pattern is _ORDER)
      return same, 'equal letters' if same else 'different letters'
  is_text = '\\text' in gold or '\\mbox' in gold or _CHINESE.search(gold) or re.fullmatch('[A-Z]?[a-z]{3,}.*', gold)
  if is_text and _LETTERS.fullmatch(want):
    same = _letters_of(got) == _letters_of(want)
    return same, 'equal words' if same else 'different words'
  is_prose = re.fullmatch(r'[a-z]{3,}(?: [a-z]+)*', got, re.IGNORECASE) and '\\' not in answer.replace('\\text', '')
  if is_prose and not re.fullmatch('[a-z]{1,4}', want.replace(' ', '')):
    return False, 'words'
  return None


def _letters_of(text: str) -> str:
  return re.sub(r'[\s.]', '', _ARTICLE.sub('', text)).casefold()


def _by_name(answer: str, gold: str) -> Equal | None:
  """x=5 beside 5 and beside y=5. Equations of two sides with letters are left to the symbols."""
  got, want = _named(answer), _named(gold)
  if got[0] and want[0]:
    if got[0] == want[0] and ('=' not in got[1] + want[1]):
      return _compare(structure.parse(got[1]), structure.parse(want[1]))
    numbers = [units.quantity(text) for text in (got[1], want[1])]
    if None not in numbers:
      return False, f'{got[0]} instead of {want[0]}'
    return None
  if bool(got[0]) == bool(want[0]):
    return None
  if '=' in got[1] and re.search('[a-zA-Z]', re.sub(r'\\[a-zA-Z]+', '', got[1].rpartition('=')[0])):
    return None  # an equation of two sides
  if '=' in got[1]:  # 2 \times 9 = 18
    got = (got[0], got[1].rpartition('=')[2].strip())
  if '=' in want[1]:
    return None
  return _compare(structure.parse(got[1]), structure.parse(want[1]))


def _named(text: str) -> tuple[str | None, str]:
  if match := _NAMED.match(text):
    return match[1], match[2]
  if (match := _NAMED_BEHIND.match(text)) and units.quantity(match[1]):
    return match[2], match[1]
  return None, text


def _by_clock(answer: str, gold: str) -> Equal | None:
  """9 a.m. is not 9 p.m., and 12:30 is not 12:45."""
  got, want = (_CLOCK_TIME.fullmatch(words(text).strip().lower()) for text in (answer, gold))
  if got and want:
    same = (got[1], got[2] or '00', got[3]) == (want[1], want[2] or '00', want[3])
    return same, 'equal time' if same else 'different time'
  return _disagreement(answer, gold, _CLOCK)


def _disagreement(answer: str, gold: str, parts: dict[str, re.Pattern]) -> Equal | None:
  for part, pattern in parts.items():
    in_answer = pattern.search(answer)
    in_gold = pattern.search(gold)
    if in_answer and in_gold and in_answer.group(1).lower() != in_gold.group(1).lower():
      return False, f'different {part}'
  return None


def _by_guards(answer: str, gold: str) -> Equal | None:
  """What math-verify would ignore."""
  if disagreement := _disagreement(answer, gold, _MUST_AGREE):
    return disagreement
  if bool(_MATRIX.search(answer)) != bool(_MATRIX.search(gold)):
    return False, 'a matrix beside something else'
  if bool(_TWO_NUMBERS.search(answer)) != bool(_TWO_NUMBERS.search(gold)):
    return False, 'two numbers side by side'
  if _CONSTANT.search(answer) and _CONSTANT.search(gold) and _CONSTANT.search(answer)[0] != _CONSTANT.search(gold)[0]:
    return _atoms(_CONSTANT.sub('+C', answer), _CONSTANT.sub('+C', gold))
  return None


def _without_units(answer: str, gold: str) -> Equal | None:
  r"""`5\sqrt2\text{ cm}`: the units must agree where both are known; then they go."""
  pieces = [_UNIT_BEHIND.match(text) for text in (answer, gold)]
  if not any(pieces):
    return None
  if all(pieces) and (pieces[0][4] or '').strip(' {}') != (pieces[1][4] or '').strip(' {}'):
    return False, 'different moduli'
  pair = [units.unit_of(piece[2] + (piece[3] or '')) if piece and piece[2] else None for piece in pieces]
  if None not in pair and pair[0] != pair[1]:
    return False, 'different units'
  bare = [piece[1] if piece else text for piece, text in zip(pieces, (answer, gold), strict=True)]
  return _compare(structure.parse(bare[0]), structure.parse(bare[1]))


def _by_text(answer: str, gold: str) -> Equal | None:
  """Equal texts in our form of LaTeX."""
  if latex.normalise(answer) == latex.normalise(gold) and not (_named(answer)[0] and _named(gold)[0]):
    return True, 'equal after normalisation'
  return None


_WAYS = (_by_relation, _by_clock, _by_value, _by_base, _by_words, _by_name, _by_guards, _without_units, _by_text)
