"""Chat templates against transformers' own renderer, and the mask against an oracle that only changes characters."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathqwen.errors import UserError
from mathqwen.text import chatml, rendering, templates
from mathqwen.text.bpe import added_token
from mathqwen.text.huggingface import HuggingFace
from mathqwen.text.loading import load_tokenizer
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
  for token in ['<s>', '</s>', *sorted(set(tokens) - known)]:
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
  from transformers.utils import chat_template_utils

  class Clock(chat_template_utils.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls.fromisoformat(DATE)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chat_template_utils, 'datetime', Clock)
    yield


def test_ids_are_those_of_transformers(published, both):
  ours, theirs = both
  rendered = 0
  refused = set()

  @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
  @given(st.data())
  def compare(data):
    nonlocal rendered
    reasoning = 'reasoning_content' in source or 'message.thinking' in source
    tools = [TOOL] if 'tools' in source and 'tool_calls' in source and data.draw(st.booleans()) else None
    messages = data.draw(conversations(reasoning=reasoning, tools=bool(tools)))
    truth = Theirs(theirs, source, tools)
    conversation = {'messages': messages, 'tools': tools} if tools else messages
    template = jinja(source)
    try:
      wanted = truth.ids(messages)
    except Exception as error:
      with pytest.raises(UserError, match=re.escape(' '.join(str(error).split())[:30])):
        template.render_batch([conversation], ours)
      refused.add(name)
      return
    ((ids, mask),) = template.render_batch([conversation], ours)
    assert ids == wanted
    assert len(mask) == len(ids)
    question = messages[:-1]
    asked = {'messages': question, 'tools': tools} if tools else question
    assert template.prompt(asked, ours) == truth.ids(question, add_generation_prompt=True)
    rendered += 1
    if 'endgeneration' in source and not any(message.get('weight') == 0 for message in messages):
      made = theirs.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, **truth.arguments
      )
      assert mask == made['assistant_masks']

  for name, source in published.items():
    compare()
  assert rendered > 250
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
    others = set().union(*(self.own[i] for i in range(len(self.messages)) if i != turn))
    if not own:
      return None
    before = max((i + 1 for i in others if i < min(own)), default=0)
    after = min((i for i in others if i > max(own)), default=len(self.text))
    question = self.messages[:turn]
    asked, answered = self.theirs.text(question, add_generation_prompt=True), self.theirs.text(question)
    if not asked.startswith(answered):
      return None
    header = asked[len(answered) :]
    start = min(own)
    for length in range(len(header), 0, -1):
      inside = [match for match in MARKER.finditer(header) if match.start() < length < match.end()]
      at = self.text.rfind(header[:length], before, min(own))
      if at >= 0 and not inside and header[:length].strip():
        start = at + length
        break
    ends = [stop for first, stop in self.specials if first > max(own) and stop <= after]
    return start, ends[0] if ends else max(own) + 1


def test_the_mask_is_that_of_the_oracle(published, both):
  ours, theirs = both
  specials = [token for token, i in ours.special.items() if 'think' not in token and 'tool' not in token]
  compared = {}

  @settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
  @given(st.data())
  def compare(data):
    reasoning = 'reasoning_content' in source
    messages = data.draw(conversations(thinking=False, system='not supported' not in source, reasoning=reasoning))
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
    compared[name] = compared.get(name, 0) + 1

  for name, source in published.items():
    if 'endgeneration' not in source:
      compare()
  assert len(compared) > 25, compared
