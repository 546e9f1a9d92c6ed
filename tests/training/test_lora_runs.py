"""Runs with adapters: what their checkpoints hold, how they continue, and how their weights are read and exported.

The base is a Qwen-1 in its own format, where one tensor holds q, k and v; only some of these have adapters.
"""

import json
import re
import shutil

import adapter_runs
import jax
import numpy as np
import pytest
from adapter_runs import adapters_of

import mathqwen
from mathqwen import hf
from mathqwen.adapter_config import AdapterConfig
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.cli import main
from mathqwen.conversion.to_adapter import export_adapter
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.model import lora, qwen
from mathqwen.model.config import ModelConfig
from mathqwen.storage import base as storage_base
from mathqwen.storage import workdir as workdirs
from mathqwen.storage.source import open_source
from mathqwen.text.testing import tiny_bpe_tokenizer

CFG = ModelConfig(1024, 32, 64, 2, 2, 2, 16, 96, seq_length=96)
TARGETS = ('q', 'v', 'o', 'down')
SETTINGS = (
  'train.adapter.rank=4',
  f'train.adapter.targets={",".join(TARGETS)}',
  'train.adapter.dora=true',
  'train.adapter.rank_stabilized=true',
  'train.adapter.dropout=0.1',
  'train.micro_batches=2',
  'train.steps=6',
  'train.checkpoint_every=3',
  'train.eval_every=6',
  'optim.learning_rate=3e-2',
  'optim.warmup_steps=1',
)


def train(tiny, base, workdir, *changes):
  return adapter_runs.command(tiny, base, workdir, *SETTINGS, *changes)


