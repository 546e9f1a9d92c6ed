"""Qwen-1 against what its original code computed: see tests/testdata/qwen1/README.md."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mathqwen
from mathqwen import hf
from mathqwen.cli import main
from mathqwen.conversion import check
from mathqwen.errors import UserError
from mathqwen.hf import layouts
from mathqwen.model import qwen
from mathqwen.model.cache import KVCache
from mathqwen.model.compute import Compute
from mathqwen.model.rotary import ntk_theta
from mathqwen.training import loss

FIXTURE = pathlib.Path(__file__).parents[1] / 'testdata' / 'qwen1'


@pytest.fixture(scope='module')
def model():
  return mathqwen.load(FIXTURE, dtype='float32')


@pytest.fixture(scope='module')
def cases():
  with np.load(FIXTURE / 'logits.npz') as stored:
    return {name: stored[name] for name in stored.files}


def case(cases, name):
  """(ids, attention mask, logits)"""
  ids = cases[f'{name}/input_ids'].astype(np.int32)
  mask = cases.get(f'{name}/attention_mask', np.ones_like(ids)).astype(np.int32)
  return ids, mask, cases[f'{name}/logits']


@pytest.mark.parametrize('name', ['short', 'at_limit', 'left_pad', 'right_pad', 'long_1.25x', 'long_2.5x'])
def test_logits(name, model, cases):
  ids, mask, want = case(cases, name)
  got = np.asarray(model.logits(ids, mask))
  assert np.abs(got - want)[mask > 0].max() < 1e-4


def test_rows_of_unequal_lengths_have_each_their_own_base(model, cases):
  """Packed or padded, a sequence is what it is alone: 40 tokens (NTK), 24 (none) and 80 (more NTK)."""
  rows = [cases['long_1.25x/input_ids'][0], cases['short/input_ids'][0], cases['long_2.5x/input_ids'][0]]
  want = [cases['long_1.25x/logits'][0], cases['short/logits'][0], cases['long_2.5x/logits'][0]]
  ids = np.concatenate(rows)[None].astype(np.int32)
  segments = np.concatenate([np.full(len(row), i + 1) for i, row in enumerate(rows)])[None].astype(np.int32)
  positions = np.concatenate([np.arange(len(row)) for row in rows])[None].astype(np.int32)
  got = np.asarray(model.logits(ids, segments, positions))[0]
  assert np.abs(got - np.concatenate(want)).max() < 1e-4


def test_training_mode_has_neither_ntk_nor_logn(model, cases):
  ids, _, want = case(cases, 'long_train_mode')
  x = qwen.forward(model.params, model.config, ids, compute=Compute(training=True))
  assert np.abs(np.asarray(qwen.unembed(model.params, x)) - want).max() < 1e-4
  assert np.abs(np.asarray(model.logits(ids)) - want).max() > 0.1


def test_decoding_keeps_the_base_of_the_prompt(model, cases):
  ids, _, want = case(cases, 'cached_decode')
  prefill, cfg = int(cases['cached_decode/prefill_len']), model.config
  step = jax.jit(lambda params, tokens, cache: qwen.decode_step(params, cfg, tokens, cache))
  cache = KVCache.empty(cfg, len(ids), ids.shape[1], 'float32')
  x, cache = step(model.params, ids[:, :prefill], cache)
  got = [x[:, -1]]
  for t in range(prefill, ids.shape[1]):
    x, cache = step(model.params, ids[:, t : t + 1], cache)
    got.append(x[:, 0])
  got = np.asarray(qwen.unembed(model.params, jnp.stack(got, 1)))[:, -want.shape[1] :]
  assert np.abs(got - want).max() < 1e-4
  assert np.abs(np.asarray(model.logits(ids))[:, -want.shape[1] :] - want).max() > 0.1  # the full pass has another base


def test_greedy_answer(model, cases):
  ids = cases['greedy/ids'][0].tolist()
  prompt = next(n for n in range(1, len(ids)) if ids[:n] != cases['short/input_ids'][0][:n].tolist()) - 1
  assert 0 < prompt < len(ids)
  (answer,) = model.generate_ids([ids[:prompt]], max_new_tokens=len(ids) - prompt)
  assert answer == ids[prompt:]


def test_loss_and_gradients(model, cases):
  ids, labels = cases['short/input_ids'].astype(np.int32), cases['loss/labels']
  targets, weights = np.roll(labels, -1, axis=1), np.roll(labels != -100, -1, axis=1).astype(np.float32)
  weights[:, -1] = 0

  def mean(params):
    logits = qwen.unembed(params, qwen.forward(params, model.config, ids, compute=Compute(training=True)))
    total, weight = loss.cross_entropy(logits, np.maximum(targets, 0).astype(np.int32), weights)
    return total / weight

  value, grads = jax.jit(jax.value_and_grad(mean))(model.params)
  assert float(value) == pytest.approx(float(cases['loss/value']), abs=1e-5)
  for tensor in layouts.file_tensors(model.config, 'qwen1'):
    got = []
    for path, layer in tensor.parts:
      part = np.asarray(hf.weight_at(grads, path))
      got.append((part if layer is None else part[layer]).reshape(-1, *tensor.shape[1:]))
    got = np.concatenate(got)
    want = cases[f'grad/{tensor.name}']
    assert np.abs(got - want).max() < 1e-5 + 1e-4 * np.abs(want).max(), tensor.name


@pytest.mark.parametrize('source', ['.', 'sharded'])
def test_there_and_back_is_bit_equal(source, tmp_path):
  import safetensors.numpy

  assert main(['convert', 'from-hf', str(FIXTURE / source), str(tmp_path / 'ours')]) == 0
  assert main(['convert', 'to-hf', str(tmp_path / 'ours'), str(tmp_path / 'out'), '--layout', 'qwen1']) == 0
  before, after = (safetensors.numpy.load_file(d / 'model.safetensors') for d in (FIXTURE, tmp_path / 'out'))
  assert set(before) == set(after)
  for name, tensor in before.items():
    assert after[name].dtype == tensor.dtype and (after[name] == tensor).all(), name
  values, original = (json.loads((d / 'config.json').read_text()) for d in (tmp_path / 'out', FIXTURE))
  for name in set(original) & set(values) - {'transformers_version'}:
    assert values[name] == original[name], name
  assert hf.read_config(str(tmp_path / 'out')) == hf.read_config(str(FIXTURE))


def test_as_qwen2_for_transformers(tmp_path, cases, capsys):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  assert main(['convert', 'to-hf', str(FIXTURE), str(tmp_path / 'out')]) == 0
  assert 'positions end at 32' in capsys.readouterr().err
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert type(theirs).__name__ == 'Qwen2ForCausalLM'
  assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
  for name in ('short', 'at_limit', 'long_train_mode'):
    ids, _, want = case(cases, name)
    with torch.no_grad():
      assert np.abs(theirs(torch.tensor(ids)).logits.numpy() - want).max() < 1e-4, name
  assert theirs.config.max_position_embeddings == 32  # past it the two differ


def test_base_of_each_length():
  """max(2^ceil(log2(length / seq_length) + 1) - 1, 1), the original's words, in float64."""
  lengths = np.array([1, 31, 32, 33, 63, 64, 65, 96, 128, 129, 1024, 2048])
  alpha = np.maximum(2.0 ** np.ceil(np.log2(lengths / 32) + 1) - 1, 1)
  got = ntk_theta(10_000.0, lengths[None], 32, 16)
  np.testing.assert_allclose(got[0], 10_000.0 * alpha ** (16 / 14), rtol=1e-6)


