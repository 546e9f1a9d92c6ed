"""FLOPs of a step, counted by hand."""

import dataclasses

import pytest

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


def test_weights_of_a_tied_head_count_once():
  cfg = PRESETS['Qwen2.5-7B']
  tied = dataclasses.replace(cfg, tie_word_embeddings=True)
  assert flops.Shape(cfg).weights - flops.Shape(tied).weights == 152064 * 3584


ATTENTION = 3584 * (3584 + 512 + 512 + 3584)
UP = 3584 * 18944
KEYS = 4 * 3584 * 1024 * 1025 // 2  # FLOPs of attention itself, one row


@pytest.mark.parametrize(
  'remat, weights, attentions',
  [
    ('none', 0, 0),
    ('dots', 0, 1),
    ('gate', UP, 1),
    ('mlp', 2 * UP, 1),
    ('full', ATTENTION + 2 * UP, 1),
    ('nested', (ATTENTION + 2 * UP) + (ATTENTION + 3 * UP) + ATTENTION, 3),
  ],
)
def test_recomputed_flops_by_hand(remat, weights, attentions):
  got = flops.recomputed_flops(PRESETS['Qwen2.5-7B'], remat, 2, 1024)
  assert got == 2 * 28 * (2 * 1024 * weights + attentions * KEYS)
