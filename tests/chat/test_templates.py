"""Chat templates against transformers' own renderer, and the mask against an oracle that only changes characters."""

import json
import re
import subprocess
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mathqwen.chat import chatml, templates
from mathqwen.errors import UserError
from mathqwen.text.bpe import added_token
from mathqwen.text.huggingface import HuggingFace
from mathqwen.text.testing import tiny_bpe_tokenizer

transformers = pytest.importorskip('transformers')

TRL = 'trl==1.16.0'
PICTURES = ('idefics3', 'llava_next', 'smolvlm')  # content is a list of parts; text alone is not written
MARKER = re.compile(r'<\|?[a-zA-Z_]+\|?>|</[a-z_]+>|<｜[^｜<>\s]+｜>|\[/?[A-Z_]+\]')
DATE = '2026-03-01'


@pytest.fixture(scope='module')
def published(pytestconfig):
  """The chat templates in the trl wheel, by name: from PyPI once, then from pytest's cache."""
  folder = pytestconfig.cache.mkdir('trl-wheel')
  if not list(folder.glob('*.whl')):
    pip = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--retries=1', '--timeout=10', f'--dest={folder}', TRL]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
      pytest.skip(f'the chat templates of {TRL} on PyPI are out of reach: {done.stderr[-300:]}')
  wheel = zipfile.ZipFile(next(folder.glob('*.whl')))
  names = [name for name in wheel.namelist() if name.endswith('.jinja')]
  found = {name.rsplit('/', 1)[1].removesuffix('.jinja'): wheel.read(name).decode() for name in names}
  return {name: text for name, text in found.items() if name.removesuffix('_training') not in PICTURES}


def with_tokens(tokens, folder, **config):
  """(our tokenizer, that of transformers): the tiny one with these special tokens. `<think>` and the like are not."""
  definition = json.loads(tiny_bpe_tokenizer().files['tokenizer.json'])
  added = definition['added_tokens']
  known = {token['content'] for token in added}
  for token in ['<s>', '</s>', *sorted(set(tokens) - known - {'<s>', '</s>'})]:
    special = 'think' not in token and 'tool' not in token
    added.append({**added_token(token, added[-1]['id'] + 1), 'special': special})
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>', **config}
  files = {'tokenizer.json': json.dumps(definition).encode(), 'tokenizer_config.json': json.dumps(config).encode()}
  for name, content in files.items():
    (folder / name).write_bytes(content)
  return HuggingFace(definition, files), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope='module')
def both(published, tmp_path_factory):
  markers = {marker for text in published.values() for marker in MARKER.findall(text)}
  return with_tokens(markers, tmp_path_factory.mktemp('tokenizer'))


def jinja(source, **fields):
  """A template that is not tried out in a process of its own."""
  return templates.Template('test', source, date=DATE, **fields)


TEXTS = st.one_of(
  st.text(st.sampled_from('ab1 \n!😀é小\u200d'), max_size=6),
  st.sampled_from(['', ' x ', '\n\ny', 'z\n', '{{ a }}', "it's", '120']),
)
TOOL = {
  'type': 'function',
  'function': {
    'name': 'add',
    'description': 'Adds <two> numbers',
    'parameters': {'type': 'object', 'properties': {'a': {'type': 'number'}}, 'required': ['a']},
  },
}