def test_configs_of_august_2023(tmp_path):
  shutil.copytree(FIXTURE, tmp_path / 'old', ignore=shutil.ignore_patterns('sharded', 'logits.npz', 'README.md'))
  values = json.loads((FIXTURE / 'config.json').read_text())
  old = {
    'n_embd': values.pop('hidden_size'),
    'n_layer': values.pop('num_hidden_layers'),
    'n_head': values.pop('num_attention_heads'),
    'ffn_hidden_size': values.pop('intermediate_size'),
    'n_positions': values.pop('max_position_embeddings'),
    'padded_vocab_size': 320,
    'vocab_size': 311,  # of the tokenizer, then
    'activation': 'swiglu',
  }
  (tmp_path / 'old' / 'config.json').write_text(json.dumps(values | old))
  assert hf.read_config(str(tmp_path / 'old')) == hf.read_config(str(FIXTURE))
  assert check.compare_models(str(tmp_path / 'old'), str(FIXTURE))['max_logit_difference'] == 0


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'rotary_pct': 0.5, 'no_bias': False, 'activation': 'gelu'}, "no_bias False; rotary_pct 0.5; activation 'gelu'"),
    ({'seq_length': None}, 'set it'),
    ({'kv_channels': 'sixteen'}, 'must be a whole number'),
    ({'intermediate_size': 223}, 'not twice a width'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'layer_norm_epsilon': None, 'rotary_emb_base': None}, 'no rms_norm_eps, rope_theta'),
  ],
)
def test_configs_that_are_refused(changes, message, tmp_path):
  values = json.loads((FIXTURE / 'config.json').read_text()) | changes
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(UserError) as error:
    hf.read_config(str(tmp_path))
  assert message in str(error.value) and str(tmp_path / 'config.json') in str(error.value)


def test_layout_qwen1_holds_only_what_it_can(tiny_config):
  with pytest.raises(UserError, match='qkv_bias=False, qk_norm=True, grouped-query attention, a tied head'):
    layouts.choose(tiny_config('qwen3', tie_word_embeddings=True), 'qwen1')
  assert layouts.choose(tiny_config('qwen2', num_key_value_heads=6), 'qwen1') == 'qwen1'
