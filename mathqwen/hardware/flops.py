"""Sizes and FLOPs of a training step, from the config alone. `cost` counts what a compiled program does."""

import dataclasses
from typing import TYPE_CHECKING

from mathqwen.adapter_config import NO_ADAPTER, AdapterConfig
from mathqwen.hardware import chips
from mathqwen.model.config import ModelConfig

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from mathqwen.config import Experiment


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

  def adapters(self, adapter: AdapterConfig) -> int:
    """All adapters."""
    c = self.cfg
    D, F = c.hidden_size, c.intermediate_size
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    others = {'q': queries, 'k': keys, 'v': keys, 'o': queries, 'gate': F, 'up': F, 'down': F}  # the other side is D
    return c.num_hidden_layers * adapter.rank * sum(D + others[name] for name in adapter.targets)

  def trained(self, adapter: AdapterConfig) -> int:
    """What is trained: adapters, or without any the whole model."""
    return self.adapters(adapter) if adapter.rank else self.weights

  def attention_flops(self, length: int) -> int:
    """Of one row in one layer's forward pass: queries times keys and probabilities times values, up to the diagonal."""
    return 4 * self.cfg.num_attention_heads * self.cfg.head_dim * length * (length + 1) // 2


def model_flops(
  cfg: ModelConfig, rows: int, length: int, adapter: AdapterConfig = NO_ADAPTER, has_reference: bool = False
) -> int:
  """FLOPs that a step on [rows, length] needs: the backward pass takes twice the forward pass, nothing is recomputed.

  With adapters, no gradient of the frozen weights is needed: their backward pass takes as much as their forward pass.
  has_reference: a forward pass of the weights that the loss of pairs compares with, too.
  Every position counts, padding and those without loss too, and causal attention over whole rows, whatever their
  segments: the convention of MFU elsewhere.
  """
  shape, L = Shape(cfg), cfg.num_hidden_layers
  weights = L * shape.layer + shape.head
  products = 4 * weights + 6 * shape.adapters(adapter) if adapter.rank else 6 * weights
  reference = rows * (2 * length * weights + L * shape.attention_flops(length)) if has_reference else 0
  return reference + rows * (length * products + 3 * L * shape.attention_flops(length))


def recomputed_flops(cfg: ModelConfig, remat: str, rows: int, length: int) -> int:
  """FLOPs of the forward pass that the backward pass of [rows, length] repeats, with this `train.remat`."""
  if remat == 'none':
    return 0
  shape = Shape(cfg)
  full = shape.attention + 2 * shape.up  # all but the MLP's last matrix, whose output nothing needs
  nested = full + shape.layer + shape.attention  # the groups' forward pass too, and attention once more in it
  weights = {'dots': 0, 'gate': shape.up, 'mlp': 2 * shape.up, 'full': full, 'nested': nested}[remat]
  attentions = 3 if remat == 'nested' else 1
  return cfg.num_hidden_layers * rows * (2 * length * weights + attentions * shape.attention_flops(length))


def peak_seconds(experiment: 'Experiment', mesh: 'Mesh') -> float | None:
  """Seconds that a step's model FLOPs take at the peak of the mesh's devices; None where no peak is known."""
  peak = chips.peak_flops(mesh.devices.flat[0].device_kind, experiment.train.compute_dtype)
  if peak is None:
    return None
  data, train = experiment.data, experiment.train
  flops = model_flops(experiment.model, data.batch_size, data.seq_len, train.adapter, train.objective == 'dpo')
  return flops / (mesh.size * peak)
