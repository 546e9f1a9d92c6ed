"""Bytes that a compiled TPU program moves between HBM and the chip, loops included, from its text.

Each instruction reads its operands and writes its result, in the sizes that they have in memory: padded to tiles, and
only what lies in HBM, which is what has no `S(1)` in its layout. A fusion reads of an operand only the slices that it
takes, and an update in place writes only what is new. So nothing is counted twice: not a buffer that a loop passes on,
not the tuple around it, not the second half of an asynchronous copy. `cost_analysis` knows none of that: it counts the
body of a loop once, and in it the whole stack of layers of which the body takes one.
"""

import math
import re

from mathqwen.hardware import hlo
from mathqwen.hardware.hlo import Instruction

# They pass on what they get, or name a buffer that is there.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all',
  'partition-id', 'replica-id', 'domain', 'opt-barrier', 'optimization-barrier', 'async-start', 'async-update',
}  # fmt: skip
_SAME_ELEMENTS = {'bitcast', 'convert', 'reshape', 'copy', 'transpose'}  # a slice of their result needs only a slice
_SLICES = {'dynamic-slice', 'slice', 'gather'}
_UPDATES = {'dynamic-update-slice': 1, 'scatter': -1}  # opcode -> which operand is new


def traffic(program: str, turns: tuple[int, ...] = ()) -> int:
  """Bytes that one chip reads and writes. turns: as in `cost.matmul_flops`."""
  return sum(by_instruction(program, turns).values())


def by_instruction(program: str, turns: tuple[int, ...] = ()) -> dict[str, int]:
  """`traffic` by 'computation/instruction', for finding what a program should not do."""
  computations, entry = hlo.parse(program)
  times = hlo.executions(computations, entry, iter(turns))
  # What a fusion computes inside stays on the chip. The computations of a reduction work on single numbers.
  inside = {name for lines in computations.values() for line in lines for name in _called_inside(line)}
  moved = {}
  for name, lines in computations.items():
    if name not in inside and times[name]:
      found = _Computation(computations, name)
      moved |= {f'{name}/{line.name}': times[name] * found.moved(line) for line in lines}
  return moved


def _called_inside(line: Instruction) -> list[str]:
  key = 'calls' if line.opcode == 'fusion' else 'to_apply'
  return re.findall(rf'\b{key}=%?([\w.-]+)', line.text) if line.opcode != 'call' else []


class _Computation:
  """One computation, with what it calls."""

  def __init__(self, computations: hlo.Computations, name: str):
    self.computations = computations
    self.lines = {line.name: line for line in computations[name]}
    self.users: dict[str, list[Instruction]] = {}
    for line in computations[name]:
      for operand in dict.fromkeys(line.operands):
        self.users.setdefault(operand, []).append(line)

  def moved(self, line: Instruction) -> int:
    """Bytes that an instruction which is in no fusion reads and writes."""
    opcode = line.opcode
    if opcode in _FREE or opcode.endswith('-done'):
      return 0
    operands = [self.lines[name] for name in line.operands]
    if opcode == 'fusion':
      called = self._called(line)
      read = sum(_in_hbm(operand) and called.read(number) for number, operand in enumerate(operands))
      return read + called.written()
    if opcode in _UPDATES:
      new = operands[_UPDATES[opcode]]
      return _in_hbm(new) + (_size(new) if _in_hbm(line) else 0)
    if opcode in _SLICES:
      return (_size(line) if _in_hbm(operands[0]) else 0) + _in_hbm(line)
    # An asynchronous copy results in (what it writes, what it reads, ...).
    return sum(map(_in_hbm, operands)) + _in_hbm(line, first=opcode.endswith('-start'))

  def read(self, number: int) -> int:
    """Bytes that this computation, as a fusion, needs of its operand `number`."""
    parameter = self._parameter(number)
    return min(_size(parameter), self._read(parameter.name, _item(parameter)))

  def _parameter(self, number: int) -> Instruction:
    return next(line for line in self.lines.values() if f' parameter({number})' in line.text)

  def _read(self, name: str, item: int) -> float:
    """Bytes needed of the value `name`, whose numbers have `item` bytes where they are read; inf: all of them."""
    if self.lines[name].root:
      return math.inf
    total = 0.0
    for user in self.users.get(name, ()):
      first = user.operands[0] == name
      if user.opcode in _SLICES and first:
        total += _size(user) * item / _item(user)
      elif user.opcode in _SAME_ELEMENTS:
        total += self._read(user.name, item)
      elif user.opcode == 'fusion':
        called = self._called(user)
        for number, operand in enumerate(user.operands):
          if operand == name:
            total += self._read(user.name, item) if called.passes_on(number) else called.read(number)
      elif not (user.opcode in _UPDATES and first):  # the rest of what is updated in place stays where it is
        return math.inf
    return total

  def passes_on(self, number: int) -> bool:
    """Whether this computation results in its operand `number`, perhaps in another form."""
    (line,) = [line for line in self.lines.values() if line.root]
    while line.opcode in _SAME_ELEMENTS:
      line = self.lines[line.operands[0]]
    return line == self._parameter(number)

  def written(self) -> int:
    """Bytes of HBM that this computation, as a fusion, writes."""
    (root,) = [line for line in self.lines.values() if line.root]
    return self._written(root)

  def _written(self, line: Instruction) -> int:
    if line.opcode == 'tuple':
      return sum(self._written(self.lines[name]) for name in line.operands)
    if not _in_hbm(line):
      return 0
    source = line
    while source.opcode == 'bitcast':
      source = self.lines[source.operands[0]]
    if source.opcode in _UPDATES:
      return _size(self.lines[source.operands[_UPDATES[source.opcode]]])
    return self._called(source).written() if source.opcode == 'fusion' else _size(line)

  def _called(self, fusion: Instruction) -> '_Computation':
    return _Computation(self.computations, _called_inside(fusion)[0])


def _in_hbm(line: Instruction, first: bool = False) -> int:
  """Bytes of the result that lie in HBM. first: only the first array of a tuple counts."""
  arrays = hlo.arrays(line.result)
  return sum(array.bytes for array in (arrays[:1] if first else arrays) if array.space == 0)


def _size(line: Instruction) -> int:
  """Bytes of the result, wherever it lies."""
  return sum(array.bytes for array in hlo.arrays(line.result))


def _item(line: Instruction) -> int:
  """Bytes of one number of the result."""
  return hlo.arrays(line.result)[0].item
