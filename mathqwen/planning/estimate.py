"""What a training step needs of HBM, without compiling it: which settings to compile first, and what fits at all.

Weights, moments and gradients are counted; activations, gathered weights and logits are estimated.
`python tests/planning/measure_fits.py` compares with the TPU compiler, which was not asked about train.remat=none: that
is counted for `search`, whose candidates are compiled, and `fits` refuses it.
"""

import dataclasses
import functools
import math

from jax.sharding import AbstractMesh, AxisType

from mathqwen.adapter_config import AdapterConfig
from mathqwen.config import Experiment, OptimConfig
from mathqwen.hardware import sharding
from mathqwen.hardware.flops import Shape
from mathqwen.model import stack
from mathqwen.model.config import ModelConfig
from mathqwen.training import optim, step


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes on each device at the peak of a step."""

  weights_bytes: int
  moments_bytes: int
  gradients_bytes: int  # float32, and with several micro-batches their sum as well
  rest_bytes: int

  @property
  def total(self) -> int:
    """All of them."""
    return self.weights_bytes + self.moments_bytes + self.gradients_bytes + self.rest_bytes


def estimate(experiment: Experiment, shape: dict[str, int]) -> Estimate:
  """shape: the size of each mesh axis, instead of `experiment.mesh`."""
  cfg, train = experiment.model, experiment.train
  adapted = train.adapter.rank > 0
  frozen, trained, moments = _state(cfg, experiment.optim, train.adapter, train.frozen, tuple(shape.items()))
  rows = experiment.data.batch_size // sharding.batch_shards(shape) // train.micro_batches
  tokens = rows * experiment.data.seq_len // shape['context']
  tensor = shape['tensor']
  model = Shape(cfg)

  kept = 2 * tokens * _kept(cfg, train.remat, tensor)
  if train.remat == 'none':
    kept += 2 * model.layer * cfg.num_hidden_layers // tensor  # the gathered weights of all layers, in bfloat16
  # While layers run backward: what all of them keep, and what one holds in bfloat16: its gathered weights, and their
  # gradient where they are trained.
  one_layer = (2 if adapted else 4) * model.layer // tensor
  one_layer += 2 * tokens * (3 * cfg.intermediate_size // tensor + 6 * cfg.hidden_size)
  # After that, a tied embedding has its gradients as table and as head, and a copy in bfloat16.
  tied = cfg.tie_word_embeddings and not adapted
  at_the_end = 6 * model.head // math.prod(shape.values()) * shape['data'] if tied else 0
  # While the loss is computed: logits of a chunk in float32, and a quarter of that beside them. With gradients of all
  # weights the other two are larger.
  in_loss = kept + 5 * min(train.loss_chunk, tokens) * cfg.vocab_size if adapted else 0
  return Estimate(
    weights_bytes=frozen + trained,
    moments_bytes=moments,
    gradients_bytes=trained * (2 if train.micro_batches > 1 else 1),
    rest_bytes=max(kept + one_layer, at_the_end, in_loss),
  )


@functools.cache
def _state(
  cfg: ModelConfig,
  adamw: OptimConfig,
  adapter: AdapterConfig,
  frozen: AdapterConfig | None,
  shape: tuple[tuple[str, int], ...],
) -> tuple[int, int, int]:
  """Bytes on each device of (frozen weights, trained ones, moments). frozen: as `TrainConfig.frozen`."""
  names, sizes = zip(*shape, strict=True)
  mesh = AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
  state = step.abstract_state(mesh, cfg, optim.optimizer(adamw, 2**30), adapter)
  base = step.abstract_base(mesh, cfg, frozen) if frozen else {}
  return tuple(map(step.bytes_per_device, (base, state.params, state.opt_state)))


def _kept(cfg: ModelConfig, remat: str, tensor: int) -> int:
  """Numbers of 16 bits that the forward pass keeps of a token for the backward pass, in all layers."""
  layers = cfg.num_hidden_layers
  if remat == 'nested':
    # It keeps the inputs of all groups, and those of the layers in the group that is being differentiated.
    size = stack.group_size(layers)
    layers = layers // size + size
  D, F = cfg.hidden_size, cfg.intermediate_size
  queries, keys = cfg.head_dim * cfg.num_attention_heads, cfg.head_dim * cfg.num_key_value_heads
  qkv = queries + 2 * keys
  # Of one layer: (as wide as the residual stream; of the heads and the MLP, which tensor parallelism splits)
  whole, split = {
    # Every operand of every product and norm. The norms are in float32, whose numbers count twice.
    'none': (8 * D, qkv + 2 * queries + 6 * F),
    'dots': (2 * D, qkv + 2 * F),
    'gate': (2 * D, qkv + F),
    'mlp': (2 * D, qkv),
    'full': (D, 0),
    'nested': (D, 0),
  }[remat]
  return layers * (whole + split // tensor)
