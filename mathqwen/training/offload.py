"""Moments in the memory of the host (`optim.offload`): the devices hold those of few layers at a time.

The compiled step itself reads and writes them, layer by layer after the backward pass. Read all at once, they would
take as much memory of the devices as if they were there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, SingleDeviceSharding

from mathqwen.errors import UserError

KIND = 'pinned_host'  # JAX's name for memory of the host that the devices reach


class Offloaded(NamedTuple):
  """An optimizer whose moments are on the host. `update` takes gradients after `clip`: of all weights, or of some."""

  init: Callable
  update: Callable
  clip: Callable[[dict], dict]


def place(tx: optax.GradientTransformation | Offloaded, where: NamedSharding) -> NamedSharding:
  """Where a moment is between steps. where: on the devices."""
  return where.with_memory_kind(KIND) if isinstance(tx, Offloaded) else where


def by_layer(
  advance: Callable[[dict, Any, dict], tuple[dict, Any]], tx: Offloaded, grads: dict, opt_state: Any, params: dict
) -> tuple[dict, Any]:
  """(params, opt_state) after an update. Inside jit.

  advance: (clipped grads, opt_state, params) -> (params, opt_state), elementwise, of any part of these trees.
  """

  def on_devices(grads, opt_state, params):
    params, opt_state = advance(grads, _moved(opt_state, jax.memory.Space.Device), params)
    return params, _moved(opt_state, jax.memory.Space.Host)

  def layers(tree):
    return _weights(lambda x: {'layers': x['layers']}, tree)

  def others(tree):
    return _weights(lambda x: {name: leaf for name, leaf in x.items() if name != 'layers'}, tree)

  def update_layer(index, trees):
    one = lambda tree: _weights(lambda x: jax.tree.map(lambda leaf: leaf[index], x), tree)
    updated = on_devices(one(layers(grads)), one(trees[1]), one(trees[0]))
    # In place: a `scan` would write its results into new arrays, beside those that they replace.
    put = lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0)
    return tuple(_weights(lambda x, new: jax.tree.map(put, x, new), *pair) for pair in zip(trees, updated, strict=True))

  grads = tx.clip(grads)
  # Counters are in both parts of the state; they count on in this one, which may have no weights.
  updated = on_devices(others(grads), others(opt_state), others(params))
  count = len(jax.tree.leaves(params['layers'])[0])
  of_layers = jax.lax.fori_loop(0, count, update_layer, (layers(params), layers(opt_state)))
  return tuple(_weights(lambda x, y: x | y, *pair) for pair in zip(updated, of_layers, strict=True))


def _weights(f: Callable, tree: Any, *more: Any) -> Any:
  """`tree`, with f of each dict of weights or moments in it, and of the same ones of `more`. Counters stay."""
  is_dict = lambda x: isinstance(x, dict)
  return jax.tree.map(lambda x, *rest: f(x, *rest) if is_dict(x) else x, tree, *more, is_leaf=is_dict)


def _moved(opt_state: Any, space: jax.memory.Space) -> Any:
  return _weights(lambda moments: jax.device_put(moments, space), opt_state)


def check() -> None:
  """UserError: when the devices here cannot keep arrays on the host."""
  device = jax.local_devices()[0]
  try:
    where = SingleDeviceSharding(device, memory_kind=KIND)
    jax.jit(lambda: jnp.zeros(1), out_shardings=where)()
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError):
    raise UserError(
      f'optim.offload: JAX {jax.__version__} cannot keep arrays of {device.device_kind} in the memory of the host: set '
      'optim.offload=false, or optim.name=adamw_8bit, whose moments take a quarter'
    ) from None
