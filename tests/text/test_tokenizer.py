import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathqwen.chat import chatml
from mathqwen.chat.chat_format import save_tokenizer
from mathqwen.errors import UserError
from mathqwen.text import train_tokenizer
from mathqwen.text.bpe import CHATML_SPECIALS
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.rank_file import Tiktoken
from mathqwen.text.sentencepiece_model import SentencePiece
from mathqwen.text.testing import tiny_bpe_tokenizer

TEXTS = [
  '',
  ' ',
  '   ',
  '\n',
  '\n\n \n',
  'a\r\nb\tc',
  '  leading and trailing  ',
  '5! = 120',
  '12345.678',
  '\u2581 is not a space',
  'x\u00a0y',
  'caf\u00e9 e\u0301',
  '小明有3个苹果。',
  '😀👨‍👩‍👧',
  '<|im_end|>',
  '<unk><0x0A>',
  'The answer is $\\frac{1}{2}$.',
  '\x7f\x01',
]
ANY_TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'))


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
  """A directory with the rank file of tiny_bpe_tokenizer."""
  folder = tmp_path_factory.mktemp('ranks')
  save_tokenizer(tiny_bpe_tokenizer(), folder, 'qwen1')
  (folder / 'chat_template.jinja').unlink()
  return folder


@pytest.fixture(params=['packaged', 'bpe', 'ranks'])
def tokenizer(request, ranks):
  kinds = {'packaged': load_tokenizer, 'bpe': tiny_bpe_tokenizer, 'ranks': lambda: load_tokenizer(ranks)}
  return kinds[request.param]()


def test_layout_of_the_packaged_vocabulary():
  tokenizer = load_tokenizer(None)
  assert tokenizer.vocab_size == 1024
  assert tokenizer.decode([0]) == '!'
  assert tokenizer.encode('!') == [0]
  assert tokenizer.special == {'<unk>': 1020, '<|endoftext|>': 1021, '<|im_start|>': 1022, '<|im_end|>': 1023}
  assert (tokenizer.pad, tokenizer.endoftext, tokenizer.im_start, tokenizer.im_end) == (1021, 1021, 1022, 1023)
  assert tokenizer.stop_ids == (1023, 1021)
  assert load_tokenizer('arithmetic') is tokenizer


def test_pieces_of_the_packaged_vocabulary():
  tokenizer = load_tokenizer()
  for piece in ('system', 'user', 'assistant', '\n', '\t', '!', ' '):
    assert len(tokenizer.encode(piece)) == 1, piece
  assert [tokenizer.decode([i]) for i in tokenizer.encode('120456')] == list('120456')
  assert tokenizer.encode('user\nWhat')[:2] == [*tokenizer.encode('user'), *tokenizer.encode('\n')]


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_any_text_survives_a_round_trip(text):
  tokenizer = load_tokenizer()
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not set(ids) & set(tokenizer.special.values())


@pytest.mark.parametrize('text', TEXTS)
def test_texts_survive_a_round_trip(text):
  assert load_tokenizer().decode(load_tokenizer().encode(text)) == text


def test_no_text_becomes_a_special_token(tokenizer):
  for token in tokenizer.special:
    ids = tokenizer.encode(f'a{token}b{token}')
    assert not set(ids) & set(tokenizer.special.values()), token
    assert tokenizer.decode(ids) == f'a{token}b{token}'


def test_decode_skips_specials(tokenizer):
  ids = [tokenizer.im_start, *tokenizer.encode('5!'), tokenizer.im_end, tokenizer.pad]
  assert tokenizer.decode(ids) == '5!'
  assert tokenizer.decode(tokenizer.special.values()) == ''
  assert tokenizer.decode([*tokenizer.encode('5!'), tokenizer.vocab_size, 10**6]) == '5!'


def test_half_a_surrogate_pair_is_refused(tokenizer):
  with pytest.raises(UserError, match=r"'3 apples \\ud83c': character 9 of the text is half of a surrogate pair"):
    tokenizer.encode_batch(['fine', '3 apples \ud83c'])


def test_batch_is_one_by_one(tokenizer):
  assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_saved_files_load_here_and_in_transformers_to_the_same_ids(tokenizer, tmp_path):
  transformers = pytest.importorskip('transformers')
  assert save_tokenizer(tokenizer, tmp_path, 'qwen2') == 'mathqwen'
  ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert ours.special == tokenizer.special
  assert ours.vocab_size == tokenizer.vocab_size == len(theirs)
  assert theirs.eos_token_id == tokenizer.im_end
  assert theirs.pad_token_id == tokenizer.pad
  for text in TEXTS:
    ids = tokenizer.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == tokenizer.decode(ids)
    if text not in ('<|im_end|>', '<unk><0x0A>'):
      assert theirs.encode(text, add_special_tokens=False) == ids, text
      assert theirs.decode(ids) == tokenizer.decode(ids)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
  folder = tmp_path_factory.mktemp('converted')
  save_tokenizer(load_tokenizer(), folder)
  return load_tokenizer(folder)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from('aeinst he12+=-$\\{}()!.,\n #frc')) | ANY_TEXT)
