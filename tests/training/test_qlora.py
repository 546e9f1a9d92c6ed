"""Adapters on a base in 8 or 4 bits: gradients, a run from its start to its merged weights, and what is refused."""

import functools
import json
import shutil

import adapter_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_runs import adapters_of
from toy_batches import examples_of, train_config

from mathqwen import hf
from mathqwen.adapter_config import AdapterConfig
from mathqwen.cli import main
from mathqwen.config import MeshConfig
from mathqwen.data import packing
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.model import frozen, lora
from mathqwen.model.adapted import OUTPUTS
from mathqwen.model.config import ModelConfig
from mathqwen.model.quantized import is_quantized, quantize
from mathqwen.storage import base as storage_base
from mathqwen.storage import checksums, converted
from mathqwen.storage.source import open_source
from mathqwen.text.testing import tiny_bpe_tokenizer
from mathqwen.training import step as step_lib

CFG = ModelConfig(1024, 32, 64, 2, 2, 1, 16, 96, qkv_bias=False, qk_norm=True)
TARGETS = ('q', 'o', 'down')
SETTINGS = (
  'train.adapter.rank=4',
  f'train.adapter.targets={",".join(TARGETS)}',
  'train.adapter.base=nf4',
  'train.steps=6',
  'train.checkpoint_every=3',
  'train.log_every=1',
  'data.eval_examples=0',
  'optim.learning_rate=3e-2',
  'optim.warmup_steps=1',
)


def held(params, kind):
  """(weights as they are held, their dequantised form)."""
  layers = {name: frozen.hold(w, ('layers', name), kind) for name, w in params['layers'].items()}
  dense = {name: jax.vmap(lambda w: w.dequantized('float32'))(w) for name, w in layers.items() if is_quantized(w)}
  assert set(dense) == set(OUTPUTS)
  return params | {'layers': layers}, params | {'layers': layers | dense}


@pytest.mark.parametrize('kind, remat', [('int8', 'none'), ('int4', 'nested'), ('nf4', 'full')])
def test_gradients_are_those_on_the_dequantised_base(kind, remat, tiny_config, random_params):
  cfg = tiny_config('qwen2', num_hidden_layers=2)
  adapter = AdapterConfig(4, base=kind)
  rng = np.random.default_rng(1)
  trained = jax.tree.map(
    lambda struct: jnp.asarray(0.1 * rng.standard_normal(struct.shape), jnp.float32), lora.trained(cfg, adapter)
  )
  batch = packing.pack(examples_of(6), 24)

  def gradients(base):
    train = train_config(adapter=adapter, remat=remat)
    run = jax.jit(functools.partial(step_lib.gradients, key=None, cfg=cfg, train=train))
    return run(trained, batch, base=base)[:2]

  quantised, dense = held(random_params(cfg), kind)
  got, want = gradients(quantised), gradients(dense)
  assert float(got[1]) == pytest.approx(float(want[1]), rel=1e-5)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want[0]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * largest), got[0], want[0])


def train(tiny, base, workdir, *changes):
  return adapter_runs.command(tiny, base, workdir, *SETTINGS, *changes)


