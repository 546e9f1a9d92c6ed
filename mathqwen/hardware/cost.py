"""What a step costs, counted with its loops: multiplications from its jaxpr, traffic between chips from its HLO.

XLA's own `cost_analysis` counts the body of a loop once, whatever its number of turns. Loops whose number of turns
depends on data (the loss head's) take theirs from the caller, in the order in which they stand.
"""

import collections
import math
import re
from collections.abc import Iterator

from jax.extend import core

DTYPE_BYTES = {'pred': 1, 'bf16': 2} | {f'{kind}{8 * n}': n for kind in 'sfu' for n in (1, 2, 4, 8)}
KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')


def matmul_flops(jaxpr, turns: tuple[int, ...] = ()) -> int:
  """FLOPs of all matrix multiplications in a closed jaxpr, over all devices; elementwise work is not counted.

  `turns`: how often each data-dependent loop runs. Of a condition the dearer branch counts, and a kernel's grid counts
  in full, so that the blocks that an attention kernel skips are in it.
  """
  left = iter(turns)
  return _flops(jaxpr.jaxpr, left)


def _flops(jaxpr, turns: Iterator[int]) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    inner = [j for value in params.values() for j in _jaxprs(value)]
    if name == 'dot_general':
      ((contracted, _), _) = params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
    elif name == 'while':
      total += next(turns) * _flops(params['body_jaxpr'].jaxpr, turns)
    elif name == 'cond':
      total += max(_flops(j, turns) for j in inner)
    elif inner:
      times = 1
      if name == 'scan':
        times = params['length']
      elif name == 'pallas_call':
        times = math.prod(params['grid_mapping'].grid)
      elif name == 'shard_map':
        times = math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
      total += times * sum(_flops(j, turns) for j in inner)
  return total


def _jaxprs(value):
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  return [j for v in value for j in _jaxprs(v)] if isinstance(value, tuple | list) else []


def collective_bytes(hlo: str, turns: tuple[int, ...] = ()) -> dict[str, int]:
  """{kind: bytes that one chip receives from others in a step} of a compiled program's text.

  Of a result of b bytes over n chips: gathers and all-to-alls bring b (n-1)/n, a reduce-scatter b (n-1), an all-reduce
  2 b (n-1)/n, a permutation b.
  """
  computations, entry = _parse(hlo)
  times = collections.Counter()
  left = iter(turns)

  def visit(name, count):
    times[name] += count
    for line in computations[name]:
      opcode = line.opcode
      if opcode == 'while':
        condition, body = (re.search(rf'{key}=%?([\w.-]+)', line.text).group(1) for key in ('condition', 'body'))
        known = _turns(line, computations[condition], computations[body])
        visit(body, count * (next(left) if known is None else known))
      else:
        for called in re.findall(
          r'(?:calls|to_apply|body|called_computations|branch_computations)=({[^}]*}|%?[\w.-]+)', line.text
        ):
          for one in re.findall(r'[\w.-]+', called):
            if one in computations:
              visit(one, count)

  visit(entry, 1)
  devices = re.search(r'num_partitions=(\d+)', hlo)
  everyone = int(devices.group(1)) if devices else 1
  found = {}  # a TPU program has an asynchronous collective in several pieces, all of one channel
  for name, lines in computations.items():
    for line in lines:
      kind = line.opcode.removesuffix('-start')
      if kind not in KINDS or not times[name]:
        continue
      channel = re.search(r'channel_id=(\d+)', line.text)
      size, n = _result_bytes(line), _group_size(line.text, everyone)
      if kind == 'all-reduce' and 'all-reduce-scatter' in name:  # a fusion that keeps its own part
        kind, size = 'reduce-scatter', size // n
      moved = {
        'all-gather': size * (n - 1) // n,
        'all-to-all': size * (n - 1) // n,
        'reduce-scatter': size * (n - 1),
        'all-reduce': 2 * size * (n - 1) // n,
        'collective-permute': size,
      }[kind]
      key = (kind, channel.group(1)) if channel else (kind, name, line.text)
      found[key] = max(found.get(key, 0), moved * times[name])
  totals = dict.fromkeys(KINDS, 0)
  for (kind, *_), moved in found.items():
    totals[kind] += moved
  return totals


Line = collections.namedtuple('Line', 'root name result opcode operands text')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (.*?)\s([a-z][a-z0-9-]*)\((.*?)\)')


def _parse(hlo: str):
  """({computation: [instructions]}, name of the entry)."""
  computations, entry, lines = {}, None, None
  for text in hlo.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', text):
      lines = computations[head.group(2)] = []
      entry = head.group(2) if head.group(1) else entry
    elif lines is not None and (match := _INSTRUCTION.match(text)):
      root, name, result, opcode, operands = match.groups()
      lines.append(Line(bool(root), name, result, opcode, re.findall(r'%([\w.-]+)', operands), text))
  return computations, entry


def _turns(loop: Line, condition: list[Line], body: list[Line]) -> int | None:
  """Turns of a while loop: what XLA noted, or from a counter that goes from 0 to a constant. None if it is neither."""
  if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
    return int(known.group(1))
  (compare,) = [line for line in condition if line.root]
  counter, limit = (_find(condition, name) for name in compare.operands) if len(compare.operands) == 2 else (None, None)
  if 'direction=LT' not in compare.text or counter.opcode != 'get-tuple-element' or limit.opcode != 'constant':
    return None
  (root,) = [line for line in body if line.root]
  step = _find(body, root.operands[int(re.search(r'index=(\d+)', counter.text).group(1))])
  added = [_find(body, name) for name in step.operands]
  constants = [_constant(line) for line in added if line.opcode == 'constant']
  return -(-_constant(limit) // constants[0]) if step.opcode == 'add' and constants else None


def _find(lines, name):
  return next(line for line in lines if line.name == name)


def _constant(line):
  return int(re.search(r' constant\((\d+)\)', line.text).group(1))


def _result_bytes(line) -> int:
  arrays = [
    math.prod(int(d) for d in dims.split(',') if d) * DTYPE_BYTES[dtype]
    for dtype, dims in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', line.result)
  ]
  if line.opcode in ('all-gather-start', 'collective-permute-start'):  # (operand, result, ...)
    return arrays[1]
  return sum(arrays)


def _group_size(text, everyone) -> int:
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
  if iota := re.search(r'replica_groups=\[\d+,(\d+)\]', text):
    return int(iota.group(1))
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
    return len(listed.group(1).split(','))
  return everyone