def test_converted_json_gives_the_ids_of_sentencepiece(text, converted):
  assert converted.encode(text) == load_tokenizer().encode(text)


def test_files_of_a_checkpoint_are_kept_byte_for_byte(tmp_path):
  source, copy = tmp_path / 'source', tmp_path / 'copy'
  save_tokenizer(tiny_bpe_tokenizer(), source)
  config = json.loads((source / 'tokenizer_config.json').read_text()) | {'chat_template': 'theirs', 'odd': [1, 2]}
  (source / 'tokenizer_config.json').write_text(json.dumps(config, indent=7))
  (source / 'chat_template.jinja').unlink()
  assert save_tokenizer(load_tokenizer(source), copy) == 'original'
  assert {p.name: p.read_bytes() for p in source.iterdir()} == {p.name: p.read_bytes() for p in copy.iterdir()}


def test_vocab_and_merges_give_the_ids_of_tokenizer_json(tmp_path):
  tokenizer = tiny_bpe_tokenizer()
  definition = json.loads(tokenizer.files['tokenizer.json'])
  (tmp_path / 'vocab.json').write_text(json.dumps(definition['model']['vocab']))
  merges = [' '.join(pair) for pair in definition['model']['merges']]
  (tmp_path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n')
  added = {str(token['id']): {'content': token['content'], 'special': True} for token in definition['added_tokens']}
  (tmp_path / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'Qwen2Tokenizer', 'added_tokens_decoder': added})
  )
  slow = load_tokenizer(tmp_path)
  assert slow.special == tokenizer.special
  assert slow.vocab_size == tokenizer.vocab_size
  assert [slow.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "GPT2Tokenizer"}')
  with pytest.raises(UserError, match='GPT2Tokenizer'):
    load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ('config', 'length'),
  [
    ({'additional_special_tokens': ['<|im_start|>', '<|im_end|>']}, 3),
    ({'eos_token': {'content': '<|im_end|>'}, 'pad_token': '<|fim_pad|>'}, 22),
    ({'additional_special_tokens': ['<think>', '<|im_end|>']}, 26),
    ({'additional_special_tokens': ['<|extra_0|>']}, 208),
    ({'additional_special_tokens': ['<|mine|>']}, None),
  ],
)
def test_specials_without_ids_come_from_the_family_that_has_them(config, length, tmp_path, ranks):
  save_tokenizer(load_tokenizer(ranks), tmp_path, 'qwen2')
  (tmp_path / 'tokenizer.json').unlink()
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'Qwen2Tokenizer'} | config))
  if length is None:
    with pytest.raises(UserError, match=r'<\|mine\|>.*added_tokens_decoder'):
      load_tokenizer(tmp_path)
  else:
    tokenizer = load_tokenizer(tmp_path)
    assert list(tokenizer.special.values()) == list(range(400, 400 + length))
    assert (tokenizer.stop_ids, tokenizer.pad) == ((402, 400), 400)
  (tmp_path / 'added_tokens.json').write_text('{"<|im_end|>": 405}')
  assert load_tokenizer(tmp_path).special == {'<|im_end|>': 405}


def test_rank_file_and_tokenizer_json_are_made_of_each_other(ranks, tmp_path):
  tokenizer, bpe = load_tokenizer(ranks), tiny_bpe_tokenizer()
  assert (tokenizer.vocab_size, tokenizer.stop_ids, tokenizer.pad) == (400 + 208, (402, 400), 400)
  assert tokenizer.special['<|extra_204|>'] == 607
  assert tokenizer.encode_batch(TEXTS) == bpe.encode_batch(TEXTS)
  assert save_tokenizer(tokenizer, tmp_path, 'qwen3') == 'mathqwen'
  model = json.loads((tmp_path / 'tokenizer.json').read_text())['model']
  assert model == json.loads(bpe.files['tokenizer.json'])['model']
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert config['tokenizer_class'] == 'Qwen2Tokenizer'
  assert len(config['added_tokens_decoder']) == 208
  (tmp_path / 'tokenizer.json').unlink()  # vocab.json and merges.txt remain
  again = load_tokenizer(tmp_path)
  assert again.special == tokenizer.special
  assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
  save_tokenizer(again, tmp_path / 'back', 'qwen1')
  assert (tmp_path / 'back' / 'qwen.tiktoken').read_bytes() == (ranks / 'qwen.tiktoken').read_bytes()


