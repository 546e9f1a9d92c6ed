"""The training step, pure and top-level, and `fit`, the loop around it."""

import collections
import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time

import jax
import jax.numpy as jnp
import optax
from jax.experimental import multihost_utils

from mathqwen import checkpoint, loss, optim, sharding
from mathqwen.config import Experiment, TrainConfig
from mathqwen.data import packing
from mathqwen.errors import Preempted, UserError
from mathqwen.metrics import Progress, Writer, peak_rss_bytes
from mathqwen.model import attention, qwen
from mathqwen.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  step: jax.Array  # int32 []
  params: dict  # float32 master weights
  opt_state: optax.OptState  # float32 moments


def loss_fn(params, rows, key, *, cfg: ModelConfig, train: TrainConfig, mesh=None):
  """(sum of loss, sum of weights) of packed rows; `key=None` turns dropout off, `mesh=None` is one default device."""
  placement = sharding.Placement(mesh)
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
    attend_rows=attention.select(train.attention, mesh),
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
  placement, axes = sharding.Placement(mesh), qwen.logical_axes(cfg)
  M = train.micro_batches
  # Strided parts, so that with rows split over devices each device keeps its own rows in every part.
  parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // M, M, *x.shape[1:]), 0, 1), batch)

  def one(index, rows):
    (loss_sum, weight), grads = grad_fn(params, rows, None if train.dropout == 0 else jax.random.fold_in(key, index))
    return placement.tree(grads, axes), loss_sum, weight

  def add(total, xs):
    return jax.tree.map(jnp.add, total, one(*xs)), None

  if M == 1:
    grads, loss_sum, weight = one(0, jax.tree.map(lambda x: x[0], parts))
  else:
    zero = (placement.tree(jax.tree.map(jnp.zeros_like, params), axes), jnp.zeros(()), jnp.zeros(()))
    (grads, loss_sum, weight), _ = jax.lax.scan(add, zero, (jnp.arange(M), parts))
  return jax.tree.map(lambda g: g / jnp.maximum(weight, 1), grads), loss_sum, weight


