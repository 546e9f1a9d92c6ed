"""Greedy answers of a model of random weights, whose next tokens are close calls, that are other ones in a batch than
alone: `python tests/measure_batching.py`. In float32 there should be none."""

import jax
import numpy as np

from mathqwen.inference import generate
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig

ANSWERS, TOKENS, BATCH = 128, 64, 128

if __name__ == '__main__':
  cfg = ModelConfig(4096, 128, 384, 4, 4, 2, 32, 256)
  params = jax.jit(qwen.init, static_argnums=1)(jax.random.key(0), cfg)
  random = np.random.default_rng(0)
  prompts = [random.integers(0, cfg.vocab_size, random.integers(8, 64)).tolist() for _ in range(ANSWERS)]
  for dtype in ('float32', 'bfloat16'):
    alone, together = (
      generate.generate(
        params, cfg, prompts, max_new_tokens=TOKENS, vocab_size=cfg.vocab_size, stop_ids=(-1,), batch_size=size,
        dtype=dtype,
      )
      for size in (1, BATCH)
    )  # fmt: skip
    other = sum(a != b for a, b in zip(alone, together, strict=True))
    print(f'{dtype}: {other} of {ANSWERS} answers of {TOKENS} tokens are other ones {BATCH} at a time than alone')