def test_rank_file_layouts_drop_code(ranks, tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  (source / 'other.tiktoken').write_bytes((ranks / 'qwen.tiktoken').read_bytes())
  found = {'auto_map': {'AutoTokenizer': ['tokenization_qwen.QWenTokenizer', None]}, 'model_max_length': 77}
  (source / 'tokenizer_config.json').write_text(json.dumps(found | {'chat_template': 'theirs'}))
  tokenizer = load_tokenizer(source)
  assert save_tokenizer(tokenizer, tmp_path / 'as_found') == 'original'
  assert {p.name: p.read_bytes() for p in (tmp_path / 'as_found').iterdir()} == tokenizer.files
  for layout, files in (
    ('qwen1', {'qwen.tiktoken'}),
    ('llama', {'tokenizer.json', 'vocab.json', 'merges.txt'}),
  ):
    assert save_tokenizer(tokenizer, tmp_path / layout, layout) == 'original'
    assert {p.name for p in (tmp_path / layout).iterdir()} == files | {'tokenizer_config.json'}
    config = json.loads((tmp_path / layout / 'tokenizer_config.json').read_text())
    assert (config['model_max_length'], config['chat_template'], 'auto_map' in config) == (77, 'theirs', False)
    assert load_tokenizer(tmp_path / layout).encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
  (source / 'second.tiktoken').write_text('')
  with pytest.raises(UserError, match=r'other\.tiktoken, second\.tiktoken; leave one'):
    load_tokenizer(source)
  (source / 'second.tiktoken').rename(source / 'qwen.tiktoken')
  with pytest.raises(UserError, match=r'qwen\.tiktoken cannot be read as a tokenizer \(0 lines'):
    load_tokenizer(source)


def test_only_qwens_byte_level_bpe_becomes_a_rank_file(tmp_path, llama_model):
  (tmp_path / 'tokenizer.model').write_bytes(llama_model)
  for other in (load_tokenizer(), load_tokenizer(tmp_path)):
    with pytest.raises(UserError, match='rank file'):
      save_tokenizer(other, tmp_path / 'out', 'qwen1')
  (tmp_path / 'tokenizer.model').unlink()
  tiny = json.loads(tiny_bpe_tokenizer().files['tokenizer.json'])
  merges = tiny['model']['merges']
  think = tiny['added_tokens'] + [tiny['added_tokens'][0] | {'id': 403, 'content': '<think>'}]
  for change, message in (
    ({'normalizer': None}, 'split'),
    ({'model': tiny['model'] | {'merges': [merges[1], merges[0], *merges[2:]]}}, 'merges'),
    ({'model': tiny['model'] | {'vocab': tiny['model']['vocab'] | {'zz': 990}}}, 'gaps'),
    ({'added_tokens': think}, '<think> with the id 403'),
  ):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(tiny | change))
    with pytest.raises(UserError, match=f'rank file: .*{message}'):
      save_tokenizer(load_tokenizer(tmp_path), tmp_path / 'out', 'qwen1')
  assert not (tmp_path / 'out').exists()


def test_long_runs_of_blanks_give_the_same_ids(monkeypatch):
  blanks = [b'  ', b'    ', b' \n', b'  \n', b'\n\n', b'\r\n', b'\t\t', b' \xc2', b' a', b' .', b'.\n']
  tokenizer = Tiktoken([*(bytes([i]) for i in range(256)), *blanks], {})
  rng = random.Random(0)
  texts = [''.join(rng.choices('   \t\n\r\x85\xa0\u2028\x1c.a1', k=rng.randrange(30))) for _ in range(3000)]
  plain = tokenizer.encode_batch(texts)
  monkeypatch.setattr('mathqwen.text.rank_file.LONG_RUN', 2)
  assert tokenizer.encode_batch(texts) == plain