@pytest.fixture(scope='module')
def base(random_params, tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'model'
  hf.save(str(folder), random_params(CFG), CFG, tiny_bpe_tokenizer(), 'bfloat16')
  return folder


@pytest.fixture(scope='module')
def run(tiny, base, tmp_path_factory):
  """The workdir of a run with checkpoints 3 and 6. To be copied, not changed."""
  workdir = tmp_path_factory.mktemp('run') / 'qlora'
  assert main(train(tiny, base, workdir)) == 0
  return workdir


def losses_of(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {row['step']: row['loss'] for row in rows if 'loss' in row}


def test_a_run_continues_as_if_it_had_not_stopped_and_its_loss_falls(tiny, base, run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  assert main(train(tiny, base, tmp_path / 'run')) == 0
  want, got = adapters_of(run), adapters_of(tmp_path / 'run')
  assert {path: array.tobytes() for path, array in got.items()} == {path: a.tobytes() for path, a in want.items()}
  losses = losses_of(run)
  assert losses_of(tmp_path / 'run') == losses and losses[6] < losses[1] - 0.3


def test_its_weights_are_those_of_the_dequantised_base_with_the_adapters(run, base):
  stored = hf.load_params(str(base))['layers']
  adapters = adapters_of(run)
  merged = open_source(str(run)).read()['layers']
  for name, outputs in OUTPUTS.items():
    codes = jax.vmap(functools.partial(quantize, kind='nf4', outputs=outputs))(stored[name])
    want = np.array(jax.vmap(lambda w: w.dequantized('float32'))(codes))
    assert np.abs(want - np.float32(stored[name])).max() > 0.01
    if name in TARGETS:
      a, b = (adapters[('layers', name, part)] for part in ('a', 'b'))
      want += 4 * np.einsum('lor,lri->loi', b.reshape(2, -1, 4), a.reshape(2, 4, -1)).reshape(want.shape)
    np.testing.assert_allclose(merged[name], want, rtol=0, atol=1e-5, err_msg=name)


def test_its_adapter_is_compared_on_the_base_of_the_files(run, tmp_path, capsys, monkeypatch):
  reads = []
  read = converted.StepWeights.read
  monkeypatch.setattr(converted.StepWeights, 'read', lambda self, path: reads.append(path) or read(self, path))
  assert main(['convert', 'to-hf', str(run), str(tmp_path / 'adapter'), '--adapter', '--json']) == 0
  out, said = capsys.readouterr()
  assert '.adapter.' not in said  # the folder that it is written in before it is whole
  found = json.loads(out.splitlines()[-1])
  check, of_quantized = found['check'], found['of_quantized']
  assert check['max_logit_difference'] < 0.02 * check['logit_std']
  assert of_quantized['max_logit_difference'] > 0.1 * of_quantized['logit_std']
  seen = sorted(reads)
  assert seen == sorted(adapters_of(run))  # once each, not once for each layer
  assert 'the run computed with its base in nf4, whose logits are within' in out


def test_its_weights_are_merged_one_layer_at_a_time(run, monkeypatch):
  weights, shapes = open_source(str(run)).weights, []
  merge = lora.merged
  monkeypatch.setattr(lora, 'merged', lambda weight, dtype: shapes.append(weight.a.shape) or merge(weight, dtype))
  got = weights.read(('layers', 'q'))
  assert shapes == [(1, 4, 32)]  # traced once
  placed = weights.place(('layers', 'q'), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  assert got.shape[0] == 2 and np.array_equal(got, placed)


def test_matrices_reach_the_devices_one_layer_at_a_time(base, tmp_path, monkeypatch):
  mesh, stored = sharding.make_mesh(MeshConfig(), jax.devices()[:1]), hf.load_params(str(base))
  placed, sent = [], []
  place, put = hf.DirectoryWeights.place, jax.device_put
  monkeypatch.setattr(hf.DirectoryWeights, 'place', lambda self, *args: placed.append(args[0]) or place(self, *args))
  with monkeypatch.context() as patched:
    patched.setattr(jax, 'device_put', lambda x, *args: sent.append(np.shape(x)) or put(x, *args))
    weights = hf.DirectoryWeights(str(base))
    got = storage_base.read(weights, str(base), CFG, mesh, AdapterConfig(4, base='nf4'), str(tmp_path / 'run'))
  assert not [path for path in placed if path[-1] in OUTPUTS]
  of_matrices = [shape for shape in sent if len(shape) > 2]
  assert len(of_matrices) == 2 * len(OUTPUTS) and all(shape[0] == 1 for shape in of_matrices)
  whole = storage_base.hold(stored['layers']['down'], ('layers', 'down'), CFG, mesh, 'nf4')
  jax.tree.map(np.testing.assert_array_equal, got.params['layers']['down'], whole)
  placed.clear()
  open_source(str(base)).read(mesh, 'bfloat16', 'int8')  # as `mathqwen.load(..., weights='int8')` reads it
  assert placed and not [path for path in placed if path[-1] in OUTPUTS]
  record = checksums.examine({'layers': {'down': stored['layers']['down']}})[1]
  assert got.record['arrays']['layers/down'] == record['layers/down']


def test_the_first_loss_is_near_that_of_the_base_in_bfloat16(tiny, base, run, tmp_path):
  changes = ('train.adapter.base=bfloat16', 'train.steps=2', 'train.checkpoint_every=2')
  assert main(train(tiny, base, tmp_path / 'plain', *changes)) == 0
  exact, got = losses_of(tmp_path / 'plain')[1], losses_of(run)[1]
  assert got != exact and got == pytest.approx(exact, rel=0.03)


def test_another_form_of_the_base_is_refused(tiny, base, run, capsys):
  assert main(train(tiny, base, run, 'train.adapter.base=int4')) == 2
  assert 'train.adapter.base' in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
  'mesh, line',
  [
    ({'tensor': 2}, 'mesh.tensor 2 does not divide intermediate_size / 16, blocks in nf4, 5: set mesh.tensor=1'),
    ({'fsdp': 16}, 'mesh.fsdp 16 does not divide bytes of a block in nf4, 8: set mesh.fsdp=8 and mesh.data=2'),
    ({'context': 16}, 'mesh.context 16 does not divide bytes of a block in nf4, 8: set mesh.context=8'),
  ],
)
def test_meshes_that_do_not_divide_blocks_are_refused(mesh, line, tiny_config):
  cfg = tiny_config('qwen2', num_attention_heads=4, num_key_value_heads=4, vocab_size=96, hidden_size=144)
  shape = {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1} | mesh
  with pytest.raises(UserError) as refused:
    sharding.check(shape, cfg, base='nf4')
  assert line in str(refused.value)