@st.composite
def conversations(draw, thinking=True, system=True, reasoning=False, tools=False):
  messages = [{'role': 'system', 'content': draw(TEXTS)}] if system and draw(st.booleans()) else []
  for _ in range(draw(st.integers(1, 3))):
    messages.append({'role': 'user', 'content': draw(TEXTS)})
    answer = {'role': 'assistant', 'content': draw(TEXTS)}
    if thinking and draw(st.integers(0, 3)) == 0:
      answer['content'] = f'<think>\n{draw(TEXTS)}\n</think>\n\n{answer["content"]}'
    elif reasoning and draw(st.booleans()):
      answer['reasoning_content'] = draw(TEXTS)
    if draw(st.integers(0, 4)) == 0:
      answer['weight'] = 0
    messages.append(answer)
    if tools and draw(st.booleans()):
      call = {'type': 'function', 'function': {'name': 'add', 'arguments': {'a': draw(st.integers(0, 99)), 'b': 'ü'}}}
      answer['tool_calls'] = [{**call, 'id': 'c' * 9}]
      messages.append({'role': 'tool', 'content': draw(TEXTS), 'name': 'add', 'tool_call_id': 'c' * 9})
      messages.append({'role': 'assistant', 'content': draw(TEXTS)})
  return messages


class Theirs:
  """transformers' own rendering."""

  def __init__(self, tokenizer, source, tools=None, **options):
    self.tokenizer = tokenizer
    self.arguments = {'chat_template': source, 'tools': tools, **options}

  def text(self, messages, **more):
    messages = [{key: value for key, value in message.items() if key != 'weight'} for message in messages]
    return self.tokenizer.apply_chat_template(messages, tokenize=False, **self.arguments, **more)

  def ids(self, messages, **more):
    return self.tokenizer.encode(self.text(messages, **more), add_special_tokens=False)


@pytest.fixture(autouse=True, scope='module')
def one_day():
  """strftime_now of transformers on the day that our templates are given."""
  import datetime
  from types import SimpleNamespace

  clock = SimpleNamespace(now=lambda: datetime.datetime.fromisoformat(DATE))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('transformers.utils.chat_template_utils.datetime', clock)
    yield


# One conversation for all templates: compiling them takes most of the time.
EXAMPLES = dict(deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def takes(source, messages, tools):
  """Whether this template writes all that the messages have."""
  keys = {key for message in messages for key in message} | ({'tools'} if tools else set())
  return all(key in source for key in keys & {'reasoning_content', 'tool_calls', 'tools'})


def test_ids_are_those_of_transformers(published, both):
  ours, theirs = both
  rendered = {}
  refused = {}

  def compare(name, source, messages, tools):
    truth = Theirs(theirs, source, tools)
    conversation = {'messages': messages, 'tools': tools} if tools else messages
    template = jinja(source)
    try:
      wanted = truth.ids(messages)
    except Exception as error:
      with pytest.raises(UserError, match=re.escape(' '.join(str(error).split())[:30])):
        template.render_batch([conversation], ours)
      refused[name] = str(error)
      return
    ((ids, mask),) = template.render_batch([conversation], ours)
    assert ids == wanted
    assert len(mask) == len(ids)
    rendered[name] = rendered.get(name, 0) + 1
    question = messages[:-1]
    asked = {'messages': question, 'tools': tools} if tools else question
    assert template.prompt(asked, ours) == truth.ids(question, add_generation_prompt=True)
    if 'endgeneration' in source and not any(message.get('weight') == 0 for message in messages):
      made = theirs.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, **truth.arguments
      )
      assert mask == made['assistant_masks']

  @settings(max_examples=4, **EXAMPLES)
  @given(st.data())
  def all_of_them(data):
    reasoning, tools = data.draw(st.booleans()), data.draw(st.sampled_from([None, [TOOL]]))
    messages = data.draw(conversations(reasoning=reasoning, tools=bool(tools)))
    for name, source in published.items():
      if takes(source, messages, tools):
        compare(name, source, messages, tools)

  all_of_them()
  assert len(rendered) > 55 and sum(rendered.values()) > 100, rendered
  assert len(refused) < 20, refused


def changed(character):
  """Another character that a template treats alike."""
  return {' ': '\t', '\n': '\r', '\t': ' ', '\r': '\n'}.get(character, 'q')


