"""Loss curves for the page: read from metrics.jsonl, drawn as SVG."""

import dataclasses
import html
import json
import math
from collections.abc import Callable

from mathqwen import files
from mathqwen.errors import UserError

_METRICS = '--metrics names the metrics.jsonl of a run'
_WIDTH = 640  # of the drawing, in its own units
_HEIGHT = 300
# Margins. The ticks' labels are on the left and at the bottom.
_LEFT = 50
_RIGHT = 28
_BOTTOM = 34
_TOP = 12


@dataclasses.dataclass(frozen=True)
class Curve:
  """Losses of a run, in nats per loss token, as (step, loss) in order of steps."""

  name: str
  loss: list[tuple[int, float]]
  eval_loss: list[tuple[int, float]]


def read_curve(path: files.AnyPath, name: str) -> Curve:
  """The losses of a metrics.jsonl, up to the first line that is not JSON: a killed run may have written half a line.

  UserError: when there is no such file, or no loss in it.
  """
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except FileNotFoundError:
    raise UserError(f'{path}: no such file; {_METRICS}') from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: not text ({error}); {_METRICS}') from None
  loss: dict[int, float] = {}
  eval_loss: dict[int, float] = {}
  for line in lines:
    try:
      values = json.loads(line)
      step = int(values['step'])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
      break
    for key, points in (('loss', loss), ('eval_loss', eval_loss)):
      if isinstance(values.get(key), int | float) and math.isfinite(values[key]):
        points[step] = float(values[key])  # a run that was resumed has some steps twice: the last counts
  if not loss and not eval_loss:
    raise UserError(f'{path}: no losses in it; {_METRICS}')
  return Curve(name, sorted(loss.items()), sorted(eval_loss.items()))


def draw(curve: Curve) -> str:
  """A figure with both losses over the steps, as HTML."""
  points = curve.loss + curve.eval_loss
  first = min(step for step, _ in points)
  last = max(step for step, _ in points)
  high = max(loss for _, loss in points) * 1.05 or 1.0

  def x(step):
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / max(last - first, 1)

  def y(loss):
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * loss / high

  parts = []
  for tick in _ticks(0, high):
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
    parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
  for tick in _ticks(first, last):
    parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{tick:,g}</text>')

  summaries = []
  keys = []
  if curve.loss:
    parts.append(_polyline('line', curve.loss, x, y))
    summaries.append(_summary('loss', curve.loss))
    keys.append('<i class=""></i>loss')
  if curve.eval_loss:
    parts.append(_polyline('line held', curve.eval_loss, x, y))
    for step, loss in _thin(curve.eval_loss, 40):
      parts.append(f'<circle class="held-dot" r="3" cx="{x(step):.1f}" cy="{y(loss):.1f}"/>')
    summaries.append(_summary('evaluation loss', curve.eval_loss))
    keys.append('<i class="held"></i>evaluation loss')

  summary = '; '.join(summaries)
  label = html.escape(f'{curve.name}: {summary}')
  svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
  caption = f'{html.escape(summary)}. Nats per loss token, by step.'
  return (
    f'<figure class="panel"><h3>{html.escape(curve.name)}</h3>{svg}'
    f'<figcaption><span class="key" aria-hidden="true">{"".join(keys)}</span><br>{caption}</figcaption></figure>'
  )


def _polyline(kind: str, points: list[tuple[int, float]], x: Callable, y: Callable) -> str:
  path = ' '.join(f'{x(step):.1f},{y(loss):.1f}' for step, loss in _thin(points))
  return f'<polyline class="{kind}" points="{path}"/>'


def _summary(name: str, points: list[tuple[int, float]]) -> str:
  (first, start), (last, end) = points[0], points[-1]
  return f'{name} {start:.4g} at step {first:,} and {end:.4g} at step {last:,}'


def _thin(points: list[tuple[int, float]], most: int = 1500) -> list[tuple[int, float]]:
  """About `most` of the points: every nth and the last one."""
  every = -(-len(points) // most)
  return points[:-1:every] + points[-1:]


def _ticks(low: float, high: float) -> list[float]:
  """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten, at most seven of them."""
  span = max(high - low, 1e-9)
  size = 10 ** math.floor(math.log10(span / 4))
  step = next(size * m for m in (1, 2, 5, 10) if span / (size * m) <= 7)
  return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