def train_step(
  state: TrainState, batch, *, cfg: ModelConfig, train: TrainConfig, tx: optax.GradientTransformation, mesh=None
):
  """One AdamW update on a batch of packed rows [B, T]. Metrics are sums; the division is the reader's."""
  key = jax.random.fold_in(jax.random.key(train.seed), state.step)
  grads, loss_sum, weight = gradients(state.params, batch, key, cfg=cfg, train=train, mesh=mesh)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  metrics = {
    'loss_sum': loss_sum,
    'loss_tokens': weight,
    'tokens': jnp.sum(batch['segment_ids'] > 0),
    'grad_norm': optax.tree.norm(grads),
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
  step = functools.partial(train_step, cfg=cfg, train=experiment.train, tx=tx, mesh=mesh)
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


def fit(experiment: Experiment, workdir: str, data, mesh, params=None) -> dict:
  """Trains to `train.steps` from the newest checkpoint in `workdir`, or from the start.

  data: `mathqwen.data.training.TrainingData`. params: initial weights on the mesh; None draws random ones.
  Returns the summary that `mathqwen train --json` prints. Preempted after a save on SIGTERM.
  """
  cfg, train = experiment.model, experiment.train
  tx = optim.optimizer(experiment.optim, train.steps)
  rate = optim.schedule(experiment.optim, train.steps)
  target = abstract_state(mesh, cfg, tx)
  checkpoint.check_space(workdir, target.params, target.opt_state, train.keep_checkpoints)

  # State and data, from the newest checkpoint or from the start
  checkpoints = checkpoint.Checkpoints(workdir, keep=train.keep_checkpoints)
  batches = data.train()
  step = checkpoints.latest or 0
  if step:
    params, opt_state, data_state = checkpoints.restore(step, target.params, target.opt_state)
    state = TrainState(jax.device_put(jnp.int32(step), sharding.replicated(mesh)), params, opt_state)
    batches.set_state(data_state)
    print(f'continuing {workdir} at step {step}', file=sys.stderr)
  else:
    state = init_state(mesh, cfg, tx, train.seed, params)
  del params  # donated

  compiled = compile_step(mesh, cfg, experiment, tx)
  evaluate = jax.jit(functools.partial(eval_step, cfg=cfg, train=train, mesh=mesh))
  writer = Writer(workdir, resume_step=step, primary=jax.process_index() == 0)
  meter = Meter(train.log_every, experiment.data.batch_size * experiment.data.seq_len)
  # A run that is resumed at its end, or within one window of it, has its last numbers from before.
  names = ('step', 'loss', 'tokens_per_second', 'loss_tokens_per_second', 'step_seconds', 'packing_efficiency')
  summary = dict.fromkeys(names) | writer.last

  def save():
    if checkpoints.latest != step:
      checkpoints.save(step, state.params, state.opt_state, batches.get_state(), experiment)
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

  with StopOnSigterm() as stop, Progress('train', train.steps, step) as progress:
    while step < train.steps and not stop.asked(step):
      batch = sharding.global_batch(next(batches), mesh)
      state, metrics = compiled(state, batch)
      # Reads the numbers of the step before this one, which the devices are now busy with.
      log(meter.add(step, metrics, float(rate(step))))
      step += 1
      progress.update(step, meter.text)

      last = step == train.steps
      evaluating = data.held_out is not None and (last or step % train.eval_every == 0)
      saving = not last and step % train.checkpoint_every == 0
      if evaluating or saving or last:
        # A checkpoint ends a window, so that a resumed run averages over the same steps as an undisturbed one.
        log(meter.drain(flush=last or saving))
        progress.update(step, meter.text)
      with meter.pause():
        if evaluating:
          summary['eval_loss'] = mean_loss(evaluate, state.params, data.eval(), mesh)
          writer.write(step, {'eval_loss': summary['eval_loss']})
          progress.note(f'step {step}: evaluation loss {summary["eval_loss"]:.4f} nats per loss token')
        if saving:
          save()
    log(meter.drain(flush=True))
    save()
    checkpoints.wait()
  writer.close()
  summary |= {
    'step': step,
    'peak_rss_bytes': peak_rss_bytes(),
    'checkpoint': checkpoints.path(step),
  }
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


class Meter:
  """Sums the metrics of `every` steps, and takes the time between the ends of steps.

  Where steps run while the host goes on, the newest one is still under way when the one before it is read; where they
  do not (a CPU), it has ended too. A mark is therefore a time and the number of steps that had ended by then. The
  first step, which compiles, lies before the first mark.
  """

  def __init__(self, every: int, positions: int):
    self._every, self._positions = every, positions  # positions of a batch, padding included
    self._pending = self._mark = None
    self._sums = collections.Counter()
    self.text = 'compiling'

  def add(self, step: int, metrics: dict, learning_rate: float) -> list[dict]:
    """Takes the metrics of `step`, still being computed. Returns the window that the one before completed, if any."""
    done = self.drain(newest=metrics)
    self._pending = (step + 1, metrics, learning_rate)
    return done

  def drain(self, flush: bool = False, newest: dict | None = None) -> list[dict]:
    """Waits for the step taken last. Returns its window if it is complete, or in any case with `flush`."""
    if self._pending is None:
      return []
    (step, metrics, learning_rate), self._pending = self._pending, None
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self._sums.update({name: metrics[name] for name in ('loss_sum', 'loss_tokens', 'tokens')} | {'steps': 1})
    ended = step + (newest is not None and newest['loss_sum'].is_ready())
    now = time.monotonic()
    if self._mark is None:
      self._mark = (now, ended)
    seconds = (now - self._mark[0]) / max(ended - self._mark[1], 1)  # of a step
    rates = {}
    if ended > self._mark[1]:
      per_step = 1 / self._sums['steps'] / seconds
      rates = {
        'tokens_per_second': self._sums['tokens'] * per_step,
        'loss_tokens_per_second': self._sums['loss_tokens'] * per_step,
        'step_seconds': seconds,
      }
    speed = f'  {rates["tokens_per_second"]:,.0f} tokens/s' if rates else ''
    self.text = f'loss {metrics["loss_sum"] / max(metrics["loss_tokens"], 1):.4f}{speed}'
    if not flush and step % self._every:
      return []
    values = {
      'step': step,
      'loss': self._sums['loss_sum'] / max(self._sums['loss_tokens'], 1),
      'learning_rate': learning_rate,
      'grad_norm': metrics['grad_norm'],
      'packing_efficiency': self._sums['tokens'] / (self._sums['steps'] * self._positions),
    }
    self._sums, self._mark = collections.Counter(), (now, ended)
    return [values | rates]

  @contextlib.contextmanager
  def pause(self):
    """Time spent in here belongs to no step."""
    begun = time.monotonic()
    yield
    if self._mark is not None:
      self._mark = (self._mark[0] + time.monotonic() - begun, self._mark[1])
