"""Adapters on a frozen base: their gradients, what they cost, and that they and the merged weights compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_batches import examples_of, one_per_row, train_config

from mathqwen.adapter_config import AdapterConfig
from mathqwen.config import Experiment, MeshConfig, OptimConfig
from mathqwen.data import packing, shared_prompts
from mathqwen.errors import UserError
from mathqwen.hardware import cost, sharding
from mathqwen.hardware.flops import Shape, model_flops
from mathqwen.model import frozen, lora, qwen
from mathqwen.model.adapted import Adapted, lengths, with_dropout
from mathqwen.model.compute import Dropout
from mathqwen.training import loss, offload, optim
from mathqwen.training import step as step_lib

# Qwen-1 has as many key heads as query heads, and acts on lengths beyond seq_length only outside of training.
QWEN1 = {'num_key_value_heads': 6, 'seq_length': 8, 'use_dynamic_ntk': True, 'use_logn_attn': True}


def random_adapters(cfg, adapter, seed=1):
  """None of them zeros, as B would be before training."""
  rng = np.random.default_rng(seed)
  draw = lambda struct: jnp.asarray(0.1 * rng.standard_normal(struct.shape), jnp.float32)
  trained = jax.tree.map(draw, lora.trained(cfg, adapter))
  for parts in trained['layers'].values():
    if adapter.dora:
      parts['magnitude'] = 1 + jnp.abs(parts['magnitude'])
  return trained


def merged(base, trained, adapter):
  joined = lora.join(base, trained, adapter)['layers']
  of_layers = {name: lora.merged(joined[name], 'float32') for name in trained['layers']}
  return base | {'layers': base['layers'] | of_layers}


def gradients(params, batch, cfg, train, base=None):
  run = jax.jit(lambda p, b, base: step_lib.gradients(p, b, jax.random.key(0), cfg=cfg, train=train, base=base))
  return run(params, batch, base)


@pytest.mark.parametrize(
  'family, adapter, train',
  [
    ('qwen1', {'rank': 4}, {'remat': 'full', 'micro_batches': 2}),
    ('qwen3', {'rank': 3, 'rank_stabilized': True, 'targets': ('v', 'o', 'up')}, {'remat': 'nested'}),
  ],
)
def test_gradients_are_those_of_the_merged_weights(family, adapter, train, tiny_config, random_params):
  """dA = scale B^T dW and dB = scale dW A^T, where dW is the gradient of the merged weight."""
  cfg = tiny_config(**QWEN1) if family == 'qwen1' else tiny_config(family)
  adapter = AdapterConfig(**adapter)
  base, trained = random_params(cfg), random_adapters(cfg, adapter)
  batch = packing.pack(examples_of(9), 24)
  batch = {key: rows[: len(rows) // 2 * 2] for key, rows in batch.items()}
  plain = merged(base, trained, adapter)
  whole, want_sum, _ = gradients(plain, batch, cfg, train_config())
  got, loss_sum, _ = gradients(trained, batch, cfg, train_config(adapter=adapter, **train), base)
  assert float(loss_sum) == pytest.approx(float(want_sum), rel=2e-6)
  assert set(got) == {'layers'} and set(got['layers']) == set(adapter.targets)
  for weight, parts in trained['layers'].items():
    L, rank = cfg.num_hidden_layers, adapter.rank
    a, b = parts['a'].reshape(L, rank, -1), parts['b'].reshape(L, -1, rank)
    dw = np.float64(whole['layers'][weight].reshape(L, b.shape[1], a.shape[2]))
    for part, want in (('a', b.swapaxes(1, 2) @ dw), ('b', dw @ a.swapaxes(1, 2))):
      want = adapter.scale * want.reshape(parts[part].shape)
      np.testing.assert_allclose(
        got['layers'][weight][part], want, rtol=0, atol=2e-5 * np.abs(want).max(), err_msg=f'{weight} {part}'
      )
  forward = jax.jit(lambda p: qwen.unembed(p, qwen.forward(p, cfg, batch['tokens'], batch['segment_ids'])))
  apart = forward(lora.join(base, trained, adapter))
  assert np.abs(apart - forward(plain)).max() < 1e-5 * np.abs(apart).max()
  assert np.abs(apart - forward(base)).max() > 0.1


def test_dropout_in_adapters_is_the_same_with_every_remat(tiny_config, random_params):
  """Also with 'nested', which computes every second token of the MLP apart."""
  cfg = tiny_config(num_hidden_layers=1)
  adapter = AdapterConfig(rank=2, dropout=0.5, targets=('gate', 'down'))
  base, trained = random_params(cfg), random_adapters(cfg, adapter)
  batch = packing.pack(examples_of(9), 24)
  losses = {
    remat: float(gradients(trained, batch, cfg, train_config(adapter=adapter, remat=remat), base)[1])
    for remat in ('none', 'nested')
  }
  assert losses['nested'] == pytest.approx(losses['none'], rel=1e-6)
  kept = AdapterConfig(rank=2, targets=('gate', 'down'))
  plain = float(gradients(trained, batch, cfg, train_config(adapter=kept), base)[1])
  assert abs(plain - losses['none']) > 1e-4 * plain


def test_every_matrix_of_every_layer_has_dropout_of_its_own(tiny_config, random_params):
  cfg, adapter = tiny_config(), AdapterConfig(rank=2, dropout=0.5)
  weights = lora.join(random_params(cfg), random_adapters(cfg, adapter), adapter)['layers']
  dropout, ones = Dropout(adapter.dropout, jax.random.key(0)), jnp.ones((1, 4, 8))
  masks = {
    np.asarray(weight.drop(ones)).tobytes()
    for index in range(3)
    for weight in with_dropout(weights, dropout, index).values()
    if isinstance(weight, Adapted)
  }
  assert len(masks) == 3 * 7


def test_adapters_and_residual_branches_draw_from_keys_of_their_own(tiny_config, random_params, monkeypatch):
  """Their places in the model have the same numbers."""
  cfg, adapter = tiny_config(num_hidden_layers=1), AdapterConfig(rank=2, dropout=0.5)
  base, trained = random_params(cfg), random_adapters(cfg, adapter)
  computes, forward = [], qwen.forward
  monkeypatch.setattr(qwen, 'forward', lambda *args: computes.append(args[-1]) or forward(*args))
  rows, key = one_per_row(examples_of(2), 12), jax.random.key(0)
  step_lib.loss_fn(trained, rows, key, cfg=cfg, train=train_config(adapter=adapter, dropout=0.5), base=base)
  (compute,) = computes
  assert compute.adapter_dropout.key != compute.dropout.key


def test_adapters_multiply_in_the_dtype_of_the_computation():
  """All but the lengths of DoRA."""
  weight = Adapted(*(jnp.ones(shape) for shape in ((4, 3), (2, 3), (4, 2), (4,))), outputs=1, scale=1.0)
  cast = weight.cast(lambda x: x.astype('bfloat16'))
  assert {cast.base.dtype, cast.a.dtype, cast.b.dtype} == {jnp.dtype('bfloat16')} and cast.magnitude.dtype == 'float32'


def test_no_two_matrices_begin_with_the_same_adapter(tiny_config):
  """Not even in part: q, k, v, gate and up have equal inputs, and so have the layers."""
  cfg, adapter = tiny_config(), AdapterConfig(rank=2)
  of_matrices = lora.init(jax.random.key(0), cfg, adapter)['layers']
  inputs = [row[:4].tobytes() for parts in of_matrices.values() for row in np.asarray(parts['a']).reshape(-1, 48)]
  assert len(set(inputs)) == len(inputs) >= 5 * 3 * 2


def test_dropout_with_dora_is_that_of_peft():
  """The share of the base in the product changes, too."""
  torch, peft = pytest.importorskip('torch'), pytest.importorskip('peft')
  rng = np.random.default_rng(0)
  w, a, b, mask, x = (
    np.float32(rng.standard_normal(shape)) for shape in ((6, 8), (2, 8), (6, 2), (1, 3, 8), (1, 3, 8))
  )
  magnitude = 1 + np.abs(w[:, 0])

  class Masked(torch.nn.Module):
    def forward(self, x):
      return x * torch.from_numpy(mask)

  base = torch.nn.Linear(8, 6, bias=False)
  base.weight.data = torch.from_numpy(w)
  config = peft.LoraConfig(r=2, lora_alpha=3, lora_dropout=0.5, use_dora=True, target_modules=['0'])
  theirs = peft.get_peft_model(torch.nn.Sequential(base), config).base_model.model[0]
  theirs.lora_A['default'].weight.data, theirs.lora_B['default'].weight.data = map(torch.from_numpy, (a, b))
  theirs.lora_magnitude_vector['default'].weight.data = torch.from_numpy(magnitude)
  theirs.lora_dropout['default'] = Masked()
  weight = Adapted(*map(jnp.asarray, (w, a, b, magnitude)), outputs=1, scale=1.5, drop=lambda x, half=None: x * mask)
  want = theirs.train()(torch.from_numpy(x)).detach().numpy()
  np.testing.assert_allclose(weight.product(jnp.asarray(x)), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('drop', [None, lambda x, half=None: x])
def test_lengths_of_dora_count_in_bfloat16(drop):
  """Also by less than a step of bfloat16, 0.8% above 1: what is trained is what the merged weights compute."""
  rng = np.random.default_rng(0)
  w, x, a, b = (jnp.asarray(rng.standard_normal(s), 'bfloat16') for s in ((64, 32), (2, 40, 32), (4, 32), (64, 4)))
  weight = Adapted(w, a, b, None, outputs=1, scale=0.1, drop=drop)
  weight = weight.replaced(magnitude=1.002 * lengths(weight))
  stacked = jax.tree.map(lambda part: part[None], weight.replaced(drop=None))
  want = jnp.einsum('BTI,OI->BTO', jnp.float32(x), lora.merged(stacked, 'float32')[0])
  got = weight.product(x)
  assert got.dtype == jnp.bfloat16
  ratio = float(jnp.sum(jnp.float32(got) * want) / jnp.sum(want * want))
  assert ratio == pytest.approx(1, abs=5e-4)


def test_the_moments_of_adapters_may_be_smaller_or_on_the_host(tiny_config, random_params):
  cfg, adapter = tiny_config(num_hidden_layers=1), AdapterConfig(4, targets=('q', 'down'), dora=True)
  base, batch = random_params(cfg), one_per_row(examples_of(4), 12)

  def losses_and_moments(**changes):
    step = Stepper(cfg, base, adapter, OptimConfig(learning_rate=1e-2, warmup_steps=0, **changes))
    return [step(batch)['loss_sum'] for _ in range(4)], [x for x in jax.tree.leaves(step.state.opt_state) if x.ndim]

  want, _ = losses_and_moments()
  losses, moments = losses_and_moments(name='adamw_8bit')
  assert losses == pytest.approx(want, rel=1e-3) and losses[-1] < losses[0]
  assert {x.dtype.name for x in moments} == {'float8_e4m3fn', 'float32'}  # of lengths, which are vectors, float32
  try:
    offload.check()
  except UserError:
    pytest.skip('JAX 0.7 has no memory of the host beside a CPU')
  losses, moments = losses_and_moments(offload=True)
  assert losses == pytest.approx(want, rel=1e-5)
  assert {x.sharding.memory_kind for x in moments} == {offload.KIND}


def test_answers_that_share_a_question_teach_adapters_what_they_teach_alone(
  tiny_config, random_params, questions_and_answers
):
  cfg = tiny_config('qwen2', num_hidden_layers=1)
  adapter = AdapterConfig(3, targets=('k', 'o', 'up'), base='int8', dora=True)
  layers = {name: frozen.hold(w, ('layers', name), 'int8') for name, w in random_params(cfg)['layers'].items()}
  base, trained = random_params(cfg) | {'layers': layers}, random_adapters(cfg, adapter)
  examples = questions_and_answers([4, 1, 3])
  shared, alone = shared_prompts.pack(examples, 32), one_per_row(examples, 16)
  assert shared['answer_ids'].max() > 1
  got, want = (gradients(trained, batch, cfg, train_config(adapter=adapter), base) for batch in (shared, alone))
  assert float(got[1]) == pytest.approx(float(want[1]), rel=2e-6)
  for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


# --- beside PEFT ---

PEFT = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


class Stepper:
  """The compiled step of an experiment with adapters, on one device."""

  def __init__(self, cfg, base, adapter, optim_config, **changes):
    train = train_config(steps=100, adapter=adapter, **changes)
    experiment = Experiment(cfg, optim=optim_config, train=train)
    self.mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optim.optimizer(optim_config, 100)
    self.base = jax.tree.map(lambda w: jnp.asarray(w, adapter.base), base)
    self.state = step_lib.init_state(self.mesh, cfg, tx, 0, adapter=adapter, base=self.base)
    self.compiled = step_lib.compile_step(self.mesh, cfg, experiment, tx)

  def __call__(self, batch):
    self.state, metrics = self.compiled(self.state, self.base, sharding.global_batch(batch, self.mesh))
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
  'family, changes, adapter, options',
  [
    ('qwen2', {'num_key_value_heads': 6}, {'targets': ('q', 'v')}, {'target_modules': ['q_proj', 'v_proj']}),  # Qwen-1
    ('qwen2', {}, {}, {}),
    ('qwen3', {}, {'rank_stabilized': True, 'alpha': 5.0}, {'use_rslora': True, 'lora_alpha': 5.0}),
    ('llama', {'tie_word_embeddings': True}, {'dora': True}, {'use_dora': True}),
  ],
)
def test_twenty_steps_of_peft(family, changes, adapter, options, torch_model, from_torch):
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft', reason='PEFT, of the extra dev, is not installed')
  reference = torch_model(family, num_hidden_layers=2, **changes)
  cfg, base = from_torch(reference)
  adapter = AdapterConfig(**{'rank': 4, 'alpha': 8.0, 'base': 'float32'} | adapter)
  step = Stepper(cfg, base, adapter, OptimConfig(learning_rate=2e-2, warmup_steps=40))
  options = {'r': 4, 'lora_alpha': 8, 'target_modules': PEFT} | options
  torch.manual_seed(0)
  model = peft.get_peft_model(reference, peft.LoraConfig(task_type='CAUSAL_LM', **options))
  trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

  def ours_of(name):
    """Our array at the place of '...layers.1.self_attn.q_proj.lora_A.default.weight', in its shape."""
    *_, layer, _, module, part, _, _ = name.removesuffix('.weight').split('.') + ['weight']
    ours = {'lora_A': 'a', 'lora_B': 'b', 'lora_magnitude_vector': 'magnitude'}[part]
    found = np.asarray(step.state.params['layers'][module.removesuffix('_proj')][ours][int(layer)])
    return torch.tensor(found.reshape(trained[name].shape))

  for name, weight in trained.items():
    start = ours_of(name)
    if 'lora_A' in name:  # drawn, within the same bounds
      bound = weight.shape[1] ** -0.5
      assert all(0.9 * bound < drawn.abs().max() <= bound for drawn in (start, weight))
    else:
      assert torch.allclose(start, weight, atol=1e-5)
    weight.data = start.clone()

  decays = [weight for name, weight in trained.items() if 'magnitude' not in name]
  lengths = [weight for name, weight in trained.items() if 'magnitude' in name]
  groups = [{'params': part, 'weight_decay': decay} for part, decay in ((decays, 0.1), (lengths, 0.0)) if part]
  tx = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
  losses = []
  for i in range(20):
    batch = one_per_row(examples_of(4, seed=i % 5), 12)
    tokens, targets, weights = (torch.tensor(batch[n]) for n in ('tokens', 'targets', 'loss_weights'))
    nll = torch.nn.functional.cross_entropy(
      model(input_ids=tokens).logits.flatten(0, 1), targets.long().flatten(), reduction='none'
    )
    mean = (nll * weights.flatten()).sum() / weights.sum()
    tx.zero_grad()
    mean.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0))
    for group in tx.param_groups:
      group['lr'] = 2e-2 * i / 40
    tx.step()
    metrics = step(batch)
    losses.append(metrics['loss_sum'] / metrics['loss_tokens'])
    assert abs(losses[-1] - float(mean.detach())) < 1e-4, i
    assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-3)
  assert losses[15] < losses[0] - 0.1
  for name, weight in trained.items():
    assert (ours_of(name) - weight.detach()).abs().max() < 2e-4, name


# --- what a step costs, and leaves ---


def test_a_step_multiplies_no_more_than_it_needs_and_leaves_the_base(tiny_config, random_params):
  """No gradient of a frozen weight, of the head neither; and a loss that is not finite leaves the adapters, too."""
  cfg, adapter = tiny_config(), AdapterConfig(4, targets=('q', 'down'))
  step = Stepper(cfg, random_params(cfg), adapter, OptimConfig(learning_rate=1e-2, warmup_steps=0))
  batch = one_per_row(examples_of(4), 12)
  full = Experiment(cfg, optim=OptimConfig(warmup_steps=0), train=train_config(steps=100))
  tx = optim.optimizer(full.optim, 100)
  abstract = step_lib.abstract_state(step.mesh, cfg, tx)
  on_mesh = sharding.global_batch(batch, step.mesh)
  whole = step_lib.compile_step(step.mesh, cfg, full, tx).trace(abstract, on_mesh)
  traced = step.compiled.trace(step.state, step.base, on_mesh)
  B, T = batch['tokens'].shape
  turns = loss.turns(B * T, train_config().loss_chunk)
  of_step, of_whole = (cost.matmul_flops(each.jaxpr, turns) for each in (traced, whole))
  shape = Shape(cfg)
  head = 2 * shape.head * sum(count * size for count, size in zip(turns, (6, 3, 1), strict=True))
  gradients = 2 * B * T * cfg.num_hidden_layers * shape.layer + head
  assert of_whole - of_step == gradients - 6 * B * T * shape.adapters(adapter)
  assert model_flops(cfg, B, T) - model_flops(cfg, B, T, adapter) == (
    2 * B * T * (cfg.num_hidden_layers * shape.layer + shape.head) - 6 * B * T * shape.adapters(adapter)
  )

  before = jax.tree.map(np.asarray, step.base)
  first = step(batch)
  assert not first['skipped'] and first['loss_sum'] > 0
  after = jax.tree.map(np.asarray, step.state.params)
  good, step.base = step.base, step.base | {'norm': step.base['norm'].at[0].set(np.nan)}
  assert step(batch)['skipped'] and int(step.state.step) == 2
  jax.tree.map(np.testing.assert_array_equal, step.state.params, after)
  step.base = good
  assert not step(batch)['skipped'] and step.compiled._cache_size() == 1
  assert all(bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (step.state.params, after)), strict=True))
  jax.tree.map(np.testing.assert_array_equal, step.base, before)
