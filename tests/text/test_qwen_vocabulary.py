"""The real vocabulary of 151,643 ranks, three readers beside tiktoken itself."""

import base64
import random
import unicodedata

import pytest

from mathqwen.chat import chatml
from mathqwen.chat.chat_format import save_tokenizer
from mathqwen.text.huggingface import HuggingFace
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.rank_file import Tiktoken

# As in Qwen-7B's tokenization_qwen.py.
SPLIT = (
  r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PHRASES = [
  'The answer is',
  "She's sold 48 clips, they'll sell MORE; DON'T",
  '小明有3个苹果，又买了5个，一共有几个？',
  '解：设 x 为未知数，则',
  'ひらがなカタカナ漢字',
  '한국어 문장',
  'مرحبا بالعالم',
  'שָׁלוֹם עולם',
  'Привет, мир',
  'नमस्ते दुनिया',
  '😀👨‍👩‍👧🏽🇨🇳',
  'cafe\u0301 A\u030a o\u0308\u0323 \u1e9b\u0323',
  '\u1100\u1161\u11a8',
  '\u212b\u2126\ufb01',
  '\\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}',
  '$$\\sum_{i=1}^{n} x_i \\leq 10^{-3}$$',
  'def f(x):\n    return [y ** 2 for y in x]  # squares',
  'for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i];\r\n}',
  '#### 1,234,567.89',
  '3.14159265358979323846',
  '\u200d\u200c\u200b\ufeff\u202e',
  '\x00\x01\x1c\x1f\x7f\x85',
  '\r\n\r\n',
  '\n \n\t',
  '      ',
  '\u00a0\u3000\u2003',
  '>>> != <= ... --- ___',
]


def varied_texts(count: int, words: list[str], seed: int = 0) -> list[str]:
  """Phrases, runs, digits, words and characters of many scripts, joined by all kinds of white space or by nothing."""
  rng = random.Random(seed)
  blocks = [
    (0x01, 0x180),
    (0x300, 0x370),
    (0x370, 0x530),
    (0x590, 0x700),
    (0x900, 0xE80),
    (0x1E00, 0x2070),
    (0x2100, 0x2C00),
    (0x3000, 0x3400),
    (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A4),
    (0xF900, 0xFB50),
    (0xFF00, 0xFFF0),
    (0x1F300, 0x1FAF0),
  ]

  def character():
    drawn = chr(rng.randrange(*rng.choice(blocks)))
    # The NFC of `tokenizers` orders only marks that Unicode 9 had. Those of Unicode 3.2 are enough here.
    old = unicodedata.combining(drawn) == unicodedata.ucd_3_2_0.combining(drawn)
    return drawn if old else character()

  def part():
    kind = rng.randrange(6)
    if kind == 0:
      return ''.join(rng.choices('0123456789', k=rng.randrange(1, 60)))
    if kind == 1:
      return ''.join(character() for _ in range(rng.randrange(1, 12)))
    if kind == 2:
      return rng.choice([' ', '\n', '\t', '\r\n', 'a', '!', '\u0301', '=']) * rng.randrange(1, 40)
    if kind == 3:
      return ''.join(rng.choices(words, k=rng.randrange(1, 16)))
    return rng.choice(PHRASES)

  joints = ['', '', ' ', '  ', '\n', '\r\n', '\t', ' \n', '\u200d']
  return [''.join(part() + rng.choice(joints) for _ in range(rng.randrange(1, 9))) for _ in range(count)]


@pytest.fixture(scope='module')
def exported(qwen_tiktoken, tmp_path_factory):
  folder = tmp_path_factory.mktemp('exported')
  assert save_tokenizer(load_tokenizer(qwen_tiktoken), folder, 'qwen2') == 'mathqwen'
  return folder


@pytest.fixture(scope='module')
def ours(qwen_tiktoken, exported):
  return load_tokenizer(qwen_tiktoken), load_tokenizer(exported)


@pytest.fixture(scope='module')
def theirs(exported):
  return pytest.importorskip('transformers').AutoTokenizer.from_pretrained(exported)


def test_ids_are_tiktokens(qwen_tiktoken, ours, theirs):
  import tiktoken

  lines = (qwen_tiktoken / 'qwen.tiktoken').read_text().splitlines()
  ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
  assert len(ranks) == 151_643
  truth = tiktoken.Encoding('truth', pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
  texts = varied_texts(10_000, [token.decode(errors='ignore') for token in ranks])
  wanted = [truth.encode_ordinary(unicodedata.normalize('NFC', text)) for text in texts]
  assert len({id_ for ids in wanted for id_ in ids}) > 40_000  # a good part of the vocabulary
  assert [type(tokenizer) for tokenizer in ours] == [Tiktoken, HuggingFace]
  for tokenizer in ours:
    for text, ids, expected in zip(texts, tokenizer.encode_batch(texts), wanted, strict=True):
      assert ids == expected, text
      assert tokenizer.decode(ids) == unicodedata.normalize('NFC', text)
    assert (tokenizer.vocab_size, tokenizer.stop_ids, tokenizer.pad) == (151_851, (151_645, 151_643), 151_643)
    assert (tokenizer.im_start, tokenizer.special['<|extra_204|>']) == (151_644, 151_850)
  assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (151_851, 151_645, 151_643)
  for text, ids, expected in zip(texts, theirs(texts)['input_ids'], wanted, strict=True):
    assert ids == expected, text
    assert theirs.decode(ids) == unicodedata.normalize('NFC', text)


CHATS = {
  'one': [('user', '5! = ?'), ('assistant', '120')],
  'system': [('system', 'You are a helpful assistant.'), ('user', '  1 + 1 =\n'), ('assistant', '2\n\n')],
  'turns': [('user', 'a'), ('assistant', '$\\frac{1}{2}$'), ('user', ' and then?\r\n'), ('assistant', ' 😀 done')],
  'chinese': [
    ('system', '你是一个数学老师。'),
    ('user', '小明有3个苹果，\n一共？'),
    ('assistant', '答案：８个 e\u0301'),
  ],
}


@pytest.mark.parametrize('name', CHATS)
def test_chats_render_as_in_transformers(name, ours, theirs):
  messages = [{'role': role, 'content': content} for role, content in CHATS[name]]
  ids, mask = chatml.render(messages, ours[0])
  assert chatml.render(messages, ours[1]) == (ids, mask)
  rendered = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
  assert rendered['input_ids'] == ids
  assert rendered['assistant_masks'] == mask
  asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
  assert asked['input_ids'] == chatml.prompt(messages[:-1], ours[0])


def test_special_looking_text_stays_text(ours, theirs):
  messages = [{'role': 'user', 'content': 'x<|im_end|>\n<|endoftext|><|extra_7|>y'}]
  for tokenizer in ours:
    ids, _ = chatml.render(messages, tokenizer)
    assert [i for i in ids if i >= 151_643] == [151_644, 151_645]
    assert tokenizer.decode(ids) == 'user\nx<|im_end|>\n<|endoftext|><|extra_7|>y\n'
  made = theirs.apply_chat_template(messages, return_dict=True)['input_ids']
  assert [i for i in made if i >= 151_643] == [151_644, 151_645, 151_643, 151_653, 151_645]


def test_the_rank_file_comes_back_from_tokenizer_json(qwen_tiktoken, ours, tmp_path):
  save_tokenizer(ours[1], tmp_path, 'qwen1')
  assert (tmp_path / 'qwen.tiktoken').read_bytes() == (qwen_tiktoken / 'qwen.tiktoken').read_bytes()


def test_a_megabyte_of_spaces(ours):
  text = ' ' * 2**20
  assert ours[0].encode(text) == ours[1].encode(text)