class Oracle:
  """The characters with loss, from renderings with single characters changed. Knows nothing of origins."""

  def __init__(self, theirs, messages, specials):
    self.theirs, self.messages = theirs, messages
    self.text = theirs.text(messages)
    self.specials = [match.span() for match in re.finditer('|'.join(map(re.escape, specials)), self.text)]
    self.own = [self.places(turn) for turn in range(len(messages))]

  def places(self, turn):
    """Where the characters that message `turn` says stand in the text."""
    found = set()
    message = self.messages[turn]
    for key in ('content', 'reasoning_content'):
      for at, character in enumerate(message.get(key, '')):
        said = message[key]
        other = {**message, key: said[:at] + changed(character) + said[at + 1 :]}
        try:
          text = self.theirs.text([*self.messages[:turn], other, *self.messages[turn + 1 :]])
        except Exception:
          continue
        if len(text) == len(self.text):
          found |= {i for i, (a, b) in enumerate(zip(text, self.text, strict=True)) if a != b}
    return found

  def span(self, turn):
    """From the end of the header to the end of the turn; None where the oracle cannot tell."""
    own = self.own[turn]
    earlier = [at for places in self.own[:turn] for at in places]
    later = [at for places in self.own[turn + 1 :] for at in places]
    before = max((at + 1 for at in earlier), default=0)
    after = min(later, default=len(self.text))
    first = min(own, default=after)
    question = self.messages[:turn]
    asked, answered = self.theirs.text(question, add_generation_prompt=True), self.theirs.text(question)
    if not asked.startswith(answered) or after < before:
      return None
    header = asked[len(answered) :]
    start = min(own, default=None)
    for length in range(len(header), 0, -1):
      inside = [match for match in MARKER.finditer(header) if match.start() < length < match.end()]
      find = self.text.rfind if own else self.text.find
      at = find(header[:length], before, first)
      if at >= 0 and not inside and header[:length].strip():
        start = at + length
        break
    if start is None:
      return None
    last = max(own, default=start - 1)
    # The turn has an end of its own if a conversation that ends with it ends with a special token.
    alone = self.theirs.text(self.messages[: turn + 1]).rstrip()
    ended = any(alone.endswith(self.text[begin:stop]) for begin, stop in self.specials)
    ends = [stop for begin, stop in self.specials if ended and begin > last and stop <= after]
    if not own and not any(a == start and alone.endswith(self.text[a:b]) for a, b in self.specials):
      return None  # more stands between the header and an empty answer
    return start, ends[0] if ends else last + 1


