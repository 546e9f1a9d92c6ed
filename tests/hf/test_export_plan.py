"""A plan says what will be written, before any weight is read."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mathqwen import hf
from mathqwen.errors import UserError
from mathqwen.hf import export_plan
from mathqwen.text.testing import tiny_bpe_tokenizer


class UnreadableWeights(hf.Weights):
  """Weights in float32, norms in bfloat16; reading one is an error."""

  def dtype(self, path):
    return hf.DTYPES['bfloat16' if path[-1].endswith('norm') else 'float32']

  def read(self, path):
    raise AssertionError(f'{path} was read')


def test_a_plan_is_what_is_written(tiny_config, random_params, tmp_path, monkeypatch):
  monkeypatch.setattr(export_plan, 'SHARD_BYTES', 60_000)
  cfg, tokenizer = tiny_config('qwen3', vocab_size=411), tiny_bpe_tokenizer()
  plan = hf.plan_export(UnreadableWeights(), cfg, tokenizer, system_prompt='Be brief.')
  weights = random_params(cfg)
  for path, array in [*weights['layers'].items(), ('norm', weights['norm'])]:
    tree = weights['layers'] if path in weights['layers'] else weights
    tree[path] = array.astype('bfloat16') if path.endswith('norm') else array
  hf.save(str(tmp_path / 'out'), weights, cfg, tokenizer, system_prompt='Be brief.')

  assert len(plan.shards) > 3 and plan.layout == 'qwen3'
  assert {shard.file for shard in plan.shards} == {path.name for path in (tmp_path / 'out').glob('*.safetensors')}
  size = 0
  for shard in plan.shards:
    tensors = safetensors.numpy.load_file(tmp_path / 'out' / shard.file)
    planned = {item.tensor.name: (item.tensor.shape, item.dtype, item.size) for item in shard.tensors}
    assert planned == {name: (array.shape, array.dtype, array.nbytes) for name, array in tensors.items()}
    size += sum(array.nbytes for array in tensors.values())
    assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= 60_000
  assert plan.size == size
  for file, values in {
    'config.json': plan.config,
    'generation_config.json': plan.generation,
    'model.safetensors.index.json': plan.index,
  }.items():
    assert json.loads((tmp_path / 'out' / file).read_text()) == values, file
  assert plan.config['torch_dtype'] == 'float32' and plan.config['system_prompt'] == 'Be brief.'


def test_a_plan_refuses_what_cannot_be_written(tiny_config):
  with pytest.raises(UserError, match='layout qwen1 cannot hold this model'):
    hf.plan_export(UnreadableWeights(), tiny_config('llama'), None, layout='qwen1')


@pytest.mark.parametrize('hosts, least', [(1, 1), (2, 2), (5, 5)])
def test_every_host_has_a_shard(hosts, least, tiny_config, monkeypatch):
  monkeypatch.setattr(export_plan.jax, 'process_count', lambda: hosts)
  plan = hf.plan_export(UnreadableWeights(), tiny_config('qwen2'), None, 'float16')
  assert len(plan.shards) >= least and (hosts > 1 or plan.index is None)
  assert {item.dtype for shard in plan.shards for item in shard.tensors} == {np.dtype(np.float16)}
  assert plan.generation is None and plan.notes == (
    'its source has no tokenizer files, so none are written, and no generation_config.json',
  )
