"""How many greedy answers differ between a batch and alone: `python tests/inference/measure_batching.py`.

The weights are random, so that many next tokens are close calls. In float32 no answer should differ.
"""

import jax
import numpy as np

from mathqwen.inference import generate
from mathqwen.inference.sampling import AnswerRequest
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig

ANSWERS, TOKENS, BATCH = 128, 64, 128

if __name__ == '__main__':
  cfg = ModelConfig(4096, 128, 384, 4, 4, 2, 32, 256)
  params = jax.jit(parameters.init, static_argnums=1)(jax.random.key(0), cfg)
  random = np.random.default_rng(0)
  prompts = [random.integers(0, cfg.vocab_size, random.integers(8, 64)).tolist() for _ in range(ANSWERS)]
  for dtype in ('float32', 'bfloat16'):
    request = AnswerRequest(TOKENS, cfg.vocab_size, stop_ids=(-1,))
    alone, together = (
      generate.generate(params, cfg, prompts, request, generate.Execution(size, dtype)) for size in (1, BATCH)
    )
    other = sum(a != b for a, b in zip(alone, together, strict=True))
    print(f'{dtype}: {other} of {ANSWERS} answers of {TOKENS} tokens differ between {BATCH} at a time and alone')
