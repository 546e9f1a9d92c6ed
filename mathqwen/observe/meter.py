"""Where a run's time goes: how long each step took on the devices, and the time outside steps.

The host launches a step and does not wait for it, so its own clock does not show how long the step took:

host     input 1 | launch 1 | input 2 | launch 2 | input 3 ...............| launch 3
devices  idle ............. | step 1 ............| step 2 ......| idle ...| step 3 ..........
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping

import jax

from mathqwen.observe.spikes import Spikes

# Every run reports these, even where they are 0.
LOST = ('compile_seconds', 'input_seconds', 'checkpoint_seconds', 'eval_seconds')
# Sums over the pairs of a batch, of steps on pairs (`training/dpo.py`).
PAIR_SUMS = ('reward_margin', 'reward_accuracy', 'log_prob_chosen', 'log_prob_rejected')
_SUMS = ('loss_sum', 'loss_tokens', 'pairs', *PAIR_SUMS)  # over the steps of a window that were not skipped


def means(sums: Mapping[str, float]) -> dict[str, float]:
  """`loss`, per pair where there are `pairs` or else per loss token, and the means of PAIR_SUMS that are there."""
  count = max(sums.get('pairs', sums['loss_tokens']), 1)
  found = {name: sums[name] / count for name in PAIR_SUMS if name in sums}
  return {'loss': sums['loss_sum'] / count, **found}


def wait_for_end(metrics: dict) -> float:
  """Blocks until a step's metrics are computed. Returns the time of `time.monotonic` then."""
  jax.block_until_ready(metrics)
  return time.monotonic()


@dataclasses.dataclass
class _Launched:
  """A step that the devices have, whose metrics the host has not read yet."""

  number: int  # 1 for the first step
  metrics: dict  # arrays, perhaps not computed yet
  end: concurrent.futures.Future  # of `wait_for_end`
  input_from: float  # when the host began to make the step's rows
  input_to: float  # when it had them


