"""Where answers end: what a checkpoint's files declare, in the order of trust; ids that its model has no rows for."""

import json
from importlib import resources

import pytest

from mathqwen.chat.chat_format import save_tokenizer
from mathqwen.errors import UserError
from mathqwen.model.config import ModelConfig
from mathqwen.storage import source
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.testing import tiny_bpe_tokenizer

ROWS = 410


@pytest.fixture
def directory(tmp_path):
  """directory(added, tokenizer_config, generation_config=..., config=...) -> the files of a checkpoint's tokenizer.

  added: the added tokens, whose ids follow the 400 of the text; or {token: id}.
  """

  def make(added, tokenizer_config=None, **declaring):
    definition = json.loads(tiny_bpe_tokenizer().files['tokenizer.json'])
    ids = added if isinstance(added, dict) else {token: 400 + i for i, token in enumerate(added)}
    definition['added_tokens'] = [definition['added_tokens'][0] | {'content': t, 'id': i} for t, i in ids.items()]
    (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(tokenizer_config or {}))
    for name, value in declaring.items():
      (tmp_path / f'{name}.json').write_text(value if isinstance(value, str) else json.dumps({'eos_token_id': value}))
    return tmp_path

  return make


LLAMA3 = ('<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>')
R1 = ('<｜end▁of▁sentence｜>', '<｜User｜>', '<｜Assistant｜>')
CHATML = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# Added tokens from id 400 on, eos_token, generation_config.json, config.json -> stop ids
DECLARED = {
  'Llama 3 Instruct': (LLAMA3, '<|eot_id|>', [401, 402], 401, (401, 402)),
  'Llama 3': (LLAMA3, '<|end_of_text|>', None, 401, (401,)),
  'tokenizer only': (LLAMA3, '<|eot_id|>', None, None, (402,)),
  'DeepSeek-R1-Distill-Qwen': (R1, {'content': R1[0], 'lstrip': False}, 400, 400, (400,)),
  'Qwen2.5-Instruct': (CHATML, '<|im_end|>', [402, 400], 402, (402, 400)),
  'Qwen2.5': (CHATML, '<|endoftext|>', 400, 400, (400, 402)),
  'Phi': (('<|endoftext|>', '<|assistant|>', '<|end|>'), '<|endoftext|>', [400, 401, 402], 400, (400, 401, 402)),
  'order of trust': (('</s>', *LLAMA3), '<|eot_id|>', 402, [401, 402], (402, 401, 403, 400)),
  'an eos_token that is part of the text': ((), '!', None, None, (0,)),
}


@pytest.mark.parametrize('case', DECLARED)
def test_declared_stop_ids(case, directory):
  added, eos, generation, config, expected = DECLARED[case]
  declaring = {'generation_config': generation, 'config': config}
  found = directory(added, {'eos_token': eos}, **{name: ids for name, ids in declaring.items() if ids is not None})
  assert load_tokenizer(found).stop_ids == expected


def test_older_files_name_the_eos_token_in_special_tokens_map(directory):
  found = directory(LLAMA3, {'eos_token': None})
  with pytest.raises(UserError, match='neither generation_config.json nor config.json has an eos_token_id'):
    _ = load_tokenizer(found).stop_ids
  (found / 'special_tokens_map.json').write_text('{"eos_token": "<|eot_id|>"}')
  assert load_tokenizer(found).stop_ids == (402,)


def test_a_run_keeps_the_declared_stop_ids(directory, tmp_path):
  tokenizer = load_tokenizer(directory(LLAMA3, generation_config=[401, 402]))
  save_tokenizer(tokenizer, tmp_path / 'run')
  assert load_tokenizer(tmp_path / 'run').stop_ids == (401, 402)


@pytest.mark.parametrize('value', ['"402"', '402.0', 'true', '{"a": 1}', '[402, [1]]', '[null]', str([1] * 300)])
def test_stop_ids_of_an_odd_type_are_refused(value, directory):
  found = directory(CHATML, config=400, generation_config=f'{{"eos_token_id": {value}}}')
  with pytest.raises(UserError, match=r'generation_config\.json: eos_token_id is .* a list of a few ids'):
    load_tokenizer(found)


@pytest.mark.parametrize('text', ['', '{"eos_token_id": 4', '[' * 100_000])
def test_a_damaged_file_is_named(text, directory):
  with pytest.raises(UserError, match=r'generation_config\.json is not JSON'):
    load_tokenizer(directory(CHATML, generation_config=text))


def opened(path, rows=ROWS):
  """The tokenizer as `open_source` gives it for a model with `rows` rows."""
  sizes = dict.fromkeys(('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'), 2)
  sizes |= dict.fromkeys(('num_key_value_heads', 'head_dim', 'max_position_embeddings'), 2)
  return source._tokenizer(str(path), str(path), ModelConfig(vocab_size=rows, **sizes))


