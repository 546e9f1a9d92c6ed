"""Adapters as PEFT's files: PEFT, and our reader of such files, compute with them what we do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen import hf
from mathqwen.adapter_config import AdapterConfig
from mathqwen.inference.model import load
from mathqwen.model import lora, qwen
from mathqwen.model.config import ModelConfig


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  'family, adapter',
  [
    ('qwen2', AdapterConfig(4, alpha=6.0, targets=('q', 'v', 'down'), rank_stabilized=True)),
    ('qwen3', AdapterConfig(3, dora=True, dropout=0.1)),
  ],
)
def test_peft_and_ours_compute_with_the_files_what_training_does(family, adapter, torch_model, from_torch, tmp_path):
  torch, transformers = (pytest.importorskip(name) for name in ('torch', 'transformers'))
  peft = pytest.importorskip('peft', reason='PEFT, of the extra dev, is not installed')
  reference = torch_model(family, num_hidden_layers=2)
  cfg, base = from_torch(reference)
  rng = np.random.default_rng(0)
  draw = lambda struct: np.asarray(0.2 * rng.standard_normal(struct.shape), np.float32)
  trained = jax.tree.map(draw, lora.trained(cfg, adapter))
  for parts in trained['layers'].values():
    if adapter.dora:
      parts['magnitude'] = 1 + np.abs(parts['magnitude'])
  folder = tmp_path / 'adapter'
  folder.mkdir()
  read = lambda path: hf.weight_at(trained, path)
  keys = {'base_model_name_or_path': str(tmp_path / 'hf'), 'revision': None}
  hf.write_adapter(folder, read, None, cfg, adapter, family, keys, np.dtype('float32'))

  tokens = np.arange(20)[None]
  joined = lora.join(base, jax.tree.map(jnp.asarray, trained), adapter)
  want = np.asarray(qwen.unembed(joined, qwen.forward(joined, cfg, tokens)))
  model = peft.PeftModel.from_pretrained(reference, str(folder)).eval()
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
    first = int(want[0, -1].argmax())
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [first]}))
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)  # as the model card says
    answer = model.generate(input_ids=torch.tensor(tokens), max_new_tokens=3)
    assert answer.tolist()[0] == [*range(20), first]
    plain = model.unload()(torch.tensor(tokens)).logits.numpy()
  assert np.abs(theirs - want).max() < 1e-4 * want.std()
  assert np.abs(plain - want).max() > 0.1 * want.std()
  assert np.abs(load(str(folder), dtype='float32').logits(tokens) - want).max() < 1e-4 * want.std()


def test_names_of_modules_end_where_they_are_clear(tmp_path):
  """PEFT adapts every module whose name ends so: Qwen-1's `c_proj` would also be that of attention."""
  cfg = ModelConfig(
    vocab_size=8, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    head_dim=2, max_position_embeddings=16, tie_word_embeddings=False,
  )  # fmt: skip
  adapter = AdapterConfig(2, targets=('down',))
  trained = jax.tree.map(lambda struct: np.zeros(struct.shape, np.float32), lora.trained(cfg, adapter))
  read = lambda path: hf.weight_at(trained, path)
  hf.write_adapter(tmp_path, read, None, cfg, adapter, 'qwen1', {}, np.dtype('float32'))
  assert json.loads((tmp_path / 'adapter_config.json').read_text())['target_modules'] == ['mlp.c_proj']
