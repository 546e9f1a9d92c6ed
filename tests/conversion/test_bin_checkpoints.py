"""RFT, WizardMath and Abel exist as pytorch_model.bin only: from there to grades and to a Hugging Face directory."""

import json

import numpy as np
import pytest

from mathqwen.cli import main

torch = pytest.importorskip('torch', reason='torch, which writes pytorch_model.bin, is not installed')
pytestmark = pytest.mark.usefixtures('compiled_once')

SIZES = {'hidden_size': 16, 'intermediate_size': 16, 'num_attention_heads': 2, 'num_key_value_heads': 2, 'head_dim': 8}


@pytest.mark.parametrize('rows, prompt', [(32_000, 'alpaca'), (32_001, 'wizardmath'), (32_008, 'abel')])
def test_from_bin_to_grades_and_to_hugging_face(
  rows, prompt, torch_model, save_in_shards, llama_model, tiny, tmp_path, capsys
):
  """With [PAD] at id 32,000, as they have it: beyond the vocabulary of the first."""
  transformers = pytest.importorskip('transformers')
  model = torch_model('llama', vocab_size=rows, num_hidden_layers=1, max_position_embeddings=512, **SIZES).half()
  model.config.architectures = ['LlamaForCausalLM']
  folder = tmp_path / 'bin'
  model.config.save_pretrained(folder)
  state = model.state_dict() | {'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(4)}
  save_in_shards(state, folder)
  (folder / 'tokenizer.model').write_bytes(llama_model)
  (folder / 'added_tokens.json').write_text('{"[PAD]": 32000}')
  (folder / 'generation_config.json').write_text('{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}')

  options = ['--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--limit', '3', '--max-new-tokens', '4']
  assert main(['evaluate', str(folder), '--prompt', prompt, '--json', *options]) == 0
  scores = json.loads(capsys.readouterr().out.splitlines()[-1])['benchmarks']['arithmetic']
  assert (scores['n'], scores['prompt']) == (3, prompt)

  assert main(['convert', 'to-hf', str(folder), str(tmp_path / 'out'), '--no-check']) == 0
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').state_dict()
  for name, tensor in model.state_dict().items():
    assert theirs[name].dtype == torch.float16 and torch.equal(theirs[name], tensor), name
  generation = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert np.max(generation['eos_token_id']) == 2
