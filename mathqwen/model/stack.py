"""The loop over layers, and what its backward pass keeps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mathqwen.model.attention import SAVED

# What a layer keeps for the backward pass in addition to its input; the rest is computed again. Most memory first.
_keep = jax.checkpoint_policies.save_only_these_names
REMAT = {
  'none': None,  # keeps everything
  'dots': _keep('qkv', SAVED, 'mid', 'gate', 'up'),  # computes no product of a weight again
  'gate': _keep('qkv', SAVED, 'mid', 'gate'),  # computes `up` again
  'mlp': _keep('qkv', SAVED, 'mid'),  # computes `gate` and `up` again
  'full': jax.checkpoint_policies.nothing_saveable,  # computes everything again but `down`, which no gradient needs
  'nested': jax.checkpoint_policies.nothing_saveable,  # also drops most layers' inputs, and computes attention twice
}


def group_size(count: int) -> int:
  """Layers in a group of remat 'nested': the largest divisor of `count` that is at most its square root."""
  return max(n for n in range(1, count + 1) if count % n == 0 and n * n <= count)


def scan_layers(
  layer: Callable, x_BTD: jax.Array, weights: dict, remat: str, cast: Callable[[dict], dict]
) -> jax.Array:
  """x_BTD after all layers, each `layer(x_BTD, index, weights of the layer) -> x_BTD`.

  weights: the tree of stacked weights, L first. remat: a name in `REMAT`. cast: brings the weights of several layers
  into the dtype of the computation; only 'nested' calls it.
  """
  count = jax.tree.leaves(weights)[0].shape[0]
  numbered = (jnp.arange(count), weights)

  def step(x_BTD, numbered_layer):
    return layer(x_BTD, *numbered_layer), None

  if remat != 'none':
    # prevent_cse=False: inside a scan XLA cannot merge the recomputation with the forward pass anyway.
    step = jax.checkpoint(step, prevent_cse=False, policy=REMAT[remat])
  if remat != 'nested':
    return jax.lax.scan(step, x_BTD, numbered)[0]

  # Keep only the inputs of groups of about sqrt(L) layers, and the inputs of the layers of one group at a time.
  size = group_size(count)
  groups = jax.tree.map(lambda w: w.reshape(count // size, size, *w.shape[1:]), numbered)

  def group(x_BTD, numbered_group):
    indices, weights = numbered_group
    # Cast before the inner scan, so that XLA's copies of these weights and gradients take half the memory.
    return jax.lax.scan(step, x_BTD, (indices, cast(weights)))

  return jax.lax.scan(jax.checkpoint(group, prevent_cse=False, policy=REMAT[remat]), x_BTD, groups)[0]


def checkpoint_nested(mix: Callable, mlp: Callable) -> tuple[Callable, Callable]:
  """(mix, mlp) of a `Block`, checkpointed for remat 'nested'.

  At any time the backward pass holds only what attention needs, or only what the MLP needs for half of the tokens.
  """
  return jax.checkpoint(mix), functools.partial(_by_halves, jax.checkpoint(mlp))


def _by_halves(f, x_BTD):
  """`f(half of x, its number)` of every second token, then of the others: `f` must treat each token by itself.

  Not the first half, then the second: when the length is split over chips, each chip must hold tokens of both halves.
  """
  B, T, D = x_BTD.shape
  if T % 2:
    return f(x_BTD)
  halves = jnp.unstack(x_BTD.reshape(B, T // 2, 2, D), axis=2)
  return jnp.stack([f(half, jnp.int32(number)) for number, half in enumerate(halves)], axis=2).reshape(B, T, D)
