"""What a training step costs, loops included: FLOPs of its matrix products from the jaxpr, traffic from the HLO.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs. How often a loop runs is usually in the
program. Where it depends on data, as in the loss head, the caller gives it, for each such loop in program order.
"""

import math
import re
from collections.abc import Iterator

from jax.extend import core

from mathqwen import compat
from mathqwen.hardware import hlo

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')


def matmul_flops(jaxpr: core.ClosedJaxpr, turns: tuple[int, ...] = ()) -> int:
  """FLOPs of all matrix multiplications over all devices. Elementwise work is not counted.

  Of a `cond`, the more expensive branch counts. Of a Pallas kernel, the whole grid counts, including the blocks that an
  attention kernel skips.

  turns: how often each data-dependent loop runs. StopIteration: when there are more such loops than `turns`.
  """
  return _flops(jaxpr.jaxpr, iter(turns))


def _flops(jaxpr: core.Jaxpr, turns: Iterator[int]) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    inner = [j for value in params.values() for j in _jaxprs(value)]
    if name == 'dot_general':
      # 2 per multiply-add: numbers of the result times the length of the sum behind each.
      ((contracted, _), _) = params['dimension_numbers']
      left_shape = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left_shape[d] for d in contracted)
    elif name == 'while':  # a loop of known length is a `scan`
      total += next(turns) * _flops(params['body_jaxpr'].jaxpr, turns)
    elif name == 'cond':
      total += max(_flops(j, turns) for j in inner)
    elif inner:
      total += _times(name, params) * sum(_flops(j, turns) for j in inner)
  return total


def _times(name: str, params: dict) -> int:
  """How often a primitive runs the jaxpr inside it."""
  if name == 'scan':
    return params['length']
  if name == 'pallas_call':
    return math.prod(params['grid_mapping'].grid)
  if name == 'shard_map':  # its jaxpr has the shapes of one device, and all devices count
    return math.prod(params['mesh'].shape[axis] for axis in compat.manual_axes(params))
  return 1


def _jaxprs(value) -> list[core.Jaxpr]:
  """The jaxprs in one parameter of a primitive."""
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  if isinstance(value, tuple | list):
    return [j for v in value for j in _jaxprs(v)]
  return []


def collective_bytes(program: str, turns: tuple[int, ...] = ()) -> dict[str, int]:
  """{kind: bytes that one chip receives from others in a step}, from the text of a compiled program.

  A collective over n chips with a result of b bytes on each:

    all-gather, all-to-all   b (n - 1) / n
    reduce-scatter           b (n - 1)
    all-reduce               2 b (n - 1) / n
    collective-permute       b

  turns: as in `matmul_flops`.
  """
  computations, entry = hlo.parse(program)
  times = hlo.executions(computations, entry, iter(turns))
  partitions = re.search(r'num_partitions=(\d+)', program)
  devices = int(partitions.group(1)) if partitions else 1

  # In a TPU program an asynchronous collective has several instructions, all with the same channel: count them once.
  received = {}
  for name, lines in computations.items():
    for line in lines:
      kind = line.opcode.removesuffix('-start')
      if kind not in KINDS or not times[name]:
        continue
      size, n = _result_bytes(line), _group_size(line.text, devices)
      if kind == 'all-reduce' and 'all-reduce-scatter' in name:  # a fusion in which each chip keeps only its part
        kind, size = 'reduce-scatter', size // n
      channel = re.search(r'channel_id=(\d+)', line.text)
      key = (kind, channel.group(1)) if channel else (kind, name, line.text)
      received[key] = max(received.get(key, 0), _received(kind, size, n) * times[name])

  totals = dict.fromkeys(KINDS, 0)
  for (kind, *_), size in received.items():
    totals[kind] += size
  return totals


def _received(kind: str, size: int, n: int) -> int:
  """The table in `collective_bytes`."""
  return {
    'all-gather': size * (n - 1) // n,
    'all-to-all': size * (n - 1) // n,
    'reduce-scatter': size * (n - 1),
    'all-reduce': 2 * size * (n - 1) // n,
    'collective-permute': size,
  }[kind]


def _result_bytes(line: hlo.Instruction) -> int:
  """Bytes of an instruction's result, without the padding of tiles, which does not travel."""
  sizes = [array.size for array in hlo.arrays(line.result)]
  if line.opcode in ('all-gather-start', 'collective-permute-start'):
    return sizes[1]  # their result is a tuple (operand, result, ...)
  return sum(sizes)


def _group_size(text: str, devices: int) -> int:
  """How many chips take part in one collective together. HLO writes groups in three ways; without groups, all do."""
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
  if iota := re.search(r'replica_groups=\[\d+,(\d+)\]', text):
    return int(iota.group(1))
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
    return len(listed.group(1).split(','))
  return devices
