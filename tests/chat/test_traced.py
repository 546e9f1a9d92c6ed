"""Every operation of a template says where each character comes from."""

import datetime
import json
import unicodedata

from jinja2.sandbox import ImmutableSandboxedEnvironment

from mathqwen.chat import traced
from mathqwen.chat.engine import Engine

# What a message says is Greek, its role is Cyrillic, what a template writes is ASCII. So the origin of a character can
# be seen, after anything that is done to it.
# They are separated by ' | '; filters have no spaces around the bar.
EXPRESSIONS = """m.content + 'a' | 'a' + m.content | 'a' ~ m.content ~ 3 | '%s-%s' % (m.content, 'b') | '%d%%' % 3
'{} {x} {{b}}'.format(m.content, x=m.role) | 'a{0:>9}'.format('b') | '{:>3}'.format(m.content) | m.content[1:4]
m.content[-1] | m.content[::-1] | m.content * 2 | m.content | m.content|trim | m.content.strip('β ')
m.content.lstrip() + m.content.rstrip() | m.content.split()|join('-') | m.content.split(' ')[0]
m.content.split(' ', 1)[-1] | m.content.rsplit(' ', 1)|join | m.content.rsplit(None, 1)|join
(m.content + 'a\\nb').splitlines()|join('+') | m.content.partition(' ')|join('|')
m.content.rpartition(' ')|join('_') | m.content.replace('β', 'b') | m.content|replace('β', m.role)
m.content.replace('', '-') | m.content.replace('β', '', 1) | m.content|upper | m.content|lower
m.content|capitalize | m.content|title | m.content.title() ~ m.content.swapcase()
m.content.removeprefix('α') ~ m.content.removesuffix('δ') | m.content|tojson | m.tool|tojson
{'a': m.content, 'b': m.role}|tojson | [m.content, 'é\\n"', 1.5, true, none]|tojson(indent=2)
{'b': 1, 'a': [m.content]}|tojson(sort_keys=true, separators=(',', ':')) | m.content|tojson(ensure_ascii=true)
m.tool | [1, 'a'] | m.content|list|join(', ') | m.content|reverse | m.content|first ~ m.content|last
m.content|length | m.content|center(30) | m.content.ljust(20) ~ 'a'.zfill(4)
(m.content ~ '\\n' ~ m.role)|indent(2, true) | (m.role ~ '\\n\\n' ~ m.content)|indent('> ', blank=true)
m.content|string|default('a') | m.missing|default(m.content) | 'α' in m.content | m.content.find('γ')
m.content.startswith('α') | m.tool.args.items()|list|first|join | m.tool.args|dictsort|first|join('=')
m.tool['name'] | [m.role, m.content]|map('upper')|join | [m.content, 'z']|sort|join
[m]|map(attribute='content')|join | [m]|selectattr('role')|map(attribute='role')|first
[m.content, m.content]|unique|join('a') | dict(a=m.content).a | namespace(a=m.content).a
m.content|truncate(6, true) | m.content|wordwrap(4) | m.content|e | m.content|safe | m.content.encode()|length
(m.content, 'a')|first | m.content if m.role else 'b' | m.content|batch(2)|first|join | m.content|format
'%5.2f' % 3.14159 | 'a%sb' % m.content | m.content.center(25, '*') | m.role.casefold() ~ m.content.expandtabs()
m.content|urlencode | [m.content, m.content] * 2"""


def test_every_operation_keeps_origins():
  message = {
    'role': 'user',
    'name': 'Жук',
    'content': ' αβ β\tγδ ',
    'tool_calls': [{'name': 'λ"', 'args': {'μν': ['ξ', 1, None, True], 'ο': 2.5}}],
  }
  kinds = {'GREEK': traced.OWN, 'CYRILLIC': traced.GIVEN}
  setup = '{% set m = dict(role=m0.name, content=m0.content, tool=m0.tool_calls[0]) %}'

  def expected(character, own):
    name = unicodedata.name(character, '').split(' ')[0]
    return kinds.get(name, traced.LITERAL if character in 'abxz' and not own else None)

  for expression in EXPRESSIONS.replace('\n', ' | ').split(' | '):
    own = 'm.tool' in expression or 'ensure_ascii' in expression  # what the message says is written in ASCII
    source = f'{{% set m0 = messages[0] %}}{setup}{{{{ {expression} }}}}'
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters['tojson'] = lambda value, **options: json.dumps(value, **{'ensure_ascii': False, **options})
    wanted = environment.from_string(source).render(messages=[message])
    text = Engine(source, datetime.date(2026, 3, 1)).render([message], {})
    assert text == wanted, expression
    origins = traced.each(text._runs)
    assert len(origins) == len(text), expression
    for character, origin in zip(text, origins, strict=True):
      assert origin & 3 != traced.UNKNOWN, (expression, text, text._runs)
      if expected(str(character), own) is not None and 'urlencode' not in expression:
        assert origin & 3 == expected(str(character), own), (expression, text, text._runs)
