"""Sizes and FLOPs of a training step, from the config alone. `cost` counts what a compiled program does."""

import dataclasses

from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Shape:
  """How many weights the matrix multiplications of a model have. Norms and biases are left out."""

  cfg: ModelConfig

  @property
  def attention(self) -> int:
    """The projections of queries, keys, values and output in one layer."""
    c = self.cfg
    return c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)

  @property
  def up(self) -> int:
    """One of the three matrices of a layer's MLP, all of the same size."""
    return self.cfg.hidden_size * self.cfg.intermediate_size

  @property
  def layer(self) -> int:
    """A whole layer."""
    return self.attention + 3 * self.up

  @property
  def head(self) -> int:
    """The output head, as large as the embedding."""
    return self.cfg.vocab_size * self.cfg.hidden_size

  @property
  def weights(self) -> int:
    """The whole model: layers, embedding, and the head unless it is the embedding."""
    return self.cfg.num_hidden_layers * self.layer + self.head * (1 if self.cfg.tie_word_embeddings else 2)

  def attention_flops(self, length: int) -> int:
    """Of one row in one layer's forward pass: queries times keys and probabilities times values, up to the diagonal."""
    return 4 * self.cfg.num_attention_heads * self.cfg.head_dim * length * (length + 1) // 2


def model_flops(cfg: ModelConfig, rows: int, length: int) -> int:
  """FLOPs that a step on [rows, length] needs: the backward pass takes twice the forward pass, nothing is recomputed.

  Every position counts, padding and those without loss too, and causal attention over whole rows, whatever their
  segments: the convention of MFU elsewhere.
  """
  shape, L = Shape(cfg), cfg.num_hidden_layers
  return rows * (6 * length * (L * shape.layer + shape.head) + 3 * L * shape.attention_flops(length))


def recomputed_flops(cfg: ModelConfig, remat: str, rows: int, length: int) -> int:
  """FLOPs of the forward pass that the backward pass of [rows, length] repeats, with this `train.remat`."""
  if remat == 'none':
    return 0
  shape = Shape(cfg)
  full = shape.attention + 2 * shape.up  # all but the MLP's last matrix, whose output nothing needs
  nested = full + shape.layer + shape.attention  # the groups' forward pass too, and attention once more in it
  weights = {'dots': 0, 'gate': shape.up, 'mlp': 2 * shape.up, 'nested': nested}.get(remat, full)
  attentions = 3 if remat == 'nested' else 1
  return cfg.num_hidden_layers * rows * (2 * length * weights + attentions * shape.attention_flops(length))
