"""Which steps are spikes: medians by hand, and equal after a restart."""

import json
import math

import numpy as np
import pytest

from mathqwen.observe.spikes import FEWEST, LAG, WINDOW, Spikes


def test_spikes_of_a_series_by_hand():
  """Each step against the median of the 100 steps that end two before it; also continued from any step."""
  rng = np.random.default_rng(0)
  losses, norms = rng.lognormal(0, 0.5, 250).tolist(), rng.lognormal(1, 0.5, 250).tolist()
  losses[30], norms[40] = math.nan, math.inf
  finite = [math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(losses, norms, strict=True)]
  expected = []
  for step in range(1, 251):  # losses[step - 1] is its own
    known = [i for i in range(step - LAG) if finite[i]]
    recent = [i for i in known if i >= step - LAG - WINDOW - 2][-WINDOW:]
    if len(recent) >= FEWEST and finite[step - 1]:
      above = losses[step - 1] > 2 * np.median([losses[i] for i in recent])
      if above or norms[step - 1] > 2 * np.median([norms[i] for i in recent]):
        expected.append(step)
  assert 20 < len(expected) < 120 and expected[0] > FEWEST + LAG - 1

  spikes, states, found = Spikes(2.0), {}, []
  for step in range(1, 251):
    states[step] = json.dumps(spikes.get_state())
    if spikes.add(step, losses[step - 1], norms[step - 1]):
      found.append(step)
  assert found == expected
  for start in (1, 11, 12, 105, 203):
    continued = Spikes(2.0)
    continued.set_state(json.loads(states[start]))
    again = [step for step in range(start, 251) if continued.add(step, losses[step - 1], norms[step - 1])]
    assert again == [step for step in expected if step >= start]


def test_what_was_read_early_changes_no_limit():
  """Before a checkpoint the loop has read one step more than otherwise: the limits of the next step are the same."""
  ahead, behind = Spikes(3.0), Spikes(3.0)
  for step in range(1, 31):
    ahead.add(step, step, 1.0)
    assert ahead.limits(step + 1) == behind.limits(step + 1)
    behind.add(step, step, 1.0)
  assert ahead.limits(31) == (3 * 15, 3.0)


@pytest.mark.parametrize('factor, losses', [(math.inf, [1.0] * 20 + [1e30]), (2.0, [0.0] * 20 + [1.0])])
def test_no_spikes(factor, losses):
  spikes = Spikes(factor)
  assert not any([spikes.add(step, loss, 1.0) for step, loss in enumerate(losses, start=1)])
