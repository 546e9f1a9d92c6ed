"""The training step, pure and top-level, and `fit`, the loop around it."""

import dataclasses
import functools
import math
import signal
import sys

import jax
import jax.numpy as jnp
import optax
from jax.experimental import multihost_utils

from mathqwen.config import Experiment, TrainConfig
from mathqwen.data import packing
from mathqwen.errors import Preempted, UserError
from mathqwen.hardware import chips, sharding
from mathqwen.hardware.flops import model_flops
from mathqwen.model import attention, qwen
from mathqwen.model.config import ModelConfig
from mathqwen.observe.meter import Meter
from mathqwen.observe.metrics import Progress, Writer, peak_rss_bytes
from mathqwen.observe.profiling import Profile
from mathqwen.storage import checkpoint
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


class StopOnSigterm:
  """`asked(step)`, called after every step: has this host received SIGTERM, or any host of a run over several?"""

  def __enter__(self):
    self._asked, self._alone = False, jax.process_count() == 1
    # Over several hosts JAX's preemption service takes the signal, and names a step at which all of them stop.
    if self._alone:
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def _ask(self, *_):
    self._asked = True

  def asked(self, step: int) -> bool:
    return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(step)

  def __exit__(self, *_):
    if self._alone:
      signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)


def peak_seconds(experiment: Experiment, mesh) -> float | None:
  """What the model FLOPs of a step take at the peak of the mesh's devices; None where no peak is known."""
  peak = chips.peak_flops(mesh.devices.flat[0].device_kind, experiment.train.compute_dtype)
  if peak is None:
    return None
  return model_flops(experiment.model, experiment.data.batch_size, experiment.data.seq_len) / (mesh.size * peak)


def fit(experiment: Experiment, workdir: str, data, mesh, params=None, profile: int = 0) -> dict:
  """Trains to `train.steps` from the newest checkpoint in `workdir`, or from the start.

  data: `mathqwen.data.training.TrainingData`. params: initial weights on the mesh; None draws random ones.
  profile: steps to trace into `workdir`/profile.
  Returns the summary that `mathqwen train --json` prints. Preempted after a save on SIGTERM.
  """
  cfg, train = experiment.model, experiment.train
  tx = optim.optimizer(experiment.optim, train.steps)
  meter = Meter(train.log_every, experiment.data.batch_size * experiment.data.seq_len, peak_seconds(experiment, mesh))
  target = abstract_state(mesh, cfg, tx)
  checkpoint.check_space(workdir, target.params, target.opt_state, train.keep_checkpoints)

  # State and data, from the newest checkpoint or from the start
  checkpoints = checkpoint.Checkpoints(workdir, keep=train.keep_checkpoints)
  batches = data.train()
  step = checkpoints.latest or 0
  if step:
    with meter.pause('checkpoint_seconds'):
      params, opt_state, data_state = checkpoints.restore(step, target.params, target.opt_state)
    state = TrainState(jax.device_put(jnp.int32(step), sharding.replicated(mesh)), params, opt_state)
    batches.set_state(data_state)
    print(f'continuing {workdir} at step {step}', file=sys.stderr)
  else:
    state = init_state(mesh, cfg, tx, train.seed, params)
  del params  # donated

  evaluate = jax.jit(functools.partial(eval_step, cfg=cfg, train=train, mesh=mesh))
  tracing = Profile(workdir, profile, step)
  writer = Writer(workdir, resume_step=step, primary=jax.process_index() == 0)
  # A run that is resumed at its end, or within one window of it, has its last numbers from before.
  rates = ('tokens_per_second', 'loss_tokens_per_second', 'step_seconds', 'packing_efficiency', 'mfu')
  summary = dict.fromkeys(('step', 'loss', 'tokens', *rates)) | writer.last
  meter.tokens = summary['tokens'] or 0

  def save():
    if checkpoints.latest != step:
      with meter.pause('checkpoint_seconds') as spent:
        checkpoints.save(step, state.params, state.opt_state, batches.get_state(), experiment)
      writer.write(step, spent)
      writer.sync()

  def log(windows):
    for values in windows:
      if not math.isfinite(values['loss']):
        checkpoints.wait()
        raise UserError(
          f'the loss is {values["loss"]} at step {values["step"]}: lower optim.learning_rate or look at the data; '
          f'the newest checkpoint in {workdir} is of step {checkpoints.latest}'
        )
      summary.update(values)
      writer.write(values['step'], {k: v for k, v in values.items() if k != 'step'})

  with StopOnSigterm() as stop, Progress('train', train.steps, step) as progress, meter, tracing:
    if step < train.steps:
      progress.update(step, 'compiling')
      # Ahead of the first step, which so is measured like the others.
      with meter.pause('compile_seconds'):
        compiled = compile_step(mesh, cfg, experiment, tx).lower(target, abstract_batch(mesh, experiment)).compile()
        jax.block_until_ready(state)
    while step < train.steps and not stop.asked(step):
      if step + 1 == tracing.first:
        log(meter.drain())
        with meter.pause('profile_seconds'):
          tracing.begin()
      with jax.profiler.StepTraceAnnotation('train', step_num=step + 1):
        with meter.input():
          batch = sharding.global_batch(next(batches), mesh)
        state, metrics = compiled(state, batch)
      # Reads the numbers of the step before this one, while the devices are busy with this.
      log(meter.add(step, metrics))
      step += 1
      progress.update(step, meter.text)

      last = step == train.steps
      evaluating = data.held_out is not None and (last or step % train.eval_every == 0)
      saving = not last and step % train.checkpoint_every == 0
      if evaluating or saving or last:
        # A checkpoint ends a window, so that a resumed run averages over the same steps as an undisturbed one.
        log(meter.drain(flush=last or saving))
        progress.update(step, meter.text)
      if step == tracing.last:
        log(meter.drain())
        with meter.pause('profile_seconds'):
          progress.note(tracing.end())
      if evaluating:
        with meter.pause('eval_seconds') as spent:
          summary['eval_loss'] = mean_loss(evaluate, state.params, data.eval(), mesh)
        writer.write(step, {'eval_loss': summary['eval_loss'], **spent})
        progress.note(f'step {step}: evaluation loss {summary["eval_loss"]:.4f} nats per loss token')
      if saving:
        save()
    log(meter.drain(flush=True))
    save()
    with meter.pause('checkpoint_seconds'):
      checkpoints.wait()
  writer.close()
  summary |= meter.totals() | {
    'step': step,
    'peak_rss_bytes': peak_rss_bytes(),
    'checkpoint': checkpoints.path(step),
  }
  if profile:
    summary['profile'] = tracing.path
  checkpoints.close()
  if step < train.steps:
    raise Preempted(
      f'stopped by SIGTERM at step {step}, saved in {summary["checkpoint"]}: run the same command to continue'
    )
  return summary


def mean_loss(evaluate, params, batches, mesh) -> float:
  """Nats per loss token over `batches`."""
  total, weight = 0.0, 0.0
  for batch in batches:
    loss_sum, loss_tokens = evaluate(params, sharding.global_batch(batch, mesh))
    total, weight = total + float(loss_sum), weight + float(loss_tokens)
  return total / weight
