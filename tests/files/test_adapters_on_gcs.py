"""Adapters whose base, run and export are in a bucket, against a run on a disk that nothing stopped."""

import json

import numpy as np
from adapter_runs import adapters_of, command

from mathqwen import files, hf
from mathqwen.cli import main
from mathqwen.files import trees
from mathqwen.storage.source import open_source
from mathqwen.text.testing import tiny_bpe_tokenizer

SETTINGS = (
  'train.adapter.rank=2', 'train.adapter.base=nf4', 'train.steps=4', 'train.checkpoint_every=2', 'train.eval_every=4',
  'optim.warmup_steps=1',
)  # fmt: skip


def test_trained_continued_exported_and_read(tiny, tiny_config, random_params, bucket, tmp_path, upload, nowhere):
  cfg = tiny_config('qwen2', vocab_size=1024, num_hidden_layers=1)
  hf.save(str(tmp_path / 'base'), random_params(cfg), cfg, tiny_bpe_tokenizer(), 'bfloat16')
  assert main(command(tiny, tmp_path / 'base', tmp_path / 'run', *SETTINGS)) == 0
  base, run, exported = (f'{bucket}/{name}' for name in ('base', 'run', 'adapter'))
  upload(tmp_path / 'base', base)
  assert main(command(tiny, base, run, *SETTINGS)) == 0
  trees.remove_tree(files.path(run) / 'checkpoints' / '4')
  assert main(command(tiny, base, run, *SETTINGS)) == 0
  want, got = adapters_of(tmp_path / 'run'), adapters_of(run)
  assert got.keys() == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(got[path], array, err_msg=str(path))

  assert main(['convert', 'to-hf', run, exported, '--adapter']) == 0
  named = json.loads((files.path(exported) / hf.ADAPTER_CONFIG).read_text())['base_model_name_or_path']
  assert named == base
  merged, weights = open_source(exported).weights, open_source(run).weights.unquantized()
  for path in merged.paths():
    np.testing.assert_allclose(merged.read(path), np.float32(weights.read(path)), rtol=0, atol=1e-5, err_msg=str(path))
  assert main(['generate', exported, '1+1=', '--max-new-tokens', '2']) == 0
