import jax
import pytest

from mathqwen.config import OptimConfig
from mathqwen.model import qwen
from mathqwen.training import optim


@pytest.mark.parametrize(
  'kind, rows',
  [
    # Half-way down a cosine from 1 to 0.1 is 0.55; a third of the way, where cos(60 degrees) is 1/2, is 0.775.
    ('cosine', {0: 0, 1: 2e-5 / 1430, 715: 1e-5, 1430: 2e-5, 17620: 1.55e-5, 25715: 1.1e-5, 50_000: 2e-6}),
    ('linear', {0: 0, 1: 2e-5 / 1430, 715: 1e-5, 1430: 2e-5, 17620: 1.4e-5, 25715: 1.1e-5, 50_000: 2e-6}),
    ('constant', {0: 0, 1: 2e-5 / 1430, 715: 1e-5, 1430: 2e-5, 17620: 2e-5, 25715: 2e-5, 50_000: 2e-5}),
  ],
)
def test_learning_rates_of_the_recipe(kind, rows):
  rate = optim.schedule(OptimConfig(schedule=kind), 50_000)
  assert {step: float(rate(step)) for step in rows} == pytest.approx(rows, rel=1e-5, abs=1e-12)
  assert float(rate(60_000)) == pytest.approx(rows[50_000])  # stays where it ended


@pytest.mark.parametrize('kind, last', [('cosine', 0.25), ('linear', 0.25), ('constant', 1.0)])
def test_schedule_without_warmup_starts_at_the_peak(kind, last):
  rate = optim.schedule(OptimConfig(learning_rate=1.0, warmup_steps=0, schedule=kind, final_ratio=0.25), 10)
  assert (float(rate(0)), float(rate(10))) == pytest.approx((1.0, last))


def test_weights_that_decay(tiny_config):
  decays = {}
  for family in ('qwen2', 'qwen3'):
    mask = optim.decay_mask(qwen.abstract(tiny_config(family)))
    decays |= {'/'.join(key.key for key in path): value for path, value in jax.tree_util.tree_leaves_with_path(mask)}
  assert decays == {
    'embed': True,
    'head': True,
    'norm': False,
    'layers/input_norm': False,
    'layers/post_norm': False,
    'layers/q': True,
    'layers/k': True,
    'layers/v': True,
    'layers/o': True,
    'layers/q_bias': False,
    'layers/k_bias': False,
    'layers/v_bias': False,
    'layers/q_norm': False,
    'layers/k_norm': False,
    'layers/gate': True,
    'layers/up': True,
    'layers/down': True,
  }