@pytest.mark.parametrize('text', [' ', '\tx', ' \n', '7', 'a', '\u6709'])
def test_a_megabyte_of_one_character(text, ranks):
  text = text[0] * 2**20 + text[1:]
  tokenizer = load_tokenizer(ranks)
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r'tokenizer\.json; vocab\.json \+ merges\.txt; \*\.tiktoken; tokenizer\.model'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": ')
  with pytest.raises(UserError, match=r'tokenizer\.json cannot be read'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{')
  with pytest.raises(UserError, match=r'tokenizer_config\.json is not JSON'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  (tmp_path / 'tokenizer.json').write_text('{"version": "1.0"}')
  with pytest.raises(UserError, match=r'tokenizer\.json cannot be read'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').unlink()
  (tmp_path / 'tokenizer.model').write_bytes(b'not a model')
  with pytest.raises(UserError, match=r'tokenizer\.model cannot be read'):
    load_tokenizer(tmp_path / 'tokenizer.model')


LLAMA_TEXTS = [
  'the answer is 42',
  'What is 12345.678 + 9?\n\nThe  sum\tis\r\n ...',
  'x ',
  '\n x',
  '小明有3个苹果。',
  '😀 caf\u00e9 e\u0301 \u00a0x',
  'def f(x):\n    return x  # \x01',
  '$\\frac{1}{2}$',
]


def test_llama_ids_are_those_of_transformers(llama_model, tmp_path):
  transformers = pytest.importorskip('transformers')
  (tmp_path / 'tokenizer.model').write_bytes(llama_model)
  ours = load_tokenizer(tmp_path)
  save_tokenizer(ours, tmp_path / 'saved')
  read = (
    transformers.LlamaTokenizer.from_pretrained(tmp_path),
    transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved'),
  )
  for theirs in read:
    assert len(theirs) == ours.vocab_size == 450
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.unk_token_id) == (ours.stop_ids[0], ours.bos, 0)
    for text in LLAMA_TEXTS:
      ids = ours.encode(text)
      assert theirs.encode(text, add_special_tokens=False) == ids, text
      assert ours.decode(ids) == theirs.decode(ids) == text
    for ids in ([3 + 0xE5], [3 + 0xE5, 3 + 0xB0, 3 + 0x8F], [1, 260, 2, 0], [260, 450, 10**6], [3 + 0xE5, 260]):
      assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids
  assert ours.decode([3 + 0xE5, 3 + 0xB0, 3 + 0x8F]) == '小'
  # A leading space: SentencePiece, LLaMA's own reader, puts its prefix before it, transformers 5 does not.
  prefixed, bare = ours.encode('  x'), read[0].encode('  x', add_special_tokens=False)
  assert prefixed != bare
  assert (ours.decode(prefixed), ours.decode(bare)) == ('  x', ' x')


def test_a_llama_tokenizer_loads_and_lacks_only_chatml(llama_model, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(llama_model)
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.decode(tokenizer.encode('the sum is 35')) == 'the sum is 35'
  assert tokenizer.stop_ids == (2,)
  with pytest.raises(UserError, match='ChatML'):
    chatml.prompt([{'role': 'user', 'content': '1 + 1 ='}], tokenizer)
  save_tokenizer(tokenizer, tmp_path / 'copy')
  assert (tmp_path / 'copy' / 'tokenizer.model').read_bytes() == llama_model
  assert not (tmp_path / 'copy' / 'chat_template.jinja').exists()


@pytest.mark.parametrize(
  'config, bos',
  [
    ({}, 1),
    ({'bos_token': {'content': '</s>'}}, 2),  # as RFT's own tokenizers name it
    ({'bos_token': '<s>', 'add_bos_token': False}, None),
    ({'bos_token': None, 'add_bos_token': True}, 1),
  ],
)
def test_what_plain_text_begins_with(llama_model, tmp_path, config, bos):
  (tmp_path / 'tokenizer.model').write_bytes(llama_model)
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  assert load_tokenizer(tmp_path).bos == bos
  assert load_tokenizer().bos is None  # ChatML


def test_training_is_deterministic(tmp_path):
  source = tmp_path / 'rows.jsonl'
  with source.open('w') as file:
    for i, name, thing in itertools.product(
      range(10), ('Anna', 'Bob', 'Clara', 'David'), ('apples', 'books', 'marbles')
    ):
      row = {
        'question': f'{name} buys {i} {thing}, twice. How many are {i} + {i}?',
        'answer': f'<<{i}+{i}={2 * i}>>{2 * i}!',
      }
      file.write(json.dumps(row) + '\n')
  for name in ('a', 'b'):
    train_tokenizer.main(['--input', str(source), '--vocab-size', '420', '--output', str(tmp_path / name)])
  model = (tmp_path / 'a').read_bytes()
  assert model == (tmp_path / 'b').read_bytes()
  trained = SentencePiece(model)
  assert trained.vocab_size == 420
  assert trained.encode('!') == [0]
  assert [trained.special[token] for token in CHATML_SPECIALS] == [417, 418, 419]
