"""What differs between versions of JAX and Flax: every difference is here, with the versions that it is for.

mathqwen works with JAX 0.7.2, which Colab has, to 0.12, and with the Flax, Optax, Orbax and Grain of their time;
setup.py has the ranges. JAX and Flax are imported inside the functions, because this module is also used before JAX
may be imported.
"""

import functools
import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from mathqwen.errors import UserError

Version = tuple[int, ...]


def release(version: str) -> Version:
  """'0.12.0.1' -> (0, 12, 0, 1), and '0.13.0.dev2026' -> (0, 13, 0): numbers that compare in the order of releases."""
  return tuple(map(int, re.match(r'\d+(\.\d+)*', version).group().split('.')))


def axis_names(axes: tuple[str, ...]) -> dict[str, Any]:
  """The keywords that give the axes of an `nnx.Param` these names, and place nothing on a mesh.

  Flax 0.12.4 and newer call them `out_sharding`. Older ones know `sharding_names`: they take `out_sharding` too, as
  metadata that nothing reads, and every PartitionSpec is empty.
  """
  import flax

  keyword = 'out_sharding' if release(flax.__version__) >= (0, 12, 4) else 'sharding_names'
  # The axes are names only; `hardware.sharding` decides what they mean on a mesh. Flax 0.11 has no eager sharding and
  # keeps this keyword as metadata.
  return {keyword: axes, 'eager_sharding': False}


def axes_of(state) -> dict:
  """The axis names of each weight of an NNX state, as nested dicts of tuples: what `axis_names` gave them.

  UserError: when Flax has lost the names of a weight, which would then be copied to every device.
  """
  import flax
  import jax
  from flax import nnx

  specs = nnx.to_pure_dict(nnx.get_partition_spec(state))
  axes = jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
  for path, weight in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state)):
    names = functools.reduce(lambda tree, key: tree[key.key], path, axes)
    if len(names) != len(weight.shape):
      name = '/'.join(key.key for key in path)
      raise UserError(
        f'flax {flax.__version__} gives the {len(weight.shape)} axes of the weight {name} the names {names}, so the '
        'weight would be copied to every device: install a flax of the range in setup.py'
      )
  return axes


def manual_axes(shard_map_params: Mapping[str, Any]) -> frozenset[str]:
  """The mesh axes that a `shard_map` splits, from its parameters in a jaxpr: `manual_axes` below JAX 0.10."""
  name = 'newly_manual_axes' if 'newly_manual_axes' in shard_map_params else 'manual_axes'
  return shard_map_params[name]


def least_rows() -> int:
  """The least number of rows of a matrix product on a CPU with which a row's result is the same beside any others.

  JAX 0.7 sums in another order for fewer than 4 rows. Newer ones do not, and are slower at one row than at two.
  """
  import jax

  return 2 if jax.__version_info__ >= (0, 8) else 4


def client_exits() -> bool:
  """Whether the client of `jax.distributed` exits at a fatal error: JAX below 0.9. Newer ones abort."""
  import jax

  return jax.__version_info__ < (0, 9)


def fusion_emitters_flag() -> str:
  """The XLA flag that turns off MLIR for each fusion on a CPU, so that small programs compile in a third of the time.

  Empty from JAX 0.11 on: its XLA has no such flag, and ends the process of a user who sets it.
  """
  older = release(importlib.metadata.version('jax')) < (0, 11)
  return '--xla_cpu_use_fusion_emitters=false' if older else ''


def collective_timeout_flag(seconds: int) -> str:
  """The XLA flag for how long simulated devices on a CPU wait for each other before XLA ends the process.

  Seen in JAX 0.10.2 and newer. Empty before 0.10: XLA 0.7 has no such flag, and ends the process of a user who sets it.
  """
  newer = release(importlib.metadata.version('jax')) >= (0, 10)
  return f'--xla_cpu_collective_call_terminate_timeout_seconds={seconds}' if newer else ''


def wanted_libtpu() -> str | None:
  """'0.0.42.*': the libtpu that belongs to the installed JAX, from JAX's own metadata. None: it asks for none."""
  for requirement in importlib.metadata.requires('jax') or []:
    if match := re.match(r'libtpu==([\w.*]+)', requirement):
      return match.group(1)
  return None


def tpu_requirement() -> str:
  """What to give to pip for the libtpu that belongs to the installed JAX."""
  return f"'jax[tpu]=={importlib.metadata.version('jax')}'"


def other_libtpu() -> str | None:
  """One line when the installed libtpu is not the one that belongs to the installed JAX, with the remedy; else None."""
  jax = importlib.metadata.version('jax')
  wanted = wanted_libtpu()
  try:
    installed = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return None
  exact = (wanted or installed).removesuffix('.*')
  if installed == exact or (wanted != exact and installed.startswith(f'{exact}.')):
    return None
  return f'libtpu {installed} is not the one of JAX {jax}, which asks for {wanted}: pip install {tpu_requirement()}'