class Meter:
  """Times each step and averages metrics over windows of `every` steps.

  A step lasts from the end of the step before it to its own end; the first one lasts from `with meter:` on. The host
  runs ahead of the devices, so a thread waits for each step to end. Input wait counts as lost only while the devices
  are idle.
  """

  def __init__(self, every: int, positions: int, peak_seconds: float | None = None, spike_factor: float = math.inf):
    """every: steps in a window. positions: B * T of a batch, padding included.

    peak_seconds: how long a step's model FLOPs take at the devices' peak; None where no peak is known.
    spike_factor: as in `Spikes`.
    """
    self.spikes = Spikes(spike_factor)
    self._every = every
    self._positions = positions
    self._peak_seconds = peak_seconds
    self.tokens = 0  # since the run's first step; the loop sets it where the checkpoint of an earlier version has none
    self.text = ''  # loss and speed of the current window, for the terminal
    self.skipped = 0  # steps in a row, up to the newest that was read, whose update was skipped
    # The metrics of that step, its number as `step`, its mean `loss`, and whether it is a `spike`
    self.newest: dict = {}

    self._created = time.monotonic()
    self._last_end = self._created  # end of the newest step that was read; pauses push it forward
    self._input_from = self._input_to = self._created
    self._launched: _Launched | None = None
    self._sums = collections.Counter()  # over the current window
    self._lost = collections.Counter(dict.fromkeys(LOST, 0.0))  # seconds since `_created`
    self._stepping = 0.0  # seconds in steps since `_created`

  def get_state(self) -> dict:
    """For JSON: what a run that continues counts on from."""
    return {'recent': self.spikes.get_state(), 'tokens': self.tokens}

  def set_state(self, state: dict) -> None:
    """Continues from what `get_state` gave. An earlier version gave less."""
    self.spikes.set_state(state.get('recent', []))
    self.tokens = state.get('tokens', 0)

  def __enter__(self) -> 'Meter':
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._last_end = time.monotonic()
    return self

  def __exit__(self, *_):
    self._thread.shutdown()

  @contextlib.contextmanager
  def input(self) -> Iterator[None]:
    """Surrounds the code that makes the next step's rows."""
    self._input_from = time.monotonic()
    yield
    self._input_to = time.monotonic()

  @contextlib.contextmanager
  def pause(self, name: str) -> Iterator[dict[str, float]]:
    """Surrounds what belongs to no step. Yields a dict that holds {name: seconds} afterwards."""
    begin = time.monotonic()
    spent = {}
    yield spent
    spent[name] = time.monotonic() - begin
    self._lost[name] += spent[name]
    self._last_end += spent[name]

  def add(self, step: int, metrics: dict) -> list[dict]:
    """Takes the metrics of a step that was just launched; `step` counts from 0.

    metrics: those of `train_step`, scalars still being computed.
    Waits for the step before it. Returns [values] of a window if that step completed one, else [].
    """
    end = self._thread.submit(wait_for_end, metrics)
    launched = _Launched(step + 1, metrics, end, self._input_from, self._input_to)
    window = self.drain()
    self._launched = launched
    return window

  def drain(self, flush: bool = False) -> list[dict]:
    """Waits for the step launched last. Returns its window if it is complete, or in any case with `flush`."""
    if self._launched is None:
      return []
    launched, self._launched = self._launched, None
    ended = launched.end.result()
    metrics = {name: float(value) for name, value in jax.device_get(launched.metrics).items()}
    self._count(launched, ended, metrics)

    if launched.number % self._every and not flush:
      return []
    values = self._window(launched.number, metrics)
    self._sums = collections.Counter()
    return [values]

  def _count(self, launched: _Launched, ended: float, metrics: dict[str, float]):
    seconds = ended - self._last_end
    # Until `_last_end` the devices were busy with the step before, and lost nothing.
    waited = max(0.0, launched.input_to - max(launched.input_from, self._last_end))
    self._last_end = ended
    self._stepping += seconds
    self._lost['input_seconds'] += waited
    self.tokens += int(metrics['tokens'])
    loss = means(metrics)['loss']
    is_spike = self.spikes.add(launched.number, loss, metrics['grad_norm'])
    self.newest = {'step': launched.number, 'loss': loss, 'spike': is_spike, **metrics}

    sums = self._sums
    sums.update({'tokens': metrics['tokens'], 'steps': 1, 'seconds': seconds, 'input_seconds': waited})
    if metrics['skipped']:
      # Its loss may be NaN, which would hide that of the other steps of the window.
      self.skipped += 1
      sums.update({'skipped': 1})
      text = 'update skipped'
    else:
      self.skipped = 0
      sums.update({name: metrics[name] for name in _SUMS if name in metrics})
      text = f'loss {loss:.4f}'
    if is_spike:
      sums.update({'spike': 1})
    self.text = f'{text}  {sums["tokens"] / sums["seconds"]:,.0f} tokens/s'

  def _window(self, step: int, metrics: dict[str, float]) -> dict[str, float | None]:
    """What metrics.jsonl gets: sums of the window divided once; `metrics` are those of its last step.

    The loss is that of the steps that were not skipped; None where there was none.
    """
    sums = self._sums
    step_seconds = sums['seconds'] / sums['steps']
    values = {
      'step': step,
      **(means(sums) if sums['skipped'] < sums['steps'] else {'loss': None}),
      'learning_rate': metrics['learning_rate'],
      'grad_norm': metrics['grad_norm'],
      'packing_efficiency': sums['tokens'] / (sums['steps'] * self._positions),
      'tokens_per_second': sums['tokens'] / sums['seconds'],
      'loss_tokens_per_second': sums['loss_tokens'] / sums['seconds'],
      'step_seconds': step_seconds,
      'input_seconds': sums['input_seconds'],
      'tokens': self.tokens,
    }
    if sums['skipped']:
      values['skipped'] = sums['skipped']  # updates, because the loss or the gradient was not finite, or a spike
    if sums['spike']:
      values['spike'] = sums['spike']  # steps
    if self._peak_seconds is not None:
      values['mfu'] = self._peak_seconds / step_seconds
    return values

  def totals(self) -> dict[str, float]:
    """Seconds since this meter was made, by cause, and `goodput`: the share in which the devices ran a step."""
    total = time.monotonic() - self._created
    goodput = (self._stepping - self._lost['input_seconds']) / total
    return {**self._lost, 'total_seconds': total, 'goodput': goodput}
