"""All weights of a model: random ones, their shapes, and the names of their axes.

Each is a tree of nested dicts, the same for all functions here:

  {'embed': [V, D], 'layers': {'q': [L, N, H, D], 'gate': [L, F, D], ...}, 'norm': [D], 'head': [V, D]}

The weights of a layer are declared in `qwen.Block`, and stacked here. A model with a tied head has no `head`.
"""

import functools

import jax
from flax import nnx

from mathqwen import compat
from mathqwen.model.config import ModelConfig
from mathqwen.model.qwen import Block, ones, param


class Qwen(nnx.Module):
  """All weights. It has no `__call__`: the functions below take them as a dict."""

  def __init__(self, cfg: ModelConfig, *, rngs):
    V = cfg.vocab_size
    D = cfg.hidden_size
    normal = nnx.initializers.normal(cfg.initializer_range)
    blocks = nnx.vmap(lambda r: Block(cfg, rngs=r), transform_metadata={nnx.PARTITION_NAME: 'layers'})
    self.embed = param(normal, rngs, (V, D), 'vocab', 'vocab_width')
    self.layers = nnx.split_rngs(splits=cfg.num_hidden_layers)(blocks)(rngs)  # every weight gains a leading L
    self.norm = param(ones, rngs, (D,), 'norm')
    if not cfg.tie_word_embeddings:
      self.head = param(normal, rngs, (V, D), 'vocab', 'vocab_width')


def random_key(seed: int) -> jax.Array:
  """The key from which a model's random numbers are drawn; JAX_DEFAULT_PRNG_IMPL does not change it."""
  return jax.random.key(seed, impl='threefry2x32')


def init(key: jax.Array, cfg: ModelConfig) -> dict:
  """Random float32 weights."""
  return nnx.to_pure_dict(nnx.split(Qwen(cfg, rngs=nnx.Rngs(params=key)), nnx.Param)[1])


@functools.lru_cache
def _abstract_state(cfg: ModelConfig):
  return nnx.split(nnx.eval_shape(lambda: Qwen(cfg, rngs=nnx.Rngs(0))), nnx.Param)[1]


def abstract(cfg: ModelConfig) -> dict:
  """The tree of `init` as `jax.ShapeDtypeStruct`s."""
  as_struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  return jax.tree.map(as_struct, nnx.to_pure_dict(_abstract_state(cfg)))


def logical_axes(cfg: ModelConfig) -> dict:
  """The tree of `init` as tuples of axis names.

  UserError: when Flax has lost the names of a weight, which would then be copied to every device.
  """
  return compat.axes_of(_abstract_state(cfg))
