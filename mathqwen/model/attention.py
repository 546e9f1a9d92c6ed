"""Attention of training, without a cache, behind one choice: `select(name, mesh)` gives the function for a mesh.

Every implementation is a function (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT) -> o_BTNH: a query sees the keys of its own
segment up to itself. Another one is a function here, a line in `IMPLEMENTATIONS`, and where it is the best of its
platform a line in `AUTO`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mathqwen.errors import UserError
from mathqwen.model import splash
from mathqwen.model.layers import attention, causal_mask

BLOCK, MOST_BLOCKS = 128, 16  # queries that `blocks` takes together, at least; blocks of a row, at most


def reference(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
  """Scores of all pairs, then the mask."""
  return attention(q_BTNH, k_BTKH, v_BTKH, causal_mask(segment_ids_BT, segment_ids_BT))


def blocks(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
  """Blocks of queries, each against the keys up to its end: the masked half is hardly computed."""
  T = q_BTNH.shape[1]
  size = max(BLOCK, -(-T // MOST_BLOCKS))
  out = []
  for start in range(0, T, size):
    end = min(start + size, T)
    mask = causal_mask(segment_ids_BT[:, start:end], segment_ids_BT[:, :end], start)
    out.append(attention(q_BTNH[:, start:end], k_BTKH[:, :end], v_BTKH[:, :end], mask))
  return jnp.concatenate(out, axis=1)


# name -> (make(mesh) -> the function, platforms that run it; () is all). `mesh` may be None: one default device.
IMPLEMENTATIONS: dict[str, tuple[Callable, tuple[str, ...]]] = {
  'reference': (lambda mesh: reference, ()),
  'blocks': (lambda mesh: blocks, ()),
  'splash': (splash.make, ('tpu',)),
}
AUTO = {'cpu': 'blocks', 'tpu': 'splash'}  # platform -> name; elsewhere `reference`


def select(name: str, mesh: jax.sharding.Mesh | None = None):
  """The implementation `name`; 'auto' goes by the platform of the mesh's devices. UserError where it cannot run."""
  platform = (jax.devices() if mesh is None else mesh.devices.flat)[0].platform
  make, platforms = IMPLEMENTATIONS[AUTO.get(platform, 'reference') if name == 'auto' else name]
  if platforms and platform not in platforms:
    raise UserError(
      f'train.attention {name!r} runs on {" and ".join(platforms)} only, and the devices here are {platform}: '
      f"set train.attention='auto'"
    )
  return make(mesh)
