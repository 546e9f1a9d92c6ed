"""`fit`: the loop around the training step."""

import functools
import math
import signal
import sys

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from mathqwen.config import Experiment
from mathqwen.errors import Preempted, UserError
from mathqwen.hardware import chips, sharding
from mathqwen.hardware.flops import model_flops
from mathqwen.observe.meter import Meter
from mathqwen.observe.metrics import MetricsWriter, Progress, peak_rss_bytes
from mathqwen.observe.profiling import Profile
from mathqwen.storage import checkpoint
from mathqwen.training import optim
from mathqwen.training.step import TrainState, abstract_batch, abstract_state, compile_step, eval_step, init_state


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

  data: `mathqwen.data.training_data.TrainingData`. params: initial weights on the mesh; None draws random ones.
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
  writer = MetricsWriter(workdir, resume_step=step, primary=jax.process_index() == 0)
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
