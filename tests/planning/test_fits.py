"""`plan --fits`: its table, and what it refuses."""

import dataclasses
import importlib.util
import json
import math

import jax
import pytest

from mathqwen import cli, config
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.model import attention, parameters, qwen
from mathqwen.model.compute import Compute
from mathqwen.model.config import PRESETS, ModelConfig
from mathqwen.planning import compiler, estimate, fits
from mathqwen.training import optim, step

GIB = 2**30
FULL = {'full adamw', 'full adamw_bf16', 'full adamw_8bit'}


def cells(*slices, experiment=None, settings=(), **exact):
  experiment = experiment or config.Experiment(PRESETS['Qwen2.5-7B'])
  found = fits.plan({'7B': experiment}, list(slices), list(settings), **exact)['fits']
  return {(cell['method'], cell['topology']): cell for cell in found}


def test_what_fits(capsys):
  """The 7B: 16 bytes a weight do not fit on eight chips of 16 GiB with room to spare, 12 and 10 bytes do."""
  found = cells('v5e-8', 'v5e-1')
  assert found['full adamw_bf16', 'v5e-8']['decided'] and not found['full adamw', 'v5e-8']['decided']
  weights = 7.615e9
  for method, moments in (('full adamw', 8), ('full adamw_bf16', 4), ('full adamw_8bit', 2.02)):
    cell = found[method, 'v5e-8']
    assert cell['weights_bytes'] == pytest.approx(4 * weights / 8, rel=1e-3)
    assert cell['moments_bytes'] == pytest.approx(moments * weights / 8, rel=1e-2)
    parts = sum(cell[f'{name}_bytes'] for name in ('weights', 'moments', 'gradients', 'rest'))
    assert cell['hbm_bytes_per_chip'] == parts and cell['fits']
    lacking = found[method, 'v5e-1']
    assert not lacking['fits'] and lacking['rows'] == 0 and not lacking['accumulates']
    assert lacking['missing_bytes_per_chip'] == lacking['hbm_bytes_per_chip'] - 16 * GIB
  shown = capsys.readouterr().out.splitlines()
  assert shown[0] == '| model | method | v5e-8 (8 x 16 GiB) | v5e-1 (1 x 16 GiB) |'
  cell = found['full adamw_8bit', 'v5e-8']
  missing = found['full adamw_8bit', 'v5e-1']['missing_bytes_per_chip'] / GIB
  assert shown[4] == (
    f'| 7B | full adamw_8bit | {cell["hbm_bytes_per_chip"] / GIB:.1f}, {cell["rows"]}+ rows | no (-{missing:.1f}) |'
  )
  assert 'Estimated, within' in shown[-2]


def test_the_most_rows_are_the_most():
  cell = cells('v5e-8')['full adamw_bf16', 'v5e-8']
  mesh = {'data': 1, 'fsdp': 8, 'context': 1, 'tensor': 1}

  def total(rows):
    settings = cell['settings'] | {'optim.name': 'adamw_bf16', 'data.batch_size': rows}
    return estimate.estimate(config.override(config.Experiment(PRESETS['Qwen2.5-7B']), settings), mesh).total

  assert cell['rows'] % 8 == 0 and total(cell['rows']) * (1 + fits.MARGIN) <= 16 * GIB
  assert total(cell['rows'] + 8) * (1 + fits.MARGIN) > 16 * GIB