def test_the_mask_is_that_of_the_oracle(published, both):
  ours, theirs = both
  specials = [token for token, i in ours.special.items() if 'think' not in token and 'tool' not in token]
  compared = {}

  def compare(name, source, messages):
    try:
      oracle = Oracle(Theirs(theirs, source), messages, specials)
    except Exception:
      return  # the template refuses it: see above
    ((ids, mask),) = jinja(source).render_batch([messages], ours)
    encoding = theirs(oracle.text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == encoding['input_ids']
    spans = [oracle.span(t) for t, m in enumerate(messages) if m['role'] == 'assistant' and m.get('weight') != 0]
    if None in spans:
      return
    wanted = [int(any(a < stop and start < b for start, stop in spans)) for a, b in encoding['offset_mapping']]
    assert mask == wanted, (name, messages, oracle.text, spans)
    compared[name] = compared.get(name, 0) + len(spans)

  @settings(max_examples=3, **EXAMPLES)
  @given(st.data())
  def all_of_them(data):
    reasoning = data.draw(st.booleans())
    messages = data.draw(conversations(thinking=False, system=data.draw(st.booleans()), reasoning=reasoning))
    for name, source in published.items():
      if 'endgeneration' not in source and takes(source, messages, None):
        compare(name, source, messages)

  all_of_them()
  assert len(compared) > 30 and sum(compared.values()) > 60, compared


def shown(tokenizer, ids, mask):
  """The text, with what has loss between brackets."""
  names = {i: token for token, i in tokenizer.special.items()}
  text = ''
  run, before = [], 0
  for i, loss in [*zip(ids, mask, strict=True), (None, 0)]:
    if i is None or i in names or loss != before:
      text += tokenizer.decode(run)
      run = []
    if loss != before:
      text += '[' if loss else ']'
      before = loss
    if i in names:
      text += names[i]
    elif i is not None:
      run.append(i)
  return text


TWO = [
  {'role': 'user', 'content': '1 + 1 ='},
  {'role': 'assistant', 'content': '<think>\nx\n</think>\n\n2'},
  {'role': 'user', 'content': '2 + 2 ='},
  {'role': 'assistant', 'content': '4'},
]


@pytest.mark.parametrize(
  ('name', 'wanted'),
  {
    'qwen3': '<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n[2<|im_end|>]\n'
    '<|im_start|>user\n2 + 2 =<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\n4<|im_end|>]\n',
    'deepseek_r1_distill': '<s><｜User｜>1 + 1 =<｜Assistant｜>[\n\n2<｜end▁of▁sentence｜>]'
    '<｜User｜>2 + 2 =<｜Assistant｜>[4<｜end▁of▁sentence｜>]',
  }.items(),
)
def test_the_examples_of_the_definition(name, wanted, published, both):
  assert shown(both[0], *jinja(published[name]).render_batch([TWO], both[0])[0]) == wanted


# Chat templates of the shapes that are met: without a generation prompt, with the header written by the question, with
# messages taken by index, with messages put together anew, with an answer that is not written when empty.
SHAPES = {
  'plain': '{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}',
  'question writes the header': "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A:"
  "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
  'by index': '{% for i in range(messages|length) %}{% set m = messages[i] %}<|{{ m.role }}|>{{ m.content }}'
  '{% endfor %}'
  '{% if add_generation_prompt %}<|assistant|>{% endif %}',
  'next turn ends it': "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% else %}<|assistant|>{% endif %}"
  '{{ m.content }}{% endfor %}'
  '{% if add_generation_prompt %}<|assistant|>{% endif %}',
  'anew': "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [{'r': m.role, "
  "'c': m.content|trim}] %}{% endfor %}{% for m in ns.all %}<|{{ m.r }}|>{{ m.c }}</s>{% endfor %}"
  '{% if add_generation_prompt %}<|assistant|>{% endif %}',
  'pairs': "{% for m in messages %}{% if m.role == 'user' %}U {{ m.content }} A {{ messages[loop.index].content }}</s>"
  '{% endif %}{% endfor %}',
  'another end when asked': '{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}'
  '{% if add_generation_prompt %}<|assistant|>{% else %}</s>{% endif %}',
  'marked': "{% for m in messages %}{% if m.role == 'assistant' %}A{% generation %}{{ m.content }}</s>"
  '{% endgeneration %}{% else %}Q{{ m.content }}{% endif %}{% endfor %}',
  'calls': '{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.name }}'
  ' {% for k, v in c.arguments.items() %}{{ k }}={{ v }};{% endfor %}</call>{% endfor %}END'
  "{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}",
  'macro': "{% macro turn(m) %}{% set text = m.content.split('</think>')[-1] %}{{ '%s|' % m.role ~ text }}"
  '{% endmacro %}'
  "{% for m in messages %}{{ turn(m) + eos_token }}{% endfor %}{{ 'assistant|' if add_generation_prompt }}",
}


@pytest.mark.parametrize(
  ('shape', 'answers', 'wanted'),
  [
    ('plain', ['b'], 'user: a</s>assistant: [b</s>]'),
    ('plain', [' b', ''], 'user: a</s>assistant: [ b</s>]user: a</s>assistant: [</s>]'),
    ('question writes the header', ['b', 'c'], 'Q a A: [b</s>]Q a A: [c</s>]'),
    ('by index', ['b', 'c'], '<|user|>a<|assistant|>[b]<|user|>a<|assistant|>[c]'),
    ('next turn ends it', ['b', ''], '<|user|>a<|assistant|>[b]<|user|>a<|assistant|>'),
    ('anew', [' b ', 'c'], '<|user|>a</s><|assistant|>[b</s>]<|user|>a</s><|assistant|>[c</s>]'),
    ('pairs', ['b', 'c'], 'U a A [b</s>]U a A [c</s>]'),
    ('another end when asked', ['b'], '<|user|>a<|end|><|assistant|>[b<|end|>]</s>'),
    ('marked', ['b', ''], 'QaA[b</s>]QaA[</s>]'),
    ('macro', ['x</think>b'], 'user|a</s>assistant|[b</s>]'),
  ],
)
def test_shapes(shape, answers, wanted, tmp_path):
  ours, theirs = with_tokens(['<|user|>', '<|assistant|>', '<|end|>'], tmp_path)
  messages = []
  for answer in answers:
    messages += [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': answer}]
  template = jinja(SHAPES[shape])
  ((ids, mask),) = template.render_batch([messages], ours)
  assert shown(ours, ids, mask) == wanted
  truth = Theirs(theirs, template.source)
  assert ids == truth.ids(messages)
  if shape != 'pairs':
    assert template.prompt(messages[:-1], ours) == truth.ids(messages[:-1], add_generation_prompt=True)


def test_tool_calls_are_generated_to_their_end(tmp_path):
  ours, theirs = with_tokens(['<|user|>', '<|assistant|>', '<|end|>', '<|close|>'], tmp_path)
  call = {'name': 'add', 'arguments': {'a': 1, 'b': 2.5, 'c': True}}
  messages = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': '', 'tool_calls': [call]}]
  messages += [{'role': 'tool', 'content': '3'}, {'role': 'assistant', 'content': 'b'}]
  for end, said in (('', ''), ('<|close|><|end|>', '<|close|>')):
    source = SHAPES['calls'].replace('END', end + "{{ '\\n' }}")
    ((ids, mask),) = jinja(source).render_batch([messages], ours)
    assert ids == Theirs(theirs, source).ids(messages)
    assert shown(ours, ids, mask) == (
      f'<|user|>q{end}\n<|assistant|>[<call>add a=1;b=2.5;c=True;</call>{end}]\n<|tool|>3{end}\n'
      f'<|assistant|>[b{said}]{end.removeprefix(said)}\n'
    )


@pytest.mark.parametrize('role', ['developer', 'observation', 'tool'])
def test_a_turn_that_the_template_leaves_out_is_named(role, tmp_path):
  ours, _ = with_tokens(['<|user|>', '<|assistant|>'], tmp_path)
  known = "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<|{{ m.role }}|>{{ m.content }}</s>"
  template = jinja(known + "{% endif %}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}")
  asked = [{'role': 'user', 'content': 'a'}, {'role': role, 'content': 'b'}]
  for call in (
    lambda: template.render_batch([[*asked, {'role': 'assistant', 'content': 'c'}]], ours),
    lambda: template.prompt(asked, ours),
  ):
    with pytest.raises(UserError, match=rf'message 1 \({role}\): the template test writes nothing of it; give it an'):
      call()
  asked[1]['content'] = ' '  # nothing is lost
  assert template.prompt(asked, ours) == template.prompt(asked[:1], ours)


@settings(max_examples=60, deadline=None)
@given(conversations(thinking=False))
def test_chatml_through_the_engine_is_the_short_path(messages):
  ours = tiny_bpe_tokenizer()
  through = jinja(chatml.CHAT_TEMPLATE + '{#-#}').render_batch([messages], ours)  # so it is not taken for ChatML
  starts_with_line = any('\n' in m['content'][: len(m['content']) - len(m['content'].lstrip())] for m in messages)
  if not starts_with_line:  # two newlines may be one token: see chatml.py
    assert through == [chatml.render(messages, ours)]
