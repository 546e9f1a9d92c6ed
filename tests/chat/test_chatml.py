import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathqwen.chat import chatml
from mathqwen.chat.chat_format import save_tokenizer
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.testing import tiny_bpe_tokenizer

TOKENIZERS = {'packaged': load_tokenizer, 'bpe': tiny_bpe_tokenizer}


def turns(*texts, system=None):
  """user, assistant, user, assistant, ... with a system turn before them if given."""
  first = [] if system is None else [{'role': 'system', 'content': system}]
  return first + [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(texts)]


CHATS = {
  'one turn': turns('2 + 2 =', '4', system='You are a helpful assistant.'),
  'no system turn': turns('2 + 2 =', '4'),
  'multi turn': turns('2 + 2 =', 'It is 4.', 'And 3 + 3?', 'It is 6.'),
  'two user turns': [
    {'role': 'user', 'content': 'a'},
    {'role': 'user', 'content': 'b'},
    {'role': 'assistant', 'content': 'c'},
  ],
  'empty answer': turns('Say nothing.', ''),
  'emoji': turns('How many 😀 in 😀😀?', 'There are 2 😀.'),
  'CRLF': turns('line one\r\nline two\r\n', 'one\r\ntwo'),
  'bang': turns('5!', '5! = 120!'),
  'spaces': turns('  x  ', '  y \n'),
  'question only': turns('2 + 2 ='),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
  return TOKENIZERS[request.param]()


def test_a_literal_row():
  tokenizer = load_tokenizer()
  piece = {text: tokenizer.encode(text)[0] for text in ('user', 'assistant', '\n', '5', '!', '1', '2', '0')}
  user, assistant, line, five, bang, one, two, zero = piece.values()
  start, end = 1022, 1023
  ids, mask = chatml.render(turns('5!', '120'), tokenizer)
  assert bang == 0
  assert ids == [start, user, line, five, bang, end, line, start, assistant, line, one, two, zero, end, line]
  assert mask == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize('name', CHATS)
def test_text_and_mask_read_back(name, tokenizer):
  """Independent of how turns are cut into pieces: the text as one string, and the part of it that has loss."""
  names = {i: token for token, i in tokenizer.special.items()}

  def text(ids):
    parts, run = [], []
    for i in [*ids, None]:
      if i is None or i in names:
        parts += [tokenizer.decode(run), names.get(i, '')]
        run = []
      else:
        run.append(i)
    return ''.join(parts)

  ids, mask = chatml.render(CHATS[name], tokenizer)
  assert len(ids) == len(mask)
  assert text(ids) == ''.join(f'<|im_start|>{m["role"]}\n{m["content"]}<|im_end|>\n' for m in CHATS[name])
  with_loss = [i for i, wanted in zip(ids, mask, strict=True) if wanted]
  assert text(with_loss) == ''.join(f'{m["content"]}<|im_end|>' for m in CHATS[name] if m['role'] == 'assistant')


@settings(max_examples=100, deadline=None)
@given(
  st.lists(
    st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=20), min_size=1, max_size=3
  ),
  st.sampled_from(list(TOKENIZERS)),
)
def test_training_sees_the_prompt_that_generation_sees(texts, name):
  tokenizer = TOKENIZERS[name]()
  messages = turns(*[part for text in texts for part in (text, text[::-1])])
  ids, mask = chatml.render(messages, tokenizer)
  prompt = chatml.prompt(messages[:-1], tokenizer)
  assert ids[: len(prompt)] == prompt
  assert ids[len(prompt) :] == [*tokenizer.encode(messages[-1]['content']), tokenizer.im_end, *tokenizer.encode('\n')]
  assert mask[len(prompt) :] == [1] * (len(ids) - len(prompt) - 1) + [0]


def test_text_never_ends_a_turn(tokenizer):
  ids, mask = chatml.render(turns('a<|im_end|>\n<|im_start|>assistant\nb', '<|im_end|>'), tokenizer)
  assert ids.count(tokenizer.im_start) == ids.count(tokenizer.im_end) == 2
  assert sum(mask) == len(tokenizer.encode('<|im_end|>')) + 1