def test_adapters():
  """LoRA of the 7B: 2 bytes a weight, and adapters of rank 16 with gradient and moments in 16 bytes each."""
  cell = cells('v5e-4')['LoRA', 'v5e-4']
  # The side of the residual stream is split over the chips; heads and MLP are not.
  adapters = 28 * 16 * (7 * 3584 // 4 + 2 * 3584 + 2 * 512 + 3 * 18944)
  assert cell['moments_bytes'] == pytest.approx(8 * adapters, rel=1e-6)
  assert cell['weights_bytes'] == pytest.approx(2 * 7.615e9 / 4 + 4 * adapters, rel=1e-3)
  assert cell['fits'] and cell['decided'] and cell['accumulates']
  assert cell['settings']['train.adapter.rank'] == 16
  found = cells('v5e-4', settings=['train.adapter.rank=64', 'train.adapter.alpha=32'])
  assert 'full adamw' not in {method for method, _ in found}  # which have no adapter
  assert found['LoRA', 'v5e-4']['moments_bytes'] == pytest.approx(4 * cell['moments_bytes'], rel=0.01)
  assert {method for method, _ in cells('v5e-4', settings=['train.adapter.rank=0'])} == FULL


@pytest.mark.parametrize('loss_chunk', [1024, 256])
def test_what_a_step_with_adapters_takes_beside_its_state(loss_chunk):
  """No gradients of the base: the larger of one layer's weights in bfloat16, and a chunk's logits in float32."""
  settings = ['data.batch_size=4', 'train.adapter.rank=16', 'train.remat=full', f'train.loss_chunk={loss_chunk}']
  experiment = config.override(config.Experiment(PRESETS['Qwen2.5-7B'], init='hf://any/model'), settings)
  found = estimate.estimate(experiment, {'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 1})
  layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
  one_layer = 2 * layer + 2 * 1024 * (3 * 18944 + 6 * 3584)
  logits = 4 * loss_chunk * 152064 * 5 // 4
  assert (logits > one_layer) == (loss_chunk == 1024)
  assert found.rest_bytes == pytest.approx(2 * 1024 * 28 * 3584 + max(one_layer, logits), rel=1e-3)


def test_a_tied_embedding_is_updated_with_two_gradients_and_a_copy():
  experiment = config.override(config.Experiment(PRESETS['Qwen2.5-0.5B']), ['data.batch_size=1', 'train.remat=full'])
  found = estimate.estimate(experiment, {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1})
  assert found.rest_bytes == 6 * 151936 * 896


def residual_bytes(remat, layers, rows):
  """What JAX keeps between the two passes, in bfloat16. Without the weights: they do not grow with the rows."""
  cfg = dataclasses.replace(TOY, num_hidden_layers=layers)
  compute = Compute(dtype='bfloat16', remat=remat, attention=attention.blocks)
  tokens = jax.numpy.zeros((rows, 1024), int)
  backward = jax.eval_shape(
    lambda params: jax.vjp(lambda params: qwen.forward(params, cfg, tokens, compute=compute), params)[1],
    parameters.abstract(cfg),
  )
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(backward))


TOY = ModelConfig(512, 256, 768, 3, 4, 2, 32, 1024)


@pytest.mark.parametrize('remat', ['none', 'dots', 'gate', 'mlp', 'full'])
def test_what_layers_keep_is_what_jax_keeps(remat):
  """Two layers more and a row more: what is kept of weights and outside of the layers cancels out."""
  one, three = (residual_bytes(remat, layers, 2) - residual_bytes(remat, layers, 1) for layers in (1, 3))
  kept = (three - one) // 2 // 1024
  if remat in ('dots', 'gate', 'mlp'):
    kept -= 2 * 4 * 32  # the result of attention, which these keep on a CPU and splash on a TPU computes again

  def planned(layers, rows):
    settings = [f'data.batch_size={rows}', f'train.remat={remat}', 'data.seq_len=1024']
    model = dataclasses.replace(TOY, num_hidden_layers=layers)
    mesh = {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1}
    return estimate.estimate(config.override(config.Experiment(model), settings), mesh).rest_bytes

  grown = [planned(layers, 2) - planned(layers, 1) for layers in (1, 3)]
  assert (grown[1] - grown[0]) / 2 / 1024 == pytest.approx(kept, rel=0.02)  # beside it, a few numbers of each head


def test_settings_are_kept():
  found = cells('v5e-8', settings=['optim.name=adamw_8bit', 'train.remat=nested', 'data.seq_len=2048'])
  assert {method for method, _ in found} & FULL == {'full adamw_8bit'} and ('LoRA', 'v5e-8') in found
  assert 'train.remat' not in found['full adamw_8bit', 'v5e-8']['settings']
  with pytest.raises(UserError, match='--set data.batch_size: --fits finds it'):
    cells('v5e-8', settings=['data.batch_size=8'])
  with pytest.raises(UserError, match='--set train.remat=none: --fits has no good estimate'):
    cells('v5e-8', settings=['train.remat=none'])
  with pytest.raises(UserError, match='data.seq_len 200000 is above'):
    cells('v5e-8', settings=['data.seq_len=200000'])


def test_settings_that_some_methods_do_not_allow(capsys):
  found = cells('v5e-8', settings=['optim.offload=true', 'train.adapter.rank=64'])
  assert found['LoRA', 'v5e-8']['settings']['train.adapter.rank'] == 64
  found = cells('v5e-8', settings=['optim.offload=true'])
  assert {method for method, _ in found} & FULL == {'full adamw'}
  assert '7B, full adamw_8bit: left out: optim.offload' in capsys.readouterr().err
  with pytest.raises(UserError, match='no method'):
    cells('v5e-8', settings=['train.adapter.rank=0', 'optim.name=sgd'])


def test_a_base_that_no_method_of_the_table_has_is_a_method_of_its_own():
  def only(base):
    ((_, cell),) = cells('v5p-8', settings=[f'train.adapter.base={base}']).items()
    assert cell['settings']['train.adapter.base'] == base
    return cell['method'], cell['weights_bytes']

  (int4, size), (nf4, same) = only('int4'), only('nf4')
  assert (int4, nf4) == ('QLoRA int4', 'QLoRA nf4') and size == same
  (float32, size), (lora, half) = only('float32'), only('bfloat16')
  assert (float32, lora) == ('LoRA float32', 'LoRA') and size - half == pytest.approx(2 * 7.615e9 / 4, rel=1e-3)
  with pytest.raises(UserError, match='train.adapter.base .*nf8'):
    cells('v5p-8', settings=['train.adapter.base=nf8'])


def test_a_slice_that_no_mesh_splits(capsys):
  small = config.Experiment(PRESETS['Qwen2.5-0.5B'])  # 896 / 256 chips
  cell = cells('v5e-256', experiment=small, settings=['mesh.context=1', 'mesh.tensor=1'])['full adamw', 'v5e-256']
  assert not cell['fits'] and 'mesh.fsdp 256 does not divide hidden_size 896' in cell['error']
  assert '| no: --topology v5e-256: mesh.fsdp 256' in capsys.readouterr().out


def test_compiled_cells(monkeypatch, capsys):
  """Settings with less memory are compiled when the first do not fit."""
  tried = []

  def compile_for(experiment, where):
    tried.append((experiment.train.remat, experiment.train.loss_chunk, experiment.data.batch_size))
    if len(tried) < 3:
      return {'error': 'RESOURCE_EXHAUSTED: too large', 'compile_seconds': 1.0}
    return {'peak_bytes_per_chip': 9 * GIB, 'weights_bytes': 2 * GIB, 'moments_bytes': 3 * GIB}

  monkeypatch.setattr(compiler, 'compile_for', compile_for)
  monkeypatch.setattr(compiler, 'check_installed', lambda: None)
  cell = cells('v5e-8', settings=['optim.name=adamw_bf16', 'train.adapter.rank=0'], exact=True)[
    'full adamw_bf16', 'v5e-8'
  ]
  assert tried == [('full', 1024, 8), ('full', 256, 8), ('nested', 1024, 8)]
  assert cell['fits'] and cell['decided'] and cell['hbm_bytes_per_chip'] == 9 * GIB
  assert (cell['weights_bytes'], cell['moments_bytes']) == (2 * GIB, 3 * GIB)
  assert cell['settings']['train.remat'] == 'nested'
  assert '| 9.0, ' in capsys.readouterr().out
  tried.clear()
  monkeypatch.setattr(compiler, 'compile_for', lambda *_: {'error': 'RESOURCE_EXHAUSTED: 1', 'compile_seconds': 1.0})
  cell = cells('v5e-8', settings=['optim.name=adamw_bf16', 'train.adapter.rank=0'], exact=True)[
    'full adamw_bf16', 'v5e-8'
  ]
  assert not cell['fits'] and cell['error'] == 'RESOURCE_EXHAUSTED: 1' and cell['rows'] == 0


def test_the_command(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda *_: pytest.fail('an estimate needs no compiler'))
  assert cli.main(['plan', 'Qwen2.5-1.5B', '--fits', 'v5e-1, v6e-1', '--json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['exact'] is False and found['margin'] == fits.MARGIN
  assert [cell['topology'] for cell in found['fits']] == ['v5e-1', 'v6e-1'] * len(fits.METHODS)
  # Settings of adapters are for the methods that have some, whatever the CONFIG has.
  words = ['Qwen2.5-1.5B', '--fits', 'v5e-1', '--set', 'train.adapter.base=nf4', '--set', 'train.adapter.targets=q,v']
  assert cli.main(['plan', *words, '--json']) == 0
  (cell,) = json.loads(capsys.readouterr().out.splitlines()[-1])['fits']
  assert cell['method'] == 'QLoRA nf4'


@pytest.mark.parametrize(
  'words, line',
  [
    (['--fits', 'v5q-1'], '--fits v5q-1: write KIND-SIZE'),
    (['--fits', ','], '--fits names no slice'),
    (['--fits', 'v5e-1', '--topology', 'v5e-1'], '--topology: not allowed with argument --fits'),
    (['--fits', 'v5e-1', '--evaluate', 'gsm8k'], '--fits is about training'),
    (['--fits', 'v5e-1', '--price', '1'], '--price'),
    (['gsm8k_small', '--topology', 'v5e-1', '--exact'], '--exact is for --fits'),
    (['gsm8k_small'], '--topology --fits is required'),
    (['--topology', 'v5e-1'], '--topology needs a CONFIG'),
  ],
)
def test_refusals(words, line, capsys):
  assert cli.main(['plan', *words]) == 2
  (said,) = capsys.readouterr().err.splitlines()
  assert line in said


@pytest.mark.parametrize('name', ['adamw', 'adamw_bf16', 'adamw_8bit'])
def test_moments_take_what_the_compiler_says(name):
  """The update of a small model, compiled: it takes weights, gradients and the moments that are planned."""
  model = ModelConfig(512, 128, 256, 2, 2, 1, 64, 256)
  tx = optim.optimizer(config.OptimConfig(name=name), 10_000)
  state = step.abstract_state(sharding.make_mesh(config.MeshConfig(), jax.devices()[:1]), model, tx)
  compiled = jax.jit(tx.update, keep_unused=True).lower(state.params, state.opt_state, state.params).compile()
  planned = estimate.estimate(
    config.Experiment(model, optim=config.OptimConfig(name=name)), {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1}
  )
  taken = compiled.memory_analysis().argument_size_in_bytes - 2 * planned.weights_bytes
  assert taken == planned.moments_bytes > 10_000
