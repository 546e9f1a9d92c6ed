"""Where the time of a run goes: the length of each step, measured while the host runs ahead, and what was lost."""

import collections
import concurrent.futures
import contextlib
import time

import jax

LOST = ('compile_seconds', 'input_seconds', 'checkpoint_seconds', 'eval_seconds')  # beside steps, of a run


def end_of(metrics) -> float:
  """Waits until a step's metrics are computed. The time then."""
  jax.block_until_ready(metrics)
  return time.monotonic()


class Meter:
  """Sums the metrics of `every` steps and takes their times.

  A step lasts from the end of the one before it to its own, the first one from `with meter:` on. A thread waits for
  the ends, as the host runs ahead of the devices. Waiting for rows is lost from when the devices had nothing to do.
  """

  def __init__(self, every: int, positions: int, peak_seconds: float | None = None):
    """positions: of a batch, padding included. peak_seconds: a step's model FLOPs at the devices' peak, if known."""
    self._every, self._positions, self._peak_seconds = every, positions, peak_seconds
    self._begun = self._mark = time.monotonic()  # the mark: end of the newest step that was read
    self._wait = (self._begun, self._begun)  # for the rows of the next step
    self._pending = None
    self.tokens = 0  # of the run so far, which `fit` sets where one is continued
    self._sums = collections.Counter()  # of the window
    self._lost = collections.Counter(dict.fromkeys(LOST, 0.0))
    self._stepping = 0.0
    self.text = ''

  def __enter__(self):
    self._ends = concurrent.futures.ThreadPoolExecutor(1)
    self._mark = time.monotonic()
    self._wait = (self._mark, self._mark)
    return self

  def __exit__(self, *_):
    self._ends.shutdown()

  @contextlib.contextmanager
  def input(self):
    """Around what makes the rows of the next step."""
    begun = time.monotonic()
    yield
    self._wait = (begun, time.monotonic())

  def add(self, step: int, metrics: dict) -> list[dict]:
    """Takes the metrics of `step`, still being computed. Returns the window that the one before completed, if any."""
    newest = (step + 1, metrics, self._ends.submit(end_of, metrics), self._wait)
    done = self.drain()
    self._pending = newest
    return done

  def drain(self, flush: bool = False) -> list[dict]:
    """Waits for the step taken last. Returns its window if it is complete, or in any case with `flush`."""
    if self._pending is None:
      return []
    (step, metrics, end, (asked, came)), self._pending = self._pending, None
    ended = end.result()
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    seconds, waited = ended - self._mark, max(0.0, came - max(asked, self._mark))
    self._mark = ended
    self._stepping += seconds
    self._lost['input_seconds'] += waited
    self._sums.update({name: metrics[name] for name in ('loss_sum', 'loss_tokens', 'tokens')})
    self._sums.update({'steps': 1, 'seconds': seconds, 'input_seconds': waited})
    sums = self._sums
    self.tokens += int(metrics['tokens'])
    loss = metrics['loss_sum'] / max(metrics['loss_tokens'], 1)
    self.text = f'loss {loss:.4f}  {sums["tokens"] / sums["seconds"]:,.0f} tokens/s'
    if not flush and step % self._every:
      return []
    self._sums = collections.Counter()
    step_seconds = sums['seconds'] / sums['steps']
    values = {
      'step': step,
      'loss': sums['loss_sum'] / max(sums['loss_tokens'], 1),
      'learning_rate': metrics['learning_rate'],
      'grad_norm': metrics['grad_norm'],
      'packing_efficiency': sums['tokens'] / (sums['steps'] * self._positions),
      'tokens_per_second': sums['tokens'] / sums['seconds'],
      'loss_tokens_per_second': sums['loss_tokens'] / sums['seconds'],
      'step_seconds': step_seconds,
      'input_seconds': sums['input_seconds'],
      'tokens': self.tokens,
    }
    return [values if self._peak_seconds is None else values | {'mfu': self._peak_seconds / step_seconds}]

  @contextlib.contextmanager
  def pause(self, name: str):
    """Time spent in here belongs to no step and counts as `name`. Yields a dict that has it afterwards."""
    begun, spent = time.monotonic(), {}
    yield spent
    spent[name] = time.monotonic() - begun
    self._lost[name] += spent[name]
    self._mark += spent[name]

  def totals(self) -> dict[str, float]:
    """Seconds of this process since the meter was made, and `goodput`: the share in which the devices had a step."""
    total = time.monotonic() - self._begun
    goodput = (self._stepping - self._lost['input_seconds']) / total
    return {**self._lost, 'total_seconds': total, 'goodput': goodput}
