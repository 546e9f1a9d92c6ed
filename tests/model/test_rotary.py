"""Rotary scaling past the original length is that of transformers: whole sequences, packed rows, cached decoding."""

import copy
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen import config, hf
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.hf import config_json, layouts
from mathqwen.inference import generate
from mathqwen.model import compute, qwen, rotary
from mathqwen.model.config import NO_ROPE_SCALING, ROPE_FIELDS, RopeScaling

ORIGINAL = 16
LONG = 48  # tokens: three times the length of pretraining
LLAMA3 = {'factor': 8.0, 'original_max_position_embeddings': ORIGINAL, 'low_freq_factor': 0.5, 'high_freq_factor': 2.0}
YARN = {'factor': 4.0, 'original_max_position_embeddings': ORIGINAL, 'beta_fast': 4.0, 'beta_slow': 0.5}
LONGROPE = {
  'original_max_position_embeddings': ORIGINAL,
  'short_factor': [1.0, 1.1, 1.2, 1.5],
  'long_factor': [1.0, 2.0, 3.5, 4.0],
}
# kind -> (parameters, max_position_embeddings)
KINDS = {
  'linear': ({'rope_type': 'linear', 'factor': 3.0}, ORIGINAL),
  'dynamic': ({'rope_type': 'dynamic', 'factor': 3.0}, ORIGINAL),
  'llama3': ({'rope_type': 'llama3', **LLAMA3}, 128),
  'yarn': ({'rope_type': 'yarn', **YARN}, 64),
  'yarn, all fields': ({'rope_type': 'yarn', **YARN, 'mscale': 0.7, 'mscale_all_dim': 0.5, 'truncate': False}, 64),
  'yarn, attention factor': ({'rope_type': 'yarn', **YARN, 'attention_factor': 1.7}, 64),
  'longrope': ({'rope_type': 'longrope', **LONGROPE}, 64),
}
assert {parameters['rope_type'] for parameters, _ in KINDS.values()} == set(ROPE_FIELDS) - {'default'}


@functools.partial(jax.jit, static_argnames='cfg')
def packed_logits(params, cfg, tokens, segment_ids, positions):
  return qwen.unembed(params, qwen.forward(params, cfg, tokens, segment_ids, positions))


@functools.partial(jax.jit, static_argnames=('cfg', 'length', 'decoder'))
def decoded_logits(params, cfg, tokens, length, decoder):
  """Logits of the tokens from `length` on, one at a time after a prefill of those before."""
  params = decoder.pack(params, cfg, 1)
  plain = compute.Compute()
  keys, values = decoder.prefill(params, cfg, tokens[:, :length], jnp.array([length]), plain)
  cache = decoder.empty_cache(cfg, 1, 64, 'float32')
  cache = cache.admit(jnp.array([0]), keys, values, jnp.array([length]), jnp.array([length]))
  found = []
  for at in range(length, tokens.shape[1]):
    x, cache = decoder.decode_step(params, cfg, tokens[:, at : at + 1], cache, plain)
    found.append(qwen.unembed(params, x)[:, 0])
  return jnp.stack(found, 1)


@pytest.mark.parametrize('kind', KINDS)
def test_logits_of_transformers(kind, torch_model, from_torch, tmp_path):
  import torch

  parameters, positions = KINDS[kind]
  reference = torch_model(
    'llama',
    num_hidden_layers=1,
    max_position_embeddings=positions,
    rope_parameters={**parameters, 'rope_theta': 500.0},
  )
  cfg, params = from_torch(reference)
  assert cfg.rope_scaling.rope_type == parameters['rope_type'] and cfg.longest >= LONG
  rng = np.random.default_rng(0)
  long, short = (rng.integers(0, 97, (1, n)).astype(np.int32) for n in (LONG, 12))
  with torch.no_grad():
    want = [reference(torch.tensor(tokens)).logits.numpy() for tokens in (long, short)]
    # The answer's last two tokens, with a cache of those before.
    past = reference(torch.tensor(long[:, :-2]), use_cache=True).past_key_values
    steps = []
    for at in (LONG - 2, LONG - 1):
      step = reference(torch.tensor(long[:, at : at + 1]), past_key_values=past, use_cache=True)
      steps.append(step.logits.numpy())

  packed = np.concatenate([long, short], axis=1)
  segment_ids = np.repeat(np.array([[1, 2]], np.int32), (LONG, 12), axis=1)
  at = np.array([[*range(LONG), *range(12)]], np.int32)
  got = packed_logits(params, cfg, packed, segment_ids, at)
  assert np.abs(want[0]).max() > 2
  assert np.abs(got - np.concatenate(want, axis=1)).max() < 1e-4
  # Not the logits of a model that is not scaled.
  plain = rotary.frequencies(dataclasses.replace(cfg, rope_scaling=NO_ROPE_SCALING))[0]
  scaled = rotary.frequencies(cfg, jnp.array([[LONG]]))[0]
  assert np.abs(scaled / plain - 1).max() > 0.3

  decoder = generate.CPU if kind in ('dynamic', 'yarn') else generate.ACCELERATOR
  decoded = decoded_logits(params, cfg, long, LONG - 2, decoder)
  assert np.abs(decoded - np.concatenate(steps, axis=1)).max() < 1e-4
  if kind != 'dynamic':  # whose frequencies change with each token, and earlier keys keep theirs
    assert np.abs(decoded - got[:, LONG - 2 : LONG]).max() < 1e-4

  # Out in the form of each version of transformers, and in again.
  written = config_json.make(cfg, None, 'float32', 'llama')
  for other in ('rope_scaling', 'rope_parameters'):
    assert config_json.parse({key: x for key, x in written.items() if key != other}, 'config.json')[0] == cfg
  theirs = transformers_config(written)
  assert theirs.rope_parameters == {**reference.config.rope_parameters, **theirs.rope_parameters}