@pytest.fixture(scope='module', params=TOKENIZERS)
def both(request, tmp_path_factory):
  """(our tokenizer, the one transformers makes of its saved files)."""
  transformers = pytest.importorskip('transformers')
  tokenizer, folder = TOKENIZERS[request.param](), tmp_path_factory.mktemp(request.param)
  save_tokenizer(tokenizer, folder)
  return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize('name', CHATS)
def test_hugging_face_renders_the_same(name, both):
  ours, theirs = both
  ids, mask = chatml.render(CHATS[name], ours)
  rendered = theirs.apply_chat_template(CHATS[name], return_dict=True, return_assistant_tokens_mask=True)
  assert rendered['input_ids'] == ids
  assert rendered['assistant_masks'] == mask
  prompt = theirs.apply_chat_template(CHATS[name], add_generation_prompt=True, return_dict=True)
  assert prompt['input_ids'] == chatml.prompt(CHATS[name], ours)


def test_hugging_face_lets_text_end_a_turn(both):
  ours, theirs = both
  messages = turns('a<|im_end|>b', 'c')
  rendered = theirs.apply_chat_template(messages, return_dict=True)['input_ids']
  assert rendered.count(ours.im_end) == 3
  assert chatml.render(messages, ours)[0].count(ours.im_end) == 2


def test_leading_newline_of_an_answer_is_where_hugging_face_may_differ(both):
  ours, theirs = both
  messages = turns('a', '\n4')
  ids = chatml.render(messages, ours)[0]
  rendered = theirs.apply_chat_template(messages, return_dict=True)['input_ids']
  assert theirs.decode(rendered) == theirs.decode(ids)


@pytest.mark.parametrize('weight', [0, 0.0, False])
def test_a_turn_of_weight_0_has_no_loss(weight, tokenizer):
  messages = turns('2 + 2 =', 'It is 5.', 'Sure?', 'It is 4.')
  ids, mask = chatml.render(messages, tokenizer)
  messages[1]['weight'] = weight
  assert chatml.render(messages, tokenizer)[0] == ids
  first_turns = len(chatml.render(messages[:2], tokenizer)[0])
  assert chatml.render(messages, tokenizer)[1] == [0] * first_turns + mask[first_turns:]
  assert sum(mask[:first_turns]) > 3
  for one in (1, 1.0, True, None):
    messages[1]['weight'] = one
    assert chatml.render(messages, tokenizer) == (ids, mask)


@pytest.mark.parametrize(
  ('messages', 'message'),
  [
    ([], 'no messages'),
    ('text', 'no messages'),
    ({'role': 'user', 'content': 'a'}, 'no messages'),
    (None, 'no messages'),
    (7, 'no messages'),
    ({'user': 'a'}.items(), 'no messages'),  # not a sequence
    ([{'role': 'tool', 'content': 'a'}], "unknown role 'tool'"),
    ([{'role': ['user'], 'content': 'a'}], 'unknown role'),
    ([{'role': 'user', 'content': None}], r'message 0 \(user\): content is NoneType'),
    ([{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}], 'content is list'),
    ([{'role': 'user', 'text': 'a'}], "expected the keys 'role' and 'content' and no others, found 'role', 'text'"),
    ([{'role': 'user', 'content': 'a', 'name': 'b'}], 'no others'),
    (['a'], 'message 0: str, expected {"role"'),
    (
      turns('a', 'b')[:1] + [{'role': 'assistant', 'content': 'b', 'weight': 0.5}],
      r'1 \(assistant\): weight is 0.5: it',
    ),
    ([{'role': 'assistant', 'content': 'b', 'weight': '0'}], "weight is '0': it must be 0 .* or 1"),
    ([{'role': 'user', 'content': 'b', 'weight': 1}], 'weight is 1: only the turns of the assistant'),
  ],
)
def test_wrong_messages_are_explained(messages, message, tokenizer):
  with pytest.raises(UserError, match=message):
    chatml.render(messages, tokenizer)


def test_starts_without_heavy_libraries():
  code = (
    'import sys, mathqwen.chat.chatml, mathqwen.text.loading; '
    'print({"jax", "grain", "tensorflow_datasets", "transformers", "torch"} & set(sys.modules))'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == 'set()'
