"""FLOPs of a step, counted by hand."""

from mathqwen.hardware import flops
from mathqwen.model.config import PRESETS


def test_model_flops_by_hand():
  cfg = PRESETS['Qwen2.5-7B']
  layer = 3584 * (3584 + 512 + 512 + 3584) + 3 * 3584 * 18944
  weights = 28 * layer + 152064 * 3584
  pairs = 1024 * 1025 // 2  # of a query and a key up to it
  want = 128 * (6 * 1024 * weights + 3 * 28 * 2 * 2 * 3584 * pairs)
  assert flops.model_flops(cfg, 128, 1024) == want
  assert flops.recomputed_flops(cfg, 'mlp', 128, 1024) - flops.recomputed_flops(cfg, 'dots', 128, 1024) == (
    128 * 1024 * 28 * 2 * 2 * 3584 * 18944
  )