@pytest.fixture(scope='module')
def base(random_params, tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'model'
  hf.save(str(folder), random_params(CFG), CFG, tiny_bpe_tokenizer(), 'bfloat16', 'qwen1')
  return folder


@pytest.fixture(scope='module')
def adapted(tiny, base, tmp_path_factory):
  """The workdir of a run with checkpoints 3 and 6. To be copied, not changed."""
  workdir = tmp_path_factory.mktemp('run') / 'adapted'
  assert main(train(tiny, base, workdir)) == 0
  return workdir


def test_a_checkpoint_holds_the_adapters_and_what_their_base_was(adapted, base):
  step = adapted / 'checkpoints' / '6'
  arrays = json.loads((step / 'checksums' / 'metadata').read_text())['content']['arrays']
  params = {name.removeprefix('params/') for name in arrays if name.startswith('params/')}
  assert params == {f'layers/{name}/{part}' for name in TARGETS for part in ('a', 'b', 'magnitude')}
  moments = [name for name in arrays if name.startswith('opt_state/') and ('/mu/' in name or '/nu/' in name)]
  assert len(moments) == 2 * len(params)
  record = json.loads((step / 'base' / 'metadata').read_text())
  assert record['name'] == str(base) and len(record['arrays']) == 15
  assert record['arrays']['layers/q'] | {'sum': 0} == {'dtype': 'bfloat16', 'shape': [2, 2, 16, 32], 'sum': 0}
  assert all(np.abs(array).max() > 0 for array in adapters_of(adapted).values())


def test_a_run_continues_as_if_it_had_not_stopped(tiny, base, adapted, tmp_path, monkeypatch):
  shutil.copytree(adapted, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  monkeypatch.chdir(base.parent)
  assert main(train(tiny, base.name, tmp_path / 'run')) == 0
  want, got = adapters_of(adapted), adapters_of(tmp_path / 'run')
  assert {path: array.tobytes() for path, array in got.items()} == {path: a.tobytes() for path, a in want.items()}
  losses = [
    [row.get('loss') for row in map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())]
    for folder in (adapted, tmp_path / 'run')
  ]
  assert [loss for loss in losses[0] if loss] == [loss for loss in losses[1] if loss]


def test_what_a_run_is_refused(tiny, base, adapted, tmp_path, fails):
  shutil.copytree(adapted, tmp_path / 'run')
  line = fails(*train(tiny, base, tmp_path / 'run', 'train.adapter.rank=8', 'train.adapter.alpha=8'))
  assert 'train.adapter.rank 4 -> 8, train.adapter.alpha 16.0 -> 8.0): use another --workdir' in line
  line = fails('train', tiny.config, '--workdir', tmp_path / 'new', '--set=train.adapter.rank=2')
  assert line == 'train.adapter.rank: an adapter is trained on a model: give one with --init MODEL'
  for setting, error in (
    ('targets=q_proj,v', 'each must be one of q, k, v, o, gate, up, down; q_proj of PEFT is q here'),
    ('targets=', 'name at least one matrix, and each once'),
    ('targets=q,q', 'name at least one matrix, and each once'),
    ('alpha=0', 'train.adapter.alpha is 0.0: it must be above 0'),
  ):
    assert error in fails(*train(tiny, base, tmp_path / 'new', f'train.adapter.{setting}'))
  line = fails(*train(tiny, base, tmp_path / 'new', 'train.adapter.rank=0'))
  assert 'nothing reads it, because train.adapter.rank=0 trains all weights' in line
  assert not (tmp_path / 'new').exists()


def test_another_base_is_refused(tiny, base, adapted, tmp_path, fails, monkeypatch):
  """By its checksums: here one number of one matrix differs, in its last bit. The workdir stays as it was."""
  shutil.copytree(adapted, tmp_path / 'run')
  shutil.copytree(base, tmp_path / 'other')
  file = tmp_path / 'other' / 'model.safetensors'
  content = bytearray(file.read_bytes())
  content[-100] ^= 1
  file.write_bytes(content)
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  held, hold = [], storage_base.hold
  with monkeypatch.context() as patched:
    patched.setattr(storage_base, 'hold', lambda array, path, *rest: held.append(path) or hold(array, path, *rest))
    line = fails(*train(tiny, tmp_path / 'other', tmp_path / 'run'))
  (weight,) = re.findall('whose (.*) was another', line)
  assert held and tuple(weight.split('/')) not in held
  assert json.loads((tmp_path / 'run' / 'experiment.json').read_text())['init'] == str(base)
  assert f'{tmp_path}/other is not the base of {tmp_path}/run, whose layers/' in line
  assert 'put back the model that the run began with' in line
  # A link beside the checkpoints counts before the name in them.
  (tmp_path / 'run' / 'base').symlink_to(tmp_path / 'other')
  assert f'{tmp_path}/run/base is not the base of' in fails('generate', tmp_path / 'run', '1+1=')
  (tmp_path / 'run' / 'base').unlink()
  record = tmp_path / 'run' / 'checkpoints' / '3' / 'base' / 'metadata'
  record.write_text(record.read_text().replace(str(base), str(tmp_path / 'gone')))
  assert 'base differs from what was written' in fails('generate', tmp_path / 'run', '1+1=')


def test_a_run_that_is_made_again_on_another_base(base, adapted, tmp_path, monkeypatch, capsys):
  """Under the same name. Said before the first step, here before anything is written."""

  def stop(*_):
    raise UserError('as far as this')

  monkeypatch.setattr(workdirs, 'claim', stop)
  again = ['train', '--reproduce', str(adapted), '--workdir', str(tmp_path / 'again')]
  line = f'not as in the original: base {base}: layers/'
  file = base / 'model.safetensors'
  content = file.read_bytes()
  assert main(again) == 2 and line not in capsys.readouterr().err
  try:
    file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    assert main(again) == 2 and line in capsys.readouterr().err
  finally:
    file.write_bytes(content)


def test_the_name_of_a_base_that_is_on_the_mesh_already(base, monkeypatch):
  """As of one that is read: a directory, from wherever the command ran."""
  monkeypatch.chdir(base.parent)
  params = {'norm': np.ones(3, np.float32)}
  for name, recorded in ((base.name, str(base)), ('hf://Qwen/Qwen3-8B', 'hf://Qwen/Qwen3-8B')):
    copied = storage_base.copied(params, hf.ArrayWeights(params), name, AdapterConfig())
    assert copied.record['name'] == recorded and copied.record['arrays']['norm']['dtype'] == 'bfloat16'


def test_a_base_that_is_gone(base, tmp_path, adapted, fails):
  shutil.copytree(adapted, tmp_path / 'run')
  base.rename(tmp_path / 'elsewhere')
  try:
    line = fails('generate', tmp_path / 'run', '1+1=')
    assert f'the base of {tmp_path}/run, {base}, cannot be opened' in line
    assert f'put it back, or a link to it at {tmp_path}/run/base' in line
    (tmp_path / 'run' / 'base').symlink_to(tmp_path / 'elsewhere')
    assert open_source(str(tmp_path / 'run')).weights.read(('layers', 'q')).shape == (2, 2, 16, 32)
  finally:
    (tmp_path / 'elsewhere').rename(base)


def test_merged_weights_compute_what_was_trained(adapted, base):
  model = mathqwen.load(str(adapted), dtype='float32')
  experiment = open_source(str(adapted)).experiment
  frozen = hf.load_params(str(base))
  frozen = jax.tree.map(lambda w: w.astype('float32'), frozen)
  trained: dict = {}
  for path, array in adapters_of(adapted).items():
    hf.set_weight(trained, path, array)
  tokens = np.arange(60, dtype=np.int32).reshape(2, 30)
  joined = lora.join(frozen, trained, experiment.train.adapter)
  apart = qwen.unembed(joined, qwen.forward(joined, CFG, tokens))
  assert np.abs(model.logits(tokens) - apart).max() < 1e-5 * np.abs(apart).max()
  plain = qwen.unembed(frozen, qwen.forward(frozen, CFG, tokens))
  assert np.abs(plain - apart).max() > 0.05


def test_exports(adapted, base, tmp_path, capsys):
  """Merged, which is compared to the bit; and as an adapter of the base, in which q, k and v are one."""
  assert main(['convert', 'to-hf', str(adapted), str(tmp_path / 'merged'), '--layout=qwen1']) == 0
  assert 'the same logits as its source to the bit' in capsys.readouterr().out
  assert main(['convert', 'to-hf', str(adapted), str(tmp_path / 'alone'), '--adapter', '--json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['layout'] == 'qwen1' and found['check']['max_logit_difference'] < 1e-5 * found['check']['logit_std']
  values = json.loads((tmp_path / 'alone' / 'adapter_config.json').read_text())
  assert values['target_modules'] == ['c_attn', 'attn.c_proj', 'mlp.c_proj'] and values['use_dora']
  assert values['rank_pattern'] == {'c_attn': 8} and values['use_rslora']
  scale = 16 / 4**0.5  # of all three; that of one of rank 8 is alpha / sqrt(8)
  assert values['alpha_pattern'] == {'c_attn': pytest.approx(scale * 8**0.5)}
  assert values['base_model_name_or_path'] == str(base)
  ours, theirs = (open_source(str(tmp_path / 'alone' if alone else adapted)) for alone in (False, True))
  assert theirs.chat().template.source == ours.chat().template.source
  stops = [json.loads((tmp_path / out / 'generation_config.json').read_text()) for out in ('merged', 'alone')]
  assert stops[0] == stops[1] and stops[0]['eos_token_id'] == list(ours.chat().stop_ids(ours.tokenizer))
  a, b = ours.read(dtype='float32'), theirs.read(dtype='float32')
  assert max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) < 1e-6


def test_the_template_of_an_exported_adapter_is_checked(adapted, tmp_path, monkeypatch, fails):
  jinja = ChatFormat.jinja
  monkeypatch.setattr(ChatFormat, 'jinja', lambda self: jinja(self).replace('<|im_end|>', '<|endoftext|>'))
  assert 'a server would read' in fails('convert', 'to-hf', adapted, tmp_path / 'out', '--adapter', '--no-check')
  assert list(tmp_path.iterdir()) == []


CHANGES = 'train.adapter.dora=false', 'train.adapter.targets=k', 'train.steps=2', 'train.eval_every=2'


@pytest.fixture(scope='module')
def adapted_twice(tiny, adapted, tmp_path_factory):
  """The workdir of a run on the merged weights of `adapted`. To be copied, not changed."""
  workdir = tmp_path_factory.mktemp('run') / 'twice'
  assert main(train(tiny, adapted, workdir, *CHANGES)) == 0
  return workdir


@pytest.mark.parametrize('kind', ['a run', 'an adapter'])
def test_the_adapter_of_a_run_whose_base_is_in_no_files(kind, adapted, adapted_twice, tmp_path, capsys):
  """It fits what `convert to-hf` writes of the base, which the user is asked to name."""
  base, run = tmp_path / 'base', tmp_path / 'run'
  shutil.copytree(adapted_twice, run)
  if kind == 'a run':
    base.symlink_to(adapted)
  else:
    export_adapter(str(adapted), str(base), compare=False)
  (run / 'base').symlink_to(base)
  made = export_adapter(str(run), str(tmp_path / 'out'))
  name = made['base']
  assert f'the base, {name}, is a run of ours or an adapter itself: write it with' in capsys.readouterr().err
  assert '`BASE` what `mathqwen convert to-hf` writes from' in (tmp_path / 'out' / 'README.md').read_text()
  convert_to_hf(name, str(tmp_path / 'merged'), compare=False)
  config = tmp_path / 'out' / 'adapter_config.json'
  config.write_text(config.read_text().replace(name, str(tmp_path / 'merged')))
  want, got = (open_source(str(path)).read(dtype='float32')['layers'] for path in (adapted_twice, tmp_path / 'out'))
  for weight in ('q', 'k', 'v'):
    np.testing.assert_allclose(got[weight], want[weight], rtol=2**-7, atol=1e-3)


def test_an_adapter_on_the_merged_weights_of_a_run(tiny, adapted, adapted_twice, tmp_path, fails, monkeypatch):
  """Whose last bits another mesh computes otherwise: that is not another base, and another step of the run is."""
  shutil.copytree(adapted_twice, tmp_path / 'run')
  first, second = (open_source(str(folder)).read() for folder in (adapted, tmp_path / 'run'))
  assert np.array_equal(np.asarray(first['layers']['q'].astype('bfloat16')), np.asarray(second['layers']['q']))
  assert np.abs(first['layers']['k'] - second['layers']['k']).max() > 1e-3
  merged = lora.merged
  with monkeypatch.context() as patched:
    patched.setattr(lora, 'merged', lambda weight, dtype: (merged(weight, 'float32') * (1 + 2**-7)).astype(dtype))
    elsewhere = open_source(str(tmp_path / 'run')).read()
  assert not np.array_equal(elsewhere['layers']['q'], second['layers']['q'])
  earlier = tmp_path / 'run' / 'base'
  shutil.copytree(adapted, earlier, ignore=shutil.ignore_patterns('6'))
  assert 'is not the base of' in fails(*train(tiny, earlier, tmp_path / 'run', *CHANGES))
  assert 'is not the base of' in fails('generate', tmp_path / 'run', '1+1=')