def transformers_config(values):
  import transformers

  return transformers.AutoConfig.for_model(**copy.deepcopy(values))


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'rope_type': 'linear', 'beta_fast': 3.0}, 'beta_fast is set, and rope_type linear does not read it'),
    ({'factor': 2.0}, 'factor is set, and rope_type default does not read it'),
    ({'rope_type': 'yarn', 'factor': 2.0}, 'rope_type yarn needs model.rope_scaling.original_max_position_embeddings'),
    ({'rope_type': 'llama3', **LLAMA3, 'low_freq_factor': 2.0}, 'low_freq_factor 2.0 is not below'),
    ({'rope_type': 'linear', 'factor': 0.0}, 'factor is 0.0: it must be from 1e-06 to 1000000.0'),
    ({'rope_type': 'yarm'}, "did you mean 'yarn'"),
  ],
)
def test_settings_that_are_refused(fields, message):
  with pytest.raises(UserError, match=re.escape(message)):
    RopeScaling(**fields)


def test_a_number_for_each_frequency(tiny_config):
  scaling = RopeScaling('longrope', 4.0, ORIGINAL, short_factor=(1.0,) * 3, long_factor=(1.0,) * 3)
  with pytest.raises(UserError, match='short_factor has 3 numbers, and model.head_dim 8 has 4 frequencies'):
    tiny_config(rope_scaling=scaling)


@pytest.mark.parametrize(
  'scaling, longest',
  [
    (RopeScaling('linear', 4.0), 512),
    (RopeScaling('dynamic', 2.5), 320),
    (RopeScaling('yarn', 4.0, 100), 400),
    (RopeScaling('yarn', 4.0, 16), 128),
    (RopeScaling('llama3', 8.0, 16, 1.0, 4.0), 128),
    (RopeScaling('linear', 0.5), 128),
  ],
)
def test_longest_sequence(scaling, longest, tiny_config):
  assert tiny_config(rope_scaling=scaling).longest == longest


def test_scaling_is_part_of_an_experiment(tiny_config):
  experiment = config.Experiment(model=tiny_config(rope_scaling=RopeScaling('yarn', 4.0, 32, beta_fast=16.0)))
  assert config.from_json(config.to_json(experiment), 'x') == experiment
  changed = config.override(experiment, ['model.rope_scaling.factor=2', 'model.rope_scaling.truncate=false'])
  assert str(changed.model.rope_scaling) == (
    'yarn, factor 2.0, original_max_position_embeddings 32, beta_fast 16.0, truncate False'
  )


def test_a_checkpoint_of_ours_keeps_it(tiny_config, random_params, tmp_path):
  scaling = RopeScaling('longrope', 4.0, 32, short_factor=(1.0, 1.5, 2.0, 2.5), long_factor=(1.0, 3.0, 4.0, 8.0))
  cfg = tiny_config('llama', num_hidden_layers=1, rope_scaling=scaling)
  params = random_params(cfg)
  hf.save(str(tmp_path / 'hf'), params, cfg, None)
  convert_from_hf(str(tmp_path / 'hf'), str(tmp_path / 'ours'), compare=False)
  convert_to_hf(str(tmp_path / 'ours'), str(tmp_path / 'again'), compare=False)
  for name in ('config.json', 'model.safetensors'):
    assert (tmp_path / 'hf' / name).read_bytes() == (tmp_path / 'again' / name).read_bytes()
  assert hf.read_config(str(tmp_path / 'again')) == cfg


def test_layouts_without_it(tiny_config):
  with pytest.raises(UserError, match='layout qwen1 cannot hold this model .rotary scaling.'):
    layouts.choose(tiny_config('qwen2', num_key_value_heads=6, rope_scaling=RopeScaling('linear', 2.0)), 'qwen1')
  with pytest.raises(UserError, match='both scale rotary embeddings'):
    tiny_config(use_dynamic_ntk=True, seq_length=8, rope_scaling=RopeScaling('linear', 2.0))


def test_packed_gradients_are_those_of_each_example(tiny_config, random_params):
  """Also where frequencies follow the length: that of the example, not of the row."""
  cfg = tiny_config(
    'llama', num_hidden_layers=1, max_position_embeddings=ORIGINAL, rope_scaling=RopeScaling('dynamic', 3.0)
  )

  @jax.jit
  def gradient(params, tokens, segment_ids, positions):
    def loss(p):
      hidden = qwen.forward(p, cfg, tokens, segment_ids, positions, compute.Compute(training=True))
      return jnp.sum(jnp.where(segment_ids[..., None] > 0, hidden, 0) ** 3)

    return jax.grad(loss)(params)

  params = random_params(cfg)
  tokens = np.random.default_rng(1).integers(0, 97, (1, LONG)).astype(np.int32)
  of_40, of_8 = np.arange(LONG) < 40, np.arange(LONG) >= 40
  positions = np.where(of_40, np.arange(LONG), np.arange(LONG) - 40)[None].astype(np.int32)
  row, first, second = (
    gradient(params, tokens, segments[None].astype(np.int32), positions * (segments > 0))
    for segments in (of_40 + 2 * of_8, 1 * of_40, 1 * of_8)
  )
  for whole, a, b in zip(*map(jax.tree.leaves, (row, first, second)), strict=True):
    np.testing.assert_allclose(whole, a + b, rtol=0, atol=1e-5 * np.abs(whole).max())
