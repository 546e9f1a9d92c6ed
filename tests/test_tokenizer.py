import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathqwen.data import chatml, train_tokenizer
from mathqwen.errors import UserError
from mathqwen.testing import tiny_bpe_tokenizer
from mathqwen.bpe import CHATML_SPECIALS
from mathqwen.tokenizer import SentencePiece, load_tokenizer

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


@pytest.fixture(params=['packaged', 'bpe'])
def tokenizer(request):
  return load_tokenizer() if request.param == 'packaged' else tiny_bpe_tokenizer()


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


def test_batch_is_one_by_one(tokenizer):
  assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_saved_files_load_here_and_in_transformers_to_the_same_ids(tokenizer, tmp_path):
  transformers = pytest.importorskip('transformers')
  assert tokenizer.save(tmp_path) == 'mathqwen'
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
  load_tokenizer().save(folder)
  return load_tokenizer(folder)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from('aeinst he12+=-$\\{}()!.,\n #frc')) | ANY_TEXT)
def test_converted_json_gives_the_ids_of_sentencepiece(text, converted):
  assert converted.encode(text) == load_tokenizer().encode(text)


def test_files_of_a_checkpoint_are_kept_byte_for_byte(tmp_path):
  source, copy = tmp_path / 'source', tmp_path / 'copy'
  tiny_bpe_tokenizer().save(source)
  config = json.loads((source / 'tokenizer_config.json').read_text()) | {'chat_template': 'theirs', 'odd': [1, 2]}
  (source / 'tokenizer_config.json').write_text(json.dumps(config, indent=7))
  (source / 'chat_template.jinja').unlink()
  assert load_tokenizer(source).save(copy) == 'original'
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


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r'tokenizer\.json; vocab\.json \+ merges\.txt; tokenizer\.model'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": ')
  with pytest.raises(UserError, match=r'tokenizer\.json cannot be read'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": "1.0"}')
  with pytest.raises(UserError, match=r'tokenizer\.json cannot be read'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').unlink()
  (tmp_path / 'tokenizer.model').write_bytes(b'not a model')
  with pytest.raises(UserError, match=r'tokenizer\.model cannot be read'):
    load_tokenizer(tmp_path / 'tokenizer.model')


@pytest.fixture(scope='module')
def llama_model():
  """LLaMA's kind: prefix space, <s> and </s>, no ChatML."""
  import io

  import sentencepiece

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['the answer is 12 and 30', 'what is the sum of 5 and 7'] * 20),
    model_writer=out,
    vocab_size=320,
    model_type='bpe',
    byte_fallback=True,
    split_digits=True,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return out.getvalue()


def test_a_llama_tokenizer_loads_and_lacks_only_chatml(llama_model, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(llama_model)
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.decode(tokenizer.encode('the sum is 35')) == 'the sum is 35'
  assert tokenizer.stop_ids == (2,)
  with pytest.raises(UserError, match='ChatML'):
    chatml.prompt([{'role': 'user', 'content': '1 + 1 ='}], tokenizer)
  tokenizer.save(tmp_path / 'copy')
  assert (tmp_path / 'copy' / 'tokenizer.model').read_bytes() == llama_model
  assert not (tmp_path / 'copy' / 'chat_template.jinja').exists()


def test_training_is_deterministic(tmp_path):
  source = tmp_path / 'rows.jsonl'
  with source.open('w') as file:
    for i in range(200):
      file.write(json.dumps({'question': f'How many are {i} + {i}?', 'answer': f'<<{i}+{i}={2 * i}>>{2 * i}!'}) + '\n')
  for name in ('a', 'b'):
    train_tokenizer.main(['--input', str(source), '--vocab-size', '420', '--output', str(tmp_path / name)])
  model = (tmp_path / 'a').read_bytes()
  assert model == (tmp_path / 'b').read_bytes()
  trained = SentencePiece(model)
  assert trained.vocab_size == 420
  assert trained.encode('!') == [0]
  assert [trained.special[token] for token in CHATML_SPECIALS] == [417, 418, 419]
