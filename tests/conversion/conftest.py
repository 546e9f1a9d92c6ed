"""A small model in a Hugging Face directory, for conversions to read and for tests to damage."""

import shutil

import pytest

from mathqwen import hf
from mathqwen.text.testing import tiny_bpe_tokenizer


@pytest.fixture(scope='module')
def exported(tmp_path_factory, tiny_config, random_params):
  folder = tmp_path_factory.mktemp('exported') / 'hf'
  cfg = tiny_config('qwen2', vocab_size=411, num_hidden_layers=2)
  hf.save(str(folder), random_params(cfg), cfg, tiny_bpe_tokenizer(), 'float32', system_prompt='Be brief.')
  return folder


@pytest.fixture
def directory(exported, tmp_path):
  """A copy of `exported` to damage."""
  shutil.copytree(exported, tmp_path / 'hf')
  return tmp_path / 'hf'
