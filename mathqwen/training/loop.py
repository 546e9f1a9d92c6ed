"""`fit`: the loop around the training step, and what happens between steps."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mathqwen import files
from mathqwen.config import Experiment
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import Preempted, UserError, report
from mathqwen.hardware import sharding
from mathqwen.hardware.flops import peak_seconds
from mathqwen.observe.ledger import Ledger
from mathqwen.observe.meter import Meter, means
from mathqwen.observe.metrics import MetricsWriter, Progress, peak_rss_bytes
from mathqwen.observe.profiling import Profile
from mathqwen.observe.slow_hosts import SlowHosts
from mathqwen.storage import base as bases
from mathqwen.storage import checkpoint, checksums, provenance
from mathqwen.storage.base import Base
from mathqwen.storage.workdir import TOKENIZER
from mathqwen.training import bad_steps, guard, optim
from mathqwen.training.elastic import Batch
from mathqwen.training.saving import Saver
from mathqwen.training.step import (
  TrainState,
  abstract_inputs,
  abstract_state,
  compile_step,
  eval_step,
  init_state,
  place_limits,
)

# In the summary of every run, None where this process took no step and no earlier one left a value.
SUMMARY = (
  'step',
  'loss',
  'tokens',
  'tokens_per_second',
  'loss_tokens_per_second',
  'step_seconds',
  'packing_efficiency',
  'mfu',
)


def fit(
  experiment: Experiment,
  workdir: str,
  data: TrainingData,
  mesh: Mesh,
  params: dict | None = None,
  profile: int = 0,
  strict: bool = False,
  batch: Batch | None = None,
  base: Base | None = None,
) -> dict:
  """Trains to `train.steps`, from the newest checkpoint in `workdir` or from the start.

  params: initial float32 weights on the mesh, which are donated; None draws random ones, unless `experiment` has an
  `init`.
  profile: how many steps to trace into WORKDIR/profile.
  strict: refuse a damaged newest checkpoint, instead of using the one before it.
  batch: how a batch is computed; None: as `experiment` says.
  base: the frozen weights, given with `train.frozen`; with an adapter `params` is None then.
  Returns the summary that `mathqwen train --json` prints.
  UserError: when another run writes into `workdir`, `base` is not that of the run there, there is neither a checkpoint
  nor the weights of `init`, too many updates in a row were skipped, the weights are not finite, the disk is too small
  or full, or no checkpoint is whole.
  Preempted: after SIGTERM or Ctrl-C, once the run is saved.
  """
  train = experiment.train
  with guard.guarded(workdir, experiment) as guarded:
    loop = TrainingLoop(experiment, workdir, data, mesh, params, profile, strict, batch, base, guarded)

    with loop.progress, loop.meter, loop.tracing:
      if loop.step < train.steps:
        loop.compile()

      while loop.step < train.steps and not guarded.stop.asked(loop.step):
        loop.begin_trace()
        loop.take_step()
        last = loop.step == train.steps
        evaluating = data.held_out is not None and (last or loop.step % train.eval_every == 0)
        saving = not last and loop.save_is_due(evaluating)
        if evaluating or saving or last:
          # A checkpoint ends a window, so that a resumed run averages over the same steps as an undisturbed one.
          loop.log_newest(flush=last or saving)
          loop.progress.update(loop.step, loop.meter.text)
        loop.end_trace()
        if evaluating:
          loop.evaluate()
        if saving:
          loop.save()

      guarded.lock.note('saving here before it ends')
      loop.log_newest(flush=True)
      loop.save(last=True)

    summary = loop.close()
  if loop.step < train.steps:
    raise Preempted(
      f'stopped by {guarded.stop.reason} at step {loop.step}, saved in {summary["checkpoint"]}: '
      'run the same command to continue'
    )
  return summary


class TrainingLoop:
  """What a run holds between two steps, and what happens to it there."""

  def __init__(
    self,
    experiment: Experiment,
    workdir: str,
    data: TrainingData,
    mesh: Mesh,
    params: dict | None,
    profile: int,
    strict: bool,
    batch: Batch | None,
    base: Base | None,
    guarded: guard.Guard,
  ):
    """Restores the newest checkpoint, or makes the first state. Arguments as in `fit`."""
    guarded.watchdog.beat('reading the checkpoint, or making the first weights', slow=True)
    self._guard = guarded
    self._slow_hosts = SlowHosts()
    train = experiment.train
    self.experiment = experiment
    self.workdir = workdir
    self.data = data
    self.mesh = mesh
    self._batch = batch or Batch(experiment.data.batch_size, experiment.train.micro_batches)
    positions = experiment.data.batch_size * experiment.data.seq_len
    self.meter = Meter(train.log_every, positions, peak_seconds(experiment, mesh), train.spike_factor)

    self._base = base
    self._tx = optim.optimizer(experiment.optim, train.steps)
    self._abstract_state = abstract_state(mesh, experiment.model, self._tx, train.adapter)
    keep = checkpoint.Keep(train.keep_checkpoints, train.keep_every, train.keep_best)
    abstract = self._abstract_state
    checkpoint.check_space(workdir, abstract.params, abstract.opt_state, keep.at_most(train))
    self._checkpoints = checkpoint.Checkpoints(workdir, keep)
    self._saver = Saver(self._checkpoints, train, self._report_failed_save)
    self._batches = data.train()
    self.step = 0  # steps taken so far
    damaged = self._restore(strict)
    is_new = self.state is None
    if is_new:
      if params is None and experiment.init is not None and not train.adapter.rank:
        raise UserError(f'the checkpoints of {workdir} have gone while the run began: run the same command again')
      frozen = None if base is None else base.params
      self.state = init_state(mesh, experiment.model, self._tx, train.seed, params, train.adapter, frozen)
    self._compiled_step = None  # see `compile`
    evaluate = jax.jit(functools.partial(eval_step, cfg=experiment.model, train=train, mesh=mesh))
    self._eval_step = lambda batch: evaluate(self.state.params, batch, None if base is None else base.params)

    self.tracing = Profile(workdir, profile, self.step)
    self.progress = Progress('train', train.steps, self.step)
    is_first = jax.process_index() == 0
    session = provenance.collect(
      experiment, mesh, dataclasses.asdict(self._batch), self._batches.get_state()['data'], self.step, data.origins
    )
    self._sessions = provenance.begin_session(workdir, session, is_new, primary=is_first)
    self._writer = MetricsWriter(workdir, resume_step=self.step, primary=is_first)
    self._ledger = Ledger(workdir, resume_step=self.step, primary=is_first)
    for step in damaged:
      self._writer.write(self.step, {'damaged_checkpoint': step})
    self._tokenizer = checksums.of_files(files.path(workdir) / TOKENIZER) if is_first else {}
    self._eval_loss: tuple[int, float] | None = None  # the newest, and its step
    # A run that is resumed at its end, or less than one window before it, reports the numbers of the run before.
    self._summary = dict.fromkeys(SUMMARY) | self._writer.last
    self._summary['tokens'] = self.meter.tokens or self._summary['tokens']
    self.meter.tokens = self._summary['tokens'] or 0
    self._seen = self.meter.newest  # the metrics that `_log` has looked at
    self._positions: dict[int, dict] = {}  # in the data, before each of the last two steps

  def _restore(self, strict: bool) -> list[int]:
    """Continues from the newest whole checkpoint, if there is one. Returns the newer ones, which are damaged."""
    target = self._abstract_state
    self.state = None
    with self.meter.pause('checkpoint_seconds'):
      restored = self._checkpoints.restore_newest(target.params, target.opt_state, strict)
    if restored is None:
      return []
    self.step = restored.step
    if self._base is not None:
      arrays = self._base.record['arrays']
      bases.check(self._checkpoints.json(self.step, bases.ITEM), arrays, self.workdir, self._base.record['name'])
    self._batches.set_state(restored.data_state)
    self.meter.set_state(restored.data_state)
    report(f'continuing {self.workdir} at step {self.step}')
    # On every device, like the step that `compile_step` returns: another layout would compile a second program.
    step = jax.device_put(jnp.int32(self.step), sharding.replicated(self.mesh))
    self.state = TrainState(step, restored.params, restored.opt_state)
    return list(restored.damaged)

  def compile(self):
    """Compiles the step ahead of its first call, so that the first step is measured like the others."""
    self._guard.watchdog.beat('compiling the step', slow=True)
    self.progress.update(self.step, 'compiling')
    with self.meter.pause('compile_seconds'):
      step = compile_step(self.mesh, self.experiment.model, self.experiment, self._tx, self._batch.micro_batches)
      inputs = abstract_inputs(self.mesh, self.experiment, self._batch.rows)
      self._compiled_step = step.lower(self._abstract_state, *inputs).compile()
      jax.block_until_ready(self.state)

  def take_step(self):
    """Launches a step, then logs the one before it."""
    self._guard.watchdog.beat(f'step {self.step + 1}')
    self._guard.watchdog.step = self.step
    self._positions = {self.step: self._positions.get(self.step), self.step + 1: self._batches.get_state()}
    with self._slow_hosts.step(), jax.profiler.StepTraceAnnotation('train', step_num=self.step + 1):
      with self.meter.input():
        batch = sharding.global_batch(next(self._batches), self.mesh)
      self._ledger.add(self.step + 1, self._batches.digest)
      inputs = (batch,) if self._base is None else (self._base.params, batch)
      if self.experiment.train.skip_spikes:
        inputs += (place_limits(self.meter.spikes.limits(self.step + 1), self.mesh),)
      self.state, metrics = self._compiled_step(self.state, *inputs)
    # Waits for the step before, while the devices are busy with the one just launched.
    self._log(self.meter.add(self.step, metrics))
    self.step += 1
    if self.step < self.experiment.train.steps:  # the last step is shown once its own loss has been read
      self.progress.update(self.step, self.meter.text)

  def log_newest(self, flush: bool):
    """Waits for the step launched last and logs its window: if it is complete, or in any case with `flush`."""
    self._log(self.meter.drain(flush))

  def _log(self, windows: list[dict]):
    """Writes the windows that the meter has completed, and looks at the step that it has just read."""
    for values in windows:
      slow, line = self._slow_hosts.compare(values['step_seconds'])
      values |= slow
      if line and jax.process_index() == 0:
        self.progress.note(f'step {values["step"]}: {line}')
      self._summary.update(values)
      self._writer.write(values['step'], {name: value for name, value in values.items() if name != 'step'})
    newest = self.meter.newest
    if newest is not self._seen:
      self._seen = newest
      if newest['skipped'] or newest['spike']:
        self._report_bad(newest)

  def _report_bad(self, metrics: dict):
    """Writes down which examples a bad step had. UserError: when too many steps in a row were skipped."""
    step = metrics['step']
    if jax.process_index() == 0:
      examples = self._batches.examples(self._positions[step])
      self.progress.note(bad_steps.write(self.workdir, metrics, self.meter.spikes.medians(step), examples))

    limit = self.experiment.train.max_skipped
    if self.meter.skipped > limit:
      what = 'not finite, or a spike,' if self.experiment.train.skip_spikes else 'not finite'
      folder = 'spikes' if metrics['spike'] else 'skipped'
      raise UserError(
        f'the loss or the gradient was {what} in {self.meter.skipped} steps in a row, up to step {step} '
        f'(train.max_skipped is {limit}): lower optim.learning_rate or look at the examples in '
        f'{self.workdir}/{folder}; {self._last_checkpoint()}'
      )

  def _last_checkpoint(self) -> str:
    """Where a failed run can continue, for a message."""
    self._checkpoints.wait()
    newest = self._checkpoints.latest
    return (
      'no checkpoint was saved yet' if newest is None else f'the newest checkpoint is {self._checkpoints.path(newest)}'
    )

  def evaluate(self):
    """Writes the mean loss over the held-out examples."""
    with self.meter.pause('eval_seconds') as spent:
      measured = mean_loss(self._eval_step, self._watched(self.data.eval()), self.mesh)
    found = {f'eval_{name}': value for name, value in measured.items()}
    self._summary |= found
    self._eval_loss = self.step, measured['loss']
    self._writer.write(self.step, found | spent)
    per = 'pair' if self.experiment.train.objective == 'dpo' else 'loss token'
    self.progress.note(f'step {self.step}: evaluation loss {measured["loss"]:.4f} nats per {per}')

  def _watched(self, batches: Iterable[dict]) -> Iterator[dict]:
    """Those of an evaluation. The first one may have to compile."""
    doing = f'the evaluation after step {self.step}'
    self._guard.watchdog.beat(doing, slow=True)
    for batch in batches:
      yield batch
      self._guard.watchdog.beat(doing)

  def save_is_due(self, evaluating: bool) -> bool:
    """Whether to save now. All hosts must call it, after every step. evaluating: whether this step is evaluated."""
    return self._saver.due(self.step, evaluating)

  def save(self, last: bool = False):
    """Starts to save this step, if no checkpoint of it exists. last: also waits until everything is written.

    UserError: when the weights are not finite; when saving fails at the end, or before there is any checkpoint; when
    another run has taken the workdir over.
    """
    with self._guard.watchdog.growing(f'saving step {self.step}', self._checkpoints.bytes_there):
      if last:
        with self.meter.pause('checkpoint_seconds'):
          self._saver.wait()  # a save of this step may be under way, and fail
      if self._checkpoints.latest != self.step:
        self._save(last)
      if last:
        with self.meter.pause('checkpoint_seconds'):
          self._saver.wait(last=True)

  def _save(self, last: bool):
    self._guard.lock.check()
    tree = {'params': self.state.params, 'opt_state': self.state.opt_state}
    with self.meter.pause('checkpoint_seconds') as spent:
      finite, arrays = checksums.examine(tree)
      if finite:
        self._saver.save(self.step, functools.partial(self._start_save, arrays), last)
    if not finite:
      raise UserError(
        f'the weights are not finite at step {self.step}, and were not saved: lower optim.learning_rate; '
        f'{self._last_checkpoint()}'
      )
    self._writer.write(self.step, spent)
    self._writer.sync()
    self._ledger.sync()

  def _start_save(self, arrays: dict[str, dict]):
    """arrays: the state's, as `checksums.examine` gives them."""
    step, loss = self._eval_loss or (None, None)
    items = {
      'data': self._batches.get_state() | self.meter.get_state(),
      'config': dataclasses.asdict(self.experiment),
      'sessions': {'sessions': self._sessions},
      'evaluation': {'loss': loss if step == self.step and math.isfinite(loss) else None},
    }
    if self._base is not None:
      items[bases.ITEM] = self._base.record
    self._checkpoints.save(self.step, self.state.params, self.state.opt_state, items, arrays, self._tokenizer)

  def _report_failed_save(self, line: str):
    self._writer.write(self.step, {'failed_saves': 1})
    if jax.process_index() == 0:
      self.progress.note(line)

  def begin_trace(self):
    """Starts the profile if the next step is the first to be traced."""
    if self.step + 1 != self.tracing.first:
      return
    self._log(self.meter.drain())
    with self.meter.pause('profile_seconds'):
      self.tracing.begin()

  def end_trace(self):
    """Writes the profile if this step was the last to be traced."""
    if self.step != self.tracing.last:
      return
    self._log(self.meter.drain())
    with self.meter.pause('profile_seconds'):
      self.progress.note(self.tracing.end())

  def close(self) -> dict:
    """Closes files and checkpoints. Returns the run's summary."""
    self._writer.close()
    self._ledger.close()
    self._summary |= self.meter.totals()
    self._summary['step'] = self.step
    self._summary['peak_rss_bytes'] = peak_rss_bytes()
    self._summary['checkpoint'] = self._checkpoints.path(self.step)
    if self.tracing.first is not None:
      self._summary['profile'] = self.tracing.path
    self._checkpoints.close()
    return self._summary


def mean_loss(evaluate: Callable, batches: Iterable[dict], mesh: Mesh) -> dict[str, float]:
  """`loss`, in nats per loss token or pair, and the other means of pairs, over this host's rows [B / hosts, T].

  evaluate: `eval_step` of the weights, jitted: of a batch.
  """
  total: collections.Counter[str] = collections.Counter()
  for batch in batches:
    loss_sum, sums = evaluate(sharding.global_batch(batch, mesh))
    total.update({name: float(value) for name, value in {'loss_sum': loss_sum, **sums}.items()})
  return means(total)
