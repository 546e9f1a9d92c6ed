"""Keys that a config.json leaves out mean here what they mean in transformers; what is written is read back."""

import json
import pathlib

import pytest

from mathqwen import hf
from mathqwen.hf import config_json

QWEN1 = pathlib.Path(__file__).parents[1] / 'testdata' / 'qwen1'
MODEL_TYPES = {'qwen2': 'Qwen2', 'qwen3': 'Qwen3', 'llama': 'Llama'}


def values_of(family, tiny_config):
  """The config.json of a tiny model."""
  cfg = tiny_config(family, vocab_size=100)
  return config_json.make(cfg, None, 'float32', family)


@pytest.mark.parametrize('family', MODEL_TYPES)
@pytest.mark.parametrize('tied', ['left out', True, False])
def test_tie_word_embeddings_is_that_of_transformers(family, tied, tiny_config, tmp_path):
  """By what transformers itself reads from the same file, and by whether its model shares the two weights."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = values_of(family, tiny_config)
  del values['tie_word_embeddings']
  if tied != 'left out':
    values['tie_word_embeddings'] = tied
  (tmp_path / 'config.json').write_text(json.dumps(values))
  theirs = transformers.AutoConfig.from_pretrained(tmp_path)
  assert type(theirs).__name__ == f'{MODEL_TYPES[family]}Config'
  assert hf.read_config(str(tmp_path)).tie_word_embeddings == theirs.tie_word_embeddings

  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(theirs)
  shared = model.lm_head.weight is model.model.embed_tokens.weight
  assert hf.read_config(str(tmp_path)).tie_word_embeddings == shared


@pytest.mark.parametrize('family', MODEL_TYPES)
def test_other_keys_that_are_left_out(family, tiny_config, tmp_path):
  """`head_dim` is hidden_size / heads, and the initialiser's standard deviation is the family's default."""
  transformers = pytest.importorskip('transformers')
  values = values_of(family, tiny_config)
  del values['initializer_range'], values['num_key_value_heads']
  if family != 'qwen3':  # its default of head_dim is 128 in transformers, and its files always have the key
    del values['head_dim']
  (tmp_path / 'config.json').write_text(json.dumps(values))
  theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path), hf.read_config(str(tmp_path))
  assert ours.initializer_range == theirs.initializer_range
  assert ours.head_dim == values['hidden_size'] // values['num_attention_heads'] or family == 'qwen3'
  if family == 'llama':  # the other two default to a fixed number of heads there, and their files have the key
    assert ours.num_key_value_heads == theirs.num_key_value_heads == values['num_attention_heads']


@pytest.mark.parametrize('tied', ['left out', None])
def test_qwen1_is_untied_by_default(tied, tmp_path):
  """QWenConfig, the configuration code beside Qwen-1's weights, has `tie_word_embeddings=False`."""
  values = json.loads((QWEN1 / 'config.json').read_text())
  del values['tie_word_embeddings']
  if tied is None:
    values['tie_word_embeddings'] = None
  (tmp_path / 'config.json').write_text(json.dumps(values))
  assert hf.read_config(str(tmp_path)).tie_word_embeddings is False
