"""Sizes and FLOPs of a step, from the config alone. `cost` counts those of the program."""

import dataclasses

from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Shape:
  """What estimates need: numbers of weights of a layer's multiplications, and of the whole."""

  cfg: ModelConfig

  @property
  def attention(self) -> int:
    c = self.cfg
    return c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)

  @property
  def up(self) -> int:
    return self.cfg.hidden_size * self.cfg.intermediate_size

  @property
  def layer(self) -> int:
    return self.attention + 3 * self.up

  @property
  def head(self) -> int:
    return self.cfg.vocab_size * self.cfg.hidden_size

  @property
  def weights(self) -> int:
    return self.cfg.num_hidden_layers * self.layer + self.head * (1 if self.cfg.tie_word_embeddings else 2)

  def attention_flops(self, length: int) -> int:
    """Forward, of one layer and one row: two multiplications of queries with the keys up to their own."""
    return 4 * self.cfg.num_attention_heads * self.cfg.head_dim * length * (length + 1) // 2


def model_flops(cfg: ModelConfig, rows: int, length: int) -> int:
  """FLOPs that a step of [rows, length] needs: backward twice forward, nothing computed again.

  Of every position, padding and those without loss included, and of causal attention over whole rows, whatever the
  segments in them: what MFU counts elsewhere.
  """
  shape, L = Shape(cfg), cfg.num_hidden_layers
  return rows * (6 * length * (L * shape.layer + shape.head) + 3 * L * shape.attention_flops(length))


def recomputed_flops(cfg: ModelConfig, remat: str, rows: int, length: int) -> int:
  """FLOPs that the backward pass takes once more, with `train.remat`."""
  shape = Shape(cfg)
  full = shape.attention + 2 * shape.up
  nested = full + shape.layer + shape.attention  # a forward pass more, and attention once more than that
  weights = {'dots': 0, 'gate': shape.up, 'mlp': 2 * shape.up, 'nested': nested}.get(remat, full)
  attentions = 3 if remat == 'nested' else 1
  return cfg.num_hidden_layers * rows * (2 * length * weights + attentions * shape.attention_flops(length))
