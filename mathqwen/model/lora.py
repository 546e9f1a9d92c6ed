"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the frozen matrices of the layers.

  product   W x + scale * B (A x)
  A         [L, R, *inputs], begins as PEFT draws it: uniform within +-1 / sqrt(number of inputs)
  B         [L, *outputs, R], begins as zeros, so that training starts from the base
  DoRA      each row of W + scale * B A is scaled to a trained length, `magnitude` [L, *outputs]; the length that it has
            gets no gradient (Liu et al. 2024, arXiv 2402.09353)

What is trained is a tree of its own, {'layers': {'q': {'a': ..., 'b': ...}, ...}}; `join` puts it into the tree of the
base, whose seven matrices then are `adapted.Adapted`. R is the rank; other letters as in `qwen.py`.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mathqwen.adapter_config import AdapterConfig
from mathqwen.model import parameters
from mathqwen.model.adapted import OUTPUTS, Adapted, lengths, merge
from mathqwen.model.config import ModelConfig


def join(base: dict, trained: dict, adapter: AdapterConfig) -> dict:
  """The tree of the model, from the frozen base (as `parameters.init`) and its adapters.

  trained: {}, or without some of the matrices: those are frozen alone.
  """
  of_layers = trained.get('layers', {})

  def adapted(name):
    parts = {part: of_layers.get(name, {}).get(part) for part in ('a', 'b', 'magnitude')}
    return Adapted(base['layers'][name], **parts, outputs=OUTPUTS[name], scale=adapter.scale)

  return base | {'layers': base['layers'] | {name: adapted(name) for name in OUTPUTS}}


def init(key: jax.Array, cfg: ModelConfig, adapter: AdapterConfig, base: dict | None = None) -> dict:
  """The adapters before the first step, float32. base: the frozen weights, for DoRA's lengths; not read without it."""
  shapes = parameters.abstract(cfg)['layers']
  found = {}
  for number, (name, outputs) in enumerate(OUTPUTS.items()):
    if name not in adapter.targets:
      continue
    L, *axes = shapes[name].shape
    bound = math.prod(axes[outputs:]) ** -0.5
    drawn = jax.random.uniform(
      jax.random.fold_in(key, number), (L, adapter.rank, *axes[outputs:]), jnp.float32, -bound, bound
    )
    found[name] = {'a': drawn, 'b': jnp.zeros((L, *axes[:outputs], adapter.rank), jnp.float32)}
    if adapter.dora:
      found[name]['magnitude'] = jax.lax.map(lengths, join(base, {}, adapter)['layers'][name])
  return {'layers': found}


def trained(cfg: ModelConfig, adapter: AdapterConfig) -> dict:
  """The tree of what is trained, as `jax.ShapeDtypeStruct`s: with rank 0 all weights."""
  base = parameters.abstract(cfg)
  if not adapter.rank:
    return base
  return jax.eval_shape(lambda base: init(parameters.random_key(0), cfg, adapter, base), base)


def trained_axes(cfg: ModelConfig, adapter: AdapterConfig) -> dict:
  """The same tree as tuples of axis names."""
  names = parameters.logical_axes(cfg)
  if not adapter.rank:
    return names
  found = {}
  for name, parts in trained(cfg, adapter)['layers'].items():
    weight = Adapted(None, **({'magnitude': None} | parts), outputs=OUTPUTS[name], scale=adapter.scale)
    axes = weight.axes(names['layers'][name])
    found[name] = {part: getattr(axes, part) for part in parts}
  return {'layers': found}


def merged(weight: Adapted, dtype: DTypeLike) -> jax.Array:
  """[L, *outputs, *inputs] in `dtype`: the plain weight that computes what a stacked `Adapted` computes."""

  def one_layer(layer):
    whole = merge(layer)
    if layer.magnitude is not None:
      factor = layer.magnitude / lengths(layer)
      whole *= factor.reshape(*factor.shape, *[1] * (whole.ndim - factor.ndim))
    return whole.astype(dtype)

  return jax.lax.map(one_layer, weight)  # one layer at a time is held in float32
