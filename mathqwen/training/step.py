"""One training step: pure functions of arrays that need no files, flags or mesh."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mathqwen.adapter_config import NO_ADAPTER, AdapterConfig
from mathqwen.config import Experiment, TrainConfig
from mathqwen.data import packing, pairs, shared_prompts
from mathqwen.hardware import sharding
from mathqwen.model import attention, frozen, lora, parameters, qwen
from mathqwen.model.compute import Compute, Dropout
from mathqwen.model.config import ModelConfig
from mathqwen.training import dpo, loss, offload, optim

_ADAPTERS = 2**31 - 1  # folded into the key of a step, for dropout in adapters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step changes. On a mesh, `state_shardings` says where its leaves are."""

  step: jax.Array  # int32 [], steps taken so far
  params: dict  # float32 master weights; with adapters these alone, and the frozen base is an argument of the step
  opt_state: optax.OptState  # moments: float32, or 16 or 8 bits (`small_moments.py`)


def loss_fn(
  params: dict,
  rows: dict[str, jax.Array],
  key: jax.Array | None,
  *,
  cfg: ModelConfig,
  train: TrainConfig,
  mesh: Mesh | None = None,
  numbers: jax.Array | None = None,
  base: dict | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(sum of loss, other sums by name) of packed rows [B, T], float32 scalars; `loss.divisor` says what divides them.

  key: for dropout; None turns it off. mesh: None is one default device. numbers: of the rows in the global batch, int32
  [B]; None: 0, 1, ... base: the frozen weights, as `TrainConfig.frozen` has them: those that `params` are adapters of,
  and the reference for pairs, which has neither adapters nor dropout.
  """
  adapter = train.adapter
  head_is_frozen = adapter.rank > 0
  if head_is_frozen:
    params = lora.join(base, params, adapter)
  placement = sharding.placement(mesh, cfg.vocab_size)
  attend = attention.select(train.attention, mesh, train.compute_dtype)
  if 'answer_ids' in rows:
    attend = functools.partial(attend, answer_ids_BT=rows['answer_ids'])
  compute = Compute(
    dtype=train.compute_dtype,
    remat=train.remat,
    dropout=Dropout(train.dropout, key, numbers),
    adapter_dropout=Dropout(adapter.dropout, None if key is None else jax.random.fold_in(key, _ADAPTERS), numbers),
    attention=attend,
    placement=placement,
    training=True,
  )
  parts = (1, 1) if mesh is None else (sharding.batch_shards(dict(mesh.shape)), mesh.shape['context'])

  def at_head(function, params, compute):
    """`head_cross_entropy` or `token_log_probs` of what the model with these weights computes."""
    x_BTD = qwen.forward(params, cfg, rows['tokens'], rows['segment_ids'], rows['positions'], compute)
    inputs = (x_BTD, qwen.head(params), rows['targets'], rows['loss_weights'])
    return function(*inputs, train.loss_chunk, parts, placement, head_is_frozen)

  if train.objective == 'sft':
    loss_sum, weight = at_head(loss.head_cross_entropy, params, compute)
    return loss_sum, {'loss_tokens': weight}
  log_probs_BT = at_head(loss.token_log_probs, params, compute)
  plain = dataclasses.replace(compute, dropout=Dropout(), adapter_dropout=Dropout())
  reference_BT = at_head(loss.token_log_probs, base, plain)
  how = (rows['pair_ids'], rows['loss_weights'], train.dpo_beta, train.dpo_form)
  loss_sum, sums = dpo.loss(log_probs_BT, reference_BT, *how)
  return loss_sum, sums | {'loss_tokens': jnp.sum(rows['loss_weights'])}


def gradients(
  params: dict,
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  cfg: ModelConfig,
  train: TrainConfig,
  mesh: Mesh | None = None,
  base: dict | None = None,
) -> tuple[dict, jax.Array, dict[str, jax.Array]]:
  """(gradient of the mean loss over all loss tokens or pairs of the batch, sum of loss, other sums).

  batch: packed rows, int32 and float32 [B, T] by name. key: for dropout, of this step. base: as in `loss_fn`.
  Sums are added up over the micro-batches and divided once. A mean of means would weigh each token by the number of
  loss tokens in its micro-batch, and each pair by that of pairs.
  """
  grad_fn = jax.value_and_grad(functools.partial(loss_fn, cfg=cfg, train=train, mesh=mesh, base=base), has_aux=True)
  placement = sharding.placement(mesh, cfg.vocab_size)
  axes = lora.trained_axes(cfg, train.adapter)
  drops = train.dropout > 0 or train.adapter.dropout > 0
  M = train.micro_batches

  def micro_batch(rows, numbers):
    (loss_sum, sums), grads = grad_fn(params, rows, key if drops else None, numbers=numbers)
    grads = placement.tree(grads, axes)
    # Without this barrier, XLA for TPUs updates the embedding and the head in the layout in which their gradients
    # arrive, and holds copies of both and of their moments in that layout through the whole step: 0.4 GiB a chip for
    # Qwen2.5-7B on 16 chips.
    unstacked = {name: grad for name, grad in grads.items() if name != 'layers'}
    grads |= jax.lax.optimization_barrier(unstacked)
    return grads, loss_sum, sums

  def split(x_BT):
    """[B, ...] -> [M, B / M, ...], where part i has rows i, i + M, i + 2M, ...

    Each device holds a block of consecutive rows. With this stride every part has an equal share of each block. Parts
    of consecutive rows would have to travel between devices.
    """
    return jnp.swapaxes(x_BT.reshape(x_BT.shape[0] // M, M, *x_BT.shape[1:]), 0, 1)

  def add(total, rows_and_numbers):
    return jax.tree.map(jnp.add, total, micro_batch(*rows_and_numbers)), None

  if M == 1:
    grads, loss_sum, sums = micro_batch(batch, None)
  else:
    numbers = jnp.arange(len(batch['tokens']))
    zero_grads = placement.tree(jax.tree.map(jnp.zeros_like, params), axes)
    parts = (jax.tree.map(split, batch), split(numbers))
    first = jax.tree.map(lambda part: part[0], parts)
    zero_sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro_batch, *first)[1:])
    (grads, loss_sum, sums), _ = jax.lax.scan(add, (zero_grads, *zero_sums), parts)
  return jax.tree.map(lambda grad: grad / loss.divisor(sums), grads), loss_sum, sums


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  limits: jax.Array | None = None,
  *,
  base: dict | None = None,
  cfg: ModelConfig,
  train: TrainConfig,
  tx: optax.GradientTransformation,
  rate: optax.Schedule,
  mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One AdamW update on a batch of packed rows [B, T]. Returns the new state and scalar metrics.

  The metrics `loss_sum`, `loss_tokens`, `tokens` and those of pairs are sums over the batch, for the reader to add up
  and divide.
  Where the loss or the gradient's norm is not finite, weights and moments stay as they are, and `skipped` is True.
  limits: float32 [2], the mean loss and the gradient's norm above which it is the same; given with `train.skip_spikes`.
  base: the frozen weights, as in `loss_fn`.
  rate: the schedule inside `tx`. It is returned with the metrics, because evaluating it in the host loop would block on
  the running step.
  """
  # From the step's number alone: a resumed run draws the same masks.
  key = jax.random.fold_in(parameters.random_key(train.seed), state.step)
  grads, loss_sum, sums = gradients(state.params, batch, key, cfg=cfg, train=train, mesh=mesh, base=base)
  grad_norm = optax.tree.norm(grads)
  is_good = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm)
  if limits is not None:
    is_good &= (loss_sum / loss.divisor(sums) <= limits[0]) & (grad_norm <= limits[1])

  def advance(grads, opt_state, params):
    updates, new_state = tx.update(grads, opt_state, params)
    return keep_unless(is_good, (optax.apply_updates(params, updates), new_state), (params, opt_state))

  if isinstance(tx, offload.Offloaded):
    params, opt_state = offload.by_layer(advance, tx, grads, state.opt_state, state.params)
  else:
    params, opt_state = advance(grads, state.opt_state, state.params)
  metrics = {
    'loss_sum': loss_sum,
    **sums,
    'tokens': jnp.sum(batch['segment_ids'] > 0),
    'grad_norm': grad_norm,
    'learning_rate': jnp.asarray(rate(state.step), jnp.float32),
    'skipped': ~is_good,
  }
  return TrainState(state.step + 1, params, opt_state), metrics


