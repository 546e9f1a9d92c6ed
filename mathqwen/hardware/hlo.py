"""The text of a compiled program: its computations, and how often each of them runs."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

DTYPE_BYTES = {'pred': 1, 'bf16': 2} | {f'{kind}{8 * n}': n for kind in 'sfu' for n in (1, 2, 4, 8)}

# `ROOT %name = result opcode(%operand, ...), more`
Instruction = collections.namedtuple('Instruction', 'root name result opcode operands text')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (.*?)\s([a-z][a-z0-9-]*)\(')
_CALLED = re.compile(r'(?:calls|to_apply|body|called_computations|branch_computations)=({[^}]*}|%?[\w.-]+)')
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?')
Computations = dict[str, list[Instruction]]


@dataclasses.dataclass(frozen=True)
class Array:
  """An array as it lies in memory."""

  size: int  # bytes, without padding
  bytes: int  # padded to tiles
  item: int  # bytes of one number
  space: int  # 0 is HBM, 1 the chip's vector memory


def arrays(result: str) -> list[Array]:
  """Those in the result of an instruction: 'bf16[8,100]{1,0:T(8,128)(2,1)S(1)}', or a tuple of such.

  In it, {1,0} names the axes, the last in memory first, and T(8,128) the size of a tile in the last two of them.
  """
  found = []
  for dtype, dims, order, more in _ARRAY.findall(result):
    sizes = [int(size) for size in dims.split(',') if size]
    numbers = math.prod(sizes)
    order = [int(axis) for axis in order.split(',') if axis]
    tile = re.match(r'T\(([\d,]+)\)', more)
    for axis, size in zip(order, reversed(tile.group(1).split(',')) if tile else (), strict=False):
      sizes[axis] = -(-sizes[axis] // int(size)) * int(size)
    space = re.search(r'S\((\d+)\)', more)
    item = DTYPE_BYTES.get(dtype, 0)  # a token has none
    found.append(Array(numbers * item, math.prod(sizes) * item, item, int(space.group(1)) if space else 0))
  return found


def executions(computations: Computations, entry: str, turns: Iterator[int]) -> collections.Counter:
  """How often each computation runs in a step."""
  times = collections.Counter()

  def visit(name: str, count: int):
    times[name] += count
    for line in computations[name]:
      if line.opcode == 'while':
        condition = re.search(r'condition=%?([\w.-]+)', line.text).group(1)
        body = re.search(r'body=%?([\w.-]+)', line.text).group(1)
        known = _turns(line, computations[condition], computations[body])
        visit(body, count * (next(turns) if known is None else known))
        continue
      for called in _CALLED.findall(line.text):
        for callee in re.findall(r'[\w.-]+', called):  # one name, or several in braces
          if callee in computations:
            visit(callee, count)

  visit(entry, 1)
  return times


def parse(program: str) -> tuple[Computations, str]:
  """(all computations, the name of the one that the program starts with)"""
  computations: Computations = {}
  entry = lines = None
  for text in program.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', text):
      lines = computations[head.group(2)] = []
      entry = head.group(2) if head.group(1) else entry
    elif lines is not None and (match := _INSTRUCTION.match(text)):
      root, name, result, opcode = match.groups()
      operands = re.findall(r'%([\w.-]+)', _in_parentheses(text[match.end() :]))
      lines.append(Instruction(bool(root), name, result, opcode, operands, text))
  return computations, entry


def _in_parentheses(text: str) -> str:
  """What comes before the parenthesis that closes one which is open already."""
  depth = 1
  for place, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return text[:place]
  return text


def _turns(loop: Instruction, condition: list[Instruction], body: list[Instruction]) -> int | None:
  """How often a while loop runs, or None where that depends on data.

  XLA has noted it, or the loop has a counter that goes from 0 to a constant.
  """
  if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
    return int(known.group(1))

  # The condition: counter < limit, where the counter is an element of the loop's state.
  (compare,) = [line for line in condition if line.root]
  if len(compare.operands) != 2 or 'direction=LT' not in compare.text:
    return None
  counter, limit = [_instruction(condition, name) for name in compare.operands]
  if counter.opcode != 'get-tuple-element' or limit.opcode != 'constant':
    return None

  # The body: the same element becomes counter + constant.
  (root,) = [line for line in body if line.root]
  element = int(re.search(r'index=(\d+)', counter.text).group(1))
  step = _instruction(body, root.operands[element])
  added = [_instruction(body, name) for name in step.operands]
  constants = [_constant(line) for line in added if line.opcode == 'constant']
  if step.opcode != 'add' or not constants:
    return None
  return -(-_constant(limit) // constants[0])  # rounded up


def _instruction(lines: list[Instruction], name: str) -> Instruction:
  return next(line for line in lines if line.name == name)


def _constant(line: Instruction) -> int:
  return int(re.search(r' constant\((\d+)\)', line.text).group(1))
