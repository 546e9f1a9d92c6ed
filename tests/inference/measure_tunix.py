"""Greedy decoding beside Tunix's sampler, by turns, on the model of `mathqwen bench decode`.

`python tests/inference/measure_tunix.py`; it needs google-tunix 0.1.7 and what that imports.
"""

import functools

import numpy as np

from mathqwen.bench import sides, turns
from mathqwen.model.config import ModelConfig

CFG = ModelConfig(32_000, 512, 1408, 8, 8, 4, 64, 1024)
BATCH, PROMPT, NEW_TOKENS, TURNS = 8, 128, 128, 5
NONE = CFG.vocab_size  # a stop id that is never drawn


class Numbers:
  """A tokenizer whose texts are the numbers of rows."""

  def __init__(self, rows):
    self.rows = rows

  def encode(self, text):
    return self.rows[int(text)].tolist()

  def decode(self, ids):
    return str(len(ids))

  def bos_id(self):
    return None

  def eos_id(self):
    return NONE

  def pad_id(self):
    return 0  # no prompt has it


def tunix_side(prompts):
  """A function that decodes with Tunix, and fails unless all answers are whole."""
  from flax import nnx
  from tunix.generate import sampler
  from tunix.models.qwen2 import model

  cfg = model.ModelConfig(
    num_layers=CFG.num_hidden_layers,
    vocab_size=CFG.vocab_size,
    embed_dim=CFG.hidden_size,
    hidden_dim=CFG.intermediate_size,
    num_heads=CFG.num_attention_heads,
    head_dim=CFG.head_dim,
    num_kv_heads=CFG.num_key_value_heads,
    rope_theta=int(CFG.rope_theta),
    norm_eps=CFG.rms_norm_eps,
  )
  cache = sampler.CacheConfig(PROMPT + NEW_TOKENS, cfg.num_layers, cfg.num_kv_heads, cfg.head_dim)
  decode = sampler.Sampler(model.Qwen2(cfg, rngs=nnx.Rngs(0)), Numbers(prompts), cache)

  def run():
    texts = [str(row) for row in range(BATCH)]
    said = decode(texts, max_generation_steps=NEW_TOKENS, max_prompt_length=PROMPT, temperature=0.0, eos_tokens=[NONE])
    assert [len(tokens) for tokens in said.tokens] == [NEW_TOKENS] * BATCH

  return run


def main():
  prompts = np.maximum(sides.decode_prompts(CFG, BATCH, PROMPT), 1)
  both = {
    'tunix': turns.Elsewhere(functools.partial(tunix_side, prompts)),
    'mathqwen': functools.partial(turns.timed, sides.decode_side(CFG, 'float32', prompts, NEW_TOKENS)),
  }
  found = turns.take_turns(both, TURNS, BATCH * NEW_TOKENS)
  ours, theirs = (found[name]['tokens_per_second'] for name in ('mathqwen', 'tunix'))
  print(f'mathqwen {ours:,.0f} tokens/s, tunix {theirs:,.0f}, ratio {ours / theirs:.2f}')


if __name__ == '__main__':
  main()