def test_stop_ids_outside_of_the_vocabulary_are_ignored_with_a_line(directory, capsys):
  assert opened(directory(CHATML, generation_config=[402, -1, ROWS, ROWS - 1])).stop_ids == (402, ROWS - 1, 400)
  lines = capsys.readouterr().err.splitlines()
  assert [line.rpartition(': ')[0].rpartition(': ')[2] for line in lines] == [
    'eos_token_id has -1, which is no id',
    f'the stop id {ROWS} is not below vocab_size {ROWS}',
  ]


def test_a_padding_token_beyond_the_vocabulary_is_accepted(directory, tmp_path):
  """Llama 2 and CodeLlama were shipped with [PAD] at id 32000 and vocab_size 32000."""
  added = dict(zip(CHATML, range(400, 403), strict=True)) | {'[PAD]': ROWS}
  found = directory(added, {'pad_token': '[PAD]', 'eos_token': '[PAD]'}, generation_config=[402, ROWS])
  tokenizer = opened(found)
  assert tokenizer.vocab_size == ROWS and '[PAD]' not in tokenizer.special
  assert tokenizer.stop_ids == (402, 400) and tokenizer.pad == 400
  assert max(tokenizer.encode('[PAD] 5! = 120')) < 400
  assert tokenizer.decode([402, ROWS, *tokenizer.encode('5!')]) == '5!'
  save_tokenizer(tokenizer, tmp_path / 'saved')  # the files stay as published
  assert opened(tmp_path / 'saved').beyond == {'[PAD]': ROWS}
  assert opened(found, ROWS + 1).special['[PAD]'] == ROWS  # 32,001 rows
  assert opened(found, 512).special['[PAD]'] == ROWS  # rows to a multiple of 128


def test_what_is_beyond_the_vocabulary_and_in_use_is_refused(directory):
  with pytest.raises(UserError, match='encodes text to ids up to 399 and vocab_size is 300: these are files of diff'):
    opened(directory(CHATML), rows=300)
  tokenizer = opened(directory({'<|im_start|>': 400, '<|im_end|>': ROWS}))
  with pytest.raises(UserError, match=r'<\|im_end\|> has the id 410, and the model has rows for ids up to 409 only'):
    _ = tokenizer.im_end


def test_a_few_tokens_of_the_text_beyond_the_vocabulary(directory):
  """CodeLlama's Python models have no rows for the marks of infilling, which its tokenizer.model has as pieces."""
  tokenizer = opened(directory({'</s>': 100}, {'eos_token': tiny_bpe_tokenizer().decode([399])}), rows=390)
  assert tokenizer.vocab_size == 390 and tokenizer.stop_ids == (100,)
  text = tiny_bpe_tokenizer().decode([395])
  assert tokenizer.encode('5! = 120')
  with pytest.raises(UserError, match=f'{text!r} encodes to the id 395, and the model has rows for the ids up to 389'):
    tokenizer.encode(text)


def test_text_that_encodes_to_an_id_without_a_row_is_refused(directory):
  found = directory({'</s>': 400, '!!': ROWS})
  definition = json.loads((found / 'tokenizer.json').read_text())
  definition['model']['vocab']['!!'] = ROWS
  definition['model']['merges'].append(['!', '!'])
  (found / 'tokenizer.json').write_text(json.dumps(definition))
  tokenizer = opened(found)
  assert tokenizer.encode('5! = 120')
  with pytest.raises(UserError, match="'5!!' encodes to the id 410, and the model has rows for the ids up to 409 only"):
    tokenizer.encode_batch(['5!', '5!!'])


@pytest.mark.parametrize('file', ['added_tokens.json', 'tokenizer_config.json'])
def test_tokens_added_to_a_sentencepiece_model(file, tmp_path):
  """WizardMath and MetaMath: tokenizer.model of 32,000 pieces, and [PAD] at id 32000."""
  model = (resources.files('mathqwen') / 'assets' / 'arithmetic.model').read_bytes()
  (tmp_path / 'tokenizer.model').write_bytes(model)
  content = {'added_tokens_decoder': {'1024': {'content': '[PAD]'}}} if 'config' in file else {'[PAD]': 1024}
  (tmp_path / file).write_text(json.dumps(content))
  assert opened(tmp_path, 1024).beyond == {'[PAD]': 1024}
  assert opened(tmp_path, 1025).special['[PAD]'] == 1024
  assert opened(tmp_path, 1025).vocab_size == 1025


@pytest.mark.parametrize('added', ['{"a": "1024"}', '{"a": -1}', '{"a": 1.5}', '{"a": [1]}'])
def test_odd_added_tokens_are_refused(added, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes((resources.files('mathqwen') / 'assets/arithmetic.model').read_bytes())
  (tmp_path / 'added_tokens.json').write_text(added)
  with pytest.raises(UserError, match="tokenizer.model cannot be read as a tokenizer .the added token 'a' has the id"):
    load_tokenizer(tmp_path)


def test_the_padding_token_does_not_depend_on_the_order_of_the_stop_tokens(directory):
  """An export declares them in another order than its source, and is exported alike again."""
  pads = {load_tokenizer(directory(LLAMA3, generation_config=ids)).pad for ids in ([401, 402], [402, 401])}
  assert pads == {402}