def keep_unless(condition: jax.Array, new: Any, old: Any) -> Any:
  """`new` where `condition`, a bool [], holds; else the floating-point leaves of `old`.

  It selects inside the compiled step: if the host looked at the loss first, the devices would wait for it. Counters
  move on in any case, so that the schedule stays that of the step's number.
  """

  def select(new_leaf, old_leaf):
    is_counter = jnp.issubdtype(new_leaf.dtype, jnp.integer)
    return new_leaf if is_counter else jnp.where(condition, new_leaf, old_leaf)

  return jax.tree.map(select, new, old)


def eval_step(
  params: dict,
  batch: dict[str, jax.Array],
  base: dict | None = None,
  *,
  cfg: ModelConfig,
  train: TrainConfig,
  mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(sum of loss, other sums) of packed rows [B, T], float32 scalars, without dropout. base: as in `loss_fn`."""
  return loss_fn(params, batch, None, cfg=cfg, train=train, mesh=mesh, base=base)


def state_shardings(
  mesh: Mesh, cfg: ModelConfig, tx: optax.GradientTransformation, adapter: AdapterConfig = NO_ADAPTER
) -> TrainState:
  """The state's NamedShardings: a moment is where its weight is; counters are on every device."""
  params = sharding.params_shardings(mesh, cfg, lora.trained_axes(cfg, adapter))
  everywhere = sharding.replicated(mesh)

  def as_its_weight(part, weight_sharding):
    # The scales of 8-bit moments lack the weight's last axis.
    return offload.place(tx, NamedSharding(mesh, PartitionSpec(*weight_sharding.spec[: part.ndim])))

  opt_state = optax.tree_map_params(
    tx,
    as_its_weight,
    jax.eval_shape(tx.init, lora.trained(cfg, adapter)),
    params,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(everywhere, params, opt_state)


def abstract_state(
  mesh: Mesh, cfg: ModelConfig, tx: optax.GradientTransformation, adapter: AdapterConfig = NO_ADAPTER
) -> TrainState:
  """The state as ShapeDtypeStructs with shardings; allocates nothing."""
  state = jax.eval_shape(functools.partial(_first_state, tx=tx), lora.trained(cfg, adapter))
  with_sharding = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(with_sharding, state, state_shardings(mesh, cfg, tx, adapter))


def abstract_base(mesh: Mesh, cfg: ModelConfig, adapter: AdapterConfig) -> dict:
  """The frozen weights as ShapeDtypeStructs with shardings."""
  held = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(held, frozen.abstract(cfg, adapter.base_dtype, adapter.base), base_shardings(mesh, cfg, adapter))


def base_shardings(mesh: Mesh, cfg: ModelConfig, adapter: AdapterConfig) -> dict:
  """The NamedShardings of the frozen weights."""
  return sharding.params_shardings(mesh, cfg, frozen.logical_axes(cfg, adapter.base))


def abstract_batch(mesh: Mesh, experiment: Experiment, rows: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """A step's packed rows [B, T] as ShapeDtypeStructs with shardings. rows: B; None: data.batch_size."""
  shape = (rows or experiment.data.batch_size, experiment.data.seq_len)
  where = sharding.batch_sharding(mesh)
  features = packing.FEATURES
  if experiment.train.objective == 'dpo':
    features = pairs.FEATURES
  elif experiment.data.share_prompts:
    features = shared_prompts.FEATURES
  return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in features.items()}


def abstract_inputs(mesh: Mesh, experiment: Experiment, rows: int | None = None) -> tuple:
  """What the compiled step takes after the state, as ShapeDtypeStructs.

  With `train.frozen` the frozen base; the batch; with `train.skip_spikes` limits. rows: as in `abstract_batch`.
  """
  train = experiment.train
  base = (abstract_base(mesh, experiment.model, train.frozen),) if train.frozen else ()
  limits = (jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding.replicated(mesh)),) if train.skip_spikes else ()
  return *base, abstract_batch(mesh, experiment, rows), *limits


def place_limits(limits: tuple[float, float], mesh: Mesh) -> jax.Array:
  """`limits` of `train_step` on the mesh, from numbers that are the same on every host."""
  values = np.asarray(limits, np.float32)
  # Not `device_put`, which would first compare the values of all hosts.
  return jax.make_array_from_callback((2,), sharding.replicated(mesh), lambda index: values[index])


def bytes_per_device(tree: Any, of_host: bool = False) -> int:
  """Bytes that a tree of arrays, or of ShapeDtypeStructs with shardings, takes on each device.

  of_host: what it takes of the host's memory instead, for each device (`optim.offload`).
  """
  leaves = [x for x in jax.tree.leaves(tree) if (x.sharding.memory_kind == offload.KIND) == of_host]
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def compile_step(
  mesh: Mesh,
  cfg: ModelConfig,
  experiment: Experiment,
  tx: optax.GradientTransformation,
  micro_batches: int | None = None,
) -> jax.stages.Wrapped:
  """`train_step` under jax.jit: (state, *inputs) -> (state, metrics), inputs as in `abstract_inputs`.

  It donates the state. micro_batches: instead of those of `experiment`.
  """
  train = dataclasses.replace(experiment.train, micro_batches=micro_batches or experiment.train.micro_batches)
  rate = optim.schedule(experiment.optim, train.steps)
  state = state_shardings(mesh, cfg, tx, train.adapter)
  base = (base_shardings(mesh, cfg, train.frozen),) if train.frozen else ()
  limits = (sharding.replicated(mesh),) if train.skip_spikes else ()
  step = _train_step_on_base if train.frozen else train_step
  return jax.jit(
    functools.partial(step, cfg=cfg, train=train, tx=tx, rate=rate, mesh=mesh),
    in_shardings=(state, *base, sharding.batch_sharding(mesh), *limits),
    out_shardings=(state, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def _train_step_on_base(state, base, batch, limits=None, **how):
  """`train_step` with its inputs in the order of `abstract_inputs`."""
  return train_step(state, batch, limits, base=base, **how)


def init_state(
  mesh: Mesh,
  cfg: ModelConfig,
  tx: optax.GradientTransformation,
  seed: int,
  params: dict | None = None,
  adapter: AdapterConfig = NO_ADAPTER,
  base: dict | None = None,
) -> TrainState:
  """The state before the first step, on the mesh.

  params: initial float32 weights, already on the mesh; they are donated. None draws random ones with `seed`, inside jit
  and thus directly in their sharding: no device ever holds a whole model. base: the frozen weights on the mesh, given
  with `adapter`, whose first values are drawn.
  """
  shardings = state_shardings(mesh, cfg, tx, adapter)
  first_state = functools.partial(_first_state, tx=tx)
  if adapter.rank:
    draw = jax.jit(lambda key, base: first_state(lora.init(key, cfg, adapter, base)), out_shardings=shardings)
    return draw(parameters.random_key(seed), base if adapter.dora else None)
  if params is None:
    draw = jax.jit(lambda key: first_state(parameters.init(key, cfg)), out_shardings=shardings)
    return draw(parameters.random_key(seed))
  return jax.jit(first_state, out_shardings=shardings, donate_argnums=0)(params)


def _first_state(params, tx: optax.GradientTransformation) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
