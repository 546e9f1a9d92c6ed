"""One training step: pure functions of arrays, callable without files, flags or a mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax

from mathqwen.config import Experiment, TrainConfig
from mathqwen.data import packing
from mathqwen.hardware import sharding
from mathqwen.model import attention, qwen
from mathqwen.model.config import ModelConfig
from mathqwen.training import loss, optim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  step: jax.Array  # int32 []
  params: dict  # float32 master weights
  opt_state: optax.OptState  # float32 moments


def loss_fn(params, rows, key, *, cfg: ModelConfig, train: TrainConfig, mesh=None):
  """(sum of loss, sum of weights) of packed rows; `key=None` turns dropout off, `mesh=None` is one default device."""
  placement = sharding.Placement(mesh, cfg.vocab_size)
  x_BTD = qwen.hidden(
    params,
    cfg,
    rows['tokens'],
    rows['segment_ids'],
    rows['positions'],
    dtype=jnp.dtype(train.compute_dtype),
    remat=train.remat,
    dropout_rate=train.dropout,
    dropout_key=key,
    training=True,
    attend_rows=attention.select(train.attention, mesh, train.compute_dtype),
    place=placement,
    gather=functools.partial(placement.gather, one=jnp.all(rows['segment_ids'] >= 0).astype(jnp.float32)),
  )
  head = qwen.head(params, cfg)
  parts = (1, 1) if mesh is None else (sharding.batch_shards(dict(mesh.shape)), mesh.shape['context'])
  return loss.head_cross_entropy(x_BTD, head, rows['targets'], rows['loss_weights'], train.loss_chunk, parts, placement)


def gradients(params, batch, key, *, cfg: ModelConfig, train: TrainConfig, mesh=None):
  """(gradient of the mean loss over all loss tokens of the batch, sum of loss, sum of weights).

  Micro-batches add up sums and are divided once: a mean of means would weigh tokens by how many share their part.
  """
  grad_fn = jax.value_and_grad(functools.partial(loss_fn, cfg=cfg, train=train, mesh=mesh), has_aux=True)
  placement, axes = sharding.Placement(mesh, cfg.vocab_size), qwen.logical_axes(cfg)
  M = train.micro_batches
  # Strided parts, so that with rows split over devices each device keeps its own rows in every part.
  parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // M, M, *x.shape[1:]), 0, 1), batch)

  def one(index, rows):
    (loss_sum, weight), grads = grad_fn(params, rows, None if train.dropout == 0 else jax.random.fold_in(key, index))
    grads = placement.tree(grads, axes)
    # XLA for TPUs would update the tables in the layout that their gradients come in, and so hold copies of tables and
    # moments in it from the start of the step to its end: 0.4 GiB a chip for Qwen2.5-7B on 16.
    grads |= jax.lax.optimization_barrier({name: g for name, g in grads.items() if name != 'layers'})
    return grads, loss_sum, weight

  def add(total, xs):
    return jax.tree.map(jnp.add, total, one(*xs)), None

  if M == 1:
    grads, loss_sum, weight = one(0, jax.tree.map(lambda x: x[0], parts))
  else:
    zero = (placement.tree(jax.tree.map(jnp.zeros_like, params), axes), jnp.zeros(()), jnp.zeros(()))
    (grads, loss_sum, weight), _ = jax.lax.scan(add, zero, (jnp.arange(M), parts))
  return jax.tree.map(lambda g: g / jnp.maximum(weight, 1), grads), loss_sum, weight


def train_step(
  state: TrainState,
  batch,
  *,
  cfg: ModelConfig,
  train: TrainConfig,
  tx: optax.GradientTransformation,
  rate: optax.Schedule,
  mesh=None,
):
  """One AdamW update on a batch of packed rows [B, T]. Metrics are sums; the division is the reader's.

  rate: that of `tx`, told in the metrics: asked for in the loop, it would wait on the devices behind the step.
  """
  key = jax.random.fold_in(jax.random.key(train.seed), state.step)
  grads, loss_sum, weight = gradients(state.params, batch, key, cfg=cfg, train=train, mesh=mesh)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  metrics = {
    'loss_sum': loss_sum,
    'loss_tokens': weight,
    'tokens': jnp.sum(batch['segment_ids'] > 0),
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': jnp.asarray(rate(state.step), jnp.float32),
  }
  return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics


def eval_step(params, batch, *, cfg: ModelConfig, train: TrainConfig, mesh=None):
  """(sum of loss, sum of weights), without dropout."""
  return loss_fn(params, batch, None, cfg=cfg, train=train, mesh=mesh)


def state_shardings(mesh, cfg: ModelConfig, tx) -> TrainState:
  """Moments lie where their weights lie; counters are everywhere."""
  params = sharding.params_shardings(mesh, cfg)
  everywhere = sharding.replicated(mesh)
  opt_state = optax.tree_map_params(
    tx,
    lambda _, s: s,
    jax.eval_shape(tx.init, qwen.abstract(cfg)),
    params,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(everywhere, params, opt_state)


def abstract_state(mesh, cfg: ModelConfig, tx) -> TrainState:
  """Shapes, dtypes and shardings of the state; allocates nothing."""
  state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, tx.init(p)), qwen.abstract(cfg))
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, state, state_shardings(mesh, cfg, tx))


def abstract_batch(mesh, experiment: Experiment):
  """Shapes, dtypes and shardings of a step's packed rows [B, T]."""
  shape, where = (experiment.data.batch_size, experiment.data.seq_len), sharding.batch_sharding(mesh)
  return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in packing.FEATURES.items()}


def bytes_per_device(tree) -> int:
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_step(mesh, cfg: ModelConfig, experiment: Experiment, tx):
  """The jitted step, donating its state."""
  rate = optim.schedule(experiment.optim, experiment.train.steps)
  step = functools.partial(train_step, cfg=cfg, train=experiment.train, tx=tx, rate=rate, mesh=mesh)
  state = state_shardings(mesh, cfg, tx)
  return jax.jit(
    step,
    in_shardings=(state, sharding.batch_sharding(mesh)),
    out_shardings=(state, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def init_state(mesh, cfg: ModelConfig, tx, seed: int, params=None) -> TrainState:
  """Random weights made inside jit in their sharding, or the given ones; and fresh moments."""
  where = state_shardings(mesh, cfg, tx)
  start = lambda p: TrainState(jnp.zeros((), jnp.int32), p, tx.init(p))
  if params is None:
    return jax.jit(lambda key: start(qwen.init(key, cfg)), out_shardings=where)(jax.random.key(seed))
  return jax.jit(start, out_shardings=where, donate_argnums=0)(params)
